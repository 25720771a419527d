//! The names of the reference implementation, block by block.

use std::collections::BTreeMap;

use crate::unet::UNetConfig;

/// What the reference implementation calls the modules of one network.
pub struct Names {
    /// diffusers' path of a module -> its path there, and what the parts inside it are called.
    modules: BTreeMap<String, (String, Parts)>,
}

/// diffusers' names of the parts inside a module, and those there.
type Parts = &'static [(&'static str, &'static str)];

const UNET_RESNET: &[(&str, &str)] = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];
const VAE_RESNET: &[(&str, &str)] = &[("conv_shortcut", "nin_shortcut")];
const VAE_ATTENTION: &[(&str, &str)] =
    &[("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
const CLIP_LAYER: &[(&str, &str)] = &[
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];

impl Names {
    /// A UNet's, without the prefix `model.diffusion_model.`.
    pub fn unet(config: &UNetConfig) -> Self {
        let mut names = Self { modules: BTreeMap::new() };
        for (ours, theirs) in [
            ("conv_in", "input_blocks.0.0"),
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
            ("mid_block.attentions.0", "middle_block.1"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
        ] {
            names.add(ours, theirs, &[]);
        }
        names.add("mid_block.resnets.0", "middle_block.0", UNET_RESNET);
        names.add("mid_block.resnets.1", "middle_block.2", UNET_RESNET);
        // There, every residual block with its transformer is a block, and every downsampler; upsamplers end a block.
        let mut place = 1;
        for (at, block) in config.down_blocks.iter().enumerate() {
            for layer in 0..block.layers.len() {
                names.add(format!("down_blocks.{at}.resnets.{layer}"), format!("input_blocks.{place}.0"), UNET_RESNET);
                names.add(format!("down_blocks.{at}.attentions.{layer}"), format!("input_blocks.{place}.1"), &[]);
                place += 1;
            }
            if block.resample {
                let ours = format!("down_blocks.{at}.downsamplers.0.conv");
                names.add(ours, format!("input_blocks.{place}.0.op"), &[]);
                place += 1;
            }
        }
        let mut place = 0;
        for (at, block) in config.up_blocks.iter().enumerate() {
            for layer in 0..block.layers.len() {
                names.add(format!("up_blocks.{at}.resnets.{layer}"), format!("output_blocks.{place}.0"), UNET_RESNET);
                names.add(format!("up_blocks.{at}.attentions.{layer}"), format!("output_blocks.{place}.1"), &[]);
                place += 1;
            }
            if block.resample {
                let member = if block.layers.iter().any(Option::is_some) { 2 } else { 1 };
                let theirs = format!("output_blocks.{}.{member}.conv", place - 1);
                names.add(format!("up_blocks.{at}.upsamplers.0.conv"), theirs, &[]);
            }
        }
        names
    }

    /// An autoencoder's, without the prefix `first_stage_model.`.
    pub fn vae(blocks: usize, layers_per_block: usize) -> Self {
        let mut names = Self { modules: BTreeMap::new() };
        for name in ["quant_conv", "post_quant_conv"] {
            names.add(name, name, &[]);
        }
        for half in ["encoder", "decoder"] {
            for (ours, theirs) in [("conv_in", "conv_in"), ("conv_out", "conv_out"), ("conv_norm_out", "norm_out")] {
                names.add(format!("{half}.{ours}"), format!("{half}.{theirs}"), &[]);
            }
            for i in 0..2 {
                let (ours, theirs) = (format!("mid_block.resnets.{i}"), format!("mid.block_{}", i + 1));
                names.add(format!("{half}.{ours}"), format!("{half}.{theirs}"), VAE_RESNET);
            }
            names.add(format!("{half}.mid_block.attentions.0"), format!("{half}.mid.attn_1"), VAE_ATTENTION);
        }
        for i in 0..blocks {
            // The way up is counted from the image there, from the latent here.
            let (down, up) = (format!("encoder.down.{i}"), format!("decoder.up.{}", blocks - 1 - i));
            for layer in 0..layers_per_block {
                names.add(
                    format!("encoder.down_blocks.{i}.resnets.{layer}"),
                    format!("{down}.block.{layer}"),
                    VAE_RESNET,
                );
            }
            for layer in 0..=layers_per_block {
                names.add(format!("decoder.up_blocks.{i}.resnets.{layer}"), format!("{up}.block.{layer}"), VAE_RESNET);
            }
            names.add(format!("encoder.down_blocks.{i}.downsamplers.0.conv"), format!("{down}.downsample.conv"), &[]);
            names.add(format!("decoder.up_blocks.{i}.upsamplers.0.conv"), format!("{up}.upsample.conv"), &[]);
        }
        names
    }

    /// OpenCLIP's, without the prefix `conditioner.embedders.1.model.`, of all modules but the three projections of
    /// each attention, which are one tensor there.
    pub fn open_clip(layers: usize) -> Self {
        let mut names = Self { modules: BTreeMap::new() };
        names.add("text_model.embeddings.token_embedding", "token_embedding", &[]);
        names.add("text_model.final_layer_norm", "ln_final", &[]);
        for layer in 0..layers {
            let ours = format!("text_model.encoder.layers.{layer}");
            names.add(ours, format!("transformer.resblocks.{layer}"), CLIP_LAYER);
        }
        names
    }

    fn add(&mut self, ours: impl Into<String>, theirs: impl Into<String>, inside: &'static [(&str, &str)]) {
        self.modules.insert(ours.into(), (theirs.into(), inside));
    }

    /// The reference implementation's name for one of diffusers', of a tensor or of a module.
    pub fn translate(&self, name: &str) -> Option<String> {
        let mut ends = name.match_indices('.').map(|(end, _)| end).chain([name.len()]).rev();
        let (end, (theirs, inside)) = ends.find_map(|end| Some((end, self.modules.get(&name[..end])?)))?;
        let rest = name[end..].trim_start_matches('.');
        let renamed = inside.iter().find_map(|(ours, theirs)| {
            let after = rest.strip_prefix(ours)?;
            (after.is_empty() || after.starts_with('.')).then(|| format!("{theirs}{after}"))
        });
        let rest = renamed.unwrap_or_else(|| rest.to_owned());
        Some(if rest.is_empty() { theirs.clone() } else { format!("{theirs}.{rest}") })
    }
}
