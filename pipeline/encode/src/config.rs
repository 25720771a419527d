//! The `config.json` of each network, read with the defaults of diffusers and transformers.
//!
//! Keys that no network here has a use for (`_class_name`, `torch_dtype`, ..) are passed over, as the files carry the
//! versions and settings of whoever wrote them; values that would change a network's equations and are not supported
//! are refused.

use std::path::Path;

use nn::Activation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Reads a `config.json`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|error| Error::invalid(path, error.to_string()))
}

/// The kinds of block on the way down that a VAE can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks and a downsampler.
    DownEncoderBlock2D,
}

/// The kinds of block on the way up that a VAE can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks and an upsampler.
    UpDecoderBlock2D,
}

/// The config of `AutoencoderKL`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of an image.
    pub in_channels: i64,
    /// Channels of a decoded image.
    pub out_channels: i64,
    /// One entry for each level of the encoder.
    pub down_block_types: Vec<DownBlockType>,
    /// One entry for each level of the decoder.
    pub up_block_types: Vec<UpBlockType>,
    /// The width of each level, from the image inwards.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks in each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// The activation inside the residual blocks.
    pub act_fn: Activation,
    /// Channels of a latent.
    pub latent_channels: i64,
    /// Groups of every group normalisation.
    pub norm_num_groups: i64,
    /// The side of the images it was trained on; tiles have this size.
    pub sample_size: i64,
    /// Latents are multiplied by this before a diffusion model sees them.
    pub scaling_factor: f64,
    /// Subtracted from latents before the scaling.
    pub shift_factor: Option<f64>,
    /// Means of the latents' channels; not supported.
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviations of the latents' channels; not supported.
    pub latents_std: Option<Vec<f64>>,
    /// Whether the network overflows in float16.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the innermost blocks attend.
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DownBlockType::DownEncoderBlock2D],
            up_block_types: vec![UpBlockType::UpDecoderBlock2D],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl VaeConfig {
    /// Reads and checks `FOLDER/config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = read_json(&path)?;
        config.check().map_err(|reason| Error::invalid(path, reason))?;
        Ok(config)
    }

    /// Says what no network could be built from.
    pub fn check(&self) -> std::result::Result<(), String> {
        let levels = self.block_out_channels.len();
        if levels == 0 || self.down_block_types.len() != levels || self.up_block_types.len() != levels {
            return Err(format!(
                "block_out_channels has {levels} entries, down_block_types {}, up_block_types {}: they have to agree",
                self.down_block_types.len(),
                self.up_block_types.len()
            ));
        }
        let sizes = [self.in_channels, self.out_channels, self.latent_channels, self.norm_num_groups, self.sample_size];
        if sizes.into_iter().chain(self.block_out_channels.iter().copied()).any(|size| !(1..=1 << 20).contains(&size)) {
            return Err("a number of channels or groups, or sample_size, is out of range".into());
        }
        if let Some(channels) = self.block_out_channels.iter().find(|&c| c % self.norm_num_groups != 0) {
            return Err(format!("norm_num_groups {} does not divide {channels} channels", self.norm_num_groups));
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return Err("latents_mean and latents_std are not supported".into());
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(format!("scaling_factor is {}", self.scaling_factor));
        }
        Ok(())
    }

    /// Image pixels for each latent pixel, in each direction.
    pub fn factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// Where a CLIP text model takes its pooled state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// At the largest token id: what `eos_token_id` 2 stands for in configs that were published before the value was
    /// corrected.
    LargestId,
    /// At the first position that holds this id.
    FirstOf(i64),
}

/// The config of a CLIP text model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: i64,
    /// The width of a state.
    pub hidden_size: i64,
    /// The width inside the feed-forward layers.
    pub intermediate_size: i64,
    /// The width of the projected pooled state.
    pub projection_dim: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: i64,
    /// The longest sequence.
    pub max_position_embeddings: i64,
    /// The activation inside the feed-forward layers.
    pub hidden_act: Activation,
    /// Added to the variance in every normalisation.
    pub layer_norm_eps: f64,
    /// The id of the end token, or 2: see [`Pooling`].
    pub eos_token_id: i64,
}

impl Default for ClipTextConfig {
    /// transformers' defaults.
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    /// Reads and checks `FOLDER/config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Self = read_json(&path)?;
        config.check().map_err(|reason| Error::invalid(path, reason))?;
        Ok(config)
    }

    /// Says what no network could be built from.
    pub fn check(&self) -> std::result::Result<(), String> {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.projection_dim,
            self.num_attention_heads,
            self.max_position_embeddings,
        ];
        if sizes.iter().any(|size| !(1..=1 << 24).contains(size)) {
            return Err("a size is out of range".into());
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            return Err(format!(
                "num_attention_heads {} does not divide hidden_size {}",
                self.num_attention_heads, self.hidden_size
            ));
        }
        if self.num_hidden_layers == 0 {
            return Err("num_hidden_layers is 0: there is no penultimate state".into());
        }
        Ok(())
    }

    /// Where the pooled state is taken.
    pub fn pooling(&self) -> Pooling {
        match self.eos_token_id {
            2 => Pooling::LargestId,
            id => Pooling::FirstOf(id),
        }
    }
}
