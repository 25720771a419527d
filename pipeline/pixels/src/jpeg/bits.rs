//! The bits of entropy-coded data: the byte stuffing is taken out first, so that 64 bits can be
//! loaded at once from anywhere.

use std::cell::Cell;

use super::huffman::{Code, extended};

/// The largest buffer that is kept for the next image.
const MAX_SPARE: usize = 16 << 20;

thread_local! {
    /// The buffer of the thread's last [`Entropy`]: in a new one the kernel has to clear every page before it is written.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bits from the highest down, loaded eight bytes at a time.
#[derive(Clone)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// Where the next load begins.
    next: usize,
    /// Where this segment ends.
    end: usize,
    buffer: u64,
    /// Bits of the buffer that count as loaded.
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) const fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        Self { bytes, next: start, end, buffer: 0, count: 0 }
    }

    /// The bits ahead, the next one highest.
    #[inline(always)]
    pub(super) const fn ahead(&self) -> u64 {
        self.buffer
    }

    /// Makes at least 56 bits available; past the end of all bytes they are 0.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let load = self
            .bytes
            .get(self.next..self.next + 8)
            .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")));
        self.buffer |= load >> self.count;
        self.next += (63 - self.count as usize) >> 3;
        self.count |= 56;
    }

    /// Takes a code and its value off the head, and returns the value.
    #[inline(always)]
    pub(super) fn take(&mut self, code: Code) -> i32 {
        extended(self.take_plain(code), code.value_bits())
    }

    /// Takes a code and the bits behind it off the head, and returns these as they are.
    #[inline(always)]
    pub(super) fn take_plain(&mut self, code: Code) -> i32 {
        let value = (self.buffer << code.bits() >> 1 >> (63 - code.value_bits())) as i32;
        self.buffer <<= code.shift();
        self.count -= code.all_bits();
        value
    }

    /// Passes over some bits.
    #[inline(always)]
    pub(super) fn skip(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.count -= bits;
    }

    /// Takes one bit, loading more where there is none.
    #[inline(always)]
    pub(super) fn take_bit(&mut self) -> bool {
        if self.count == 0 {
            self.refill();
        }
        let bit = self.buffer >> 63 != 0;
        self.buffer <<= 1;
        self.count -= 1;
        bit
    }

    /// How many bits of the segment are left, `None` if more were taken than it has.
    fn left(&self) -> Option<usize> {
        (self.end * 8 + self.count as usize).checked_sub(self.next * 8)
    }

    pub(super) fn in_bounds(&self) -> Option<()> {
        self.left().map(drop)
    }

    /// The segment was read to its end, but for the bits that fill the last byte.
    pub(super) fn finish(&self) -> Option<()> {
        self.left().filter(|&left| left < 8).map(drop)
    }
}

/// Entropy-coded data without its byte stuffing.
pub(super) struct Entropy {
    bytes: Vec<u8>,
    /// Start and end of what lies between restart markers.
    segments: Vec<(usize, usize)>,
    /// Whether there are as many of them as were expected.
    pub(super) is_whole: bool,
    /// The coded bytes, stuffing and restart markers included.
    pub(super) coded_bytes: usize,
    /// The marker that ended it.
    pub(super) marker: u8,
}

impl Entropy {
    /// Reads up to the next marker that is no restart; `None` if there is none, or if restart
    /// markers come out of turn. More segments than are `expected` are counted and not kept.
    pub(super) fn read(coded: &[u8], expected: usize) -> Option<Self> {
        let mut bytes = SPARE.take();
        bytes.clear();
        bytes.reserve(coded.len() + 8);
        let mut segments = Vec::new();
        let (mut rest, mut start, mut count) = (coded, 0, 0);
        loop {
            let at = memchr::memchr(0xFF, rest)?;
            let (plain, marked) = rest.split_at(at);
            bytes.extend_from_slice(plain);
            let marker = *marked.get(1)?;
            match marker {
                // Fill before a marker.
                0xFF => {
                    rest = &marked[1..];
                    continue;
                }
                0x00 => {
                    bytes.push(0xFF);
                    rest = &marked[2..];
                    continue;
                }
                0xD0..=0xD7 if usize::from(marker & 7) != count % 8 => return None,
                _ => rest = &marked[2..],
            }
            count += 1;
            if count <= expected {
                segments.push((start, bytes.len()));
            }
            start = bytes.len();
            if !matches!(marker, 0xD0..=0xD7) {
                bytes.extend_from_slice(&[0; 8]);
                let is_whole = count == expected;
                return Some(Self { bytes, segments, is_whole, coded_bytes: coded.len() - marked.len(), marker });
            }
        }
    }

