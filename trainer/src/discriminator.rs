//! The discriminator (section 3.3): the base model's encoder and mid block, and a head.
//!
//! ```text
//! x_{t-ns} ── encoder, mid ──┐
//!                            ├─ channels side by side ── [conv 4x4 /2, GroupNorm 32, SiLU] x n ── conv 1x1 ── logit
//! x_t      ── encoder, mid ──┘ (conditional form alone)
//! ```
//!
//! The backbone is shared by both points; all of it is trained. Features and head are FP32 whatever the backbone is.

use std::collections::BTreeMap;

use nn::{Activation, Conv2d, Conv2dConfig, GroupNorm, Params, Scope, Weights};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::condition::Condition;
use crate::flow::{Timestep, model_timesteps};
use crate::unet::{Recompute, UNetConfig, UNetEncoder};

/// Groups of the head's norms, the paper's.
const NORM_GROUPS: i64 = 32;
const NORM_EPS: f64 = 1e-5;

/// A discriminator between points that the teacher reached and points that the student reached.
#[derive(Debug)]
pub struct Discriminator {
    encoder: UNetEncoder,
    head: Head,
    conditional: bool,
    kind: Kind,
}

/// How many channels and pixels the head starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Channels of the mid block.
    pub channels: i64,
    /// Side of the mid block's features.
    pub side: i64,
    /// Whether the features of two points come side by side.
    pub conditional: bool,
}

impl HeadShape {
    /// For a UNet at a latent of the given side.
    pub fn of(config: &UNetConfig, latent_side: i64, conditional: bool) -> HeadShape {
        let halvings = config.down_blocks.iter().filter(|block| block.resample).count();
        // A stride-2 convolution of a padded 3x3 kernel halves upwards.
        let side = (0..halvings).fold(latent_side, |side, _| (side + 1) / 2);
        HeadShape { channels: config.mid_block.channels, side, conditional }
    }

    /// The padding of each block, until one pixel is left: four pixels are one kernel, all other sides halve.
    fn paddings(self) -> Vec<i64> {
        let mut side = self.side;
        let mut paddings = Vec::new();
        while side > 1 {
            let padding = if side == 4 { 0 } else { 1 };
            side = (side + 2 * padding - 4) / 2 + 1;
            paddings.push(padding);
        }
        paddings
    }

    fn inputs(self) -> i64 {
        if self.conditional { 2 * self.channels } else { self.channels }
    }
}

#[derive(Debug)]
struct Head {
    blocks: Vec<(Conv2d, GroupNorm)>,
    projection: Conv2d,
}

impl Head {
    fn new(scope: &Scope, shape: HeadShape) -> Head {
        let mut inputs = shape.inputs();
        let blocks = shape
            .paddings()
            .into_iter()
            .enumerate()
            .map(|(at, padding)| {
                let block = scope.sub("blocks").sub(at);
                let conv = block.sub("conv").conv2d(inputs, shape.channels, 4, Conv2dConfig::padded(padding).stride(2));
                inputs = shape.channels;
                (conv, block.sub("norm").group_norm(NORM_GROUPS, shape.channels, NORM_EPS))
            })
            .collect();
        Head { blocks, projection: scope.sub("projection").conv2d(inputs, 1, 1, Conv2dConfig::padded(0)) }
    }

    /// `[B, channels, side, side] -> [B]`
    fn forward(&self, features: &Tensor) -> Tensor {
        let mut x = features.shallow_clone();
        for (conv, norm) in &self.blocks {
            x = Activation::Silu.forward(&norm.forward(&conv.forward(&x)));
        }
        self.projection.forward(&x).flatten(0, -1)
    }
}

/// Weights for a discriminator: a backbone by a UNet's names, and a head, fresh or given.
#[derive(Debug)]
pub struct DiscriminatorWeights {
    /// Tensors of the encoder and the mid block; others are passed over.
    pub backbone: BTreeMap<String, Tensor>,
    /// Where the head comes from.
    pub head: HeadWeights,
}

/// Where a head's tensors come from.
#[derive(Debug)]
pub enum HeadWeights {
    /// Drawn as PyTorch's layers draw theirs.
    Fresh {
        /// What they follow from.
        seed: u64,
    },
    /// Another head's, by name without `head.`; one of the other form is fitted.
    Given(BTreeMap<String, Tensor>),
}

impl Discriminator {
    /// Builds a discriminator whose weights are its own. The names are a UNet's for the backbone and `head.*`.
    pub fn new(
        config: &UNetConfig,
        shape: HeadShape,
        weights: DiscriminatorWeights,
        (kind, device): (Kind, Device),
        recompute: Recompute,
    ) -> Result<(Discriminator, Params)> {
        let _no_grad = tch::no_grad_guard();
        let backbone = weights
            .backbone
            .into_iter()
            .filter(|(name, _)| UNetEncoder::owns(name))
            .map(|(name, tensor)| (name, tensor.to_device(device).to_kind(kind).copy()))
            .collect();
        let backbone = Weights::from_tensors("the discriminator's backbone", backbone).to(kind, device);
        let (mut encoder, backbone) = backbone.build(|scope| UNetEncoder::new(scope, config))?;
        encoder.set_recompute(recompute);
        let head = match weights.head {
            HeadWeights::Fresh { seed } => Weights::seeded(seed),
            HeadWeights::Given(tensors) => Weights::from_tensors("the discriminator's head", fit(tensors, shape)),
        };
        let (head, head_params) = head.to(Kind::Float, device).build(|scope| Head::new(scope, shape))?;
        let mut params = Params::default();
        for (name, tensor) in backbone.iter() {
            params.push(name.to_string(), tensor.shallow_clone());
        }
        for (name, tensor) in head_params.iter() {
            params.push(format!("head.{name}"), tensor.shallow_clone());
        }
        Ok((Discriminator { encoder, head, conditional: shape.conditional, kind }, params))
    }

