//! `AutoencoderKL`: images to latents and back.
//!
//! Shapes: `B` batch, `C` channels, `H W` image pixels, `h w` latent pixels (`H / factor`, `W / factor`).

use std::path::Path;

use nn::{Activation, Conv2d, Conv2dConfig, GroupNorm, Linear, Masking, Scope, Weights, attention};
use tch::{Device, Kind, Tensor};

use crate::{Result, VaeConfig};

/// Added to the variance in every normalisation of a VAE.
const EPS: f64 = 1e-6;

/// The autoencoder.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    /// How much of a batch is worked on at once.
    pub memory: MemoryUse,
}

/// What the autoencoder does to save memory. The two may be combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// One image at a time; the result is the same.
    pub slicing: bool,
    /// Overlapping tiles of the size that the autoencoder was trained on, blended where they meet; larger images only.
    /// The result differs a little: each tile has its own statistics.
    pub tiling: bool,
}

/// A normal distribution with a diagonal covariance for each latent, as the encoder gives it.
#[derive(Debug)]
pub struct Posterior {
    /// `[B, latent channels, h, w]`
    pub mean: Tensor,
    /// The logarithm of the variance, clamped to [-30, 20] as diffusers does.
    pub logvar: Tensor,
}

impl Posterior {
    /// Splits `[B, 2 * latent channels, h, w]`.
    fn new(moments: &Tensor) -> Self {
        let halves = moments.chunk(2, 1);
        Self { mean: halves[0].shallow_clone(), logvar: halves[1].clamp(-30.0, 20.0) }
    }

    /// `mean + exp(logvar / 2) * noise`
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.logvar * 0.5).exp() * noise
    }
}

impl AutoencoderKl {
    /// Takes the network from a scope.
    pub fn new(scope: &Scope, config: &VaeConfig) -> Self {
        let (moments, latents) = (2 * config.latent_channels, config.latent_channels);
        let point = Conv2dConfig::padded(0);
        Self {
            encoder: Encoder::new(&scope.sub("encoder"), config),
            decoder: Decoder::new(&scope.sub("decoder"), config),
            quant_conv: config.use_quant_conv.then(|| scope.sub("quant_conv").conv2d(moments, moments, 1, point)),
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| scope.sub("post_quant_conv").conv2d(latents, latents, 1, point)),
            config: config.clone(),
            memory: MemoryUse { slicing: false, tiling: false },
        }
    }

    /// Loads the `vae` folder of a diffusers model.
    pub fn open(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let config = VaeConfig::read(folder)?;
        let (vae, _) = Self::weights(folder)?.to(kind, device).build(|scope| Self::new(scope, &config))?;
        Ok(vae)
    }

    /// Opens the weights of a `vae` folder under today's names.
    pub fn weights(folder: &Path) -> Result<Weights> {
        Ok(Weights::open_folder(folder, "diffusion_pytorch_model")?.rename(|name| Some(current_name(name)))?)
    }

    /// The config it was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The dtype that it computes in.
    pub fn kind(&self) -> Kind {
        self.encoder.conv_in.weight.kind()
    }

    /// Encodes `[B, 3, H, W]` in [-1, 1]. Sides have to be multiples of the factor.
    pub fn encode(&self, images: &Tensor) -> Posterior {
        let moments = self.by_slices(images, |x| {
            let tile = self.config.sample_size;
            if self.memory.tiling && larger_than(x, tile) {
                let latent_tile = tile / self.config.factor();
                tiled(x, tile, latent_tile, |x| self.encode_whole(x))
            } else {
                self.encode_whole(x)
            }
        });
        Posterior::new(&moments)
    }

    /// Decodes latents `[B, latent channels, h, w]` to `[B, 3, H, W]` in about [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        self.by_slices(latents, |z| {
            let tile = self.config.sample_size / self.config.factor();
            if self.memory.tiling && larger_than(z, tile) {
                tiled(z, tile, self.config.sample_size, |z| self.decode_whole(z))
            } else {
                self.decode_whole(z)
            }
        })
    }

    /// Latents as a diffusion model sees them.
    pub fn scale(&self, latents: &Tensor) -> Tensor {
        latents * self.config.scaling_factor
    }

    /// The inverse of [`scale`](Self::scale).
    pub fn unscale(&self, latents: &Tensor) -> Tensor {
        latents / self.config.scaling_factor
    }

    fn by_slices(&self, batch: &Tensor, run: impl Fn(&Tensor) -> Tensor) -> Tensor {
        if self.memory.slicing && batch.size()[0] > 1 {
            let slices: Vec<Tensor> = batch.split(1, 0).iter().map(run).collect();
            Tensor::cat(&slices, 0)
        } else {
            run(batch)
        }
    }

    fn encode_whole(&self, images: &Tensor) -> Tensor {
        let moments = self.encoder.forward(images);
        match &self.quant_conv {
            Some(conv) => conv.forward(&moments),
            None => moments,
        }
    }

    fn decode_whole(&self, latents: &Tensor) -> Tensor {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(latents)),
            None => self.decoder.forward(latents),
        }
    }
}

