//! Prepared images and captions to latents and embeddings.

use std::collections::BTreeMap;

use half::f16;
use nn::Init;
use tch::{Device, Kind, Tensor};

use crate::cache::{Array, Conditioning, LatentSample, Refusal, RefusalReason, Unconditional};
use crate::manifest::{EncodeRecipe, LatentRule, ModelManifest};
use crate::prompt::zeros_for_empty_prompt;
use crate::{AutoencoderKl, Error, MemoryUse, Result, TextEncoders, TokenizedCaption, Tokenizers, VaeConfig};

/// Images with a longer side go through the VAE one at a time: at 1024 px one alone fills a GPU, and its activations
/// take gigabytes.
const SLICED_ABOVE: u32 = 512;

/// A sample that is ready for the device.
pub struct Prepared {
    /// The curated sample's key.
    pub key: String,
    /// The crop, at the resolution of training.
    pub image: pixels::Image,
    /// The caption's token ids.
    pub caption: TokenizedCaption,
    /// Sizes, caption and source.
    pub conditioning: Conditioning,
}

/// The networks that make a latent cache, on one device.
pub struct Encoder {
    vae: AutoencoderKl,
    text: TextEncoders,
    recipe: EncodeRecipe,
    device: Device,
}

impl Encoder {
    /// Loads the networks that a manifest names.
    ///
    /// A VAE that overflows in float16 (`force_upcast`) computes in float32 where the manifest says `f16`, as
    /// diffusers' pipelines do.
    pub fn open(manifest: &ModelManifest, device: Device) -> Result<Self> {
        let kind = manifest.dtype.kind();
        let folder = manifest.base.join("vae");
        let config = VaeConfig::read(&folder)?;
        config.check_rgb().map_err(|error| Error::invalid(folder.join("config.json"), error.to_string()))?;
        let (resolution, factor) = (manifest.resolution, config.factor());
        if i64::from(resolution) % factor != 0 {
            let reason = format!("its levels divide sides by {factor}, resolution {resolution} is no multiple of that");
            return Err(Error::invalid(folder.join("config.json"), reason));
        }
        let upcast = kind == Kind::Half && config.force_upcast;
        let mut vae = AutoencoderKl::open(&folder, if upcast { Kind::Float } else { kind }, device)?;
        vae.memory = MemoryUse { slicing: manifest.resolution > SLICED_ABOVE, tiling: false };
        let text = TextEncoders::open(&manifest.base, kind, device)?;
        Ok(Self { vae, text, recipe: manifest.encode.clone(), device })
    }

