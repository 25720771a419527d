//! A UNet's `config.json`, resolved to the shape of each block.

use nn::Activation;
use nn::settings::{MOST_LAYERS, MOST_WIDE, Settings, SettingsError, bad_value, check_range};
use serde::Deserialize;
use serde_json::Value;

/// The shape of a `UNet2DConditionModel` with `text_time` conditioning, as SDXL and its refiner are.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// The side of the latents that the model was made for.
    pub sample_size: Option<i64>,
    /// Channels of the noisy latent.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// The kernel of `conv_in`.
    pub conv_in_kernel: i64,
    /// The kernel of `conv_out`.
    pub conv_out_kernel: i64,
    /// Width of the embedding of timestep and conditions that every residual block sees.
    pub time_embed_dim: i64,
    /// Whether the sinusoidal embeddings begin with cosines.
    pub flip_sin_to_cos: bool,
    /// diffusers' `downscale_freq_shift` of the sinusoidal embeddings.
    pub freq_shift: f64,
    /// Width of the sinusoidal embedding of each time id.
    pub addition_time_embed_dim: i64,
    /// Width of the pooled text and all embedded time ids, side by side.
    pub addition_input_dim: i64,
    /// The nonlinearity.
    pub activation: Activation,
    /// Groups of the group norms.
    pub norm_num_groups: i64,
    /// Epsilon of the group norms in residual blocks and at the end.
    pub norm_eps: f64,
    /// Whether transformers project tokens by a linear layer rather than pixels by a 1x1 convolution.
    pub use_linear_projection: bool,
    /// From the latent downwards.
    pub down_blocks: Vec<BlockConfig>,
    /// One residual block, one transformer, one residual block.
    pub mid_block: TransformerConfig,
    /// From the mid block upwards.
    pub up_blocks: Vec<BlockConfig>,
}

/// One resolution of the way down or up.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockConfig {
    /// Channels of what the block gives.
    pub channels: i64,
    /// One entry for each residual block: the transformer that follows it, if any.
    pub layers: Vec<Option<TransformerConfig>>,
    /// Whether the block ends with a change of resolution.
    pub resample: bool,
}

/// A transformer over the pixels of one resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransformerConfig {
    /// Channels of its input and output.
    pub channels: i64,
    /// Transformer blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: i64,
    /// Width of the text states that it attends to.
    pub context_dim: i64,
}