/// Names of the attention's layers in files from before diffusers 0.18.
fn current_name(name: &str) -> String {
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")]
        .into_iter()
        .fold(name.to_owned(), |name, (old, new)| name.replace(&format!(".{old}."), &format!(".{new}.")))
}

fn larger_than(x: &Tensor, side: i64) -> bool {
    x.size()[2..].iter().any(|&s| s > side)
}

/// Runs a network over overlapping tiles and blends the results, as diffusers does: a quarter of a tile overlaps with
/// the next, and in the overlap one fades into the other, first downwards, then to the right.
fn tiled(x: &Tensor, tile_in: i64, tile_out: i64, run: impl Fn(&Tensor) -> Tensor) -> Tensor {
    const OVERLAP: f64 = 0.25;
    let step = (tile_in as f64 * (1.0 - OVERLAP)) as i64;
    let blend = (tile_out as f64 * OVERLAP) as i64;
    let kept = tile_out - blend;
    let starts = |dim: usize| (0..x.size()[dim]).step_by(step as usize);
    let cut =
        |x: &Tensor, dim: i64, start: i64, len: i64| x.narrow(dim, start, len.min(x.size()[dim as usize] - start));

    let mut above: Vec<Tensor> = Vec::new();
    let mut bands = Vec::new();
    for top in starts(2) {
        let mut row: Vec<Tensor> = Vec::new();
        for (column, left) in starts(3).enumerate() {
            let mut tile = run(&cut(&cut(x, 2, top, tile_in), 3, left, tile_in));
            if let Some(upper) = above.get(column) {
                tile = faded(upper, &tile, 2, blend);
            }
            if let Some(previous) = row.last() {
                tile = faded(previous, &tile, 3, blend);
            }
            row.push(tile);
        }
        let band: Vec<Tensor> = row.iter().map(|tile| cut(&cut(tile, 2, 0, kept), 3, 0, kept)).collect();
        bands.push(Tensor::cat(&band, 3));
        above = row;
    }
    Tensor::cat(&bands, 2)
}

/// `b` with its first `extent` lines along `dim` faded over from the last ones of `a`.
fn faded(a: &Tensor, b: &Tensor, dim: i64, extent: i64) -> Tensor {
    let (len_a, len_b) = (a.size()[dim as usize], b.size()[dim as usize]);
    let extent = extent.min(len_a).min(len_b);
    let mut shape = [1; 4];
    shape[dim as usize] = extent;
    let weight = (Tensor::arange(extent, (Kind::Float, b.device())) / extent as f64).reshape(shape).to_kind(b.kind());
    let mixed = a.narrow(dim, len_a - extent, extent) * (1.0 - &weight) + b.narrow(dim, 0, extent) * &weight;
    Tensor::cat(&[mixed, b.narrow(dim, extent, len_b - extent)], dim)
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    head: Head,
}

