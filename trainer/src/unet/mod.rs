//! SDXL's UNet: diffusers' `UNet2DConditionModel` with `text_time` conditioning, by diffusers' names.
//!
//! ```text
//! sample ── conv_in ── down_blocks ── mid_block ── up_blocks ── conv_norm_out, conv_out ── prediction
//!                       │   └──────── skips ──────────┘
//! timestep, pooled text, time ids ── embedding: seen by every residual block
//! text states: attended to by every transformer
//! ```
//!
//! [`UNetEncoder`] is everything up to and including the mid block. It stands alone as the discriminator's backbone.

mod blocks;
mod config;
mod recompute;
mod transformer;

pub use config::{BlockConfig, TransformerConfig, UNetConfig};
pub use recompute::Recompute;

use nn::{Activation, Conv2d, Conv2dConfig, GroupNorm, Scope, TimestepEmbedding, timestep_embedding};
use tch::Tensor;

use blocks::{DownBlock, MidBlock, Pass, UpBlock};

/// The embedding of the timestep, the pooled text and the time ids.
#[derive(Debug)]
struct ConditionEmbedding {
    time_embedding: TimestepEmbedding,
    add_embedding: TimestepEmbedding,
    time_dim: i64,
    addition_time_dim: i64,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl ConditionEmbedding {
    fn new(scope: &Scope, config: &UNetConfig) -> Self {
        let (width, activation) = (config.time_embed_dim, config.activation);
        let time_dim = config.down_blocks[0].channels;
        Self {
            time_embedding: TimestepEmbedding::new(&scope.sub("time_embedding"), time_dim, width, activation),
            // Always SiLU in diffusers, whatever `act_fn` says.
            add_embedding: TimestepEmbedding::new(
                &scope.sub("add_embedding"),
                config.addition_input_dim,
                width,
                Activation::Silu,
            ),
            time_dim,
            addition_time_dim: config.addition_time_embed_dim,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// `timestep [B]`, `text_embeds [B, pooled]`, `time_ids [B, ids]` -> `[B, time_embed_dim]`, in the dtype of
    /// `text_embeds`.
    fn forward(&self, timestep: &Tensor, text_embeds: &Tensor, time_ids: &Tensor) -> Tensor {
        let kind = text_embeds.kind();
        let sinusoids = |t: &Tensor, width| timestep_embedding(t, width, self.flip_sin_to_cos, self.freq_shift);
        let time = self.time_embedding.forward(&sinusoids(timestep, self.time_dim).to_kind(kind));
        let ids = sinusoids(&time_ids.flatten(0, -1), self.addition_time_dim).to_kind(kind);
        let ids = ids.reshape([time_ids.size()[0], -1]);
        time + self.add_embedding.forward(&Tensor::cat(&[text_embeds, &ids], -1))
    }
}

/// The half of the UNet that looks: from the latent to the features of the mid block.
#[derive(Debug)]
pub struct UNetEncoder {
    conv_in: Conv2d,
    embedding: ConditionEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    activation: Activation,
    recompute: Recompute,
}

/// What the encoder makes of one batch.
#[derive(Debug)]
pub struct Encoded {
    /// The features of the mid block, `[B, channels, h / 2^n, w / 2^n]`.
    pub mid: Tensor,
    /// What the way up takes, last first.
    skips: Vec<Tensor>,
    /// The activated embedding of timestep and conditions.
    embedding: Tensor,
}

impl UNetEncoder {
    /// Takes the encoder's weights from the root scope of a UNet's weights.
    pub fn new(scope: &Scope, config: &UNetConfig) -> Self {
        let first = config.down_blocks[0].channels;
        let scopes = scope.sub("down_blocks");
        let inputs = std::iter::once(first).chain(config.down_blocks.iter().map(|block| block.channels));
        let padding = Conv2dConfig::padded(config.conv_in_kernel / 2);
        Self {
            conv_in: scope.sub("conv_in").conv2d(config.in_channels, first, config.conv_in_kernel, padding),
            embedding: ConditionEmbedding::new(scope, config),
            down_blocks: (config.down_blocks.iter().zip(inputs).enumerate())
                .map(|(at, (block, inputs))| DownBlock::new(&scopes.sub(at), inputs, block, config))
                .collect(),
            mid_block: MidBlock::new(&scope.sub("mid_block"), config),
            activation: config.activation,
            recompute: Recompute::Never,
        }
    }

    /// Whether a UNet's tensor of this name belongs to the encoder.
    pub fn owns(name: &str) -> bool {
        let part = name.split('.').next().unwrap_or_default();
        ["conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"].contains(&part)
    }

    /// Chooses what is kept for the backward pass.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
    }

    /// The arguments are those of [`UNet::forward`].
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: &Tensor,
        encoder_hidden_states: &Tensor,
        text_embeds: &Tensor,
        time_ids: &Tensor,
    ) -> Encoded {
        // Every residual block activates the embedding first: it is done once for all.
        let embedding = self.activation.forward(&self.embedding.forward(timestep, text_embeds, time_ids));
        let pass = Pass { embedding: &embedding, context: encoder_hidden_states, recompute: self.recompute };
        let mut x = self.conv_in.forward(sample);
        let mut skips = vec![x.shallow_clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &mut skips, &pass);
        }
        let mid = self.mid_block.forward(x, &pass);
        Encoded { mid, skips, embedding }
    }
}

