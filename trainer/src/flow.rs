//! The flow between data and noise: equations 1 to 5 and 24 of SDXL-Lightning.
//!
//! Timesteps are the paper's, 0 (data) to T (noise). The network and every scheduler count the noised ones from
//! zero: the paper's 1000 is their 999; see [`Timestep::model_index`].
//!
//! Each equation is linear in its two tensors, so each is a pair of coefficients, computed in f64 for every
//! sample of a batch, and one product: [`Flow::combine`].
//!
//! Shapes: B batch, C channels, H and W sides of the latent.

use tch::{Device, Kind, Tensor};

/// A place on the flow, 0 (data) to [`Flow::last`] (noise).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestep(pub u32);

impl Timestep {
    /// The clean end of the flow.
    pub const DATA: Timestep = Timestep(0);

    /// What a network is told: noised timesteps count from zero, and clean data passes for the least noised.
    pub fn model_index(self) -> u32 {
        self.0.saturating_sub(1)
    }

    /// Nearer to the data by `by`, clamped to it.
    #[must_use]
    pub fn toward_data(self, by: u32) -> Timestep {
        Timestep(self.0.saturating_sub(by))
    }
}

/// How a network states the gradient of the flow (equation 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Formulation {
    /// It predicts the noise.
    Epsilon,
    /// It predicts the data.
    Sample,
}

/// The pair (a, b) of `a x + b y`.
pub type Coefficients = (f64, f64);

/// The schedule: the product of alphas at every timestep.
#[derive(Debug, Clone)]
pub struct Flow {
    /// `alpha_bar[t]` for t = 0..=T; 1 at 0.
    alpha_bar: Vec<f64>,
}

