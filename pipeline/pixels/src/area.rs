//! Shrinking by exact area average, in floating point: what is measured must not be rounded to
//! eight bits or depend on a resampling filter's lobes.

use fearless_simd::{Simd, f32x4, prelude::*};

/// Shrinks `samples`, rows of `from.0`, to the size `to`, as [`Shrink`] does.
#[cfg(test)]
pub(crate) fn shrink(samples: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    assert_eq!(samples.len(), from.0 * from.1);
    let mut shrink = Shrink::new(from, to);
    let mut shrunk = Vec::with_capacity(to.0 * to.1);
    for row in samples.chunks_exact(from.0) {
        fearless_simd::dispatch!(fearless_simd::Level::new(), simd => {
            shrunk.extend(shrink.push(simd, row).into_iter().flatten());
        });
    }
    shrunk
}

/// Shrinks an image that is given row by row: each target sample is the mean over the area it covers, samples on its
/// edge weighed by the part that is covered.
pub(crate) struct Shrink {
    /// Rows of source and target.
    height: usize,
    to_height: usize,
    columns: Columns,
    /// The row that comes next, and the target row that it adds to.
    next: usize,
    target: usize,
    span: Span,
    /// What was added to the target row so far, at the source's width.
    sums: Vec<f32>,
    /// The last target row that was completed.
    row: Vec<f32>,
}

/// What becomes of a row.
enum Columns {
    Taps(Vec<Tap>),
    Spans(Vec<Span>),
}

impl Shrink {
    /// For images of the size `from` that become the size `to`.
    ///
    /// # Panics
    /// If a side of `to` is 0 or longer than that of `from`.
    pub(crate) fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        let ((width, height), (to_width, to_height)) = (from, to);
        assert!((1..=width).contains(&to_width) && (1..=height).contains(&to_height), "shrink enlarges nothing");
        let spans: Vec<Span> = (0..to_width).map(|x| Span::new(x, width, to_width)).collect();
        let taps: Option<Vec<Tap>> = spans.iter().map(|span| span.tap(width)).collect();
        Self {
            height,
            to_height,
            columns: taps.map_or(Columns::Spans(spans), Columns::Taps),
            next: 0,
            target: 0,
            span: Span::new(0, height, to_height),
            sums: vec![0.0; width],
            row: vec![0.0; to_width],
        }
    }

    /// Takes the next row. Returns the target row that it completes.
    ///
    /// # Panics
    /// If the row has another length, or there was a last one.
    #[inline(always)]
    pub(crate) fn push<S: Simd, T: Copy + Into<f32>>(&mut self, simd: S, row: &[T]) -> Option<&[f32]> {
        assert!(row.len() == self.sums.len() && self.next < self.height, "a row of the image");
        let y = self.next;
        self.next += 1;
        add(&mut self.sums, row, self.span.weight(y), y == self.span.first);
        if y < self.span.last {
            return None;
        }
        self.columns.weigh(simd, &self.sums, &mut self.row);
        self.target += 1;
        if self.target < self.to_height {
            self.span = Span::new(self.target, self.height, self.to_height);
            if y == self.span.first {
                add(&mut self.sums, row, self.span.weight(y), true);
            }
        }
        Some(&self.row)
    }
}

/// Adds a weighed row to sums, or begins them.
#[inline(always)]
fn add<T: Copy + Into<f32>>(sums: &mut [f32], row: &[T], weight: f32, begins: bool) {
    if begins {
        for (sum, &sample) in sums.iter_mut().zip(row) {
            *sum = sample.into() * weight;
        }
    } else {
        for (sum, &sample) in sums.iter_mut().zip(row) {
            *sum += sample.into() * weight;
        }
    }
}

impl Columns {
    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, samples: &[f32], row: &mut [f32]) {
        match self {
            Self::Taps(taps) => {
                let (fours, rest) = taps.as_chunks::<4>();
                let (outs, rest_out) = row.as_chunks_mut::<4>();
                for (taps, out) in fours.iter().zip(outs) {
                    weigh_four(simd, taps, samples).store_slice(out);
                }
                for (tap, out) in rest.iter().zip(rest_out) {
                    *out = tap.weigh(samples);
                }
            }
            Self::Spans(spans) => {
                for (span, out) in spans.iter().zip(row) {
                    *out = span.weigh(samples);
                }
            }
        }
    }
}

