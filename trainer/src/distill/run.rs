//! The loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use encode::cache::{Array, Unconditional};
use encode::prompt::zeros_for_empty_prompt;
use encode::{ModelManifest, VaeConfig};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use shards::{ContentHash, Fingerprint, RunLock};
use tch::{Device, Kind, Tensor};

use super::checkpoint::{self, Position};
use super::export;
use super::grid::Grid;
use super::metrics::{DiscriminatorMetrics, Metrics, Recorder};
use super::paths::StagePaths;
use super::phase::{Carried, CarriedStudent, Networks, Placement, Sources, teacher_folder};
use super::report;
use crate::condition::NullPrompt;
use crate::data::{LatentShards, Loader, SampleOrder, SampleShape};
use crate::draw::{Draw, Place};
use crate::flow::Flow;
use crate::model::ModelFolder;
use crate::objectives::{Batch, Trace, discriminator_step, student_step};
use crate::optimizer::Update;
use crate::recipe::{Objective, Phase, Stage, Trains};
use crate::{Error, Result};

/// Plain lines of progress come this often where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What all stages of a run share.
#[derive(Debug)]
pub struct World {
    run: PathBuf,
    base: ModelFolder,
    latents: Arc<LatentShards>,
    latents_folder: PathBuf,
    null_prompt: NullPrompt,
    shape: SampleShape,
    device: Device,
}

impl World {
    /// Opens base model and latents, and refuses latents that do not fit the model.
    pub fn open(manifest: &Path, run: &Path, device: Device) -> Result<World> {
        let model = ModelManifest::read(manifest, run)?;
        let base = ModelFolder::open(&model.base)?;
        let latents_folder = run.join(encode::cache::LATENTS);
        let latents = LatentShards::open(&latents_folder)?;
        let shape = SampleShape::of(&base.unet, &VaeConfig::read(&model.base.join("vae"))?, model.resolution);
        latents.check(&model, shape)?;
        let null_prompt = null_prompt(&base, &latents_folder)?;
        let (run, latents) = (run.to_owned(), Arc::new(latents));
        Ok(World { run, base, latents, latents_folder, null_prompt, shape, device })
    }

    /// The noise schedule.
    pub fn flow(&self) -> &Flow {
        &self.base.flow
    }
}

/// Asks for everything that entered and left one iteration.
#[derive(Debug, Clone)]
pub struct DumpStep {
    /// Counted over the stage, from 1.
    pub iteration: u64,
    /// The safetensors file to write.
    pub file: PathBuf,
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was finished before; nothing was done.
    Before,
    /// It is finished now.
    Now,
}

/// Runs a stage to its end, from wherever it stands. `stop` asks it to save and leave.
pub fn run_stage(world: &World, stage: &Stage, dump: Option<&DumpStep>, stop: &AtomicBool) -> Result<Done> {
    let paths = StagePaths::new(&world.run, &stage.name);
    let _lock = RunLock::acquire(paths.root())?;
    checkpoint::remove_unfinished(&paths.checkpoints())?;
    let sources = open_sources(world, stage)?;
    let fingerprint = fingerprint(world, stage, &sources)?;
    if paths.is_done() {
        export::check_made_from(&paths.export(), &fingerprint)?;
        return match dump {
            None => Ok(Done::Before),
            Some(dump) => Err(not_dumped(dump, stage.iterations(), stage)),
        };
    }
    let mut run = StageRun::resume(world, stage, &sources, &paths, fingerprint)?;
    run.check_dump(dump)?;
    loop {
        run.finish_phase(dump, stop)?;
        if run.position.phase + 1 == stage.phases.len() {
            break;
        }
        run = run.next_phase()?;
    }
    run.publish()?;
    Ok(Done::Now)
}

fn open_sources(world: &World, stage: &Stage) -> Result<Sources> {
    // Wanted when all is trained: what is wrong with it is said before.
    export::index(&world.base.path)?;
    let open = |teacher| -> Result<ModelFolder> {
        let model = ModelFolder::open(&teacher_folder(teacher, &world.base.path, &world.run)?)?;
        model.same_shape_as(&world.base)?;
        Ok(model)
    };
    Ok(Sources {
        base: world.base.clone(),
        teacher: open(&stage.teacher)?,
        skip_teacher: stage.skip_teacher.as_ref().map(open).transpose()?,
        null_prompt: world.null_prompt.to_device(Device::Cpu),
    })
}

