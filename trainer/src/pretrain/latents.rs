//! The pool of latents that the UNet learns from: scenes encoded once, captions phrased anew each time.

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

const BATCH: u64 = 64;
const LATENTS: &str = "latents";

/// Latents of variance one, and the factor that made them so.
pub struct Pool {
    /// `[scenes, 4, h, w]`
    pub latents: Tensor,
    /// What the autoencoder's latents are multiplied by.
    pub scaling_factor: f64,
}

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
    pub fn open(desk: &Desk, recipe: &PretrainRecipe, vae: &AutoencoderKl, vae_updates: u64) -> Result<Self> {
        let (file, origin_file) = (desk.path("latents.safetensors"), desk.path("latents.json"));
        let count = recipe.latents.count;
        let origin = Origin { seed: recipe.seed, count, resolution: recipe.resolution, vae_updates };
        let made_of = origin_file.exists().then(|| shards::atomic::read_json(&origin_file)).transpose()?;
        if made_of.as_ref() != Some(&origin) || !file.exists() {
            encode(desk, recipe, vae, &file)?;
            shards::atomic::write_json(&origin_file, &origin)?;
        }
        let latents = Weights::open(&file)?.tensor(LATENTS)?;
        let scaling_factor = 1.0 / latents.std(false).double_value(&[]);
        Ok(Self { latents: latents * scaling_factor, scaling_factor })
    }
}

fn encode(desk: &Desk, recipe: &PretrainRecipe, vae: &AutoencoderKl, file: &Path) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let view = View::whole(recipe.resolution, recipe.resolution);
    let mut latents = Vec::new();
    for start in (0..recipe.latents.count).step_by(BATCH as usize) {
        desk.check_interrupt(0)?;
        let end = recipe.latents.count.min(start + BATCH);
        let scenes: Vec<_> = (start..end).map(|item| (pool_scene(recipe.seed, item), view)).collect();
        latents.push(vae.encode(&pictures(&scenes)).mean.to_kind(Kind::Half));
    }
    let latents = Tensor::cat(&latents, 0);
    tracing::info!("encoded {} scenes", recipe.latents.count);
    Ok(nn::save(file, [(LATENTS, &latents)], &[])?)
}

/// The scene of a pool's item.
pub fn pool_scene(seed: u64, item: u64) -> Scene {
    Scene::draw(Split::Shown, &mut item_rng(seed, Stream::Pool as u64, item))
}