impl UNetConfig {
    /// Reads `config.json`. A missing key has the default of diffusers' class; a setting that would change the result
    /// and is not implemented is refused.
    pub fn from_json(text: &str) -> Result<Self, SettingsError> {
        let mut settings = Settings::parse(text)?;
        settings.class("_class_name", &["UNet2DConditionModel"])?;
        let down_types: Vec<DownType> = settings.required("down_block_types")?;
        let up_types: Vec<UpType> = settings.required("up_block_types")?;
        let channels: Vec<i64> = settings.required("block_out_channels")?;
        let count = channels.len();
        for (key, length) in [("down_block_types", down_types.len()), ("up_block_types", up_types.len())] {
            if length != count || count == 0 {
                return Err(bad_value(key, format!("{length} entries beside {count} block_out_channels")));
            }
        }
        let layers = settings.or("layers_per_block", Each::One(2))?.spread("layers_per_block", count)?;
        // Named a width and meaning a number of heads ever since the first release of diffusers: its issue 2011.
        let heads: Vec<i64> = settings.or("attention_head_dim", Each::One(8))?.spread("attention_head_dim", count)?;
        let context: Vec<i64> =
            settings.or("cross_attention_dim", Each::One(1280))?.spread("cross_attention_dim", count)?;
        let depths = settings.or("transformer_layers_per_block", Each::One(Depth::Same(1)))?;
        let depths = depths.spread("transformer_layers_per_block", count)?;
        let up_depths = match settings.optional::<Vec<Depth>>("reverse_transformer_layers_per_block")? {
            Some(depths) => Each::Many(depths).spread("reverse_transformer_layers_per_block", count)?,
            None if depths.iter().any(|depth| matches!(depth, Depth::PerLayer(_))) => {
                return Err(SettingsError::Missing("reverse_transformer_layers_per_block"));
            }
            None => depths.iter().rev().cloned().collect(),
        };
        let norm_num_groups: i64 = settings.or("norm_num_groups", 32)?;
        for (at, &channels) in channels.iter().enumerate() {
            check_range("block_out_channels", channels, MOST_WIDE)?;
            check_range("layers_per_block", layers[at] as i64, MOST_LAYERS)?;
            check_divides("norm_num_groups", norm_num_groups, channels)?;
        }
        let transformer = |at: usize, depth: usize| {
            check_divides("attention_head_dim", heads[at], channels[at])?;
            check_range("cross_attention_dim", context[at], MOST_WIDE)?;
            check_range("transformer_layers_per_block", depth as i64, MOST_LAYERS)?;
            Ok(TransformerConfig { channels: channels[at], depth, heads: heads[at], context_dim: context[at] })
        };

        let mut down_blocks = Vec::new();
        for at in 0..count {
            let layers = match down_types[at] {
                DownType::DownBlock2D => vec![None; layers[at]],
                DownType::CrossAttnDownBlock2D => {
                    let depths = depths[at].for_layers("transformer_layers_per_block", layers[at])?;
                    depths.into_iter().map(|depth| transformer(at, depth).map(Some)).collect::<Result<_, _>>()?
                }
            };
            down_blocks.push(BlockConfig { channels: channels[at], layers, resample: at + 1 < count });
        }
        let mut up_blocks = Vec::new();
        for (step, at) in (0..count).rev().enumerate() {
            let layers = match up_types[step] {
                UpType::UpBlock2D => vec![None; layers[at] + 1],
                UpType::CrossAttnUpBlock2D => {
                    let depths = up_depths[step].for_layers("reverse_transformer_layers_per_block", layers[at] + 1)?;
                    depths.into_iter().map(|depth| transformer(at, depth).map(Some)).collect::<Result<_, _>>()?
                }
            };
            up_blocks.push(BlockConfig { channels: channels[at], layers, resample: step + 1 < count });
        }
        let mid_block = transformer(count - 1, depths[count - 1].first("transformer_layers_per_block")?)?;
        let width = mid_block.context_dim;
        let attending = down_blocks.iter().chain(&up_blocks).flat_map(|block| block.layers.iter().flatten());
        if let Some(other) = attending.map(|transformer| transformer.context_dim).find(|&other| other != width) {
            let reason = format!("one text for all blocks has one width, not {other} and {width}");
            return Err(bad_value("cross_attention_dim", reason));
        }

        let config = Self {
            sample_size: settings.optional("sample_size")?,
            in_channels: settings.or("in_channels", 4)?,
            out_channels: settings.or("out_channels", 4)?,
            conv_in_kernel: settings.or("conv_in_kernel", 3)?,
            conv_out_kernel: settings.or("conv_out_kernel", 3)?,
            time_embed_dim: settings.optional("time_embedding_dim")?.unwrap_or(4 * channels[0]),
            flip_sin_to_cos: settings.or("flip_sin_to_cos", true)?,
            freq_shift: settings.or("freq_shift", 0.0)?,
            addition_time_embed_dim: settings.required("addition_time_embed_dim")?,
            addition_input_dim: settings.required("projection_class_embeddings_input_dim")?,
            activation: settings.or("act_fn", Activation::Silu)?,
            norm_num_groups,
            norm_eps: settings.or("norm_eps", 1e-5)?,
            use_linear_projection: settings.or("use_linear_projection", false)?,
            down_blocks,
            mid_block,
            up_blocks,
        };
        for (key, kernel) in [("conv_in_kernel", config.conv_in_kernel), ("conv_out_kernel", config.conv_out_kernel)] {
            if kernel < 1 || kernel % 2 == 0 {
                return Err(bad_value(key, format!("{kernel} is not an odd number")));
            }
        }
        for (key, size) in [
            ("in_channels", config.in_channels),
            ("out_channels", config.out_channels),
            ("time_embedding_dim", config.time_embed_dim),
            ("addition_time_embed_dim", config.addition_time_embed_dim),
            ("projection_class_embeddings_input_dim", config.addition_input_dim),
            ("sample_size", config.sample_size.unwrap_or(1)),
        ] {
            check_range(key, size, MOST_WIDE)?;
        }
        if settings.required::<String>("addition_embed_type")? != "text_time" {
            return Err(bad_value("addition_embed_type", "only text_time, SDXL's, is supported"));
        }
        let mid_type: String = settings.or("mid_block_type", "UNetMidBlock2DCrossAttn".to_owned())?;
        if mid_type != "UNetMidBlock2DCrossAttn" {
            return Err(bad_value("mid_block_type", format!("{mid_type} is not supported")));
        }
        settings.finish(
            &[
                ("center_input_sample", false.into()),
                ("only_cross_attention", false.into()),
                ("mid_block_only_cross_attention", false.into()),
                ("downsample_padding", 1.into()),
                ("mid_block_scale_factor", 1.into()),
                ("dropout", 0.into()),
                ("dual_cross_attention", false.into()),
                ("upcast_attention", false.into()),
                ("resnet_time_scale_shift", "default".into()),
                ("resnet_skip_time_act", false.into()),
                ("resnet_out_scale_factor", 1.into()),
                ("time_embedding_type", "positional".into()),
                ("attention_type", "default".into()),
                ("class_embeddings_concat", false.into()),
                // Absent from the class, and null wherever this UNet is meant.
                ("encoder_hid_dim", Value::Null),
                ("encoder_hid_dim_type", Value::Null),
                ("num_attention_heads", Value::Null),
                ("class_embed_type", Value::Null),
                ("num_class_embeds", Value::Null),
                ("time_embedding_act_fn", Value::Null),
                ("timestep_post_act", Value::Null),
                ("time_cond_proj_dim", Value::Null),
                ("cross_attention_norm", Value::Null),
            ],
            &["addition_embed_type_num_heads"],
        )?;
        Ok(config)
    }

