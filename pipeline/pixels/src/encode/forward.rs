//! Samples to quantised coefficients: the forward DCT of Arai, Agui and Nakajima in floating point, eight columns at a
//! time.

use fearless_simd::{Simd, f32x8, i16x16, i32x8, prelude::*};

use crate::jpeg::ZIGZAG_TRANSPOSED;

/// What the transform's results are multiplied with to be quantised: the reciprocal of the quantiser's step and of the
/// scale that the transform leaves in, transposed as its results are.
pub(super) type Reciprocals = [[f32; 8]; 8];

/// The reciprocals of a quantiser in zigzag order.
pub(super) fn reciprocals(quantiser: &[u16; 64]) -> Reciprocals {
    let factor = |k: usize| match k {
        0 => 1.0,
        k => std::f64::consts::SQRT_2 * (k as f64 * std::f64::consts::PI / 16.0).cos(),
    };
    let mut reciprocals = [[0.0; 8]; 8];
    for (place, &step) in ZIGZAG_TRANSPOSED.into_iter().map(usize::from).zip(quantiser) {
        let (row, column) = (place / 8, place % 8);
        reciprocals[row][column] = (1.0 / (f64::from(step) * factor(row) * factor(column) * 8.0)) as f32;
    }
    reciprocals
}

/// A block's quantised coefficients.
pub(super) struct Coefficients {
    /// In zigzag order.
    pub(super) values: [i16; 64],
    /// Which of them are not 0, the first lowest.
    pub(super) nonzero: u64,
}

/// Transforms and quantises the 8 x 8 samples at the head of `samples`, rows `stride` apart.
#[inline(always)]
pub(super) fn transform<S: Simd>(simd: S, samples: &[u8], stride: usize, reciprocals: &Reciprocals) -> Coefficients {
    // No closures: what is not inlined here is not compiled for the level of `simd`.
    let mut rows = [f32x8::splat(simd, 0.0); 8];
    for (y, row) in rows.iter_mut().enumerate() {
        let eight = &samples[y * stride..][..8];
        for (level, &sample) in row.as_mut_slice().iter_mut().zip(eight) {
            *level = f32::from(sample) - 128.0;
        }
    }
    let rows = forward_dct(crate::jpeg::transposed(simd, forward_dct(rows)));
    let mut transposed = [0_i16; 64];
    for (pair, out) in transposed.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let upper = quantised(simd, rows[2 * pair], &reciprocals[2 * pair]);
        let lower = quantised(simd, rows[2 * pair + 1], &reciprocals[2 * pair + 1]);
        simd.relaxed_narrow_i32x8(upper, lower).store_slice(out);
    }
    let mut values = [0; 64];
    for (value, place) in values.iter_mut().zip(ZIGZAG_TRANSPOSED) {
        *value = transposed[usize::from(place & 63)];
    }
    let mut nonzero = 0;
    for (at, sixteen) in values.as_chunks::<16>().0.iter().enumerate() {
        let zero = i16x16::simd_from(simd, *sixteen).simd_eq(0).to_bitmask();
        nonzero |= (!zero & 0xFFFF) << (16 * at);
    }
    Coefficients { values, nonzero }
}

/// Eight coefficients over their steps, rounded.
#[inline(always)]
fn quantised<S: Simd>(simd: S, row: f32x8<S>, reciprocals: &[f32; 8]) -> i32x8<S> {
    // Added to 1.5 * 2^23, a number's bits below the point are rounded off, and it is the low bits.
    const UNIT: f32 = (3 << 22) as f32;
    let scaled = row * f32x8::simd_from(simd, *reciprocals) + UNIT;
    scaled.bitcast::<i32x8<S>>() - i32x8::splat(simd, UNIT.to_bits() as i32)
}

/// The DCT of eight columns side by side: Arai, Agui and Nakajima (1988), with 5 multiplications; the results carry its
/// scale factors.
#[inline(always)]
fn forward_dct<S: Simd>([a0, a1, a2, a3, a4, a5, a6, a7]: [f32x8<S>; 8]) -> [f32x8<S>; 8] {
    use std::f32::consts::FRAC_1_SQRT_2;
    /// cos(3 pi/8), cos(pi/8) - cos(3 pi/8), cos(pi/8) + cos(3 pi/8).
    const COS: [f32; 3] = [0.382_683_43, 0.541_196_1, 1.306_563];
    let (s0, s1, s2, s3) = (a0 + a7, a1 + a6, a2 + a5, a3 + a4);
    let (d0, d1, d2, d3) = (a0 - a7, a1 - a6, a2 - a5, a3 - a4);
    // Even part.
    let (outer, inner) = (s0 + s3, s1 + s2);
    let difference = s0 - s3;
    let turned = (difference + s1 - s2) * FRAC_1_SQRT_2;
    // Odd part.
    let (e0, e1, e2) = (d3 + d2, d2 + d1, d1 + d0);
    let shared = (e0 - e2) * COS[0];
    let (z2, z4, z3) = (e0 * COS[1] + shared, e2 * COS[2] + shared, e1 * FRAC_1_SQRT_2);
    let (z11, z13) = (d0 + z3, d0 - z3);
    [outer + inner, z11 + z4, difference + turned, z13 - z2, outer - inner, z13 + z2, difference - turned, z11 - z4]
}