/// What the base model's pipeline puts in place of an empty prompt, as encode-latents left it.
fn null_prompt(base: &ModelFolder, latents: &Path) -> Result<NullPrompt> {
    if zeros_for_empty_prompt(&base.path)? {
        return Ok(NullPrompt::Zeros);
    }
    let tensor = |array: &Array| {
        let shape: Vec<i64> = array.shape.iter().map(|side| *side as i64).collect();
        Tensor::from_slice(&array.values).view(shape.as_slice())
    };
    let empty = Unconditional::load(latents)?;
    Ok(NullPrompt::Embedded {
        prompt_embeds: tensor(&empty.prompt_embeds),
        pooled: tensor(&empty.pooled_prompt_embeds),
    })
}

/// What checkpoints and the export belong to. How a run is recorded and guarded does not matter to what it computes.
fn fingerprint(world: &World, stage: &Stage, sources: &Sources) -> Result<Fingerprint> {
    let mut recipe = serde_json::to_value(stage).expect("a recipe has a JSON form");
    if let Some(fields) = recipe.as_object_mut() {
        fields.remove("record");
        fields.remove("guard");
    }
    let mut fingerprint = Fingerprint::new()
        .with("recipe", ContentHash::of(recipe.to_string().as_bytes()))
        .with("latents", world.latents.fingerprint().digest())
        .with("base", sources.base.hash()?)
        .with("teacher", sources.teacher.hash()?);
    if let Some(skip) = &sources.skip_teacher {
        fingerprint = fingerprint.with("skip_teacher", skip.hash()?);
    }
    Ok(fingerprint)
}

