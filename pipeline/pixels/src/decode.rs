//! Bytes to pixels.

use crate::{DecodeError, Image, Limits, Luma};

/// Decodes to upright 8-bit sRGB; see the [crate's table](crate) for what becomes of what.
///
/// # Errors
/// Every variant of [`DecodeError`]. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    unimplemented!("{} {limits:?}", bytes.len())
}

/// Decodes to upright luma alone, with the same checks as [`decode`]: a file that one of them
/// accepts, the other accepts. For a YCbCr JPEG this skips chroma and takes about half the time.
/// ICC profiles are not applied.
///
/// # Errors
/// As [`decode`].
pub fn decode_luma(bytes: &[u8], limits: &Limits) -> Result<Luma, DecodeError> {
    unimplemented!("{} {limits:?}", bytes.len())
}
