//! JPEGs of several scans: sequential ones whose components come one after another, and progressive
//! ones, whose coefficients come first roughly, then bit by bit (ITU T.81, annex G).

use fearless_simd::{Level, Simd, dispatch};

use super::bits::{Bits, Entropy};
use super::dct::{Scale, ZIGZAG_TRANSPOSED, scale, transform};
use super::huffman::{END_OF_BLOCK, Huffman, LOOKS};
use super::planes::{Band, Plane, Rows};
use super::segments::{Frame, Scan, ScanComponent, Segments};
use super::select::nth_set;
use super::{Kept, Stop};

/// Scans of a file. Encoders write about 10; each more is a pass over the image.
const MAX_SCANS: usize = 64;
/// The highest bit at which a first scan may stop.
const MAX_SHIFT: u8 = 13;

/// The coefficients of a component.
struct Grid {
    horizontal: usize,
    vertical: usize,
    /// Blocks of a row, padded to whole MCUs.
    stride: usize,
    /// Blocks that hold samples, along and down: those of a scan of this component alone.
    size: (usize, usize),
    /// Of each block, which coefficients are not 0, the first of the zigzag order lowest. It alone says how the bits of
    /// later scans are read.
    nonzero: Vec<u64>,
    /// Of each block, the coefficients in the order of [`ZIGZAG_TRANSPOSED`]'s places; one block for all where they
    /// are not kept.
    coefficients: Vec<[i16; 64]>,
    is_kept: bool,
    /// The quantiser at the component's first scan.
    quantiser: Option<[u16; 64]>,
}

/// A block of a grid.
struct Block<'a> {
    coefficients: &'a mut [i16; 64],
    nonzero: &'a mut u64,
}

/// What one block leaves to the next; a restart clears it.
#[derive(Default)]
struct State {
    predictions: [i32; 4],
    /// Blocks that are known to end at once.
    ended_blocks: u32,
}

/// Decodes what is kept. The rows of luma go to `rows`, if there is such.
pub(super) fn decode<'a>(
    mut segments: Segments<'_>,
    first: Scan<'_>,
    kept: Kept,
    mut rows: Option<&'a mut Rows<'a>>,
) -> Result<Vec<Plane>, Stop> {
    let size = segments.size;
    let frame = segments.frame()?;
    if frame.components.len() == 4 {
        return Err(Stop::NotThisCase);
    }
    let (mcus, is_progressive) = (frame.mcus(size), frame.is_progressive);
    let count = frame.components.len();
    let mut grids: Vec<Grid> = (0..count).map(|at| Grid::new(frame, at, size, at < kept.of(count))).collect();
    let mut next = Some(first);
    for _ in 0..MAX_SCANS {
        let Some(scan) = next else {
            if grids.iter().any(|grid| grid.quantiser.is_none()) {
                return Err(Stop::Damaged);
            }
            let planes = grids.iter().filter(|grid| grid.is_kept);
            return planes.filter_map(|grid| grid.transformed(size, &grids[0], rows.take()).transpose()).collect();
        };
        for component in &scan.components {
            let grid = &mut grids[component.index];
            grid.quantiser = grid.quantiser.or(segments.quantiser(component.index).ok());
        }
        let entropy = Entropy::read(scan.coded).ok_or(Stop::Damaged)?;
        let walk = Walk { scan: &scan, entropy: &entropy, mcus, restart_interval: segments.restart_interval };
        let read = dispatch!(Level::new(), simd => walk.read(simd, &mut grids, is_progressive));
        read.ok_or(Stop::Damaged)?;
        segments.skip_coded(entropy.coded_bytes);
        next = segments.next_scan()?;
    }
    Err(Stop::Damaged)
}

impl Kept {
    /// How many of so many components.
    fn of(self, components: usize) -> usize {
        match self {
            Kept::None => 0,
            Kept::Luma => 1,
            Kept::All => components,
        }
    }
}

