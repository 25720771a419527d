//! Fault 11: what a file holds becomes what Pillow makes of it.

use image::ImageReader;
use pixels::{Format, Image, Limits, decode, decode_luma, encode_jpeg, encode_png, probe};

use crate::{all, fixture, fixtures, format_of, psnr, scene};

/// Pillow's result for a fixture, read by a decoder that has nothing to convert.
fn expected(name: &str) -> Image {
    let (stem, _) = name.rsplit_once('.').unwrap();
    let path = fixtures().join(format!("{stem}.expected.png"));
    let rgb = ImageReader::open(path).unwrap().decode().unwrap().into_rgb8();
    Image::new(rgb.width(), rgb.height(), rgb.into_raw())
}

#[test]
fn every_fixture_is_within_40_db_of_pillow() {
    for (name, bytes) in all() {
        let ours = decode(&bytes, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let theirs = expected(&name);
        assert_eq!((ours.width(), ours.height()), (theirs.width(), theirs.height()), "{name}");
        let psnr = psnr(ours.rgb(), theirs.rgb());
        assert!(psnr >= 40.0, "{name}: {psnr:.1} dB");
    }
}

#[test]
fn lossless_files_without_a_profile_are_exact() {
    for name in [
        "png_rgb.png",
        "png_gray.png",
        "png_1bit.png",
        "png_palette.png",
        "png_palette_4bit.png",
        "png_rgb_16.png",
        "webp_lossless.webp",
        "webp_animated.webp",
        "gif.gif",
        "gif_animated.gif",
        "orientation_png.png",
        "orientation_webp.webp",
    ] {
        let ours = decode(&fixture(name), &Limits::default()).unwrap();
        assert!(ours == expected(name), "{name}");
    }
}

#[test]
fn luma_is_the_luma_of_the_colours() {
    for (name, bytes) in all().into_iter().filter(|(name, _)| !name.starts_with("icc")) {
        let luma = decode_luma(&bytes, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let of_colours = decode(&bytes, &Limits::default()).unwrap().luma();
        assert_eq!((luma.width(), luma.height()), (of_colours.width(), of_colours.height()), "{name}");
        let psnr = psnr(luma.samples(), of_colours.samples());
        assert!(psnr >= 40.0, "{name}: {psnr:.1} dB");
    }
}

#[test]
fn the_header_says_what_decoding_finds() {
    for (name, bytes) in all() {
        let header = probe(&bytes, &Limits::default()).unwrap();
        let image = decode(&bytes, &Limits::default()).unwrap();
        assert_eq!(header.format, format_of(&name), "{name}");
        assert_eq!((header.width, header.height), (image.width(), image.height()), "{name}");
    }
}

#[test]
fn orientation_is_read_and_undone() {
    let upright = decode(&fixture("orientation_1.jpg"), &Limits::default()).unwrap();
    for number in 1..=8 {
        let bytes = fixture(&format!("orientation_{number}.jpg"));
        let header = probe(&bytes, &Limits::default()).unwrap();
        assert_eq!(header.orientation.exif(), number);
        assert_eq!(header.orientation.swaps_sides(), number >= 5);
        let image = decode(&bytes, &Limits::default()).unwrap();
        let sides = (upright.width(), upright.height());
        let turned = if number >= 5 { (sides.1, sides.0) } else { sides };
        assert_eq!((image.width(), image.height()), turned, "{number}");
    }
}

/// Pillow writes no YCCK, so the same inks are written here both ways.
#[test]
fn ycck_is_cmyk() {
    let image = scene(64, 48, 5);
    let inks: Vec<u8> = image.rgb().chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 200]).collect();
    let write = |kind| {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 98);
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
        encoder.encode(&inks, 64, 48, kind).unwrap();
        decode(&bytes, &Limits::default()).unwrap()
    };
    let (cmyk, ycck) = (write(jpeg_encoder::ColorType::Cmyk), write(jpeg_encoder::ColorType::CmykAsYcck));
    let psnr = psnr(cmyk.rgb(), ycck.rgb());
    assert!(psnr >= 40.0, "{psnr:.1} dB");
}

/// All sizes around the 8 and 16 pixels of blocks and subsampled blocks.
#[test]
fn jpegs_of_every_small_size_are_decoded_to_it() {
    for width in 1..=34 {
        for height in [1, 7, 8, 9, 15, 16, 17, 33] {
            let image = scene(width, height, 11);
            let bytes = encode_jpeg(&image, 95);
            let colours = decode(&bytes, &Limits::default()).unwrap_or_else(|e| panic!("{width} x {height}: {e}"));
            let luma = decode_luma(&bytes, &Limits::default()).unwrap_or_else(|e| panic!("{width} x {height}: {e}"));
            assert_eq!((colours.width(), colours.height()), (width, height));
            let psnr = psnr(luma.samples(), image.luma().samples());
            assert!(psnr > 30.0, "{width} x {height}: {psnr:.1} dB");
        }
    }
}

#[test]
fn what_is_encoded_is_decoded() {
    let image = scene(203, 101, 3);
    let jpeg = encode_jpeg(&image, 95);
    let decoded = decode(&jpeg, &Limits::default()).unwrap();
    assert!(psnr(decoded.rgb(), image.rgb()) > 32.0);
    assert!(encode_jpeg(&image, 40).len() < jpeg.len() / 2);
    let png = encode_png(&image);
    assert_eq!(probe(&png, &Limits::default()).unwrap().format, Format::Png);
    assert!(decode(&png, &Limits::default()).unwrap() == image);
}
