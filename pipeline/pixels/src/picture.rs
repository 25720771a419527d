//! One decode for both: the luma that is measured, and the colours that are stored.

use image::ImageDecoder;

use crate::container::Jpeg;
use crate::decode::{caught, jpeg_planes, rgb_of, stored_size, upright};
use crate::encode::encode_planes;
use crate::format::{Kind, Opened, Orientation, open};
use crate::geometry::{Anchor, reduced, square_of_plane};
use crate::jpeg::{Chroma, Plane};
use crate::{DecodeError, Image, Limits, Luma, color, decode, decode_luma, encode_jpeg, fit};

/// A decoded image in whichever form it came: most JPEGs as planes of luma and chroma, which are
/// measured, resized and encoded anew without a detour over RGB.
#[derive(Debug)]
pub struct Picture {
    luma: Luma,
    colours: Colours,
}

#[derive(Debug)]
enum Colours {
    /// Cb and Cr beside the luma; none for grey.
    Chroma(Option<[Chroma; 2]>),
    /// In RGB.
    Image(Image),
}

/// The [picture](Opened::picture) of a file.
///
/// # Errors
/// As [`decode`].
pub fn decode_picture(bytes: &[u8], limits: &Limits) -> Result<Picture, DecodeError> {
    open(bytes, limits)?.picture()
}

impl Opened<'_> {
    /// Decodes once what [`decode`] and [`decode_luma`] decode, with the same checks.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn picture(mut self) -> Result<Picture, DecodeError> {
        caught(self.bytes, || {
            let has_profile = match &mut self.kind {
                Kind::Jpeg(jpeg) => {
                    if let Some(picture) = of_planes(jpeg)? {
                        return Ok(picture);
                    }
                    jpeg.icc_profile().is_some()
                }
                Kind::Other(other) => other.decoder.icc_profile().ok().flatten().is_some(),
            };
            let image = decode(self.bytes, &self.limits)?;
            // Profiles are not applied to what is measured.
            let luma = if has_profile { decode_luma(self.bytes, &self.limits)? } else { image.luma() };
            Ok(Picture { luma, colours: Colours::Image(image) })
        })
    }
}

/// The picture of a JPEG that is coded as luma and chroma.
fn of_planes(jpeg: &Jpeg<'_>) -> Result<Option<Picture>, DecodeError> {
    let Some(planes) = jpeg_planes(jpeg)? else {
        return Ok(None);
    };
    let orientation = Orientation::of_jpeg(jpeg);
    let icc = jpeg.icc_profile().filter(|icc| color::converts(icc, planes.chroma.is_none()));
    if icc.is_none() && orientation == Orientation::UPRIGHT {
        let luma = Luma::new(jpeg.width, jpeg.height, planes.luma.samples);
        return Ok(Some(Picture { luma, colours: Colours::Chroma(planes.chroma) }));
    }
    let rgb = upright::<3>(rgb_of(&planes, icc.as_deref()), planes.luma.width, orientation);
    let luma = upright::<1>(planes.luma.samples, planes.luma.width, orientation);
    let (width, height) = stored_size(jpeg.width, jpeg.height, orientation);
    let image = Image::new(width, height, rgb);
    Ok(Some(Picture { luma: Luma::new(width, height, luma), colours: Colours::Image(image) }))
}

/// A thumbnail's side, in pixels.
pub const THUMBNAIL_SIDE: u32 = 160;
const THUMBNAIL_QUALITY: u8 = 75;

impl Luma {
    /// The square in the middle as a small grey JPEG, to look at.
    #[must_use]
    pub fn thumbnail(&self) -> Vec<u8> {
        let size = (self.width(), self.height());
        let by = thumbnail_reduction(size);
        let luma = reduced(self.samples(), size.0 as usize, by);
        planes_square((luma, None), reduced_size(size, by), THUMBNAIL_SIDE, THUMBNAIL_QUALITY)
    }
}

impl Picture {
    /// What is measured: the luma as it was coded.
    #[must_use]
    pub const fn luma(&self) -> &Luma {
        &self.luma
    }

    /// The square in the middle, resized (Lanczos3) to `side` x `side`, as a baseline JPEG with 4:2:0 chroma at
    /// `quality` 1 to 100.
    ///
    /// # Panics
    /// If `side` is 0 or over 65,535.
    #[must_use]
    pub fn square_jpeg(self, side: u32, quality: u8) -> Vec<u8> {
        let size = (self.luma.width(), self.luma.height());
        match self.colours {
            Colours::Image(image) => encode_jpeg(&fit(&image, side, side, Anchor::CENTER).image, quality),
            Colours::Chroma(chroma) => {
                let luma = Plane { width: size.0 as usize, height: size.1 as usize, samples: self.luma.into_samples() };
                planes_square((luma, chroma), size, side, quality)
            }
        }
    }

