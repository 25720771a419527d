//! Sequential JPEGs of one scan of all components, which most images of the web are.

use std::rc::Rc;

use super::Stop;
use super::bits::{Bits, Entropy};
use super::dct::{ZIGZAG_TRANSPOSED, scale, transform};
use super::huffman::Huffman;
use super::pairs::Pairs;
use super::planes::{Band, Plane};
use super::segments::{Scan, Segments};

/// A component and the tables it is coded with.
struct Component {
    horizontal: usize,
    vertical: usize,
    /// Dequantisation and the DCT's scale factors in one, in zigzag order.
    scale: Block,
    dc: Rc<Huffman>,
    ac: Rc<Huffman>,
    pairs: Rc<Pairs>,
}

/// Decodes luma, if it is kept, and chroma, if that is, and reads over the rest.
pub(super) fn decode<const LUMA: bool, const CHROMA: bool>(
    segments: &Segments<'_>,
    scan: &Scan<'_>,
) -> Result<Vec<Plane>, Stop> {
    let frame = segments.frame()?;
    if scan.spectrum != (0, 63) || scan.bits != (0, 0) {
        return Err(Stop::NotThisCase);
    }
    let entropy = Entropy::read(scan.coded).filter(|entropy| entropy.marker == 0xD9).ok_or(Stop::NotThisCase)?;
    let mut components: Vec<Component> = Vec::with_capacity(4);
    let mut bands = Vec::with_capacity(4);
    let (across, down) = frame.mcus(segments.size);
    for (index, (of_frame, of_scan)) in frame.components.iter().zip(&scan.components).enumerate() {
        let (Some(dc), Some(ac)) = (of_scan.dc.clone(), of_scan.ac.clone()) else {
            return Err(Stop::NotThisCase);
        };
        let mut padded = [0.0; PADDED];
        padded[..64].copy_from_slice(&scale(segments.quantiser(index)?));
        let (horizontal, vertical) = (of_frame.horizontal, of_frame.vertical);
        let same = components.iter().find(|other| Rc::ptr_eq(&other.ac, &ac));
        let pairs = same.map_or_else(|| Rc::new(Pairs::new(&ac)), |other| other.pairs.clone());
        components.push(Component { horizontal, vertical, scale: padded, dc, ac, pairs });
        if if index == 0 { LUMA } else { CHROMA } {
            bands.push(Band::new(across * horizontal, vertical, frame.plane_size(index, segments.size)));
        }
    }
    let mcus = across * down;
    let interval = if segments.restart_interval == 0 { mcus } else { segments.restart_interval };
    read::<LUMA, CHROMA>(&components, &mut bands, &entropy, (across, down), interval).ok_or(Stop::Damaged)?;
    Ok(bands.into_iter().map(Band::into_plane).collect())
}

/// Reads the MCUs. `None` if the data has another length than they, or anything in it is no code.
fn read<const LUMA: bool, const CHROMA: bool>(
    components: &[Component],
    bands: &mut [Band],
    entropy: &Entropy,
    (across, down): (usize, usize),
    interval: usize,
) -> Option<()> {
    let mut segments = entropy.segments((across * down).div_ceil(interval))?;
    let (luma, chroma) = components.split_first()?;
    let mut block = [0.0; PADDED];
    let mut predictions = [0; 4];
    let mut bits = Bits::new(&[], 0, 0);
    for row in 0..down {
        for column in 0..across {
            if (row * across + column).is_multiple_of(interval) {
                bits.finish()?;
                bits = segments.next()?;
                predictions = [0; 4];
            }
            luma.read_mcu::<LUMA>(&mut bits, &mut predictions[0], &mut block, bands.first_mut(), column)?;
            for (at, chroma) in (1..).zip(chroma) {
                chroma.read_mcu::<CHROMA>(&mut bits, &mut predictions[at], &mut block, bands.get_mut(at), column)?;
            }
        }
        bits.in_bounds()?;
        bands.iter_mut().for_each(Band::flush);
    }
    bits.finish()
}

impl Component {
    /// Reads the component's blocks of one MCU, into the band if they are `KEPT`.
    #[inline(always)]
    fn read_mcu<const KEPT: bool>(
        &self,
        bits: &mut Bits<'_>,
        prediction: &mut i32,
        block: &mut Block,
        mut band: Option<&mut Band>,
        column: usize,
    ) -> Option<()> {
        for y in 0..self.vertical {
            for x in 0..self.horizontal {
                let is_flat = self.read_block::<KEPT>(bits, prediction, block)?;
                if KEPT && let Some(band) = &mut band {
                    let (samples, stride) = band.block(y, column * self.horizontal + x);
                    let block = block.first_chunk_mut().expect("a block and more");
                    transform(block, is_flat, samples, stride);
                }
            }
        }
        Some(())
    }

    /// Reads a block. If it is `KEPT`, its coefficients are put, scaled, into `block`, which is zero before. Returns
    /// whether the first is the only one.
    #[inline(always)]
    fn read_block<const KEPT: bool>(
        &self,
        bits: &mut Bits<'_>,
        prediction: &mut i32,
        block: &mut Block,
    ) -> Option<bool> {
        bits.refill();
        let code = self.dc.code(bits.ahead())?;
        *prediction = prediction.wrapping_add(bits.take(code));
        if KEPT {
            block[0] = *prediction as f32 * self.scale[0];
        }
        let mut put = |k: usize, value: i32| {
            if KEPT {
                // Past the last coefficient lies room for what is none.
                block[usize::from(PLACES[k % PADDED]) % PADDED] = value as f32 * self.scale[k % PADDED];
            }
        };
        let mut k = 1;
        loop {
            // 56 bits are enough for two codes of at most 16 + 10.
            bits.refill();
            for _ in 0..2 {
                let pair = self.pairs.at(bits.ahead());
                if pair.is_none() {
                    let code = self.ac.code(bits.ahead())?;
                    let value = bits.take(code);
                    k += code.run();
                    if code.value_bits() != 0 {
                        if k > 63 {
                            return None;
                        }
                        put(k, value);
                    }
                    k += 1;
                } else {
                    let [first, second] = pair.values.map(i32::from);
                    let at = k + usize::from(pair.run);
                    if at >= 63 {
                        // The block ends with the first; the second is of the next block.
                        bits.skip(pair.bits_of_first());
                        if at > 63 {
                            return (first == 0).then_some(k == 1);
                        }
                        put(at, first);
                        return Some(false);
                    }
                    bits.skip(pair.bits_of_both());
                    let then = at + usize::from(pair.step);
                    if then > 63 && second != 0 {
                        return None;
                    }
                    put(at, first);
                    put(then, second);
                    k = at + usize::from(pair.next);
                }
                if k > 63 {
                    return Some(false);
                }
            }
        }
    }
}

/// Room for a block and for what would lie past its end.
const PADDED: usize = 128;
type Block = [f32; PADDED];

/// Where the k-th coefficient goes, as [`ZIGZAG_TRANSPOSED`] has it; past the block for those past the last.
const PLACES: [u8; PADDED] = {
    let (mut places, mut k) = ([64; PADDED], 0);
    while k < 64 {
        places[k] = ZIGZAG_TRANSPOSED[k];
        k += 1;
    }
    places
};
