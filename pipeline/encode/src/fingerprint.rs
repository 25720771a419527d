//! Everything that shapes a latent.

use std::path::Path;

use nn::Weights;
use serde::Serialize;
use shards::{ContentHash, Fingerprint};

use crate::manifest::{Dtype, EncodeRecipe, ModelManifest};
use crate::prompt::zeros_for_empty_prompt;
use crate::{Error, Result};

/// Goes up whenever the same inputs would become other latents.
const TRANSFORM_VERSION: u32 = 1;

/// The parts of [`model_fingerprint`], and `curated`.
pub fn fingerprint(manifest: &ModelManifest, curated_index: &Path) -> Result<Fingerprint> {
    Ok(model_fingerprint(manifest)?.with("curated", ContentHash::of_file(curated_index)?))
}

/// What a model and its recipe contribute, for those who read latents: `vae`, `text_encoder`, `text_encoder_2`,
/// `tokenizer`, `tokenizer_2`, `transform`.
pub fn model_fingerprint(manifest: &ModelManifest) -> Result<Fingerprint> {
    /// What is done to an image and a caption besides the networks.
    #[derive(Serialize)]
    struct Transform<'a> {
        version: u32,
        resolution: u32,
        dtype: Dtype,
        zeros_for_empty_prompt: bool,
        #[serde(flatten)]
        recipe: Shaping<'a>,
    }
    /// The recipe without its batch, which changes no value.
    #[derive(Serialize)]
    struct Shaping<'a> {
        shape: &'a crate::manifest::Shape,
        crop: &'a crate::manifest::Crop,
        latents: &'a crate::manifest::LatentRule,
        seed: u64,
    }
    let EncodeRecipe { shape, crop, latents, seed, batch: _ } = &manifest.encode;
    let transform = Transform {
        version: TRANSFORM_VERSION,
        resolution: manifest.resolution,
        dtype: manifest.dtype,
        zeros_for_empty_prompt: zeros_for_empty_prompt(&manifest.base)?,
        recipe: Shaping { shape, crop, latents, seed: *seed },
    };
    let transform = serde_json::to_vec(&transform).expect("numbers and names have a JSON form");
    Ok(surroundings_fingerprint(&manifest.base)?.with("transform", ContentHash::of(&transform)))
}

/// The parts of a model in diffusers' layout on either side of its UNet.
pub fn surroundings_fingerprint(model: &Path) -> Result<Fingerprint> {
    Ok(Fingerprint::new()
        .with("vae", network_hash(&model.join("vae"), "diffusion_pytorch_model")?)
        .with("text_encoder", network_hash(&model.join("text_encoder"), "model")?)
        .with("text_encoder_2", network_hash(&model.join("text_encoder_2"), "model")?)
        .with("tokenizer", tokenizer(&model.join("tokenizer"))?)
        .with("tokenizer_2", tokenizer(&model.join("tokenizer_2"))?))
}

/// One hash over a network's `config.json` and the files of weights that would be loaded.
pub fn network_hash(folder: &Path, stem: &str) -> Result<ContentHash> {
    let config = folder.join("config.json");
    let weights = Weights::open_folder(folder, stem)?;
    files(std::iter::once(config.as_path()).chain(weights.files().iter().map(|path| path.as_path())))
}

/// All files that a tokenizer may be read from.
fn tokenizer(folder: &Path) -> Result<ContentHash> {
    let names = [
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ];
    let present: Vec<_> = names.iter().map(|name| folder.join(name)).filter(|path| path.exists()).collect();
    if present.is_empty() {
        return Err(Error::invalid(folder, "there is no tokenizer here"));
    }
    files(present.iter().map(|path| path.as_path()))
}

/// One hash over names and contents.
fn files<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<ContentHash> {
    let mut all = Fingerprint::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        all = all.with(name, ContentHash::of_file(path)?);
    }
    Ok(all.digest())
}
