//! Pixels to bytes.

use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};

use crate::jpeg::Plane;
use crate::{Image, color};

mod coder;
mod forward;
mod jpeg;
mod tables;

pub(crate) use jpeg::encode_planes;

/// Encodes as baseline JPEG with 4:2:0 chroma at `quality` 1 to 100, on libjpeg's scale.
///
/// # Panics
/// If a side is over 65,535 pixels, which JPEG cannot say.
#[must_use]
pub fn encode_jpeg(image: &Image, quality: u8) -> Vec<u8> {
    let [luma, cb, cr] = planes_of(image);
    encode_planes(&luma, [&cb, &cr], quality)
}

/// Luma, and Cb and Cr as means of each four pixels.
fn planes_of(image: &Image) -> [Plane; 3] {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let half = (width.div_ceil(2), height.div_ceil(2));
    let row = |y: usize| &image.rgb().as_chunks::<3>().0[y * width..(y + 1) * width];
    let mut chroma = [Vec::with_capacity(half.0 * half.1), Vec::with_capacity(half.0 * half.1)];
    for y in 0..half.1 {
        let (upper, lower) = (row(2 * y), row((2 * y + 1).min(height - 1)));
        for x in 0..half.0 {
            let (left, right) = (2 * x, (2 * x + 1).min(width - 1));
            let mut sums = [0; 3];
            for pixel in [upper[left], upper[right], lower[left], lower[right]] {
                for (sum, sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(sample);
                }
            }
            for (chroma, value) in chroma.iter_mut().zip(color::chroma_of_four(sums)) {
                chroma.push(value);
            }
        }
    }
    let [cb, cr] = chroma.map(|samples| Plane { width: half.0, height: half.1, samples });
    [Plane { width, height, samples: image.luma().into_samples() }, cb, cr]
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
