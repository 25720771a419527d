//! Planes to a baseline JPEG with half as much chroma along each side (4:2:0), with the standard's own tables, as
//! libjpeg writes it.

use fearless_simd::{Level, Simd, dispatch};

use super::coder::{Codes, Writer};
use super::forward::{Reciprocals, reciprocals, transform};
use super::tables::{AC, DC, QUANTISERS, Table};
use crate::jpeg::Plane;

/// Encodes luma and, with half as many samples along a side, rounded up, Cb and Cr at `quality` 1 to 100.
///
/// # Panics
/// If a side of luma is over 65,535, or the planes of chroma have another size than that.
pub(crate) fn encode_planes(luma: &Plane, chroma: [&Plane; 2], quality: u8) -> Vec<u8> {
    encode_at(Level::new(), luma, chroma, quality)
}

fn encode_at(level: Level, luma: &Plane, chroma: [&Plane; 2], quality: u8) -> Vec<u8> {
    let half = (luma.width.div_ceil(2), luma.height.div_ceil(2));
    assert!(chroma.iter().all(|plane| (plane.width, plane.height) == half), "chroma is half of luma");
    let quantisers = QUANTISERS.map(|quantiser| scaled(quantiser, quality));
    let writer = Writer::new(head(luma, &quantisers));
    let mut bytes = dispatch!(level, simd => encode(simd, writer, luma, chroma, &quantisers));
    bytes.extend([0xFF, 0xD9]);
    bytes
}

/// A quantiser at another quality than 50, on libjpeg's scale.
fn scaled(quantiser: [u16; 64], quality: u8) -> [u16; 64] {
    let quality = u32::from(quality.clamp(1, 100));
    let percent = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    quantiser.map(|step| ((u32::from(step) * percent + 50) / 100).clamp(1, 255) as u16)
}

/// All segments before the coded data.
fn head(luma: &Plane, quantisers: &[[u16; 64]; 2]) -> Vec<u8> {
    let side = |samples: usize| u16::try_from(samples).expect("a JPEG's sides are at most 65,535 pixels").to_be_bytes();
    let ([high, low], [left, right]) = (side(luma.height), side(luma.width));
    let mut bytes = Vec::with_capacity(luma.samples.len() + 4096);
    bytes.extend([0xFF, 0xD8]);
    let mut segment = |marker: u8, body: &[u8]| {
        bytes.extend([0xFF, marker]);
        bytes.extend((body.len() as u16 + 2).to_be_bytes());
        bytes.extend(body);
    };
    segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0");
    for (at, quantiser) in (0..).zip(quantisers) {
        let steps = quantiser.iter().map(|&step| step as u8);
        segment(0xDB, &std::iter::once(at).chain(steps).collect::<Vec<u8>>());
    }
    // 8 bits; luma with two blocks along and down an MCU, Cb and Cr with one.
    segment(0xC0, &[8, high, low, left, right, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]);
    for (kind, tables) in [(0x00, &DC), (0x10, &AC)] {
        for (at, Table { counts, symbols }) in (0..).zip(tables) {
            segment(0xC4, &[&[kind | at], &counts[..], symbols].concat());
        }
    }
    segment(0xDA, &[3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0]);
    bytes
}

#[inline(always)]
fn encode<S: Simd>(
    simd: S,
    mut writer: Writer,
    luma: &Plane,
    chroma: [&Plane; 2],
    quantisers: &[[u16; 64]; 2],
) -> Vec<u8> {
    let mut luma = Component::new(luma, 2, 0, &quantisers[0]);
    let [mut cb, mut cr] =
        [Component::new(chroma[0], 1, 1, &quantisers[1]), Component::new(chroma[1], 1, 1, &quantisers[1])];
    let (across, down) = (luma.plane.width.div_ceil(16), luma.plane.height.div_ceil(16));
    for row in 0..down {
        luma.load(row);
        cb.load(row);
        cr.load(row);
        for column in 0..across {
            luma.encode_mcu(simd, &mut writer, column);
            cb.encode_mcu(simd, &mut writer, column);
            cr.encode_mcu(simd, &mut writer, column);
        }
    }
    writer.finish()
}

/// A component, and a row of its MCUs.
struct Component<'a> {
    plane: &'a Plane,
    /// Blocks of an MCU along and down.
    blocks: usize,
    reciprocals: Reciprocals,
    dc: Codes,
    ac: Codes,
    /// Samples, the last of each row and the last row repeated to whole MCUs.
    band: Vec<u8>,
    stride: usize,
    prediction: i16,
}