    /// Encodes samples, at most `encode.batch` of one size at once; the results are in the samples' order.
    pub fn encode(&self, samples: Vec<Prepared>) -> Vec<std::result::Result<LatentSample, Refusal>> {
        let mut by_size: BTreeMap<(u32, u32), Vec<(usize, Prepared)>> = BTreeMap::new();
        for (place, sample) in samples.into_iter().enumerate() {
            by_size.entry(sample.conditioning.target_size).or_default().push((place, sample));
        }
        let mut results = Vec::new();
        for same_size in by_size.into_values() {
            let mut rest = same_size.into_iter().peekable();
            while rest.peek().is_some() {
                let (places, batch): (Vec<usize>, Vec<Prepared>) = rest.by_ref().take(self.recipe.batch).unzip();
                results.extend(places.into_iter().zip(self.encode_batch(batch)));
            }
        }
        results.sort_by_key(|&(place, _)| place);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn encode_batch(&self, batch: Vec<Prepared>) -> Vec<std::result::Result<LatentSample, Refusal>> {
        let _guard = tch::no_grad_guard();
        let latents = to_arrays(&self.latents(&batch));
        let captions: Vec<TokenizedCaption> = batch.iter().map(|sample| sample.caption.clone()).collect();
        let text = self.text.encode(&captions);
        let prompts = to_arrays(&text.prompt_embeds);
        let pooled = to_arrays(&text.pooled_prompt_embeds);
        batch
            .into_iter()
            .zip(latents)
            .zip(prompts.into_iter().zip(pooled))
            .map(|((sample, latent), (prompt_embeds, pooled_prompt_embeds))| {
                let encoded = LatentSample {
                    key: sample.key,
                    latent,
                    prompt_embeds,
                    pooled_prompt_embeds,
                    conditioning: sample.conditioning,
                };
                check_finite(encoded)
            })
            .collect()
    }

    /// Scaled latents `[B, channels, h, w]` in float32.
    fn latents(&self, batch: &[Prepared]) -> Tensor {
        let images: Vec<Tensor> = batch.iter().map(|sample| to_tensor(&sample.image)).collect();
        let images = from_bytes(&Tensor::stack(&images, 0).to_device(self.device)).to_kind(self.vae.kind());
        let posterior = self.vae.encode(&images);
        let latents = match self.recipe.latents {
            LatentRule::Mean => posterior.mean,
            LatentRule::Sample => {
                let shape = &posterior.mean.size()[1..];
                let normal = Init::Normal { std: 1.0 };
                let noise: Vec<Tensor> =
                    batch.iter().map(|sample| normal.draw(self.recipe.seed, &sample.key, shape)).collect();
                posterior.sample(&Tensor::stack(&noise, 0).to_device(self.device).to_kind(self.vae.kind()))
            }
        };
        self.vae.scale(&latents.to_kind(Kind::Float))
    }

    /// What the base model's pipeline puts in place of an empty prompt.
    pub fn unconditional(&self, manifest: &ModelManifest, tokenizers: &Tokenizers) -> Result<Unconditional> {
        let _guard = tch::no_grad_guard();
        let mut text = self.text.encode(&[tokenizers.encode("")?]);
        if zeros_for_empty_prompt(&manifest.base)? {
            text = text.zeros_like();
        }
        let only = |batch: &Tensor| to_arrays(batch).swap_remove(0);
        Ok(Unconditional {
            prompt_embeds: only(&text.prompt_embeds),
            pooled_prompt_embeds: only(&text.pooled_prompt_embeds),
        })
    }

    /// Decodes a scaled latent to an image.
    pub fn decode(&self, latent: &Array) -> pixels::Image {
        let _guard = tch::no_grad_guard();
        let shape: Vec<i64> = latent.shape.iter().map(|&side| side as i64).collect();
        let values: Vec<f32> = latent.values.iter().map(|value| value.to_f32()).collect();
        let scaled = Tensor::from_slice(&values).reshape(shape).unsqueeze(0).to_device(self.device);
        let decoded = self.vae.decode(&self.vae.unscale(&scaled).to_kind(self.vae.kind()));
        let bytes = ((decoded.to_kind(Kind::Float) + 1.0) * 127.5).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
        let (height, width) = (bytes.size()[2], bytes.size()[3]);
        let interleaved = bytes.squeeze_dim(0).permute([1, 2, 0]).contiguous().flatten(0, -1).to_device(Device::Cpu);
        let rgb = Vec::try_from(&interleaved).expect("a flat tensor of bytes on the CPU");
        pixels::Image::new(width as u32, height as u32, rgb)
    }
}

/// `[3, height, width]`, bytes.
fn to_tensor(image: &pixels::Image) -> Tensor {
    let shape = [i64::from(image.height()), i64::from(image.width()), 3];
    Tensor::from_slice(image.rgb()).reshape(shape).permute([2, 0, 1])
}

/// Bytes to [-1, 1], in float32.
fn from_bytes(images: &Tensor) -> Tensor {
    images.to_kind(Kind::Float) / 127.5 - 1.0
}

/// The rows of a batch in float16.
fn to_arrays(batch: &Tensor) -> Vec<Array> {
    let shape: Vec<usize> = batch.size()[1..].iter().map(|&side| side as usize).collect();
    let batch = batch.to_kind(Kind::Half).to_device(Device::Cpu).contiguous();
    (0..batch.size()[0])
        .map(|row| {
            let mut values = vec![f16::ZERO; shape.iter().product()];
            let count = values.len();
            batch.get(row).copy_data(&mut values, count);
            Array { shape: shape.clone(), values }
        })
        .collect()
}

fn check_finite(sample: LatentSample) -> std::result::Result<LatentSample, Refusal> {
    let parts = [
        ("latent", &sample.latent),
        ("prompt_embeds", &sample.prompt_embeds),
        ("pooled_prompt_embeds", &sample.pooled_prompt_embeds),
    ];
    for (name, array) in parts {
        let bad = array.values.iter().filter(|value| !value.is_finite()).count();
        if bad > 0 {
            let detail = format!("{bad} of {} values of {name} are not finite in float16", array.values.len());
            return Err(Refusal { key: sample.key, reason: RefusalReason::NotFinite, detail });
        }
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use shards::ContentHash;

    use super::*;

    #[test]
    fn values_that_float16_cannot_hold_are_refused_by_name() {
        let array = |values: &[f32]| Array {
            shape: vec![values.len()],
            values: values.iter().map(|&value| f16::from_f32(value)).collect(),
        };
        let sample = |latent: f32, pooled: f32| LatentSample {
            key: "s00-000000007".into(),
            latent: array(&[0.5, latent]),
            prompt_embeds: array(&[1.0]),
            pooled_prompt_embeds: array(&[pooled]),
            conditioning: Conditioning {
                original_size: (1, 1),
                crop_top_left: (0, 0),
                target_size: (1, 1),
                caption: String::new(),
                sha256: ContentHash::of(b""),
            },
        };
        assert!(check_finite(sample(65504.0, -65504.0)).is_ok());
        for (bad, part) in [(sample(f32::NAN, 0.0), "latent"), (sample(0.0, 70000.0), "pooled_prompt_embeds")] {
            let refusal = check_finite(bad).unwrap_err();
            assert_eq!((refusal.key.as_str(), refusal.reason), ("s00-000000007", RefusalReason::NotFinite));
            assert!(refusal.detail.contains(part), "{}", refusal.detail);
        }
    }
}
