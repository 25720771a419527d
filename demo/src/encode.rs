//! Scenes to files: the finishes that spoil a picture and the formats that carry it.

use crate::render::{View, render};
use crate::scene::Scene;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageResult, RgbImage, Rgba, RgbaImage, imageops};

/// Amplitude of the paper grain of full-size pictures, in grey levels: what a sharp picture has and a blurred or
/// upscaled one has lost.
const GRAIN: u8 = 9;
const JPEG_QUALITY: u8 = 88;

/// What is done to a picture before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Finish {
    /// Nothing.
    None,
    /// Out of focus.
    Blurred,
    /// Drawn at a third of the size and scaled up.
    Upscaled,
    /// Washed out, as a table's low aesthetic score promises.
    Faded,
}

/// How a picture is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Format {
    Jpeg,
    GreyJpeg,
    /// On its side, with EXIF orientation 6.
    RotatedJpeg,
    /// The first part of a JPEG.
    TruncatedJpeg,
    Png,
    PngAlpha,
    /// A PNG with one byte of its data flipped.
    BrokenPng,
}

/// A picture still to be made.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub scene: Scene,
    pub width: u32,
    pub height: u32,
    pub finish: Finish,
    pub format: Format,
}

impl Format {
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Jpeg | Self::GreyJpeg | Self::RotatedJpeg | Self::TruncatedJpeg => "jpg",
            Self::Png | Self::PngAlpha | Self::BrokenPng => "png",
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self.extension() {
            "png" => "image/png",
            _ => "image/jpeg",
        }
    }
}

impl Picture {
    /// The file's bytes.
    pub(crate) fn encode(&self) -> ImageResult<Vec<u8>> {
        let pixels = self.pixels();
        match self.format {
            Format::Jpeg => jpeg(&pixels),
            Format::GreyJpeg => {
                let mut bytes = Vec::new();
                JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
                    .encode_image(&DynamicImage::ImageRgb8(pixels).to_luma8())?;
                Ok(bytes)
            }
            Format::RotatedJpeg => Ok(with_orientation_6(&jpeg(&imageops::rotate270(&pixels))?)),
            Format::TruncatedJpeg => {
                let mut bytes = jpeg(&pixels)?;
                bytes.truncate(bytes.len() * 3 / 5);
                Ok(bytes)
            }
            Format::Png => png(pixels.as_raw(), self.width, self.height, ExtendedColorType::Rgb8),
            Format::PngAlpha => {
                let with_alpha = frayed(&pixels);
                png(with_alpha.as_raw(), self.width, self.height, ExtendedColorType::Rgba8)
            }
            Format::BrokenPng => {
                let mut bytes = png(pixels.as_raw(), self.width, self.height, ExtendedColorType::Rgb8)?;
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0xff;
                Ok(bytes)
            }
        }
    }

    fn pixels(&self) -> RgbImage {
        let draw = |width, height, grain| render(&self.scene, View::whole(width, height).with_grain(grain));
        // A PNG stores every grain, so it gets the finest; a JPEG smooths most of it away.
        let grain = if self.format.extension() == "png" { GRAIN / 3 } else { GRAIN };
        match self.finish {
            Finish::None => draw(self.width, self.height, grain),
            Finish::Blurred => imageops::fast_blur(&draw(self.width, self.height, grain), 7.0),
            Finish::Upscaled => {
                let small = draw(self.width / 3, self.height / 3, grain);
                imageops::resize(&small, self.width, self.height, imageops::FilterType::Triangle)
            }
            Finish::Faded => {
                let mut pixels = draw(self.width, self.height, 0);
                for value in pixels.iter_mut() {
                    *value = 96 + *value / 4;
                }
                pixels
            }
        }
    }
}

/// A PNG header that claims 65535 x 65535 pixels, with an empty body.
pub(crate) fn pixel_bomb() -> ImageResult<Vec<u8>> {
    let mut bytes = png(&[0, 0, 0], 1, 1, ExtendedColorType::Rgb8)?;
    // Signature, then IHDR: length, name, width, height, five bytes of format, CRC over name and content.
    bytes[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    Ok(bytes)
}

fn jpeg(pixels: &RgbImage) -> ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(pixels)?;
    Ok(bytes)
}

