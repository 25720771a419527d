//! Bytes to pixels.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageError};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::container::{self, Jpeg};
use crate::format::{Kind, Opened, Orientation, Other, open};
use crate::jpeg::{self, Outcome, Planes};
use crate::measures::OfRows;
use crate::{DecodeError, Format, Image, Limits, Luma, Measures, color};

/// Scans of a progressive JPEG. Encoders write about 10; each more is a pass over the image.
const MAX_JPEG_SCANS: usize = 64;

/// Decodes to upright 8-bit sRGB; see the [crate's table](crate) for what becomes of what.
///
/// # Errors
/// Every variant of [`DecodeError`]. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    let opened = open(bytes, limits)?;
    caught(bytes, || {
        let header = opened.header();
        let stored = match opened.kind {
            Kind::Jpeg(jpeg) => jpeg_rgb(&jpeg, Profile::Applied)?,
            Kind::Other(other) => other_rgb(other, Profile::Applied)?,
        };
        let (stored_width, _) = stored_size(header.width, header.height, header.orientation);
        let rgb = upright::<3>(stored, stored_width as usize, header.orientation);
        Ok(Image::new(header.width, header.height, rgb))
    })
}

/// Decodes to upright luma alone, with the same checks as [`decode`]: a file that one of them
/// accepts, the other accepts. Of a YCbCr JPEG's chroma only the codes are read. ICC profiles are
/// not applied.
///
/// # Errors
/// As [`decode`].
pub fn decode_luma(bytes: &[u8], limits: &Limits) -> Result<Luma, DecodeError> {
    let opened = open(bytes, limits)?;
    caught(bytes, || {
        let header = opened.header();
        let (width, height) = stored_size(header.width, header.height, header.orientation);
        let luma_of = |rgb| Image::new(width, height, rgb).luma().into_samples();
        let stored = match opened.kind {
            Kind::Jpeg(jpeg) => match jpeg_luma(&jpeg)? {
                Some(luma) => luma,
                None => luma_of(jpeg_rgb(&jpeg, Profile::Ignored)?),
            },
            Kind::Other(other) => luma_of(other_rgb(other, Profile::Ignored)?),
        };
        let samples = upright::<1>(stored, width as usize, header.orientation);
        Ok(Luma::new(header.width, header.height, samples))
    })
}

/// What [`Opened::measure`] measures of a file.
///
/// # Errors
/// As [`decode`].
pub fn measure(bytes: &[u8], limits: &Limits) -> Result<Measures, DecodeError> {
    open(bytes, limits)?.measure()
}

impl Opened<'_> {
    /// Measures what [`decode_luma`] decodes, with the same checks. An upright JPEG is measured while it is decoded, row
    /// by row.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn measure(&self) -> Result<Measures, DecodeError> {
        let measured_in_rows = caught(self.bytes, || match &self.kind {
            Kind::Jpeg(jpeg)
                if Orientation::of_jpeg(jpeg) == Orientation::UPRIGHT && has_luma(&jpeg_decoder(jpeg)?) =>
            {
                let mut measures = OfRows::new((jpeg.width as usize, jpeg.height as usize));
                match jpeg::luma_rows(jpeg, &mut |row| measures.push(row)) {
                    Outcome::Decoded(()) => Ok(Some(measures.finish())),
                    Outcome::Damaged => Err(damaged()),
                    Outcome::NotThisCase => Ok(None),
                }
            }
            _ => Ok(None),
        })?;
        match measured_in_rows {
            Some(measures) => Ok(measures),
            None => decode_luma(self.bytes, &self.limits).map(|luma| Measures::of(&luma)),
        }
    }
}

/// Whether an embedded ICC profile is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    Applied,
    Ignored,
}

/// Runs a decode; a panic inside becomes an error.
pub(crate) fn caught<T>(bytes: &[u8], decode: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    // Sound to assert: the closure holds only shared borrows, and what it built is dropped.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        let format = container::sniff(bytes)?;
        Err(DecodeError::DecoderPanic(format))
    })
}

