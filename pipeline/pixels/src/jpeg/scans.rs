//! JPEGs of several scans: sequential ones whose components come one after another, and progressive
//! ones, whose coefficients come first roughly, then bit by bit (ITU T.81, annex G).

use fearless_simd::{Level, Simd, dispatch};

use super::bits::{Bits, Entropy};
use super::dct::{Coefficients, Scale, ZIGZAG_TRANSPOSED, scale, transform};
use super::huffman::{END_OF_BLOCK, Huffman, LOOKS};
use super::planes::{Band, Plane, Rows};
use super::segments::{Frame, Scan, Segments};
use super::select::deposit;
use super::{Kept, Stop};

/// Scans of a file. Encoders write about 10; each more is a pass over the image.
const MAX_SCANS: usize = 64;
/// The highest bit at which a first scan may stop.
const MAX_SHIFT: u8 = 13;

/// The coefficients of a component along a row of MCUs.
struct Grid {
    horizontal: usize,
    vertical: usize,
    /// Blocks of a row, padded to whole MCUs.
    stride: usize,
    /// Blocks of the whole component that hold samples, along and down: those of a scan of this component alone.
    size: (usize, usize),
    /// The first coefficient of each block.
    means: Vec<i16>,
    /// Of each block, which other coefficients are not 0, the first of the zigzag order lowest. It alone says how the
    /// bits of later scans are read.
    nonzero: Vec<u64>,
    /// Of each block, the others in the order of [`ZIGZAG_TRANSPOSED`]'s places; one block for all where they are not
    /// kept.
    others: Vec<[i16; 64]>,
    is_kept: bool,
}

/// The coefficients of a block but the first.
struct Block<'a> {
    others: &'a mut [i16; 64],
    nonzero: &'a mut u64,
    is_kept: bool,
}

/// What one block leaves to the next; a restart clears it.
#[derive(Clone, Default)]
struct State {
    predictions: [i32; 4],
    /// Blocks that are known to end at once.
    ended_blocks: u32,
}

/// Decodes what is kept. The rows of luma go to `rows`, if there is such.
///
/// All scans are read side by side, a row of MCUs at a time, so that its coefficients never leave the cache, and those
/// of the whole image are never there together.
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
    let (mcus, is_progressive, count) = (frame.mcus(size), frame.is_progressive, frame.components.len());
    let mut grids: Vec<Grid> = (0..count).map(|at| Grid::new(frame, at, size)).collect();
    let planes: Vec<(usize, usize)> = (0..count).map(|at| frame.plane_size(at, size)).collect();

    let mut scans = Vec::new();
    let mut quantisers = vec![None; count];
    let mut next = Ok(Some(first));
    while let Ok(Some(scan)) = next {
        if scans.len() == MAX_SCANS {
            return Err(Stop::Damaged);
        }
        for component in &scan.components {
            let quantiser = &mut quantisers[component.index];
            *quantiser = quantiser.or(segments.quantiser(component.index).ok());
        }
        let way = Way::of(&scan, &grids, mcus, segments.restart_interval);
        let entropy = Entropy::read(scan.coded, way.segments()).filter(|entropy| entropy.is_whole);
        let entropy = entropy.ok_or(Stop::Damaged)?;
        segments.skip_coded(entropy.coded_bytes);
        scans.push((scan, way, entropy.compact()));
        next = segments.next_scan();
    }
    // Where nothing comes of the file, it is still told apart whether its data up to there is damaged.
    let is_whole = next.is_ok();
    if is_whole && quantisers.contains(&None) {
        return Err(Stop::Damaged);
    }
    let kept = if is_whole { kept.of(count) } else { 0 };
    let mut outputs = Vec::with_capacity(kept);
    for ((grid, &plane), quantiser) in grids.iter_mut().zip(&planes).zip(quantisers).take(kept) {
        grid.keep();
        let band = Band::new(grid.stride, grid.vertical, plane, rows.take());
        outputs.push((scale(quantiser.ok_or(Stop::Damaged)?), band));
    }

    let readers = scans.iter().map(|(scan, way, entropy)| Reader::new(scan, *way, entropy, is_progressive));
    let mut readers: Vec<Reader<'_>> = readers.collect::<Option<_>>().ok_or(Stop::Damaged)?;
    dispatch!(Level::new(), simd => read(simd, &mut readers, &mut grids, &mut outputs, mcus.1)).ok_or(Stop::Damaged)?;
    next?;
    Ok(outputs.into_iter().filter_map(|(_, band)| band.into_plane()).collect())
}