impl<'a> Component<'a> {
    fn new(plane: &'a Plane, blocks: usize, tables: usize, quantiser: &[u16; 64]) -> Self {
        let side = 8 * blocks;
        let stride = plane.width.next_multiple_of(side);
        Self {
            plane,
            blocks,
            reciprocals: reciprocals(quantiser),
            dc: Codes::new(&DC[tables]),
            ac: Codes::new(&AC[tables]),
            band: vec![0; stride * side],
            stride,
            prediction: 0,
        }
    }

    fn load(&mut self, row: usize) {
        let Plane { width, height, samples } = self.plane;
        for (y, out) in self.band.chunks_exact_mut(self.stride).enumerate() {
            let y = (row * 8 * self.blocks + y).min(height - 1);
            let (inside, beyond) = out.split_at_mut(*width);
            inside.copy_from_slice(&samples[y * width..(y + 1) * width]);
            beyond.fill(inside[width - 1]);
        }
    }

    #[inline(always)]
    fn encode_mcu<S: Simd>(&mut self, simd: S, writer: &mut Writer, column: usize) {
        for y in 0..self.blocks {
            for x in 0..self.blocks {
                let at = y * 8 * self.stride + (column * self.blocks + x) * 8;
                let block = transform(simd, &self.band[at..], self.stride, &self.reciprocals);
                self.prediction = writer.block(&block, self.prediction, &self.dc, &self.ac);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::levels::levels;
    use crate::{Limits, container, decode_picture, jpeg};

    fn plane(width: usize, height: usize, seed: usize) -> Plane {
        let sample = |i: usize| ((i * (seed + 3) / 7) as u8) ^ ((i.wrapping_mul(0x9E37_79B9) >> 29) as u8 * 9);
        Plane { width, height, samples: (0..width * height).map(sample).collect() }
    }

    /// What the planes of a JPEG are, as this crate reads them.
    fn read(bytes: &[u8]) -> jpeg::Planes {
        match jpeg::planes(&container::jpeg(bytes).unwrap()) {
            jpeg::Outcome::Decoded(planes) => planes,
            _ => panic!("what was encoded is not read"),
        }
    }

    fn largest_difference(a: &Plane, b: &Plane) -> u8 {
        a.samples.iter().zip(&b.samples).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn at_quality_100_all_sizes_come_back_within_rounding_from_every_level() {
        for (width, height) in [(1, 1), (2, 9), (7, 8), (16, 16), (17, 15), (33, 40), (64, 3)] {
            let luma = plane(width, height, 1);
            let [cb, cr] = [2, 3].map(|seed| plane(width.div_ceil(2), height.div_ceil(2), seed));
            let encoded: Vec<Vec<u8>> = levels().map(|level| encode_at(level, &luma, [&cb, &cr], 100)).collect();
            assert!(encoded.iter().all(|other| *other == encoded[0]), "levels differ at {width} x {height}");
            let planes = read(&encoded[0]);
            let [read_cb, read_cr] = planes.chroma.expect("three components").map(|chroma| chroma.plane);
            // Steps of 1: each coefficient is off by a half at most.
            for (was, is) in [(&luma, &planes.luma), (&cb, &read_cb), (&cr, &read_cr)] {
                assert_eq!((was.width, was.height), (is.width, is.height));
                assert!(largest_difference(was, is) <= 2, "{width} x {height}: {}", largest_difference(was, is));
            }
        }
    }

    /// Black and white in turn make the largest coefficients that there are, and long runs of ones among the bits.
    #[test]
    fn extremes_and_every_quality_are_read_again() {
        let checks = |side: usize, cell: usize| {
            let samples =
                (0..side * side).map(|i| if (i / side / cell + i % side / cell).is_multiple_of(2) { 255 } else { 0 });
            Plane { width: side, height: side, samples: samples.collect() }
        };
        for cell in [1, 2, 3, 4, 8] {
            let (luma, chroma) = (checks(48, cell), checks(24, cell));
            for quality in [1, 2, 10, 49, 50, 51, 75, 95, 100] {
                let bytes = encode_planes(&luma, [&chroma, &chroma], quality);
                assert!(decode_picture(&bytes, &Limits::default()).is_ok(), "{cell} at {quality}");
            }
            let bytes = encode_planes(&luma, [&chroma, &chroma], 100);
            assert!(largest_difference(&luma, &read(&bytes).luma) <= 2, "{cell}");
        }
    }

    #[test]
    fn quantisers_follow_libjpegs_scale() {
        // What libjpeg 6b writes for luma: the first step at these qualities.
        for (quality, first) in [(1, 255), (10, 80), (50, 16), (75, 8), (95, 2), (100, 1)] {
            assert_eq!(scaled(QUANTISERS[0], quality)[0], first, "{quality}");
        }
    }
}
