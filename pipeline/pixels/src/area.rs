//! Shrinking by exact area average, in floating point: what is measured must not be rounded to
//! eight bits or depend on a resampling filter's lobes.

use fearless_simd::{Simd, f32x4, f32x8, prelude::*};

/// Shrinks `samples`, rows of `from.0`, to the size `to`, as [`Shrink`] does.
#[cfg(test)]
pub(crate) fn shrink(samples: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    assert_eq!(samples.len(), from.0 * from.1);
    let mut shrink = Shrink::new(from, to);
    let mut shrunk = Vec::with_capacity(to.0 * to.1);
    // In lots of three rows, which fit no span.
    for rows in samples.chunks(3 * from.0) {
        fearless_simd::dispatch!(fearless_simd::Level::new(), simd => {
            shrink.push(simd, rows, |row| shrunk.extend_from_slice(row));
        });
    }
    shrunk
}

/// Rows that are added to the sums in one pass over them.
const AT_ONCE: usize = 4;

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
    /// The mean of each two.
    Halves,
    Taps(Taps),
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
        Self {
            height,
            to_height,
            columns: Columns::of(spans, width),
            next: 0,
            target: 0,
            span: Span::new(0, height, to_height),
            sums: vec![0.0; width],
            row: vec![0.0; to_width],
        }
    }

    /// Takes the next rows, one after another, and passes on each target row that they complete.
    ///
    /// # Panics
    /// If they are no whole rows, or more than the image has.
    #[inline(always)]
    pub(crate) fn push<S: Simd, T: Copy + Into<f32>>(&mut self, simd: S, rows: &[T], mut pass_on: impl FnMut(&[f32])) {
        let width = self.sums.len();
        let (begin, end) = (self.next, self.next + rows.len() / width);
        assert!(rows.len().is_multiple_of(width) && end <= self.height, "rows of the image");
        self.next = end;
        while self.target < self.to_height {
            let span = &self.span;
            let (mut y, span_end) = (span.first.max(begin), (span.last + 1).min(end));
            while y < span_end {
                let (count, begins) = ((span_end - y).min(AT_ONCE), y == span.first);
                let some = &rows[(y - begin) * width..(y - begin + count) * width];
                let weights = std::array::from_fn(|i| span.weight(y + i));
                match count {
                    1 => add::<_, 1>(&mut self.sums, some, weights, begins),
                    2 => add::<_, 2>(&mut self.sums, some, weights, begins),
                    3 => add::<_, 3>(&mut self.sums, some, weights, begins),
                    _ => add::<_, AT_ONCE>(&mut self.sums, some, weights, begins),
                }
                y += count;
            }
            if span.last >= end {
                return;
            }
            self.columns.weigh(simd, &self.sums, &mut self.row);
            pass_on(&self.row);
            self.target += 1;
            self.span = Span::new(self.target, self.height, self.to_height);
        }
    }
}

/// Adds `N` weighed rows to sums, one after the other, or begins the sums with them.
#[inline(always)]
fn add<T: Copy + Into<f32>, const N: usize>(sums: &mut [f32], rows: &[T], weights: [f32; AT_ONCE], begins: bool) {
    let width = sums.len();
    let rows: [&[T]; N] = std::array::from_fn(|i| &rows[i * width..][..width]);
    for x in 0..width {
        let mut sum = if begins { 0.0 } else { sums[x] };
        for (row, weight) in rows.iter().zip(weights) {
            sum += row[x].into() * weight;
        }
        sums[x] = sum;
    }
}

impl Columns {
    fn of(spans: Vec<Span>, width: usize) -> Self {
        if width == 2 * spans.len() {
            return Self::Halves;
        }
        Taps::of(&spans, width).map_or(Self::Spans(spans), Self::Taps)
    }

    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, samples: &[f32], row: &mut [f32]) {
        match self {
            Self::Halves => {
                for (two, out) in samples.as_chunks::<2>().0.iter().zip(row) {
                    *out = two[0] * 0.5 + two[1] * 0.5;
                }
            }
            Self::Taps(taps) => taps.weigh(simd, samples, row),
            Self::Spans(spans) => {
                for (span, out) in spans.iter().zip(row) {
                    *out = span.weigh(samples);
                }
            }
        }
    }
}

/// Spans as weights of four samples in a row each: where an image is shrunk to a third or less far, four are enough,
/// and are faster.
struct Taps {
    firsts: Vec<usize>,
    weights: Vec<[f32; 4]>,
}

impl Taps {
    /// Of spans along `width` samples, if none covers more than four.
    fn of(spans: &[Span], width: usize) -> Option<Self> {
        let limit = width.checked_sub(4)?;
        let firsts: Vec<usize> = spans.iter().map(|span| span.first.min(limit)).collect();
        let are_enough = spans.iter().zip(&firsts).all(|(span, first)| span.last < first + 4);
        let weights = |(span, first): (&Span, &usize)| std::array::from_fn(|i| span.weight(first + i));
        let weights = spans.iter().zip(&firsts).map(weights).collect();
        are_enough.then_some(Self { firsts, weights })
    }

    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, samples: &[f32], row: &mut [f32]) {
        let (firsts, rest) = self.firsts.as_chunks::<8>();
        let (weights, rest_weights) = self.weights.as_chunks::<8>();
        let (outs, rest_out) = row.as_chunks_mut::<8>();
        for ((firsts, weights), out) in firsts.iter().zip(weights).zip(outs) {
            weigh_eight(simd, firsts, weights, samples).store_slice(out);
        }
        for ((&first, weights), out) in rest.iter().zip(rest_weights).zip(rest_out) {
            let weighed: [f32; 4] = std::array::from_fn(|i| samples[first + i] * weights[i]);
            *out = (weighed[0] + weighed[1]) + (weighed[2] + weighed[3]);
        }
    }
}

/// Of each of eight, the sum of four weighed samples from the first on.
#[inline(always)]
fn weigh_eight<S: Simd>(simd: S, firsts: &[usize; 8], weights: &[[f32; 4]; 8], samples: &[f32]) -> f32x8<S> {
    let weighed = |at: usize| weigh_two(simd, [firsts[at], firsts[at + 1]], &weights[at..at + 2], samples);
    // First the sums of neighbours, then those of what that gave.
    let left = add_neighbours(simd, weighed(0), weighed(2));
    let right = add_neighbours(simd, weighed(4), weighed(6));
    add_neighbours(simd, left, right)
}

#[inline(always)]
fn weigh_two<S: Simd>(simd: S, [a, b]: [usize; 2], weights: &[[f32; 4]], samples: &[f32]) -> f32x8<S> {
    let (a, b) = (f32x4::from_slice(simd, &samples[a..a + 4]), f32x4::from_slice(simd, &samples[b..b + 4]));
    simd.combine_f32x4(a, b) * f32x8::from_slice(simd, weights.as_flattened())
}

#[inline(always)]
fn add_neighbours<S: Simd>(simd: S, a: f32x8<S>, b: f32x8<S>) -> f32x8<S> {
    simd.unzip_low_f32x8(a, b) + simd.unzip_high_f32x8(a, b)
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

    fn weigh(&self, samples: &[f32]) -> f32 {
        let edges = samples[self.first] * self.first_weight + samples[self.last] * self.last_weight;
        let inner: f32 = if self.last > self.first { samples[self.first + 1..self.last].iter().sum() } else { 0.0 };
        edges + inner * self.inner_weight
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
