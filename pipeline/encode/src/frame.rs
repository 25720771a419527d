//! Which rectangle of an image is encoded, and at which size.

use pixels::{Anchor, Framed, Image};
use shards::ContentHash;

use crate::manifest::{Crop, ModelManifest, Shape};

/// Sides of buckets are multiples of this part of the resolution (64 pixels at 1024), in steps of a VAE's factor.
const STEPS_PER_SIDE: u32 = 16;
const VAE_FACTOR: u32 = 8;
/// The longest bucket is twice the resolution, as in SDXL's table.
const LONGEST: u32 = 2;

/// Cuts an image as the manifest says.
pub fn frame(image: &Image, key: &str, manifest: &ModelManifest) -> Framed {
    let side = manifest.resolution;
    let (width, height) = match manifest.encode.shape {
        Shape::Square => (side, side),
        Shape::Buckets => nearest_bucket(image.width(), image.height(), side),
    };
    let place = match manifest.encode.crop {
        Crop::Center => 0.5,
        Crop::Random => fraction(key, manifest.encode.seed),
    };
    pixels::fit(image, width, height, Anchor::new(place, place))
}

/// A number in [0, 1] that seed and key decide.
fn fraction(key: &str, seed: u64) -> f64 {
    let hash = ContentHash::of(format!("{seed}\0{key}").as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    f64::from(u32::from_le_bytes([a, b, c, d])) / f64::from(u32::MAX)
}

/// The sizes with sides in steps and an area of at most `resolution` squared: for each longer side, the largest
/// shorter one.
fn buckets(resolution: u32) -> Vec<(u32, u32)> {
    let step = (resolution / STEPS_PER_SIDE).next_multiple_of(VAE_FACTOR).max(VAE_FACTOR);
    let area = u64::from(resolution) * u64::from(resolution);
    let mut sizes = vec![(resolution, resolution)];
    for long in (resolution + step..=LONGEST * resolution).step_by(step as usize) {
        let short = (area / u64::from(long)) as u32 / step * step;
        if short > 0 {
            sizes.extend([(long, short), (short, long)]);
        }
    }
    sizes
}

/// The width and height of the bucket whose shape is nearest, as a ratio.
fn nearest_bucket(width: u32, height: u32, resolution: u32) -> (u32, u32) {
    let ratio = |width: u32, height: u32| (f64::from(width) / f64::from(height)).ln();
    let wanted = ratio(width, height);
    let distance = |&(width, height): &(u32, u32)| (ratio(width, height) - wanted).abs();
    let sizes = buckets(resolution);
    sizes.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("the square is one of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_sdxl_stay_within_its_area() {
        let sizes = buckets(1024);
        for &(width, height) in &sizes {
            assert!(width % 64 == 0 && height % 64 == 0 && width * height <= 1024 * 1024, "{width}x{height}");
        }
        // From the table in SDXL's appendix.
        for size in [(1024, 1024), (1152, 896), (832, 1216), (1344, 768), (640, 1536), (2048, 512)] {
            assert!(sizes.contains(&size), "{size:?}");
        }
        assert_eq!(nearest_bucket(3000, 2000, 1024), (1216, 832));
        assert_eq!(nearest_bucket(2000, 3000, 1024), (832, 1216));
        assert_eq!(nearest_bucket(10, 10, 1024), (1024, 1024));
        assert_eq!(nearest_bucket(9000, 10, 1024), (2048, 512));
        assert!(buckets(128).iter().all(|(width, height)| width % 8 == 0 && height % 8 == 0));
    }

    #[test]
    fn a_place_follows_seed_and_key() {
        assert_eq!(fraction("a", 1), fraction("a", 1));
        assert_ne!(fraction("a", 1), fraction("a", 2));
        assert_ne!(fraction("a", 1), fraction("b", 1));
        assert!((0.0..=1.0).contains(&fraction("a", 1)));
    }
}
