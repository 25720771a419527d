//! Residual blocks and the blocks of each resolution.

use nn::{Activation, Conv2d, Conv2dConfig, GroupNorm, Linear, Scope};
use tch::Tensor;

use super::config::{BlockConfig, TransformerConfig, UNetConfig};
use super::recompute::{Recompute, Segment};
use super::transformer::Transformer2d;

/// What every block of one forward pass sees beside the features.
pub(super) struct Pass<'a> {
    /// The activated embedding of timestep and conditions, `[batch, time_embed_dim]`.
    pub embedding: &'a Tensor,
    /// The text states, `[batch, tokens, context_dim]`.
    pub context: &'a Tensor,
    pub recompute: Recompute,
}

/// diffusers' `ResnetBlock2D`.
#[derive(Debug)]
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    activation: Activation,
}

impl ResnetBlock {
    fn new(scope: &Scope, inputs: i64, outputs: i64, unet: &UNetConfig) -> Self {
        let norm = |name, channels| scope.sub(name).group_norm(unet.norm_num_groups, channels, unet.norm_eps);
        let conv = |name, inputs| scope.sub(name).conv2d(inputs, outputs, 3, Conv2dConfig::padded(1));
        Self {
            norm1: norm("norm1", inputs),
            conv1: conv("conv1", inputs),
            time_emb_proj: scope.sub("time_emb_proj").linear(unet.time_embed_dim, outputs, true),
            norm2: norm("norm2", outputs),
            conv2: conv("conv2", outputs),
            conv_shortcut: (inputs != outputs)
                .then(|| scope.sub("conv_shortcut").conv2d(inputs, outputs, 1, Conv2dConfig::padded(0))),
            activation: unet.activation,
        }
    }
}

impl Segment for ResnetBlock {
    /// Inputs: features, activated embedding.
    fn forward(&self, inputs: &[Tensor]) -> Tensor {
        let [x, embedding] = inputs else { unreachable!("a residual block has two inputs") };
        let h = self.conv1.forward(&self.activation.forward(&self.norm1.forward(x)));
        let h = h + self.time_emb_proj.forward(embedding).unsqueeze(-1).unsqueeze(-1);
        let h = self.conv2.forward(&self.activation.forward(&self.norm2.forward(&h)));
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x) + h,
            None => x + h,
        }
    }

    fn shallow_clone(&self) -> Self {
        Self {
            norm1: self.norm1.shallow_clone(),
            conv1: self.conv1.shallow_clone(),
            time_emb_proj: self.time_emb_proj.shallow_clone(),
            norm2: self.norm2.shallow_clone(),
            conv2: self.conv2.shallow_clone(),
            conv_shortcut: self.conv_shortcut.as_ref().map(Conv2d::shallow_clone),
            activation: self.activation,
        }
    }
}

/// A residual block and the transformer that may follow it.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock,
    attention: Option<Transformer2d>,
}

impl Layer {
    fn new(
        scope: &Scope,
        at: usize,
        (inputs, outputs): (i64, i64),
        transformer: Option<TransformerConfig>,
        unet: &UNetConfig,
    ) -> Self {
        Self {
            resnet: ResnetBlock::new(&scope.sub("resnets").sub(at), inputs, outputs, unet),
            attention: transformer.map(|config| Transformer2d::new(&scope.sub("attentions").sub(at), config, unet)),
        }
    }

    fn forward(&self, x: Tensor, pass: &Pass) -> Tensor {
        let x = pass.recompute.run(&self.resnet, &[x, pass.embedding.shallow_clone()]);
        match &self.attention {
            Some(attention) => attention.forward(&x, pass.context, pass.recompute),
            None => x,
        }
    }
}

/// diffusers' `DownBlock2D` and `CrossAttnDownBlock2D`.
#[derive(Debug)]
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Conv2d>,
}

impl DownBlock {
    pub fn new(scope: &Scope, inputs: i64, config: &BlockConfig, unet: &UNetConfig) -> Self {
        let channels = config.channels;
        let layer = |(at, &transformer): (usize, &Option<TransformerConfig>)| {
            let inputs = if at == 0 { inputs } else { channels };
            Layer::new(scope, at, (inputs, channels), transformer, unet)
        };
        Self {
            layers: config.layers.iter().enumerate().map(layer).collect(),
            downsampler: config.resample.then(|| {
                let scope = scope.sub("downsamplers").sub(0).sub("conv");
                scope.conv2d(channels, channels, 3, Conv2dConfig::padded(1).stride(2))
            }),
        }
    }

    /// Gives the features at the next resolution and adds all that the way up will want to `skips`.
    pub fn forward(&self, mut x: Tensor, skips: &mut Vec<Tensor>, pass: &Pass) -> Tensor {
        for layer in &self.layers {
            x = layer.forward(x, pass);
            skips.push(x.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x);
            skips.push(x.shallow_clone());
        }
        x
    }
}

/// diffusers' `UNetMidBlock2DCrossAttn`.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: Layer,
    last: Layer,
}

impl MidBlock {
    pub fn new(scope: &Scope, unet: &UNetConfig) -> Self {
        let width = (unet.mid_block.channels, unet.mid_block.channels);
        Self {
            first: Layer::new(scope, 0, width, Some(unet.mid_block), unet),
            last: Layer::new(scope, 1, width, None, unet),
        }
    }

    pub fn forward(&self, x: Tensor, pass: &Pass) -> Tensor {
        self.last.forward(self.first.forward(x, pass), pass)
    }
}

/// diffusers' `UpBlock2D` and `CrossAttnUpBlock2D`.
#[derive(Debug)]
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    /// `inputs` are the channels that come from below, `skips` those of each skip connection in the order of use.
    pub fn new(scope: &Scope, inputs: i64, skips: &[i64], config: &BlockConfig, unet: &UNetConfig) -> Self {
        let channels = config.channels;
        let layer = |((at, &transformer), &skip): ((usize, &Option<TransformerConfig>), &i64)| {
            let below = if at == 0 { inputs } else { channels };
            Layer::new(scope, at, (below + skip, channels), transformer, unet)
        };
        Self {
            layers: config.layers.iter().enumerate().zip(skips).map(layer).collect(),
            upsampler: config.resample.then(|| {
                let scope = scope.sub("upsamplers").sub(0).sub("conv");
                scope.conv2d(channels, channels, 3, Conv2dConfig::padded(1))
            }),
        }
    }

    /// Takes its skip connections from the end of `skips` and leaves the features at the resolution of the next one.
    pub fn forward(&self, mut x: Tensor, skips: &mut Vec<Tensor>, pass: &Pass) -> Tensor {
        for layer in &self.layers {
            let skip = skips.pop().expect("the way down left a skip for each layer");
            x = layer.forward(Tensor::cat(&[x, skip], 1), pass);
        }
        if let Some(upsampler) = &self.upsampler {
            // The size of the next skip, not twice one's own: sides need not be multiples of the whole factor.
            let size = skips.last().expect("the way down left a skip for each layer").size();
            x = upsampler.forward(&x.upsample_nearest2d([size[2], size[3]], None, None));
        }
        x
    }
}
