//! Bits put into the places of those that are set in a mask.

use fearless_simd::Simd;

/// `bits`, the lowest first, in the places that are set in `mask`, the lowest first; those for which there is no place
/// are lost.
#[inline(always)]
pub(super) fn deposit<S: Simd>(simd: S, bits: u64, mask: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = simd.level().as_avx2() {
        return deposited(avx2, bits, mask);
    }
    one_by_one(bits, mask)
}

/// With a turn for each place up to the last bit.
#[inline(always)]
fn one_by_one(mut bits: u64, mut mask: u64) -> u64 {
    let mut places = 0;
    while bits != 0 {
        let lowest = mask & mask.wrapping_neg();
        places |= lowest & (bits & 1).wrapping_neg();
        mask ^= lowest;
        bits >>= 1;
    }
    places
}

// With BMI2, which all processors with AVX2 that this level stands for have, without a branch.
#[cfg(target_arch = "x86_64")]
fearless_simd::kernel!(
    #[inline(always)]
    fn deposited(avx2: Avx2, bits: u64, mask: u64) -> u64 {
        std::arch::x86_64::_pdep_u64(bits, mask)
    }
);

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::levels::levels;

    #[test]
    fn every_level_puts_each_bit_into_its_place() {
        for mask in [0, 1, 0x8000_0000_0000_0000, 0xA5A5_0000_F00F_1234, u64::MAX, u64::MAX << 1] {
            for bits in [0, 1, 2, 1 << 63, 0x0123_4567_89AB_CDEF, u64::MAX] {
                let set = (0..64).map(|place| 1 << place).filter(|place| mask & place != 0);
                let places =
                    set.enumerate().filter(|&(n, _)| bits >> n & 1 == 1).fold(0_u64, |all, (_, place)| all | place);
                for level in levels() {
                    let put = dispatch!(level, simd => deposit(simd, bits, mask));
                    assert_eq!(put, places, "{bits:x} into {mask:x} at {level:?}");
                }
            }
        }
    }
}
