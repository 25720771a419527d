//! Resizing and cropping.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::Image;
use crate::jpeg::Plane;
use crate::resample::{Axis, resample};

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

/// A training image and what SDXL is told about its making (micro-conditioning).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framed {
    /// The image.
    pub image: Image,
    /// Height and width before resizing.
    pub original_size: (u32, u32),
    /// Top and left of the crop, in pixels of the resized image.
    pub crop_top_left: (u32, u32),
    /// Height and width of the image.
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

/// Resizes (Lanczos3) to the smallest size of the same shape that covers `width` x `height`, then cuts that rectangle
/// at `anchor`.
///
/// # Panics
/// If a side is 0.
#[must_use]
pub fn fit(image: &Image, width: u32, height: u32, anchor: Anchor) -> Framed {
    let (full_width, full_height) = covering_size(image.width(), image.height(), width, height);
    let resized = resize(image, full_width, full_height, Filter::Lanczos3);
    let (left, top) = (offset(full_width - width, anchor.x), offset(full_height - height, anchor.y));
    Framed {
        image: crop(resized, left, top, width, height),
        original_size: (image.height(), image.width()),
        crop_top_left: (top, left),
        target_size: (height, width),
    }
}

/// The smallest size of the shape `width` x `height` that covers `to_width` x `to_height`.
pub(crate) fn covering_size(width: u32, height: u32, to_width: u32, to_height: u32) -> (u32, u32) {
    let scale = (f64::from(to_width) / f64::from(width)).max(f64::from(to_height) / f64::from(height));
    let scaled = |length: u32, least: u32| ((f64::from(length) * scale).round() as u32).max(least);
    (scaled(width, to_width), scaled(height, to_height))
}

/// Where a cut begins that has `free` pixels of play.
pub(crate) fn offset(free: u32, fraction: f64) -> u32 {
    (f64::from(free) * fraction).round() as u32
}

/// Cuts from a plane what shows the square in the middle of a picture that is resized to cover `side` x `side`, and
/// resizes it (Lanczos3) to `to_side`. One sample of the plane lies beside `step` pixels of the picture, along and down.
pub(crate) fn square_of_plane(
    plane: &Plane,
    step: (usize, usize),
    picture: (u32, u32),
    side: u32,
    to_side: u32,
) -> Plane {
    let (width, height) = picture;
    let (full_width, full_height) = covering_size(width, height, side, side);
    // Along each side: where the cut begins and how long it is, in samples of the plane.
    let part = |length: u32, full: u32, step: usize, samples: usize| {
        let left = offset(full - side, Anchor::CENTER.x);
        let scale = f64::from(length) / f64::from(full) / step as f64;
        let (from, cut) = (f64::from(left) * scale, f64::from(side) * scale);
        (from, cut.min(samples as f64 - from))
    };
    let (left, cut_width) = part(width, full_width, step.0, plane.width);
    let (top, cut_height) = part(height, full_height, step.1, plane.height);
    let columns = Axis::new(plane.width, left, cut_width, to_side as usize);
    let rows = Axis::new(plane.height, top, cut_height, to_side as usize);
    resample(plane, &columns, &rows)
}

/// Means of each `by` x `by` samples, rows of `width`. Fewer than so many to the right and below are left out.
pub(crate) fn reduced(samples: &[u8], width: usize, by: usize) -> Plane {
    let (to_width, to_height) = (width / by, samples.len() / width / by);
    let area = (by * by) as u32;
    let mut means = Vec::with_capacity(to_width * to_height);
    let mut sums = vec![0_u32; width];
    for rows in samples.chunks_exact(by * width) {
        sums.fill(0);
        for row in rows.chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(sum, &sample)| *sum += u32::from(sample));
        }
        means.extend(sums.chunks_exact(by).map(|sums| ((sums.iter().sum::<u32>() + area / 2) / area) as u8));
    }
    Plane { width: to_width, height: to_height, samples: means }
}

fn crop(image: Image, left: u32, top: u32, width: u32, height: u32) -> Image {
    if (image.width(), image.height()) == (width, height) {
        return image;
    }
    let bytes = |pixels: u32| pixels as usize * 3;
    let rows = image.rgb().chunks_exact(bytes(image.width())).skip(top as usize).take(height as usize);
    let mut rgb = Vec::with_capacity(bytes(width) * height as usize);
    rows.for_each(|row| rgb.extend_from_slice(&row[bytes(left)..bytes(left + width)]));
    Image::new(width, height, rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reduced_plane_has_the_means_of_whole_squares() {
        // Five by five, of which the last row and column are no whole square's.
        let samples: Vec<u8> = (0..25).collect();
        let halves = reduced(&samples, 5, 2);
        // (0 + 1 + 5 + 6) / 4 and so on.
        assert_eq!((halves.width, halves.height, &halves.samples[..]), (2, 2, &[3, 5, 13, 15][..]));
        assert_eq!(reduced(&samples, 5, 1).samples, samples);
        assert_eq!(reduced(&[255; 49], 7, 7).samples, [255]);
    }

    /// Each pixel says where it is.
    fn map(width: u32, height: u32) -> Image {
        let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7])).collect();
        Image::new(width, height, rgb)
    }

    #[test]
    fn a_square_is_cut_where_it_says() {
        let image = map(30, 20);
        for (anchor, left) in [(Anchor::new(0.0, 0.0), 0), (Anchor::CENTER, 5), (Anchor::new(1.0, 9.0), 10)] {
            let framed = fit(&image, 20, 20, anchor);
            assert_eq!(framed.crop_top_left, (0, left));
            assert_eq!(framed.original_size, (20, 30));
            assert_eq!(framed.target_size, (20, 20));
            assert_eq!(&framed.image.rgb()[..3], [left as u8, 0, 7]);
            assert_eq!(framed.image.rgb().len(), 20 * 20 * 3);
        }
    }

    #[test]
    fn rectangles_keep_the_scale_and_the_place() {
        let framed = fit(&map(100, 40), 60, 40, Anchor::new(1.0, 1.0));
        assert_eq!((framed.crop_top_left, framed.target_size, framed.original_size), ((0, 40), (40, 60), (40, 100)));
        assert_eq!(framed.image.rgb()[..3], [40, 0, 7]);
        let halved = fit(&map(200, 80), 60, 40, Anchor::new(0.0, 0.5));
        assert_eq!((halved.crop_top_left, halved.image.width(), halved.image.height()), ((0, 0), 60, 40));
    }

    #[test]
    fn the_short_side_is_met_exactly_for_every_shape() {
        for (width, height) in [(1, 1), (1, 999), (1023, 1024), (4000, 1333), (7, 4001)] {
            let (w, h) = covering_size(width, height, 512, 512);
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
