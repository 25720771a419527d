//! Resizing and cropping.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::Image;

/// How samples are weighed when an image is resized. Both widen with the scale when they shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Lanczos with three lobes: the sharpest.
    Lanczos3,
    /// A box: the mean of the pixels that fall on the target pixel. The fastest.
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
        Self { x: x.clamp(0.0, 1.0), y: y.clamp(0.0, 1.0) }
    }
}

/// Resizes to exactly `width` x `height`.
///
/// # Panics
/// If a side is 0.
#[must_use]
pub fn resize(image: &Image, width: u32, height: u32, filter: Filter) -> Image {
    if (width, height) == (image.width(), image.height()) {
        return image.clone();
    }
    let kernel = match filter {
        Filter::Lanczos3 => FilterType::Lanczos3,
        Filter::Area => FilterType::Box,
    };
    let mut rgb = vec![0; width as usize * height as usize * 3];
    // Typed: the untyped face would compile every pixel type into this crate, two minutes of every build.
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.rgb())
        .expect("an Image holds three bytes a pixel");
    let mut target =
        TypedImage::<U8x3>::from_buffer(width, height, &mut rgb).expect("allocated for three bytes a pixel");
    Resizer::new()
        .resize_typed(&source, &mut target, &ResizeOptions::new().resize_alg(ResizeAlg::Convolution(kernel)))
        .expect("nothing is cropped");
    Image::new(width, height, rgb)
}

/// Resizes so that the shorter side is `side` (Lanczos3), then cuts a square of that side.
///
/// # Panics
/// If `side` is 0.
#[must_use]
pub fn fit_square(image: &Image, side: u32, anchor: Anchor) -> Framed {
    let (width, height) = size_with_short_side(image.width(), image.height(), side);
    let resized = resize(image, width, height, Filter::Lanczos3);
    let play = |free: u32, fraction: f64| (f64::from(free) * fraction).round() as u32;
    let (left, top) = (play(width - side, anchor.x), play(height - side, anchor.y));
    Framed {
        image: crop(&resized, left, top, side),
        original_size: (image.height(), image.width()),
        crop_top_left: (top, left),
        target_size: (side, side),
    }
}

/// The size of the same shape with its shorter side at `side`.
pub(crate) fn size_with_short_side(width: u32, height: u32, side: u32) -> (u32, u32) {
    let scale = f64::from(side) / f64::from(width.min(height));
    let scaled = |length: u32| ((f64::from(length) * scale).round() as u32).max(side);
    (scaled(width), scaled(height))
}

fn crop(image: &Image, left: u32, top: u32, side: u32) -> Image {
    if (image.width(), image.height()) == (side, side) {
        return image.clone();
    }
    let row_bytes = image.width() as usize * 3;
    let from = left as usize * 3;
    let rgb = image
        .rgb()
        .chunks_exact(row_bytes)
        .skip(top as usize)
        .take(side as usize)
        .flat_map(|row| &row[from..from + side as usize * 3])
        .copied()
        .collect();
    Image::new(side, side, rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pixel says where it is.
    fn map(width: u32, height: u32) -> Image {
        let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7])).collect();
        Image::new(width, height, rgb)
    }

    #[test]
    fn a_square_is_cut_where_it_says() {
        let image = map(30, 20);
        for (anchor, left) in [(Anchor::new(0.0, 0.0), 0), (Anchor::CENTER, 5), (Anchor::new(1.0, 9.0), 10)] {
            let framed = fit_square(&image, 20, anchor);
            assert_eq!(framed.crop_top_left, (0, left));
            assert_eq!(framed.original_size, (20, 30));
            assert_eq!(framed.target_size, (20, 20));
            assert_eq!(&framed.image.rgb()[..3], [left as u8, 0, 7]);
            assert_eq!(framed.image.rgb().len(), 20 * 20 * 3);
        }
    }

    #[test]
    fn the_short_side_is_met_exactly_for_every_shape() {
        for (width, height) in [(1, 1), (1, 999), (1023, 1024), (4000, 1333), (7, 4001)] {
            let (w, h) = size_with_short_side(width, height, 512);
            assert_eq!(w.min(h), 512, "{width} x {height}");
            assert_eq!(width < height, w < h || w == h && width != height, "{width} x {height} became {w} x {h}");
        }
    }

    #[test]
    fn flat_stays_flat_under_both_filters() {
        let flat = Image::new(37, 23, vec![200; 37 * 23 * 3]);
        for filter in [Filter::Lanczos3, Filter::Area] {
            for (width, height) in [(11, 9), (64, 64), (37, 23)] {
                assert!(resize(&flat, width, height, filter).rgb().iter().all(|&s| s == 200));
            }
        }
    }
}
