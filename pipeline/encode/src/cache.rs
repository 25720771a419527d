//! The latent cache: what a training step reads in place of an image and its caption.
//!
//! A sample is `KEY.latent.npy` (float16, `[channels, h, w]`, scaled as a diffusion model sees it),
//! `KEY.prompt_embeds.npy` (float16, `[tokens, width]`), `KEY.pooled_prompt_embeds.npy` (float16, `[width]`) and
//! `KEY.json` ([`Conditioning`]).

use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};
use shards::npy::{Npy, NpyData, to_npy_f16};
use shards::{ContentHash, Index, Sample};

use crate::{Error, Result};

/// The folder of a run that holds the cache.
pub const LATENTS: &str = "latents";
/// `format` in the index.
pub const FORMAT: &str = "stepdown-latents";
/// `version` in the index.
pub const VERSION: u32 = 1;

const LATENT: &str = "latent.npy";
const PROMPT_EMBEDS: &str = "prompt_embeds.npy";
const POOLED_PROMPT_EMBEDS: &str = "pooled_prompt_embeds.npy";
const CONDITIONING: &str = "json";

/// The folder beside the shards that holds what an empty prompt becomes, as two arrays named like a sample's.
const UNCONDITIONAL: &str = "unconditional";

/// The index of a latent cache.
pub type LatentIndex = Index<LatentTotals>;

/// What the index counts: curated samples = encoded + refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentTotals {
    /// Samples in the shards.
    pub encoded: u64,
    /// Captions whose end did not fit into the encoders' sequence.
    pub truncated_captions: u64,
    /// Samples that are not in the shards, each with its reason.
    pub refused: Vec<Refusal>,
}

/// A sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The sample.
    pub key: String,
    /// The kind of fault.
    pub reason: RefusalReason,
    /// What was found.
    pub detail: String,
}

/// Why a sample was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// It has no image, or no caption in UTF-8.
    Incomplete,
    /// Its image cannot be decoded.
    Undecodable,
    /// A latent or an embedding is not finite, or beyond float16.
    NotFinite,
}

impl LatentTotals {
    /// Adds another part's counts.
    pub fn add(&mut self, other: LatentTotals) {
        self.encoded += other.encoded;
        self.truncated_captions += other.truncated_captions;
        self.refused.extend(other.refused);
    }
}

/// What SDXL is told of an image beside its caption, and where the image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditioning {
    /// Height and width of the image before it was resized.
    pub original_size: (u32, u32),
    /// Top and left of the crop, in pixels of the resized image.
    pub crop_top_left: (u32, u32),
    /// Height and width of the crop.
    pub target_size: (u32, u32),
    /// The caption as it was encoded.
    pub caption: String,
    /// The hash of the image file.
    pub sha256: ContentHash,
}

impl Conditioning {
    /// SDXL's six time ids: original height and width, crop top and left, target height and width.
    pub fn time_ids(&self) -> [f32; 6] {
        let [(a, b), (c, d), (e, f)] = [self.original_size, self.crop_top_left, self.target_size];
        [a, b, c, d, e, f].map(|size| size as f32)
    }
}

/// A dense array of float16.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The elements.
    pub values: Vec<f16>,
}

impl Array {
    fn to_npy(&self) -> Result<Vec<u8>> {
        Ok(to_npy_f16(&self.shape, &self.values)?)
    }

    fn from_npy(bytes: &[u8], dimensions: usize) -> shards::Result<Self> {
        let Npy { shape, data } = Npy::parse(bytes)?;
        match data {
            NpyData::F16(values) if shape.len() == dimensions => Ok(Self { shape, values }),
            NpyData::F16(_) => {
                Err(shards::Error::Array(format!("has the shape {shape:?}, expected {dimensions} dimensions")))
            }
            NpyData::F32(_) => Err(shards::Error::Array("elements are f4, expected f2".into())),
        }
    }
}

/// One encoded image with its caption.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentSample {
    /// The curated sample's key.
    pub key: String,
    /// `[channels, h, w]`
    pub latent: Array,
    /// `[tokens, width]`
    pub prompt_embeds: Array,
    /// `[width]`
    pub pooled_prompt_embeds: Array,
    /// Sizes, caption and source.
    pub conditioning: Conditioning,
}

impl LatentSample {
    /// As it lies in a shard.
    pub fn to_sample(&self) -> Result<Sample> {
        let json = serde_json::to_vec(&self.conditioning).expect("strings and numbers have a JSON form");
        Ok(Sample::new(&self.key)
            .with(LATENT, self.latent.to_npy()?)
            .with(PROMPT_EMBEDS, self.prompt_embeds.to_npy()?)
            .with(POOLED_PROMPT_EMBEDS, self.pooled_prompt_embeds.to_npy()?)
            .with(CONDITIONING, json))
    }

