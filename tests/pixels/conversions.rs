//! Fault 11: what a file holds becomes what Pillow makes of it.

use image::ImageReader;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use pixels::{
    Anchor, Format, Image, Limits, Measures, decode, decode_luma, decode_picture, encode_jpeg, encode_png, fit,
    measure, probe, sharpness,
};

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

/// Row by row where the format allows it, from the whole plane where not.
#[test]
fn what_is_measured_in_one_go_is_what_is_measured_on_the_luma() {
    for (name, bytes) in all() {
        let luma = decode_luma(&bytes, &Limits::default()).unwrap();
        assert_eq!(measure(&bytes, &Limits::default()), Ok(Measures::of(&luma)), "{name}");
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

/// Every kind of JPEG that the encoder at hand writes is as near to what was encoded as the `image` crate gets.
#[test]
fn every_sampling_scan_and_restart_is_decoded_as_well_as_others_do() {
    use SamplingFactor::{F_1_1, F_1_2, F_2_1, F_2_2, F_4_1, F_4_2};
    let image = scene(203, 139, 17);
    for (sampling, progressive, restart, optimized) in [F_1_1, F_2_1, F_1_2, F_2_2, F_4_1, F_4_2]
        .into_iter()
        .flat_map(|sampling| [(false, 0), (false, 5), (true, 0), (true, 3)].map(|(p, r)| (sampling, p, r, r == 5)))
    {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 93);
        encoder.set_sampling_factor(sampling);
        encoder.set_progressive(progressive);
        encoder.set_optimized_huffman_tables(optimized);
        if restart > 0 {
            encoder.set_restart_interval(restart);
        }
        encoder.encode(image.rgb(), 203, 139, ColorType::Rgb).unwrap();
        let kind = format!("{sampling:?}, progressive {progressive}, restart {restart}");
        let ours = decode(&bytes, &Limits::default()).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let theirs = image::load_from_memory(&bytes).unwrap().into_rgb8();
        let (ours_is, theirs_is) = (psnr(ours.rgb(), image.rgb()), psnr(theirs.as_raw(), image.rgb()));
        assert!(ours_is > theirs_is - 0.3 && ours_is > 33.0, "{kind}: {ours_is:.1} and {theirs_is:.1} dB");
        let luma = decode_luma(&bytes, &Limits::default()).unwrap();
        assert!(psnr(luma.samples(), ours.luma().samples()) > 45.0, "{kind}");
    }
}

/// What is measured is the same whether colours are kept or not, and the square that comes straight from the planes
/// is the one that comes over RGB.
#[test]
fn one_decode_gives_what_two_give() {
    for (name, bytes) in all() {
        let picture = decode_picture(&bytes, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let luma = decode_luma(&bytes, &Limits::default()).unwrap();
        assert_eq!((picture.luma().width(), picture.luma().height()), (luma.width(), luma.height()), "{name}");
        assert!(psnr(picture.luma().samples(), luma.samples()) > 50.0, "{name}");
        for side in [45, 96] {
            let again = decode_picture(&bytes, &Limits::default()).unwrap();
            let straight = decode(&again.square_jpeg(side, 95), &Limits::default()).unwrap();
            assert_eq!((straight.width(), straight.height()), (side, side), "{name}");
            let whole = decode(&bytes, &Limits::default()).unwrap();
            let over_rgb = encode_jpeg(&fit(&whole, side, side, Anchor::CENTER).image, 95);
            let over_rgb = decode(&over_rgb, &Limits::default()).unwrap();
            let psnr = psnr(straight.rgb(), over_rgb.rgb());
            assert!(psnr > 30.0, "{name} at {side}: {psnr:.1} dB");
        }
    }
    let photograph = encode_jpeg(&scene(700, 500, 23), 90);
    let picture = decode_picture(&photograph, &Limits::default()).unwrap();
    assert_eq!(sharpness(picture.luma()), sharpness(&decode_luma(&photograph, &Limits::default()).unwrap()));
    let straight = decode(&picture.square_jpeg(256, 95), &Limits::default()).unwrap();
    let whole = decode(&photograph, &Limits::default()).unwrap();
    let psnr = psnr(straight.rgb(), fit(&whole, 256, 256, Anchor::CENTER).image.rgb());
    assert!(psnr > 36.0, "{psnr:.1} dB");
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

/// At each quality as many bytes as libjpeg writes, and as near to the picture.
#[test]
fn the_encoder_is_as_good_as_libjpeg() {
    let folder = fixtures().join("../encoder");
    let rgb = ImageReader::open(folder.join("picture.png")).unwrap().decode().unwrap().into_rgb8();
    let image = Image::new(rgb.width(), rgb.height(), rgb.into_raw());
    let lines = std::fs::read_to_string(folder.join("libjpeg.txt")).unwrap();
    assert_eq!(lines.lines().count(), 7);
    for line in lines.lines() {
        let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let bytes = encode_jpeg(&image, numbers[0] as u8);
        let size = bytes.len() as f64 / numbers[1];
        let quality = psnr(decode(&bytes, &Limits::default()).unwrap().rgb(), image.rgb());
        assert!((0.95..1.02).contains(&size), "quality {}: {size:.3} of its size", numbers[0]);
        assert!(quality > numbers[2] - 0.2, "quality {}: {quality:.2} dB for {:.2}", numbers[0], numbers[2]);
    }
}