impl Flow {
    /// From the variances `beta[0..T]` of the forward process.
    pub fn from_betas(betas: impl IntoIterator<Item = f64>) -> Flow {
        let products = betas.into_iter().scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        });
        Flow::from_alpha_bars(products)
    }

    /// From the products of alphas at the T noised timesteps.
    pub fn from_alpha_bars(noised: impl IntoIterator<Item = f64>) -> Flow {
        Flow { alpha_bar: std::iter::once(1.0).chain(noised).collect() }
    }

    /// SDXL's schedule: T = 1000, the roots of the variances evenly spaced ("scaled linear").
    pub fn sdxl() -> Flow {
        let (first, last, count) = (0.00085_f64.sqrt(), 0.012_f64.sqrt(), 1000);
        let step = (last - first) / f64::from(count - 1);
        Flow::from_betas((0..count).map(|i| (first + step * f64::from(i)).powi(2)))
    }

    /// T, the noise end.
    pub fn last(&self) -> Timestep {
        Timestep(u32::try_from(self.alpha_bar.len() - 1).expect("a schedule has a few thousand timesteps"))
    }

    /// The roots of `alpha_bar` and of `1 - alpha_bar`: what of the data and what of the noise is in `x_t`.
    pub fn signal_and_noise(&self, t: Timestep) -> Coefficients {
        let alpha_bar = self.alpha_bar[t.0 as usize];
        (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())
    }

    /// The timesteps of `steps` inference steps, noisiest first, spaced from the noise end ("trailing").
    ///
    /// Halves are rounded to even as numpy does, which is what makes grids nest: the 32 are every fourth of the 128.
    pub fn grid(&self, steps: u32) -> Vec<Timestep> {
        let last = f64::from(self.last().0);
        (0..steps)
            .map(|i| last * f64::from(steps - i) / f64::from(steps))
            .map(|t| Timestep(t.round_ties_even() as u32))
            .collect()
    }

    /// The point that follows `t` when the flow is walked in `steps` steps: the next point of their grid, where `t`
    /// is on it, and else T / `steps` nearer to the data, clamped to it.
    pub fn next(&self, t: Timestep, steps: u32) -> Timestep {
        let grid = self.grid(steps);
        match grid.iter().position(|point| *point == t) {
            Some(at) => grid.get(at + 1).copied().unwrap_or(Timestep::DATA),
            None => t.toward_data((f64::from(self.last().0) / f64::from(steps)).round_ties_even() as u32),
        }
    }

    /// Equation 1: `forward(x_0, eps, t) = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps`.
    pub fn forward(&self, x_0: &Tensor, epsilon: &Tensor, t: &[Timestep]) -> Tensor {
        self.combine(x_0, epsilon, t.iter().map(|t| self.signal_and_noise(*t)))
    }

    /// Equation 24, the corrected schedule: [`Flow::forward`] before T, pure noise at T.
    pub fn forward_to_pure_noise(&self, x_0: &Tensor, epsilon: &Tensor, t: &[Timestep]) -> Tensor {
        let last = self.last();
        self.combine(x_0, epsilon, t.iter().map(|t| if *t == last { (0.0, 1.0) } else { self.signal_and_noise(*t) }))
    }

    /// Equation 3: `x(x_t, u, t)`, the data that the network's statement `u` at `x_t` amounts to.
    pub fn x(&self, x_t: &Tensor, u: &Tensor, t: &[Timestep], formulation: Formulation) -> Tensor {
        self.combine(x_t, u, t.iter().map(|t| self.x_coefficients(*t, formulation)))
    }

    /// Equation 4: `eps(x_t, u, t)`, the noise that the network's statement `u` at `x_t` amounts to.
    pub fn epsilon(&self, x_t: &Tensor, u: &Tensor, t: &[Timestep], formulation: Formulation) -> Tensor {
        self.combine(x_t, u, t.iter().map(|t| self.epsilon_coefficients(*t, formulation)))
    }

    /// Equation 5: `move(x_t, u, t, t') = forward(x(x_t, u, t), eps(x_t, u, t), t')`, and `x_t` itself where t' = t.
    ///
    /// Deterministic DDIM in one product, so that the amplification of `u` near T happens in f64.
    pub fn step(
        &self,
        x_t: &Tensor,
        u: &Tensor,
        from: &[Timestep],
        to: &[Timestep],
        formulation: Formulation,
    ) -> Tensor {
        assert_eq!(from.len(), to.len(), "one end for each start");
        let pairs = from.iter().zip(to).map(|(from, to)| self.step_coefficients(*from, *to, formulation));
        self.combine(x_t, u, pairs)
    }

    fn x_coefficients(&self, t: Timestep, formulation: Formulation) -> Coefficients {
        let (signal, noise) = self.signal_and_noise(t);
        match formulation {
            Formulation::Epsilon => (1.0 / signal, -noise / signal),
            Formulation::Sample => (0.0, 1.0),
        }
    }

    fn epsilon_coefficients(&self, t: Timestep, formulation: Formulation) -> Coefficients {
        let (signal, noise) = self.signal_and_noise(t);
        match formulation {
            Formulation::Epsilon => (0.0, 1.0),
            Formulation::Sample => (1.0 / noise, -signal / noise),
        }
    }

    fn step_coefficients(&self, from: Timestep, to: Timestep, formulation: Formulation) -> Coefficients {
        if from == to {
            return (1.0, 0.0);
        }
        let (signal, noise) = self.signal_and_noise(to);
        let (x_of_x_t, x_of_u) = self.x_coefficients(from, formulation);
        let (eps_of_x_t, eps_of_u) = self.epsilon_coefficients(from, formulation);
        (signal * x_of_x_t + noise * eps_of_x_t, signal * x_of_u + noise * eps_of_u)
    }

    /// `a x + b y` in FP32, with one pair (a, b) for each sample of the batch `[B, C, H, W]`.
    pub fn combine(&self, x: &Tensor, y: &Tensor, pairs: impl Iterator<Item = Coefficients>) -> Tensor {
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.unzip();
        assert_eq!(a.len() as i64, x.size()[0], "one timestep for each sample");
        let column =
            |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float).to_device(x.device()).view([-1, 1, 1, 1]);
        x.to_kind(Kind::Float) * column(&a) + y.to_kind(Kind::Float) * column(&b)
    }
}

