//! What a file says of itself: format by magic bytes, size, orientation.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};

use crate::DecodeError;
use crate::container::{self, Jpeg};
use crate::decode::caught;

/// What an image may ask for. Checked against the header, before any allocation of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest file, in bytes.
    pub max_bytes: usize,
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Longest side, in pixels.
    pub max_side: u32,
}

impl Default for Limits {
    /// 64 MiB, 50 megapixels, 32,768 pixels a side. A decode takes at most about 14 bytes of
    /// memory for each pixel, so one stays under 700 MB.
    fn default() -> Self {
        Self { max_bytes: 64 << 20, max_pixels: 50_000_000, max_side: 32_768 }
    }
}

/// A format that is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP, lossy and lossless.
    Webp,
    /// GIF, of which the first frame counts.
    Gif,
}

impl Format {
    /// The extension under which such bytes are stored: `jpg`, `png`, `webp`, `gif`.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Gif => "gif",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Webp => "WebP",
            Self::Gif => "GIF",
        })
    }
}

/// The EXIF orientation: how the stored pixels must be turned to stand upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orientation(image::metadata::Orientation);

impl Orientation {
    /// Pixels that stand upright as they are stored.
    pub const UPRIGHT: Self = Self(image::metadata::Orientation::NoTransforms);

    /// The number that EXIF gives it, 1 to 8.
    #[must_use]
    pub fn exif(self) -> u8 {
        self.0.to_exif()
    }

    /// Whether turning it swaps width and height.
    #[must_use]
    pub fn swaps_sides(self) -> bool {
        self.exif() >= 5
    }

    pub(crate) fn of_jpeg(jpeg: &Jpeg<'_>) -> Self {
        jpeg.exif.map_or(Self::UPRIGHT, Self::from_tiff)
    }

    /// The orientation in a TIFF block of EXIF; upright where it says none or nonsense.
    pub(crate) fn from_tiff(tiff: &[u8]) -> Self {
        image::metadata::Orientation::from_exif_chunk(tiff).map_or(Self::UPRIGHT, Self)
    }
}

/// What a file says of itself before its pixels are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Format, by magic bytes.
    pub format: Format,
    /// Width of the upright image.
    pub width: u32,
    /// Height of the upright image.
    pub height: u32,
    /// How the stored pixels are turned.
    pub orientation: Orientation,
}

/// Reads format, size and orientation without decoding the pixels: the [header](Opened::header) of what [`open`] opens.
///
/// # Errors
/// As [`open`].
pub fn probe(bytes: &[u8], limits: &Limits) -> Result<Header, DecodeError> {
    Ok(open(bytes, limits)?.header())
}

/// A file whose structure is whole and whose size is within the limits. Its pixels are still to be decoded.
pub struct Opened<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) limits: Limits,
    pub(crate) kind: Kind<'a>,
}

/// What is known of a file before its pixels are decoded, by the decoder that it is for.
pub(crate) enum Kind<'a> {
    Jpeg(Jpeg<'a>),
    Other(Other<'a>),
}

/// A PNG, WebP or GIF, read up to its pixels.
pub(crate) struct Other<'a> {
    pub(crate) format: Format,
    pub(crate) decoder: Box<dyn ImageDecoder + 'a>,
    pub(crate) orientation: Orientation,
}

impl Opened<'_> {
    /// What the file says of itself.
    #[must_use]
    pub fn header(&self) -> Header {
        let (format, (width, height), orientation) = match &self.kind {
            Kind::Jpeg(jpeg) => (Format::Jpeg, (jpeg.width, jpeg.height), Orientation::of_jpeg(jpeg)),
            Kind::Other(other) => (other.format, other.decoder.dimensions(), other.orientation),
        };
        let (width, height) = if orientation.swaps_sides() { (height, width) } else { (width, height) };
        Header { format, width, height, orientation }
    }
}

/// Tells the format, walks the file's structure to its end, and holds the size against the limits.
///
/// # Errors
/// As [`decode`](crate::decode), as far as this tells: a truncated file is found here, a corrupt
/// bit in the pixels is not. Never panics, whatever the bytes.
pub fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Opened<'a>, DecodeError> {
    let kind = caught(bytes, || kind_of(bytes, limits))?;
    Ok(Opened { bytes, limits: *limits, kind })
}

fn kind_of<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Kind<'a>, DecodeError> {
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), limit: limits.max_bytes });
    }
    match container::sniff(bytes)? {
        Format::Jpeg => {
            let jpeg = container::jpeg(bytes)?;
            limits.admit(jpeg.width, jpeg.height)?;
            Ok(Kind::Jpeg(jpeg))
        }
        format => {
            container::whole(format, bytes)?;
            // The size is held against the limits here and not in the decoder, so that the error
            // says what was asked for; what the decoder is given bounds its metadata.
            let image_limits = || {
                let mut image_limits = image::Limits::no_limits();
                image_limits.max_alloc = Some(limits.max_pixels.saturating_mul(8).max(1 << 20));
                image_limits
            };
            let corrupt = |error| DecodeError::from_image(format, &error);
            let cursor = Cursor::new(bytes);
            let mut decoder: Box<dyn ImageDecoder + 'a> = match format {
                Format::Png => Box::new(PngDecoder::with_limits(cursor, image_limits()).map_err(corrupt)?),
                Format::Webp => Box::new(WebPDecoder::new(cursor).map_err(corrupt)?),
                Format::Gif | Format::Jpeg => Box::new(GifDecoder::new(cursor).map_err(corrupt)?),
            };
            let (width, height) = decoder.dimensions();
            limits.admit(width, height)?;
            decoder.set_limits(image_limits()).map_err(corrupt)?;
            let orientation = decoder
                .exif_metadata()
                .ok()
                .flatten()
                .map_or(Orientation::UPRIGHT, |tiff| Orientation::from_tiff(&tiff));
            Ok(Kind::Other(Other { format, decoder, orientation }))
        }
    }
}

impl Limits {
    fn admit(&self, width: u32, height: u32) -> Result<(), DecodeError> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels || width.max(height) > self.max_side {
            return Err(DecodeError::TooManyPixels { width, height });
        }
        Ok(())
    }
}
