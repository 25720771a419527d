//! Discrete-time samplers as diffusers defines them: Euler, Euler ancestral, DDIM and LCM.
//!
//! Every sampler here is one affine map per step ([`Update`]), whose coefficients are computed in f64 from the
//! cumulative products of the noise schedule. The map is applied to FP32 latents, so that what is rounded is the
//! tensor arithmetic alone.
//!
//! ```text
//! Scheduler (scheduler_config.json)  --steps(n)-->  Steps (timesteps, updates)  --step(i, x, model output)-->  x
//! ```

mod config;
mod grid;
mod noise;
mod update;

pub use config::{Algorithm, PredictionType, Sampler, SchedulerConfig, SchedulerError, TimestepSpacing};
pub use grid::{lcm_timesteps, leading_timesteps, linspace_timesteps, rounded_linspace_timesteps, trailing_timesteps};
pub use noise::{BetaSchedule, NoiseSchedule};
pub use update::Update;

use tch::{Kind, Tensor};

/// A scheduler's settings together with the noise schedule that they describe.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    noise: NoiseSchedule,
}

impl Scheduler {
    /// Computes the noise schedule of a validated configuration.
    pub fn new(config: SchedulerConfig) -> Self {
        let noise = NoiseSchedule::new(config.betas, config.num_train_timesteps);
        Self { config, noise }
    }

    /// The settings this scheduler was made from.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The noise schedule over the training timesteps.
    pub fn noise(&self) -> &NoiseSchedule {
        &self.noise
    }

    /// The timesteps and updates of a run of `count` steps.
    pub fn steps(&self, count: usize) -> Result<Steps, SchedulerError> {
        let timesteps = self.timesteps(count)?;
        let updates = match self.config.algorithm {
            Algorithm::Euler => self.sigma_updates(&timesteps, Update::euler),
            Algorithm::EulerAncestral => self.sigma_updates(&timesteps, Update::euler_ancestral),
            Algorithm::Ddim { .. } => self.ddim_updates(&timesteps, count),
            Algorithm::Lcm { timestep_scaling, .. } => self.lcm_updates(&timesteps, timestep_scaling),
        };
        let init_noise_scale = self.init_noise_scale(&timesteps);
        Ok(Steps { timesteps, updates, clip: self.config.clip(), init_noise_scale })
    }

    fn timesteps(&self, count: usize) -> Result<Vec<f64>, SchedulerError> {
        let train = self.config.num_train_timesteps;
        if count == 0 || count > train {
            return Err(SchedulerError::StepCount { count, train });
        }
        if let Algorithm::Lcm { original_inference_steps, .. } = self.config.algorithm {
            return lcm_timesteps(train, original_inference_steps, count);
        }
        let timesteps = match self.config.timestep_spacing {
            TimestepSpacing::Trailing => trailing_timesteps(train, count),
            TimestepSpacing::Leading => leading_timesteps(train, count, self.config.steps_offset),
            TimestepSpacing::Linspace => match self.config.algorithm {
                // DDIM indexes the noise schedule and so rounds; the Euler family interpolates it.
                Algorithm::Ddim { .. } => rounded_linspace_timesteps(train, count),
                _ => linspace_timesteps(train, count),
            },
        };
        match timesteps.first() {
            Some(&first) if first > (train - 1) as f64 => {
                Err(SchedulerError::BeyondTraining { timestep: first, train })
            }
            _ => Ok(timesteps),
        }
    }

    /// Euler in k-diffusion's variables, x = x0 + sigma * noise: each step goes from its sigma to the next one's,
    /// the last to zero.
    fn sigma_updates(&self, timesteps: &[f64], update: fn(PredictionType, f64, f64) -> Update) -> Vec<Update> {
        let sigmas: Vec<f64> = timesteps.iter().map(|&t| self.noise.sigma(t)).collect();
        let next = sigmas[1..].iter().copied().chain([0.0]);
        sigmas.iter().zip(next).map(|(&from, to)| update(self.config.prediction_type, from, to)).collect()
    }

