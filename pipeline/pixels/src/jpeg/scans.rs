//! JPEGs of several scans: sequential ones whose components come one after another, and progressive
//! ones, whose coefficients come first roughly, then bit by bit (ITU T.81, annex G).

use fearless_simd::{Level, dispatch};

use super::bits::{Bits, Entropy};
use super::dct::{ZIGZAG_TRANSPOSED, scale, transform};
use super::huffman::{END_OF_BLOCK, Huffman};
use super::planes::{Band, Plane};
use super::segments::{Frame, Scan, ScanComponent, Segments};
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
    blocks: Vec<Block>,
    /// The quantiser at the component's first scan.
    quantiser: Option<[u16; 64]>,
}

#[derive(Clone)]
struct Block {
    /// In zigzag order.
    coefficients: [i16; 64],
    /// Which of them are not 0, the first lowest.
    nonzero: u64,
}

/// What one block leaves to the next; a restart clears it.
#[derive(Default)]
struct State {
    predictions: [i32; 4],
    /// Blocks that are known to end at once.
    ended_blocks: u32,
}

pub(super) fn decode(mut segments: Segments<'_>, first: Scan<'_>, kept: Kept) -> Result<Vec<Plane>, Stop> {
    let size = segments.size;
    let frame = segments.frame()?;
    if frame.components.len() == 4 {
        return Err(Stop::NotThisCase);
    }
    let (mcus, is_progressive) = (frame.mcus(size), frame.is_progressive);
    let mut grids: Vec<Grid> = (0..frame.components.len()).map(|at| Grid::new(frame, at, size)).collect();
    let mut next = Some(first);
    for _ in 0..MAX_SCANS {
        let Some(scan) = next else {
            if grids.iter().any(|grid| grid.quantiser.is_none()) {
                return Err(Stop::Damaged);
            }
            return grids.iter().take(kept.of(grids.len())).map(|grid| grid.transformed(size, &grids[0])).collect();
        };
        for component in &scan.components {
            let grid = &mut grids[component.index];
            grid.quantiser = grid.quantiser.or(segments.quantiser(component.index).ok());
        }
        let entropy = Entropy::read(scan.coded).ok_or(Stop::Damaged)?;
        let walk = Walk { scan: &scan, entropy: &entropy, mcus, restart_interval: segments.restart_interval };
        let read = if is_progressive { walk.progressive(&mut grids) } else { walk.sequential(&mut grids) };
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
    fn new(frame: &Frame, component: usize, size: (usize, usize)) -> Self {
        let (width, height) = frame.plane_size(component, size);
        let (across, down) = frame.mcus(size);
        let (horizontal, vertical) = (frame.components[component].horizontal, frame.components[component].vertical);
        let stride = across * horizontal;
        Self {
            horizontal,
            vertical,
            stride,
            size: (width.div_ceil(8), height.div_ceil(8)),
            blocks: vec![Block { coefficients: [0; 64], nonzero: 0 }; stride * down * vertical],
            quantiser: None,
        }
    }

    /// The samples, of an image of this size with this luma.
    fn transformed(&self, (width, height): (usize, usize), luma: &Grid) -> Result<Plane, Stop> {
        let scale = scale(self.quantiser.ok_or(Stop::Damaged)?);
        let part = |length: usize, of: usize, full: usize| (length * of).div_ceil(full);
        let plane = (part(width, self.horizontal, luma.horizontal), part(height, self.vertical, luma.vertical));
        let mut band = Band::new(self.stride, 1, plane);
        let mut natural = [0; 64];
        for row in self.blocks.chunks_exact(self.stride).take(self.size.1) {
            for (column, block) in row.iter().enumerate().take(self.size.0) {
                let mut left = block.nonzero;
                while left != 0 {
                    let k = left.trailing_zeros() as usize;
                    left &= left - 1;
                    natural[usize::from(ZIGZAG_TRANSPOSED[k])] = block.coefficients[k];
                }
                let (samples, stride) = band.block(0, column);
                dispatch!(Level::new(), simd => transform(simd, &natural, &scale, block.nonzero & !1 == 0, samples, stride));
                natural = [0; 64];
            }
            band.flush();
        }
        Ok(band.into_plane())
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
    /// A scan of whole blocks.
    fn sequential(&self, grids: &mut [Grid]) -> Option<()> {
        if self.scan.spectrum != (0, 63) || self.scan.bits != (0, 0) {
            return None;
        }
        let tables = |c: &ScanComponent| Some((c.dc.clone()?, c.ac.clone()?));
        let tables: Vec<_> = self.scan.components.iter().map(tables).collect::<Option<_>>()?;
        self.blocks(grids, |bits, state, at, block| {
            let (dc, ac) = &tables[at];
            block.begin_dc(bits, &mut state.predictions[at], dc, 0)?;
            block.begin(bits, state, ac, (1, 63), 0)?;
            // Ends of several blocks at once are progressive's.
            (state.ended_blocks == 0).then_some(())
        })
    }

    /// A scan of some coefficients, or of some of their bits.
    fn progressive(&self, grids: &mut [Grid]) -> Option<()> {
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
                self.blocks(grids, |bits, state, at, block| {
                    block.begin_dc(bits, &mut state.predictions[at], tables[at], shift)
                })
            }
            (0, _) => self.blocks(grids, |bits, _, _, block| {
                if bits.take_bit() {
                    block.set(0, block.coefficients[0] | 1 << shift);
                }
                Some(())
            }),
            (1..=63, _) if self.scan.components.len() == 1 && (first..=63).contains(&last) => {
                let table = self.scan.components[0].ac.as_deref()?;
                if known == 0 {
                    self.blocks(grids, |bits, state, _, block| block.begin(bits, state, table, (first, last), shift))
                } else {
                    self.blocks(grids, |bits, state, _, block| block.refine(bits, state, table, (first, last), shift))
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
        mut read: impl FnMut(&mut Bits<'_>, &mut State, usize, &mut Block) -> Option<()>,
    ) -> Option<()> {
        let alone = self.scan.components.len() == 1;
        let (across, down) = if alone { grids[self.scan.components[0].index].size } else { self.mcus };
        let interval = if self.restart_interval == 0 { across * down } else { self.restart_interval };
        let mut segments = self.entropy.segments((across * down).div_ceil(interval))?;
        let mut bits = Bits::new(&[], 0, 0);
        let mut state = State::default();
        for row in 0..down {
            for column in 0..across {
                if (row * across + column).is_multiple_of(interval) {
                    bits.finish()?;
                    bits = segments.next()?;
                    state = State::default();
                }
                for (at, component) in self.scan.components.iter().enumerate() {
                    let grid = &mut grids[component.index];
                    let (horizontal, vertical) = if alone { (1, 1) } else { (grid.horizontal, grid.vertical) };
                    for y in row * vertical..(row + 1) * vertical {
                        for x in column * horizontal..(column + 1) * horizontal {
                            read(&mut bits, &mut state, at, &mut grid.blocks[y * grid.stride + x])?;
                        }
                    }
                }
            }
            bits.in_bounds()?;
        }
        bits.finish()
    }
}

impl Block {
    #[inline(always)]
    fn set(&mut self, k: usize, value: i16) {
        self.coefficients[k] = value;
        self.nonzero = self.nonzero & !(1 << k) | u64::from(value != 0) << k;
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
        let mut k = first;
        while k <= last {
            bits.refill();
            let code = table.code(bits.ahead())?;
            if let Some(blocks) = ended_blocks(bits, code) {
                state.ended_blocks = blocks - 1;
                break;
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
        }
        Some(())
    }

    /// A later scan: one more bit of what is not 0 yet, and what becomes it with this bit.
    #[inline(always)]
    fn refine(
        &mut self,
        bits: &mut Bits<'_>,
        state: &mut State,
        table: &Huffman,
        (first, last): (usize, usize),
        shift: u8,
    ) -> Option<()> {
        let mut k = first;
        if state.ended_blocks == 0 {
            while k <= last {
                bits.refill();
                let code = table.code(bits.ahead())?;
                if let Some(blocks) = ended_blocks(bits, code) {
                    state.ended_blocks = blocks;
                    break;
                }
                if code.value_bits() > 1 {
                    return None;
                }
                let value = bits.take(code);
                k = self.refine_over(bits, k, last, code.run(), shift);
                if code.value_bits() == 1 {
                    if k > last {
                        return None;
                    }
                    self.set(k, (value << shift) as i16);
                }
                k += 1;
            }
        }
        if state.ended_blocks > 0 {
            self.refine_over(bits, k, last, usize::MAX, shift);
            state.ended_blocks -= 1;
        }
        Some(())
    }

    /// Refines what is not 0 from `k` on, up to the coefficient that has `zeros` zeros between it and `k` and is 0
    /// itself, or past the last; returns its place.
    #[inline(always)]
    fn refine_over(&mut self, bits: &mut Bits<'_>, mut k: usize, last: usize, mut zeros: usize, shift: u8) -> usize {
        while k <= last {
            let gap = (self.nonzero >> k).trailing_zeros() as usize;
            if zeros < gap {
                return (k + zeros).min(last + 1);
            }
            k += gap;
            if k > last {
                break;
            }
            zeros -= gap;
            let coefficient = &mut self.coefficients[k];
            if bits.take_bit() && *coefficient & 1 << shift == 0 {
                *coefficient = coefficient.wrapping_add(coefficient.signum() << shift);
            }
            k += 1;
        }
        last + 1
    }
}

/// How many blocks end here, this one included, if that is what the code says.
#[inline(always)]
fn ended_blocks(bits: &mut Bits<'_>, code: super::huffman::Code) -> Option<u32> {
    let run = code.run();
    (run >= usize::from(END_OF_BLOCK)).then(|| (1 << (run - usize::from(END_OF_BLOCK))) + bits.take_plain(code) as u32)
}
