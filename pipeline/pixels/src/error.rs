//! Why bytes did not become pixels.

use crate::Format;

/// Why bytes did not become pixels. [`name`](Self::name) is the stable name that tables store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The first bytes are of no image format known here; often an HTML page at status 200.
    #[error("the bytes are no image of a known format")]
    NotAnImage,
    /// An image of a format that is recognised and deliberately not decoded.
    #[error("{0} is not supported")]
    UnsupportedFormat(&'static str),
    /// The file ends before its image does.
    #[error("the {0} file ends before its image does")]
    Truncated(Format),
    /// The file contradicts its format.
    #[error("the {format} file is corrupt: {reason}")]
    Corrupt {
        /// The format its first bytes claim.
        format: Format,
        /// What the decoder said.
        reason: String,
    },
    /// The header asks for more pixels, or a longer side, than allowed. Nothing was allocated.
    #[error("{width} x {height} pixels are over the limit")]
    TooManyPixels {
        /// Stored width.
        width: u32,
        /// Stored height.
        height: u32,
    },
    /// The file has more bytes than allowed.
    #[error("{bytes} bytes are over the limit of {limit}")]
    TooLarge {
        /// Length of the file.
        bytes: usize,
        /// [`Limits::max_bytes`](crate::Limits::max_bytes).
        limit: usize,
    },
    /// The decoder panicked. The panic was caught; only this image is lost.
    #[error("the {0} decoder panicked")]
    DecoderPanic(Format),
}

impl DecodeError {
    /// Every name that [`name`](Self::name) may return, in the order of the variants.
    pub const NAMES: [&str; 7] =
        ["not_an_image", "unsupported_format", "truncated", "corrupt", "too_many_pixels", "too_large", "decoder_panic"];

    /// The stable, lower-case name of the class of this error.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        Self::NAMES[match self {
            Self::NotAnImage => 0,
            Self::UnsupportedFormat(_) => 1,
            Self::Truncated(_) => 2,
            Self::Corrupt { .. } => 3,
            Self::TooManyPixels { .. } => 4,
            Self::TooLarge { .. } => 5,
            Self::DecoderPanic(_) => 6,
        }]
    }
}
