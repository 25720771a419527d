//! What an image costs, by step: `cargo bench -p pixels`.
//!
//! The images are made here: 1/f noise with edges at 2048 x 1536, as a baseline JPEG (4:2:0,
//! quality 90) as cameras and sites write it, and as a progressive one.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pixels::{
    Anchor, Image, Limits, decode, decode_luma, decode_picture, encode_jpeg, fit, measure, perceptual_hash, probe,
    sharpness,
};

const WIDTH: u32 = 2048;
const HEIGHT: u32 = 1536;

/// Noise of falling amplitude at doubling frequencies, in each of three channels.
fn scene() -> Image {
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut levels = vec![120.0_f32; (WIDTH * HEIGHT) as usize];
    for cell in [256_usize, 128, 64, 32, 16, 8, 4, 2, 1] {
        let across = WIDTH as usize / cell + 2;
        let grid: Vec<f32> = (0..across * (HEIGHT as usize / cell + 2)).map(|_| random()).collect();
        for (i, level) in levels.iter_mut().enumerate() {
            let (x, y) = (i % WIDTH as usize, i / WIDTH as usize);
            let (fx, fy) = ((x % cell) as f32 / cell as f32, (y % cell) as f32 / cell as f32);
            let at = y / cell * across + x / cell;
            let above = grid[at] * (1.0 - fx) + grid[at + 1] * fx;
            let below = grid[at + across] * (1.0 - fx) + grid[at + across + 1] * fx;
            *level += (above * (1.0 - fy) + below * fy) * (cell as f32).sqrt() * 14.0;
        }
    }
    let rgb =
        levels.iter().flat_map(|level| [*level, level * 0.9 + 9.0, level * 0.7 + 40.0].map(|s| s as u8)).collect();
    Image::new(WIDTH, HEIGHT, rgb)
}

/// The image in scans of a band of coefficients each, without successive approximation.
fn progressive(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    encoder.set_progressive(true);
    encoder.encode(image.rgb(), WIDTH as u16, HEIGHT as u16, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

fn steps(criterion: &mut Criterion) {
    let image = scene();
    let bytes = encode_jpeg(&image, 90);
    let progressive = progressive(&image);
    let limits = Limits::default();
    let luma = image.luma();
    let small = fit(&image, 1024, 1024, Anchor::CENTER).image;
    let mut group = criterion.benchmark_group(format!("{WIDTH}x{HEIGHT}, {} KiB", bytes.len() >> 10));
    group.sample_size(20).throughput(Throughput::Elements(u64::from(WIDTH * HEIGHT)));
    group.bench_function("probe", |b| b.iter(|| probe(black_box(&bytes), &limits).unwrap()));
    group.bench_function("decode_luma", |b| b.iter(|| decode_luma(black_box(&bytes), &limits).unwrap()));
    group.bench_function("measure", |b| b.iter(|| measure(black_box(&bytes), &limits).unwrap()));
    group.bench_function("decode", |b| b.iter(|| decode(black_box(&bytes), &limits).unwrap()));
    group.bench_function("progressive/decode_luma", |b| {
        b.iter(|| decode_luma(black_box(&progressive), &limits).unwrap());
    });
    group.bench_function("progressive/decode", |b| b.iter(|| decode(black_box(&progressive), &limits).unwrap()));
    group.bench_function("decode_picture", |b| b.iter(|| decode_picture(black_box(&bytes), &limits).unwrap()));
    group.bench_function("square_jpeg_1024_q95", |b| {
        let picture = || decode_picture(&bytes, &limits).unwrap();
        b.iter_batched(picture, |picture| picture.square_jpeg(1024, 95), BatchSize::LargeInput);
    });
    group.bench_function("sharpness", |b| b.iter(|| sharpness(black_box(&luma))));
    group.bench_function("perceptual_hash", |b| b.iter(|| perceptual_hash(black_box(&luma))));
    group.bench_function("fit_1024", |b| b.iter(|| fit(black_box(&image), 1024, 1024, Anchor::CENTER)));
    group.bench_function("encode_jpeg_1024_q95", |b| b.iter(|| encode_jpeg(black_box(&small), 95)));
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
