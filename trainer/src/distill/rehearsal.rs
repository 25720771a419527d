//! A phase without anyone's weights or data: its networks from seeds, its iterations on noise.
//!
//! On a real device this is what `benches/step` times. On [`PHANTOM`](torch_shim::PHANTOM) it is what `--plan` reads
//! its figures from: the loop's own step functions, on tensors that take no memory.

use std::collections::BTreeMap;

use encode::{AutoencoderKl, VaeConfig};
use nn::{Adapters, Params, Weights};
use tch::{Device, Kind, Tensor};

use super::phase::{Built, Critic, Networks, recompute};
use crate::Result;
use crate::adapters;
use crate::condition::{Condition, NullPrompt};
use crate::data::SampleShape;
use crate::discriminator::{DiscriminatorWeights, HeadShape, HeadWeights};
use crate::draw::{Draw, Place, sample_noise};
use crate::flow::{Flow, Formulation, Timestep};
use crate::objectives::{Batch, Trace, discriminator_step, student_step};
use crate::optimizer::{Optimizer, OptimizerBytes, StateDevice, Update};
use crate::recipe::{Objective, Phase, Stage, TeacherChoice, Trains};
use crate::unet::{UNet, UNetConfig, UNetEncoder};

/// What everything drawn follows from.
const SEED: u64 = 0;

/// The shapes of a model and of its samples.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// The UNet's.
    pub unet: UNetConfig,
    /// The decoder's; without one there are no sample grids.
    pub vae: Option<VaeConfig>,
    /// A sample's.
    pub sample: SampleShape,
    /// Tokens of a prompt.
    pub tokens: i64,
}

/// The networks of one phase, ready for iterations.
#[derive(Debug)]
pub struct Rehearsal<'a> {
    stage: &'a Stage,
    phase: &'a Phase,
    flow: &'a Flow,
    shapes: &'a Shapes,
    device: Device,
    networks: Networks,
    /// The decoder of sample grids, which a stage holds from its start to its end.
    vae: Option<AutoencoderKl>,
    /// Bytes of networks that are not trained.
    frozen_bytes: u64,
}

