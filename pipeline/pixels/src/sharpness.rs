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

use crate::Luma;
use crate::area::{Plane, shrink};
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
    let fine = at_short_side(luma.samples(), (luma.width() as usize, luma.height() as usize), FINE_SIDE);
    let fine_size = (fine.width, fine.height);
    if fine.width.min(fine.height) <= FIXED_SIDE {
        let moments = tile_moments(&fine);
        return Sharpness { whole: Moments::sum(&moments).variance(), tile: percentile(&moments), detail: 1.0 };
    }
    let fixed = tile_moments(&at_short_side(&fine.samples, fine_size, FIXED_SIDE));
    let whole = Moments::sum(&fixed).variance();
    let fine_whole = Moments::sum(&tile_moments(&fine)).variance();
    let detail = if whole > 0.0 { fine_whole / whole } else { 1.0 };
    Sharpness { whole, tile: percentile(&fixed), detail }
}

/// The plane with its shorter side shrunk to `side`, or as it is if that is no longer.
fn at_short_side<T: Copy + Into<f32>>(samples: &[T], (width, height): (usize, usize), side: usize) -> Plane {
    if width.min(height) <= side {
        return Plane { width, height, samples: samples.iter().map(|&s| s.into()).collect() };
    }
    let (to_width, to_height) = covering_size(width as u32, height as u32, side as u32, side as u32);
    shrink(samples, (width, height), (to_width as usize, to_height as usize))
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

/// The moments of the Laplacian over tiles that divide the plane's valid region evenly.
fn tile_moments(plane: &Plane) -> Vec<Moments> {
    let (Some(valid_width), Some(valid_height)) = (plane.width.checked_sub(2), plane.height.checked_sub(2)) else {
        return Vec::new();
    };
    let tiles_along = |valid: usize| (valid as f64 / TILE_SIDE as f64).round().max(1.0) as usize;
    let (across, down) = (tiles_along(valid_width), tiles_along(valid_height));
    let edges: Vec<usize> = (0..=across).map(|i| i * valid_width / across).collect();
    let mut tiles = vec![Moments::default(); across * down];
    let mut laplacian = vec![0.0_f32; valid_width];
    for y in 0..valid_height {
        let row = |y: usize| &plane.samples[y * plane.width..(y + 1) * plane.width];
        laplacian_row(row(y), row(y + 1), row(y + 2), &mut laplacian);
        // The tile whose rows y * down / valid_height .. hold this one.
        let tile_row = ((y + 1) * down - 1) / valid_height;
        for (tile, edge) in tiles[tile_row * across..].iter_mut().zip(edges.windows(2)) {
            let values = &laplacian[edge[0]..edge[1]];
            let (sum, squares) = sums(values);
            tile.count += values.len();
            tile.sum += sum;
            tile.squares += squares;
        }
    }
    tiles
}

/// The Laplacian `[0 1 0; 1 -4 1; 0 1 0]` along the middle of three rows.
fn laplacian_row(above: &[f32], row: &[f32], below: &[f32], out: &mut [f32]) {
    let n = out.len();
    let (left, middle, right) = (&row[..n], &row[1..=n], &row[2..n + 2]);
    let (above, below) = (&above[1..=n], &below[1..=n]);
    for i in 0..n {
        out[i] = above[i] + below[i] + left[i] + right[i] - 4.0 * middle[i];
    }
}

/// Sum and sum of squares in `f64`, in four independent chains that the compiler can vectorise.
fn sums(values: &[f32]) -> (f64, f64) {
    let (fours, rest) = values.as_chunks::<4>();
    let (mut sum, mut squares) = ([0.0_f64; 4], [0.0_f64; 4]);
    for four in fours {
        for lane in 0..4 {
            let value = f64::from(four[lane]);
            sum[lane] += value;
            squares[lane] += value * value;
        }
    }
    rest.iter()
        .map(|&v| f64::from(v))
        .fold((sum.iter().sum(), squares.iter().sum()), |(sum, squares), value| (sum + value, squares + value * value))
}

/// The tiles' variance at [`TILE_PERCENTILE`], by nearest rank.
fn percentile(tiles: &[Moments]) -> f64 {
    let mut variances: Vec<f64> = tiles.iter().map(Moments::variance).collect();
    variances.sort_by(f64::total_cmp);
    let rank = (variances.len() as f64 * TILE_PERCENTILE).ceil() as usize;
    variances.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}
