//! Faults 9, 10 and 12: what is no image, not whole, or not what it says.

use pixels::{DecodeError, Format, Limits, Measures, decode, decode_luma, measure, probe};
use proptest::prelude::*;

use crate::{all, fixture, format_of};

fn name_of(bytes: &[u8]) -> &'static str {
    decode(bytes, &Limits::default()).map_or_else(|error| error.name(), |_| "decoded")
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    for bytes in [
        &b""[..],
        b"\xff",
        b"GIF",
        b"<!doctype html><title>404</title>",
        b"{\"error\":1}",
        b"%PDF-1.7",
        b"RIFF\0\0\0\0WAVE",
    ] {
        assert_eq!(name_of(bytes), "not_an_image", "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn formats_that_are_not_decoded_are_named() {
    for (bytes, format) in [
        (&b"\0\0\0\x1cftypavif\0\0\0\0"[..], "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"BM\x36\0\0\0", "BMP"),
        (b"\0\0\x01\0\x01\0", "ICO"),
        (b"8BPS\0\x01", "PSD"),
        (b"\n <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?><!-- a --><svg/>", "SVG"),
    ] {
        assert_eq!(decode(bytes, &Limits::default()), Err(DecodeError::UnsupportedFormat(format)));
        assert_eq!(probe(bytes, &Limits::default()), Err(DecodeError::UnsupportedFormat(format)));
    }
}

/// At every length from nothing to one byte short, for every format and kind of file.
#[test]
fn no_cut_file_is_taken() {
    for (name, bytes) in all() {
        for length in 0..bytes.len() {
            let cut = &bytes[..length];
            let error = decode(cut, &Limits::default()).expect_err(&name);
            assert!(
                matches!(error, DecodeError::Truncated(format) if format == format_of(&name))
                    || length < 12 && error == DecodeError::NotAnImage,
                "{name} cut to {length} of {}: {error}",
                bytes.len()
            );
            assert_eq!(probe(cut, &Limits::default()), Err(error.clone()), "{name} cut to {length}");
            assert_eq!(decode_luma(cut, &Limits::default()), Err(error.clone()), "{name} cut to {length}");
            assert_eq!(measure(cut, &Limits::default()), Err(error), "{name} cut to {length}");
        }
    }
}

/// A file that was cut and closed again: its structure is whole, its pixels are not.
#[test]
fn a_jpeg_with_a_hole_before_its_end_is_not_taken() {
    for name in ["jpeg_420.jpg", "jpeg_422.jpg", "jpeg_444.jpg", "jpeg_gray.jpg", "jpeg_cmyk.jpg", "jpeg_restart.jpg"] {
        let bytes = fixture(name);
        let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap() + 14;
        let pixels = bytes.len() - 2 - scan;
        for tenth in 1..=9 {
            let holed = [&bytes[..scan + pixels * tenth / 10], &[0xFF, 0xD9]].concat();
            assert!(decode(&holed, &Limits::default()).is_err(), "{name}: {tenth}/10 in colour");
            assert!(decode_luma(&holed, &Limits::default()).is_err(), "{name}: {tenth}/10 in luma");
            assert!(measure(&holed, &Limits::default()).is_err(), "{name}: {tenth}/10 measured");
        }
    }
}

#[test]
fn bytes_after_the_end_do_no_harm() {
    for (name, mut bytes) in all() {
        let before = decode(&bytes, &Limits::default()).unwrap();
        bytes.extend_from_slice(b"\xff\xd8\xff\xe0 a preview, a depth map");
        assert!(decode(&bytes, &Limits::default()).unwrap() == before, "{name}");
    }
}

/// A PNG of this size with hardly any data, padded to `length`.
fn png_claiming(width: u32, height: u32, length: usize) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], body: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(body);
        [&(body.len() as u32).to_be_bytes()[..], kind, body, &crc.sum().to_be_bytes()].concat()
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 6, 0, 0, 0]].concat();
    let ends = 8 + 25 + 12 + 12;
    [
        &b"\x89PNG\r\n\x1a\n"[..],
        &chunk(b"IHDR", &header),
        &chunk(b"IDAT", &vec![0; length - ends]),
        &chunk(b"IEND", &[]),
    ]
    .concat()
}

