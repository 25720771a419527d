//! The structure of image files: which format, what segments, and whether the file is whole.
//!
//! Decoders are made to show as much of a broken file as they can. Here the opposite is wanted,
//! and the containers make it cheap: each says where it ends, so a file that was cut anywhere is
//! known by walking its structure, without decoding a pixel.

use crate::{DecodeError, Format};

/// The format that the first bytes claim.
pub(crate) fn sniff(bytes: &[u8]) -> Result<Format, DecodeError> {
    let unsupported = |name| Err(DecodeError::UnsupportedFormat(name));
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Format::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::Webp),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand {
            [b'a', b'v', b'i', b'f' | b's', ..] => unsupported("AVIF"),
            [b'h', b'e', b'i' | b'v', ..] | [b'm', b'i', b'f', b'1', ..] | [b'm', b's', b'f', b'1', ..] => {
                unsupported("HEIF")
            }
            _ => Err(DecodeError::NotAnImage),
        },
        [0xFF, 0x0A, ..] | [0, 0, 0, 0x0C, b'J', b'X', b'L', b' ', ..] => unsupported("JPEG XL"),
        [0, 0, 0, 0x0C, b'j', b'P', b' ', b' ', ..] => unsupported("JPEG 2000"),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => unsupported("TIFF"),
        [b'B', b'M', ..] => unsupported("BMP"),
        [0, 0, 1 | 2, 0, ..] => unsupported("ICO"),
        [b'8', b'B', b'P', b'S', ..] => unsupported("PSD"),
        _ if is_svg(bytes) => unsupported("SVG"),
        _ => Err(DecodeError::NotAnImage),
    }
}

/// Whether text begins with an `<svg` element, after an XML declaration, comments and the like.
fn is_svg(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(1024)];
    let text = head.trim_ascii_start();
    text.starts_with(b"<svg")
        || (text.starts_with(b"<?xml") || text.starts_with(b"<!--")) && memchr::memmem::find(head, b"<svg").is_some()
}

/// What a JPEG's segments say, in a file that is whole.
#[derive(Debug, Clone)]
pub(crate) struct Jpeg<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) components: u8,
    /// The TIFF block of the EXIF segment.
    pub(crate) exif: Option<&'a [u8]>,
    /// The parts of the ICC profile, as `(sequence number, of how many, bytes)`.
    icc: Vec<(u8, u8, &'a [u8])>,
}

impl Jpeg<'_> {
    /// The ICC profile, if all its parts are there.
    pub(crate) fn icc_profile(&self) -> Option<Vec<u8>> {
        let mut parts = self.icc.clone();
        parts.sort_by_key(|part| part.0);
        let numbered = parts
            .iter()
            .enumerate()
            .all(|(i, &(number, total, _))| usize::from(number) == i + 1 && usize::from(total) == parts.len());
        (numbered && !parts.is_empty()).then(|| parts.iter().flat_map(|part| part.2).copied().collect())
    }
}

/// Walks a JPEG from SOI to EOI, entropy-coded data included. What follows EOI is not looked at:
/// cameras append previews and depth maps there.
pub(crate) fn jpeg(bytes: &[u8]) -> Result<Jpeg<'_>, DecodeError> {
    const TRUNCATED: DecodeError = DecodeError::Truncated(Format::Jpeg);
    let corrupt = |reason: &str| DecodeError::corrupt(Format::Jpeg, reason);

    let mut frame = None;
    let mut exif = None;
    let mut icc = Vec::new();
    let mut progress: Option<Progress> = None;
    let mut scans = 0;
    let mut at = 2;
    loop {
        // A marker is 0xFF and a byte that is neither stuffing nor fill.
        at += memchr::memchr(0xFF, bytes.get(at..).ok_or(TRUNCATED)?).ok_or(TRUNCATED)?;
        let marker = *bytes.get(at + 1).ok_or(TRUNCATED)?;
        match marker {
            0xFF => {
                at += 1;
                continue;
            }
            0x00 | 0x01 | 0xD0..=0xD8 => {
                at += 2;
                continue;
            }
            0xD9 => break,
            _ => {}
        }
        let length = match bytes.get(at + 2..at + 4) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err(TRUNCATED),
        };
        if length < 2 {
            return Err(corrupt("a segment shorter than its own length field"));
        }
        let body = bytes.get(at + 4..at + 2 + length).ok_or(TRUNCATED)?;
        at += 2 + length;
        match marker {
            0xC0..=0xC2 if frame.is_none() => {
                frame = Some(jpeg_frame(body)?);
                progress = (marker == 0xC2).then(|| Progress::of_frame(body));
            }
            0xC0..=0xC2 => return Err(corrupt("two frames")),
            0xC3 | 0xC7 | 0xCB | 0xCF => return Err(DecodeError::UnsupportedFormat("lossless JPEG")),
            0xC5 | 0xC6 | 0xCD | 0xCE => return Err(DecodeError::UnsupportedFormat("hierarchical JPEG")),
            0xC9 | 0xCA => return Err(DecodeError::UnsupportedFormat("arithmetic-coded JPEG")),
            0xDA => {
                scans += 1;
                if let Some(progress) = &mut progress {
                    progress.scan(body);
                }
            }
            0xE1 => exif = exif.or(body.strip_prefix(b"Exif\0\0")),
            0xE2 => {
                if let Some([number, total, part @ ..]) = body.strip_prefix(b"ICC_PROFILE\0") {
                    icc.push((*number, *total, part));
                }
            }
            _ => {}
        }
    }
    let (width, height, components) = frame.ok_or_else(|| corrupt("no frame"))?;
    if scans == 0 {
        return Err(corrupt("no scan"));
    }
    // A progressive file that was cut between scans and closed shows a blurred image.
    if progress.is_some_and(|progress| !progress.is_complete()) {
        return Err(TRUNCATED);
    }
    Ok(Jpeg { bytes, width, height, components, exif, icc })
}

