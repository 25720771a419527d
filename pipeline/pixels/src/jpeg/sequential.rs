//! Sequential JPEGs of one scan of all components, which most images of the web are.

use std::rc::Rc;

use super::Stop;
use super::bits::{Bits, Entropy};
use super::dct::{ZIGZAG_TRANSPOSED, scale, transform};
use super::huffman::Huffman;
use super::planes::{Band, Plane};
use super::segments::{Scan, Segments};

/// A component and the tables it is coded with.
struct Component {
    horizontal: usize,
    vertical: usize,
    /// Dequantisation and the DCT's scale factors in one, in zigzag order.
    scale: [f32; 64],
    dc: Rc<Huffman>,
    ac: Rc<Huffman>,
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
    let mut components = Vec::with_capacity(4);
    let mut bands = Vec::with_capacity(4);
    let (across, down) = frame.mcus(segments.size);
    for (index, (of_frame, of_scan)) in frame.components.iter().zip(&scan.components).enumerate() {
        let (Some(dc), Some(ac)) = (of_scan.dc.clone(), of_scan.ac.clone()) else {
            return Err(Stop::NotThisCase);
        };
        let scale = scale(segments.quantiser(index)?);
        let (horizontal, vertical) = (of_frame.horizontal, of_frame.vertical);
        components.push(Component { horizontal, vertical, scale, dc, ac });
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
    let mut block = [0.0; 64];
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
        block: &mut [f32; 64],
        mut band: Option<&mut Band>,
        column: usize,
    ) -> Option<()> {
        for y in 0..self.vertical {
            for x in 0..self.horizontal {
                let last = self.read_block::<KEPT>(bits, prediction, block)?;
                if KEPT && let Some(band) = &mut band {
                    let (samples, stride) = band.block(y, column * self.horizontal + x);
                    transform(block, last, samples, stride);
                }
            }
        }
        Some(())
    }

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
        let code = self.dc.code(bits.ahead())?;
        *prediction = prediction.wrapping_add(bits.take(code));
        if KEPT {
            block[0] = *prediction as f32 * self.scale[0];
        }
        let (mut k, mut last) = (1, 0);
        while k < 64 {
            // 56 bits are enough for two codes of at most 16 + 10.
            bits.refill();
            for _ in 0..2 {
                let code = self.ac.code(bits.ahead())?;
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
