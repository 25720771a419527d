//! One decode for both: the luma that is measured, and the colours that are stored.

use image::ImageDecoder;

use crate::container::Jpeg;
use crate::decode::{caught, jpeg_planes, rgb_of, stored_size, upright};
use crate::encode::encode_planes;
use crate::format::{Opened, Orientation, open};
use crate::geometry::{Anchor, square_of_plane};
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

/// Decodes once what [`decode`] and [`decode_luma`] decode, with the same checks.
///
/// # Errors
/// As [`decode`].
pub fn decode_picture(bytes: &[u8], limits: &Limits) -> Result<Picture, DecodeError> {
    caught(bytes, || {
        let mut opened = open(bytes, limits)?;
        let has_profile = match &mut opened {
            Opened::Jpeg(jpeg) => {
                if let Some(picture) = of_planes(jpeg)? {
                    return Ok(picture);
                }
                jpeg.icc_profile().is_some()
            }
            Opened::Other(other) => other.decoder.icc_profile().ok().flatten().is_some(),
        };
        let image = decode(bytes, limits)?;
        // Profiles are not applied to what is measured.
        let luma = if has_profile { decode_luma(bytes, limits)? } else { image.luma() };
        Ok(Picture { luma, colours: Colours::Image(image) })
    })
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

impl Luma {
    /// The square in the middle, resized (Lanczos3) to `side` x `side`, as a small grey JPEG at `quality` 1 to 100.
    ///
    /// # Panics
    /// If `side` is 0 or over 65,535.
    #[must_use]
    pub fn square_jpeg(&self, side: u32, quality: u8) -> Vec<u8> {
        let size = (self.width(), self.height());
        let plane = Plane { width: size.0 as usize, height: size.1 as usize, samples: self.samples().to_vec() };
        let gray = gray_chroma(side);
        encode_planes(&square_of_plane(&plane, (1, 1), size, side, side), [&gray, &gray], quality)
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
                let half = side.div_ceil(2);
                let luma = Plane { width: size.0 as usize, height: size.1 as usize, samples: self.luma.into_samples() };
                let [cb, cr] = match chroma {
                    Some(chroma) => {
                        chroma.map(|Chroma { plane, step }| square_of_plane(&plane, step, size, side, half))
                    }
                    None => [gray_chroma(side), gray_chroma(side)],
                };
                encode_planes(&square_of_plane(&luma, (1, 1), size, side, side), [&cb, &cr], quality)
            }
        }
    }
}

/// Either plane of chroma of a grey square of `side` x `side` pixels.
fn gray_chroma(side: u32) -> Plane {
    let half = side.div_ceil(2) as usize;
    Plane { width: half, height: half, samples: vec![128; half * half] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, decode_luma};

    #[test]
    fn a_square_of_luma_alone_is_a_gray_jpeg_of_even_and_odd_sides() {
        let luma = Luma::new(40, 30, (0..40 * 30).map(|i| (i % 40 * 6) as u8).collect());
        let limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 20, max_side: 1 << 10 };
        for side in [16, 15] {
            let square = decode_luma(&luma.square_jpeg(side, 90), &limits).unwrap();
            assert_eq!((square.width(), square.height()), (side, side));
            assert!(square.samples()[0] < square.samples()[side as usize - 1], "the slope along the rows");
        }
    }
}
