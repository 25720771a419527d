//! Bytes from the network to upright 8-bit sRGB pixels, under limits, and what is measured on them.
//!
//! The input is hostile. Its kind is told by its first bytes, its size is read from its header
//! and held against [`Limits`] before anything of that size is allocated, a truncated file is an
//! error however much of it could be shown, and a panic inside a decoder costs that one image:
//! [`open`], [`decode`], [`decode_luma`] and [`measure`] never unwind into their caller. Who wants
//! to know what a file says of itself before deciding about its pixels [`open`]s it.
//!
//! | stored as | becomes |
//! |---|---|
//! | JPEG (baseline, extended, progressive): grey, YCbCr, RGB, CMYK, YCCK | RGB |
//! | PNG, any depth and palette; WebP; GIF (first frame) | RGB; 16-bit samples are rounded to 8 |
//! | alpha | composed over white, in the stored (gamma-encoded) values as Pillow and browsers do |
//! | EXIF orientation 1 to 8 | applied: the result is upright |
//! | an ICC profile | pixels are converted to sRGB (perceptual intent); a broken profile is ignored |
//! | CMYK without a profile | `R = (255 - C)(255 - K) / 255` and so on, as Pillow does |
//! | AVIF, HEIC, JPEG XL, TIFF, BMP, SVG, ICO | [`DecodeError::UnsupportedFormat`] |
//! | anything else, such as an HTML page | [`DecodeError::NotAnImage`] |
//!
//! Most JPEGs are decoded here (module `jpeg`), the others and what they cannot do by `zune-jpeg`; PNG, WebP and GIF by
//! `image`. AVIF waits for a decoder that is sound, builds with Rust and a C++ compiler alone and may be linked into a
//! program under MIT or Apache-2.0. In November 2026 dav1d and libavif want meson, cmake and nasm, rav1d's port is
//! unsafe code taken over from C, and its safe fork is under the AGPL.
//!
//! ```
//! let limits = pixels::Limits::default();
//! let page = b"<!doctype html><title>not found</title>";
//! assert_eq!(pixels::decode(page, &limits).unwrap_err().name(), "not_an_image");
//! ```
#![forbid(unsafe_code)]

mod area;
mod color;
mod container;
mod decode;
mod encode;
mod error;
mod format;
mod geometry;
mod jpeg;
#[cfg(test)]
mod levels;
mod measures;
mod perceptual;
mod picture;
mod raster;
mod resample;
mod sharpness;

pub use decode::{decode, decode_luma, measure};
pub use encode::{encode_jpeg, encode_png};
pub use error::DecodeError;
pub use format::{Format, Header, Limits, Opened, Orientation, open, probe};
pub use geometry::{Anchor, Filter, Framed, fit, resize};
pub use measures::Measures;
pub use perceptual::{PerceptualHash, perceptual_hash};
pub use picture::{Picture, THUMBNAIL_SIDE, decode_picture};
pub use raster::{Image, Luma};
pub use sharpness::{SHARPNESS_VERSION, Sharpness, sharpness};
