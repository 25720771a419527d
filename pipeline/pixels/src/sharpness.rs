//! How sharp an image is, on a scale that its size does not change.
//!
//! The common measure, the variance of the 3 x 3 Laplacian, falls about fifteenfold with each
//! doubling of the same picture's size, so a threshold on it is a threshold on size. Here the
//! upright image is first brought to a fixed scale by exact area average, without rounding, and
//! never enlarged: an enlarged image would look blurred because of the measure. Only positions
//! whose whole neighbourhood lies inside the image count, and sums are taken in `f64`.
//!
//! Known bias, as of every such measure: noise counts as detail, and dark or flat scenes score
//! low however well they are focused. Hence raw scores, and the highest tiles beside the whole.

use fearless_simd::{Level, Simd, dispatch};

use crate::Luma;
use crate::area::Shrink;
use crate::geometry::covering_size;

/// The version of the measure. Scores of different versions are not comparable, and it is stored
/// beside them.
pub const SHARPNESS_VERSION: u32 = 1;

/// Short side of the fixed scale, in pixels.
const FIXED_SIDE: usize = 512;
/// Short side of the fine scale: that of SDXL's training images.
const FINE_SIDE: usize = 2 * FIXED_SIDE;
/// Side of a tile at the fixed scale, about; tiles divide the image evenly.
const TILE_SIDE: usize = 64;
/// The part of the tiles that score no higher than [`Sharpness::tile`].
const TILE_PERCENTILE: f64 = 0.9;

/// Rows that are measured in one pass over the sums.
const AT_ONCE: usize = 4;

/// A variance that flat planes may have from rounding in `f32`; one sample of a tile that is one
/// level off gives a hundred times as much.
const ROUNDING: f64 = 1e-5;

/// Raw scores; thresholds are the recipe's. All are finite and not negative.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sharpness {
    /// Variance of the Laplacian over the whole image with its shorter side at 512 (or at its own
    /// length, if shorter).
    pub whole: f64,
    /// The 90th percentile of the same variance over tiles of about 64 x 64: a sharp subject
    /// before a soft background scores high here and low in `whole`.
    pub tile: f64,
    /// Variance of the Laplacian with the shorter side at 1024 (or at its own length, if shorter)
    /// over that at 512. Scenes look alike at all scales, so what is sharp at 1024 scores about
    /// 0.5 to 1.2; what was enlarged to it has little between the two scales and scores about 0.2.
    /// It is 1 where it says nothing: for images not larger than 512 and for flat ones.
    ///
    /// The fine scale is bounded so that a soft 20-megapixel photograph, which makes a good
    /// 1024-pixel training image, is not mistaken for an enlarged one.
    pub detail: f64,
}

/// Measures an image, in about one pass over its samples.
#[must_use]
pub fn sharpness(luma: &Luma) -> Sharpness {
    dispatch!(Level::new(), simd => measure(simd, luma))
}

#[inline(always)]
fn measure<S: Simd>(simd: S, luma: &Luma) -> Sharpness {
    let size = (luma.width() as usize, luma.height() as usize);
    let mut measuring = Measuring::new(size);
    measuring.push(simd, luma.samples());
    measuring.finish()
}

/// A measuring in progress. Each row goes on as soon as it is complete, so that none leaves the cache between two
/// scales.
pub(crate) struct Measuring {
    to_fine: Shrink,
    fine: Tiles,
    to_fixed: Shrink,
    fixed: Tiles,
    says_detail: bool,
}

impl Measuring {
    /// Of an image of this size.
    pub(crate) fn new(size: (usize, usize)) -> Self {
        let fine_size = at_short_side(size, FINE_SIDE);
        let fixed_size = at_short_side(fine_size, FIXED_SIDE);
        Self {
            to_fine: Shrink::new(size, fine_size),
            fine: Tiles::new(fine_size),
            to_fixed: Shrink::new(fine_size, fixed_size),
            fixed: Tiles::new(fixed_size),
            says_detail: fine_size != fixed_size,
        }
    }