impl Encoder {
    fn new(scope: &Scope, config: &VaeConfig) -> Self {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let down_blocks = (0..channels.len())
            .map(|i| {
                let inputs = if i == 0 { first } else { channels[i - 1] };
                let block = scope.sub("down_blocks").sub(i);
                DownBlock {
                    resnets: resnets(&block, config.layers_per_block, inputs, channels[i], config),
                    downsampler: (i + 1 < channels.len()).then(|| {
                        let conv = Conv2dConfig::padded(0).stride(2);
                        block.sub("downsamplers").sub(0).sub("conv").conv2d(channels[i], channels[i], 3, conv)
                    }),
                }
            })
            .collect();
        Self {
            conv_in: scope.sub("conv_in").conv2d(config.in_channels, first, 3, Conv2dConfig::padded(1)),
            down_blocks,
            mid_block: MidBlock::new(&scope.sub("mid_block"), last, config),
            head: Head::new(scope, last, 2 * config.latent_channels, config),
        }
    }

    /// `[B, 3, H, W] -> [B, 2 * latent channels, h, w]`
    fn forward(&self, images: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(images);
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x);
            }
            if let Some(conv) = &block.downsampler {
                // One line of zeros to the right and below, none to the left and above.
                x = conv.forward(&x.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        x = self.mid_block.forward(x);
        self.head.forward(x)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    head: Head,
}

impl Decoder {
    fn new(scope: &Scope, config: &VaeConfig) -> Self {
        let channels: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let conv = Conv2dConfig::padded(1);
        let up_blocks = (0..channels.len())
            .map(|i| {
                let inputs = if i == 0 { first } else { channels[i - 1] };
                let block = scope.sub("up_blocks").sub(i);
                UpBlock {
                    resnets: resnets(&block, config.layers_per_block + 1, inputs, channels[i], config),
                    upsampler: (i + 1 < channels.len())
                        .then(|| block.sub("upsamplers").sub(0).sub("conv").conv2d(channels[i], channels[i], 3, conv)),
                }
            })
            .collect();
        Self {
            conv_in: scope.sub("conv_in").conv2d(config.latent_channels, first, 3, conv),
            mid_block: MidBlock::new(&scope.sub("mid_block"), first, config),
            up_blocks,
            head: Head::new(scope, last, config.out_channels, config),
        }
    }

    /// `[B, latent channels, h, w] -> [B, 3, H, W]`
    fn forward(&self, latents: &Tensor) -> Tensor {
        let mut x = self.mid_block.forward(self.conv_in.forward(latents));
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x);
            }
            if let Some(conv) = &block.upsampler {
                let (height, width) = (x.size()[2], x.size()[3]);
                x = conv.forward(&x.upsample_nearest2d([2 * height, 2 * width], None, None));
            }
        }
        self.head.forward(x)
    }
}

#[derive(Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsampler: Option<Conv2d>,
}

#[derive(Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Conv2d>,
}

fn resnets(scope: &Scope, count: usize, inputs: i64, outputs: i64, config: &VaeConfig) -> Vec<ResnetBlock> {
    (0..count)
        .map(|i| {
            let inputs = if i == 0 { inputs } else { outputs };
            ResnetBlock::new(&scope.sub("resnets").sub(i), inputs, outputs, config)
        })
        .collect()
}

/// Normalisation, SiLU and convolution at the end of the encoder and of the decoder.
#[derive(Debug)]
struct Head {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Head {
    fn new(scope: &Scope, inputs: i64, outputs: i64, config: &VaeConfig) -> Self {
        Self {
            norm: scope.sub("conv_norm_out").group_norm(config.norm_num_groups, inputs, EPS),
            conv: scope.sub("conv_out").conv2d(inputs, outputs, 3, Conv2dConfig::padded(1)),
        }
    }

    fn forward(&self, mut x: Tensor) -> Tensor {
        x = self.norm.forward(&x);
        x = Activation::Silu.forward(&x);
        self.conv.forward(&x)
    }
}

/// `x + conv2(act(norm2(conv1(act(norm1(x))))))`, with a 1x1 convolution on `x` where the width changes.
#[derive(Debug)]
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    activation: Activation,
}

