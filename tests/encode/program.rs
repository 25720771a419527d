//! `encode-latents` from outside: what a good run publishes, and what makes another.

use std::fs;

use encode::cache::{LatentSample, Unconditional};
use shards::ContentHash;

use super::world::{MODEL_TOML, World, assert_ends, contents, curated, image};

#[test]
fn a_run_encodes_everything_once() {
    let world = World::new();
    assert_ends(&world.encode(), 0, "8 samples encoded, 0 refused");
    let samples = world.samples();
    let keys: Vec<String> = samples.iter().map(|sample| sample.key.clone()).collect();
    assert_eq!(keys, (0..8).map(|n| format!("s00-{n:09}")).collect::<Vec<_>>());
    for (sample, n) in samples.iter().zip(0..) {
        assert_eq!(sample.latent.shape, [4, 8, 8]);
        assert_eq!(sample.prompt_embeds.shape, [77, 40]);
        assert_eq!(sample.pooled_prompt_embeds.shape, [24]);
        let conditioning = &sample.conditioning;
        let (width, height) = [(96, 64), (64, 96), (80, 80)][n as usize % 3];
        assert_eq!((conditioning.original_size, conditioning.target_size), ((height, width), (64, 64)));
        let (top, left) = conditioning.crop_top_left;
        assert!(top <= height.saturating_sub(64).min(32) && left <= width.saturating_sub(64).min(32));
        assert_eq!(conditioning.caption, format!("a red square, number {n}"));
        assert_eq!(conditioning.sha256, ContentHash::of(curated(n).part("png").unwrap()));
    }
    let crops: Vec<_> = samples.iter().map(|sample| sample.conditioning.crop_top_left).collect();
    assert!(crops.iter().any(|&crop| crop != crops[0]), "random crops differ: {crops:?}");

    let unconditional = Unconditional::load(&world.latents()).unwrap();
    assert_eq!(unconditional.prompt_embeds.shape, [77, 40]);
    assert!(unconditional.prompt_embeds.values.iter().all(|value| value.to_f32() == 0.0));
    let report = fs::read_to_string(world.latents().join("report.html")).unwrap();
    assert!(report.contains("PSNR") && report.contains("number 7"));

    let before = contents(&world.run());
    assert_ends(&world.encode(), 0, "8 samples are encoded already");
    assert_eq!(contents(&world.run()), before);
}

#[test]
fn a_latent_is_what_the_library_computes() {
    use encode::AutoencoderKl;
    use tch::{Device, Kind, Tensor};
    let _guard = tch::no_grad_guard();
    let world = World::new();
    let recipe = MODEL_TOML.replace("'sample'", "'mean'").replace("'random'", "'center'");
    fs::write(world.manifest().join("model.toml"), recipe).unwrap();
    assert_ends(&world.encode(), 0, "8 samples encoded");
    let sample = &world.samples()[2];
    let framed = pixels::fit(&image(80, 80, 2), 64, 64, pixels::Anchor::CENTER);
    let pixels = Tensor::from_slice(framed.image.rgb()).reshape([1, 64, 64, 3]).permute([0, 3, 1, 2]);
    let vae = AutoencoderKl::open(&world.manifest().join("model/vae"), Kind::Float, Device::Cpu).unwrap();
    let latent = vae.encode(&(pixels.to_kind(Kind::Float) / 127.5 - 1.0)).mean * 0.13025;
    let found: Vec<f32> = sample.latent.values.iter().map(|value| value.to_f32()).collect();
    let difference = (Tensor::from_slice(&found).reshape([1, 4, 8, 8]) - &latent).abs().max().double_value(&[]);
    // float16 keeps 11 bits.
    assert!(difference <= latent.abs().max().double_value(&[]) * 2f64.powi(-11), "{difference}");
}

#[test]
fn buckets_keep_shapes_and_order() {
    let world = World::new();
    fs::write(world.manifest().join("model.toml"), MODEL_TOML.replace("'square'", "'buckets'")).unwrap();
    assert_ends(&world.encode(), 0, "8 samples encoded");
    for (sample, n) in world.samples().iter().zip(0..) {
        assert_eq!(sample.key, format!("s00-{n:09}"));
        // Images of 96x64, 64x96 and 80x80; buckets of at most 64 x 64 pixels in steps of 8.
        let (height, width) = [(48, 80), (80, 48), (64, 64)][n % 3];
        assert_eq!(sample.conditioning.target_size, (height, width));
        assert_eq!(sample.latent.shape, [4, height as usize / 8, width as usize / 8]);
    }
}

#[test]
fn bfloat16_stays_near_float32() {
    let latents = |dtype: &str| {
        let world = World::new();
        fs::write(world.manifest().join("model.toml"), MODEL_TOML.replace("'f32'", dtype)).unwrap();
        assert_ends(&world.encode(), 0, "8 samples encoded, 0 refused");
        let values = |sample: &LatentSample| sample.latent.values.iter().map(|v| v.to_f64()).collect::<Vec<_>>();
        world.samples().iter().flat_map(values).collect::<Vec<f64>>()
    };
    let exact = latents("'f32'");
    let scale = exact.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    for dtype in ["'bf16'", "'f16'"] {
        let difference = exact.iter().zip(latents(dtype)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(difference > 0.0 || dtype == "'f16'", "{dtype} was not used");
        assert!(difference < 0.05 * scale, "{dtype}: {difference} of {scale}");
    }
}

#[test]
fn a_changed_part_is_refused_by_its_name() {
    type Change = fn(&World);
    let changes: [(&str, Change); 5] = [
        ("transform changed", |world| {
            fs::write(world.manifest().join("model.toml"), MODEL_TOML.replace("seed = 1", "seed = 2")).unwrap();
        }),
        ("vae changed", |world| {
            let config = world.manifest().join("model/vae/config.json");
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, text.replace("0.13025", "0.18215")).unwrap();
        }),
        ("tokenizer_2 changed", |world| {
            fs::write(world.manifest().join("model/tokenizer_2/tokenizer_config.json"), "{}").unwrap();
        }),
        ("text_encoder changed", |world| {
            let file = world.manifest().join("model/text_encoder/model.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&file, bytes).unwrap();
        }),
        ("curated changed", |world| world.curate(&[(0..5).map(curated).collect()])),
    ];
    let encoded = World::new();
    assert_ends(&encoded.encode(), 0, "8 samples encoded");
    for (said, change) in changes {
        let world = encoded.duplicate();
        let before = contents(&world.latents());
        change(&world);
        assert_ends(&world.encode(), 2, said);
        assert_eq!(contents(&world.latents()), before);
    }
    // A batch of another size makes the same latents.
    let world = encoded;
    fs::write(world.manifest().join("model.toml"), MODEL_TOML.replace("batch = 2", "batch = 3")).unwrap();
    assert_ends(&world.encode(), 0, "8 samples are encoded already");
}

#[test]
fn shards_that_lie_in_a_store_are_asked_for() {
    let world = World::new();
    let shard = world.run().join("curated/shards/000001.tar");
    let bytes = fs::read(&shard).unwrap();
    fs::remove_file(&shard).unwrap();
    fs::write(world.run().join("curated/target.json"), "{\"target\": \"s3://bucket/prefix\"}").unwrap();
    assert_ends(&world.encode(), 2, "bring them to the folder `shards` here");
    fs::write(&shard, bytes).unwrap();
    assert_ends(&world.encode(), 0, "8 samples encoded, 0 refused");
}
