//! Huffman codes: one of up to 11 bits is found with one look in a table, which also tells how
//! many bits its value has, and nothing on the way from one code to the next waits for a value. A
//! second table has the values, too: most looks in it give two coefficients at once. A third, for
//! coefficients that nobody wants, has no values and as many coefficients as a look shows.

use std::cell::OnceCell;

/// Bits that are looked up at once.
const LOOK: u32 = 11;

/// Looks for which the bits of one load are enough.
pub(super) const LOOKS: u32 = 56 / LOOK;

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

/// A value of so many bits: those that begin with 0 stand for the negative numbers from `1 - 2^bits` up (ITU T.81, F.2.2.1).
pub(super) const fn extended(plain: i32, bits: u32) -> i32 {
    let is_negative = plain < (1 << bits >> 1);
    if is_negative { plain + 1 - (1 << bits) } else { plain }
}

/// The run that stands for the end of the block: it leads past any last coefficient. In a progressive scan so many
/// more stand for the end of as many blocks as the bits behind the code say.
pub(super) const END_OF_BLOCK: u8 = 64;

/// A canonical code, as a DHT segment gives it.
pub(super) struct Huffman {
    /// The code at the head of each [`LOOK`] bits, if it is no longer than that.
    short: Box<[Code; 1 << LOOK]>,
    /// Made when a scan first asks for it: a file may hold many more tables than it uses.
    looks: OnceCell<Shown<Look>>,
    passes: OnceCell<Shown<Pass>>,
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
        Some(Self { short, looks: OnceCell::new(), passes: OnceCell::new(), long })
    }

    /// What one look shows of AC coefficients with their values.
    #[inline(always)]
    pub(super) fn looks(&self) -> &Shown<Look> {
        self.looks.get_or_init(|| Shown::new(|head| Look::at(head, &self.short)))
    }

    /// What one look shows of AC coefficients that are passed over.
    #[inline(always)]
    pub(super) fn passes(&self) -> &Shown<Pass> {
        self.passes.get_or_init(|| Shown::new(|head| Pass::at(head, &self.short)))
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

/// What each [`LOOK`] bits show.
pub(super) struct Shown<T>(Box<[T; 1 << LOOK]>);

impl<T: Copy> Shown<T> {
    #[cold]
    fn new(at: impl Fn(usize) -> T) -> Self {
        Self(Box::new(std::array::from_fn(at)))
    }

    /// What the head of the bits shows.
    #[inline(always)]
    pub(super) fn at(&self, buffer: u64) -> T {
        self.0[(buffer >> (64 - LOOK)) as usize]
    }
}

/// One or two coefficients with their values, as one look finds them. Nothing that is done with it depends on how many
/// there are: a branch on that could not be foretold.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// Coefficients that the first value passes over; [`END_OF_BLOCK`] where not all bits of one value are seen.
    pub(super) run: u8,
    /// From the first value's place to the second's; 0 where there is no second.
    pub(super) step: u8,
    /// From the first value's place to that of the next code; [`END_OF_BLOCK`] if the block ends here.
    pub(super) next: u8,
    /// Bits of all.
    pub(super) bits: u8,
    pub(super) first: i16,
    /// The first again where there is no second.
    pub(super) second: i16,
}

impl Look {
    const NOTHING: Self = Self { run: END_OF_BLOCK, step: 0, next: 0, bits: 0, first: 0, second: 0 };

    /// What the highest bits of [`LOOK`] show.
    fn at(head: usize, short: &[Code; 1 << LOOK]) -> Self {
        // The code behind the first `passed` bits, if the rest shows all of it and of its value.
        let code = |passed: u32| {
            let code = short[head << passed & ((1 << LOOK) - 1)];
            (code.all_bits() != 0 && passed + code.all_bits() <= LOOK).then_some(code)
        };
        let value = |passed: u32, code: Code| {
            let plain = head >> (LOOK - passed - code.all_bits()) & ((1 << code.value_bits()) - 1);
            extended(plain as i32, code.value_bits()) as i16
        };
        let has_value = |code: &Code| code.value_bits() > 0 && code.run() < usize::from(END_OF_BLOCK);
        let Some(code_1) = code(0).filter(has_value) else {
            return Self::NOTHING;
        };
        let first = value(0, code_1);
        let (run, bits) = (code_1.run() as u8, code_1.all_bits() as u8);
        let look = Self { run, step: 0, next: 1, bits, first, second: first };
        let Some(code_2) = code(code_1.all_bits()) else {
            return look;
        };
        let bits = bits + code_2.all_bits() as u8;
        match code_2.run() as u8 {
            END_OF_BLOCK => Self { next: END_OF_BLOCK, bits, ..look },
            // Ends of several blocks, and sixteen zeros, which a progressive scan may let pass the last coefficient.
            _ if !has_value(&code_2) => look,
            run => Self { step: run + 1, next: run + 2, bits, second: value(code_1.all_bits(), code_2), ..look },
        }
    }
}

/// As many coefficients as one look shows whole, without their values. Packed: the tables of what is wanted leave little
/// of the first cache.
#[derive(Clone, Copy)]
pub(super) struct Pass(u16);

impl Pass {
    /// More coefficients than any block has.
    const NOTHING: Self = Self::new(0, END_OF_BLOCK as usize, false);

    const fn new(bits: u32, coefficients: usize, is_end: bool) -> Self {
        Self(bits as u16 | (coefficients as u16) << 6 | (is_end as u16) << 15)
    }

