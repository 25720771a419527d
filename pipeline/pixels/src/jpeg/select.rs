//! The n-th bit that is set.

use fearless_simd::Simd;

/// The `n`-th of the bits that are set, from 0 and lowest first, alone; 0 if there are not so many. `n` is below 64.
#[inline(always)]
pub(super) fn nth_set<S: Simd>(simd: S, bits: u64, n: u32) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = simd.level().as_avx2() {
        return deposited(avx2, bits, n);
    }
    cleared(bits, n)
}

/// By taking the lower ones away, which is a branch for each.
#[inline(always)]
fn cleared(mut bits: u64, n: u32) -> u64 {
    for _ in 0..n {
        bits &= bits.wrapping_sub(1);
    }
    bits & bits.wrapping_neg()
}

// With BMI2, which all processors with AVX2 that this level stands for have, without a branch.
#[cfg(target_arch = "x86_64")]
fearless_simd::kernel!(
    #[inline(always)]
    fn deposited(avx2: Avx2, bits: u64, n: u32) -> u64 {
        std::arch::x86_64::_pdep_u64(1 << n, bits)
    }
);

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::levels::levels;

    #[test]
    fn every_level_finds_every_bit() {
        for bits in [0, 1, 0x8000_0000_0000_0000, 0xA5A5_0000_F00F_1234, u64::MAX, u64::MAX << 1] {
            let set = (0..64).map(|place| bits & 1 << place).filter(|&bit| bit != 0);
            let places: Vec<u64> = set.chain([0; 64]).take(64).collect();
            for level in levels() {
                let found: Vec<u64> = (0..64).map(|n| dispatch!(level, simd => nth_set(simd, bits, n))).collect();
                assert_eq!(found, places, "{bits:x} at {level:?}");
            }
        }
    }
}