/// What [`Tap::weigh`] gives for each of four.
#[inline(always)]
fn weigh_four<S: Simd>(simd: S, taps: &[Tap; 4], samples: &[f32]) -> f32x4<S> {
    let [a, b, c, d] = taps;
    let (a, b) = (a.weighed(simd, samples), b.weighed(simd, samples));
    let (c, d) = (c.weighed(simd, samples), d.weighed(simd, samples));
    // First the sums of neighbours, then those of what that gave.
    let (ab, cd) = (simd.unzip_low_f32x4(a, b), simd.unzip_low_f32x4(c, d));
    let (ab, cd) = (ab + simd.unzip_high_f32x4(a, b), cd + simd.unzip_high_f32x4(c, d));
    simd.unzip_low_f32x4(ab, cd) + simd.unzip_high_f32x4(ab, cd)
}

/// The source samples under one target sample, along one axis. The weights sum to 1; where
/// `last == first`, `first_weight` is 1 and `last_weight` 0.
struct Span {
    first: usize,
    last: usize,
    first_weight: f32,
    inner_weight: f32,
    last_weight: f32,
}

impl Span {
    /// The `index`-th of `to` equal parts of `from` samples.
    fn new(index: usize, from: usize, to: usize) -> Self {
        // In units of 1/to of a source sample, so that all of it is exact.
        let (start, end) = (index * from, (index + 1) * from);
        let (first, last) = (start / to, (end - 1) / to);
        let part = |covered: usize| (covered as f64 / from as f64) as f32;
        if first == last {
            return Self { first, last, first_weight: 1.0, inner_weight: 0.0, last_weight: 0.0 };
        }
        Self {
            first,
            last,
            first_weight: part((first + 1) * to - start),
            inner_weight: part(to),
            last_weight: part(end - last * to),
        }
    }

    /// The weight of one of its samples.
    fn weight(&self, at: usize) -> f32 {
        match at {
            _ if at < self.first || at > self.last => 0.0,
            _ if at == self.first => self.first_weight,
            _ if at == self.last => self.last_weight,
            _ => self.inner_weight,
        }
    }

    /// The same as weights of four samples, of `width`, if it covers no more.
    fn tap(&self, width: usize) -> Option<Tap> {
        let first = self.first.min(width.checked_sub(4)?);
        (self.last < first + 4).then(|| Tap { first, weights: std::array::from_fn(|i| self.weight(first + i)) })
    }

    fn weigh(&self, samples: &[f32]) -> f32 {
        let edges = samples[self.first] * self.first_weight + samples[self.last] * self.last_weight;
        let inner: f32 = if self.last > self.first { samples[self.first + 1..self.last].iter().sum() } else { 0.0 };
        edges + inner * self.inner_weight
    }
}

/// Weights of four samples in a row: where an image is shrunk to a third or less far, they are enough, and are
/// faster than a [`Span`].
struct Tap {
    first: usize,
    weights: [f32; 4],
}

impl Tap {
    #[inline(always)]
    fn weighed<S: Simd>(&self, simd: S, samples: &[f32]) -> f32x4<S> {
        f32x4::from_slice(simd, &samples[self.first..self.first + 4]) * f32x4::simd_from(simd, self.weights)
    }

    #[inline(always)]
    fn weigh(&self, samples: &[f32]) -> f32 {
        let four: &[f32; 4] = samples[self.first..].first_chunk().expect("four samples from the first on");
        let weighed: [f32; 4] = std::array::from_fn(|i| four[i] * self.weights[i]);
        (weighed[0] + weighed[1]) + (weighed[2] + weighed[3])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn halves_are_means_of_four() {
        assert_eq!(shrink(&[1, 3, 10, 20, 5, 7, 30, 40], (4, 2), (2, 1)), [4.0, 25.0]);
    }

    #[test]
    fn an_edge_sample_is_shared_by_the_part_covered() {
        // Three samples over two: the middle one is half in each.
        let shrunk = shrink(&[0, 90, 30], (3, 1), (2, 1));
        assert!((shrunk[0] - 30.0).abs() < 1e-4 && (shrunk[1] - 50.0).abs() < 1e-4);
    }

    proptest! {
        /// An area average keeps the mean, whatever the sizes.
        #[test]
        fn the_mean_is_kept(
            (width, height, to_width, to_height) in (1_usize..60, 1_usize..60)
                .prop_flat_map(|(w, h)| (Just(w), Just(h), 1..=w, 1..=h)),
            seed in any::<u64>(),
        ) {
            let samples: Vec<u8> = (0..width * height)
                .map(|i| (seed.wrapping_mul(i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
                .collect();
            let shrunk = shrink(&samples, (width, height), (to_width, to_height));
            let mean = |sum: f64, n: usize| sum / n as f64;
            let before = mean(samples.iter().map(|&s| f64::from(s)).sum(), samples.len());
            let after = mean(shrunk.iter().map(|&s| f64::from(s)).sum(), shrunk.len());
            prop_assert!((before - after).abs() < 1e-2, "{before} became {after}");
        }
    }
}
