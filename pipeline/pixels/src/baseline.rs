//! The luma of baseline JPEGs, fast.
//!
//! Most images of the web are baseline JPEGs, and for measuring them their luma is enough. What
//! such a decode costs is the reading of Huffman codes, and this reads them as today's machines
//! like it: the byte stuffing is taken out first, so that 64 bits can be loaded at once from
//! anywhere; a code of up to 11 bits is found with one look in a table, which also tells how many
//! bits its value has; and nothing on the way from one code to the next waits for a value. Chroma
//! is read over without being kept. The inverse DCT is Arai, Agui and Nakajima's in floating
//! point, eight columns at a time.
//!
//! This knows one case, one scan of all components with luma at full size. For every other the
//! general decoder has the word.

use std::rc::Rc;

use crate::container::Jpeg;

/// Bits that are looked up at once.
const LOOK: u32 = 11;

/// The largest number of bits of a DC difference and of an AC value at 8 bits a sample.
const MAX_DC_BITS: u8 = 11;
const MAX_AC_BITS: u8 = 10;

/// Where the k-th coefficient of the zigzag order goes in a block whose rows are the columns of
/// the usual one: the inverse DCT transposes on its way.
const ZIGZAG_TRANSPOSED: [u8; 64] = {
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

/// What became of a JPEG here.
pub(crate) enum Outcome {
    /// Its samples; none if they were not wanted.
    Decoded(Vec<u8>),
    /// It is of the one case, and its data is not: too short, too long, or no code.
    Damaged,
    /// It is not of the one case.
    NotThisCase,
}

/// The luma samples of a JPEG.
pub(crate) fn luma(jpeg: &Jpeg<'_>) -> Outcome {
    read::<true>(jpeg)
}

/// Whether the data of a JPEG is whole: what decoders that show what they can do not tell.
pub(crate) fn check(jpeg: &Jpeg<'_>) -> Outcome {
    read::<false>(jpeg)
}

fn read<const KEPT: bool>(jpeg: &Jpeg<'_>) -> Outcome {
    let Some(scan) = Scan::read(jpeg) else {
        return Outcome::NotThisCase;
    };
    let Some(entropy) = Entropy::read(scan.coded) else {
        return Outcome::NotThisCase;
    };
    let size = (jpeg.width as usize, jpeg.height as usize);
    scan.decode::<KEPT>(&entropy, size).map_or(Outcome::Damaged, Outcome::Decoded)
}

/// What the segments before the one scan say.
struct Scan<'a> {
    components: Vec<Component>,
    restart_interval: usize,
    /// The entropy-coded data and what follows it.
    coded: &'a [u8],
}

/// A component and the tables it is coded with.
struct Component {
    horizontal: usize,
    vertical: usize,
    /// Dequantisation and the DCT's scale factors in one, in zigzag order.
    scale: [f32; 64],
    dc: Rc<Huffman>,
    ac: Rc<Huffman>,
}

impl<'a> Scan<'a> {
    /// Decodes luma, if it is `KEPT`, and reads over the rest. `None` if the data has another
    /// length than the image's blocks, or anything in it is no code.
    fn decode<const KEPT: bool>(&self, entropy: &Entropy, (width, height): (usize, usize)) -> Option<Vec<u8>> {
        let luma = &self.components[0];
        let (block_rows, block_columns) = (luma.vertical, luma.horizontal);
        let (across, down) = (width.div_ceil(8 * block_columns), height.div_ceil(8 * block_rows));
        let stride = across * block_columns * 8;
        let interval = if self.restart_interval == 0 { across * down } else { self.restart_interval };
        if entropy.segments.len() != (across * down).div_ceil(interval) {
            return None;
        }

        let mut samples = Vec::with_capacity(if KEPT { width * height } else { 0 });
        // One row of MCUs, padded to whole blocks.
        let mut band = vec![0_u8; if KEPT { stride * block_rows * 8 } else { 0 }];
        let mut block = [0.0; 64];
        let mut predictions = [0_i32; 4];
        let mut segments = entropy.segments.iter();
        let mut bits = Bits::new(&entropy.bytes, 0, 0);
        for row in 0..down {
            for column in 0..across {
                if (row * across + column).is_multiple_of(interval) {
                    bits.finish()?;
                    let &(start, end) = segments.next()?;
                    bits = Bits::new(&entropy.bytes, start, end);
                    predictions = [0; 4];
                }
                for y in 0..block_rows {
                    for x in 0..block_columns {
                        let last = luma.read_block::<KEPT>(&mut bits, &mut predictions[0], &mut block)?;
                        if KEPT {
                            let at = y * 8 * stride + (column * block_columns + x) * 8;
                            transform(&mut block, last, &mut band[at..], stride);
                        }
                    }
                }
                for (chroma, prediction) in self.components[1..].iter().zip(&mut predictions[1..]) {
                    for _ in 0..chroma.horizontal * chroma.vertical {
                        chroma.read_block::<false>(&mut bits, prediction, &mut block)?;
                    }
                }
            }
            bits.in_bounds()?;
            if KEPT {
                let rows = (height - row * block_rows * 8).min(block_rows * 8);
                band.chunks_exact(stride).take(rows).for_each(|row| samples.extend_from_slice(&row[..width]));
            }
        }
        bits.finish()?;
        Some(samples)
    }