/// The timesteps of a batch as the network takes them, `[B]` in FP32.
pub fn model_timesteps(t: &[Timestep], device: Device) -> Tensor {
    let indices: Vec<f32> = t.iter().map(|t| t.model_index() as f32).collect();
    Tensor::from_slice(&indices).to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(seed: u64, batch: i64) -> Tensor {
        let values: Vec<f32> = {
            use rand_chacha::ChaCha8Rng;
            use rand_chacha::rand_core::{RngCore, SeedableRng};
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (0..batch * 4 * 2 * 2).map(|_| (f64::from(rng.next_u32()) / 2f64.powi(31) - 1.0) as f32).collect()
        };
        Tensor::from_slice(&values).view([batch, 4, 2, 2])
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// The most that `products` calls of [`Flow::combine`] can lose on values of up to 1, where what is lost is divided
    /// by `share` of the data or the noise: each rounds two coefficients, two products and a sum by half a unit, and
    /// four such values at most meet in it.
    fn rounding(products: u32, share: f64) -> f64 {
        f64::from(products) * 6.0 * f64::from(f32::EPSILON) / share
    }

    /// Values of diffusers' `EulerDiscreteScheduler` on SDXL's config: sigma at index 999 is 14.6146.
    #[test]
    fn schedule_is_sdxls() {
        let flow = Flow::sdxl();
        let (signal, noise) = flow.signal_and_noise(flow.last());
        assert!((noise / signal - 14.6146).abs() < 1e-4, "{}", noise / signal);
        assert_eq!(flow.signal_and_noise(Timestep::DATA), (1.0, 0.0));
    }

    #[test]
    fn grids_are_the_released_models() {
        let flow = Flow::sdxl();
        let indices = |steps| flow.grid(steps).into_iter().map(Timestep::model_index).collect::<Vec<_>>();
        assert_eq!(indices(8), [999, 874, 749, 624, 499, 374, 249, 124]);
        assert_eq!(indices(4), [999, 749, 499, 249]);
        assert_eq!(indices(2), [999, 499]);
        assert_eq!(indices(1), [999]);
    }

    #[test]
    fn grids_nest() {
        let flow = Flow::sdxl();
        for (fine, coarse) in [(128, 32), (32, 8), (8, 4), (4, 2), (2, 1)] {
            let every = fine as usize / coarse as usize;
            let thinned: Vec<_> = flow.grid(fine).into_iter().step_by(every).collect();
            assert_eq!(thinned, flow.grid(coarse), "{fine} to {coarse}");
        }
    }

    #[test]
    fn next_walks_the_grid_and_clamps_off_it() {
        let flow = Flow::sdxl();
        let mut walked = vec![flow.last()];
        while let Some(t) = walked.last().filter(|t| **t != Timestep::DATA) {
            walked.push(flow.next(*t, 128));
        }
        assert_eq!(walked.split_last(), Some((&Timestep::DATA, flow.grid(128).as_slice())));
        assert_eq!(flow.next(Timestep(250), 2), Timestep::DATA);
        assert_eq!(flow.next(Timestep(750), 2), Timestep(250));
    }

    #[test]
    fn the_last_timestep_is_pure_noise() {
        let flow = Flow::sdxl();
        let (x_0, epsilon) = (noise(1, 2), noise(2, 2));
        let x_t = flow.forward_to_pure_noise(&x_0, &epsilon, &[flow.last(), Timestep(500)]);
        assert_eq!(x_t.get(0), epsilon.get(0));
        let ordinary = flow.forward(&x_0, &epsilon, &[flow.last(), Timestep(500)]);
        assert_eq!(x_t.get(1), ordinary.get(1));
        assert!(distance(&x_t.get(0), &ordinary.get(0)) > 1e-3);
    }

    proptest! {
        #[test]
        fn staying_is_identity(t in 0u32..=1000, seed: u64) {
            let flow = Flow::sdxl();
            let (x, u) = (noise(seed, 1), noise(seed ^ 1, 1));
            for formulation in [Formulation::Epsilon, Formulation::Sample] {
                prop_assert_eq!(flow.step(&x, &u, &[Timestep(t)], &[Timestep(t)], formulation), x.shallow_clone());
            }
        }

        #[test]
        fn the_true_noise_leads_back_to_the_data(t in 0u32..=1000, seed: u64) {
            let flow = Flow::sdxl();
            let (x_0, epsilon) = (noise(seed, 1), noise(seed ^ 1, 1));
            let x_t = flow.forward(&x_0, &epsilon, &[Timestep(t)]);
            let (signal, _) = flow.signal_and_noise(Timestep(t));
            let led_back = flow.x(&x_t, &epsilon, &[Timestep(t)], Formulation::Epsilon);
            prop_assert!(distance(&led_back, &x_0) < rounding(2, signal));
        }

        #[test]
        fn both_formulations_name_the_same_place(t in 1u32..=1000, to in 0u32..=1000, seed: u64) {
            let flow = Flow::sdxl();
            let (x_0, epsilon) = (noise(seed, 1), noise(seed ^ 1, 1));
            let (from, to) = ([Timestep(t)], [Timestep(to)]);
            let x_t = flow.forward(&x_0, &epsilon, &from);
            let by_noise = flow.step(&x_t, &epsilon, &from, &to, Formulation::Epsilon);
            let by_data = flow.step(&x_t, &x_0, &from, &to, Formulation::Sample);
            let (signal, noise) = flow.signal_and_noise(from[0]);
            prop_assert!(distance(&by_noise, &flow.forward(&x_0, &epsilon, &to)) < rounding(3, signal));
            prop_assert!(distance(&by_data, &flow.forward(&x_0, &epsilon, &to)) < rounding(3, noise));
        }

        /// On a linear flow, where the noise is the same everywhere, n steps equal one.
        #[test]
        fn many_steps_on_a_linear_flow_equal_one(steps in 1u32..40, seed: u64) {
            let flow = Flow::sdxl();
            let (x_t, epsilon) = (noise(seed, 1), noise(seed ^ 1, 1));
            let start = flow.last();
            let (mut x, mut t) = (x_t.shallow_clone(), start);
            while t != Timestep::DATA {
                let to = flow.next(t, steps);
                x = flow.step(&x, &epsilon, &[t], &[to], Formulation::Epsilon);
                t = to;
            }
            let once = flow.step(&x_t, &epsilon, &[start], &[Timestep::DATA], Formulation::Epsilon);
            let (signal, _) = flow.signal_and_noise(start);
            prop_assert!(distance(&x, &once) < rounding(steps + 1, signal));
        }

        /// Equation 5 as one pair of coefficients is equation 5 as it is written.
        #[test]
        fn step_is_the_composition(from in 1u32..=1000, to in 0u32..=1000, seed: u64) {
            let flow = Flow::sdxl();
            let (x_t, u) = (noise(seed, 1), noise(seed ^ 1, 1));
            let (signal, noise) = flow.signal_and_noise(Timestep(from));
            let (from, to) = ([Timestep(from)], [Timestep(to)]);
            for formulation in [Formulation::Epsilon, Formulation::Sample] {
                let data = flow.x(&x_t, &u, &from, formulation);
                let epsilon = flow.epsilon(&x_t, &u, &from, formulation);
                let composed = flow.forward(&data, &epsilon, &to);
                let stepped = flow.step(&x_t, &u, &from, &to, formulation);
                prop_assert!(distance(&stepped, &composed) < rounding(3, signal.min(noise)));
            }
        }
    }
}
