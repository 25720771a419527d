//! The autoencoder's phases: windows of scenes, then whole pictures; and its decoder once more by itself, which
//! sharpens pictures and leaves the latents, and so the UNet, as they are.

use demo_world::render::View;
use demo_world::scene::{Scene, Split, item_rng};
use encode::{AutoencoderKl, Posterior, VaeConfig};
use nn::Params;
use rand::Rng;
use tch::{Kind, Tensor};

use super::desk::Desk;
use super::pictures::pictures;
use super::recipe::{PretrainRecipe, VaeRecipe};
use super::{Start, Stream, average, reseed};
use crate::Result;
use crate::optimizer::{Optimizer, StateDevice};

/// The name of the phase and of its files.
pub const PHASE: &str = "vae";
/// The name of the decoder's phase and of its files.
pub const DECODER_PHASE: &str = "decoder";

/// The network with its optimizer.
pub struct VaePhase<'a> {
    recipe: &'a PretrainRecipe,
    net: AutoencoderKl,
    params: Params,
    optimizer: Optimizer,
}

impl<'a> VaePhase<'a> {
    /// A network of the given configuration.
    pub fn new(recipe: &'a PretrainRecipe, config: &VaeConfig, start: &Start, desk: &Desk) -> Result<Self> {
        let weights = start.weights("vae", "diffusion_pytorch_model", recipe.seed)?;
        let (net, params) = weights.build(|scope| AutoencoderKl::new(scope, config))?;
        if let Start::Seed = start {
            quieten(&params, config);
        }
        let optimizer = Optimizer::new(params.iter(), StateDevice::Same, true)?;
        if let Start::Exported { exported, .. } = start {
            desk.adopt(PHASE, &optimizer, exported.vae_updates)?;
        }
        Ok(Self { recipe, net, params, optimizer })
    }

    /// Trains to the end.
    pub fn train(&mut self, desk: &Desk) -> Result<()> {
        let Self { recipe, net, optimizer, .. } = self;
        desk.train(PHASE, &recipe.vae.updates, optimizer, |step| {
            let scenes = batch(recipe, step);
            let images = pictures(&scenes);
            reseed(recipe.seed, Stream::Vae, step);
            let posterior = net.encode(&images);
            let latents = posterior.sample(&posterior.mean.randn_like());
            Ok(loss(&recipe.vae, &images, &net.decode(&latents), &posterior))
        })
    }

    /// The network as it is exported, with the mean of its weights.
    pub fn finish(mut self, desk: &Desk) -> Result<(AutoencoderKl, Params, u64)> {
        let updates = desk.restore(PHASE, &mut self.optimizer)?;
        average(&self.params, &self.optimizer);
        Ok((self.net, self.params, updates))
    }
}

/// The decoder with an optimizer of its own.
pub struct DecoderPhase<'a> {
    recipe: &'a PretrainRecipe,
    net: AutoencoderKl,
    params: Params,
    decoder: Params,
    optimizer: Optimizer,
}

impl<'a> DecoderPhase<'a> {
    /// The decoder of a finished autoencoder.
    pub fn new(
        recipe: &'a PretrainRecipe,
        net: AutoencoderKl,
        params: Params,
        start: &Start,
        desk: &Desk,
    ) -> Result<Self> {
        params.set_requires_grad(false);
        let mut decoder = Params::default();
        for (name, tensor) in params.iter().filter(|(name, _)| is_of_decoder(name)) {
            decoder.push(name.to_owned(), tensor.shallow_clone());
        }
        let optimizer = Optimizer::new(decoder.iter(), StateDevice::Same, true)?;
        if let Start::Exported { exported, .. } = start {
            desk.adopt(DECODER_PHASE, &optimizer, exported.decoder_updates)?;
        }
        Ok(Self { recipe, net, params, decoder, optimizer })
    }

    /// Trains to the end.
    pub fn train(&mut self, desk: &Desk) -> Result<()> {
        let Self { recipe, net, optimizer, .. } = self;
        let whole = View::whole(recipe.resolution, recipe.resolution);
        desk.train(DECODER_PHASE, &recipe.decoder.updates, optimizer, |step| {
            let rng = &mut item_rng(recipe.seed, Stream::Decoder as u64, step);
            let scenes: Vec<_> = (0..recipe.decoder.batch).map(|_| (Scene::draw(Split::Shown, rng), whole)).collect();
            let images = pictures(&scenes);
            reseed(recipe.seed, Stream::Decoder, step);
            let posterior = tch::no_grad(|| net.encode(&images));
            let latents = posterior.sample(&posterior.mean.randn_like());
            Ok(reconstruction(&recipe.vae, &images, &net.decode(&latents)))
        })
    }

    /// The whole autoencoder's weights, the decoder's with their mean.
    pub fn finish(mut self, desk: &Desk) -> Result<(Params, u64)> {
        let updates = desk.restore(DECODER_PHASE, &mut self.optimizer)?;
        average(&self.decoder, &self.optimizer);
        Ok((self.params, updates))
    }
}

fn is_of_decoder(name: &str) -> bool {
    name.starts_with("decoder.") || name.starts_with("post_quant_conv.")
}

/// Starts the posterior's variance small: with its fresh value of one, the noise drowns the latents for hundreds of
/// updates before anything is learnt.
fn quieten(params: &Params, config: &VaeConfig) {
    const LOG_VARIANCE: f64 = -6.0;
    let _no_grad = tch::no_grad_guard();
    let bias = params.get("quant_conv.bias").or_else(|| params.get("encoder.conv_out.bias"));
    let bias = bias.expect("one of the two ends every encoder");
    let _bias = bias.narrow(0, config.latent_channels, config.latent_channels).fill_(LOG_VARIANCE);
}

/// The scenes of one update, with what is seen of each.
fn batch(recipe: &PretrainRecipe, step: u64) -> Vec<(Scene, View)> {
    let rng = &mut item_rng(recipe.seed, Stream::Vae as u64, step);
    let side = recipe.resolution;
    if step + recipe.vae.whole_steps >= recipe.vae.updates.steps {
        let whole = View::whole(side, side);
        return (0..recipe.vae.whole_batch).map(|_| (Scene::draw(Split::Shown, rng), whole)).collect();
    }
    let window = recipe.vae.window;
    (0..recipe.vae.windows)
        .map(|_| {
            let scene = Scene::draw(Split::Shown, rng);
            let (left, top) = (rng.random_range(0..=side - window), rng.random_range(0..=side - window));
            (scene, View::window(side, left, top, window))
        })
        .collect()
}

/// The errors of the pixels and the divergence of the posterior from the unit normal distribution.
fn loss(recipe: &VaeRecipe, images: &Tensor, decoded: &Tensor, posterior: &Posterior) -> Tensor {
    let Posterior { mean, logvar } = posterior;
    let divergence: Tensor = (mean.square() + logvar.exp() - 1.0 - logvar) * 0.5;
    reconstruction(recipe, images, decoded) + divergence.mean(Kind::Float) * recipe.kl_weight
}

/// Absolute and squared differences of the pixels and absolute differences of their slopes. The squares bring colours
/// early, the slopes sharpen edges.
fn reconstruction(recipe: &VaeRecipe, images: &Tensor, decoded: &Tensor) -> Tensor {
    let error = decoded - images;
    let size = error.size()[2];
    let slope = |axis| (error.narrow(axis, 1, size - 1) - error.narrow(axis, 0, size - 1)).abs().mean(Kind::Float);
    error.abs().mean(Kind::Float)
        + error.square().mean(Kind::Float) * recipe.squares_weight
        + (slope(2) + slope(3)) * recipe.slopes_weight
}