    /// Logits `[B]` of each of `points`, which lie at `to`: equation 17 given `x_t` in the conditional form, equation
    /// 23 without. The backbone runs once over all of them.
    pub fn logits(
        &self,
        points: &[&Tensor],
        to: &[Timestep],
        x_t: &Tensor,
        t: &[Timestep],
        condition: &Condition,
    ) -> Vec<Tensor> {
        let mut samples: Vec<Tensor> = points.iter().map(|point| point.shallow_clone()).collect();
        let mut timesteps = to.repeat(points.len());
        if self.conditional {
            samples.push(x_t.shallow_clone());
            timesteps.extend_from_slice(t);
        }
        let condition = condition.repeated(samples.len()).to_kind(self.kind);
        let stacked = Tensor::cat(&samples, 0);
        let encoded = self.encoder.forward(
            &stacked.to_kind(self.kind),
            &model_timesteps(&timesteps, stacked.device()),
            &condition.prompt_embeds,
            &condition.pooled,
            &condition.time_ids,
        );
        let features = encoded.mid.to_kind(Kind::Float).chunk(samples.len() as i64, 0);
        points
            .iter()
            .zip(&features)
            .map(|(_, point)| match self.conditional {
                true => self.head.forward(&Tensor::cat(&[point, &features[points.len()]], 1)),
                false => self.head.forward(point),
            })
            .collect()
    }
}

/// A head of the other form, made to fit: the first convolution loses the half that saw `x_t`, or gains one of zeros,
/// which sees nothing yet.
fn fit(mut tensors: BTreeMap<String, Tensor>, shape: HeadShape) -> BTreeMap<String, Tensor> {
    const FIRST: &str = "blocks.0.conv.weight";
    if let Some(first) = tensors.get(FIRST) {
        let inputs = first.size()[1];
        let fitted = match inputs.cmp(&shape.inputs()) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(first.narrow(1, 0, shape.inputs()).copy()),
            std::cmp::Ordering::Less => {
                let missing = Tensor::zeros_like(&first.narrow(1, 0, shape.inputs() - inputs));
                Some(Tensor::cat(&[first, &missing], 1))
            }
        };
        if let Some(fitted) = fitted {
            tensors.insert(FIRST.into(), fitted);
        }
    }
    tensors
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DMD2's head on SDXL's mid block has 104.9 million parameters, the conditional one 131.1.
    #[test]
    fn heads_have_the_size_of_the_papers() {
        for (conditional, millions) in [(false, 104.9), (true, 131.1)] {
            let shape = HeadShape { channels: 1280, side: 32, conditional };
            let (_, params) = Weights::shapes_only().build(|scope| Head::new(scope, shape)).unwrap();
            let found = params.count() as f64 / 1e6;
            assert!((found - millions).abs() < 0.1, "{found}");
        }
    }

    #[test]
    fn heads_end_in_one_value_for_any_side() {
        for side in [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 40] {
            let shape = HeadShape { channels: 32, side, conditional: false };
            let (head, _) = Weights::seeded(1).build(|scope| Head::new(scope, shape)).unwrap();
            let features = Tensor::ones([3, 32, side, side], (Kind::Float, Device::Cpu));
            assert_eq!(head.forward(&features).size(), [3], "{side}");
        }
    }

    #[test]
    fn a_head_that_gains_a_blind_half_says_the_same() {
        let narrow = HeadShape { channels: 32, side: 4, conditional: false };
        let wide = HeadShape { conditional: true, ..narrow };
        let (head, params) = Weights::seeded(1).build(|scope| Head::new(scope, narrow)).unwrap();
        let tensors: BTreeMap<_, _> = params.iter().map(|(n, t)| (n.to_string(), t.shallow_clone())).collect();
        let widened = Weights::from_tensors("head", fit(tensors, wide));
        let (widened, params) = widened.build(|scope| Head::new(scope, wide)).unwrap();
        let features = (Tensor::arange(32 * 16, (Kind::Float, Device::Cpu)) / 99.0).sin().view([1, 32, 4, 4]);
        let both = Tensor::cat(&[&features, &features.cos()], 1);
        let difference = (head.forward(&features) - widened.forward(&both)).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}");

        let tensors: BTreeMap<_, _> = params.iter().map(|(n, t)| (n.to_string(), t.shallow_clone())).collect();
        let narrowed = Weights::from_tensors("head", fit(tensors, narrow));
        let (narrowed, _) = narrowed.build(|scope| Head::new(scope, narrow)).unwrap();
        assert_eq!(narrowed.forward(&features), head.forward(&features));
    }
}
