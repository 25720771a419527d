//! The layers. Each is its tensors and the constants of its equation; construction is in [`Scope`](crate::Scope).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::Lora;

/// `y = x W^T + b`, with an optional low-rank branch.
#[derive(Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Tensor,
    /// `[outputs]`
    pub bias: Option<Tensor>,
    /// The low-rank branch.
    pub lora: Option<Lora>,
}

impl Linear {
    /// Applies the layer to the last dimension.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let base = x.linear(&self.weight, self.bias.as_ref());
        match &self.lora {
            None => base,
            Some(lora) => {
                let hidden = x.linear(&lora.down, None::<&Tensor>) * lora.scale;
                let shape = base.size();
                let (outputs, rank) = (shape[shape.len() - 1], hidden.size()[shape.len() - 1]);
                base.reshape([-1, outputs]).addmm(&hidden.reshape([-1, rank]), &lora.up.tr()).reshape(shape)
            }
        }
    }

    /// The layer with another set of tensors' handles: storage is shared.
    pub fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            lora: self.lora.as_ref().map(Lora::shallow_clone),
        }
    }
}

/// What a convolution has beside its channels and its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// The step in both directions.
    pub stride: i64,
    /// Zeros on each side.
    pub padding: i64,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Conv2dConfig {
    /// Stride 1 with a bias.
    pub fn padded(padding: i64) -> Self {
        Self { stride: 1, padding, bias: true }
    }

    /// The same with another stride.
    pub fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

/// A convolution over `[batch, channels, height, width]`, with an optional low-rank branch.
#[derive(Debug)]
pub struct Conv2d {
    /// `[outputs, inputs, kernel, kernel]`
    pub weight: Tensor,
    /// `[outputs]`
    pub bias: Option<Tensor>,
    /// The step in both directions.
    pub stride: i64,
    /// Zeros on each side.
    pub padding: i64,
    /// The low-rank branch.
    pub lora: Option<Lora>,
}

impl Conv2d {
    /// Applies the layer.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let conv = |x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: i64, padding: i64| {
            x.conv2d(weight, bias, [stride, stride], [padding, padding], [1, 1], 1)
        };
        let base = conv(x, &self.weight, self.bias.as_ref(), self.stride, self.padding);
        match &self.lora {
            None => base,
            Some(lora) => {
                let hidden = conv(x, &lora.down, None, self.stride, self.padding) * lora.scale;
                base + conv(&hidden, &lora.up, None, 1, 0)
            }
        }
    }

    /// The layer with another set of tensors' handles: storage is shared.
    pub fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            lora: self.lora.as_ref().map(Lora::shallow_clone),
            ..*self
        }
    }
}

/// Normalisation over groups of channels.
#[derive(Debug)]
pub struct GroupNorm {
    /// `[channels]`
    pub weight: Tensor,
    /// `[channels]`
    pub bias: Tensor,
    /// How many groups; divides the channels.
    pub groups: i64,
    /// Added to the variance.
    pub eps: f64,
}

impl GroupNorm {
    /// Applies the layer to `[batch, channels, ..]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// The layer with another set of tensors' handles: storage is shared.
    pub fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), ..*self }
    }
}

/// Normalisation over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    /// `[width]`
    pub weight: Tensor,
    /// `[width]`
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Applies the layer.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// The layer with another set of tensors' handles: storage is shared.
    pub fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), ..*self }
    }
}

/// A table of vectors looked up by index.
#[derive(Debug)]
pub struct Embedding {
    /// `[entries, width]`
    pub weight: Tensor,
}

impl Embedding {
    /// Looks up a tensor of indices of any shape; the result has one more dimension.
    pub fn forward(&self, indices: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, indices, -1, false, false)
    }
}

/// The activations that configs name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(x)`
    #[serde(alias = "swish")]
    Silu,
    /// `x Phi(x)` with the exact normal distribution function.
    Gelu,
    /// `x sigmoid(1.702 x)`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
    /// `x tanh(ln(1 + exp(x)))`
    Mish,
}

impl Activation {
    /// Applies the function elementwise.
    pub fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu("none"),
            Activation::QuickGelu => x * (x * 1.702).sigmoid(),
            Activation::Relu => x.relu(),
            Activation::Mish => x.mish(),
        }
    }
}