    /// Takes the next rows, one after another.
    ///
    /// # Panics
    /// As [`Shrink::push`].
    #[inline(always)]
    pub(crate) fn push<S: Simd>(&mut self, simd: S, rows: &[u8]) {
        let Self { to_fine, fine, to_fixed, fixed, .. } = self;
        to_fine.push(
            simd,
            rows,
            #[inline(always)]
            |row| {
                fine.push(row);
                to_fixed.push(
                    simd,
                    row,
                    #[inline(always)]
                    |row| fixed.push(row),
                );
            },
        );
    }

    /// The scores, after the last row.
    pub(crate) fn finish(self) -> Sharpness {
        let whole = Moments::sum(&self.fixed.moments).variance();
        let fine = Moments::sum(&self.fine.moments).variance();
        let detail = if self.says_detail && whole > 0.0 { fine / whole } else { 1.0 };
        Sharpness { whole, tile: percentile(&self.fixed.moments), detail }
    }
}

/// The size with its shorter side shrunk to `side`, or as it is if that is no longer.
fn at_short_side((width, height): (usize, usize), side: usize) -> (usize, usize) {
    if width.min(height) <= side {
        return (width, height);
    }
    let (to_width, to_height) = covering_size(width as u32, height as u32, side as u32, side as u32);
    (to_width as usize, to_height as usize)
}

/// Count, sum and sum of squares of Laplacian values.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Moments {
    fn sum(tiles: &[Self]) -> Self {
        tiles.iter().fold(Self::default(), |total, tile| Self {
            count: total.count + tile.count,
            sum: total.sum + tile.sum,
            squares: total.squares + tile.squares,
        })
    }

    /// `E[L^2] - E[L]^2`; 0 for no values, and for what is but the averages' rounding.
    fn variance(&self) -> f64 {
        let n = self.count.max(1) as f64;
        let variance = self.squares / n - (self.sum / n).powi(2);
        if variance > ROUNDING { variance } else { 0.0 }
    }
}

/// The moments of the Laplacian over tiles that divide an image's valid region evenly, row by row of the image.
struct Tiles {
    /// Rows of the valid region.
    height: usize,
    /// Where tiles begin and end along a row.
    edges: Vec<usize>,
    /// Rows of tiles.
    down: usize,
    /// One of each tile, rows from the top.
    moments: Vec<Moments>,
    /// The last rows, of which the inner ones were not measured yet, and how many there were in all.
    rows: Vec<f32>,
    seen: usize,
    /// Sum and sum of squares along each column of the present row of tiles, and how many values.
    sums: Vec<f64>,
    squares: Vec<f64>,
    count: usize,
}

impl Tiles {
    /// For images of this size.
    fn new((width, height): (usize, usize)) -> Self {
        let valid = |length: usize| length.saturating_sub(2);
        let tiles_along = |valid: usize| (valid as f64 / TILE_SIDE as f64).round().max(1.0) as usize;
        let is_empty = width <= 2 || height <= 2;
        let (across, down) = (tiles_along(valid(width)), tiles_along(valid(height)));
        Self {
            height: valid(height),
            edges: (0..=across).map(|i| i * valid(width) / across).collect(),
            down,
            moments: if is_empty { Vec::new() } else { Vec::with_capacity(across * down) },
            rows: Vec::with_capacity(width * (AT_ONCE + 2)),
            seen: 0,
            sums: vec![0.0; valid(width)],
            squares: vec![0.0; valid(width)],
            count: 0,
        }
    }

