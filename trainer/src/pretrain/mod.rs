//! How the demo's base model is made: an autoencoder, text encoders and a UNet, trained from nothing on scenes that
//! are drawn as they are needed.
//!
//! ```text
//! probe  scenes                                 -> the classifier that judges
//! vae    windows of scenes                      -> autoencoder
//! pool   scenes -> autoencoder                  -> latents of variance one
//! text   captions -> the probe's questions      -> text encoders
//! unet   latents and captions                   -> UNet and text encoders
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

use std::path::Path;

use encode::VaeConfig;
use nn::Params;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use self::denoiser::Denoiser;
use self::latents::{Pool, scaling_factor};
use self::probe::train_probe;
use self::text::TextEncoders;
use self::vae::VaePhase;
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
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Train what is left of the model and export it.
    Model,
    /// Export the model's checkpoints as they are.
    ExportCheckpoints,
}

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Exported {
    /// Updates of the autoencoder.
    pub vae_updates: u64,
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

/// Pretrains the model of `recipe`, which lies in the folder `manifest`.
pub fn pretrain_model(recipe: &PretrainRecipe, manifest: &Path, desk: &Desk, goal: Goal) -> Result<Exported> {
    let train = goal == Goal::Model;
    let model = &manifest.join(&recipe.model);

    // The factor is a result and comes into the configuration at the end.
    let vae_config = VaeConfig { scaling_factor: 1.0, ..VaeConfig::read(&model.join("vae"))? };
    let mut vae = VaePhase::new(recipe, &vae_config)?;
    if train {
        desk.pin("vae", &json!({ "seed": recipe.seed, "resolution": recipe.resolution, "config": vae_config }))?;
        vae.train(desk)?;
    }
    let (vae, vae_params, vae_updates) = vae.finish(desk)?;
    let scaling_factor = scaling_factor(recipe, &vae);

    let text = TextEncoders::new(model, recipe.seed)?;
    if train {
        desk.pin("text", &json!({ "seed": recipe.seed }))?;
        text.train(recipe, desk)?;
    }
    let mut denoiser = Denoiser::new(recipe, model, text)?;
    if train {
        desk.pin("unet", &json!({ "seed": recipe.seed, "latents": recipe.latents, "vae_updates": vae_updates }))?;
        denoiser.train(desk, &Pool::open(desk, recipe, &vae, vae_updates, scaling_factor)?)?;
    }
    let (unet_params, text, unet_updates) = denoiser.finish(desk)?;

    save_as(Kind::Half, &vae_params, &model.join("vae/diffusion_pytorch_model.safetensors"))?;
    // transformers opens a network in the dtype of its file, diffusers in FP32 unless it is told otherwise: small as they
    // are, these two stay FP32, so that a pipeline opened without a dtype is of one.
    save_as(Kind::Float, &text.params, &model.join("text_encoder/model.safetensors"))?;
    save_as(Kind::Float, &text.params_2, &model.join("text_encoder_2/model.safetensors"))?;
    save_as(Kind::Half, &unet_params, &model.join("unet/diffusion_pytorch_model.safetensors"))?;
    set_scaling_factor(&model.join("vae/config.json"), scaling_factor)?;
    Ok(Exported { vae_updates, unet_updates, scaling_factor })
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