    /// What the highest bits of [`LOOK`] show.
    fn at(head: usize, short: &[Code; 1 << LOOK]) -> Self {
        let (mut bits, mut coefficients) = (0, 0);
        loop {
            let code = short[head << bits & ((1 << LOOK) - 1)];
            let is_seen = code.all_bits() != 0 && bits + code.all_bits() <= LOOK;
            match code.run() as u8 {
                END_OF_BLOCK if is_seen => return Self::new(bits + code.all_bits(), coefficients, true),
                run if is_seen && run < END_OF_BLOCK => coefficients += usize::from(run) + 1,
                _ if bits == 0 => return Self::NOTHING,
                _ => return Self::new(bits, coefficients, false),
            }
            bits += code.all_bits();
        }
    }

    /// Bits of all.
    pub(super) const fn bits(self) -> u32 {
        self.0 as u32 & 63
    }

    /// Coefficients that it leads over; where no code is seen, more than can be left of a block.
    pub(super) const fn coefficients(self) -> usize {
        (self.0 >> 6 & 0x1FF) as usize
    }

    /// Whether the block ends behind them.
    pub(super) const fn is_end(self) -> bool {
        self.0 >> 15 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::bits::Bits;
    use super::*;

    /// An end, one value, three, a run of sixteen zeros, runs before values, ends of blocks, long codes.
    fn table() -> Huffman {
        let mut counts = [0; 16];
        (counts[1], counts[2], counts[3], counts[4], counts[8], counts[13]) = (2, 2, 2, 2, 3, 2);
        let symbols = [0x01, 0x00, 0x02, 0x11, 0xF0, 0x03, 0x21, 0x41, 0x10, 0x75, 0x0A, 0x12, 0x31];
        Huffman::new(&counts, &symbols, true).unwrap()
    }

    /// Whatever [`LOOK`] bits begin with, and two kinds of bits behind them.
    fn all_heads() -> impl Iterator<Item = (u64, Vec<u8>)> {
        (0..1 << LOOK).flat_map(|head| [(head, 0), (head, u64::MAX)]).map(|(head, rest): (u64, u64)| {
            let buffer = head << (64 - LOOK) | rest >> LOOK;
            (buffer, [buffer, rest].iter().flat_map(|word| word.to_be_bytes()).collect())
        })
    }

    /// Whatever bits follow, a look shows what its codes say one after another, and no more than is there.
    #[test]
    fn a_look_shows_what_its_codes_say() {
        let table = table();
        let (mut twos, mut ends) = (0, 0);
        for (buffer, bytes) in all_heads() {
            let head = buffer >> (64 - LOOK);
            let mut bits = Bits::new(&bytes, 0, bytes.len());
            let mut code = || {
                bits.refill();
                let code = table.code(bits.ahead());
                code.map(|code| (code, bits.take(code)))
            };
            let look = table.looks().at(buffer);
            let (one, two) = (code(), code());
            let has_value = |code: &Code| code.run() < 64 && code.value_bits() > 0;
            let Some((one, value)) = one.filter(|(code, _)| has_value(code) && code.all_bits() <= LOOK) else {
                assert_eq!(look.run, END_OF_BLOCK, "{head:b}");
                continue;
            };
            assert_eq!((usize::from(look.run), i32::from(look.first)), (one.run(), value), "{head:b}");
            let shown = two.filter(|(code, _)| one.all_bits() + code.all_bits() <= LOOK);
            let (step, next, bits, second) = match shown {
                Some((two, _)) if two.run() == 64 => (0, 64, two.all_bits(), value),
                Some((two, second)) if has_value(&two) => (two.run() + 1, two.run() + 2, two.all_bits(), second),
                _ => (0, 1, 0, value),
            };
            twos += u32::from(step > 0);
            ends += u32::from(next == 64);
            assert_eq!((usize::from(look.step), usize::from(look.next)), (step, next), "{head:b}");
            assert_eq!((u32::from(look.bits), i32::from(look.second)), (one.all_bits() + bits, second), "{head:b}");
        }
        assert!(twos > 500 && ends > 100, "{twos} {ends}");
    }

    #[test]
    fn a_pass_leads_over_what_its_codes_say() {
        let table = table();
        let (mut several, mut ends) = (0, 0);
        for (buffer, bytes) in all_heads() {
            let mut bits = Bits::new(&bytes, 0, bytes.len());
            let (mut seen, mut coefficients, mut is_end, mut codes) = (0, 0, false, 0);
            while !is_end {
                bits.refill();
                let Some(code) = table.code(bits.ahead()).filter(|code| seen + code.all_bits() <= LOOK) else {
                    break;
                };
                is_end = code.run() == usize::from(END_OF_BLOCK);
                if !is_end && code.run() > usize::from(END_OF_BLOCK) {
                    break;
                }
                bits.skip(code.all_bits());
                seen += code.all_bits();
                coefficients += if is_end { 0 } else { code.run() + 1 };
                codes += 1;
            }
            if codes == 0 {
                coefficients = 64;
            }
            let pass = table.passes().at(buffer);
            assert_eq!((pass.bits(), pass.coefficients(), pass.is_end()), (seen, coefficients, is_end), "{buffer:x}");
            several += u32::from(codes > 2);
            ends += u32::from(is_end);
        }
        assert!(several > 500 && ends > 500, "{several} {ends}");
    }

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