    /// Reads the segments up to the scan; `None` if this is not the one case.
    fn read(jpeg: &Jpeg<'a>) -> Option<Self> {
        let mut quantisers = [None; 4];
        let mut huffman: [[Option<Rc<Huffman>>; 4]; 2] = Default::default();
        let mut frame: Option<&[u8]> = None;
        let mut restart_interval = 0;
        let mut at = 2;
        loop {
            let (&[0xFF, marker, high, low], _) = jpeg.bytes.get(at..)?.split_first_chunk::<4>()? else {
                return None;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let body = jpeg.bytes.get(at + 4..at + 2 + length)?;
            at += 2 + length;
            match marker {
                0xC0 | 0xC1 => frame = Some(body),
                0xC4 => read_huffman_tables(body, &mut huffman)?,
                0xDB => read_quantisers(body, &mut quantisers)?,
                0xDD => restart_interval = usize::from(u16::from_be_bytes(body.try_into().ok()?)),
                0xDA => {
                    let components = scan_components(frame?, body, &quantisers, &huffman)?;
                    return Some(Self { components, restart_interval, coded: &jpeg.bytes[at..] });
                }
                // Application data and comments.
                0xE0..=0xEF | 0xFE => {}
                _ => return None,
            }
        }
    }
}

/// The components of a scan that has all of the frame's, in its order, the first at full size.
fn scan_components(
    frame: &[u8],
    scan: &[u8],
    quantisers: &[Option<[u16; 64]>; 4],
    huffman: &[[Option<Rc<Huffman>>; 4]; 2],
) -> Option<Vec<Component>> {
    let (&count, in_scan) = scan.split_first()?;
    let in_frame = frame.get(6..)?;
    let count = usize::from(count);
    if !matches!(count, 1 | 3 | 4) || in_frame.len() != count * 3 || in_scan.len() != count * 2 + 3 {
        return None;
    }
    // Spectral selection and successive approximation of a sequential scan.
    if in_scan[count * 2..] != [0, 63, 0] {
        return None;
    }
    let mut components = Vec::with_capacity(count);
    for (of_frame, of_scan) in in_frame.chunks_exact(3).zip(in_scan.chunks_exact(2)) {
        let (&[id, sampling, quantiser], &[selected, tables]) = (of_frame, of_scan) else {
            return None;
        };
        let sides = [sampling >> 4, sampling & 15].map(usize::from);
        if id != selected || !sides.iter().all(|side| (1..=2).contains(side)) {
            return None;
        }
        // A lone component is not interleaved: its blocks follow one another whatever its sampling.
        let [horizontal, vertical] = if count == 1 { [1, 1] } else { sides };
        components.push(Component {
            horizontal,
            vertical,
            scale: scale((*quantisers.get(usize::from(quantiser))?)?),
            dc: huffman[0].get(usize::from(tables >> 4))?.clone()?,
            ac: huffman[1].get(usize::from(tables & 15))?.clone()?,
        });
    }
    let (horizontal, vertical) = (components[0].horizontal, components[0].vertical);
    let luma_is_largest = components.iter().all(|c| c.horizontal <= horizontal && c.vertical <= vertical);
    luma_is_largest.then_some(components)
}

fn read_quantisers(mut body: &[u8], quantisers: &mut [Option<[u16; 64]>; 4]) -> Option<()> {
    while let Some((&head, rest)) = body.split_first() {
        let table = quantisers.get_mut(usize::from(head & 15))?;
        *table = match head >> 4 {
            0 => {
                let (values, rest) = rest.split_first_chunk::<64>()?;
                body = rest;
                Some(values.map(u16::from))
            }
            1 => {
                let (values, rest) = rest.split_first_chunk::<128>()?;
                body = rest;
                Some(std::array::from_fn(|k| u16::from_be_bytes([values[2 * k], values[2 * k + 1]])))
            }
            _ => return None,
        };
    }
    Some(())
}

fn read_huffman_tables(mut body: &[u8], huffman: &mut [[Option<Rc<Huffman>>; 4]; 2]) -> Option<()> {
    while let Some((&head, rest)) = body.split_first() {
        let (counts, rest) = rest.split_first_chunk::<16>()?;
        let total = counts.iter().map(|&count| usize::from(count)).sum();
        let (symbols, rest) = rest.split_at_checked(total)?;
        body = rest;
        let kind = huffman.get_mut(usize::from(head >> 4))?;
        *kind.get_mut(usize::from(head & 15))? = Some(Huffman::new(counts, symbols, head >> 4 == 1)?.into());
    }
    Some(())
}

/// The factors that coefficients are multiplied with, in zigzag order: the quantiser's step and
/// the scale that the inverse DCT leaves out of its own work.
fn scale(quantiser: [u16; 64]) -> [f32; 64] {
    let factor = |k: usize| match k {
        0 => 1.0,
        k => std::f64::consts::SQRT_2 * (k as f64 * std::f64::consts::PI / 16.0).cos(),
    };
    std::array::from_fn(|k| {
        let place = usize::from(ZIGZAG_TRANSPOSED[k]);
        (f64::from(quantiser[k]) * factor(place / 8) * factor(place % 8) / 8.0) as f32
    })
}

/// What stands behind a code: how many bits it has, how many coefficients it passes over, and how
/// many bits of value follow it. Packed, so that a table of them stays in the first cache.
#[derive(Clone, Copy, Default)]
struct Code(u32);

impl Code {
    fn new(bits: u32, run: u8, value_bits: u8) -> Self {
        Self((bits + u32::from(value_bits)) | bits << 8 | u32::from(run) << 16 | u32::from(value_bits) << 24)
    }

