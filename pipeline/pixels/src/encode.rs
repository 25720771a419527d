//! Pixels to bytes.

use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::Image;

/// Encodes as baseline JPEG with 4:2:0 chroma at `quality` 1 to 100, on libjpeg's scale.
///
/// # Panics
/// If a side is over 65,535 pixels, which JPEG cannot say.
#[must_use]
pub fn encode_jpeg(image: &Image, quality: u8) -> Vec<u8> {
    let side = |pixels: u32| u16::try_from(pixels).expect("a JPEG's sides are at most 65,535 pixels");
    let (width, height) = (side(image.width()), side(image.height()));
    let mut bytes = Vec::with_capacity(image.rgb().len() / 8);
    let mut encoder = Encoder::new(&mut bytes, quality.clamp(1, 100));
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder
        .encode(image.rgb(), width, height, ColorType::Rgb)
        .expect("the sides fit, the samples are complete and a Vec takes every byte");
    bytes
}

/// Encodes as PNG, 8-bit RGB, lossless.
#[must_use]
pub fn encode_png(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(image.rgb().len() / 2);
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(image.rgb(), image.width(), image.height(), image::ExtendedColorType::Rgb8)
        .expect("the samples are complete and a Vec takes every byte");
    bytes
}
