//! The `config.json` of each network, read with the defaults of diffusers and transformers. A setting that would change
//! a network's equations and is not supported is refused by its name, and so is one that the class does not have.

use std::path::Path;

use nn::Activation;
use nn::settings::{MOST_LAYERS, MOST_WIDE, Settings, SettingsError, bad_value, check_range};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Reads a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|error| Error::invalid(path, error.to_string()))
}

/// Reads `FOLDER/config.json`.
fn read_config<T>(folder: &Path, from_json: fn(&str) -> std::result::Result<T, SettingsError>) -> Result<T> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    from_json(&text).map_err(|error| Error::invalid(path, error.to_string()))
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
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// What other models subtract from latents before the scaling; not supported.
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
    /// Reads `FOLDER/config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        read_config(folder, Self::from_json)
    }

    /// Reads a config. A missing key has the default of diffusers' class.
    pub fn from_json(text: &str) -> std::result::Result<Self, SettingsError> {
        let mut settings = Settings::parse(text)?;
        settings.class("_class_name", &["AutoencoderKL"])?;
        let default = Self::default();
        let config = Self {
            in_channels: settings.or("in_channels", default.in_channels)?,
            out_channels: settings.or("out_channels", default.out_channels)?,
            down_block_types: settings.or("down_block_types", default.down_block_types)?,
            up_block_types: settings.or("up_block_types", default.up_block_types)?,
            block_out_channels: settings.or("block_out_channels", default.block_out_channels)?,
            layers_per_block: settings.or("layers_per_block", default.layers_per_block)?,
            act_fn: settings.or("act_fn", default.act_fn)?,
            latent_channels: settings.or("latent_channels", default.latent_channels)?,
            norm_num_groups: settings.or("norm_num_groups", default.norm_num_groups)?,
            sample_size: settings.or("sample_size", default.sample_size)?,
            scaling_factor: settings.or("scaling_factor", default.scaling_factor)?,
            shift_factor: settings.optional("shift_factor")?,
            latents_mean: settings.optional("latents_mean")?,
            latents_std: settings.optional("latents_std")?,
            force_upcast: settings.or("force_upcast", default.force_upcast)?,
            use_quant_conv: settings.or("use_quant_conv", default.use_quant_conv)?,
            use_post_quant_conv: settings.or("use_post_quant_conv", default.use_post_quant_conv)?,
            mid_block_add_attention: settings.or("mid_block_add_attention", default.mid_block_add_attention)?,
        };
        settings.finish(&[], &[])?;
        config.check()?;
        Ok(config)
    }

    /// Says what no network could be built from.
    pub fn check(&self) -> std::result::Result<(), SettingsError> {
        let levels = self.block_out_channels.len();
        for (key, entries) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if entries != levels || levels == 0 {
                return Err(bad_value(key, format!("{entries} entries beside {levels} block_out_channels")));
            }
        }
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
            ("sample_size", self.sample_size),
        ];
        let widths = self.block_out_channels.iter().map(|&width| ("block_out_channels", width));
        for (key, size) in sizes.into_iter().chain(widths) {
            check_range(key, size, MOST_WIDE)?;
        }
        check_range("layers_per_block", self.layers_per_block as i64, MOST_LAYERS)?;
        if let Some(width) = self.block_out_channels.iter().find(|&width| width % self.norm_num_groups != 0) {
            let reason = format!("{} does not divide block_out_channels {width}", self.norm_num_groups);
            return Err(bad_value("norm_num_groups", reason));
        }
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.is_some() {
                return Err(bad_value(key, "statistics of the latents' channels are not supported"));
            }
        }
        if self.shift_factor.is_some_and(|shift| shift != 0.0) {
            return Err(bad_value("shift_factor", "a shift of latents, which SDXL's pipelines do not know"));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(bad_value("scaling_factor", self.scaling_factor));
        }
        Ok(())
    }

    /// Refuses an autoencoder of anything but RGB images.
    pub fn check_rgb(&self) -> std::result::Result<(), SettingsError> {
        for (key, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if channels != 3 {
                return Err(bad_value(key, format!("{channels}, images have 3")));
            }
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

/// What transformers writes into every model's config and no text encoder's states depend on: how it was trained, what
/// it returns, and how text would be generated.
#[rustfmt::skip]
const UNREAD_BY_TEXT_MODELS: &[&str] = &[
    "architectures", "attention_dropout", "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label",
    "initializer_factor", "initializer_range", "is_encoder_decoder", "label2id", "length_penalty", "max_length",
    "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16",
];

/// The config of a CLIP text model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
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

/// As a part of another config.
impl TryFrom<Map<String, Value>> for ClipTextConfig {
    type Error = SettingsError;

    fn try_from(object: Map<String, Value>) -> std::result::Result<Self, SettingsError> {
        Self::from_settings(object.into())
    }
}

impl ClipTextConfig {
    /// Reads `FOLDER/config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        read_config(folder, Self::from_json)
    }

    /// Reads a config. A missing key has the default of transformers' class.
    pub fn from_json(text: &str) -> std::result::Result<Self, SettingsError> {
        Self::from_settings(Settings::parse(text)?)
    }

    fn from_settings(mut settings: Settings) -> std::result::Result<Self, SettingsError> {
        settings.class("model_type", &["clip_text_model"])?;
        let default = Self::default();
        let config = Self {
            vocab_size: settings.or("vocab_size", default.vocab_size)?,
            hidden_size: settings.or("hidden_size", default.hidden_size)?,
            intermediate_size: settings.or("intermediate_size", default.intermediate_size)?,
            projection_dim: settings.or("projection_dim", default.projection_dim)?,
            num_hidden_layers: settings.or("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: settings.or("num_attention_heads", default.num_attention_heads)?,
            max_position_embeddings: settings.or("max_position_embeddings", default.max_position_embeddings)?,
            hidden_act: settings.or("hidden_act", default.hidden_act)?,
            layer_norm_eps: settings.or("layer_norm_eps", default.layer_norm_eps)?,
            eos_token_id: settings.or("eos_token_id", default.eos_token_id)?,
        };
        let neutral = [
            ("quantization_config", Value::Null),
            ("is_decoder", false.into()),
            ("add_cross_attention", false.into()),
            ("chunk_size_feed_forward", 0.into()),
            ("pruned_heads", json!({})),
        ];
        settings.finish(&neutral, UNREAD_BY_TEXT_MODELS)?;
        config.check()?;
        Ok(config)
    }

    /// Says what no network could be built from.
    pub fn check(&self) -> std::result::Result<(), SettingsError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("projection_dim", self.projection_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, size) in sizes {
            check_range(key, size, MOST_WIDE)?;
        }
        // One at least: the penultimate state is the last layer's input.
        check_range("num_hidden_layers", self.num_hidden_layers as i64, MOST_LAYERS)?;
        if self.hidden_size % self.num_attention_heads != 0 {
            let reason = format!("{} does not divide hidden_size {}", self.num_attention_heads, self.hidden_size);
            return Err(bad_value("num_attention_heads", reason));
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
