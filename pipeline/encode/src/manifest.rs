//! `model.toml`: which model a data set is encoded with, and how.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::{Error, Result, model_folder};

/// The file's name in a manifest folder.
pub const MODEL_TOML: &str = "model.toml";
/// Stands for the run's folder in paths.
const RUN: &str = "{run}";

/// A checked `model.toml` with its paths resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelManifest {
    /// The base model's folder, in diffusers' layout.
    pub base: PathBuf,
    /// The side of the square images, in pixels; buckets have their area.
    pub resolution: u32,
    /// What the networks compute in.
    pub dtype: Dtype,
    /// How images become latents.
    pub encode: EncodeRecipe,
}

/// What a network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// float32
    F32,
    /// bfloat16
    Bf16,
    /// float16
    F16,
}

impl Dtype {
    /// torch's name for it.
    pub fn kind(self) -> Kind {
        match self {
            Dtype::F32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
        }
    }
}

/// The table `[encode]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncodeRecipe {
    /// The shape of what is encoded.
    pub shape: Shape,
    /// Which part of an image that has another shape is kept.
    pub crop: Crop,
    /// Which latent stands for an image.
    pub latents: LatentRule,
    /// The seed of random crops and sampled latents. Each is a function of this seed and of the sample's key.
    pub seed: u64,
    /// Images in one pass of the networks.
    pub batch: usize,
}

/// The shape of what is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Squares of the resolution.
    Square,
    /// For each image the nearest of a few rectangles with the square's area at most.
    Buckets,
}

/// Which part of an image that has another shape is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The middle.
    Center,
    /// Anywhere along the longer side, as the sample's key has it.
    Random,
}

/// Which latent stands for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentRule {
    /// A draw from the encoder's distribution, as SDXL's trainers take it; the noise is seeded by the sample's key.
    Sample,
    /// The distribution's mean.
    Mean,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    base: String,
    resolution: u32,
    dtype: Dtype,
    encode: EncodeRecipe,
}

impl ModelManifest {
    /// Reads `MANIFEST/model.toml`. Relative paths start in the manifest's folder; `{run}` stands for the run's. A base
    /// model that is named by `hf:` is fetched where the user's cache lacks it.
    pub fn read(manifest: &Path, run: &Path) -> Result<Self> {
        let path = manifest.join(MODEL_TOML);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let document: Document =
            toml::from_str(&text).map_err(|error| Error::invalid(&path, error.to_string().trim_end()))?;
        let wrong = |reason: String| Err(Error::invalid(&path, reason));
        let Document { base, resolution, dtype, encode } = document;
        if resolution == 0 || resolution % 8 != 0 || resolution > 1 << 14 {
            return wrong(format!("resolution {resolution}: expected a multiple of 8 up to 16384"));
        }
        if !(1..=1024).contains(&encode.batch) {
            return wrong(format!("encode.batch {}: expected 1 to 1024", encode.batch));
        }
        let base = model_folder(&base.replace(RUN, &run.to_string_lossy()), manifest).map_err(|error| match error {
            Error::Hub(error @ hub::Error::Name { .. }) => Error::invalid(&path, format!("base: {error}")),
            other => other,
        })?;
        if !base.is_dir() {
            return wrong(format!("base: there is no folder {}", base.display()));
        }
        Ok(Self { base, resolution, dtype, encode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelManifest> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        std::fs::write(folder.path().join(MODEL_TOML), text).unwrap();
        ModelManifest::read(folder.path(), Path::new("runs/x"))
    }

    const GOOD: &str = "base = 'model'\nresolution = 128\ndtype = 'f32'\n\
        [encode]\nshape = 'square'\ncrop = 'center'\nlatents = 'sample'\nseed = 0\nbatch = 4\n";

    #[test]
    fn a_good_one_is_read() {
        let manifest = read(GOOD).unwrap();
        assert_eq!((manifest.resolution, manifest.dtype), (128, Dtype::F32));
        assert!(manifest.base.ends_with("model"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (old, new, named) in [
            ("seed = 0", "seed = 0\nsurplus = 1", "surplus"),
            ("dtype = 'f32'", "dtype = 'f33'", "f33"),
            ("dtype = 'f32'\n", "", "dtype"),
            ("resolution = 128", "resolution = 100", "resolution 100"),
            ("batch = 4", "batch = 0", "encode.batch 0"),
            ("'model'", "'absent'", "absent"),
            ("'model'", "'hf:no-owner'", "hf:no-owner"),
            ("'center'", "'left'", "left"),
            ("'square'", "'round'", "round"),
        ] {
            let message = read(&GOOD.replace(old, new)).unwrap_err().to_string();
            assert!(message.contains("model.toml") && message.contains(named), "{named}: {message}");
        }
    }
}
