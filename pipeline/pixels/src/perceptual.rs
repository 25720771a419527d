//! A hash that near-duplicates share.

use crate::Luma;

/// The 64-bit pHash of an image: signs of its lowest 8 x 8 DCT coefficients against their median.
/// Shown and stored as 16 hexadecimal digits. Rescaled and recompressed copies lie within a few
/// bits of each other, unrelated images about 32 apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerceptualHash(pub u64);

impl PerceptualHash {
    /// The number of bits in which two hashes differ, 0 to 64.
    #[must_use]
    pub const fn distance(self, other: Self) -> u32 {
        (self.0 ^ other.0).count_ones()
    }
}

impl std::fmt::Display for PerceptualHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The perceptual hash of an image's luma.
#[must_use]
pub fn perceptual_hash(luma: &Luma) -> PerceptualHash {
    unimplemented!("{luma:?}")
}
