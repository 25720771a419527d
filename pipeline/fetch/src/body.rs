//! Content codings.
//!
//! Requests ask for none: images do not shrink, and what is not asked for cannot be a bomb. Some
//! servers send one nevertheless, and those are undone here, under the same cap as the transfer.

use std::io::{self, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use hyper::header::{CONTENT_ENCODING, HeaderMap};

use crate::FailureClass;

/// Codings that may be stacked.
const MAX_CODINGS: usize = 2;
/// Input buffer of a decoder.
const BUFFER: usize = 16 << 10;

/// Undoes the content codings that the headers name. Names that are no coding (`none`, `utf-8`,
/// `binary` are seen) are passed over, as browsers do.
///
/// # Errors
/// [`FailureClass::TooLarge`] past `max_body` bytes, [`FailureClass::Truncated`] if the coded
/// stream ends early, [`FailureClass::Protocol`] if it is broken or stacked too high.
pub(crate) fn decoded(body: Vec<u8>, headers: &HeaderMap, max_body: u64) -> Result<Vec<u8>, (FailureClass, String)> {
    let names: Vec<String> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .flat_map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .to_ascii_lowercase()
                .split(',')
                .map(|n| n.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let codings: Vec<Coding> = names.iter().filter_map(|name| Coding::named(name)).collect();
    if codings.len() > MAX_CODINGS {
        return Err((FailureClass::Protocol, format!("{} content codings", codings.len())));
    }
    // The coding applied last is named last, and is undone first.
    codings.iter().rev().try_fold(body, |body, coding| coding.undo(&body, max_body))
}

#[derive(Debug, Clone, Copy)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    fn named(name: &str) -> Option<Self> {
        match name {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            "br" => Some(Self::Brotli),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    fn undo(self, body: &[u8], max_body: u64) -> Result<Vec<u8>, (FailureClass, String)> {
        let mut decoder: Box<dyn Read + '_> = match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(body)),
            // RFC 9110 means zlib; some servers send bare deflate. Zlib's first byte is 0x?8.
            Self::Deflate if body.first().is_some_and(|byte| byte & 0x0f == 8) => Box::new(ZlibDecoder::new(body)),
            Self::Deflate => Box::new(DeflateDecoder::new(body)),
            Self::Brotli => Box::new(brotli::Decompressor::new(body, BUFFER)),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(body).map_err(|error| self.failure(&error))?),
        };
        let mut plain = Vec::with_capacity(body.len());
        decoder.by_ref().take(max_body + 1).read_to_end(&mut plain).map_err(|error| self.failure(&error))?;
        if plain.len() as u64 > max_body {
            return Err((FailureClass::TooLarge, format!("over {max_body} bytes once {self:?} is undone")));
        }
        Ok(plain)
    }

    fn failure(self, error: &io::Error) -> (FailureClass, String) {
        let class = match error.kind() {
            io::ErrorKind::UnexpectedEof => FailureClass::Truncated,
            _ => FailureClass::Protocol,
        };
        (class, format!("{self:?}: {error}"))
    }
}
