//! One step of a sampler as an affine map, coefficients in f64.

use tch::Tensor;

use super::config::PredictionType;

/// One step from a sample x and the model's answer m:
///
/// ```text
/// x0 = clip(x0_sample * x + x0_model * m)
/// x' = next_x0 * x0 + next_sample * x + next_model * m + next_noise * noise
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// What the sample is multiplied by before the model sees it.
    pub input_scale: f64,
    /// The weight of the clean image in the sample of this step.
    pub signal_level: f64,
    /// The weight of unit noise in the sample of this step.
    pub noise_level: f64,
    /// The sample's part of the clean estimate.
    pub x0_sample: f64,
    /// The model output's part of the clean estimate.
    pub x0_model: f64,
    /// The clean estimate's part of the next sample.
    pub next_x0: f64,
    /// The sample's part of the next sample.
    pub next_sample: f64,
    /// The model output's part of the next sample.
    pub next_model: f64,
    /// Fresh noise in the next sample.
    pub next_noise: f64,
}

impl Update {
    /// Euler's method on dx/dsigma = (x - x0) / sigma (Karras et al. 2022, algorithm 1 without churn), for a sample
    /// x = x0 + sigma * noise.
    pub(super) fn euler(prediction: PredictionType, from: f64, to: f64) -> Self {
        let variance = from * from + 1.0;
        let (x0_sample, x0_model) = match prediction {
            PredictionType::Epsilon => (1.0, -from),
            PredictionType::Sample => (0.0, 1.0),
            PredictionType::V => (variance.recip(), -from / variance.sqrt()),
        };
        Self {
            input_scale: variance.sqrt().recip(),
            signal_level: 1.0,
            noise_level: from,
            x0_sample,
            x0_model,
            next_x0: 1.0 - to / from,
            next_sample: to / from,
            next_model: 0.0,
            next_noise: 0.0,
        }
    }

    /// Euler's method down to `sigma_down`, then noise up to `to` (k-diffusion's `get_ancestral_step`, eta = 1).
    pub(super) fn euler_ancestral(prediction: PredictionType, from: f64, to: f64) -> Self {
        let sigma_up = to * ((from * from - to * to) / (from * from)).sqrt();
        let sigma_down = (to * to - sigma_up * sigma_up).sqrt();
        Self { next_noise: sigma_up, ..Self::euler(prediction, from, sigma_down) }
    }

    /// Deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0), from one cumulative alpha to the next.
    pub(super) fn ddim(prediction: PredictionType, now: f64, next: f64) -> Self {
        let (signal, noise) = (now.sqrt(), (1.0 - now).sqrt());
        let (x0_sample, x0_model) = x0_of(prediction, signal, noise);
        // The noise estimate is taken before clipping, as diffusers takes it.
        let (noise_sample, noise_model) = match prediction {
            PredictionType::Epsilon => (0.0, 1.0),
            PredictionType::Sample => (noise.recip(), -signal / noise),
            PredictionType::V => (noise, signal),
        };
        let next_noise_level = (1.0 - next).sqrt();
        Self {
            input_scale: 1.0,
            signal_level: signal,
            noise_level: noise,
            x0_sample,
            x0_model,
            next_x0: next.sqrt(),
            next_sample: next_noise_level * noise_sample,
            next_model: next_noise_level * noise_model,
            next_noise: 0.0,
        }
    }

    /// A multistep consistency step (Luo et al. 2023): the boundary-scaled estimate, noised again to the next level,
    /// or left clean where there is none.
    pub(super) fn lcm(prediction: PredictionType, scaled_timestep: f64, now: f64, next: Option<f64>) -> Self {
        const SIGMA_DATA: f64 = 0.5;
        let spread = scaled_timestep * scaled_timestep + SIGMA_DATA * SIGMA_DATA;
        let (c_skip, c_out) = (SIGMA_DATA * SIGMA_DATA / spread, scaled_timestep / spread.sqrt());
        let (signal, noise) = (now.sqrt(), (1.0 - now).sqrt());
        let (x0_sample, x0_model) = x0_of(prediction, signal, noise);
        let next = next.unwrap_or(1.0);
        Self {
            input_scale: 1.0,
            signal_level: signal,
            noise_level: noise,
            x0_sample,
            x0_model,
            next_x0: next.sqrt() * c_out,
            next_sample: next.sqrt() * c_skip,
            next_model: 0.0,
            next_noise: (1.0 - next).sqrt(),
        }
    }

    pub(super) fn apply(
        &self,
        sample: &Tensor,
        model_output: &Tensor,
        clip: Option<f64>,
        noise: impl FnOnce() -> Tensor,
    ) -> Tensor {
        let x0 = sample * self.x0_sample + model_output * self.x0_model;
        let x0 = match clip {
            Some(range) => x0.clamp(-range, range),
            None => x0,
        };
        let next = x0 * self.next_x0 + sample * self.next_sample + model_output * self.next_model;
        if self.next_noise == 0.0 { next } else { next + noise() * self.next_noise }
    }
}

/// The clean estimate of x = signal * x0 + noise * eps as (sample's part, model output's part).
fn x0_of(prediction: PredictionType, signal: f64, noise: f64) -> (f64, f64) {
    match prediction {
        PredictionType::Epsilon => (signal.recip(), -noise / signal),
        PredictionType::Sample => (0.0, 1.0),
        PredictionType::V => (signal, -noise),
    }
}
