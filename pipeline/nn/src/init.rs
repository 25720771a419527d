//! Seeded initial values, drawn as PyTorch's layers draw theirs.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tch::{Device, Kind, Tensor};
use torch_shim::PHANTOM;

/// The distribution of a fresh tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Uniform between minus and plus the bound.
    Uniform {
        /// The bound.
        bound: f64,
    },
    /// Normal around zero.
    Normal {
        /// The standard deviation.
        std: f64,
    },
}

impl Init {
    /// PyTorch's default for the weight and the bias of linear and convolution layers: `kaiming_uniform_` with
    /// `a = sqrt(5)`, which is uniform within one over the root of the number of inputs.
    pub fn fan_in(fan_in: i64) -> Self {
        Init::Uniform { bound: 1.0 / (fan_in as f64).sqrt() }
    }

    /// Draws a float tensor on the CPU. The values are a function of the seed and the tensor's name alone: neither the
    /// order in which a network is built, nor the device or dtype it goes to, nor torch's generators change them.
    pub fn draw(self, seed: u64, name: &str, shape: &[i64]) -> Tensor {
        let count: usize = shape.iter().map(|&side| side as usize).product();
        let mut uniform = UniformStream(ChaCha8Rng::seed_from_u64(seed ^ fnv1a(name)));
        let values: Vec<f32> = match self {
            Init::Zeros => vec![0.0; count],
            Init::Ones => vec![1.0; count],
            Init::Uniform { bound } => (0..count).map(|_| ((2.0 * uniform.next() - 1.0) * bound) as f32).collect(),
            Init::Normal { std } => (0..count).map(|_| (uniform.next_normal() * std) as f32).collect(),
        };
        // A copy, since a view would keep what it is a view of after an optimizer has moved its values elsewhere.
        Tensor::from_slice(&values).reshape(shape).copy()
    }

    /// Draws a tensor for a network of the given dtype and device; one without values needs no draw.
    pub(crate) fn draw_on(self, seed: u64, name: &str, shape: &[i64], (kind, device): (Kind, Device)) -> Tensor {
        match device {
            PHANTOM => Tensor::empty(shape, (kind, device)),
            _ => self.draw(seed, name, shape).to_device(device).to_kind(kind),
        }
    }
}

/// Numbers in the open interval (0, 1), exact multiples of 2^-25.
struct UniformStream(ChaCha8Rng);

impl UniformStream {
    fn next(&mut self) -> f64 {
        (f64::from(self.0.next_u32() >> 8) + 0.5) / f64::from(1u32 << 24)
    }

    /// The cosine half of the Box-Muller transform.
    fn next_normal(&mut self) -> f64 {
        (-2.0 * self.next().ln()).sqrt() * (std::f64::consts::TAU * self.next()).cos()
    }
}

/// The 64-bit FNV-1a hash.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_seed_and_the_name_alone() {
        let draw = |seed, name| Init::Normal { std: 1.0 }.draw(seed, name, &[4, 5]);
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let uniform = Init::fan_in(16).draw(3, "w", &[100_000]);
        assert!(uniform.abs().max().double_value(&[]) <= 0.25);
        assert!(uniform.mean(None).double_value(&[]).abs() < 2e-3);
        assert!((uniform.std(true).double_value(&[]) - 0.25 / 3f64.sqrt()).abs() < 2e-3);
        let normal = Init::Normal { std: 0.5 }.draw(3, "w", &[100_000]);
        assert!(normal.mean(None).double_value(&[]).abs() < 5e-3);
        assert!((normal.std(true).double_value(&[]) - 0.5).abs() < 5e-3);
    }
}
