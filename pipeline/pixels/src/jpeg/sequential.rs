//! Sequential JPEGs of one scan of all components, which most images of the web are.

use std::rc::Rc;

use fearless_simd::{Level, Simd, dispatch};

use super::Stop;
use super::bits::{Bits, Entropy};
use super::dct::{Coefficients, Scale, ZIGZAG_TRANSPOSED, scale, transform};
use super::huffman::{END_OF_BLOCK, Huffman, LOOKS};
use super::planes::{Band, Plane, Rows};
use super::segments::{Scan, Segments};

/// A component and the tables it is coded with.
struct Component {
    horizontal: usize,
    vertical: usize,
    scale: Scale,
    dc: Rc<Huffman>,
    ac: Rc<Huffman>,
}

/// Decodes luma, if it is kept, and chroma, if that is, and reads over the rest. The rows of luma go to `rows`, if there
/// is such.
pub(super) fn decode<'a, const LUMA: bool, const CHROMA: bool>(
    segments: &Segments<'_>,
    scan: &Scan<'_>,
    mut rows: Option<&'a mut Rows<'a>>,
) -> Result<Vec<Plane>, Stop> {
    let frame = segments.frame()?;
    if scan.spectrum != (0, 63) || scan.bits != (0, 0) {
        return Err(Stop::NotThisCase);
    }
    let mut components: Vec<Component> = Vec::with_capacity(4);
    let mut bands = Vec::with_capacity(4);
    let (across, down) = frame.mcus(segments.size);
    let mcus = across * down;
    let interval = if segments.restart_interval == 0 { mcus } else { segments.restart_interval };
    let entropy = Entropy::read(scan.coded, mcus.div_ceil(interval)).filter(|entropy| entropy.marker == 0xD9);
    let entropy = entropy.ok_or(Stop::NotThisCase)?;
    for (index, (of_frame, of_scan)) in frame.components.iter().zip(&scan.components).enumerate() {
        let (Some(dc), Some(ac)) = (of_scan.dc.clone(), of_scan.ac.clone()) else {
            return Err(Stop::NotThisCase);
        };
        let (horizontal, vertical) = (of_frame.horizontal, of_frame.vertical);
        let scale = scale(segments.quantiser(index)?);
        components.push(Component { horizontal, vertical, scale, dc, ac });
        if if index == 0 { LUMA } else { CHROMA } {
            bands.push(Band::new(across * horizontal, vertical, frame.plane_size(index, segments.size), rows.take()));
        }
    }
    if !entropy.is_whole {
        return Err(Stop::Damaged);
    }
    let read_all = dispatch!(Level::new(), simd => {
        read::<_, LUMA, CHROMA>(simd, &components, &mut bands, &entropy, (across, down), interval)
    });
    read_all.ok_or(Stop::Damaged)?;
    Ok(bands.into_iter().filter_map(Band::into_plane).collect())
}

