//! Coefficients to samples: the inverse DCT of Arai, Agui and Nakajima in floating point, eight
//! columns at a time.

use std::ops::{Add, Mul, Sub};

/// Where the k-th coefficient of the zigzag order goes in a block whose rows are the columns of
/// the usual one: the inverse DCT transposes on its way.
pub(super) const ZIGZAG_TRANSPOSED: [u8; 64] = {
    let (mut order, mut x, mut y, mut k) = ([0; 64], 0_u8, 0_u8, 0);
    while k < 64 {
        order[k] = x * 8 + y;
        let rising = (x + y).is_multiple_of(2);
        match (rising, x, y) {
            (true, 7, _) => y += 1,
            (true, _, 0) => x += 1,
            (true, _, _) => (x, y) = (x + 1, y - 1),
            (false, _, 7) => x += 1,
            (false, 0, _) => y += 1,
            (false, _, _) => (x, y) = (x - 1, y + 1),
        }
        k += 1;
    }
    order
};

/// The factors that coefficients are multiplied with, in zigzag order: the quantiser's step and
/// the scale that the inverse DCT leaves out of its own work.
pub(super) fn scale(quantiser: [u16; 64]) -> [f32; 64] {
    let factor = |k: usize| match k {
        0 => 1.0,
        k => std::f64::consts::SQRT_2 * (k as f64 * std::f64::consts::PI / 16.0).cos(),
    };
    std::array::from_fn(|k| {
        let place = usize::from(ZIGZAG_TRANSPOSED[k]);
        (f64::from(quantiser[k]) * factor(place / 8) * factor(place % 8) / 8.0) as f32
    })
}

/// Transforms a block into 8 x 8 samples at the head of `out`, rows `stride` apart, and zeroes it. A flat one has no
/// coefficient but the first.
#[inline(always)]
pub(super) fn transform(block: &mut [f32; 64], is_flat: bool, out: &mut [u8], stride: usize) {
    if is_flat {
        let level = sample(block[0]);
        block[0] = 0.0;
        for row in out.chunks_mut(stride).take(8) {
            row[..8].fill(level);
        }
        return;
    }
    let (rows, _) = block.as_chunks::<8>();
    let passed = inverse_dct(std::array::from_fn(|y| Lanes(rows[y])));
    let mut transposed = [Lanes([0.0; 8]); 8];
    for (y, row) in transposed.iter_mut().enumerate() {
        for (x, level) in row.0.iter_mut().enumerate() {
            *level = passed[x].0[y];
        }
    }
    // All at once, for the compiler makes vector instructions of that alone.
    let levels = inverse_dct(transposed);
    let levels: [f32; 64] = std::array::from_fn(|i| levels[i / 8].0[i % 8]);
    let mut samples = [0_u8; 64];
    for (out, level) in samples.iter_mut().zip(levels) {
        *out = sample(level);
    }
    for (row, out) in samples.as_chunks::<8>().0.iter().zip(out.chunks_mut(stride)) {
        out[..8].copy_from_slice(row);
    }
    *block = [0.0; 64];
}

/// A level around 0 to a sample around 128, rounded and clamped.
#[inline(always)]
fn sample(level: f32) -> u8 {
    // Added to 2^23, a number's bits below the point are rounded off, and it is the low bits.
    const UNIT: f32 = (1 << 23) as f32;
    // Comparisons and not `clamp`: they are one instruction each, for they need not heed NaN.
    let level = level + 128.0;
    let level = if level > 0.0 { level } else { 0.0 };
    let level = if level < 255.0 { level } else { 255.0 };
    (level + UNIT).to_bits() as u8
}

/// Eight numbers on which everything is done side by side: loops of a fixed length, which the compiler turns into
/// vector instructions wherever they are inlined.
#[derive(Clone, Copy)]
struct Lanes([f32; 8]);

impl Lanes {
    #[inline(always)]
    fn with(mut self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = operation(*a, b);
        }
        self
    }
}

impl Add for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
}

impl Sub for Lanes {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }
}

