//! Planes at another size, with Lanczos' filter of three lobes, as Pillow and `fast_image_resize` weigh it: widened with
//! the scale where it shrinks, cut off and normalised at the edges. In floating point, rounded once at the end.

use std::f64::consts::PI;

use fearless_simd::{Level, Simd, dispatch, f32x8, f32x16, prelude::*};

use crate::jpeg::{Plane, transposed, whole_rows};

/// Lobes on each side.
const LOBES: f64 = 3.0;
/// Rows that are weighed along side by side, columns that are weighed down, and target columns at a time.
const ROWS: usize = 16;
const LANES: usize = 32;
const EIGHT: usize = 8;

/// What one axis becomes.
pub(crate) struct Axis {
    /// How many samples come out.
    to: usize,
    /// Weights of each of them.
    taps: usize,
    /// The first sample that is weighed, and the weights; padded to whole eights.
    firsts: Vec<usize>,
    weights: Vec<f32>,
}

impl Axis {
    /// `to` samples from the `length` samples from `from` on, of `size`.
    ///
    /// # Panics
    /// If one of them is 0, or the stretch does not lie within the `size`.
    pub(crate) fn new(size: usize, from: f64, length: f64, to: usize) -> Self {
        assert!(from >= 0.0 && length > 0.0 && from + length < size as f64 + 0.5 && to > 0, "a stretch of the axis");
        let scale = length / to as f64;
        let widening = scale.max(1.0);
        let bounds: Vec<(f64, usize, usize)> = (0..to)
            .map(|at| {
                let center = from + (at as f64 + 0.5) * scale;
                let first = (center - LOBES * widening).floor().max(0.0) as usize;
                (center, first, ((center + LOBES * widening).ceil() as usize).min(size))
            })
            .collect();
        let taps = bounds.iter().map(|(_, first, end)| end - first).max().expect("at least one");
        let padded = to.next_multiple_of(EIGHT);
        let (mut firsts, mut weights) = (vec![0; padded], vec![0.0; padded * taps]);
        let mut filter = Vec::with_capacity(taps);
        for (at, (center, first, end)) in bounds.into_iter().enumerate() {
            lanczos((first as f64 + 0.5 - center) / widening, 1.0 / widening, end - first, &mut filter);
            let sum: f64 = filter.iter().sum();
            firsts[at] = first.min(size - taps);
            let weights = &mut weights[at * taps + first - firsts[at]..];
            for (weight, value) in weights.iter_mut().zip(&filter) {
                *weight = (value / sum) as f32;
            }
        }
        Self { to, taps, firsts, weights }
    }

    fn weights(&self, at: usize) -> &[f32] {
        &self.weights[at * self.taps..(at + 1) * self.taps]
    }
}

/// Lanczos' filter at `count` places from `start` on, `step` apart.
fn lanczos(start: f64, step: f64, count: usize, values: &mut Vec<f64>) {
    // sin(pi u) is 3 s - 4 s^3 of s = sin(pi u / 3), and from place to place (cos, s) is turned by the same angle.
    let (mut sin, mut cos) = (PI / LOBES * start).sin_cos();
    let (turn_sin, turn_cos) = (PI / LOBES * step).sin_cos();
    values.clear();
    for at in 0..count {
        let place = start + at as f64 * step;
        values.push(match place.abs() {
            distance if distance < 1e-6 => 1.0,
            distance if distance >= LOBES => 0.0,
            _ => (3.0 * sin - 4.0 * sin.powi(3)) * sin * LOBES / (PI * place).powi(2),
        });
        (sin, cos) = (sin * turn_cos + cos * turn_sin, cos * turn_cos - sin * turn_sin);
    }
}

/// A plane of what the axes make of this.
pub(crate) fn resample(plane: &Plane, columns: &Axis, rows: &Axis) -> Plane {
    resample_at(Level::new(), plane, columns, rows)
}

fn resample_at(level: Level, plane: &Plane, columns: &Axis, rows: &Axis) -> Plane {
    let samples = dispatch!(level, simd => Resampling::new(plane, columns, rows).run(simd));
    Plane { width: columns.to, height: rows.to, samples }
}

/// First down, a target row at a time; then along, [`ROWS`] of them side by side.
struct Resampling<'a> {
    plane: &'a Plane,
    columns: &'a Axis,
    rows: &'a Axis,
    /// The columns of the plane that have a weight, padded at the end.
    left: usize,
    width: usize,
    padded: usize,
    /// The last source rows as floating point: as many as have a weight at once, row `y` at `y % taps`.
    ring: Vec<f32>,
    /// [`ROWS`] target rows at the source's width, and the same by columns.
    tall: Vec<f32>,
    turned: Vec<f32>,
}

