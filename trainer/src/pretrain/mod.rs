//! How the demo's base model is made: an autoencoder, text encoders and a UNet, trained from nothing on scenes that
//! are drawn as they are needed.
//!
//! ```text
//! probe  scenes                                 -> the classifier that judges
//! vae    windows of scenes                      -> autoencoder
//! pool   scenes -> autoencoder                  -> latents of variance one
//! text   captions -> the probe's questions      -> text encoders
//! unet   latents and captions                   -> UNet and text encoders
//! decoder  scenes -> encoder, as it is          -> the autoencoder's decoder, sharper
//! export running means of all weights, in fp16  -> the model's folder
//! ```
//!
//! Each phase goes on from its last checkpoint, and gives the same weights whether it was interrupted or not.

mod denoiser;
mod desk;
mod latents;
mod pictures;
mod probe;
mod recipe;
mod text;
mod vae;

pub use desk::Desk;
pub use pictures::pictures;
pub use recipe::PretrainRecipe;

use std::path::{Path, PathBuf};

use encode::VaeConfig;
use nn::{Params, Weights};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use self::denoiser::Denoiser;
use self::latents::{Pool, scaling_factor};
use self::probe::train_probe;
use self::text::TextEncoders;
use self::vae::{DecoderPhase, VaePhase};
use crate::Result;
use crate::optimizer::Optimizer;
use crate::probe::questions::Accuracy;

/// Streams of random numbers that never meet.
#[derive(Clone, Copy, Debug)]
enum Stream {
    Vae = 100,
    Pool,
    Text,
    Captions,
    UNet,
    Probe,
    Exam,
    Decoder,
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Train what is left of the model and export it.
    Model,
    /// Train what is left of one phase and export nothing. The UNet and the decoder can be trained side by side.
    Phase(Phase),
    /// Export the model's checkpoints as they are.
    ExportCheckpoints,
}

/// The phases of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Phase {
    /// The autoencoder.
    Vae,
    /// The text encoders by themselves.
    Text,
    /// The UNet with the text encoders.
    #[value(name = "unet")]
    UNet,
    /// The autoencoder's decoder by itself.
    Decoder,
}

/// Where a phase begins that has no checkpoint.
#[derive(Debug)]
pub enum Start {
    /// With fresh weights.
    Seed,
    /// With the weights in the model's folder.
    Exported {
        /// The model's folder.
        model: PathBuf,
        /// What its weights have seen.
        exported: Exported,
    },
}

impl Start {
    /// The weights that were exported to the folder of the recipe in `manifest`.
    pub fn exported(recipe: &PretrainRecipe, manifest: &Path) -> Result<Self> {
        let model = manifest.join(&recipe.model);
        let exported = shards::atomic::read_json(model.join(EXPORTED))?;
        Ok(Self::Exported { model, exported })
    }

    /// Weights of a network of the model.
    fn weights(&self, part: &str, stem: &str, seed: u64) -> Result<Weights> {
        match self {
            Self::Seed => Ok(Weights::seeded(seed)),
            Self::Exported { model, .. } => Ok(Weights::open_folder(&model.join(part), stem)?),
        }
    }
}

/// The file in the model's folder that says what its weights have seen.
const EXPORTED: &str = "pretrained.json";

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// Updates of the autoencoder.
    pub vae_updates: u64,
    /// Updates of its decoder by itself.
    pub decoder_updates: u64,
    /// Updates of the UNet.
    pub unet_updates: u64,
    /// What the autoencoder's latents are multiplied by.
    pub scaling_factor: f64,
}

/// Trains the probe of `recipe`, which lies in the folder `manifest`, and examines it on held-out scenes.
pub fn pretrain_probe(recipe: &PretrainRecipe, manifest: &Path, desk: &Desk) -> Result<Accuracy> {
    desk.pin("probe", &json!({ "seed": recipe.seed }))?;
    train_probe(recipe, desk, &manifest.join(&recipe.probe.file))
}

