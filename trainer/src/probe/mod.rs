//! The probe: a small fixed classifier that says what a picture of the demo world shows.
//!
//! It is trained on the generator's own labels and never sees a generated picture. Beside its answers it gives two
//! sets of features for Fréchet distances: those of the whole picture, from which it answers, and those of texture,
//! means over places of an early layer that sees 15 pixels at a time.

pub mod questions;

use std::path::Path;

use nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, Params, Scope, Weights};
use tch::{Device, Kind, Tensor};

use crate::Result;
use questions::Question;

/// The side of the pictures that the probe looks at, in pixels.
pub const SIDE: i64 = 128;
/// The width of both sets of features.
pub const FEATURES: i64 = 64;

/// Channels behind each convolution; each halves the sides.
const CHANNELS: [i64; 5] = [16, 32, FEATURES, 96, 128];
/// The convolution whose output is texture.
const TEXTURE: usize = 2;
const GROUPS: i64 = 2;
const EPS: f64 = 1e-5;

/// The classifier.
#[derive(Debug)]
pub struct Probe {
    layers: Vec<(Conv2d, GroupNorm)>,
    features: Linear,
    answers: Linear,
}

/// What the probe sees in a batch of pictures.
#[derive(Debug)]
pub struct Seen {
    /// `[B, FEATURES]`
    pub features: Tensor,
    /// The logits of all questions' answers, `[B, Question::logits()]`.
    pub logits: Tensor,
}

impl Probe {
    /// Takes the network from a scope.
    pub fn new(scope: &Scope) -> Self {
        let inputs = std::iter::once(3).chain(CHANNELS);
        let layers = inputs
            .zip(CHANNELS)
            .enumerate()
            .map(|(at, (inputs, outputs))| {
                let scope = scope.sub("layers").sub(at);
                let conv = scope.sub("conv").conv2d(inputs, outputs, 3, Conv2dConfig::padded(1).stride(2));
                (conv, scope.sub("norm").group_norm(GROUPS, outputs, EPS))
            })
            .collect();
        let places = (SIDE >> CHANNELS.len()).pow(2);
        Self {
            layers,
            features: scope.sub("features").linear(CHANNELS[CHANNELS.len() - 1] * places, FEATURES, true),
            answers: scope.sub("answers").linear(FEATURES, Question::logits(), true),
        }
    }

    /// A fresh probe.
    pub fn seeded(seed: u64) -> Result<(Self, Params)> {
        Ok(Weights::seeded(seed).build(Self::new)?)
    }

    /// Loads the weights that pretraining made.
    pub fn open(file: &Path, device: Device) -> Result<Self> {
        Ok(Weights::open(file)?.to(Kind::Float, device).build(Self::new)?.0)
    }

    /// Looks at whole pictures, `[B, 3, SIDE, SIDE]` in [-1, 1].
    pub fn look(&self, pictures: &Tensor) -> Seen {
        let features = self.features.forward(&self.layers(pictures, CHANNELS.len()).flatten(1, -1)).relu();
        let logits = self.answers.forward(&features);
        Seen { features, logits }
    }

    /// The texture of patches of any size, `[B, FEATURES]`.
    pub fn texture(&self, patches: &Tensor) -> Tensor {
        self.layers(patches, TEXTURE + 1).mean_dim([2i64, 3].as_slice(), false, Kind::Float)
    }

    fn layers(&self, pictures: &Tensor, count: usize) -> Tensor {
        let mut x = pictures.shallow_clone();
        for (conv, norm) in &self.layers[..count] {
            x = norm.forward(&conv.forward(&x)).silu();
        }
        x
    }
}
