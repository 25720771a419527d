//! Any bytes become pixels or an error, both decoders agree on which, and nothing panics on the
//! way: a panic that `pixels` caught is a finding, too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pixels::{DecodeError, Limits, Measures, decode, decode_luma, measure, probe};

/// Small, so that a run spends its time on structure and not on filling pixels.
const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 16, max_side: 1 << 12 };

fuzz_target!(|bytes: &[u8]| {
    let (colours, luma) = (decode(bytes, &LIMITS), decode_luma(bytes, &LIMITS));
    let measured = measure(bytes, &LIMITS);
    for error in [colours.as_ref().err(), luma.as_ref().err()].into_iter().flatten() {
        assert!(!matches!(error, DecodeError::DecoderPanic(_)), "{error}");
    }
    assert_eq!(measured.is_ok(), luma.is_ok());
    assert_eq!(colours.is_ok(), luma.is_ok(), "{:?} but {:?}", colours.err(), luma.err());
    if let (Ok(colours), Ok(luma)) = (colours, luma) {
        let header = probe(bytes, &LIMITS).expect("what decodes has a header");
        assert_eq!((header.width, header.height), (colours.width(), colours.height()));
        assert_eq!((header.width, header.height), (luma.width(), luma.height()));
        let measures = Measures::of(&luma);
        let scores = measures.sharpness;
        assert!([scores.whole, scores.tile, scores.detail].iter().all(|score| score.is_finite() && *score >= 0.0));
        assert_eq!(measured, Ok(measures));
    }
});