impl Mul<f32> for Lanes {
    type Output = Self;

    #[inline(always)]
    fn mul(self, factor: f32) -> Self {
        self.with(self, |a, _| a * factor)
    }
}

/// The inverse DCT of eight columns side by side: Arai, Agui and Nakajima (1988), with 5
/// multiplications, on coefficients that carry its scale factors.
#[inline(always)]
fn inverse_dct([a0, a1, a2, a3, a4, a5, a6, a7]: [Lanes; 8]) -> [Lanes; 8] {
    use std::f32::consts::SQRT_2;
    /// 2 cos(pi/8), 2 (cos(pi/8) - cos(3 pi/8)), 2 (cos(pi/8) + cos(3 pi/8)).
    const COS: [f32; 3] = [1.847_759_1, 1.082_392_2, 2.613_126];
    // Even part.
    let (sum, difference) = (a0 + a4, a0 - a4);
    let outer = a2 + a6;
    let inner = (a2 - a6) * SQRT_2 - outer;
    let even = [sum + outer, difference + inner, difference - inner, sum - outer];
    // Odd part.
    let (z13, z10, z11, z12) = (a5 + a3, a5 - a3, a1 + a7, a1 - a7);
    let odd0 = z11 + z13;
    let z5 = (z10 + z12) * COS[0];
    let odd1 = z5 - z10 * COS[2] - odd0;
    let odd2 = (z11 - z13) * SQRT_2 - odd1;
    let odd3 = z5 - z12 * COS[1] - odd2;
    let [e0, e1, e2, e3] = even;
    [e0 + odd0, e1 + odd1, e2 + odd2, e3 + odd3, e3 - odd3, e2 - odd2, e1 - odd1, e0 - odd0]
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;

    #[test]
    fn zigzag_starts_and_ends_as_the_standard_draws_it() {
        let usual: Vec<u8> = ZIGZAG_TRANSPOSED.iter().map(|&place| place % 8 * 8 + place / 8).collect();
        assert_eq!(usual[..10], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]);
        assert_eq!(usual[58..], [61, 54, 47, 55, 62, 63]);
        let mut sorted = usual;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
    }

    /// ITU T.81, A.3.3, as it stands there.
    fn by_definition(coefficients: &[f64; 64]) -> [f64; 64] {
        let c = |k: usize| if k == 0 { 0.5_f64.sqrt() } else { 1.0 };
        std::array::from_fn(|i| {
            let (y, x) = (i / 8, i % 8);
            let term = |v: usize, u: usize| {
                let cos = |n: usize, k: usize| ((2 * n + 1) as f64 * k as f64 * PI / 16.0).cos();
                c(u) * c(v) * coefficients[v * 8 + u] * cos(x, u) * cos(y, v)
            };
            (0..64).map(|k| term(k / 8, k % 8)).sum::<f64>() / 4.0
        })
    }

    #[test]
    fn the_transform_is_the_inverse_dct() {
        let quantiser: [u16; 64] = std::array::from_fn(|k| 1 + k as u16 % 7);
        let scale = scale(quantiser);
        for seed in 0..50_i32 {
            let value = |k: usize| (seed * 31 + k as i32 * 17) % 23 - 11;
            let (mut block, mut dequantised) = ([0.0; 64], [0.0; 64]);
            for k in 0..64 {
                let place = usize::from(ZIGZAG_TRANSPOSED[k]);
                block[place] = value(k) as f32 * scale[k];
                dequantised[place % 8 * 8 + place / 8] = f64::from(value(k)) * f64::from(quantiser[k]);
            }
            let mut samples = [0; 64];
            transform(&mut block, false, &mut samples, 8);
            for (sample, level) in samples.iter().zip(by_definition(&dequantised)) {
                let exact = (level + 128.0).clamp(0.0, 255.0);
                assert!((f64::from(*sample) - exact).abs() <= 0.501, "{sample} for {exact}");
            }
            assert_eq!(block, [0.0; 64], "the block is left clean for the next");
        }
    }
}
