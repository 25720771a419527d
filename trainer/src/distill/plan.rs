//! What a stage will take: memory, arithmetic and disk of each phase, before it starts and without a model's weights.
//!
//! The figures are measured, not estimated: each phase's networks are built on a device without memory, one pass of
//! each half of an iteration and one grid of samples are run there by the loop's own functions, and a meter is read.
//! What is saved for backward passes, recomputed, accumulated or held twice for a moment is in it for that reason.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use encode::{ClipTextConfig, ModelManifest, VaeConfig};
use tch::{Cuda, Device, Kind, Tensor};
use torch_shim::{Meter, PHANTOM};

use super::rehearsal::{Rehearsal, Shapes};
use crate::Result;
use crate::data::SampleShape;
use crate::flow::Flow;
use crate::model::ModelFolder;
use crate::optimizer::{OptimizerBytes, StateDevice};
use crate::recipe::{Phase, Precision, Stage, Trains};
use crate::unet::UNet;

/// What one stage will take.
#[derive(Debug, Clone)]
pub struct StagePlan {
    /// Its recipe.
    pub stage: Stage,
    /// What each of its phases will take.
    pub phases: Vec<PhasePlan>,
    /// The exported UNet, and adapters where there are some.
    pub export_bytes: u64,
}

/// What one phase will take.
#[derive(Debug, Clone)]
pub struct PhasePlan {
    /// Its name.
    pub name: String,
    /// Its iterations.
    pub iterations: u64,
    /// Networks that are not trained: teachers, and the decoder of sample grids.
    pub frozen_bytes: u64,
    /// What is trained of the student, and the state of its optimizer.
    pub student: OptimizerBytes,
    /// The same of the discriminator, where there is one.
    pub discriminator: Option<OptimizerBytes>,
    /// What one pass of the discriminator's half holds on top of that, at most.
    pub discriminator_pass_bytes: u64,
    /// What one pass of the student's half holds on top of that, at most.
    pub student_pass_bytes: u64,
    /// What a grid of samples holds on top of that, at most.
    pub samples_bytes: u64,
    /// Of the optimizers' state, what lies in host memory.
    pub offloaded_bytes: u64,
    /// The most that all tensors on the device hold at once.
    pub peak_bytes: u64,
    /// Additions and multiplications of one iteration in products, convolutions and attention.
    pub operations: f64,
    /// One checkpoint.
    pub checkpoint_bytes: u64,
}

/// The shapes of a manifest's model and of its samples.
pub fn model_shapes(manifest: &Path, run: &Path) -> Result<Shapes> {
    let model = ModelManifest::read(manifest, run)?;
    let base = ModelFolder::open(&model.base)?;
    let text = ClipTextConfig::read(&model.base.join("text_encoder"))?;
    let vae = VaeConfig::read(&model.base.join("vae"))?;
    Ok(Shapes {
        sample: SampleShape::of(&base.unet, &vae, model.resolution),
        vae: Some(vae),
        unet: base.unet,
        tokens: text.max_position_embeddings,
    })
}

/// Plans a stage for a model of the given shapes.
pub fn plan(stage: &Stage, flow: &Flow, shapes: &Shapes) -> Result<StagePlan> {
    let phases = stage
        .phases
        .iter()
        .map(|phase| PhasePlan::of(stage, phase, flow, shapes))
        .collect::<Result<Vec<PhasePlan>>>()?;
    let (_, unet) = nn::Weights::shapes_only().build(|scope| UNet::new(scope, &shapes.unet))?;
    let adapters = phases.iter().zip(&stage.phases).filter(|(_, phase)| phase.trains == Trains::Lora);
    let adapters = adapters.map(|(plan, _)| plan.trained_by_student()).max().unwrap_or(0);
    // Both are published in FP16.
    Ok(StagePlan { stage: stage.clone(), phases, export_bytes: 2 * (unet.count() as u64 + adapters) })
}

