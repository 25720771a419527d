//! The forward process over the training timesteps.

use std::f64::consts::FRAC_PI_2;

/// How the variances of the forward process grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BetaSchedule {
    /// Evenly from `start` to `end`.
    Linear {
        /// The first beta.
        start: f64,
        /// The last beta.
        end: f64,
    },
    /// Evenly in the square root from `start` to `end`: Stable Diffusion's own.
    ScaledLinear {
        /// The first beta.
        start: f64,
        /// The last beta.
        end: f64,
    },
    /// Nichol and Dhariwal's cosine, capped at 0.999.
    SquaredCosine,
}

impl BetaSchedule {
    fn betas(self, count: usize) -> Vec<f64> {
        match self {
            Self::Linear { start, end } => linspace(start, end, count),
            Self::ScaledLinear { start, end } => {
                linspace(start.sqrt(), end.sqrt(), count).into_iter().map(|root| root * root).collect()
            }
            Self::SquaredCosine => {
                let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
                let at = |i: usize| alpha_bar(i as f64 / count as f64);
                (0..count).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999)).collect()
            }
        }
    }
}

/// `count` evenly spaced values from `start` to `end`, both included.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / (count.max(2) - 1) as f64;
    (0..count).map(|i| if i > 0 && i + 1 == count { end } else { start + i as f64 * step }).collect()
}

/// The signal and noise that the forward process leaves at each training timestep:
/// x_t = sqrt(alpha_cumprod) x_0 + sqrt(1 - alpha_cumprod) noise.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// The schedule of `count` training timesteps.
    pub fn new(betas: BetaSchedule, count: usize) -> Self {
        let alphas_cumprod = betas
            .betas(count)
            .into_iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        Self { alphas_cumprod }
    }

    /// The number of training timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// The cumulative product of the alphas up to and including `timestep`.
    pub fn alpha_cumprod(&self, timestep: usize) -> f64 {
        self.alphas_cumprod[timestep]
    }

    /// The noise-to-signal ratio sqrt((1 - alpha_cumprod) / alpha_cumprod), linear between whole timesteps.
    pub fn sigma(&self, timestep: f64) -> f64 {
        let at = |t: usize| ((1.0 - self.alphas_cumprod[t]) / self.alphas_cumprod[t]).sqrt();
        let (below, part) = (timestep.floor() as usize, timestep.fract());
        if part == 0.0 { at(below) } else { at(below) + part * (at(below + 1) - at(below)) }
    }
}
