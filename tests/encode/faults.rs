//! `encode-latents` under kills, full disks, damaged files and hostile ones.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use encode::cache::RefusalReason;
use serde_json::json;
use shards::Sample;

use super::fixture;
use super::world::{MODEL_TOML, World, assert_ends, contents, curated, image};

/// Number of kill points; `ENCODE_KILLS=200` for the whole campaign.
fn kills() -> u64 {
    std::env::var("ENCODE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

/// Everything that an undisturbed run publishes, and how long it takes.
fn undisturbed() -> (Vec<(String, shards::ContentHash)>, Duration) {
    let world = World::new();
    let started = Instant::now();
    assert_ends(&world.encode(), 0, "8 samples encoded");
    (published(&world), started.elapsed())
}

fn published(world: &World) -> Vec<(String, shards::ContentHash)> {
    let folder = world.latents().display().to_string();
    contents(&world.latents()).into_iter().map(|(path, hash)| (path.replace(&folder, ""), hash)).collect()
}

#[test]
fn a_killed_run_ends_in_the_same_bytes() {
    let (wanted, whole) = undisturbed();
    let (mut killed, mut point) = (0, 0u32);
    while killed < kills() {
        // Several kills in one run, so that resumed runs are killed as well.
        let world = World::new();
        loop {
            let mut child = world.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Points spread evenly over the run, in an order that jumps (the golden ratio).
            let part = (f64::from(point) * 0.618_033_988_75).fract();
            point += 1;
            thread::sleep(whole.mul_f64(part));
            let ended = child.try_wait().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            match ended {
                Some(status) => {
                    assert_eq!(status.code(), Some(0));
                    break;
                }
                None => killed += 1,
            }
        }
        assert_ends(&world.encode(), 0, "8 samples are encoded already");
        assert_eq!(published(&world), wanted);
    }
}

/// Between its index and the end, a run removes its records; one killed there is finished by the next.
#[test]
fn records_that_a_finished_run_has_left_are_removed() {
    let world = World::new();
    assert_ends(&world.encode(), 0, "8 samples encoded");
    let wanted = published(&world);
    let records = world.latents().join("unfinished");
    std::fs::create_dir(&records).unwrap();
    std::fs::write(records.join("000001.json"), b"{}").unwrap();
    assert_ends(&world.encode(), 0, "8 samples are encoded already");
    assert_eq!(published(&world), wanted);
}

#[test]
fn a_full_disk_stops_the_run_which_goes_on_when_there_is_space() {
    // The second shard is the larger one.
    let world = || {
        let world = World::new();
        world.curate(&[(0..3).map(curated).collect(), (3..8).map(curated).collect()]);
        world
    };
    let undisturbed = world();
    assert_ends(&undisturbed.encode(), 0, "8 samples encoded");
    let wanted = published(&undisturbed);
    let shards = undisturbed.index().shards;
    assert!(shards[0].bytes + 2048 < shards[1].bytes);
    // Room for nothing but small documents; for the first shard alone.
    for (kilobytes, named) in [(4, "000000.tar"), (shards[1].bytes / 1024 - 1, "000001.tar")] {
        let world = world();
        // A limit on the size of files stands in for a full disk; the signal that comes with it is ignored, as a
        // full disk sends none.
        let command = world.command();
        let limited = Command::new("bash")
            .arg("-c")
            .arg(format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$@\""))
            .arg("bash")
            .arg(command.get_program())
            .args(command.get_args())
            .output()
            .unwrap();
        assert_ends(&limited, 1, named);
        let left = contents(&world.latents());
        assert!(!world.latents().join("index.json").exists(), "nothing is published half");
        assert!(left.keys().all(|path| !path.ends_with(".tmp")), "{left:?}");
        assert!(!world.latents().join("shards").join(named).exists());
        assert_ends(&world.encode(), 0, "8 samples encoded");
        assert_eq!(published(&world), wanted, "{kilobytes} KiB");
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
fn bad_input_is_one_clear_line_and_nothing_is_published() {
    type Damage = fn(&World);
    let cases: [(&str, Damage); 10] = [
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
        ("vae/config.json: `in_channels`: 4", |world| {
            let config = world.manifest().join("model/vae/config.json");
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, text.replace("\"in_channels\": 3", "\"in_channels\": 4")).unwrap();
        }),
        ("tokenizer_2", |world| {
            let vocabulary = world.manifest().join("model/tokenizer_2/vocab.json");
            let bytes = fs::read(&vocabulary).unwrap();
            fs::write(&vocabulary, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("has 1000 token ids", |world| {
            let vocabulary = world.manifest().join("model/tokenizer_2/vocab.json");
            let mut words: serde_json::Value = serde_json::from_slice(&fs::read(&vocabulary).unwrap()).unwrap();
            words["one id too many"] = 999.into();
            fs::write(&vocabulary, words.to_string()).unwrap();
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

/// Files of weights by somebody who means ill, and by a disk that forgets.
#[test]
fn hostile_weights_are_named_and_nothing_is_published() {
    let header = |entries: serde_json::Value| {
        let text = entries.to_string();
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[0; 64]].concat()
    };
    let entry = |dtype: &str, shape: &[u64], start: u64, end: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
    let good = fs::read(fixture("encode/model/vae/diffusion_pytorch_model.safetensors")).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let invalid = "not a valid safetensors file";
    for (what, bytes, said) in [
        ("empty", Vec::new(), invalid),
        ("no header", b"PK\x03\x04 is another format altogether".to_vec(), invalid),
        ("a header longer than the file", [&u64::MAX.to_le_bytes()[..], b"{}"].concat(), invalid),
        ("a header of 200 MB", [&200_000_000u64.to_le_bytes()[..], b"{}"].concat(), invalid),
        ("a header that is no JSON", [&2u64.to_le_bytes()[..], b"{{"].concat(), invalid),
        ("a flipped bit in the header's length", flipped(1), invalid),
        ("a flipped bit in the header", flipped(8), invalid),
        ("a flipped bit in a name", flipped(12), "missing"),
        (
            "overlapping tensors",
            header(json!({"a": entry("F32", &[8], 0, 32), "b": entry("F32", &[8], 16, 48)})),
            invalid,
        ),
        (
            "a tensor beyond the end",
            header(json!({"a": entry("F32", &[8], 0, 32), "b": entry("F32", &[1 << 40], 32, 32 + (4 << 40))})),
            invalid,
        ),
        ("a shape that overflows", header(json!({"a": entry("F32", &[1 << 63, 8], 0, 64)})), invalid),
        (
            "a hole between tensors",
            header(json!({"a": entry("F32", &[4], 0, 16), "b": entry("F32", &[4], 48, 64)})),
            invalid,
        ),
        ("integers", header(json!({"decoder.conv_in.bias": entry("I64", &[8], 0, 64)})), "missing"),
    ] {
        let world = World::new();
        let file = world.manifest().join("model/vae/diffusion_pytorch_model.safetensors");
        fs::write(&file, bytes).unwrap();
        let output = world.encode();
        assert_ends(&output, 2, said);
        assert_ends(&output, 2, "vae/diffusion_pytorch_model.safetensors");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{what}");
        assert!(!world.latents().join("shards").exists(), "{what}");
    }
}

/// A gray, a translucent, a 16-bit and a CMYK picture become the three channels that the VAE takes.
#[test]
fn every_kind_of_channels_becomes_rgb() {
    let world = World::new();
    let sample = |name: &str, extension: &'static str| {
        let bytes = fs::read(fixture("pixels").join(format!("{name}.{extension}"))).unwrap();
        Sample::new(name).with(extension, bytes).with("txt", name.to_owned())
    };
    world.curate(&[vec![
        sample("png_gray", "png"),
        sample("png_gray_alpha", "png"),
        sample("png_rgba", "png"),
        sample("png_rgb_16", "png"),
        sample("png_palette", "png"),
        sample("jpeg_cmyk", "jpg"),
        sample("jpeg_gray", "jpg"),
    ]]);
    assert_ends(&world.encode(), 0, "7 samples encoded, 0 refused");
    assert!(world.samples().iter().all(|sample| sample.latent.shape == [4, 8, 8]));
}

#[test]
fn a_second_process_on_the_same_run_is_refused() {
    let world = World::new();
    let _lock = shards::RunLock::acquire(world.latents()).unwrap();
    assert_ends(&world.encode(), 1, "another process is working here");
}