    /// The number of time ids that go with a pooled text embedding of the given width, or nothing where that width
    /// does not fit.
    pub fn time_ids_for(&self, pooled_dim: i64) -> Option<i64> {
        let rest = self.addition_input_dim - pooled_dim;
        (rest > 0 && rest % self.addition_time_embed_dim == 0).then(|| rest / self.addition_time_embed_dim)
    }

    /// Width of the text states, which all blocks attend to.
    pub fn context_dim(&self) -> i64 {
        self.mid_block.context_dim
    }
}

#[derive(Clone, Copy, Deserialize)]
enum DownType {
    DownBlock2D,
    CrossAttnDownBlock2D,
}

#[derive(Clone, Copy, Deserialize)]
enum UpType {
    UpBlock2D,
    CrossAttnUpBlock2D,
}

/// One value for all blocks, or one for each.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Each<T> {
    Many(Vec<T>),
    One(T),
}

impl<T: Clone> Each<T> {
    fn spread(self, key: &str, count: usize) -> Result<Vec<T>, SettingsError> {
        match self {
            Self::One(value) => Ok(vec![value; count]),
            Self::Many(values) if values.len() == count => Ok(values),
            Self::Many(values) => Err(bad_value(key, format!("{} entries for {count} blocks", values.len()))),
        }
    }
}

/// Transformer blocks of one resolution: as many after each residual block, or a number for each.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Depth {
    Same(usize),
    PerLayer(Vec<usize>),
}

impl Depth {
    fn for_layers(&self, key: &str, layers: usize) -> Result<Vec<usize>, SettingsError> {
        match self {
            Self::Same(depth) => Ok(vec![*depth; layers]),
            Self::PerLayer(depths) if depths.len() == layers => Ok(depths.clone()),
            Self::PerLayer(depths) => Err(bad_value(key, format!("{} entries for {layers} layers", depths.len()))),
        }
    }

    fn first(&self, key: &str) -> Result<usize, SettingsError> {
        match self {
            Self::Same(depth) => Ok(*depth),
            Self::PerLayer(depths) => depths.first().copied().ok_or_else(|| bad_value(key, "an empty list")),
        }
    }
}

fn check_divides(key: &str, part: i64, channels: i64) -> Result<(), SettingsError> {
    if part > 0 && channels > 0 && channels % part == 0 {
        Ok(())
    } else {
        Err(bad_value(key, format!("{part} does not divide block_out_channels {channels}")))
    }
}
