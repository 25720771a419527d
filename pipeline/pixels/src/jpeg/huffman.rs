//! Huffman codes: one of up to 11 bits is found with one look in a table, which also tells how
//! many bits its value has, and nothing on the way from one code to the next waits for a value.

/// Bits that are looked up at once.
const LOOK: u32 = 11;

/// The largest number of bits of a DC difference and of an AC value at 8 bits a sample.
const MAX_DC_BITS: u8 = 11;
const MAX_AC_BITS: u8 = 10;

/// What stands behind a code: how many bits it has, how many coefficients it passes over, and how
/// many bits of value follow it. Packed, so that a table of them stays in the first cache.
#[derive(Clone, Copy, Default)]
pub(super) struct Code(u32);

impl Code {
    pub(super) const fn new(bits: u32, run: u8, value_bits: u8) -> Self {
        let (run, value_bits) = (run as u32, value_bits as u32);
        Self((bits + value_bits) | bits << 8 | run << 16 | value_bits << 24)
    }

    /// Bits of code and value together; 0 for no code.
    pub(super) const fn all_bits(self) -> u32 {
        self.0 & 0xFF
    }

    /// The same, to shift by: what masks nothing but what a shift masks itself is the shortest way to the next code.
    pub(super) const fn shift(self) -> u32 {
        self.0 & 63
    }

    pub(super) const fn bits(self) -> u32 {
        self.0 >> 8 & 0xFF
    }

    pub(super) const fn run(self) -> usize {
        (self.0 >> 16 & 0xFF) as usize
    }

    pub(super) const fn value_bits(self) -> u32 {
        self.0 >> 24
    }
}

/// The run that stands for the end of the block: it leads past any last coefficient. In a progressive scan so many
/// more stand for the end of as many blocks as the bits behind the code say.
pub(super) const END_OF_BLOCK: u8 = 64;

/// A canonical code, as a DHT segment gives it.
pub(super) struct Huffman {
    /// The code at the head of each [`LOOK`] bits, if it is no longer than that.
    short: Box<[Code; 1 << LOOK]>,
    /// Longer codes: the code in the highest bits of 16, and what stands behind it, ascending.
    long: Vec<(u16, Code)>,
}

impl Huffman {
    /// The canonical code of `counts[i]` symbols of `i + 1` bits; `None` if it is no prefix code
    /// or a symbol is none of baseline's.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8], is_ac: bool) -> Option<Self> {
        let mut short = Box::new([Code::default(); 1 << LOOK]);
        let mut long = Vec::new();
        let mut symbols = symbols.iter();
        // The next code, at 16 bits.
        let mut next = 0_u32;
        for (bits, &count) in (1..).zip(counts) {
            for &symbol in symbols.by_ref().take(count.into()) {
                let step = 1 << (16 - bits);
                if next + step > 1 << 16 {
                    return None;
                }
                let code = match (is_ac, symbol >> 4, symbol & 15) {
                    (false, 0, size) if size <= MAX_DC_BITS => Code::new(bits, 0, size),
                    (true, 15, 0) => Code::new(bits, 15, 0),
                    (true, blocks, 0) => Code::new(bits, END_OF_BLOCK + blocks, blocks),
                    (true, run, size) if (1..=MAX_AC_BITS).contains(&size) => Code::new(bits, run, size),
                    _ => return None,
                };
                if bits <= LOOK {
                    let shift = 16 - LOOK;
                    short[(next >> shift) as usize..((next + step) >> shift) as usize].fill(code);
                } else {
                    long.push((next as u16, code));
                }
                next += step;
            }
        }
        Some(Self { short, long })
    }

    /// The code at the head of the bits.
    #[inline(always)]
    pub(super) fn code(&self, buffer: u64) -> Option<Code> {
        let code = self.short[(buffer >> (64 - LOOK)) as usize];
        if code.all_bits() != 0 { Some(code) } else { self.long_code(buffer) }
    }

    #[cold]
    fn long_code(&self, buffer: u64) -> Option<Code> {
        let head = (buffer >> 48) as u16;
        let (first, code) = self.long[..self.long.partition_point(|&(first, _)| first <= head)].last()?;
        (head - first < 1 << (16 - code.bits())).then_some(*code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_are_no_prefix_code_are_refused() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(Huffman::new(&counts, &[0, 1, 2], false).is_none());
        counts[0] = 2;
        assert!(Huffman::new(&counts, &[0, 1], false).is_some());
    }

    #[test]
    fn long_codes_are_found_and_gaps_are_not() {
        // One code of 1 bit, one of 14 and two of 16.
        let mut counts = [0; 16];
        (counts[0], counts[13], counts[15]) = (1, 1, 2);
        let table = Huffman::new(&counts, &[1, 2, 3, 4], false).unwrap();
        let found = |head: u16| table.code(u64::from(head) << 48).map(|code| (code.bits(), code.value_bits()));
        assert_eq!(found(0x0000), Some((1, 1)));
        assert_eq!(found(0x8003), Some((14, 2)));
        assert_eq!(found(0x8004), Some((16, 3)));
        assert_eq!(found(0x8005), Some((16, 4)));
        assert_eq!(found(0x8006), None);
        assert_eq!(found(0xFFFF), None);
    }
}