/// Stages of one manifest may share a seed; their streams may not.
fn stage_seed(stage: &Stage) -> u64 {
    let hash = ContentHash::of(format!("{}\0{}", stage.name, stage.seed).as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

struct StageRun<'a> {
    world: &'a World,
    stage: &'a Stage,
    sources: &'a Sources,
    paths: &'a StagePaths,
    fingerprint: Fingerprint,
    placement: Placement,
    position: Position,
    networks: Networks,
    /// What the discriminator's half of the next iteration reported, where it is done.
    discriminator_metrics: Option<DiscriminatorMetrics>,
    loader: Loader,
    recorder: Recorder,
    grid: Grid,
    progress: Progress,
}

impl<'a> StageRun<'a> {
    fn resume(
        world: &'a World,
        stage: &'a Stage,
        sources: &'a Sources,
        paths: &'a StagePaths,
        fingerprint: Fingerprint,
    ) -> Result<StageRun<'a>> {
        let placement = Placement { device: world.device, latent_side: world.shape.latent[1], seed: stage_seed(stage) };
        let saved = checkpoint::latest(&paths.checkpoints(), &fingerprint)?;
        let (position, discriminator_metrics, networks) = match saved {
            None => {
                let fresh = Carried { student: CarriedStudent::Untouched, discriminator: None };
                let networks = Networks::build(stage, &stage.phases[0], sources, fresh, placement)?;
                (Position::default(), None, networks)
            }
            Some(mut saved) => {
                let position = saved.position;
                let discriminator_metrics = saved.discriminator_metrics.take();
                let phase = &stage.phases[position.phase];
                let mut networks = Networks::build(stage, phase, sources, saved.carried(stage), placement)?;
                saved.restore(&mut networks)?;
                tracing::info!("stage {}: going on after iteration {}", stage.name, position.iteration);
                (position, discriminator_metrics, networks)
            }
        };
        let loader = Loader::start(
            world.latents.clone(),
            SampleOrder::new(placement.seed, world.latents.len()),
            position.iteration * stage.micro_batches() as u64,
            stage.micro_batch_size,
            world.shape,
        );
        let recorder =
            Recorder::open(&paths.metrics(), &paths.events(), position.iteration, stage.record.histograms_every)?;
        let numbers = spread(stage.record.samples, world.latents.len());
        let captions = numbers.iter().map(|n| world.latents.caption(*n)).collect::<Result<_>>()?;
        let condition = world.latents.batch(&numbers, world.shape)?.to_device(world.device).condition;
        let grid = Grid::new(&world.base.path, world.device, placement.seed, world.shape.latent, condition, captions)?;
        let progress = Progress::start(stage, position.iteration);
        Ok(StageRun {
            world,
            stage,
            sources,
            paths,
            fingerprint,
            placement,
            position,
            networks,
            discriminator_metrics,
            loader,
            recorder,
            grid,
            progress,
        })
    }

    fn check_dump(&self, dump: Option<&DumpStep>) -> Result<()> {
        let (done, all) = (self.position.iteration, self.stage.iterations());
        match dump {
            Some(dump) if dump.iteration <= done || dump.iteration > all => Err(not_dumped(dump, done, self.stage)),
            _ => Ok(()),
        }
    }

    fn phase(&self) -> &'a Phase {
        &self.stage.phases[self.position.phase]
    }

    fn finish_phase(&mut self, dump: Option<&DumpStep>, stop: &AtomicBool) -> Result<()> {
        while self.position.in_phase < self.phase().iterations {
            self.iterate(dump, stop)?;
            let record = self.stage.record;
            let due = |every: u64| every > 0 && self.position.iteration.is_multiple_of(every);
            if stop.load(Ordering::Relaxed) {
                return self.interrupted();
            }
            if self.position.in_phase < self.phase().iterations {
                if due(record.checkpoint_every) {
                    self.save()?;
                }
                if due(record.samples_every) {
                    self.draw_samples()?;
                }
            }
        }
        self.save()?;
        self.draw_samples()?;
        let trains_adapters_on =
            self.stage.phases.get(self.position.phase + 1).is_some_and(|next| next.trains == Trains::Lora);
        if self.phase().trains == Trains::Lora && !trains_adapters_on {
            self.networks.save_adapters(self.stage, &self.paths.adapters())?;
        }
        Ok(())
    }

    /// The next phase's networks take the place of this one's; both at once would not fit.
    fn next_phase(mut self) -> Result<StageRun<'a>> {
        let position = Position { phase: self.position.phase + 1, in_phase: 0, ..self.position };
        let carried = self.networks.into_carried();
        if let Device::Cuda(_) = self.placement.device {
            torch_shim::empty_cuda_cache()?;
        }
        let networks =
            Networks::build(self.stage, &self.stage.phases[position.phase], self.sources, carried, self.placement)?;
        self.grid.forget_teacher();
        Ok(StageRun { position, networks, ..self })
    }

    fn save(&self) -> Result<()> {
        let keep = self.stage.record.keep_checkpoints;
        let position = (self.position, self.discriminator_metrics.as_ref());
        checkpoint::save(&self.paths.checkpoints(), &self.fingerprint, position, &self.networks, keep)
    }

    fn interrupted(&self) -> Result<()> {
        self.save()?;
        Err(Error::Interrupted { iteration: self.position.iteration })
    }

    fn draw_samples(&mut self) -> Result<()> {
        let path = self.paths.samples().join(format!("{:09}.png", self.position.iteration));
        if path.is_file() {
            return Ok(());
        }
        self.grid.draw(self.world.flow(), &self.networks.teacher, &self.networks.student, &path)
    }

    /// One update of the discriminator, where there is one, and one of the student.
    fn iterate(&mut self, dump: Option<&DumpStep>, stop: &AtomicBool) -> Result<()> {
        let started = Instant::now();
        let batches = (0..self.stage.micro_batches()).map(|_| self.loader.next()).collect::<Result<Vec<Batch>>>()?;
        let waited = started.elapsed();
        let dump = dump.filter(|dump| dump.iteration == self.position.iteration + 1);
        let mut traced = BTreeMap::new();

        if !self.position.discriminator_done {
            self.discriminator_metrics =
                self.discriminator_half(&batches, dump.is_some().then_some(&mut traced), stop)?;
        }
        self.position.discriminator_done = self.networks.critic.is_some();
        let (student_loss, student_gradient_norm) =
            self.student_half(&batches, dump.is_some().then_some(&mut traced), stop)?;
        self.position.discriminator_done = false;
        self.position.in_phase += 1;
        self.position.iteration += 1;
        if let Some(dump) = dump {
            let tensors = traced.iter().map(|(name, tensor): (&String, &Tensor)| (name.as_str(), tensor));
            nn::save(&dump.file, tensors, &[("iteration", &dump.iteration.to_string())])?;
        }

        let elapsed = started.elapsed().as_secs_f64();
        let metrics = Metrics {
            iteration: self.position.iteration,
            phase: self.phase().name.clone(),
            student_loss,
            student_gradient_norm,
            discriminator: self.discriminator_metrics.take(),
            images_per_second: self.stage.batch_size as f64 / elapsed,
            data_wait: waited.as_secs_f64() / elapsed,
            peak_memory_bytes: peak_memory(self.world.device),
        };
        self.recorder.record(&metrics)?;
        self.progress.iteration(&metrics);
        self.watch_for_collapse(&metrics)
    }

    fn discriminator_half(
        &mut self,
        batches: &[Batch],
        mut traced: Option<&mut BTreeMap<String, Tensor>>,
        stop: &AtomicBool,
    ) -> Result<Option<DiscriminatorMetrics>> {
        let Some(mut critic) = self.networks.critic.take() else { return Ok(None) };
        critic.optimizer.set_trainable(true);
        let weight = 1.0 / batches.len() as f64;
        let mut reports = Vec::with_capacity(batches.len());
        for (at, batch) in batches.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                critic.optimizer.zero_gradients();
                self.networks.critic = Some(critic);
                self.interrupted()?;
                unreachable!("an interruption is an error");
            }
            let (batch, draw) = self.micro_batch(batch, at);
            let mut trace = if traced.is_some() { Trace::On(BTreeMap::new()) } else { Trace::Off };
            reports.push(discriminator_step(
                self.world.flow(),
                &self.networks.student,
                &self.networks.teacher,
                &critic.discriminator,
                &batch,
                &draw,
                weight,
                &mut trace,
            ));
            critic.optimizer.accumulate();
            if let Some(traced) = traced.as_deref_mut() {
                collect(traced, at, trace);
            }
        }
        if let Some(traced) = traced {
            collect_gradients(traced, "discriminator", critic.optimizer.gradients());
        }
        let update = critic.optimizer.update(&self.networks.discriminator_adam(), None)?;
        critic.optimizer.set_trainable(false);
        self.networks.critic = Some(critic);
        let gradient_norm = self.note_update(update, Half::Discriminator)?;

        let real = to_numbers(reports.iter().map(|report| &report.real))?;
        let fake = to_numbers(reports.iter().map(|report| &report.fake))?;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let loss = mean(&to_numbers(reports.iter().map(|report| &report.loss))?);
        Ok(Some(DiscriminatorMetrics {
            loss,
            gradient_norm,
            real_mean: mean(&real),
            fake_mean: mean(&fake),
            real,
            fake,
        }))
    }

    fn student_half(
        &mut self,
        batches: &[Batch],
        mut traced: Option<&mut BTreeMap<String, Tensor>>,
        stop: &AtomicBool,
    ) -> Result<(f64, Option<f64>)> {
        if let Some(critic) = &self.networks.critic {
            critic.optimizer.set_trainable(false);
        }
        let weight = 1.0 / batches.len() as f64;
        let mut losses = Vec::with_capacity(batches.len());
        for (at, batch) in batches.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                self.networks.student_optimizer.zero_gradients();
                self.interrupted()?;
                unreachable!("an interruption is an error");
            }
            let (batch, draw) = self.micro_batch(batch, at);
            let mut trace = if traced.is_some() { Trace::On(BTreeMap::new()) } else { Trace::Off };
            let networks = &self.networks;
            let judge = networks.judge();
            let report = student_step(self.world.flow(), &networks.student, judge, &batch, &draw, weight, &mut trace);
            losses.push(report.loss);
            self.networks.student_optimizer.accumulate();
            if let Some(traced) = traced.as_deref_mut() {
                collect(traced, at, trace);
            }
        }
        if let Some(traced) = traced {
            collect_gradients(traced, "student", self.networks.student_optimizer.gradients());
        }
        let adam = self.networks.adam();
        let update = self.networks.student_optimizer.update(&adam, self.stage.ema_decay)?;
        let gradient_norm = self.note_update(update, Half::Student)?;
        let losses = to_numbers(losses.iter())?;
        Ok((losses.iter().sum::<f64>() / losses.len() as f64, gradient_norm))
    }

    /// A micro-batch on the device, and what is random in it: the same for both halves of an iteration.
    fn micro_batch(&self, batch: &Batch, at: usize) -> (Batch, Draw) {
        let look = match &self.phase().objective {
            Objective::Adversarial { noise, .. } => noise.as_ref(),
            Objective::Mse | Objective::X0Conversion => None,
        };
        let place =
            Place { seed: self.placement.seed, iteration: self.position.iteration, rank: 0, micro_batch: at as u32 };
        let timesteps = &self.stage.student_timesteps;
        let draw = Draw::new(place, &batch.latents.size(), timesteps, look, self.world.device);
        (batch.to_device(self.world.device), draw)
    }

    /// Bounded skips, then a stop.
    fn note_update(&mut self, update: Update, half: Half) -> Result<Option<f64>> {
        let skips = match half {
            Half::Student => &mut self.position.student_skips,
            Half::Discriminator => &mut self.position.discriminator_skips,
        };
        match update {
            Update::Applied { gradient_norm } => {
                *skips = 0;
                Ok(Some(gradient_norm))
            }
            Update::Skipped => {
                *skips += 1;
                let (updates, iteration) = (*skips, self.position.iteration + 1);
                let what = half.owner();
                if updates > self.stage.guard.max_skipped_in_a_row {
                    return Err(Error::NonFinite { updates, what, iteration });
                }
                tracing::warn!("iteration {iteration}: the {what}'s gradients are NaN or infinite; no update");
                Ok(None)
            }
        }
    }

    fn watch_for_collapse(&mut self, metrics: &Metrics) -> Result<()> {
        let guard = &self.stage.guard;
        let Some(discriminator) = &metrics.discriminator else { return Ok(()) };
        if discriminator.loss >= guard.collapse_loss {
            self.position.collapsed = 0;
            return Ok(());
        }
        self.position.collapsed += 1;
        if self.position.collapsed < guard.collapse_patience {
            return Ok(());
        }
        Err(Error::Collapsed {
            limit: guard.collapse_loss,
            iterations: self.position.collapsed,
            iteration: self.position.iteration,
        })
    }

    /// Export, then the page that shows it.
    fn publish(self) -> Result<()> {
        let weights = self.networks.export_weights(self.stage, self.sources)?;
        let made_from = (&self.fingerprint, self.world.latents_folder.as_path(), self.world.run.as_path());
        let lineage = export::lineage(self.stage, self.sources, made_from)?;
        report::write(self.stage, &self.grid.captions, self.paths)?;
        export::publish(self.stage, self.sources, &weights, &lineage, self.paths)?;
        self.progress.finish(&self.stage.name);
        Ok(())
    }
}

