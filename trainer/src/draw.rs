//! What is random in a step, as a pure function of its place in the run.
//!
//! No generator outlives a micro-batch, so that a resumed run draws what the straight one would have drawn, on any
//! device and however many processes share the work.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tch::{Device, Tensor};

use crate::flow::Timestep;
use crate::recipe::DiscriminatorNoise;

/// A micro-batch's place in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The stage's seed.
    pub seed: u64,
    /// Updates before this one, counted over the stage.
    pub iteration: u64,
    /// The process among those that share the batch.
    pub rank: u32,
    /// The pass among those that make one update.
    pub micro_batch: u32,
}

/// What a stream of numbers is for; streams of one place are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Timesteps = 0,
    Noise = 1,
    LookTimesteps = 2,
    LookNoise = 3,
    Samples = 4,
}

/// What is random in one micro-batch.
#[derive(Debug)]
pub struct Draw {
    /// The noise of equation 6, `[B, C, H, W]`.
    pub noise: Tensor,
    /// The student's timesteps, uniform over those of the recipe.
    pub t: Vec<Timestep>,
    /// The noise under which the discriminator looks (equations 25 and 26).
    pub look: Option<Look>,
}

/// Noise added to a prediction of clean data before the discriminator looks at it.
#[derive(Debug)]
pub struct Look {
    /// `eps*`, `[B, C, H, W]`.
    pub noise: Tensor,
    /// `t*`.
    pub t: Vec<Timestep>,
}

impl Draw {
    /// All that the micro-batch at `place` needs; `shape` is that of its latents.
    pub fn new(
        place: Place,
        shape: &[i64],
        student_timesteps: &[Timestep],
        look: Option<&DiscriminatorNoise>,
        device: Device,
    ) -> Draw {
        let batch = shape[0] as usize;
        let mut timesteps = stream(place, Purpose::Timesteps);
        let t = (0..batch).map(|_| student_timesteps[below(&mut timesteps, student_timesteps.len())]).collect();
        let look = look.map(|recipe| {
            let mut timesteps = stream(place, Purpose::LookTimesteps);
            Look {
                noise: normal(&mut stream(place, Purpose::LookNoise), shape).to_device(device),
                t: (0..batch).map(|_| recipe.timesteps[weighted(&mut timesteps, &recipe.weights)]).collect(),
            }
        });
        Draw { noise: normal(&mut stream(place, Purpose::Noise), shape).to_device(device), t, look }
    }
}

/// The fixed noise from which a run's grids of samples are drawn.
pub fn sample_noise(seed: u64, shape: &[i64]) -> Tensor {
    normal(&mut stream(Place { seed, iteration: 0, rank: 0, micro_batch: 0 }, Purpose::Samples), shape)
}

/// The noise that a stochastic sampler adds after step `step`.
pub fn step_noise(seed: u64, step: usize, shape: &[i64]) -> Tensor {
    normal(&mut stream(Place { seed, iteration: step as u64 + 1, rank: 0, micro_batch: 0 }, Purpose::Samples), shape)
}

/// The generator's 256 bits of key are the place itself: no two places share a stream.
fn stream(place: Place, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&place.seed.to_le_bytes());
    key[8..16].copy_from_slice(&place.iteration.to_le_bytes());
    key[16..20].copy_from_slice(&place.rank.to_le_bytes());
    key[20..24].copy_from_slice(&place.micro_batch.to_le_bytes());
    key[24] = purpose as u8;
    ChaCha8Rng::from_seed(key)
}

/// Uniform in the open interval (0, 1), with 53 bits.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    ((uniform(rng) * count as f64) as usize).min(count - 1)
}

fn weighted(rng: &mut ChaCha8Rng, weights: &[f64]) -> usize {
    let mut rest = uniform(rng) * weights.iter().sum::<f64>();
    weights
        .iter()
        .position(|weight| {
            rest -= weight;
            rest < 0.0
        })
        .unwrap_or(weights.len() - 1)
}

/// Standard normal, both halves of the Box-Muller transform in turn.
fn normal(rng: &mut ChaCha8Rng, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let mut values = Vec::with_capacity(count as usize + 1);
    while (values.len() as i64) < count {
        let radius = (-2.0 * uniform(rng).ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform(rng);
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(count as usize);
    Tensor::from_slice(&values).view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { seed: 7, iteration: 3, rank: 0, micro_batch: 1 };
    const TIMESTEPS: [Timestep; 4] = [Timestep(250), Timestep(500), Timestep(750), Timestep(1000)];

    fn draw(place: Place) -> Draw {
        let look = DiscriminatorNoise { timesteps: vec![Timestep(10), Timestep(500)], weights: vec![5.0, 1.0] };
        Draw::new(place, &[4, 4, 8, 8], &TIMESTEPS, Some(&look), Device::Cpu)
    }

    #[test]
    fn a_place_draws_the_same_forever() {
        let (a, b) = (draw(PLACE), draw(PLACE));
        assert_eq!((a.noise, a.t), (b.noise, b.t));
    }

    #[test]
    fn every_coordinate_of_the_place_matters() {
        let places = [
            Place { seed: 8, ..PLACE },
            Place { iteration: 4, ..PLACE },
            Place { rank: 1, ..PLACE },
            Place { micro_batch: 0, ..PLACE },
        ];
        for other in places {
            assert_ne!(draw(PLACE).noise, draw(other).noise, "{other:?}");
        }
        let one = draw(PLACE);
        assert_ne!(one.noise, one.look.unwrap().noise);
    }

    #[test]
    fn noise_is_standard_normal() {
        let noise = sample_noise(1, &[1, 4, 128, 128]);
        assert!(noise.mean(None).double_value(&[]).abs() < 0.01);
        assert!((noise.std(true).double_value(&[]) - 1.0).abs() < 0.01);
        let beyond_two = noise.abs().gt(2.0).to_kind(tch::Kind::Float).mean(None).double_value(&[]);
        assert!((beyond_two - 0.0455).abs() < 0.003, "{beyond_two}");
    }

    #[test]
    fn weights_are_kept() {
        let mut rng = stream(PLACE, Purpose::LookTimesteps);
        let mut counts = [0; 4];
        for _ in 0..8000 {
            counts[weighted(&mut rng, &[5.0, 1.0, 1.0, 1.0])] += 1;
        }
        assert!((4800..5200).contains(&counts[0]), "{counts:?}");
        assert!(counts[1..].iter().all(|count| (880..1120).contains(count)), "{counts:?}");
    }
}