/// What the scans of a progressive JPEG have told so far.
struct Progress {
    /// For each component its identifier and, for each coefficient, how many of its lowest bits
    /// are still to come.
    components: Vec<(u8, [u8; 64])>,
}

impl Progress {
    const UNSEEN: u8 = u8::MAX;

    fn of_frame(body: &[u8]) -> Self {
        let components = body.get(6..).unwrap_or_default().chunks_exact(3);
        Self { components: components.map(|component| (component[0], [Self::UNSEEN; 64])).collect() }
    }

    /// Notes a scan: of which components, from and to which coefficient, down to which bit.
    fn scan(&mut self, body: &[u8]) {
        let count = usize::from(body.first().copied().unwrap_or(0));
        let (Some(selected), Some(&[from, to, bits])) =
            (body.get(1..1 + 2 * count), body.get(1 + 2 * count..4 + 2 * count))
        else {
            return;
        };
        for selected in selected.chunks_exact(2) {
            for (_, left) in self.components.iter_mut().filter(|(id, _)| *id == selected[0]) {
                if let Some(left) = left.get_mut(from.into()..=to.into()) {
                    left.fill(bits & 15);
                }
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.components.iter().all(|(_, left)| left.iter().all(|&bits| bits == 0))
    }
}

/// Width, height and number of components of a start-of-frame segment.
fn jpeg_frame(body: &[u8]) -> Result<(u32, u32, u8), DecodeError> {
    let corrupt = |reason: &str| DecodeError::corrupt(Format::Jpeg, reason);
    let &[precision, h1, h0, w1, w0, components, ..] = body else {
        return Err(corrupt("a short frame header"));
    };
    if precision != 8 {
        return Err(DecodeError::UnsupportedFormat("JPEG of other than 8 bits"));
    }
    let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
    if width == 0 || height == 0 {
        return Err(corrupt("a side of no pixels"));
    }
    Ok((width.into(), height.into(), components))
}

/// Whether a PNG, WebP or GIF reaches the end that its structure names.
pub(crate) fn whole(format: Format, bytes: &[u8]) -> Result<(), DecodeError> {
    let reached = match format {
        Format::Jpeg => return jpeg(bytes).map(drop),
        Format::Png => png_end(bytes),
        Format::Webp => webp_end(bytes),
        Format::Gif => gif_end(bytes),
    };
    reached.map(drop).ok_or(DecodeError::Truncated(format))
}

/// The position after the IEND chunk.
fn png_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 8;
    loop {
        let (length, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
        let kind = rest.first_chunk::<4>()?;
        at = at.checked_add(12)?.checked_add(u32::from_be_bytes(*length) as usize)?;
        if at > bytes.len() {
            return None;
        }
        if kind == b"IEND" {
            return Some(at);
        }
    }
}

/// The position after the RIFF chunk.
fn webp_end(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(4..)?.first_chunk::<4>()?;
    let end = (u32::from_le_bytes(*length) as usize).checked_add(8)?;
    (end <= bytes.len()).then_some(end)
}

/// The position after the trailer.
fn gif_end(bytes: &[u8]) -> Option<usize> {
    let color_table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let sub_blocks = |mut at: usize| loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    };
    let mut at = 13 + color_table(*bytes.get(10)?);
    loop {
        at = match bytes.get(at)? {
            0x3B => return Some(at + 1),
            0x21 => sub_blocks(at + 2)?,
            0x2C => sub_blocks(at + 11 + color_table(*bytes.get(at + 9)?))?,
            // Padding between blocks, which some encoders write.
            0x00 => at + 1,
            _ => return None,
        };
    }
}