impl<'a> Rehearsal<'a> {
    /// Builds what [`Networks::build`] builds, from seeds. Optimizers keep their state where `state` says.
    pub fn new(
        stage: &'a Stage,
        phase: &'a Phase,
        flow: &'a Flow,
        shapes: &'a Shapes,
        device: Device,
        state: StateDevice,
    ) -> Result<Rehearsal<'a>> {
        let place = (stage.precision.kind(), device);
        let seeded = || Weights::seeded(SEED).to(place.0, device);
        let frozen = || -> Result<_> {
            let (unet, params) = seeded().build(|scope| UNet::new(scope, &shapes.unet))?;
            params.set_requires_grad(false);
            Ok((unet, params))
        };
        let (teacher, teacher_params) = frozen()?;
        let mut frozen_bytes = bytes(&teacher_params);
        let (mut student, student_optimizer) = match (phase.trains, &stage.lora) {
            (Trains::Lora, Some(recipe)) => {
                let targets = adapters::TARGETS.map(String::from).into();
                let fresh = Adapters::Fresh { targets, rank: recipe.rank, alpha: recipe.alpha, seed: SEED };
                let adapted =
                    Weights::shared(&teacher_params).build_adapted(fresh, |scope| UNet::new(scope, &shapes.unet))?;
                (adapted.net, Optimizer::new(adapted.lora.iter(), state, false)?)
            }
            _ => {
                let own = Weights::from_tensors("the student", copies(&teacher_params, |_| true)).to(place.0, device);
                let (unet, params) = own.build(|scope| UNet::new(scope, &shapes.unet))?;
                (unet, Optimizer::new(params.iter(), state, stage.ema_decay.is_some())?)
            }
        };
        student.set_recompute(recompute(stage));
        let critic = match &phase.objective {
            Objective::Adversarial { conditional, .. } => {
                let weights = DiscriminatorWeights {
                    backbone: copies(&teacher_params, UNetEncoder::owns),
                    head: HeadWeights::Fresh { seed: SEED },
                };
                let shape = HeadShape::of(&shapes.unet, shapes.sample.latent[1], *conditional);
                Some(Critic::new(&shapes.unet, shape, weights, place, recompute(stage), state)?)
            }
            Objective::Mse | Objective::X0Conversion => None,
        };
        let teacher = match phase.teacher {
            TeacherChoice::Previous => teacher,
            // The adapters' base stays, if there are any; the teacher itself goes.
            TeacherChoice::Skip => {
                drop((teacher, teacher_params));
                let (skip, params) = frozen()?;
                match phase.trains {
                    Trains::Lora => frozen_bytes += bytes(&params),
                    Trains::Full => frozen_bytes = bytes(&params),
                }
                skip
            }
        };
        let student = Built { unet: student, formulation: stage.student_formulation(Formulation::Epsilon) };
        let teacher = Built { unet: teacher, formulation: Formulation::Epsilon };
        let networks =
            Networks::assemble(stage, phase, (student, student_optimizer), (teacher, NullPrompt::Zeros), critic);
        let vae = match &shapes.vae {
            Some(config) => {
                let weights = Weights::seeded(SEED).to(Kind::Float, device);
                let (vae, params) = weights.build(|scope| AutoencoderKl::new(scope, config))?;
                params.set_requires_grad(false);
                frozen_bytes += bytes(&params);
                Some(vae)
            }
            None => None,
        };
        Ok(Rehearsal { stage, phase, flow, shapes, device, networks, vae, frozen_bytes })
    }

    /// Bytes of networks that are not trained: teachers and decoder.
    pub fn frozen_bytes(&self) -> u64 {
        self.frozen_bytes
    }

    /// What is trained of the student, and the state of its optimizer.
    pub fn student_bytes(&self) -> OptimizerBytes {
        self.networks.student_optimizer.bytes()
    }

    /// The same of the discriminator, where there is one.
    pub fn discriminator_bytes(&self) -> Option<OptimizerBytes> {
        self.networks.critic.as_ref().map(|critic| critic.optimizer.bytes())
    }

    /// How many numbers of the student, and of the discriminator, are trained.
    pub fn trained(&self) -> (u64, u64) {
        let critic = self.networks.critic.as_ref().map_or(0, |critic| critic.optimizer.count());
        (self.networks.student_optimizer.count().unsigned_abs(), critic.unsigned_abs())
    }

    /// One whole iteration, as the loop does it: every pass of the discriminator and its update, where there is one,
    /// then every pass of the student and its update.
    pub fn iterate(&mut self) -> Result<()> {
        let (adam, discriminator_adam) = (self.networks.adam(), self.networks.discriminator_adam());
        for at in 0..self.stage.micro_batches() {
            self.discriminator_pass(at);
        }
        if let Some(critic) = &mut self.networks.critic {
            let Update::Applied { .. } = critic.optimizer.update(&discriminator_adam, None)? else { return Ok(()) };
        }
        for at in 0..self.stage.micro_batches() {
            self.student_pass(at);
        }
        self.networks.student_optimizer.update(&adam, self.stage.ema_decay).map(|_| ())
    }

    /// One micro-batch of the discriminator's half.
    pub fn discriminator_pass(&mut self, at: usize) {
        let ((batch, draw), weight) = (self.micro_batch(at), self.weight());
        let networks = &mut self.networks;
        let Some(critic) = &mut networks.critic else { return };
        critic.optimizer.set_trainable(true);
        let _report = discriminator_step(
            self.flow,
            &networks.student,
            &networks.teacher,
            &critic.discriminator,
            &batch,
            &draw,
            weight,
            &mut Trace::Off,
        );
        critic.optimizer.accumulate();
        critic.optimizer.set_trainable(false);
    }

    /// One micro-batch of the student's half.
    pub fn student_pass(&mut self, at: usize) {
        let (batch, draw) = self.micro_batch(at);
        let (judge, weight) = (self.networks.judge(), self.weight());
        let _report = student_step(self.flow, &self.networks.student, judge, &batch, &draw, weight, &mut Trace::Off);
        self.networks.student_optimizer.accumulate();
    }

    /// A grid of samples, as the loop draws it: the teacher's row, the student's, and the decoder on each.
    pub fn draw_samples(&self) {
        let Some(vae) = &self.vae else { return };
        let _no_grad = tch::no_grad_guard();
        let batch = self.batch(self.stage.record.samples);
        let count = self.stage.record.samples;
        let (from, to) = (vec![self.flow.last(); count], vec![Timestep::DATA; count]);
        let networks = &self.networks;
        let _walk = networks.teacher.walk(self.flow, &batch.latents, &from, &to, &batch.condition);
        let latents = networks.student.sample(self.flow, &batch.latents, &batch.condition);
        let _picture = vae.decode(&vae.unscale(&latents.narrow(0, 0, 1)));
    }

    fn weight(&self) -> f64 {
        1.0 / self.stage.micro_batches() as f64
    }

    fn micro_batch(&self, at: usize) -> (Batch, Draw) {
        let look = match &self.phase.objective {
            Objective::Adversarial { noise, .. } => noise.as_ref(),
            Objective::Mse | Objective::X0Conversion => None,
        };
        let place = Place { seed: SEED, iteration: 0, rank: 0, micro_batch: at as u32 };
        let batch = self.batch(self.stage.micro_batch_size);
        let draw = Draw::new(place, &batch.latents.size(), &self.stage.student_timesteps, look, self.device);
        (batch, draw)
    }

    fn batch(&self, count: usize) -> Batch {
        let (count, sample) = (count as i64, &self.shapes.sample);
        let [channels, height, width] = sample.latent;
        let noise = |shape: &[i64]| sample_noise(SEED, shape).to_device(self.device);
        Batch {
            latents: noise(&[count, channels, height, width]),
            condition: Condition {
                prompt_embeds: noise(&[count, self.shapes.tokens, sample.context]),
                pooled: noise(&[count, sample.pooled]),
                time_ids: Tensor::full([count, 6], 1024.0, (Kind::Float, self.device)),
            },
        }
    }
}

/// A network's tensors again, of those with wanted names: a copy of weights takes less time than a draw.
fn copies(params: &Params, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
    let _no_grad = tch::no_grad_guard();
    let wanted = params.iter().filter(|(name, _)| wanted(name));
    wanted.map(|(name, tensor)| (name.to_owned(), tensor.detach().copy())).collect()
}

fn bytes(params: &Params) -> u64 {
    params.tensors().map(|tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64).sum()
}