impl Grid {
    fn new(frame: &Frame, component: usize, size: (usize, usize), is_kept: bool) -> Self {
        let (width, height) = frame.plane_size(component, size);
        let (across, down) = frame.mcus(size);
        let (horizontal, vertical) = (frame.components[component].horizontal, frame.components[component].vertical);
        let stride = across * horizontal;
        let blocks = stride * down * vertical;
        Self {
            horizontal,
            vertical,
            stride,
            size: (width.div_ceil(8), height.div_ceil(8)),
            nonzero: vec![0; blocks],
            coefficients: vec![[0; 64]; if is_kept { blocks } else { 1 }],
            is_kept,
            quantiser: None,
        }
    }

    /// The samples, of an image of this size with this luma, unless they go to `rows`.
    fn transformed<'a>(
        &self,
        (width, height): (usize, usize),
        luma: &Grid,
        rows: Option<&'a mut Rows<'a>>,
    ) -> Result<Option<Plane>, Stop> {
        let scale = scale(self.quantiser.ok_or(Stop::Damaged)?);
        let part = |length: usize, of: usize, full: usize| (length * of).div_ceil(full);
        let plane = (part(width, self.horizontal, luma.horizontal), part(height, self.vertical, luma.vertical));
        let mut band = Band::new(self.stride, 1, plane, rows);
        dispatch!(Level::new(), simd => self.transform_into(simd, &scale, &mut band));
        Ok(band.into_plane())
    }

    #[inline(always)]
    fn transform_into<S: Simd>(&self, simd: S, scale: &Scale, band: &mut Band<'_>) {
        let rows = self.coefficients.chunks_exact(self.stride).zip(self.nonzero.chunks_exact(self.stride));
        for (blocks, nonzero) in rows.take(self.size.1) {
            for (column, (block, nonzero)) in blocks.iter().zip(nonzero).enumerate().take(self.size.0) {
                let samples = band.block(0, column);
                transform(simd, block, scale, nonzero & !1 == 0, samples);
            }
            band.flush();
        }
    }
}

/// The blocks of a scan in their order.
struct Walk<'a> {
    scan: &'a Scan<'a>,
    entropy: &'a Entropy,
    mcus: (usize, usize),
    restart_interval: usize,
}

