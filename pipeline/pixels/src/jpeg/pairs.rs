//! Two coefficients at one look: what stands in the next 11 bits, codes and values, if it stands
//! there whole. In most images that is two of three times more than one coefficient.

use super::huffman::{END_OF_BLOCK, Huffman};

/// Bits that are looked up at once.
const LOOK: u32 = 11;

/// What an AC table makes of the next [`LOOK`] bits.
pub(super) struct Pairs(Box<[Pair; 1 << LOOK]>);

/// One or two coefficients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pair {
    /// The values; 0 for none, and where the block ends.
    pub(super) values: [i16; 2],
    /// Bits of the first, and of both; 0 if not even the first stands there whole.
    bits: u8,
    /// Coefficients that are passed over before the first.
    pub(super) run: u8,
    /// From the first to the second; 1 if there is none.
    pub(super) step: u8,
    /// From the first to what comes next.
    pub(super) next: u8,
}

impl Pair {
    #[inline(always)]
    pub(super) const fn is_none(self) -> bool {
        self.bits == 0
    }

    #[inline(always)]
    pub(super) const fn bits_of_first(self) -> u32 {
        (self.bits & 15) as u32
    }

    #[inline(always)]
    pub(super) const fn bits_of_both(self) -> u32 {
        (self.bits >> 4) as u32
    }
}

impl Pairs {
    pub(super) fn new(table: &Huffman) -> Self {
        let mut pairs = Box::new([Pair::default(); 1 << LOOK]);
        for (ahead, pair) in (0_u64..).zip(pairs.iter_mut()) {
            let Some(first) = Coefficient::at(table, ahead << (64 - LOOK), LOOK) else {
                continue;
            };
            let single = Pair {
                values: [first.value, 0],
                bits: first.bits as u8 | (first.bits as u8) << 4,
                run: first.run,
                step: 1,
                next: 1,
            };
            let left = LOOK - first.bits;
            let second = if first.run == END_OF_BLOCK || left == 0 {
                None
            } else {
                Coefficient::at(table, ahead << (64 - left), left)
            };
            *pair = second.map_or(single, |second| Pair {
                values: [first.value, second.value],
                bits: first.bits as u8 | ((first.bits + second.bits) as u8) << 4,
                step: if second.value == 0 { 1 } else { second.run + 1 },
                next: second.run + 2,
                ..single
            });
        }
        Self(pairs)
    }

    /// What stands at the head of the bits.
    #[inline(always)]
    pub(super) fn at(&self, ahead: u64) -> Pair {
        self.0[(ahead >> (64 - LOOK)) as usize]
    }
}

/// One coefficient, or the end of the block, or sixteen zeros.
struct Coefficient {
    bits: u32,
    run: u8,
    value: i16,
}

impl Coefficient {
    /// What stands at the head of the bits, if it takes no more than `most`.
    fn at(table: &Huffman, ahead: u64, most: u32) -> Option<Self> {
        let code = table.code(ahead).filter(|code| code.all_bits() <= most)?;
        let size = code.value_bits();
        if size == 0 {
            return Some(Self { bits: code.all_bits(), run: code.run() as u8, value: 0 });
        }
        // The end of several blocks is no coefficient.
        (code.run() < usize::from(END_OF_BLOCK)).then(|| {
            let plain = (ahead << code.bits() >> (64 - size)) as i32;
            let value = if plain < 1 << (size - 1) { plain + 1 - (1 << size) } else { plain };
            Self { bits: code.all_bits(), run: code.run() as u8, value: value as i16 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_coefficients_one_or_the_end_are_read_at_one_look() {
        // Codes of 2 bits: 00 for the end, 01 for a value of 1 bit, 10 for one of 2 bits after 3 zeros; of 3 bits:
        // 110 for sixteen zeros.
        let mut counts = [0; 16];
        (counts[1], counts[2]) = (3, 1);
        let pairs = Pairs::new(&Huffman::new(&counts, &[0x00, 0x01, 0x32, 0xF0], true).unwrap());
        let at = |bits: &str| {
            let digits = bits.replace(' ', "");
            pairs.at(u64::from_str_radix(&digits, 2).unwrap() << (64 - digits.len()))
        };
        let end = at("00");
        assert_eq!((end.values, end.run, end.bits_of_first(), end.bits_of_both()), ([0, 0], 64, 2, 2));
        // A 1, then -2 after three zeros.
        let two = at("01 1 10 01");
        assert_eq!((two.values, two.run, two.step, two.next), ([1, -2], 0, 4, 5));
        assert_eq!((two.bits_of_first(), two.bits_of_both()), (3, 7));
        // A -1, then the end, which leads past every last coefficient.
        let last = at("01 0 00");
        assert_eq!((last.values, last.next, last.bits_of_both()), ([-1, 0], 66, 5));
        // Sixteen zeros, then a 3 after three more.
        let far = at("110 10 11");
        assert_eq!((far.values, far.run, far.step, far.next), ([0, 3], 15, 4, 5));
        assert!(at("111").is_none());
    }
}