/// The most memory this process has ever addressed, in KiB.
#[cfg(target_os = "linux")]
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn what_asks_for_too_many_pixels_gets_no_memory() {
    let mut jpeg = fixture("jpeg_420.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF]);
    let mut gif = fixture("gif.gif");
    gif[6..10].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF]);
    let small = png_claiming(13_000, 13_000, 739);
    assert_eq!(small.len(), 739);
    let before = peak_kib();
    for bytes in [png_claiming(65_535, 65_535, 739), small, jpeg, gif] {
        let limits = Limits::default();
        let decoded = [decode(&bytes, &limits).map(drop), decode_luma(&bytes, &limits).map(drop)];
        for error in decoded.into_iter().chain([measure(&bytes, &limits).map(drop)]) {
            assert!(matches!(error, Err(DecodeError::TooManyPixels { .. })), "{error:?}");
        }
    }
    // The smallest of these would have taken half a gigabyte.
    assert!(peak_kib() - before < 400 << 10, "{} KiB more", peak_kib() - before);
}

#[test]
fn limits_hold_at_their_edge() {
    let bytes = fixture("png_rgb.png");
    let exact = Limits { max_bytes: bytes.len(), max_pixels: 67 * 45, max_side: 67 };
    assert!(decode(&bytes, &exact).is_ok());
    let name = |limits: Limits| decode(&bytes, &limits).unwrap_err().name();
    assert_eq!(name(Limits { max_bytes: bytes.len() - 1, ..exact }), "too_large");
    assert_eq!(name(Limits { max_pixels: 67 * 45 - 1, ..exact }), "too_many_pixels");
    assert_eq!(name(Limits { max_side: 66, ..exact }), "too_many_pixels");
}

#[test]
fn names_are_stable_and_distinct() {
    let errors = [
        DecodeError::NotAnImage,
        DecodeError::UnsupportedFormat("AVIF"),
        DecodeError::Truncated(Format::Gif),
        DecodeError::Corrupt { format: Format::Png, reason: "bad".into() },
        DecodeError::TooManyPixels { width: 1, height: 1 },
        DecodeError::TooLarge { bytes: 2, limit: 1 },
        DecodeError::DecoderPanic(Format::Jpeg),
    ];
    assert_eq!(errors.map(|error| error.name()), DecodeError::NAMES);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Broken files give an error or an image, and both decoders agree on which.
    #[test]
    fn a_damaged_file_costs_no_more_than_itself(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let files = all();
        let (name, mut bytes) = files[which.index(files.len())].clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
        let (colours, luma) = (decode(&bytes, &limits), decode_luma(&bytes, &limits));
        prop_assert_eq!(colours.is_ok(), luma.is_ok(), "{}: {:?} but {:?}", name, colours.err(), luma.err());
    }

    #[test]
    fn noise_is_no_image(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = decode(&bytes, &Limits::default());
        let _ = decode_luma(&bytes, &Limits::default());
    }
}

/// The seeds of the fuzz target, under what it asks of every input.
#[test]
fn the_fuzz_corpus_is_met_without_a_panic() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/image_bytes");
    let mut replayed = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let (colours, luma) = (decode(&bytes, &Limits::default()), decode_luma(&bytes, &Limits::default()));
        assert_eq!(colours.is_ok(), luma.is_ok(), "{}: {:?} but {:?}", path.display(), colours.err(), luma.err());
        assert!(!matches!(colours, Err(DecodeError::DecoderPanic(_))), "{}", path.display());
        let measured = measure(&bytes, &Limits::default());
        assert_eq!(measured, luma.map(|luma| Measures::of(&luma)), "{}", path.display());
        replayed += 1;
    }
    assert!(replayed >= 5);
}
