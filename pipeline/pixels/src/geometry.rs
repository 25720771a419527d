//! Resizing and cropping.

use crate::{Image, Luma};

/// How samples are weighed when an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Lanczos with three lobes, antialiased when shrinking: what pictures are resized with.
    Lanczos3,
    /// The mean over the area that a target pixel covers: what is measured with. Shrinks only.
    Area,
}

/// Where a crop sits on the side that is longer than it: 0 is left or top, 1 right or bottom.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Anchor {
    x: f64,
    y: f64,
}

/// A square training image and what SDXL is told about its making (micro-conditioning).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framed {
    /// The square image.
    pub image: Image,
    /// Height and width before resizing.
    pub original_size: (u32, u32),
    /// Top and left of the crop, in pixels of the resized image.
    pub crop_top_left: (u32, u32),
    /// Height and width of the square.
    pub target_size: (u32, u32),
}

impl Anchor {
    /// The middle.
    pub const CENTER: Self = Self { x: 0.5, y: 0.5 };

    /// An anchor at fractions of the free play, each clamped to 0..=1.
    #[must_use]
    pub const fn new(x: f64, y: f64) -> Self {
        Self {
            x: x.clamp(0.0, 1.0),
            y: y.clamp(0.0, 1.0),
        }
    }
}

/// Resizes to exactly `width` x `height`.
///
/// # Panics
/// If a side is 0.
#[must_use]
pub fn resize(image: &Image, width: u32, height: u32, filter: Filter) -> Image {
    unimplemented!("{image:?} {width} {height} {filter:?}")
}

/// Resizes a luma plane to exactly `width` x `height`.
///
/// # Panics
/// If a side is 0.
#[must_use]
pub fn resize_luma(luma: &Luma, width: u32, height: u32, filter: Filter) -> Luma {
    unimplemented!("{luma:?} {width} {height} {filter:?}")
}

/// Resizes so that the shorter side is `side` (Lanczos3), then cuts a square of that side.
///
/// # Panics
/// If `side` is 0.
#[must_use]
pub fn fit_square(image: &Image, side: u32, anchor: Anchor) -> Framed {
    unimplemented!("{image:?} {side} {anchor:?}")
}
