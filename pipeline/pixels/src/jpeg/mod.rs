//! JPEGs of the web, fast: one component or luma and chroma at 8 bits, sequential or progressive.
//!
//! What a decode costs is the reading of Huffman codes, and this reads them as today's machines
//! like it ([`bits`], [`huffman`]). It is also strict: data that is too short, too long or no code
//! is found, where decoders made for showing fill in grey. What is not wanted is not transformed:
//! to measure an image its luma is enough, and only codes are read of its chroma. What is not this
//! case (CMYK, sampling by three) is left to the general decoder.

mod bits;
mod dct;
mod huffman;
mod planes;
mod scans;
mod segments;
mod select;
mod sequential;

pub(crate) use dct::{ZIGZAG_TRANSPOSED, transposed, whole_rows};
pub(crate) use planes::{Chroma, Plane, Planes, Rows};

use crate::container::Jpeg;
use segments::Segments;

/// What became of a JPEG here.
pub(crate) enum Outcome<T> {
    /// It was read to its end.
    Decoded(T),
    /// It is of the case handled here, and its data is not: too short, too long, or no code.
    Damaged,
    /// It is not of the case handled here.
    NotThisCase,
}

/// Why a file was not read to its end.
enum Stop {
    Damaged,
    NotThisCase,
}

/// Which components are transformed to samples. All are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    None,
    Luma,
    All,
}

/// The luma of a JPEG of luma and chroma, or of luma alone.
pub(crate) fn luma(jpeg: &Jpeg<'_>) -> Outcome<Plane> {
    match read(jpeg, Kept::Luma, None) {
        Ok((mut planes, _)) => Outcome::Decoded(planes.remove(0)),
        Err(stop) => stop.into(),
    }
}

/// The same row by row. Of damaged data some may have come.
pub(crate) fn luma_rows<'a>(jpeg: &Jpeg<'_>, rows: &'a mut Rows<'a>) -> Outcome<()> {
    match read(jpeg, Kept::Luma, Some(rows)) {
        Ok(_) => Outcome::Decoded(()),
        Err(stop) => stop.into(),
    }
}

/// All planes of a JPEG of luma and chroma, or of luma alone.
pub(crate) fn planes(jpeg: &Jpeg<'_>) -> Outcome<Planes> {
    match read(jpeg, Kept::All, None) {
        Ok((planes, steps)) => Planes::of(planes, |at| steps[at]).map_or(Outcome::NotThisCase, Outcome::Decoded),
        Err(stop) => stop.into(),
    }
}

/// Whether the data of a JPEG is whole: what decoders that show what they can do not tell.
pub(crate) fn check(jpeg: &Jpeg<'_>) -> Outcome<()> {
    match read(jpeg, Kept::None, None) {
        Ok(_) => Outcome::Decoded(()),
        Err(stop) => stop.into(),
    }
}

type Steps = Vec<(usize, usize)>;

/// The planes that are kept, luma first unless its rows go to `rows`, and how many samples of luma lie beside one of each
/// component.
fn read<'a>(jpeg: &Jpeg<'_>, kept: Kept, rows: Option<&'a mut Rows<'a>>) -> Result<(Vec<Plane>, Steps), Stop> {
    let mut segments = Segments::new(jpeg);
    let scan = segments.next_scan()?.ok_or(Stop::NotThisCase)?;
    let frame = segments.frame()?;
    let steps = frame.steps();
    let several_scans = frame.is_progressive || scan.components.len() != frame.components.len();
    let planes = match (several_scans, kept) {
        (true, _) => scans::decode(segments, scan, kept, rows)?,
        (false, Kept::None) => sequential::decode::<false, false>(&segments, &scan, rows)?,
        (false, Kept::Luma) => sequential::decode::<true, false>(&segments, &scan, rows)?,
        (false, Kept::All) => sequential::decode::<true, true>(&segments, &scan, rows)?,
    };
    Ok((planes, steps))
}

impl Outcome<()> {
    /// The same for a caller who wanted planes: what was only checked is for another decoder.
    pub(crate) fn without_planes(self) -> Outcome<Planes> {
        match self {
            Self::Damaged => Outcome::Damaged,
            Self::Decoded(()) | Self::NotThisCase => Outcome::NotThisCase,
        }
    }
}

impl<T> From<Stop> for Outcome<T> {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Damaged => Self::Damaged,
            Stop::NotThisCase => Self::NotThisCase,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container;

    /// None of these is left to the general decoder, and what luma alone gives is what all planes give.
    #[test]
    fn the_usual_kinds_are_read_here() {
        let sequential = ["420", "422", "444", "gray", "restart", "scans"];
        let progressive = ["progressive", "444_progressive", "gray_progressive", "scans_progressive"];
        for name in sequential.into_iter().chain(progressive) {
            let bytes = fixture(name);
            let jpeg = container::jpeg(&bytes).unwrap();
            let (Outcome::Decoded(planes), Outcome::Decoded(luma)) = (planes(&jpeg), luma(&jpeg)) else {
                panic!("{name} is not read");
            };
            assert_eq!(planes.luma, luma, "{name}");
            let mut rows = Vec::new();
            assert!(matches!(luma_rows(&jpeg, &mut |row| rows.extend_from_slice(row)), Outcome::Decoded(())), "{name}");
            assert_eq!(rows, luma.samples, "{name}");
            assert!(matches!(check(&jpeg), Outcome::Decoded(())), "{name}");
        }
    }
    fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/../../tests/fixtures/pixels/jpeg_{name}.jpg", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    }

    /// What comes behind whole scans and is not known here is for the general decoder, unless they are damaged.
    #[test]
    fn damage_is_told_apart_from_what_is_not_read_here() {
        for name in ["scans", "progressive", "scans_progressive"] {
            let whole = fixture(name);
            let end = whole.len() - 2;
            let strange = [&whole[..end], &[0xFF, 0xC8, 0, 2], &whole[end..]].concat();
            assert!(matches!(luma(&container::jpeg(&strange).unwrap()), Outcome::NotThisCase), "{name}");
            // Before the end of its last scan, a byte less.
            let cut = [&strange[..end - 1], &strange[end..]].concat();
            assert!(matches!(luma(&container::jpeg(&cut).unwrap()), Outcome::Damaged), "{name}");
            let cut = [&whole[..end - 1], &whole[end..]].concat();
            assert!(matches!(luma(&container::jpeg(&cut).unwrap()), Outcome::Damaged), "{name}");
        }
    }
}