/// Pretrains the model of `recipe`, which lies in the folder `manifest`. Gives what was exported, if anything was.
pub fn pretrain_model(
    recipe: &PretrainRecipe,
    manifest: &Path,
    desk: &Desk,
    goal: Goal,
    start: &Start,
) -> Result<Option<Exported>> {
    let trains = |phase| match goal {
        Goal::Model => true,
        Goal::Phase(only) => only == phase,
        Goal::ExportCheckpoints => false,
    };
    let model = &manifest.join(&recipe.model);

    // The factor is a result and comes into the configuration at the end.
    let vae_config = VaeConfig { scaling_factor: 1.0, ..VaeConfig::read(&model.join("vae"))? };
    let mut vae = VaePhase::new(recipe, &vae_config, start, desk)?;
    if trains(Phase::Vae) {
        desk.pin("vae", &json!({ "seed": recipe.seed, "resolution": recipe.resolution, "config": vae_config }))?;
        vae.train(desk)?;
    }
    let (vae, vae_params, vae_updates) = vae.finish(desk)?;
    let scaling_factor = scaling_factor(recipe, &vae);

    let text = TextEncoders::new(model, recipe.seed, start)?;
    // What the UNet's phase has begun with goes on in its own checkpoint.
    let text_is_done = desk.has(denoiser::PHASE) || matches!(start, Start::Exported { .. });
    if trains(Phase::Text) && !text_is_done {
        desk.pin("text", &json!({ "seed": recipe.seed }))?;
        text.train(recipe, desk)?;
    }
    let mut denoiser = Denoiser::new(recipe, model, text, start, desk)?;
    if trains(Phase::UNet) {
        desk.pin("unet", &json!({ "seed": recipe.seed, "latents": recipe.latents, "vae_updates": vae_updates }))?;
        denoiser.train(desk, &Pool::open(desk, recipe, &vae, vae_updates, scaling_factor)?)?;
    }
    let (unet_params, text, unet_updates) = denoiser.finish(desk)?;

    let mut decoder = DecoderPhase::new(recipe, vae, vae_params, start, desk)?;
    if trains(Phase::Decoder) {
        desk.pin("decoder", &json!({ "seed": recipe.seed, "vae_updates": vae_updates }))?;
        decoder.train(desk)?;
    }
    let (vae_params, decoder_updates) = decoder.finish(desk)?;
    if let Goal::Phase(_) = goal {
        return Ok(None);
    }

    save_as(Kind::Half, &vae_params, &model.join("vae/diffusion_pytorch_model.safetensors"))?;
    // transformers opens a network in the dtype of its file, diffusers in FP32 unless it is told otherwise: small as they
    // are, these two stay FP32, so that a pipeline opened without a dtype is of one.
    save_as(Kind::Float, &text.params, &model.join("text_encoder/model.safetensors"))?;
    save_as(Kind::Float, &text.params_2, &model.join("text_encoder_2/model.safetensors"))?;
    save_as(Kind::Half, &unet_params, &model.join("unet/diffusion_pytorch_model.safetensors"))?;
    set_scaling_factor(&model.join("vae/config.json"), scaling_factor)?;
    let exported = Exported { vae_updates, decoder_updates, unet_updates, scaling_factor };
    shards::atomic::write_json(model.join(EXPORTED), &exported)?;
    Ok(Some(exported))
}

/// Writes the weights in the given dtype.
fn save_as(kind: Kind, params: &Params, path: &Path) -> Result<()> {
    let cast: Vec<(&str, Tensor)> = params.iter().map(|(name, tensor)| (name, tensor.to_kind(kind))).collect();
    Ok(nn::save(path, cast.iter().map(|(name, tensor)| (*name, tensor)), &[])?)
}

/// Changes one number of a configuration and nothing else.
fn set_scaling_factor(path: &Path, factor: f64) -> Result<()> {
    let mut config: Value = shards::atomic::read_json(path)?;
    config["scaling_factor"] = json!(factor);
    Ok(shards::atomic::write_json(path, &config)?)
}

/// Several networks' parameters under one roof, each name behind its network's.
fn joined<const N: usize>(parts: [(&str, &Params); N]) -> Params {
    let mut all = Params::default();
    for (part, params) in parts {
        for (name, tensor) in params.iter() {
            all.push(format!("{part}.{name}"), tensor.shallow_clone());
        }
    }
    all
}

/// Gives the networks the running means of their weights.
fn average(params: &Params, optimizer: &Optimizer) {
    let _no_grad = tch::no_grad_guard();
    for (name, mean) in optimizer.means().expect("pretraining keeps means") {
        let mut weight = params.get(&name).expect("the optimizer trains these parameters").shallow_clone();
        weight.copy_(&mean);
    }
}

/// Makes torch's next random numbers a function of seed, stream and step.
fn reseed(seed: u64, stream: Stream, step: u64) {
    let mixed = [seed, stream as u64, step]
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, word| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(29));
    tch::manual_seed(mixed as i64);
}
