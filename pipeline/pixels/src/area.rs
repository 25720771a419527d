//! Shrinking by exact area average, in floating point: what is measured must not be rounded to
//! eight bits or depend on a resampling filter's lobes.

/// A plane of luma in `f32`, rows from the top.
pub(crate) struct Plane {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) samples: Vec<f32>,
}

/// Shrinks `samples`, rows of `from.0`, to the size `to`: each target sample is the mean over the
/// area it covers, samples on its edge weighed by the part that is covered.
///
/// # Panics
/// If a side of `to` is 0 or longer than that of `from`.
pub(crate) fn shrink<T: Copy + Into<f32>>(samples: &[T], from: (usize, usize), to: (usize, usize)) -> Plane {
    let ((width, height), (to_width, to_height)) = (from, to);
    assert!((1..=width).contains(&to_width) && (1..=height).contains(&to_height), "shrink enlarges nothing");
    assert_eq!(samples.len(), width * height);
    let row = |y: usize| &samples[y * width..(y + 1) * width];
    let columns: Vec<Span> = (0..to_width).map(|x| Span::new(x, width, to_width)).collect();
    let taps: Option<Vec<Tap>> = columns.iter().map(|span| span.tap(width)).collect();
    let mut shrunk = Vec::with_capacity(to_width * to_height);
    let mut sums = vec![0.0_f32; width];
    for y in 0..to_height {
        let span = Span::new(y, height, to_height);
        for (sum, &sample) in sums.iter_mut().zip(row(span.first)) {
            *sum = sample.into() * span.first_weight;
        }
        for inner in span.first + 1..span.last {
            for (sum, &sample) in sums.iter_mut().zip(row(inner)) {
                *sum += sample.into() * span.inner_weight;
            }
        }
        if span.last > span.first {
            for (sum, &sample) in sums.iter_mut().zip(row(span.last)) {
                *sum += sample.into() * span.last_weight;
            }
        }
        match &taps {
            Some(taps) => shrunk.extend(taps.iter().map(|tap| tap.weigh(&sums))),
            None => shrunk.extend(columns.iter().map(|span| span.weigh(&sums))),
        }
    }
    Plane { width: to_width, height: to_height, samples: shrunk }
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

    /// The same as weights of four samples, of `width`, if it covers no more.
    fn tap(&self, width: usize) -> Option<Tap> {
        let first = self.first.min(width.checked_sub(4)?);
        (self.last < first + 4).then(|| {
            let weight = |at: usize| match at {
                _ if at < self.first || at > self.last => 0.0,
                _ if at == self.first => self.first_weight,
                _ if at == self.last => self.last_weight,
                _ => self.inner_weight,
            };
            Tap { first, weights: std::array::from_fn(|i| weight(first + i)) }
        })
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
        let plane = shrink(&[1_u8, 3, 10, 20, 5, 7, 30, 40], (4, 2), (2, 1));
        assert_eq!(plane.samples, [4.0, 25.0]);
    }

    #[test]
    fn an_edge_sample_is_shared_by_the_part_covered() {
        // Three samples over two: the middle one is half in each.
        let plane = shrink(&[0_u8, 90, 30], (3, 1), (2, 1));
        assert!((plane.samples[0] - 30.0).abs() < 1e-4 && (plane.samples[1] - 50.0).abs() < 1e-4);
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
            let plane = shrink(&samples, (width, height), (to_width, to_height));
            let mean = |sum: f64, n: usize| sum / n as f64;
            let before = mean(samples.iter().map(|&s| f64::from(s)).sum(), samples.len());
            let after = mean(plane.samples.iter().map(|&s| f64::from(s)).sum(), plane.samples.len());
            prop_assert!((before - after).abs() < 1e-2, "{before} became {after}");
        }
    }
}