    /// Reads it back; an error names the sample and the part.
    pub fn from_sample(sample: &Sample) -> Result<Self> {
        let wrong = |part: &'static str, reason: String| Error::Sample { key: sample.key.clone(), part, reason };
        let array = |part: &'static str, dimensions: usize| {
            Array::from_npy(sample.require(part)?, dimensions).map_err(|error| wrong(part, error.to_string()))
        };
        Ok(Self {
            key: sample.key.clone(),
            latent: array(LATENT, 3)?,
            prompt_embeds: array(PROMPT_EMBEDS, 2)?,
            pooled_prompt_embeds: array(POOLED_PROMPT_EMBEDS, 1)?,
            conditioning: serde_json::from_slice(sample.require(CONDITIONING)?)
                .map_err(|error| wrong(CONDITIONING, error.to_string()))?,
        })
    }
}

/// What the base model's pipeline puts in place of an empty prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Unconditional {
    /// `[tokens, width]`
    pub prompt_embeds: Array,
    /// `[width]`
    pub pooled_prompt_embeds: Array,
}

impl Unconditional {
    /// Publishes it in the cache's folder.
    pub fn publish(&self, latents: &Path) -> Result<()> {
        let folder = latents.join(UNCONDITIONAL);
        shards::atomic::write_atomic(folder.join(PROMPT_EMBEDS), &self.prompt_embeds.to_npy()?)?;
        shards::atomic::write_atomic(folder.join(POOLED_PROMPT_EMBEDS), &self.pooled_prompt_embeds.to_npy()?)?;
        Ok(())
    }

    /// Reads it from the cache's folder.
    pub fn load(latents: &Path) -> Result<Self> {
        let read = |name: &str, dimensions: usize| {
            let path = latents.join(UNCONDITIONAL).join(name);
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            Array::from_npy(&bytes, dimensions).map_err(|error| Error::invalid(&path, error.to_string()))
        };
        Ok(Self { prompt_embeds: read(PROMPT_EMBEDS, 2)?, pooled_prompt_embeds: read(POOLED_PROMPT_EMBEDS, 1)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize]) -> Array {
        let count = shape.iter().product();
        Array { shape: shape.to_vec(), values: (0..count).map(|i| f16::from_f32(i as f32)).collect() }
    }

    fn sample() -> LatentSample {
        LatentSample {
            key: "s00-000000001".into(),
            latent: array(&[4, 2, 3]),
            prompt_embeds: array(&[7, 5]),
            pooled_prompt_embeds: array(&[5]),
            conditioning: Conditioning {
                original_size: (1024, 1536),
                crop_top_left: (0, 8),
                target_size: (16, 24),
                caption: "a \"red\" cube".into(),
                sha256: ContentHash::of(b"image"),
            },
        }
    }

    #[test]
    fn a_sample_survives_its_shard_form() {
        let sample = sample();
        assert_eq!(LatentSample::from_sample(&sample.to_sample().unwrap()).unwrap(), sample);
        assert_eq!(sample.conditioning.time_ids(), [1024.0, 1536.0, 0.0, 8.0, 16.0, 24.0]);
    }

    #[test]
    fn a_bad_part_is_named_with_its_sample() {
        let good = sample().to_sample().unwrap();
        for (ext, bytes) in [
            (LATENT, array(&[4]).to_npy().unwrap()),
            (PROMPT_EMBEDS, b"not an array".to_vec()),
            (CONDITIONING, b"{}".to_vec()),
        ] {
            let mut bad = good.clone();
            bad.parts.iter_mut().find(|part| part.ext == ext).unwrap().bytes = bytes.into();
            let message = LatentSample::from_sample(&bad).unwrap_err().to_string();
            assert!(message.contains("s00-000000001") && message.contains(ext), "{message}");
            let mut without = good.clone();
            without.parts.retain(|part| part.ext != ext);
            let message = LatentSample::from_sample(&without).unwrap_err().to_string();
            assert!(message.contains("s00-000000001") && message.contains(ext), "{message}");
        }
    }

    #[test]
    fn the_unconditional_embeddings_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let empty = Unconditional { prompt_embeds: array(&[7, 5]), pooled_prompt_embeds: array(&[5]) };
        empty.publish(folder.path()).unwrap();
        assert_eq!(Unconditional::load(folder.path()).unwrap(), empty);
    }
}