    /// Takes the next row.
    #[inline(always)]
    fn push(&mut self, row: &[f32]) {
        if self.sums.is_empty() {
            return;
        }
        self.rows.extend_from_slice(row);
        self.seen += 1;
        let Some(y) = self.seen.checked_sub(3) else { return };
        // The row of tiles whose rows y * down / height .. hold this one, and the one of the next.
        let tiles = |y: usize| ((y + 1) * self.down - 1) / self.height;
        let is_last = y + 1 == self.height || tiles(y) != tiles(y + 1);
        let inner = self.rows.len() / row.len() - 2;
        if is_last || inner == AT_ONCE {
            let Self { rows, sums, squares, .. } = self;
            match inner {
                1 => add_laplacian::<1>(rows, sums, squares),
                2 => add_laplacian::<2>(rows, sums, squares),
                3 => add_laplacian::<3>(rows, sums, squares),
                _ => add_laplacian::<AT_ONCE>(rows, sums, squares),
            }
            self.count += inner;
            self.rows.drain(..inner * row.len());
        }
        if is_last {
            self.end_tiles();
        }
    }

    /// Ends the present row of tiles.
    fn end_tiles(&mut self) {
        for edge in self.edges.windows(2) {
            let tile = edge[0]..edge[1];
            self.moments.push(Moments {
                count: tile.len() * self.count,
                sum: self.sums[tile.clone()].iter().sum(),
                squares: self.squares[tile].iter().sum(),
            });
        }
        self.sums.fill(0.0);
        self.squares.fill(0.0);
        self.count = 0;
    }
}

/// Adds the Laplacian `[0 1 0; 1 -4 1; 0 1 0]` along `N` rows, which lie between two others, to sums of it and of its
/// square.
#[inline(always)]
fn add_laplacian<const N: usize>(rows: &[f32], sums: &mut [f64], squares: &mut [f64]) {
    let n = sums.len();
    let row = |i: usize| &rows[i * (n + 2)..][..n + 2];
    let squares = &mut squares[..n];
    let rows: [[&[f32]; 3]; N] = std::array::from_fn(|i| [row(i), row(i + 1), row(i + 2)]);
    for x in 0..n {
        for [above, row, below] in rows {
            let around = above[x + 1] + below[x + 1] + row[x] + row[x + 2];
            let value = f64::from(around - 4.0 * row[x + 1]);
            sums[x] += value;
            squares[x] += value * value;
        }
    }
}

/// The tiles' variance at [`TILE_PERCENTILE`], by nearest rank.
fn percentile(tiles: &[Moments]) -> f64 {
    let mut variances: Vec<f64> = tiles.iter().map(Moments::variance).collect();
    variances.sort_by(f64::total_cmp);
    let rank = (variances.len() as f64 * TILE_PERCENTILE).ceil() as usize;
    variances.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::area::shrink;
    use crate::levels::levels;

    fn luma(width: u32, height: u32) -> Luma {
        let sample = |i: u32| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8 / 3 + (i / width) as u8 % 100;
        Luma::new(width, height, (0..width * height).map(sample).collect())
    }

    #[test]
    fn every_level_measures_the_same() {
        for (width, height) in [(1, 1), (2, 700), (3, 3), (65, 66), (515, 600), (1031, 1500), (2050, 1025)] {
            let luma = luma(width, height);
            let measured: Vec<Sharpness> =
                levels().map(|level| dispatch!(level, simd => measure(simd, &luma))).collect();
            assert!(measured.iter().all(|other| *other == measured[0]), "{width} x {height}: {measured:?}");
        }
    }

    /// The definition, on whole planes.
    #[test]
    fn what_is_measured_row_by_row_is_the_variance_over_the_plane() {
        let luma = luma(900, 700);
        let (width, height) = at_short_side((900, 700), FIXED_SIDE);
        let plane = shrink(luma.samples(), (900, 700), (width, height));
        let at = |x: usize, y: usize| f64::from(plane[y * width + x]);
        let laplacian = |x: usize, y: usize| at(x - 1, y) + at(x + 1, y) + at(x, y - 1) + at(x, y + 1) - 4.0 * at(x, y);
        let values: Vec<f64> =
            (1..height - 1).flat_map(|y| (1..width - 1).map(move |x| (x, y))).map(|(x, y)| laplacian(x, y)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        let measured = sharpness(&luma).whole;
        assert!((measured / variance - 1.0).abs() < 1e-6, "{measured} of {variance}");
    }
}
