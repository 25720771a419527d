//! What a file says of itself: format by magic bytes, size, orientation.

use crate::DecodeError;

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
    /// 64 MiB, 100 megapixels, 32,768 pixels a side: a decode then stays under about 1 GiB.
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_pixels: 100_000_000,
            max_side: 32_768,
        }
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

/// The EXIF orientation, 1 to 8: how the stored pixels must be turned to stand upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Orientation(u8);

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

/// Reads format, size and orientation without decoding the pixels, and holds them against the
/// limits.
///
/// # Errors
/// As [`decode`](crate::decode), as far as a header tells.
pub fn probe(bytes: &[u8], limits: &Limits) -> Result<Header, DecodeError> {
    unimplemented!("{} {limits:?}", bytes.len())
}