    /// The same in a buffer of its own size, for when many are held at once.
    pub(super) fn compact(mut self) -> Self {
        let own = self.bytes.as_slice().to_vec();
        give_back(std::mem::replace(&mut self.bytes, own));
        self
    }

    /// The segment at this place among those between restart markers.
    pub(super) fn segment(&self, at: usize) -> Option<Bits<'_>> {
        self.segments.get(at).map(|&(start, end)| Bits::new(&self.bytes, start, end))
    }
}

impl Drop for Entropy {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.bytes));
    }
}

/// Keeps the larger of a buffer and the spare one.
fn give_back(buffer: Vec<u8>) {
    let spare = SPARE.take();
    SPARE.set(if (spare.capacity()..=MAX_SPARE).contains(&buffer.capacity()) { buffer } else { spare });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_extended_as_the_standard_says() {
        // ITU T.81, table F.1: of 3 bits, 000 is -7, 011 is -4, 100 is 4, 111 is 7.
        for (pattern, value) in [(0b000_u64, -7), (0b011, -4), (0b100, 4), (0b111, 7)] {
            let mut bits = Bits::new(&[], 0, 0);
            (bits.buffer, bits.count) = (pattern << 59, 56);
            assert_eq!(bits.take(Code::new(2, 0, 3)), value);
            assert_eq!(bits.count, 51);
        }
    }

    #[test]
    fn single_bits_come_in_order_across_loads() {
        let bytes: Vec<u8> = (0..40).map(|i: u8| i.wrapping_mul(73)).collect();
        let mut bits = Bits::new(&bytes, 0, 32);
        for at in 0..32 * 8 {
            assert_eq!(bits.take_bit(), bytes[at / 8] >> (7 - at % 8) & 1 == 1, "bit {at}");
        }
        assert!(bits.finish().is_some());
        bits.take_bit();
        assert!(bits.in_bounds().is_none());
    }

    #[test]
    fn stuffing_and_restarts_are_taken_out_up_to_the_next_marker() {
        let coded = [1, 0xFF, 0, 2, 0xFF, 0xD0, 3, 0xFF, 0xFF, 0xC4, 9];
        let entropy = Entropy::read(&coded, 2).unwrap();
        assert_eq!((&entropy.bytes[..4], &entropy.segments[..]), (&[1, 0xFF, 2, 3][..], &[(0, 3), (3, 4)][..]));
        assert_eq!((entropy.marker, entropy.coded_bytes), (0xC4, 8));
        assert!(entropy.is_whole && ![1, 3].iter().any(|&count| Entropy::read(&coded, count).unwrap().is_whole));
        assert!(Entropy::read(&[1, 0xFF, 0xD1, 2, 0xFF, 0xD9], 2).is_none(), "a restart out of turn");
        assert!(Entropy::read(&[1, 2, 3], 1).is_none());
    }

    #[test]
    fn a_buffer_that_serves_again_holds_nothing_of_before() {
        let long = [&[7; 100][..], &[0xFF, 0xD9]].concat();
        let first = Entropy::read(&long, 1).unwrap();
        let place = first.bytes.as_ptr();
        let compact = first.compact();
        let short = Entropy::read(&[1, 2, 0xFF, 0xD9], 1).unwrap();
        assert_eq!(short.bytes.as_ptr(), place, "the same buffer");
        assert_eq!(short.bytes, [&[1, 2][..], &[0; 8]].concat());
        assert_eq!(compact.bytes, [&[7; 100][..], &[0; 8]].concat());
    }
}
