//! Coefficients to bits: Huffman codes, and the bytes that they fill.

use super::forward::Coefficients;
use super::tables::Table;

/// The codes of a table, by symbol: the code, shifted up by five bits, and its length.
pub(super) struct Codes([u32; 256]);

impl Codes {
    pub(super) fn new(table: &Table) -> Self {
        let mut codes = [0; 256];
        let (mut next, mut symbols) = (0_u32, table.symbols.iter());
        for (length, &count) in (1..).zip(&table.counts) {
            for &symbol in symbols.by_ref().take(count.into()) {
                codes[usize::from(symbol)] = next << 5 | length;
                next += 1;
            }
            next <<= 1;
        }
        Self(codes)
    }

    /// The code of a symbol, and how many bits it has.
    #[inline(always)]
    fn of(&self, symbol: u32) -> (u32, u32) {
        let code = self.0[(symbol & 0xFF) as usize];
        (code >> 5, code & 31)
    }
}

/// The end of a block, and sixteen zeros.
const END_OF_BLOCK: u32 = 0x00;
const ZEROS: u32 = 0xF0;

/// Entropy-coded data in the making, byte stuffing included.
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Bytes that are written; there is room beyond.
    length: usize,
    /// The bits that fill no word yet, lowest.
    buffer: u64,
    /// Bits of the buffer that are free.
    free: u32,
}

impl Writer {
    /// More bytes than a block can take: 64 codes and values of at most 27 bits, all of them stuffed, and a word.
    const BLOCK: usize = 512;
    /// How much room is made where there is less than for a block.
    const ROOM: usize = 1 << 16;

    /// Goes on behind `bytes`.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let length = bytes.len();
        Self { bytes, length, buffer: 0, free: 64 }
    }

    /// Codes a block, whose first coefficient was `prediction` in the one before; returns what it is in this.
    #[inline(always)]
    pub(super) fn block(&mut self, block: &Coefficients, prediction: i16, dc: &Codes, ac: &Codes) -> i16 {
        if self.bytes.len() < self.length + Self::BLOCK {
            self.bytes.resize(self.length + Self::ROOM, 0);
        }
        self.value(dc, 0, i32::from(block.values[0]) - i32::from(prediction));
        let mut left = block.nonzero & !1;
        let mut last = 0;
        while left != 0 {
            let k = left.trailing_zeros();
            left &= left - 1;
            let mut run = k - last - 1;
            while run > 15 {
                let (zeros, bits) = ac.of(ZEROS);
                self.put(zeros, bits);
                run -= 16;
            }
            self.value(ac, run << 4, i32::from(block.values[(k & 63) as usize]));
            last = k;
        }
        if last < 63 {
            let (end, bits) = ac.of(END_OF_BLOCK);
            self.put(end, bits);
        }
        block.values[0]
    }

    /// A code and the value behind it, of as many bits as the code says: negative ones less 1.
    #[inline(always)]
    fn value(&mut self, codes: &Codes, run: u32, value: i32) {
        let sign = value >> 31;
        let size = 32 - ((value ^ sign) - sign).leading_zeros();
        let (code, bits) = codes.of(run | size);
        let value = (value + sign) as u32 & ((1 << size) - 1);
        self.put(code << size | value, bits + size);
    }

    /// Adds the low `count` bits, of which there are at most 32.
    #[inline(always)]
    fn put(&mut self, bits: u32, count: u32) {
        if count <= self.free {
            self.free -= count;
            self.buffer = self.buffer << count | u64::from(bits);
            return;
        }
        let over = count - self.free;
        // The buffer holds 32 bits and more, or there was room.
        self.word(self.buffer << self.free | u64::from(bits >> over));
        self.buffer = u64::from(bits);
        self.free = 64 - over;
    }

    /// Writes eight bytes, a zero behind each that is all ones.
    #[inline(always)]
    fn word(&mut self, word: u64) {
        const LOWEST: u64 = 0x0101_0101_0101_0101;
        let has_ones = (!word).wrapping_sub(LOWEST) & word & (LOWEST << 7);
        let bytes = word.to_be_bytes();
        if has_ones == 0 {
            self.bytes[self.length..][..8].copy_from_slice(&bytes);
            self.length += 8;
        } else {
            bytes.into_iter().for_each(|byte| self.byte(byte));
        }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
        if byte == 0xFF {
            self.bytes[self.length] = 0;
            self.length += 1;
        }
    }

    /// Fills the last byte with ones, as ITU T.81 asks for, and returns all bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let used = 64 - self.free;
        self.bytes.resize(self.length + 16, 0);
        let filled = if used == 0 { 0 } else { (self.buffer << self.free) | ((1_u64 << self.free) - 1) };
        for byte in filled.to_be_bytes().into_iter().take(used.div_ceil(8) as usize) {
            self.byte(byte);
        }
        self.bytes.truncate(self.length);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_out_in_order_with_a_zero_behind_each_byte_of_ones() {
        let mut writer = Writer::new(vec![7]);
        writer.bytes.resize(200, 0);
        let mut wanted = String::new();
        for (bits, count) in
            (0..60).map(|i: u32| (if i.is_multiple_of(3) { !0 } else { i.wrapping_mul(0x9E37_79B9) }, i % 27 + 1))
        {
            let bits = bits & ((1 << count) - 1);
            writer.put(bits, count);
            wanted += &format!("{bits:0width$b}", width = count as usize);
        }
        while !wanted.len().is_multiple_of(8) {
            wanted.push('1');
        }
        let bytes =
            wanted.as_bytes().chunks(8).map(|bits| u8::from_str_radix(str::from_utf8(bits).unwrap(), 2).unwrap());
        let stuffed: Vec<u8> = bytes.flat_map(|byte| if byte == 0xFF { vec![byte, 0] } else { vec![byte] }).collect();
        assert!(stuffed.contains(&0xFF));
        assert_eq!(writer.finish(), [&[7], &stuffed[..]].concat());
    }
}
