//! Pixels to bytes.

use crate::Image;

/// Encodes as baseline JPEG with 4:2:0 chroma at `quality` 1 to 100.
///
/// # Panics
/// If a side is over 65,535 pixels, which JPEG cannot say.
#[must_use]
pub fn encode_jpeg(image: &Image, quality: u8) -> Vec<u8> {
    unimplemented!("{image:?} {quality}")
}

/// Encodes as PNG, 8-bit RGB, lossless.
#[must_use]
pub fn encode_png(image: &Image) -> Vec<u8> {
    unimplemented!("{image:?}")
}