impl PhasePlan {
    fn of(stage: &Stage, phase: &Phase, flow: &Flow, shapes: &Shapes) -> Result<PhasePlan> {
        let meter = Meter::start();
        let mut rehearsal = Rehearsal::new(stage, phase, flow, shapes, PHANTOM, StateDevice::Same)?;
        let mut held = |run: &mut dyn FnMut(&mut Rehearsal)| {
            let before = meter.read().live_bytes;
            meter.restart();
            run(&mut rehearsal);
            let reading = meter.read();
            (reading.peak_bytes - before, reading.operations)
        };
        let (discriminator_pass_bytes, of_discriminator) = held(&mut |rehearsal| rehearsal.discriminator_pass(0));
        let (student_pass_bytes, of_student) = held(&mut |rehearsal| rehearsal.student_pass(0));
        let (samples_bytes, _) = held(&mut |rehearsal| rehearsal.draw_samples());

        let (student, discriminator) = (rehearsal.student_bytes(), rehearsal.discriminator_bytes());
        let states = state(student) + discriminator.map_or(0, state);
        let (of_student_count, of_critic_count) = rehearsal.trained();
        let saved = |count: u64, with_mean: bool| 4 * count * (3 + u64::from(with_mean));
        let (offloaded_bytes, on_device) = match stage.offload_optimizer {
            // Masters that are the weights themselves on the device are copies on the host.
            true => (saved(of_student_count, student.mean > 0) + saved(of_critic_count, false), 0),
            false => (0, states),
        };
        let held_by = |bytes: OptimizerBytes| bytes.weights + bytes.gradients + bytes.sums;
        let held_always = rehearsal.frozen_bytes() + held_by(student) + discriminator.map_or(0, held_by) + on_device;
        let most = discriminator_pass_bytes.max(student_pass_bytes).max(samples_bytes);
        Ok(PhasePlan {
            name: phase.name.clone(),
            iterations: phase.iterations,
            frozen_bytes: rehearsal.frozen_bytes(),
            student,
            discriminator,
            discriminator_pass_bytes,
            student_pass_bytes,
            samples_bytes,
            offloaded_bytes,
            peak_bytes: held_always + most,
            operations: (of_discriminator + of_student) * stage.micro_batches() as f64,
            checkpoint_bytes: saved(of_student_count, student.mean > 0) + saved(of_critic_count, false),
        })
    }

    fn trained_by_student(&self) -> u64 {
        self.student.moments / 8
    }
}

impl StagePlan {
    /// The most that any phase holds on the device.
    pub fn peak_bytes(&self) -> u64 {
        self.phases.iter().map(|phase| phase.peak_bytes).max().unwrap_or(0)
    }

    /// The most that the stage has on disk beside its log and its pictures: the checkpoints it keeps and the one that
    /// is being written, then the export.
    pub fn disk_bytes(&self) -> u64 {
        let largest = self.phases.iter().map(|phase| phase.checkpoint_bytes).max().unwrap_or(0);
        largest * (self.stage.record.keep_checkpoints as u64 + 1) + self.export_bytes
    }

    /// The plan in words; `rate` is [`product_rate`].
    pub fn describe(&self, rate: f64) -> impl fmt::Display + '_ {
        Described { plan: self, rate }
    }
}

/// Multiplications and additions in a second that a plain product of square matrices reaches on a device.
pub fn product_rate(kind: Kind, device: Device) -> f64 {
    let side = if device.is_cuda() { 8192 } else { 1024 };
    let _no_grad = tch::no_grad_guard();
    let matrix = Tensor::ones([side, side], (Kind::Float, device)).to_kind(kind);
    let seconds = (0..5).map(|_| {
        let began = Instant::now();
        let product = matrix.matmul(&matrix);
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        drop(product);
        began.elapsed().as_secs_f64()
    });
    2.0 * (side as f64).powi(3) / seconds.fold(f64::INFINITY, f64::min)
}