impl ResnetBlock {
    fn new(scope: &Scope, inputs: i64, outputs: i64, config: &VaeConfig) -> Self {
        let groups = config.norm_num_groups;
        let conv = Conv2dConfig::padded(1);
        Self {
            norm1: scope.sub("norm1").group_norm(groups, inputs, EPS),
            conv1: scope.sub("conv1").conv2d(inputs, outputs, 3, conv),
            norm2: scope.sub("norm2").group_norm(groups, outputs, EPS),
            conv2: scope.sub("conv2").conv2d(outputs, outputs, 3, conv),
            conv_shortcut: (inputs != outputs)
                .then(|| scope.sub("conv_shortcut").conv2d(inputs, outputs, 1, Conv2dConfig::padded(0))),
            activation: config.act_fn,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut h = self.norm1.forward(x);
        h = self.activation.forward(&h);
        h = self.conv1.forward(&h);
        h = self.norm2.forward(&h);
        h = self.activation.forward(&h);
        h = self.conv2.forward(&h);
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x) + h,
            None => x + h,
        }
    }
}

#[derive(Debug)]
struct MidBlock {
    before: ResnetBlock,
    attention: Option<SpatialAttention>,
    after: ResnetBlock,
}

impl MidBlock {
    fn new(scope: &Scope, channels: i64, config: &VaeConfig) -> Self {
        let resnet = |i: usize| ResnetBlock::new(&scope.sub("resnets").sub(i), channels, channels, config);
        Self {
            before: resnet(0),
            attention: config
                .mid_block_add_attention
                .then(|| SpatialAttention::new(&scope.sub("attentions").sub(0), channels, config)),
            after: resnet(1),
        }
    }

    fn forward(&self, mut x: Tensor) -> Tensor {
        x = self.before.forward(&x);
        if let Some(attention) = &self.attention {
            x = attention.forward(&x);
        }
        self.after.forward(&x)
    }
}

/// Attention of every pixel to every other, one head, with a residual connection.
#[derive(Debug)]
struct SpatialAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl SpatialAttention {
    fn new(scope: &Scope, channels: i64, config: &VaeConfig) -> Self {
        let linear = |scope: Scope| scope.linear(channels, channels, true);
        Self {
            group_norm: scope.sub("group_norm").group_norm(config.norm_num_groups, channels, EPS),
            to_q: linear(scope.sub("to_q")),
            to_k: linear(scope.sub("to_k")),
            to_v: linear(scope.sub("to_v")),
            to_out: linear(scope.sub("to_out").sub(0)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let tokens = self.group_norm.forward(x).flatten(2, 3).transpose(1, 2);
        let (q, k, v) = (self.to_q.forward(&tokens), self.to_k.forward(&tokens), self.to_v.forward(&tokens));
        let mixed = self.to_out.forward(&attention(&q, &k, &v, 1, Masking::None));
        x + mixed.transpose(1, 2).reshape(x.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_of_the_attention_are_read() {
        assert_eq!(
            current_name("encoder.mid_block.attentions.0.query.weight"),
            "encoder.mid_block.attentions.0.to_q.weight"
        );
        assert_eq!(
            current_name("decoder.mid_block.attentions.0.proj_attn.bias"),
            "decoder.mid_block.attentions.0.to_out.0.bias"
        );
        assert_eq!(current_name("encoder.conv_in.weight"), "encoder.conv_in.weight");
    }

    #[test]
    fn fading_begins_with_the_first_and_ends_with_the_second() {
        let (a, b) = (
            Tensor::zeros([1, 1, 4, 1], (Kind::Float, Device::Cpu)),
            Tensor::ones([1, 1, 4, 1], (Kind::Float, Device::Cpu)),
        );
        let lines: Vec<f32> = Vec::try_from(faded(&a, &b, 2, 2).flatten(0, -1)).unwrap();
        assert_eq!(lines, [0.0, 0.5, 1.0, 1.0]);
    }
}