/// The whole network.
#[derive(Debug)]
pub struct UNet {
    encoder: UNetEncoder,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet {
    /// Takes the UNet's weights from the root scope.
    pub fn new(scope: &Scope, config: &UNetConfig) -> Self {
        let encoder = UNetEncoder::new(scope, config);
        let first = config.down_blocks[0].channels;
        let mut skips = skip_channels(config);
        let mut inputs = config.mid_block.channels;
        let mut up_blocks = Vec::new();
        let scopes = scope.sub("up_blocks");
        for (at, block) in config.up_blocks.iter().enumerate() {
            let taken: Vec<i64> = skips.drain(skips.len() - block.layers.len()..).rev().collect();
            up_blocks.push(UpBlock::new(&scopes.sub(at), inputs, &taken, block, config));
            inputs = block.channels;
        }
        let padding = Conv2dConfig::padded(config.conv_out_kernel / 2);
        Self {
            encoder,
            up_blocks,
            conv_norm_out: scope.sub("conv_norm_out").group_norm(config.norm_num_groups, first, config.norm_eps),
            conv_out: scope.sub("conv_out").conv2d(first, config.out_channels, config.conv_out_kernel, padding),
        }
    }

    /// Chooses what is kept for the backward pass.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.encoder.set_recompute(recompute);
    }

    /// One prediction.
    ///
    /// `sample [B, in_channels, h, w]`, `timestep [B]` (any float dtype; the embedding is FP32),
    /// `encoder_hidden_states [B, tokens, context_dim]`, `text_embeds [B, pooled]`, `time_ids [B, ids]`
    /// (SDXL: original height and width, crop top and left, target height and width). All but `timestep` and `time_ids`
    /// have the network's dtype.
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: &Tensor,
        encoder_hidden_states: &Tensor,
        text_embeds: &Tensor,
        time_ids: &Tensor,
    ) -> Tensor {
        let Encoded { mid, mut skips, embedding } =
            self.encoder.forward(sample, timestep, encoder_hidden_states, text_embeds, time_ids);
        let pass = Pass { embedding: &embedding, context: encoder_hidden_states, recompute: self.encoder.recompute };
        let mut x = mid;
        for block in &self.up_blocks {
            x = block.forward(x, &mut skips, &pass);
        }
        self.conv_out.forward(&self.encoder.activation.forward(&self.conv_norm_out.forward(&x)))
    }
}

/// The channels of every skip connection, in the order in which the way down leaves them.
fn skip_channels(config: &UNetConfig) -> Vec<i64> {
    let mut skips = vec![config.down_blocks[0].channels];
    for block in &config.down_blocks {
        skips.extend(vec![block.channels; block.layers.len() + usize::from(block.resample)]);
    }
    skips
}