    /// The square in the middle as a small JPEG, to look at.
    #[must_use]
    pub fn thumbnail(self) -> Vec<u8> {
        let size = (self.luma.width(), self.luma.height());
        let by = thumbnail_reduction(size);
        let Self { luma, colours: Colours::Chroma(chroma) } = self else {
            return self.square_jpeg(THUMBNAIL_SIDE, THUMBNAIL_QUALITY);
        };
        let luma = reduced(luma.samples(), size.0 as usize, by);
        let reduced_chroma = |Chroma { plane, step }| Chroma { plane: reduced(&plane.samples, plane.width, by), step };
        let chroma = chroma.map(|both| both.map(reduced_chroma));
        planes_square((luma, chroma), reduced_size(size, by), THUMBNAIL_SIDE, THUMBNAIL_QUALITY)
    }
}

/// The square in the middle of planes of a picture of this size, resized and encoded.
fn planes_square((luma, chroma): (Plane, Option<[Chroma; 2]>), size: (u32, u32), side: u32, quality: u8) -> Vec<u8> {
    let half = side.div_ceil(2);
    let [cb, cr] = match chroma {
        Some(chroma) => chroma.map(|Chroma { plane, step }| square_of_plane(&plane, step, size, side, half)),
        None => [gray_chroma(side), gray_chroma(side)],
    };
    encode_planes(&square_of_plane(&luma, (1, 1), size, side, side), [&cb, &cr], quality)
}

/// By how much an image may be reduced to means so that its thumbnail is still made of twice as many samples along each
/// side: a filter over all of a large image is most of a thumbnail's work.
fn thumbnail_reduction((width, height): (u32, u32)) -> usize {
    (width.min(height) / (2 * THUMBNAIL_SIDE)).max(1) as usize
}

fn reduced_size((width, height): (u32, u32), by: usize) -> (u32, u32) {
    (width / by as u32, height / by as u32)
}

/// Either plane of chroma of a grey square of `side` x `side` pixels.
fn gray_chroma(side: u32) -> Plane {
    let half = side.div_ceil(2) as usize;
    Plane { width: half, height: half, samples: vec![128; half * half] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 22, max_side: 1 << 12 };

    /// Luma that grows along the rows and colours that grow down the columns, so wide and high.
    fn slope(width: u32, height: u32) -> Image {
        let pixel =
            |x: u32, y: u32| [(x * 200 / width) as u8 + 20, (x * 200 / width) as u8 + 20, (y * 200 / height) as u8];
        Image::new(width, height, (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect())
    }

    #[test]
    fn a_gray_square_has_chroma_of_half_its_side_at_even_and_odd_sides() {
        let luma = slope(40, 30).luma();
        for side in [16, 15] {
            let plane = Plane { width: 40, height: 30, samples: luma.samples().to_vec() };
            let square = decode_luma(&planes_square((plane, None), (40, 30), side, 90), &LIMITS).unwrap();
            assert_eq!((square.width(), square.height()), (side, side));
            assert!(square.samples()[0] < square.samples()[side as usize - 1], "the slope along the rows");
        }
    }

    /// Reduced before it is filtered or not, a thumbnail shows what the square shows.
    #[test]
    fn a_thumbnail_is_the_square_in_small() {
        for (width, height) in [(1300, 1030), (700, 1400), (333, 200), (90, 70)] {
            let bytes = encode_jpeg(&slope(width, height), 95);
            let picture = || decode_picture(&bytes, &LIMITS).unwrap();
            let gray = decode(&picture().luma().thumbnail(), &LIMITS).unwrap();
            let [square, thumbnail] = [picture().square_jpeg(THUMBNAIL_SIDE, 95), picture().thumbnail()]
                .map(|jpeg| decode(&jpeg, &LIMITS).unwrap());
            assert_eq!((thumbnail.width(), thumbnail.height()), (THUMBNAIL_SIDE, THUMBNAIL_SIDE));
            let furthest = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(furthest(square.rgb(), thumbnail.rgb()) <= 8, "{width} x {height}");
            assert!(furthest(square.luma().samples(), gray.luma().samples()) <= 8, "{width} x {height}, grey");
        }
    }
}