fn not_dumped(dump: &DumpStep, done: u64, stage: &Stage) -> Error {
    let (iteration, all) = (dump.iteration, stage.iterations());
    let reason = format!("iteration {iteration} cannot be dumped: {done} of the stage's {all} are done");
    Error::Document { path: dump.file.clone(), reason }
}

#[derive(Debug, Clone, Copy)]
enum Half {
    Student,
    Discriminator,
}

impl Half {
    fn owner(self) -> &'static str {
        match self {
            Half::Student => "student",
            Half::Discriminator => "discriminator",
        }
    }
}

/// `count` numbers below `of`, evenly spread.
fn spread(count: usize, of: usize) -> Vec<usize> {
    let count = count.min(of);
    (0..count).map(|at| at * of / count).collect()
}

fn collect(traced: &mut BTreeMap<String, Tensor>, micro_batch: usize, trace: Trace) {
    if let Trace::On(tensors) = trace {
        traced.extend(tensors.into_iter().map(|(name, tensor)| (format!("{micro_batch:03}.{name}"), tensor)));
    }
}

fn collect_gradients(traced: &mut BTreeMap<String, Tensor>, whose: &str, gradients: BTreeMap<String, Tensor>) {
    let copies = gradients.into_iter().map(|(name, tensor)| (format!("gradient.{whose}.{name}"), tensor.copy()));
    traced.extend(copies);
}

