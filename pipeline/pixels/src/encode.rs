//! Pixels to bytes.

use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use jpeg_encoder::{ColorType, Encoder, ImageBuffer, JpegColorType, SamplingFactor};

use crate::Image;
use crate::jpeg::Plane;

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

/// Encodes luma and, with half as many samples along a side, chroma as baseline JPEG at `quality`.
pub(crate) fn encode_planes(luma: &Plane, chroma: [&Plane; 2], quality: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(luma.samples.len() / 2);
    let mut encoder = Encoder::new(&mut bytes, quality.clamp(1, 100));
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode_image(HalvedChroma { luma, chroma }).expect("the planes are complete and a Vec takes every byte");
    bytes
}

/// The encoder takes rows of full width and averages each four samples of chroma: here four that are one.
struct HalvedChroma<'a> {
    luma: &'a Plane,
    chroma: [&'a Plane; 2],
}

impl ImageBuffer for HalvedChroma<'_> {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        self.luma.width as u16
    }

    fn height(&self) -> u16 {
        self.luma.height as u16
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let row = |plane: &Plane, y: usize| plane.width * y..plane.width * (y + 1);
        let [luma, chroma @ ..] = buffers;
        luma.extend_from_slice(&self.luma.samples[row(self.luma, y.into())]);
        for (buffer, plane) in chroma.iter_mut().zip(self.chroma) {
            let twice = plane.samples[row(plane, usize::from(y) / 2)].iter().flat_map(|&sample| [sample; 2]);
            buffer.extend(twice.take(self.luma.width));
        }
    }
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