pub(crate) fn stored_size(width: u32, height: u32, orientation: Orientation) -> (u32, u32) {
    if orientation.swaps_sides() { (height, width) } else { (width, height) }
}

/// The luma plane of a JPEG that has one and is coded in a way that [`jpeg`](crate::jpeg) knows. Of others luma is that of
/// their colours: what the general decoder makes of a damaged file depends on what it is asked for.
fn jpeg_luma(jpeg: &Jpeg<'_>) -> Result<Option<Vec<u8>>, DecodeError> {
    if !has_luma(&jpeg_decoder(jpeg)?) {
        return Ok(None);
    }
    match jpeg::luma(jpeg) {
        Outcome::Decoded(luma) => Ok(Some(luma.samples)),
        Outcome::Damaged => Err(damaged()),
        Outcome::NotThisCase => Ok(None),
    }
}

/// Whether the first component is luma.
fn has_luma(decoder: &JpegDecoder<ZCursor<&[u8]>>) -> bool {
    matches!(decoder.input_colorspace(), Some(ColorSpace::YCbCr | ColorSpace::Luma))
}

fn jpeg_rgb(jpeg: &Jpeg<'_>, profile: Profile) -> Result<Vec<u8>, DecodeError> {
    let icc = if profile == Profile::Applied { jpeg.icc_profile() } else { None };
    if let Some(planes) = jpeg_planes(jpeg)? {
        return Ok(rgb_of(&planes, icc.as_deref()));
    }
    let mut decoder = jpeg_decoder(jpeg)?;
    match decoder.input_colorspace() {
        Some(space @ (ColorSpace::CMYK | ColorSpace::YCCK)) => {
            let mut samples = jpeg_samples(&mut decoder, space)?;
            if space == ColorSpace::YCCK {
                color::ycck_to_stored_cmyk(&mut samples);
            }
            Ok(color::stored_cmyk_to_srgb(samples, icc.as_deref()))
        }
        Some(ColorSpace::Luma) => {
            let luma = jpeg_samples(&mut decoder, ColorSpace::Luma)?;
            Ok(color::gray_to_srgb(&luma, icc.as_deref()))
        }
        _ => {
            let mut rgb = jpeg_samples(&mut decoder, ColorSpace::RGB)?;
            if let Some(icc) = icc {
                color::rgb_to_srgb(&mut rgb, &icc);
            }
            Ok(rgb)
        }
    }
}

/// The planes of a JPEG that is coded as luma and chroma, or as luma alone, in a way that
/// [`jpeg`](crate::jpeg) knows. Data that is not whole is found in every JPEG that it knows, for
/// the general decoder shows a block row that ends early as grey.
pub(crate) fn jpeg_planes(jpeg: &Jpeg<'_>) -> Result<Option<Planes>, DecodeError> {
    let read = if has_luma(&jpeg_decoder(jpeg)?) { jpeg::planes(jpeg) } else { jpeg::check(jpeg).without_planes() };
    match read {
        Outcome::Decoded(planes) => Ok(Some(planes)),
        Outcome::Damaged => Err(damaged()),
        Outcome::NotThisCase => Ok(None),
    }
}

/// The colours of planes, by the profile if there is one.
pub(crate) fn rgb_of(planes: &Planes, icc: Option<&[u8]>) -> Vec<u8> {
    if planes.chroma.is_none() {
        return color::gray_to_srgb(&planes.luma.samples, icc);
    }
    let mut rgb = planes.to_rgb();
    if let Some(icc) = icc {
        color::rgb_to_srgb(&mut rgb, icc);
    }
    rgb
}

fn damaged() -> DecodeError {
    DecodeError::corrupt(Format::Jpeg, "the coded data does not match the image's size")
}