fn png(samples: &[u8], width: u32, height: u32, colour: ExtendedColorType) -> ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
        .write_image(samples, width, height, colour)?;
    Ok(bytes)
}

/// The picture with a border that fades to transparent.
fn frayed(pixels: &RgbImage) -> RgbaImage {
    let (width, height) = pixels.dimensions();
    RgbaImage::from_fn(width, height, |x, y| {
        let [r, g, b] = pixels.get_pixel(x, y).0;
        let border = x.min(y).min(width - 1 - x).min(height - 1 - y);
        Rgba([r, g, b, (border * 8).min(255) as u8])
    })
}

/// Puts an EXIF segment that says "turn clockwise to view" behind a JPEG's first marker.
fn with_orientation_6(jpeg: &[u8]) -> Vec<u8> {
    const EXIF: &[u8] = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\
        \x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00";
    let (start, rest) = jpeg.split_at(2);
    [start, EXIF, rest].concat()
}

/// The checksum of PNG chunks (ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Split, item_rng};
    use image::ImageDecoder;
    use image::metadata::Orientation;
    use std::io::Cursor;

    fn picture(format: Format) -> Picture {
        let scene = Scene::draw(Split::Shown, &mut item_rng(1, 0, 0));
        Picture { scene, width: 160, height: 128, finish: Finish::None, format }
    }

    #[test]
    fn formats_are_what_their_names_say() {
        let decoded = |format| image::load_from_memory(&picture(format).encode().unwrap());
        assert_eq!(decoded(Format::Jpeg).unwrap().color(), image::ColorType::Rgb8);
        assert_eq!(decoded(Format::GreyJpeg).unwrap().color(), image::ColorType::L8);
        assert_eq!(decoded(Format::Png).unwrap().color(), image::ColorType::Rgb8);
        assert_eq!(decoded(Format::PngAlpha).unwrap().color(), image::ColorType::Rgba8);
        assert!(decoded(Format::BrokenPng).is_err());
        let (whole, cut) = (picture(Format::Jpeg).encode().unwrap(), picture(Format::TruncatedJpeg).encode().unwrap());
        assert!(whole.starts_with(&cut) && !cut.ends_with(&[0xff, 0xd9]));
    }

    #[test]
    fn a_rotated_jpeg_turns_upright_by_its_orientation() {
        let bytes = picture(Format::RotatedJpeg).encode().unwrap();
        let mut decoder = image::codecs::jpeg::JpegDecoder::new(Cursor::new(&bytes)).unwrap();
        let orientation = decoder.orientation().unwrap();
        assert_eq!(orientation, Orientation::Rotate90);
        let mut turned = DynamicImage::from_decoder(decoder).unwrap();
        turned.apply_orientation(orientation);
        let upright = image::load_from_memory(&picture(Format::Jpeg).encode().unwrap()).unwrap();
        let (turned, upright) = (turned.to_rgb8(), upright.to_rgb8());
        assert_eq!(turned.dimensions(), upright.dimensions());
        let difference = turned.iter().zip(upright.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        assert!(difference as f64 / (turned.as_raw().len() as f64) < 4.0);
    }

    #[test]
    fn the_pixel_bomb_has_a_sound_header() {
        let bytes = pixel_bomb().unwrap();
        let size = image::ImageReader::with_format(Cursor::new(&bytes), image::ImageFormat::Png).into_dimensions();
        assert_eq!(size.unwrap(), (65_535, 65_535));
        assert!(bytes.len() < 200);
    }

    #[test]
    fn spoiled_pictures_have_lost_their_grain() {
        let roughness = |finish| {
            let scene = Scene { objects: vec![], ..picture(Format::Jpeg).scene };
            let pixels = Picture { scene, finish, width: 300, height: 300, format: Format::Jpeg }.pixels();
            pixels.as_raw().windows(6).map(|w| u64::from(w[0].abs_diff(w[3]))).sum::<u64>()
        };
        assert!(roughness(Finish::Blurred) * 5 < roughness(Finish::None));
        assert!(roughness(Finish::Upscaled) * 2 < roughness(Finish::None));
    }
}