/// Tensors' elements on the host, one after the other.
fn to_numbers<'t>(tensors: impl Iterator<Item = &'t Tensor>) -> Result<Vec<f64>> {
    let flat: Vec<Tensor> = tensors.map(|tensor| tensor.flatten(0, -1)).collect();
    Ok(Vec::try_from(Tensor::cat(&flat, 0).to_kind(Kind::Double).to_device(Device::Cpu))?)
}

/// The most that tensors held on a GPU; on the CPU, the most that the process held.
fn peak_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => torch_shim::cuda_memory(index).ok().map(|memory| memory.peak_allocated),
        _ => {
            let status = std::fs::read_to_string("/proc/self/status").ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kibibytes << 10)
        }
    }
}

/// A bar on a terminal, a line every few seconds elsewhere.
struct Progress {
    bar: ProgressBar,
    total: u64,
    last_line: Instant,
}

impl Progress {
    fn start(stage: &Stage, done: u64) -> Progress {
        let total = stage.iterations();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_prefix(stage.name.clone());
        bar.set_position(done);
        bar.reset_eta();
        Progress { bar, total, last_line: Instant::now() }
    }

    fn iteration(&mut self, metrics: &Metrics) {
        let discriminator =
            metrics.discriminator.as_ref().map_or_else(String::new, |d| format!(", discriminator {:.4}", d.loss));
        let message = format!(
            "{}: student {:.4}{discriminator}, {:.2} img/s",
            metrics.phase, metrics.student_loss, metrics.images_per_second
        );
        self.bar.set_position(metrics.iteration);
        if self.bar.is_hidden() && (self.last_line.elapsed() >= LINE_EVERY || metrics.iteration == self.total) {
            let eta = self.bar.eta().as_secs();
            tracing::info!("{}/{} {message}, {eta} s to go", metrics.iteration, self.total);
            self.last_line = Instant::now();
        }
        self.bar.set_message(message);
    }

    fn finish(&self, stage: &str) {
        self.bar.finish_and_clear();
        tracing::info!("stage {stage}: done");
    }
}