/// Reads the MCUs. `None` if the data has another length than they, or anything in it is no code.
#[inline(always)]
fn read<S: Simd, const LUMA: bool, const CHROMA: bool>(
    simd: S,
    components: &[Component],
    bands: &mut [Band<'_>],
    entropy: &Entropy,
    (across, down): (usize, usize),
    interval: usize,
) -> Option<()> {
    let mut segments = (0..).map_while(|at| entropy.segment(at));
    let (luma, chroma) = components.split_first()?;
    let mut block = [0; 64];
    let mut predictions = [0; 4];
    let mut bits = Bits::new(&[], 0, 0);
    let mut until_restart = 0;
    for _ in 0..down {
        for column in 0..across {
            if until_restart == 0 {
                bits.finish()?;
                bits = segments.next()?;
                predictions = [0; 4];
                until_restart = interval;
            }
            until_restart -= 1;
            luma.read_mcu::<S, LUMA>(simd, &mut bits, &mut predictions[0], &mut block, bands.first_mut(), column)?;
            for (at, chroma) in (1..).zip(chroma) {
                chroma.read_mcu::<S, CHROMA>(
                    simd,
                    &mut bits,
                    &mut predictions[at],
                    &mut block,
                    bands.get_mut(at),
                    column,
                )?;
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
    fn read_mcu<S: Simd, const KEPT: bool>(
        &self,
        simd: S,
        bits: &mut Bits<'_>,
        prediction: &mut i32,
        block: &mut [i16; 64],
        mut band: Option<&mut Band<'_>>,
        column: usize,
    ) -> Option<()> {
        for y in 0..self.vertical {
            for x in 0..self.horizontal {
                self.read_mean(bits, prediction)?;
                if KEPT && let Some(band) = &mut band {
                    let is_flat = self.read_others(bits, block)?;
                    let samples = band.block(y, column * self.horizontal + x);
                    let read = Coefficients { mean: *prediction as i16, others: block, is_flat };
                    transform(simd, &read, &self.scale, samples);
                    *block = [0; 64];
                } else {
                    self.pass_others(bits)?;
                }
            }
        }
        Some(())
    }

    /// Reads the first coefficient, which is the one of the block before and a difference.
    #[inline(always)]
    fn read_mean(&self, bits: &mut Bits<'_>, prediction: &mut i32) -> Option<()> {
        bits.refill();
        let code = self.dc.code(bits.ahead())?;
        *prediction = prediction.wrapping_add(bits.take(code));
        Some(())
    }

    /// Reads the other coefficients into `block`, which is zero before. Returns whether there are none.
    #[inline(always)]
    fn read_others(&self, bits: &mut Bits<'_>, block: &mut [i16; 64]) -> Option<bool> {
        let looks = self.ac.looks();
        let mut k = 1;
        loop {
            // 56 bits are enough for so many looks.
            bits.refill();
            for _ in 0..LOOKS {
                let look = looks.at(bits.ahead());
                let first = k + usize::from(look.run);
                if first >= 63 {
                    // The last coefficient, after which no code follows, or what one look does not show.
                    bits.refill();
                    let code = self.ac.code(bits.ahead())?;
                    k += code.run();
                    if k > 63 {
                        let is_end = code.run() == usize::from(END_OF_BLOCK);
                        bits.skip(code.all_bits());
                        return is_end.then_some(k == 1 + usize::from(END_OF_BLOCK));
                    }
                    // Of sixteen zeros the last is put.
                    block[usize::from(ZIGZAG_TRANSPOSED[k]) & 63] = bits.take(code) as i16;
                    k += 1;
                    if k > 63 {
                        return Some(false);
                    }
                    break;
                }
                bits.skip(look.bits.into());
                let second = (first + usize::from(look.step)) & 63;
                block[usize::from(ZIGZAG_TRANSPOSED[first]) & 63] = look.first;
                block[usize::from(ZIGZAG_TRANSPOSED[second]) & 63] = look.second;
                k = first + usize::from(look.next);
                if k > 63 {
                    return (k == 64 || look.next == END_OF_BLOCK).then_some(false);
                }
            }
        }
    }

    /// Reads over the other coefficients.
    #[inline(always)]
    fn pass_others(&self, bits: &mut Bits<'_>) -> Option<()> {
        let passes = self.ac.passes();
        let mut k = 1;
        loop {
            bits.refill();
            for _ in 0..LOOKS {
                let pass = passes.at(bits.ahead());
                if k + pass.coefficients() > 63 {
                    // The last coefficient may be among them, and what follows it is no longer of this block.
                    bits.refill();
                    let code = self.ac.code(bits.ahead())?;
                    bits.skip(code.all_bits());
                    k += code.run();
                    if k >= 63 {
                        return (k == 63 || code.run() == usize::from(END_OF_BLOCK)).then_some(());
                    }
                    k += 1;
                    break;
                }
                bits.skip(pass.bits());
                if pass.is_end() {
                    return Some(());
                }
                k += pass.coefficients();
            }
        }
    }
}
