//! What becomes of image files: the conversions against Pillow, every cut of every format, sizes
//! that must not be allocated, and what the measures promise.

mod conversions;
mod hostile;
mod measures;

use std::path::PathBuf;

use pixels::{Format, Image};

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pixels"))
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every image file of the fixtures that is to be decoded, by name.
fn all() -> Vec<(String, Vec<u8>)> {
    let mut names: Vec<String> = std::fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".py") && !name.ends_with(".expected.png"))
        .collect();
    names.sort();
    assert!(names.len() > 40);
    names.into_iter().map(|name| (name.clone(), fixture(&name))).collect()
}

fn format_of(name: &str) -> Format {
    [Format::Jpeg, Format::Png, Format::Webp, Format::Gif]
        .into_iter()
        .find(|format| name.ends_with(format.extension()))
        .unwrap_or_else(|| panic!("{name} has no known extension"))
}

/// Peak signal-to-noise ratio in dB, infinite for equal samples.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    10.0 * (255.0_f64.powi(2) * a.len() as f64 / squares).log10()
}

/// A photograph-like scene: bands of noise whose amplitude falls with their frequency, so that it
/// looks alike at every scale, and a few hard edges.
fn scene(width: u32, height: u32, seed: u64) -> Image {
    bands(width, height, seed, |octave| 130.0 / f64::from(1 << octave).sqrt())
}

/// Bands of noise, each of twice the frequency of the one before and of the amplitude that is said.
fn bands(width: u32, height: u32, seed: u64, amplitude: impl Fn(u32) -> f64 + Copy) -> Image {
    let hash = |x: i64, y: i64, octave: u32| {
        let mut z =
            seed ^ (x as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (y as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        z = (z ^ u64::from(octave)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    let noise = |x: f64, y: f64, octave: u32| {
        let (x0, y0) = (x.floor(), y.floor());
        let (fx, fy) = (x - x0, y - y0);
        let (sx, sy) = (fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy));
        let (x0, y0) = (x0 as i64, y0 as i64);
        let row = |y| hash(x0, y, octave) * (1.0 - sx) + hash(x0 + 1, y, octave) * sx;
        row(y0) * (1.0 - sy) + row(y0 + 1) * sy
    };
    let side = f64::from(width.min(height));
    let rgb = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            let (u, v) = (f64::from(x) / side, f64::from(y) / side);
            let texture: f64 = (0..10)
                .map(|octave| {
                    let cells = f64::from(2_u32 << octave);
                    noise(u * cells, v * cells, octave) * amplitude(octave)
                })
                .sum();
            let edge = if (u * 7.0).fract() < 0.3 && (v * 5.0).fract() < 0.5 { 40.0 } else { 0.0 };
            let level = 110.0 + texture + edge;
            [level, level * 0.9 + 10.0, level * 0.8 + 20.0].map(|sample| sample.round().clamp(0.0, 255.0) as u8)
        })
        .collect();
    Image::new(width, height, rgb)
}
