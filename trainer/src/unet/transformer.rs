//! The transformer over the pixels of one resolution: self-attention, attention to the text, a gated feed-forward.

use nn::{Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Linear, Masking, Scope};
use tch::Tensor;

use super::config::{TransformerConfig, UNetConfig};
use super::recompute::{Recompute, Segment};

/// diffusers fixes the epsilon of a transformer's first norm, whatever `norm_eps` says.
const NORM_EPS: f64 = 1e-6;

/// diffusers' `Transformer2DModel` over a feature map.
#[derive(Debug)]
pub(super) struct Transformer2d {
    norm: GroupNorm,
    projections: Projections,
    blocks: Vec<TransformerBlock>,
}

/// The way from channels to tokens and back.
#[derive(Debug)]
enum Projections {
    /// Flattened first, then projected.
    Linear { proj_in: Linear, proj_out: Linear },
    /// Projected by 1x1 convolutions, flattened in between.
    Conv { proj_in: Conv2d, proj_out: Conv2d },
}

impl Transformer2d {
    pub fn new(scope: &Scope, config: TransformerConfig, unet: &UNetConfig) -> Self {
        let TransformerConfig { channels, depth, .. } = config;
        let blocks = scope.sub("transformer_blocks");
        let (proj_in, proj_out) = (scope.sub("proj_in"), scope.sub("proj_out"));
        Self {
            norm: scope.sub("norm").group_norm(unet.norm_num_groups, channels, NORM_EPS),
            projections: if unet.use_linear_projection {
                Projections::Linear {
                    proj_in: proj_in.linear(channels, channels, true),
                    proj_out: proj_out.linear(channels, channels, true),
                }
            } else {
                Projections::Conv {
                    proj_in: proj_in.conv2d(channels, channels, 1, Conv2dConfig::padded(0)),
                    proj_out: proj_out.conv2d(channels, channels, 1, Conv2dConfig::padded(0)),
                }
            },
            blocks: (0..depth).map(|i| TransformerBlock::new(&blocks.sub(i), config)).collect(),
        }
    }

    /// `x` is `[batch, channels, height, width]`, `context` `[batch, tokens, context_dim]`.
    pub fn forward(&self, x: &Tensor, context: &Tensor, recompute: Recompute) -> Tensor {
        let (batch, channels, height, width) = x.size4().expect("a feature map has four dimensions");
        let to_tokens = |x: &Tensor| x.permute([0, 2, 3, 1]).reshape([batch, height * width, channels]);
        let to_pixels = |x: &Tensor| x.reshape([batch, height, width, channels]).permute([0, 3, 1, 2]);
        let normed = self.norm.forward(x);
        let mut tokens = match &self.projections {
            Projections::Linear { proj_in, .. } => proj_in.forward(&to_tokens(&normed)),
            Projections::Conv { proj_in, .. } => to_tokens(&proj_in.forward(&normed)),
        };
        for block in &self.blocks {
            tokens = recompute.run(block, &[tokens, context.shallow_clone()]);
        }
        match &self.projections {
            Projections::Linear { proj_out, .. } => to_pixels(&proj_out.forward(&tokens)).contiguous() + x,
            Projections::Conv { proj_out, .. } => proj_out.forward(&to_pixels(&tokens).contiguous()) + x,
        }
    }
}

/// diffusers' `BasicTransformerBlock`.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(scope: &Scope, config: TransformerConfig) -> Self {
        const EPS: f64 = 1e-5;
        let TransformerConfig { channels, heads, context_dim, .. } = config;
        Self {
            norm1: scope.sub("norm1").layer_norm(channels, EPS),
            attn1: Attention::new(&scope.sub("attn1"), channels, channels, heads),
            norm2: scope.sub("norm2").layer_norm(channels, EPS),
            attn2: Attention::new(&scope.sub("attn2"), channels, context_dim, heads),
            norm3: scope.sub("norm3").layer_norm(channels, EPS),
            ff: FeedForward::new(&scope.sub("ff"), channels),
        }
    }
}

impl Segment for TransformerBlock {
    /// Inputs: tokens, context.
    fn forward(&self, inputs: &[Tensor]) -> Tensor {
        let [x, context] = inputs else { unreachable!("a transformer block has two inputs") };
        let normed = self.norm1.forward(x);
        let x = self.attn1.forward(&normed, &normed) + x;
        let x = self.attn2.forward(&self.norm2.forward(&x), context) + x;
        self.ff.forward(&self.norm3.forward(&x)) + x
    }

    fn shallow_clone(&self) -> Self {
        Self {
            norm1: self.norm1.shallow_clone(),
            attn1: self.attn1.shallow_clone(),
            norm2: self.norm2.shallow_clone(),
            attn2: self.attn2.shallow_clone(),
            norm3: self.norm3.shallow_clone(),
            ff: self.ff.shallow_clone(),
        }
    }
}

#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl Attention {
    fn new(scope: &Scope, channels: i64, context_dim: i64, heads: i64) -> Self {
        Self {
            to_q: scope.sub("to_q").linear(channels, channels, false),
            to_k: scope.sub("to_k").linear(context_dim, channels, false),
            to_v: scope.sub("to_v").linear(context_dim, channels, false),
            to_out: scope.sub("to_out").sub(0).linear(channels, channels, true),
            heads,
        }
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let (query, key, value) = (self.to_q.forward(x), self.to_k.forward(context), self.to_v.forward(context));
        self.to_out.forward(&nn::attention(&query, &key, &value, self.heads, Masking::None))
    }

    fn shallow_clone(&self) -> Self {
        Self {
            to_q: self.to_q.shallow_clone(),
            to_k: self.to_k.shallow_clone(),
            to_v: self.to_v.shallow_clone(),
            to_out: self.to_out.shallow_clone(),
            heads: self.heads,
        }
    }
}

/// `net.2(x * gelu(gate))` with `[x, gate] = net.0.proj(input)`.
#[derive(Debug)]
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(scope: &Scope, channels: i64) -> Self {
        let (scope, inner) = (scope.sub("net"), 4 * channels);
        Self {
            proj: scope.sub(0).sub("proj").linear(channels, 2 * inner, true),
            out: scope.sub(2).linear(inner, channels, true),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let projected = self.proj.forward(x);
        let mut halves = projected.chunk(2, -1).into_iter();
        let (Some(x), Some(gate)) = (halves.next(), halves.next()) else { unreachable!("chunk(2) gives two") };
        self.out.forward(&(x * gate.gelu("none")))
    }

    fn shallow_clone(&self) -> Self {
        Self { proj: self.proj.shallow_clone(), out: self.out.shallow_clone() }
    }
}