/// A decoder that has read the headers and agrees with the walk about the size.
fn jpeg_decoder<'a>(jpeg: &Jpeg<'a>) -> Result<JpegDecoder<ZCursor<&'a [u8]>>, DecodeError> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_JPEG_SCANS);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg.bytes), options);
    decoder.decode_headers().map_err(|error| DecodeError::corrupt(Format::Jpeg, &format!("{error:?}")))?;
    let agreed = decoder.dimensions() == Some((jpeg.width as usize, jpeg.height as usize))
        && decoder.info().is_some_and(|info| info.components == jpeg.components);
    if agreed { Ok(decoder) } else { Err(DecodeError::corrupt(Format::Jpeg, "two frames")) }
}

fn jpeg_samples(decoder: &mut JpegDecoder<ZCursor<&[u8]>>, space: ColorSpace) -> Result<Vec<u8>, DecodeError> {
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(space));
    decoder.decode().map_err(|error| DecodeError::corrupt(Format::Jpeg, &format!("{error:?}")))
}

/// The pixels of a PNG, WebP or GIF, composed over white.
fn other_rgb(other: Other<'_>, profile: Profile) -> Result<Vec<u8>, DecodeError> {
    let Other { format, mut decoder, .. } = other;
    let icc = if profile == Profile::Applied { decoder.icc_profile().ok().flatten() } else { None };
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| DecodeError::from_image(format, &error))?;
    let gray = !decoded.color().has_color();
    if !decoded.color().has_alpha() {
        let mut rgb = decoded.into_rgb8().into_raw();
        match icc {
            Some(icc) if gray => rgb = color::gray_to_srgb(&color::first_of_three(&rgb), Some(&icc)),
            Some(icc) => color::rgb_to_srgb(&mut rgb, &icc),
            None => {}
        }
        return Ok(rgb);
    }
    let rgba = decoded.into_rgba8().into_raw();
    let alpha: Vec<u8> = rgba.chunks_exact(4).map(|p| p[3]).collect();
    let mut rgb: Vec<u8> = rgba.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
    match icc {
        Some(icc) if gray => rgb = color::gray_to_srgb(&color::first_of_three(&rgb), Some(&icc)),
        Some(icc) => color::rgb_to_srgb(&mut rgb, &icc),
        None => {}
    }
    color::compose_over_white(&mut rgb, &alpha);
    Ok(rgb)
}

/// Turns stored pixels of `N` samples upright.
pub(crate) fn upright<const N: usize>(stored: Vec<u8>, width: usize, orientation: Orientation) -> Vec<u8> {
    let height = stored.len() / N / width;
    let (pixels, _) = stored.as_chunks::<N>();
    // `source(x, y)` is where the upright pixel (x, y) is stored.
    let turned = |upright_width: usize, upright_height: usize, source: &dyn Fn(usize, usize) -> (usize, usize)| {
        let mut out = Vec::with_capacity(pixels.len() * N);
        for y in 0..upright_height {
            for x in 0..upright_width {
                let (x, y) = source(x, y);
                out.extend_from_slice(&pixels[y * width + x]);
            }
        }
        out
    };
    let (right, bottom) = (width - 1, height - 1);
    match orientation.exif() {
        2 => turned(width, height, &|x, y| (right - x, y)),
        3 => turned(width, height, &|x, y| (right - x, bottom - y)),
        4 => turned(width, height, &|x, y| (x, bottom - y)),
        5 => turned(height, width, &|x, y| (y, x)),
        6 => turned(height, width, &|x, y| (y, bottom - x)),
        7 => turned(height, width, &|x, y| (right - y, bottom - x)),
        8 => turned(height, width, &|x, y| (right - y, x)),
        _ => stored,
    }
}

impl DecodeError {
    pub(crate) fn corrupt(format: Format, reason: &str) -> Self {
        Self::Corrupt { format, reason: reason.to_owned() }
    }

    pub(crate) fn from_image(format: Format, error: &ImageError) -> Self {
        match error {
            ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => Self::Truncated(format),
            _ => Self::corrupt(format, &error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_inside_a_decoder_is_an_error_of_that_image() {
        let caught: Result<(), _> = caught(b"\xff\xd8\xff\xe0", || panic!("index out of bounds"));
        assert_eq!(caught, Err(DecodeError::DecoderPanic(Format::Jpeg)));
    }
}