    /// Bits of code and value together; 0 for no code.
    const fn all_bits(self) -> u32 {
        self.0 & 0xFF
    }

    const fn bits(self) -> u32 {
        self.0 >> 8 & 0xFF
    }

    const fn run(self) -> usize {
        (self.0 >> 16 & 0xFF) as usize
    }

    const fn value_bits(self) -> u32 {
        self.0 >> 24
    }
}

/// The run that stands for the end of the block: it leads past any last coefficient.
const END_OF_BLOCK: u8 = 64;

struct Huffman {
    /// The code at the head of each [`LOOK`] bits, if it is no longer than that.
    short: Box<[Code; 1 << LOOK]>,
    /// Longer codes: the code in the highest bits of 16, and what stands behind it, ascending.
    long: Vec<(u16, Code)>,
}

impl Huffman {
    /// The canonical code of `counts[i]` symbols of `i + 1` bits; `None` if it is no prefix code
    /// or a symbol is none of baseline's.
    fn new(counts: &[u8; 16], symbols: &[u8], is_ac: bool) -> Option<Self> {
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
                    (true, 0, 0) => Code::new(bits, END_OF_BLOCK, 0),
                    (true, 15, 0) => Code::new(bits, 15, 0),
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
    fn code(&self, buffer: u64) -> Option<Code> {
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

impl Component {
    /// Reads a block. If it is `KEPT`, its coefficients are added, scaled, to `block`, which is
    /// zero before. Returns the place in zigzag order of the last coefficient that is not 0.
    #[inline(always)]
    fn read_block<const KEPT: bool>(
        &self,
        bits: &mut Bits<'_>,
        prediction: &mut i32,
        block: &mut [f32; 64],
    ) -> Option<usize> {
        bits.refill();
        let code = self.dc.code(bits.buffer)?;
        *prediction = prediction.wrapping_add(bits.take(code));
        if KEPT {
            block[0] = *prediction as f32 * self.scale[0];
        }
        let (mut k, mut last) = (1, 0);
        while k < 64 {
            // 56 bits are enough for two codes of at most 16 + 10.
            bits.refill();
            for _ in 0..2 {
                let code = self.ac.code(bits.buffer)?;
                let value = bits.take(code);
                k += code.run();
                if code.value_bits() != 0 {
                    if k > 63 {
                        return None;
                    }
                    if KEPT {
                        block[usize::from(ZIGZAG_TRANSPOSED[k])] = value as f32 * self.scale[k];
                        last = k;
                    }
                }
                k += 1;
                if k > 63 {
                    break;
                }
            }
        }
        Some(last)
    }
}

/// Bits from the highest down, loaded eight bytes at a time.
struct Bits<'a> {
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
    const fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        Self { bytes, next: start, end, buffer: 0, count: 0 }
    }

    /// Makes at least 56 bits available; past the end of all bytes they are 0.
    #[inline(always)]
    fn refill(&mut self) {
        let load = self
            .bytes
            .get(self.next..self.next + 8)
            .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")));
        self.buffer |= load >> self.count;
        self.next += (63 - self.count as usize) >> 3;
        self.count |= 56;
    }

    /// Takes a code and its value off the head, and returns the value: of `n` bits, those that
    /// begin with 0 stand for the negative numbers from `1 - 2^n` up.
    #[inline(always)]
    fn take(&mut self, code: Code) -> i32 {
        let value_bits = code.value_bits();
        let value = (self.buffer << code.bits() >> 1 >> (63 - value_bits)) as i32;
        self.buffer <<= code.all_bits();
        self.count -= code.all_bits();
        let is_negative = value < (1 << value_bits >> 1);
        if is_negative { value + 1 - (1 << value_bits) } else { value }
    }

    /// How many bits of the segment are left, `None` if more were taken than it has.
    fn left(&self) -> Option<usize> {
        (self.end * 8 + self.count as usize).checked_sub(self.next * 8)
    }

    fn in_bounds(&self) -> Option<()> {
        self.left().map(drop)
    }

    /// The segment was read to its end, but for the bits that fill the last byte.
    fn finish(&self) -> Option<()> {
        self.left().filter(|&left| left < 8).map(drop)
    }
}

/// Entropy-coded data without its byte stuffing.
struct Entropy {
    bytes: Vec<u8>,
    /// Start and end of what lies between restart markers.
    segments: Vec<(usize, usize)>,
}

impl Entropy {
    /// Reads up to the end-of-image marker; `None` if another marker comes before it, or restart
    /// markers out of turn.
    fn read(coded: &[u8]) -> Option<Self> {
        let mut bytes = Vec::with_capacity(coded.len() + 8);
        let mut segments = Vec::new();
        let (mut rest, mut start) = (coded, 0);
        loop {
            let at = memchr::memchr(0xFF, rest)?;
            let (plain, marked) = rest.split_at(at);
            bytes.extend_from_slice(plain);
            let marker = *marked.get(1)?;
            rest = &marked[2..];
            match marker {
                // Fill before a marker.
                0xFF => rest = &marked[1..],
                0x00 => bytes.push(0xFF),
                0xD0..=0xD7 if usize::from(marker & 7) == segments.len() % 8 => {
                    segments.push((start, bytes.len()));
                    start = bytes.len();
                }
                0xD9 => {
                    segments.push((start, bytes.len()));
                    bytes.extend_from_slice(&[0; 8]);
                    return Some(Self { bytes, segments });
                }
                _ => return None,
            }
        }
    }
}

/// Transforms a block into 8 x 8 samples at the head of `out`, rows `stride` apart, and zeroes it.
#[inline(always)]
fn transform(block: &mut [f32; 64], last: usize, out: &mut [u8], stride: usize) {
    if last == 0 {
        let level = sample(block[0]);
        block[0] = 0.0;
        for row in out.chunks_mut(stride).take(8) {
            row[..8].fill(level);
        }
        return;
    }
    let (rows, _) = block.as_chunks_mut::<8>();
    let rows: &mut [[f32; 8]; 8] = rows.try_into().expect("64 are 8 times 8");
    let passed = inverse_dct(rows);
    let transposed = std::array::from_fn(|y| std::array::from_fn(|x| passed[x][y]));
    let samples = inverse_dct(&transposed);
    for (row, out) in samples.iter().zip(out.chunks_mut(stride)) {
        let out: &mut [u8; 8] = (&mut out[..8]).try_into().expect("eight samples");
        *out = row.map(sample);
    }
    *rows = [[0.0; 8]; 8];
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

/// The inverse DCT of eight columns side by side: Arai, Agui and Nakajima (1988), with 5
/// multiplications, on coefficients that carry its scale factors.
#[inline(always)]
fn inverse_dct(rows: &[[f32; 8]; 8]) -> [[f32; 8]; 8] {
    use std::f32::consts::SQRT_2;
    /// 2 cos(pi/8), 2 (cos(pi/8) - cos(3 pi/8)), 2 (cos(pi/8) + cos(3 pi/8)).
    const COS: [f32; 3] = [1.847_759_1, 1.082_392_2, 2.613_126];
    let mut out = [[0.0; 8]; 8];
    for i in 0..8 {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = rows.each_ref().map(|row| row[i]);
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
        let odd = [odd0, odd1, odd2, odd3];
        for k in 0..4 {
            out[k][i] = even[k] + odd[k];
            out[7 - k][i] = even[k] - odd[k];
        }
    }
    out
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
            transform(&mut block, 63, &mut samples, 8);
            for (sample, level) in samples.iter().zip(by_definition(&dequantised)) {
                let exact = (level + 128.0).clamp(0.0, 255.0);
                assert!((f64::from(*sample) - exact).abs() <= 0.501, "{sample} for {exact}");
            }
            assert_eq!(block, [0.0; 64], "the block is left clean for the next");
        }
    }

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