/// Reads so many rows of MCUs. `None` if the data of a scan has another length than its blocks, or anything in it is no
/// code.
#[inline(always)]
fn read<S: Simd>(
    simd: S,
    readers: &mut [Reader<'_>],
    grids: &mut [Grid],
    outputs: &mut [(Scale, Band<'_>)],
    down: usize,
) -> Option<()> {
    for row in 0..down {
        grids.iter_mut().for_each(Grid::clear);
        for reader in &mut *readers {
            reader.read_row(simd, row, grids)?;
        }
        for (grid, (scale, band)) in grids.iter().zip(&mut *outputs) {
            grid.transform_into(simd, scale, band);
            band.flush();
        }
    }
    readers.iter().try_for_each(|reader| reader.blocks.place.bits.finish())
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
    /// Of a component, which is not kept.
    fn new(frame: &Frame, component: usize, size: (usize, usize)) -> Self {
        let (width, height) = frame.plane_size(component, size);
        let (across, _) = frame.mcus(size);
        let (horizontal, vertical) = (frame.components[component].horizontal, frame.components[component].vertical);
        let stride = across * horizontal;
        Self {
            horizontal,
            vertical,
            stride,
            size: (width.div_ceil(8), height.div_ceil(8)),
            means: vec![0; stride * vertical],
            nonzero: vec![0; stride * vertical],
            others: vec![[0; 64]],
            is_kept: false,
        }
    }

    /// Keeps what is read from now on.
    fn keep(&mut self) {
        self.others = vec![[0; 64]; self.nonzero.len()];
        self.is_kept = true;
    }

    /// Begins another row of MCUs.
    fn clear(&mut self) {
        self.means.fill(0);
        self.nonzero.fill(0);
        self.others.fill([0; 64]);
    }

    /// Changes coefficients of a block, all but the first.
    #[inline(always)]
    fn change(&mut self, at: usize, change: impl FnOnce(Block<'_>) -> Option<()>) -> Option<()> {
        // Not in place: there each coefficient would wait for the one before.
        let mut nonzero = self.nonzero[at];
        let others = &mut self.others[if self.is_kept { at } else { 0 }];
        change(Block { others, nonzero: &mut nonzero, is_kept: self.is_kept })?;
        self.nonzero[at] = nonzero;
        Some(())
    }

    #[inline(always)]
    fn transform_into<S: Simd>(&self, simd: S, scale: &Scale, band: &mut Band<'_>) {
        for row in 0..self.vertical {
            let blocks = row * self.stride..row * self.stride + self.size.0;
            let means = &self.means[blocks.clone()];
            let others = self.nonzero[blocks.clone()].iter().zip(&self.others[blocks]);
            for (column, (&mean, (&nonzero, others))) in means.iter().zip(others).enumerate() {
                let block = Coefficients { mean, others, is_flat: nonzero == 0 };
                transform(simd, &block, scale, band.block(row, column));
            }
        }
    }
}

/// The blocks of a scan in their order: those of one component row by row, or those of several MCU by MCU.
#[derive(Clone, Copy)]
struct Way {
    is_lone: bool,
    across: usize,
    down: usize,
    /// Blocks or MCUs from one restart to the next.
    restart_interval: usize,
}

impl Way {
    fn of(scan: &Scan<'_>, grids: &[Grid], mcus: (usize, usize), restart_interval: usize) -> Self {
        let is_lone = scan.components.len() == 1;
        let (across, down) = if is_lone { grids[scan.components[0].index].size } else { mcus };
        let restart_interval = if restart_interval == 0 { across * down } else { restart_interval };
        Self { is_lone, across, down, restart_interval }
    }

    /// Segments of coded data between restarts.
    fn segments(&self) -> usize {
        (self.across * self.down).div_ceil(self.restart_interval)
    }
}

/// What a scan has of each block.
enum Content<'a> {
    /// All of it, in a sequential JPEG.
    Whole(Vec<(&'a Huffman, &'a Huffman)>),
    /// The high bits of the first coefficient, by components, down to a bit.
    Means(Vec<&'a Huffman>, u8),
    /// One more bit of it.
    MeansBit(u8),
    /// The high bits of others, from one to another, down to a bit.
    Others(&'a Huffman, (usize, usize), u8),
    /// One more bit of them.
    OthersBit(&'a Huffman, (usize, usize), u8),
}

impl<'a> Content<'a> {
    /// `None` where the standard knows no such scan, or tables are missing.
    fn of(scan: &'a Scan<'_>, is_progressive: bool) -> Option<Self> {
        let (components, (first, last), (known, shift)) = (&scan.components, scan.spectrum, scan.bits);
        if !is_progressive {
            let tables = components.iter().map(|c| Some((c.dc.as_deref()?, c.ac.as_deref()?)));
            return if (first, last, known, shift) == (0, 63, 0, 0) {
                tables.collect::<Option<_>>().map(Self::Whole)
            } else {
                None
            };
        }
        if shift > MAX_SHIFT || known != 0 && known != shift + 1 {
            return None;
        }
        match (first, known) {
            (0, _) if last != 0 => None,
            (0, 0) => {
                let tables = components.iter().map(|component| component.dc.as_deref());
                Some(Self::Means(tables.collect::<Option<_>>()?, shift))
            }
            (0, _) => Some(Self::MeansBit(shift)),
            (1..=63, _) if components.len() == 1 && (first..=63).contains(&last) => {
                let table = components[0].ac.as_deref()?;
                let content = if known == 0 { Self::Others } else { Self::OthersBit };
                Some(content(table, (first, last), shift))
            }
            _ => None,
        }
    }
}

/// A scan in the course of its reading.
struct Reader<'a> {
    content: Content<'a>,
    blocks: Blocks<'a>,
}

/// The blocks of a scan, and how far they were read.
struct Blocks<'a> {
    way: Way,
    components: Vec<usize>,
    entropy: &'a Entropy,
    place: Place<'a>,
}

/// Where the reading of a scan is.
#[derive(Clone)]
struct Place<'a> {
    /// Segments that were begun.
    segments: usize,
    bits: Bits<'a>,
    state: State,
    /// Blocks or MCUs.
    until_restart: usize,
}

impl<'a> Reader<'a> {
    fn new(scan: &'a Scan<'_>, way: Way, entropy: &'a Entropy, is_progressive: bool) -> Option<Self> {
        Some(Self {
            content: Content::of(scan, is_progressive)?,
            blocks: Blocks {
                way,
                components: scan.components.iter().map(|component| component.index).collect(),
                entropy,
                place: Place { segments: 0, bits: Bits::new(&[], 0, 0), state: State::default(), until_restart: 0 },
            },
        })
    }

    /// Reads what the scan has of a row of MCUs.
    #[inline(always)]
    fn read_row<S: Simd>(&mut self, simd: S, row: usize, grids: &mut [Grid]) -> Option<()> {
        let Self { content, blocks } = self;
        match content {
            Content::Whole(tables) => blocks.read_row(
                row,
                grids,
                #[inline(always)]
                |bits, state, component, grid, at| {
                    let (dc, ac) = tables[component];
                    grid.means[at] = begin_mean(bits, &mut state.predictions[component], dc, 0)?;
                    grid.change(
                        at,
                        #[inline(always)]
                        |mut block| block.begin(bits, state, ac, (1, 63), 0),
                    )?;
                    // Ends of several blocks at once are progressive's.
                    (state.ended_blocks == 0).then_some(())
                },
            ),
            Content::Means(tables, shift) => blocks.read_row(
                row,
                grids,
                #[inline(always)]
                |bits, state, component, grid, at| {
                    let prediction = &mut state.predictions[component];
                    grid.means[at] = begin_mean(bits, prediction, tables[component], *shift)?;
                    Some(())
                },
            ),
            Content::MeansBit(shift) => blocks.read_row(
                row,
                grids,
                #[inline(always)]
                |bits, _, _, grid, at| {
                    grid.means[at] |= i16::from(bits.take_bit()) << *shift;
                    Some(())
                },
            ),
            Content::Others(table, band, shift) => blocks.read_row(
                row,
                grids,
                #[inline(always)]
                |bits, state, _, grid, at| {
                    grid.change(
                        at,
                        #[inline(always)]
                        |mut block| block.begin(bits, state, table, *band, *shift),
                    )
                },
            ),
            Content::OthersBit(table, band, shift) => blocks.read_row(
                row,
                grids,
                #[inline(always)]
                |bits, state, _, grid, at| {
                    grid.change(
                        at,
                        #[inline(always)]
                        |mut block| block.refine(simd, bits, state, table, *band, *shift),
                    )
                },
            ),
        }
    }
}

impl Blocks<'_> {
    /// Has `read` take each block of a row of MCUs, which it finds by the place of its component in the scan, that
    /// component's grid and the place in it.
    #[inline(always)]
    fn read_row(
        &mut self,
        row: usize,
        grids: &mut [Grid],
        mut read: impl FnMut(&mut Bits<'_>, &mut State, usize, &mut Grid, usize) -> Option<()>,
    ) -> Option<()> {
        // Not in place: it would go to memory and back with each code.
        let mut place = self.place.clone();
        if self.way.is_lone {
            let grid = &mut grids[self.components[0]];
            let rows_left = self.way.down.saturating_sub(row * grid.vertical);
            for y in 0..grid.vertical.min(rows_left) {
                for x in 0..self.way.across {
                    place.restart_if_due(self.entropy, self.way.restart_interval)?;
                    read(&mut place.bits, &mut place.state, 0, grid, y * grid.stride + x)?;
                }
            }
        } else {
            for column in 0..self.way.across {
                place.restart_if_due(self.entropy, self.way.restart_interval)?;
                for (component, &index) in self.components.iter().enumerate() {
                    let grid = &mut grids[index];
                    for y in 0..grid.vertical {
                        for x in column * grid.horizontal..(column + 1) * grid.horizontal {
                            read(&mut place.bits, &mut place.state, component, grid, y * grid.stride + x)?;
                        }
                    }
                }
            }
        }
        place.bits.in_bounds()?;
        self.place = place;
        Some(())
    }
}

impl<'a> Place<'a> {
    /// Counts a block or an MCU, the first one of a segment anew.
    #[inline(always)]
    fn restart_if_due(&mut self, entropy: &'a Entropy, interval: usize) -> Option<()> {
        if self.until_restart == 0 {
            self.bits.finish()?;
            self.bits = entropy.segment(self.segments)?;
            self.segments += 1;
            self.state = State::default();
            self.until_restart = interval;
        }
        self.until_restart -= 1;
        Some(())
    }
}

/// The first scan of a block's first coefficient: its high bits.
#[inline(always)]
fn begin_mean(bits: &mut Bits<'_>, prediction: &mut i32, table: &Huffman, shift: u8) -> Option<i16> {
    bits.refill();
    let code = table.code(bits.ahead())?;
    *prediction = prediction.wrapping_add(bits.take(code));
    Some((*prediction << shift) as i16)
}

impl Block<'_> {
    #[inline(always)]
    fn set(&mut self, k: usize, value: i16) {
        self.others[usize::from(ZIGZAG_TRANSPOSED[k & 63]) & 63] = value;
        *self.nonzero = *self.nonzero & !(1 << (k & 63)) | u64::from(value != 0) << (k & 63);
    }

    /// The first scan of coefficients: their high bits.
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
                let place = deposit(simd, 1 << code.run(), rest & !known);
                let passed = place ^ place.wrapping_sub(1);
                corrections.take(bits, known & rest & passed);
                rest &= !passed;
                if code.value_bits() == 1 {
                    if place == 0 {
                        return None;
                    }
                    let k = place.trailing_zeros() as usize;
                    self.others[usize::from(ZIGZAG_TRANSPOSED[k]) & 63] = if is_positive { 1 } else { -1 } << shift;
                    *self.nonzero |= place;
                }
            }
        }
        if state.ended_blocks > 0 {
            bits.refill();
            corrections.take(bits, known & rest);
            state.ended_blocks -= 1;
        }
        if self.is_kept {
            self.correct(deposit(simd, corrections.first_lowest(), known & band), shift);
        }
        Some(())
    }

    /// Gives the coefficients in these places another bit, if they lack it.
    #[inline(always)]
    fn correct(&mut self, mut places: u64, shift: u8) {
        while places != 0 {
            let k = places.trailing_zeros() as usize;
            places &= places - 1;
            let coefficient = &mut self.others[usize::from(ZIGZAG_TRANSPOSED[k & 63]) & 63];
            let lacks = !(*coefficient >> shift) & 1;
            let step = (*coefficient >> 15 | 1) & -lacks;
            *coefficient = coefficient.wrapping_add(step << shift);
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
    /// The bits with the first one lowest.
    #[inline(always)]
    const fn first_lowest(&self) -> u64 {
        // By two shifts, as there may be none.
        self.bits.reverse_bits() >> 1 >> (63 - self.count)
    }

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