struct Described<'a> {
    plan: &'a StagePlan,
    rate: f64,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StagePlan { stage, phases, export_bytes } = self.plan;
        writeln!(
            f,
            "stage {}: {} steps to {}, {} iterations of {} images in passes of {}, {}{}",
            stage.name,
            stage.teacher.steps,
            stage.student_steps,
            stage.iterations(),
            stage.batch_size,
            stage.micro_batch_size,
            match stage.precision {
                Precision::F32 => "f32",
                Precision::Bf16 => "bf16",
            },
            if stage.checkpoint_activations { ", activations recomputed" } else { "" },
        )?;
        for phase in phases {
            self.phase(f, phase)?;
        }
        writeln!(
            f,
            "  disk     {} at most: {} checkpoints of {} each and the one being written, an export of {}",
            gib(self.plan.disk_bytes()),
            stage.record.keep_checkpoints,
            gib(phases.iter().map(|phase| phase.checkpoint_bytes).max().unwrap_or(0)),
            gib(*export_bytes),
        )?;
        writeln!(
            f,
            "  memory   {} at most; the device's own context and its libraries' workspaces come on top",
            gib(self.plan.peak_bytes())
        )?;
        let iterations = phases.iter().map(|phase| (phase.operations, phase.iterations));
        let all: f64 = iterations.map(|(operations, iterations)| operations * iterations as f64).sum();
        writeln!(
            f,
            "  time     {} at the {:.2} TFLOP/s of plain products here; a step reaches a third to two thirds of that",
            duration(all / self.rate),
            self.rate / 1e12,
        )
    }
}

impl Described<'_> {
    fn phase(&self, f: &mut fmt::Formatter<'_>, phase: &PhasePlan) -> fmt::Result {
        let offloaded = self.plan.stage.offload_optimizer;
        writeln!(f, "  phase {}, {} iterations", phase.name, phase.iterations)?;
        writeln!(f, "    frozen networks      {:>10}", gib(phase.frozen_bytes))?;
        let trained = [("student", Some(phase.student)), ("discriminator", phase.discriminator)];
        for (name, bytes) in trained.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))) {
            let mut parts = vec![("weights", bytes.weights), ("gradients", bytes.gradients + bytes.sums)];
            if !offloaded {
                parts.extend([("masters", bytes.masters), ("moments", bytes.moments), ("mean", bytes.mean)]);
            }
            let all = parts.iter().map(|(_, bytes)| bytes).sum();
            let parts: Vec<String> = (parts.iter().filter(|(_, bytes)| *bytes > 0))
                .map(|(part, bytes)| format!("{part} {}", gib(*bytes)))
                .collect();
            writeln!(f, "    {name:<20} {:>10}: {}", gib(all), parts.join(", "))?;
        }
        if offloaded {
            writeln!(f, "    in host memory       {:>10}: masters, moments, means", gib(phase.offloaded_bytes))?;
        }
        let passes = [
            ("the discriminator's pass", phase.discriminator_pass_bytes),
            ("the student's pass", phase.student_pass_bytes),
            ("a grid of samples", phase.samples_bytes),
        ];
        let of = phase.discriminator.map_or(1, |_| 0);
        let parts: Vec<String> = passes[of..].iter().map(|(pass, bytes)| format!("{pass} {}", gib(*bytes))).collect();
        let most = passes.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        writeln!(f, "    on top, at most      {:>10}: {}", gib(most), parts.join(", "))?;
        writeln!(f, "    peak                 {:>10}", gib(phase.peak_bytes))?;
        writeln!(
            f,
            "    an iteration         {:>10.3} TFLOP, {} at the speed of plain products",
            phase.operations / 1e12,
            duration(phase.operations / self.rate)
        )
    }
}

/// What offloading moves to the host.
fn state(bytes: OptimizerBytes) -> u64 {
    bytes.masters + bytes.moments + bytes.mean
}

fn gib(bytes: u64) -> String {
    let (mib, gib) = (bytes as f64 / f64::from(1 << 20), bytes as f64 / f64::from(1 << 30));
    if gib >= 1.0 { format!("{gib:.2} GiB") } else { format!("{mib:.1} MiB") }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.2} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86400.0),
    }
}