    /// DDIM steps back by the whole number `train / count`, as diffusers does, whatever the spacing.
    fn ddim_updates(&self, timesteps: &[f64], count: usize) -> Vec<Update> {
        let stride = self.config.num_train_timesteps / count;
        timesteps
            .iter()
            .map(|&t| {
                let now = self.noise.alpha_cumprod(t as usize);
                let next = match (t as usize).checked_sub(stride) {
                    Some(previous) => self.noise.alpha_cumprod(previous),
                    None => self.final_alpha_cumprod(),
                };
                Update::ddim(self.config.prediction_type, now, next)
            })
            .collect()
    }

    fn lcm_updates(&self, timesteps: &[f64], timestep_scaling: f64) -> Vec<Update> {
        let alphas: Vec<f64> = timesteps.iter().map(|&t| self.noise.alpha_cumprod(t as usize)).collect();
        (0..timesteps.len())
            .map(|i| {
                let next = alphas.get(i + 1).copied();
                Update::lcm(self.config.prediction_type, timesteps[i] * timestep_scaling, alphas[i], next)
            })
            .collect()
    }

    fn final_alpha_cumprod(&self) -> f64 {
        match self.config.algorithm {
            Algorithm::Ddim { set_alpha_to_one: false, .. } => self.noise.alpha_cumprod(0),
            _ => 1.0,
        }
    }

    /// The standard deviation that diffusers gives to the noise a run starts from.
    fn init_noise_scale(&self, timesteps: &[f64]) -> f64 {
        if matches!(self.config.algorithm, Algorithm::Ddim { .. } | Algorithm::Lcm { .. }) {
            return 1.0;
        }
        let sigma = timesteps.iter().map(|&t| self.noise.sigma(t)).fold(0.0, f64::max);
        if self.config.timestep_spacing == TimestepSpacing::Leading { sigma.hypot(1.0) } else { sigma }
    }
}

/// The steps of one run: where the model is asked, and what is done with its answer.
#[derive(Clone, Debug)]
pub struct Steps {
    timesteps: Vec<f64>,
    updates: Vec<Update>,
    clip: Option<f64>,
    init_noise_scale: f64,
}

impl Steps {
    /// The timesteps, falling.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The noise level of each step, in the sampler's own variables.
    pub fn sigmas(&self) -> impl Iterator<Item = f64> + '_ {
        self.updates.iter().map(|update| update.noise_level)
    }

    /// What unit noise is multiplied by before the first step.
    pub fn init_noise_scale(&self) -> f64 {
        self.init_noise_scale
    }

    /// Whether step `i` adds fresh noise.
    pub fn wants_noise(&self, i: usize) -> bool {
        self.updates[i].next_noise != 0.0
    }

    /// The first step of a run that starts from an image: SDEdit skips the noisiest `1 - strength` of the steps.
    /// `None` where nothing would be left to do.
    pub fn start_for_strength(&self, strength: f64) -> Option<usize> {
        let count = self.timesteps.len();
        let kept = ((count as f64 * strength) as usize).min(count);
        (kept > 0).then(|| count - kept)
    }

    /// A clean latent brought to the noise level of step `i`.
    pub fn add_noise(&self, i: usize, clean: &Tensor, noise: &Tensor) -> Tensor {
        let update = &self.updates[i];
        clean * update.signal_level + noise * update.noise_level
    }

    /// What the model is shown at step `i`.
    pub fn model_input(&self, i: usize, sample: &Tensor) -> Tensor {
        sample * self.updates[i].input_scale
    }

    /// The sample after step `i`. `noise` is asked for only where [`Steps::wants_noise`].
    pub fn step(&self, i: usize, sample: &Tensor, model_output: &Tensor, noise: impl FnOnce() -> Tensor) -> Tensor {
        let sample = sample.to_kind(Kind::Float);
        let model_output = model_output.to_kind(Kind::Float);
        self.updates[i].apply(&sample, &model_output, self.clip, noise)
    }
}
