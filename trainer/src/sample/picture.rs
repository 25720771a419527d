//! Pixels, noise and latents in files.

use std::fmt;
use std::path::Path;

use pixels::{Filter, Limits};
use shards::npy::{Npy, to_npy_f32};
use tch::{Kind, Tensor};

use super::{LoraChoice, Size};
use crate::{Error, Result};

/// How a picture was made, kept in its file under the name that other tools look for.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The prompt.
    pub prompt: String,
    /// What was guided away from, if anything was said.
    pub negative_prompt: Option<String>,
    /// The number of steps.
    pub steps: usize,
    /// The weight of guidance; up to 1 there is none.
    pub guidance_scale: f64,
    /// The seed of the noise, if it was drawn.
    pub seed: Option<u64>,
    /// The image's size.
    pub size: Size,
    /// The sampler, as the model's folder names it.
    pub sampler: String,
    /// The model's folder.
    pub model: String,
    /// LoRA files applied.
    pub loras: Vec<LoraChoice>,
    /// The strength, where the picture started from another.
    pub strength: Option<f64>,
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if let Some(negative) = &self.negative_prompt {
            writeln!(f, "Negative prompt: {negative}")?;
        }
        write!(f, "Steps: {}, Sampler: {}, CFG scale: {}", self.steps, self.sampler, self.guidance_scale)?;
        if let Some(seed) = self.seed {
            write!(f, ", Seed: {seed}")?;
        }
        write!(f, ", Size: {}, Model: {}", self.size, self.model)?;
        if let Some(strength) = self.strength {
            write!(f, ", Denoising strength: {strength}")?;
        }
        for lora in &self.loras {
            write!(f, ", Lora: {}:{}", lora.file.display(), lora.strength)?;
        }
        write!(f, ", Version: stepdown {}", env!("CARGO_PKG_VERSION"))
    }
}

/// Writes one image, `[3, H, W]` in [-1, 1], as a PNG that appears whole or not at all.
pub fn write_png(path: &Path, image: &Tensor, parameters: &Parameters) -> Result<()> {
    let (_, height, width) = image.size3()?;
    let bytes = (image * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0;
    let rgb: Vec<u8> = Vec::try_from(bytes.round().to_kind(Kind::Uint8).permute([1, 2, 0]).flatten(0, -1))?;
    let mut png_bytes = Vec::new();
    let encoded = (|| {
        let mut encoder = png::Encoder::new(&mut png_bytes, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_itxt_chunk("parameters".to_owned(), parameters.to_string())?;
        encoder.write_header()?.write_image_data(&rgb)
    })();
    encoded.map_err(|error| Error::Document { path: path.to_owned(), reason: error.to_string() })?;
    Ok(shards::atomic::write_atomic(path, &png_bytes)?)
}

/// Reads an image and resizes it, `[1, 3, H, W]` in [-1, 1].
pub fn read_image(path: &Path, size: Size) -> Result<Tensor> {
    let wrong = |reason: String| Error::Document { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let image = pixels::decode(&bytes, &Limits::default()).map_err(|error| wrong(error.to_string()))?;
    let image = pixels::resize(&image, size.width as u32, size.height as u32, Filter::Lanczos3);
    let rgb = Tensor::from_slice(image.rgb()).reshape([size.height, size.width, 3]).permute([2, 0, 1]);
    Ok(rgb.to_kind(Kind::Float).unsqueeze(0) / 127.5 - 1.0)
}

/// Reads noise of a given shape from a NumPy file.
pub fn noise_from_npy(path: &Path, shape: [i64; 4]) -> Result<Tensor> {
    let wrong = |reason: String| Error::Document { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let array = Npy::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
    if !array.shape.iter().map(|&side| side as i64).eq(shape) {
        return Err(wrong(format!("has the shape {:?}, this run starts from {shape:?}", array.shape)));
    }
    Ok(Tensor::from_slice(&array.to_f32()).reshape(shape))
}

/// Writes latents as a NumPy file in FP32.
pub fn latents_to_npy(path: &Path, latents: &Tensor) -> Result<()> {
    let shape: Vec<usize> = latents.size().into_iter().map(|side| side as usize).collect();
    let values: Vec<f32> = Vec::try_from(latents.to_device(tch::Device::Cpu).flatten(0, -1))?;
    Ok(shards::atomic::write_atomic(path, &to_npy_f32(&shape, &values)?)?)
}