/// Reading a scan gives `None` if its data has another length than its blocks, or anything in it is no code.
impl Walk<'_> {
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, grids: &mut [Grid], is_progressive: bool) -> Option<()> {
        if is_progressive { self.progressive(simd, grids) } else { self.sequential(grids) }
    }

    /// A scan of whole blocks.
    #[inline(always)]
    fn sequential(&self, grids: &mut [Grid]) -> Option<()> {
        if self.scan.spectrum != (0, 63) || self.scan.bits != (0, 0) {
            return None;
        }
        let tables = |c: &ScanComponent| Some((c.dc.clone()?, c.ac.clone()?));
        let tables: Vec<_> = self.scan.components.iter().map(tables).collect::<Option<_>>()?;
        self.blocks(
            grids,
            #[inline(always)]
            |bits, state, at, mut block| {
                let (dc, ac) = &tables[at];
                block.begin_dc(bits, &mut state.predictions[at], dc, 0)?;
                block.begin(bits, state, ac, (1, 63), 0)?;
                // Ends of several blocks at once are progressive's.
                (state.ended_blocks == 0).then_some(())
            },
        )
    }

    /// A scan of some coefficients, or of some of their bits.
    #[inline(always)]
    fn progressive<S: Simd>(&self, simd: S, grids: &mut [Grid]) -> Option<()> {
        let (first, last) = self.scan.spectrum;
        let (known, shift) = self.scan.bits;
        if shift > MAX_SHIFT || known != 0 && known != shift + 1 {
            return None;
        }
        match (first, known) {
            (0, _) if last != 0 => None,
            (0, 0) => {
                let tables = self.scan.components.iter().map(|component| component.dc.as_deref());
                let tables: Vec<&Huffman> = tables.collect::<Option<_>>()?;
                self.blocks(
                    grids,
                    #[inline(always)]
                    |bits, state, at, mut block| block.begin_dc(bits, &mut state.predictions[at], tables[at], shift),
                )
            }
            (0, _) => self.blocks(
                grids,
                #[inline(always)]
                |bits, _, _, mut block| {
                    block.set(0, block.coefficients[0] | i16::from(bits.take_bit()) << shift);
                    Some(())
                },
            ),
            (1..=63, _) if self.scan.components.len() == 1 && (first..=63).contains(&last) => {
                let table = self.scan.components[0].ac.as_deref()?;
                if known == 0 {
                    self.blocks(
                        grids,
                        #[inline(always)]
                        |bits, state, _, mut block| block.begin(bits, state, table, (first, last), shift),
                    )
                } else {
                    self.blocks(
                        grids,
                        #[inline(always)]
                        |bits, state, _, mut block| block.refine(simd, bits, state, table, (first, last), shift),
                    )
                }
            }
            _ => None,
        }
    }

    /// Gives each block to `read`, with the place of its component in the scan.
    #[inline(always)]
    fn blocks(
        &self,
        grids: &mut [Grid],
        mut read: impl FnMut(&mut Bits<'_>, &mut State, usize, Block<'_>) -> Option<()>,
    ) -> Option<()> {
        let alone = self.scan.components.len() == 1;
        let (across, down) = if alone { grids[self.scan.components[0].index].size } else { self.mcus };
        let interval = if self.restart_interval == 0 { across * down } else { self.restart_interval };
        let mut segments = self.entropy.segments((across * down).div_ceil(interval))?;
        let mut bits = Bits::new(&[], 0, 0);
        let mut state = State::default();
        let mut until_restart = 0;
        for row in 0..down {
            for column in 0..across {
                if until_restart == 0 {
                    bits.finish()?;
                    bits = segments.next()?;
                    state = State::default();
                    until_restart = interval;
                }
                until_restart -= 1;
                for (at, component) in self.scan.components.iter().enumerate() {
                    let grid = &mut grids[component.index];
                    let (horizontal, vertical) = if alone { (1, 1) } else { (grid.horizontal, grid.vertical) };
                    for y in row * vertical..(row + 1) * vertical {
                        for x in column * horizontal..(column + 1) * horizontal {
                            let block = y * grid.stride + x;
                            // Here and not in the grid: there each coefficient would wait for the one before.
                            let mut nonzero = grid.nonzero[block];
                            let coefficients = &mut grid.coefficients[if grid.is_kept { block } else { 0 }];
                            read(&mut bits, &mut state, at, Block { coefficients, nonzero: &mut nonzero })?;
                            grid.nonzero[block] = nonzero;
                        }
                    }
                }
            }
            bits.in_bounds()?;
        }
        bits.finish()
    }
}

