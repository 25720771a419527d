//! Coefficients to samples: the inverse DCT of Arai, Agui and Nakajima in floating point, eight
//! columns at a time.

use fearless_simd::{Simd, f32x8, i16x8, i32x8, prelude::*};

/// Where the k-th coefficient of the zigzag order goes in a block whose rows are the columns of
/// the usual one: the inverse DCT transposes on its way.
pub(crate) const ZIGZAG_TRANSPOSED: [u8; 64] = {
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

/// What coefficients are multiplied with, in the order of [`ZIGZAG_TRANSPOSED`]'s places: the quantiser's step and the
/// scale that the inverse DCT leaves out of its own work.
pub(super) type Scale = [[f32; 8]; 8];

/// The scale of a quantiser that is given in zigzag order.
pub(super) fn scale(quantiser: [u16; 64]) -> Scale {
    let factor = |k: usize| match k {
        0 => 1.0,
        k => std::f64::consts::SQRT_2 * (k as f64 * std::f64::consts::PI / 16.0).cos(),
    };
    let mut scale = [[0.0; 8]; 8];
    for (place, step) in ZIGZAG_TRANSPOSED.into_iter().map(usize::from).zip(quantiser) {
        let (row, column) = (place / 8, place % 8);
        scale[row][column] = (f64::from(step) * factor(row) * factor(column) / 8.0) as f32;
    }
    scale
}

/// A block's coefficients as they were coded.
pub(super) struct Coefficients<'a> {
    /// The first, which stands for the mean.
    pub(super) mean: i16,
    /// The others in the order of [`ZIGZAG_TRANSPOSED`]'s places, the first of which is 0.
    pub(super) others: &'a [i16; 64],
    /// Whether all of these are 0.
    pub(super) is_flat: bool,
}

/// Transforms a block into samples.
#[inline(always)]
pub(super) fn transform<S: Simd>(simd: S, block: &Coefficients<'_>, scale: &Scale, out: &mut Samples) {
    let mean = f32::from(block.mean) * scale[0][0] + MIDDLE;
    if block.is_flat {
        *out = [[mean.clamp(0.0, 255.0) as u8; 8]; 8];
        return;
    }
    // No closures: what is not inlined here is not compiled for the level of `simd`.
    let mut rows = [f32x8::splat(simd, 0.0); 8];
    for (y, row) in rows.iter_mut().enumerate() {
        let whole = i16x8::from_slice(simd, &block.others[8 * y..8 * y + 8]);
        let (left, right) = simd.widen_i16x8(whole);
        *row = simd.cvt_f32_i32x8(simd.combine_i32x4(left, right)) * f32x8::simd_from(simd, scale[y]);
    }
    // What is added to the mean is added to all.
    rows[0] += f32x8::simd_from(simd, [mean, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    *out = whole_rows(simd, inverse_dct(transposed(simd, inverse_dct(rows))));
}

/// 8 x 8 samples.
pub(super) type Samples = [[u8; 8]; 8];

/// From a level around 0 to a sample around 128, half a level more for rounding.
const MIDDLE: f32 = 128.5;

/// Levels to samples, clamped; what is behind the point is cut off.
#[inline(always)]
pub(crate) fn whole_rows<S: Simd>(simd: S, [a, b, c, d, e, f, g, h]: [f32x8<S>; 8]) -> [[u8; 8]; 8] {
    let mut samples = [[0; 8]; 8];
    let (upper, lower) = samples.split_at_mut(4);
    for (out, [a, b, c, d]) in [(upper, [a, b, c, d]), (lower, [e, f, g, h])] {
        let upper = simd.relaxed_narrow_i32x8(whole(simd, a), whole(simd, b));
        let lower = simd.relaxed_narrow_i32x8(whole(simd, c), whole(simd, d));
        simd.relaxed_narrow_u16x16(upper.bitcast(), lower.bitcast()).store_slice(out.as_flattened_mut());
    }
    samples
}

#[inline(always)]
fn whole<S: Simd>(simd: S, levels: f32x8<S>) -> i32x8<S> {
    simd.cvt_i32_f32x8(levels.max(0.0).min(255.0))
}

/// Rows to columns: each interleaving of the halves moves an element's row one bit into its column.
#[inline(always)]
pub(crate) fn transposed<S: Simd>(simd: S, mut rows: [f32x8<S>; 8]) -> [f32x8<S>; 8] {
    for _ in 0..3 {
        let (a, b) = simd.interleave_f32x8(rows[0], rows[4]);
        let (c, d) = simd.interleave_f32x8(rows[1], rows[5]);
        let (e, f) = simd.interleave_f32x8(rows[2], rows[6]);
        let (g, h) = simd.interleave_f32x8(rows[3], rows[7]);
        rows = [a, b, c, d, e, f, g, h];
    }
    rows
}

/// The inverse DCT of eight columns side by side: Arai, Agui and Nakajima (1988), with 5
/// multiplications, on coefficients that carry its scale factors.
#[inline(always)]
fn inverse_dct<S: Simd>([a0, a1, a2, a3, a4, a5, a6, a7]: [f32x8<S>; 8]) -> [f32x8<S>; 8] {
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

    use fearless_simd::{Level, dispatch};

    use super::*;
    use crate::levels::levels;

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
    fn the_transform_is_the_inverse_dct_at_every_level() {
        let quantiser: [u16; 64] = std::array::from_fn(|k| 1 + k as u16 % 7);
        let scale = scale(quantiser);
        for seed in 0..50_i32 {
            let (mut block, mut dequantised) = ([0; 64], [0.0; 64]);
            for k in 0..64 {
                let place = usize::from(ZIGZAG_TRANSPOSED[k]);
                block[place] = ((seed * 31 + k as i32 * 17) % 23 - 11) as i16;
                dequantised[place % 8 * 8 + place / 8] = f64::from(block[place]) * f64::from(quantiser[k]);
            }
            let mean = std::mem::take(&mut block[0]);
            let block = Coefficients { mean, others: &block, is_flat: false };
            let samples = levels().map(|level| {
                let mut samples = [[0; 8]; 8];
                dispatch!(level, simd => transform(simd, &block, &scale, &mut samples));
                *samples.as_flattened().first_chunk().unwrap()
            });
            let samples: Vec<[u8; 64]> = samples.collect();
            assert!(samples.iter().all(|other| *other == samples[0]), "levels differ");
            for (sample, level) in samples[0].iter().zip(by_definition(&dequantised)) {
                let exact = (level + 128.0).clamp(0.0, 255.0);
                assert!((f64::from(*sample) - exact).abs() <= 0.501, "{sample} for {exact}");
            }
        }
    }

    #[test]
    fn a_flat_block_is_what_the_whole_transform_makes_of_it() {
        let scale = scale([3; 64]);
        for mean in -400_i16..400 {
            let [flat, whole] = [true, false].map(|is_flat| {
                let block = Coefficients { mean, others: &[0; 64], is_flat };
                let mut samples = [[0; 8]; 8];
                dispatch!(Level::new(), simd => transform(simd, &block, &scale, &mut samples));
                samples
            });
            assert_eq!(flat, whole, "{mean}");
        }
    }
}
