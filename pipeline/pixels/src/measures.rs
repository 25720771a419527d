//! All that is measured of an image, while it is decoded.

use fearless_simd::{Level, dispatch};

use crate::perceptual::Hashing;
use crate::sharpness::Measuring;
use crate::{Luma, PerceptualHash, Sharpness, perceptual_hash, sharpness};

/// What is measured of an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measures {
    /// How sharp the image is.
    pub sharpness: Sharpness,
    /// What near-duplicates share.
    pub perceptual_hash: PerceptualHash,
}

impl Measures {
    /// Of an image's luma.
    #[must_use]
    pub fn of(luma: &Luma) -> Self {
        Self { sharpness: sharpness(luma), perceptual_hash: perceptual_hash(luma) }
    }
}

/// The same of an image whose rows come one after another: no plane of it is ever made.
pub(crate) struct OfRows {
    sharpness: Measuring,
    hash: Hashing,
    level: Level,
}

impl OfRows {
    /// Of an image of this size.
    pub(crate) fn new(size: (usize, usize)) -> Self {
        Self { sharpness: Measuring::new(size), hash: Hashing::new(size), level: Level::new() }
    }

    /// Takes the next rows of luma, one after another.
    pub(crate) fn push(&mut self, rows: &[u8]) {
        let (sharpness, hash) = (&mut self.sharpness, &mut self.hash);
        dispatch!(self.level, simd => {
            sharpness.push(simd, rows);
            hash.push(simd, rows);
        });
    }

    /// The measures, after the last row.
    pub(crate) fn finish(self) -> Measures {
        Measures { sharpness: self.sharpness.finish(), perceptual_hash: self.hash.finish() }
    }
}
