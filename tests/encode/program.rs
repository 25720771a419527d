//! `encode-latents` from outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use encode::cache::{FORMAT, LatentIndex, LatentSample, RefusalReason, Unconditional, VERSION};
use shards::{ContentHash, Fingerprint, Index, Sample, ShardReader, ShardWriter};

use super::fixture;

const MODEL_TOML: &str = "base = 'model'\nresolution = 64\ndtype = 'f32'\n\
    [encode]\nshape = 'square'\ncrop = 'random'\nlatents = 'sample'\nseed = 1\nbatch = 2\n";

/// A manifest and a run with curated shards, in a folder that goes away.
struct World {
    folder: tempfile::TempDir,
}

/// A smooth image that differs with the seed.
fn image(width: u32, height: u32, seed: u32) -> pixels::Image {
    let value = |x: u32, y: u32, c: u32| ((x * (seed % 5 + 1) + y * (c + 1) + seed * 31) / 2 % 256) as u8;
    let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [0, 1, 2].map(|c| value(x, y, c)))).collect();
    pixels::Image::new(width, height, rgb)
}

fn curated(seed: u32) -> Sample {
    let (width, height) = [(96, 64), (64, 96), (80, 80)][seed as usize % 3];
    Sample::new(format!("s00-{seed:09}"))
        .with("png", pixels::encode_png(&image(width, height, seed)))
        .with("txt", format!("a red square, number {seed}"))
        .with("json", "{}")
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self { folder };
        copy_folder(&fixture("encode/model"), &world.manifest().join("model"));
        fs::write(world.manifest().join("model.toml"), MODEL_TOML).unwrap();
        world.curate(&[(0..5).map(curated).collect(), (5..8).map(curated).collect()]);
        world
    }

    fn duplicate(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), folder.path());
        Self { folder }
    }

    fn manifest(&self) -> std::path::PathBuf {
        self.folder.path().join("manifest")
    }

    fn run(&self) -> std::path::PathBuf {
        self.folder.path().join("run")
    }

    fn latents(&self) -> std::path::PathBuf {
        self.run().join("latents")
    }

    fn curate(&self, shards: &[Vec<Sample>]) {
        let folder = self.run().join("curated");
        let entries = shards.iter().enumerate().map(|(at, samples)| {
            let mut writer = ShardWriter::create(folder.join("shards"), format!("{at:06}.tar")).unwrap();
            samples.iter().for_each(|sample| writer.push(sample).unwrap());
            writer.finish().unwrap()
        });
        Index {
            format: "stepdown-curated".into(),
            version: 1,
            fingerprint: Fingerprint::new(),
            shards: entries.collect(),
            totals: serde_json::json!({}),
        }
        .publish(&folder)
        .unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_encode-latents"));
        command.arg("--manifest").arg(self.manifest()).arg("--run").arg(self.run());
        command
    }

    fn encode(&self) -> Output {
        self.command().output().unwrap()
    }

    fn index(&self) -> LatentIndex {
        LatentIndex::load(self.latents(), FORMAT, VERSION).unwrap().expect("an index is published")
    }

    fn samples(&self) -> Vec<LatentSample> {
        let index = self.index();
        index.verify_shards(self.latents()).unwrap();
        (0..index.shards.len())
            .flat_map(|at| ShardReader::open(index.shard_path(self.latents(), at)).unwrap())
            .map(|sample| LatentSample::from_sample(&sample.unwrap()).unwrap())
            .collect()
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below, with its hash.
fn contents(folder: &Path) -> BTreeMap<String, ContentHash> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.display().to_string(), ContentHash::of_file(&path).unwrap());
        }
    }
    all
}

fn assert_ends(output: &Output, code: i32, said: &str) {
    let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(said), "expected {said:?} in: {text}");
}

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
fn faulty_samples_are_counted_and_named_and_the_rest_goes_on() {
    let world = World::new();
    let cut = |sample: Sample, at: usize| {
        let bytes = sample.part("png").unwrap()[..at].to_vec();
        Sample::new(sample.key).with("png", bytes).with("txt", "cut")
    };
    let single_pixel = Sample::new("pixel").with("png", pixels::encode_png(&image(1, 1, 3))).with("txt", "one pixel");
    let long = Sample::new("long").with("png", pixels::encode_png(&image(64, 64, 4))).with("txt", "word ".repeat(2000));
    world.curate(&[vec![
        curated(0),
        cut(curated(1), 100),
        Sample::new("no-caption").with("png", pixels::encode_png(&image(64, 64, 5))),
        Sample::new("no-image").with("txt", "nothing"),
        single_pixel,
        long,
        curated(2),
    ]]);
    assert_ends(&world.encode(), 0, "4 samples encoded, 3 refused, 1 captions truncated");
    let totals = world.index().totals;
    let refused: Vec<_> = totals.refused.iter().map(|refusal| (refusal.key.as_str(), refusal.reason)).collect();
    assert_eq!(
        refused,
        [
            ("s00-000000001", RefusalReason::Undecodable),
            ("no-caption", RefusalReason::Incomplete),
            ("no-image", RefusalReason::Incomplete)
        ]
    );
    assert_eq!(world.samples().len(), 4);
}

