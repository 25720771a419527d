//! Embeddings of timesteps and of other scalars.

use tch::{Kind, Tensor};

use crate::{Activation, Linear, Scope};

/// The sinusoidal embedding of diffusers' `Timesteps`: with `half = width / 2` and
/// `w_i = exp(-ln(10000) i / (half - downscale_freq_shift))`, row `t` is `[sin(t w), cos(t w)]`, or
/// `[cos(t w), sin(t w)]` with `flip_sin_to_cos`. `t` is one-dimensional; the result is float32 `[len(t), width]`.
pub fn timestep_embedding(t: &Tensor, width: i64, flip_sin_to_cos: bool, downscale_freq_shift: f64) -> Tensor {
    let half = width / 2;
    let exponent = Tensor::arange(half, (Kind::Float, t.device())) * -(10000f64.ln());
    let frequencies = (exponent / (half as f64 - downscale_freq_shift)).exp();
    let angles = t.to_kind(Kind::Float).unsqueeze(1) * frequencies.unsqueeze(0);
    let (sin, cos) = (angles.sin(), angles.cos());
    let embedding = if flip_sin_to_cos { Tensor::cat(&[cos, sin], -1) } else { Tensor::cat(&[sin, cos], -1) };
    if width % 2 == 1 { embedding.constant_pad_nd([0, 1]) } else { embedding }
}

/// The two-layer network on top of an embedding: `linear_1`, an activation, `linear_2`.
#[derive(Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    activation: Activation,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Takes `linear_1` and `linear_2` from the scope.
    pub fn new(scope: &Scope, inputs: i64, width: i64, activation: Activation) -> Self {
        Self {
            linear_1: scope.sub("linear_1").linear(inputs, width, true),
            activation,
            linear_2: scope.sub("linear_2").linear(width, width, true),
        }
    }

    /// `[batch, inputs] -> [batch, width]`
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.linear_2.forward(&self.activation.forward(&self.linear_1.forward(x)))
    }
}