impl<'a> Resampling<'a> {
    fn new(plane: &'a Plane, columns: &'a Axis, rows: &'a Axis) -> Self {
        let used = &columns.firsts[..columns.to];
        let left = *used.iter().min().expect("at least one");
        let width = used.iter().max().expect("at least one") + columns.taps - left;
        let padded = width.next_multiple_of(LANES);
        Self {
            plane,
            columns,
            rows,
            left,
            width,
            padded,
            ring: vec![0.0; padded * rows.taps],
            tall: vec![0.0; padded * ROWS],
            turned: vec![0.0; padded * ROWS],
        }
    }

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Vec<u8> {
        let mut samples = Vec::with_capacity(self.columns.to * self.rows.to);
        let mut band = vec![0; self.columns.firsts.len() * ROWS];
        let mut loaded = self.rows.firsts[0];
        for top in (0..self.rows.to).step_by(ROWS) {
            let count = ROWS.min(self.rows.to - top);
            for y in 0..count {
                let end = self.rows.firsts[top + y] + self.rows.taps;
                while loaded < end {
                    self.load(loaded);
                    loaded += 1;
                }
                self.weigh_down(simd, top + y, y);
            }
            self.turn(simd);
            self.weigh_along(simd, &mut band);
            for row in band.chunks_exact(self.columns.firsts.len()).take(count) {
                samples.extend_from_slice(&row[..self.columns.to]);
            }
        }
        samples
    }

    #[inline(always)]
    fn load(&mut self, row: usize) {
        let samples = &self.plane.samples[row * self.plane.width + self.left..][..self.width];
        let slot = &mut self.ring[row % self.rows.taps * self.padded..][..self.width];
        for (level, &sample) in slot.iter_mut().zip(samples) {
            *level = f32::from(sample);
        }
    }

