//! The pool of latents that the UNet learns from: scenes encoded once, captions phrased anew each time.

use std::ops::Range;
use std::path::Path;

use demo_world::render::View;
use demo_world::scene::{Scene, Split, item_rng};
use encode::AutoencoderKl;
use nn::Weights;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Stream;
use super::desk::Desk;
use super::pictures::pictures;
use super::recipe::PretrainRecipe;
use crate::Result;

/// Scenes in one pass.
const BATCH: u64 = 64;
/// Scenes over which the variance is taken.
const SCALED: u64 = 4 * BATCH;
const LATENTS: &str = "latents";

/// Latents of variance one, `[scenes, 4, h, w]`.
pub struct Pool(pub Tensor);

/// What a pool was made of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    seed: u64,
    count: u64,
    resolution: u32,
    vae_updates: u64,
}

impl Pool {
    /// The pool on the desk, or a fresh one where there is none of this recipe and this autoencoder.
    /// `scaling_factor` is the autoencoder's.
    pub fn open(
        desk: &Desk,
        recipe: &PretrainRecipe,
        vae: &AutoencoderKl,
        vae_updates: u64,
        scaling_factor: f64,
    ) -> Result<Self> {
        let (file, origin_file) = (desk.path("latents.safetensors"), desk.path("latents.json"));
        let count = recipe.latents.count;
        let origin = Origin { seed: recipe.seed, count, resolution: recipe.resolution, vae_updates };
        let made_of = origin_file.exists().then(|| shards::atomic::read_json(&origin_file)).transpose()?;
        if made_of.as_ref() != Some(&origin) || !file.exists() {
            encode(desk, recipe, vae, &file)?;
            shards::atomic::write_json(&origin_file, &origin)?;
        }
        Ok(Self(Weights::open(&file)?.tensor(LATENTS)? * scaling_factor))
    }
}

/// What an autoencoder's latents are multiplied by to have variance one: over the first scenes of the pool.
pub fn scaling_factor(recipe: &PretrainRecipe, vae: &AutoencoderKl) -> f64 {
    let _no_grad = tch::no_grad_guard();
    let count = recipe.latents.count.min(SCALED);
    let latents: Vec<Tensor> = (0..count)
        .step_by(BATCH as usize)
        .map(|start| encode_scenes(recipe, vae, start..count.min(start + BATCH)))
        .collect();
    1.0 / Tensor::cat(&latents, 0).std(false).double_value(&[])
}

fn encode_scenes(recipe: &PretrainRecipe, vae: &AutoencoderKl, items: Range<u64>) -> Tensor {
    let view = View::whole(recipe.resolution, recipe.resolution);
    let scenes: Vec<_> = items.map(|item| (pool_scene(recipe.seed, item), view)).collect();
    vae.encode(&pictures(&scenes)).mean
}

fn encode(desk: &Desk, recipe: &PretrainRecipe, vae: &AutoencoderKl, file: &Path) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut latents = Vec::new();
    for start in (0..recipe.latents.count).step_by(BATCH as usize) {
        desk.check_interrupt(0)?;
        let end = recipe.latents.count.min(start + BATCH);
        latents.push(encode_scenes(recipe, vae, start..end).to_kind(Kind::Half));
    }
    let latents = Tensor::cat(&latents, 0);
    tracing::info!("encoded {} scenes", recipe.latents.count);
    Ok(nn::save(file, [(LATENTS, &latents)], &[])?)
}

/// The scene of a pool's item.
pub fn pool_scene(seed: u64, item: u64) -> Scene {
    Scene::draw(Split::Shown, &mut item_rng(seed, Stream::Pool as u64, item))
}