impl Block<'_> {
    #[inline(always)]
    fn set(&mut self, k: usize, value: i16) {
        self.coefficients[usize::from(ZIGZAG_TRANSPOSED[k & 63]) & 63] = value;
        *self.nonzero = *self.nonzero & !(1 << (k & 63)) | u64::from(value != 0) << (k & 63);
    }

    /// The first scan of the lowest coefficient.
    #[inline(always)]
    fn begin_dc(&mut self, bits: &mut Bits<'_>, prediction: &mut i32, table: &Huffman, shift: u8) -> Option<()> {
        bits.refill();
        let code = table.code(bits.ahead())?;
        *prediction = prediction.wrapping_add(bits.take(code));
        self.set(0, (*prediction << shift) as i16);
        Some(())
    }

    /// The first scan of other coefficients: their high bits.
    #[inline(always)]
    fn begin(
        &mut self,
        bits: &mut Bits<'_>,
        state: &mut State,
        table: &Huffman,
        (first, last): (usize, usize),
        shift: u8,
    ) -> Option<()> {
        if state.ended_blocks > 0 {
            state.ended_blocks -= 1;
            return Some(());
        }
        let looks = table.looks();
        let mut k = first;
        while k <= last {
            // 56 bits are enough for so many looks.
            bits.refill();
            for _ in 0..LOOKS {
                let look = looks.at(bits.ahead());
                let place = k + usize::from(look.run);
                if place >= last {
                    // The last coefficient, after which no code follows, or what one look does not show.
                    bits.refill();
                    let code = table.code(bits.ahead())?;
                    if let Some(blocks) = ended_blocks(bits, code) {
                        state.ended_blocks = blocks - 1;
                        return Some(());
                    }
                    let value = bits.take(code);
                    k += code.run();
                    if code.value_bits() != 0 {
                        if k > last {
                            return None;
                        }
                        self.set(k, (value << shift) as i16);
                    }
                    k += 1;
                    break;
                }
                bits.skip(look.bits.into());
                self.set(place, look.first << shift);
                self.set(place + usize::from(look.step), look.second << shift);
                k = place + usize::from(look.next);
                if k > last {
                    return (k == last + 1 || look.next == END_OF_BLOCK).then_some(());
                }
            }
        }
        Some(())
    }

    /// A later scan: one more bit of what is not 0 yet, and what becomes it with this bit.
    #[inline(always)]
    fn refine<S: Simd>(
        &mut self,
        simd: S,
        bits: &mut Bits<'_>,
        state: &mut State,
        table: &Huffman,
        (first, last): (usize, usize),
        shift: u8,
    ) -> Option<()> {
        // What was not 0 before this scan: a bit of each follows the code that passes over it.
        let known = *self.nonzero;
        let mut corrections = Corrections::default();
        // What no code has passed over yet.
        let mut rest = u64::MAX << first & u64::MAX >> (63 - last);
        let band = rest;
        if state.ended_blocks == 0 {
            while rest != 0 {
                bits.refill();
                let code = table.code(bits.ahead())?;
                if let Some(blocks) = ended_blocks(bits, code) {
                    state.ended_blocks = blocks;
                    break;
                }
                if code.value_bits() > 1 {
                    return None;
                }
                let is_positive = bits.take_plain(code) == 1;
                // The zero that has `run` others before it; none if there are not so many.
                let place = nth_set(simd, rest & !known, code.run() as u32);
                let passed = place ^ place.wrapping_sub(1);
                corrections.take(bits, known & rest & passed);
                rest &= !passed;
                if code.value_bits() == 1 {
                    if place == 0 {
                        return None;
                    }
                    let k = place.trailing_zeros() as usize;
                    self.coefficients[usize::from(ZIGZAG_TRANSPOSED[k]) & 63] =
                        if is_positive { 1 } else { -1 } << shift;
                    *self.nonzero |= place;
                }
            }
        }
        if state.ended_blocks > 0 {
            bits.refill();
            corrections.take(bits, known & rest);
            state.ended_blocks -= 1;
        }
        self.correct(corrections, known & band, shift);
        Some(())
    }

    /// Gives the coefficients of `known` their next bits, in their order.
    #[inline(always)]
    fn correct(&mut self, corrections: Corrections, mut known: u64, shift: u8) {
        let mut left = corrections.bits << (64 - corrections.count.max(1));
        for _ in 0..corrections.count {
            let k = known.trailing_zeros() as usize;
            known &= known.wrapping_sub(1);
            let coefficient = &mut self.coefficients[usize::from(ZIGZAG_TRANSPOSED[k & 63]) & 63];
            let is_new = (left >> 63) as i16 & !(*coefficient >> shift) & 1;
            let step = (*coefficient >> 15 | 1) & -is_new;
            *coefficient = coefficient.wrapping_add(step << shift);
            left <<= 1;
        }
    }
}

/// Bits for coefficients that are not 0, the last one lowest.
#[derive(Default)]
struct Corrections {
    bits: u64,
    count: u32,
}

impl Corrections {
    /// Takes a bit for each of `passed`; 32 are there.
    #[inline(always)]
    fn take(&mut self, bits: &mut Bits<'_>, passed: u64) {
        let mut missing = passed.count_ones();
        self.count += missing;
        while missing > 32 {
            self.take_some(bits, 32);
            bits.refill();
            missing -= 32;
        }
        self.take_some(bits, missing);
    }

    #[inline(always)]
    fn take_some(&mut self, bits: &mut Bits<'_>, count: u32) {
        self.bits = self.bits << count | bits.ahead() >> 1 >> (63 - count);
        bits.skip(count);
    }
}

/// How many blocks end here, this one included, if that is what the code says.
#[inline(always)]
fn ended_blocks(bits: &mut Bits<'_>, code: super::huffman::Code) -> Option<u32> {
    let run = code.run();
    (run >= usize::from(END_OF_BLOCK)).then(|| (1 << (run - usize::from(END_OF_BLOCK))) + bits.take_plain(code) as u32)
}
