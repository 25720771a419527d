//! A hash that near-duplicates share.

use std::f64::consts::PI;

use fearless_simd::{Level, Simd, dispatch};

use crate::Luma;
use crate::area::Shrink;

/// Side of the square that is transformed.
const SIDE: usize = 32;
/// Side of the block of low frequencies that is kept.
const KEPT: usize = 8;

/// The 64-bit pHash of an image: which of its lowest 8 x 8 DCT coefficients, at 32 x 32, are over
/// their median. The bits are in the order of the `imagehash` package, whose hash COYO stores, and
/// it is written, likewise, as 16 hexadecimal digits. Rescaled and recompressed copies lie within
/// a few bits of each other, unrelated images about 32 apart.
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

/// The perceptual hash of an image's luma. An image with a side under 32 samples is stretched to
/// it by repeating samples.
#[must_use]
pub fn perceptual_hash(luma: &Luma) -> PerceptualHash {
    let size = (luma.width() as usize, luma.height() as usize);
    let mut hashing = Hashing::new(size);
    dispatch!(Level::new(), simd => hashing.push(simd, luma.samples()));
    hashing.finish()
}

/// A hash in progress.
pub(crate) struct Hashing {
    shrink: Shrink,
    size: (usize, usize),
    small: Vec<f32>,
}

impl Hashing {
    /// Of an image of this size.
    pub(crate) fn new((width, height): (usize, usize)) -> Self {
        let size = (width.min(SIDE), height.min(SIDE));
        Self { shrink: Shrink::new((width, height), size), size, small: Vec::with_capacity(SIDE * SIDE) }
    }

    /// Takes the next rows, one after another.
    ///
    /// # Panics
    /// As [`Shrink::push`].
    #[inline(always)]
    pub(crate) fn push<S: Simd>(&mut self, simd: S, rows: &[u8]) {
        let Self { shrink, small, .. } = self;
        shrink.push(simd, rows, |row| small.extend_from_slice(row));
    }

    /// The hash, after the last row.
    pub(crate) fn finish(self) -> PerceptualHash {
        hash_of(&self.small, self.size)
    }
}

/// The hash of an image shrunk to a size of at most [`SIDE`].
fn hash_of(small: &[f32], (small_width, small_height): (usize, usize)) -> PerceptualHash {
    let at = |x: usize, y: usize| f64::from(small[y * small_height / SIDE * small_width + x * small_width / SIDE]);

    let basis = |k: usize, n: usize| (PI / SIDE as f64 * (n as f64 + 0.5) * k as f64).cos();
    let basis: [[f64; SIDE]; KEPT] = std::array::from_fn(|k| std::array::from_fn(|n| basis(k, n)));
    // First along each row, then along the columns of what that gave.
    let rows: [[f64; KEPT]; SIDE] =
        std::array::from_fn(|y| std::array::from_fn(|u| (0..SIDE).map(|x| basis[u][x] * at(x, y)).sum()));
    let coefficients: [f64; KEPT * KEPT] = std::array::from_fn(|i| {
        let (v, u) = (i / KEPT, i % KEPT);
        (0..SIDE).map(|y| basis[v][y] * rows[y][u]).sum()
    });

    let mut sorted = coefficients;
    sorted.sort_by(f64::total_cmp);
    let median = f64::midpoint(sorted[31], sorted[32]);
    PerceptualHash(coefficients.iter().fold(0, |bits, &c| bits << 1 | u64::from(c > median)))
}