#[test]
fn latents_that_are_not_finite_are_refused() {
    let world = World::new();
    let vae = world.manifest().join("model/vae/diffusion_pytorch_model.safetensors");
    let weights = nn::Weights::open(&vae).unwrap();
    let tensors: Vec<_> = weights
        .names()
        .iter()
        .map(|&name| {
            let tensor = weights.tensor(name).unwrap();
            (name.to_owned(), if name == "quant_conv.bias" { tensor * f64::NAN } else { tensor })
        })
        .collect();
    nn::save(&vae, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[]).unwrap();
    assert_ends(&world.encode(), 0, "0 samples encoded, 8 refused");
    let totals = world.index().totals;
    assert!(totals.refused.iter().all(|refusal| refusal.reason == RefusalReason::NotFinite));
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes() {
    let straight = World::new();
    assert_ends(&straight.encode(), 0, "8 samples encoded");

    let stopped = World::new();
    let mut child = stopped.command().stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    // From here on a signal is a wish to stop; wherever the run is by then.
    while !stopped.latents().join("unfinished/fingerprint.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it began");
        std::thread::sleep(Duration::from_millis(1));
    }
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));

    fs::create_dir_all(stopped.latents().join("shards")).unwrap();
    fs::write(stopped.latents().join("shards/.000001.tar.tmp"), b"what a killed process leaves").unwrap();
    assert_ends(&stopped.encode(), 0, "8 samples encoded");
    let hashes = |world: &World| world.index().shards.iter().map(|shard| shard.sha256).collect::<Vec<_>>();
    assert_eq!(hashes(&stopped), hashes(&straight));
    assert!(!stopped.latents().join("unfinished").exists());
}

#[test]
fn finished_shards_are_not_encoded_again_and_damaged_ones_are_named() {
    let world = World::new();
    // The second shard's recorded hash is wrong: the first is encoded and kept, then the run stops.
    let shard = world.run().join("curated/shards/000001.tar");
    let good = fs::read(&shard).unwrap();
    let mut bad = good.clone();
    bad[700] ^= 1;
    fs::write(&shard, &bad).unwrap();
    assert_ends(&world.encode(), 2, "000001.tar");
    assert!(!world.latents().join("index.json").exists());
    let first = world.latents().join("shards/000000.tar");
    let written = fs::metadata(&first).unwrap().modified().unwrap();

    fs::write(&shard, &good).unwrap();
    assert_ends(&world.encode(), 0, "8 samples encoded");
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), written);
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
fn bad_input_is_one_clear_line_and_nothing_is_published() {
    type Damage = fn(&World);
    let cases: [(&str, Damage); 7] = [
        ("model.toml", |world| fs::remove_file(world.manifest().join("model.toml")).unwrap()),
        ("surplus", |world| {
            fs::write(world.manifest().join("model.toml"), format!("surplus = 1\n{MODEL_TOML}")).unwrap();
        }),
        ("run `make curate` first", |world| fs::remove_dir_all(world.run().join("curated")).unwrap()),
        ("no weights found", |world| {
            fs::remove_file(world.manifest().join("model/vae/diffusion_pytorch_model.safetensors")).unwrap();
        }),
        ("not a valid safetensors file", |world| {
            let file = world.manifest().join("model/text_encoder_2/model.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("there is no tokenizer here", |world| fs::remove_dir_all(world.manifest().join("model/tokenizer")).unwrap()),
        ("misshapen", |world| {
            let config = world.manifest().join("model/vae/config.json");
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, text.replace("\"latent_channels\": 4", "\"latent_channels\": 8")).unwrap();
        }),
    ];
    for (said, damage) in cases {
        let world = World::new();
        damage(&world);
        assert_ends(&world.encode(), 2, said);
        assert!(!world.latents().join("index.json").exists());
        assert!(!world.latents().join("shards").exists(), "{said}");
    }
    let world = World::new();
    assert_ends(&world.command().args(["--device", "gpu"]).output().unwrap(), 2, "expected cpu, cuda or cuda:N");
}

#[test]
fn a_second_process_on_the_same_run_is_refused() {
    let world = World::new();
    let _lock = shards::RunLock::acquire(world.latents()).unwrap();
    assert_ends(&world.encode(), 1, "another process is working here");
}