    /// Target row `row` at the source's width.
    #[inline(always)]
    fn weigh_down<S: Simd>(&mut self, simd: S, row: usize, y: usize) {
        let (taps, padded) = (self.rows.taps, self.padded);
        let (first, weights) = (self.rows.firsts[row], self.rows.weights(row));
        // The ring's slots in their order: from that of the first row to the end, then from the start.
        let (after, before) = self.ring.split_at(first % taps * padded);
        let (early, late) = weights.split_at(before.len() / padded);
        for (at, out) in self.tall[y * padded..(y + 1) * padded].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sums = [f32x16::splat(simd, 0.0); 2];
            for (slots, weights) in [(before, early), (after, late)] {
                for (slot, &weight) in slots.chunks_exact(padded).zip(weights) {
                    let (halves, _) = slot[at * LANES..(at + 1) * LANES].as_chunks::<16>();
                    sums[0] += f32x16::simd_from(simd, halves[0]) * weight;
                    sums[1] += f32x16::simd_from(simd, halves[1]) * weight;
                }
            }
            sums[0].store_slice(&mut out[..16]);
            sums[1].store_slice(&mut out[16..]);
        }
    }

    #[inline(always)]
    fn turn<S: Simd>(&mut self, simd: S) {
        for (half, tall) in self.tall.chunks_exact(self.padded * EIGHT).enumerate() {
            for (at, out) in self.turned.as_chunks_mut::<{ EIGHT * ROWS }>().0.iter_mut().enumerate() {
                let mut rows = [f32x8::splat(simd, 0.0); EIGHT];
                for (row, tall) in rows.iter_mut().zip(tall.chunks_exact(self.padded)) {
                    *row = f32x8::from_slice(simd, &tall[at * EIGHT..(at + 1) * EIGHT]);
                }
                let columns = transposed(simd, rows);
                for (column, out) in columns.into_iter().zip(out.as_chunks_mut::<ROWS>().0) {
                    column.store_slice(&mut out[half * EIGHT..(half + 1) * EIGHT]);
                }
            }
        }
    }

    #[inline(always)]
    fn weigh_along<S: Simd>(&self, simd: S, band: &mut [u8]) {
        let (stride, taps) = (self.columns.firsts.len(), self.columns.taps);
        for (at, firsts) in self.columns.firsts.as_chunks::<EIGHT>().0.iter().enumerate() {
            let (mut upper, mut lower) = ([f32x8::splat(simd, 0.0); EIGHT], [f32x8::splat(simd, 0.0); EIGHT]);
            for (x, first) in firsts.iter().enumerate() {
                let weights = self.columns.weights(at * EIGHT + x);
                // Those of the padding begin before the left: any will do, for their weights are 0.
                let from = first.saturating_sub(self.left) * ROWS;
                let samples = self.turned[from..from + taps * ROWS].as_chunks::<ROWS>().0;
                // Half a level, since what is behind the point is cut off.
                let mut sum = f32x16::splat(simd, 0.5);
                for (column, &weight) in samples.iter().zip(weights) {
                    sum += f32x16::simd_from(simd, *column) * weight;
                }
                (upper[x], lower[x]) = simd.split_f32x16(sum);
            }
            for (half, sums) in [upper, lower].into_iter().enumerate() {
                let rows = whole_rows(simd, transposed(simd, sums));
                for (row, out) in rows.iter().zip(band.chunks_exact_mut(stride).skip(half * EIGHT)) {
                    out[at * EIGHT..(at + 1) * EIGHT].copy_from_slice(row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fast_image_resize::images::{TypedImage, TypedImageRef};
    use fast_image_resize::pixels::U8;
    use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

    use super::*;
    use crate::levels::levels;

    fn plane(width: usize, height: usize) -> Plane {
        let noise = |i: usize| ((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 57) as usize;
        let samples = (0..width * height).map(|i| (i % width * 90 / width + i / width % 37 + noise(i)) as u8).collect();
        Plane { width, height, samples }
    }

    /// The same by another's fixed-point arithmetic.
    fn by_fast_image_resize(plane: &Plane, [left, top, width, height]: [f64; 4], to: (usize, usize)) -> Vec<u8> {
        let source = TypedImageRef::<U8>::from_buffer(plane.width as u32, plane.height as u32, &plane.samples).unwrap();
        let mut samples = vec![0; to.0 * to.1];
        let mut target = TypedImage::<U8>::from_buffer(to.0 as u32, to.1 as u32, &mut samples).unwrap();
        let lanczos = ResizeAlg::Convolution(FilterType::Lanczos3);
        let options = ResizeOptions::new().resize_alg(lanczos).crop(left, top, width, height);
        Resizer::new().resize_typed(&source, &mut target, &options).unwrap();
        samples
    }

    #[test]
    fn every_level_gives_the_same_and_what_fast_image_resize_gives() {
        for (size, [left, top, width, height], to) in [
            ((300, 200), [50.0, 0.0, 200.0, 200.0], (96, 96)),
            ((301, 203), [48.7, 0.3, 202.1, 202.1], (150, 149)),
            ((64, 40), [0.0, 0.0, 64.0, 40.0], (131, 85)),
            ((1200, 9), [0.0, 0.0, 1200.0, 9.0], (7, 3)),
            ((5, 3), [0.0, 0.0, 5.0, 3.0], (17, 1)),
            ((1, 1), [0.0, 0.0, 1.0, 1.0], (9, 8)),
        ] {
            let plane = plane(size.0, size.1);
            let (columns, rows) = (Axis::new(size.0, left, width, to.0), Axis::new(size.1, top, height, to.1));
            let resampled: Vec<Plane> = levels().map(|level| resample_at(level, &plane, &columns, &rows)).collect();
            assert!(resampled.iter().all(|other| *other == resampled[0]), "levels differ from {size:?} to {to:?}");
            assert_eq!((resampled[0].width, resampled[0].height), to);
            let other = by_fast_image_resize(&plane, [left, top, width, height], to);
            let furthest = resampled[0].samples.iter().zip(other).map(|(a, b)| a.abs_diff(b)).max();
            assert!(furthest <= Some(1), "from {size:?} to {to:?}: {furthest:?}");
        }
    }

    #[test]
    fn the_filter_is_lanczos_by_its_definition() {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        let mut values = Vec::new();
        for (start, step) in [(-2.9, 0.37), (-3.4, 0.5), (-2.0, 1.0), (-1.0e-7, 0.8)] {
            lanczos(start, step, 16, &mut values);
            for (at, value) in values.iter().enumerate() {
                let place = start + at as f64 * step;
                let exact = if place.abs() < 3.0 { sinc(place) * sinc(place / 3.0) } else { 0.0 };
                assert!((value - exact).abs() < 1e-9, "{place}: {value} for {exact}");
            }
        }
    }
}
