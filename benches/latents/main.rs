//! Times `encode-latents` as a whole: image files and captions to published latent shards, in images a second.
//!
//! ```text
//! cargo bench --workspace --bench latents -- --world /tmp/world --scale full --images 256 --device cuda
//! ```
//! The world is made on the first call: a base model of random weights (`full` has SDXL's shapes in bf16, `small` is the
//! tests'), and photographs' worth of JPEGs in curated shards. eager.py beside it does the same work on the same world
//! with PyTorch's libraries. Prints one JSON object.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use encode::{
    AutoencoderKl, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, Dtype, ModelManifest, Outcome, VaeConfig,
};
use indicatif::ProgressBar;
use nn::{Scope, Weights};
use rayon::prelude::*;
use serde_json::{Value, json};
use shards::{Fingerprint, Index, Sample, ShardWriter};
use tch::{Device, Kind, Tensor};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
/// Images of one shard.
const SHARD: usize = 64;

/// Times the encoding of images and captions.
#[derive(Parser)]
struct Arguments {
    /// Where the model and the images lie, or are to be made [default: a folder that goes away]
    #[arg(long, value_name = "DIR")]
    world: Option<PathBuf>,
    /// The folder that holds tests/fixtures of the source tree
    #[arg(long, value_name = "DIR", default_value = FIXTURES)]
    fixtures: PathBuf,
    /// The size of the networks
    #[arg(long, value_enum, default_value = "small")]
    scale: Scale,
    /// Images in the world
    #[arg(long, default_value_t = 32)]
    images: usize,
    /// Images in one pass
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// The networks' precision
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Torch's threads
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Make the world and stop
    #[arg(long)]
    prepare: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scale {
    Small,
    Full,
}

impl Scale {
    fn resolution(self) -> u32 {
        match self {
            Scale::Small => 128,
            Scale::Full => 1024,
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = nn::parse_device(&arguments.device)?;
    tch::set_num_threads(arguments.threads);
    let scratch = tempfile::tempdir()?;
    let world = arguments.world.as_deref().unwrap_or(scratch.path());
    let (manifest, run) = (world.join("manifest"), world.join("run"));
    if !run.join("curated/index.json").exists() {
        make_model(&arguments, &manifest.join("model"))?;
        curate(&run.join("curated"), arguments.scale.resolution() * 5 / 4, arguments.images)?;
    }
    let (resolution, batch) = (arguments.scale.resolution(), arguments.batch);
    let dtype = arguments.dtype.to_possible_value().context("a named value")?.get_name().to_owned();
    let recipe = format!(
        "base = 'model'\nresolution = {resolution}\ndtype = '{dtype}'\n[encode]\nshape = 'square'\n\
         crop = 'center'\nlatents = 'sample'\nseed = 0\nbatch = {batch}\n"
    );
    fs::write(manifest.join("model.toml"), recipe)?;
    if arguments.prepare {
        return Ok(());
    }

    let latents = run.join("latents");
    if latents.exists() {
        fs::remove_dir_all(&latents)?;
    }
    let recipe = ModelManifest::read(&manifest, &run)?;
    let never = AtomicBool::new(false);
    let outcome = encode::encode_latents(&recipe, &run, device, &ProgressBar::hidden(), &never)?;
    let Outcome::Done { totals, work } = outcome else { bail!("the run did not end: {outcome:?}") };
    ensure!(totals.refused.is_empty(), "{} images were refused", totals.refused.len());
    let seconds = work.elapsed.as_secs_f64();
    let part = |spent: std::time::Duration| spent.as_secs_f64() / seconds;
    println!(
        "{}",
        json!({
            "program": "stepdown",
            "network": "encode-latents",
            "config": arguments.scale.to_possible_value().map(|value| value.get_name().to_owned()),
            "size": format!("{resolution}x{resolution}"),
            "batch": batch,
            "dtype": dtype,
            "device": arguments.device,
            "threads": arguments.threads,
            "images": work.samples,
            "images_per_second": work.samples as f64 / seconds,
            "seconds": [seconds / work.samples as f64],
            "device_busy": part(work.device),
            "tokenising": part(work.tokenising),
            "files": part(work.files),
        })
    );
    Ok(())
}

/// A model folder: SDXL's VAE, text encoders and tokenizers with random weights, or the tests' small ones.
fn make_model(arguments: &Arguments, model: &Path) -> Result<()> {
    let fixtures = &arguments.fixtures;
    if arguments.scale == Scale::Small {
        return copy_folder(&fixtures.join("encode/model"), model);
    }
    let config = |name: &str, folder: &str| -> Result<String> {
        let text = fs::read_to_string(fixtures.join(name)).with_context(|| name.to_owned())?;
        fs::create_dir_all(model.join(folder))?;
        fs::write(model.join(folder).join("config.json"), &text)?;
        Ok(text)
    };
    let vae = VaeConfig::from_json(&config("vae/sdxl.config.json", "vae")?)?;
    save(&model.join("vae/diffusion_pytorch_model.safetensors"), |scope| AutoencoderKl::new(scope, &vae))?;
    let text = ClipTextConfig::from_json(&config("text/sdxl_text_encoder.config.json", "text_encoder")?)?;
    save(&model.join("text_encoder/model.safetensors"), |scope| ClipTextModel::new(scope, &text))?;
    let text = ClipTextConfig::from_json(&config("text/sdxl_text_encoder_2.config.json", "text_encoder_2")?)?;
    save(&model.join("text_encoder_2/model.safetensors"), |scope| ClipTextModelWithProjection::new(scope, &text))?;

    let mut merges = String::new();
    let packed = fs::File::open(fixtures.join("tokenizer/merges.txt.gz"))?;
    flate2::read::GzDecoder::new(packed).read_to_string(&mut merges)?;
    for (folder, pad) in [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")] {
        let folder = model.join(folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("vocab.json"), vocabulary(&merges).to_string())?;
        fs::write(folder.join("merges.txt"), &merges)?;
        let settings = json!({
            "tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>", "pad_token": pad, "model_max_length": 77,
        });
        fs::write(folder.join("tokenizer_config.json"), settings.to_string())?;
    }
    Ok(())
}

/// Writes random weights of a size that keeps activations finite, in bf16.
fn save<T>(file: &Path, network: impl Fn(&Scope) -> T) -> Result<()> {
    let (_, shapes) = Weights::shapes_only().build(network)?;
    let tensors: Vec<(String, Tensor)> = shapes
        .iter()
        .map(|(name, shape)| {
            let shape = shape.size();
            let inputs = shape.iter().skip(1).product::<i64>().max(1) as f64;
            (name.to_owned(), Tensor::randn(&shape, (Kind::BFloat16, Device::Cpu)) / inputs.sqrt())
        })
        .collect();
    Ok(nn::save(file, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])?)
}

/// CLIP's vocabulary follows from its merges: 256 bytes, the same as ends of words, the merged pairs, start and end.
fn vocabulary(merges: &str) -> Value {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let bytes: Vec<String> = printable.chain('\u{100}'..='\u{143}').map(String::from).collect();
    let ends = bytes.iter().map(|byte| format!("{byte}</w>"));
    let pairs = merges.lines().skip(1).map(|pair| pair.replace(' ', ""));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    let words = bytes.iter().cloned().chain(ends).chain(pairs).chain(special);
    words.enumerate().map(|(id, word)| (word, json!(id))).collect()
}

/// Publishes JPEGs of `side` x 3/4 of it with captions of some thirty words.
fn curate(folder: &Path, side: u32, images: usize) -> Result<()> {
    let mut shards = Vec::new();
    for first in (0..images).step_by(SHARD) {
        let places: Vec<usize> = (first..images.min(first + SHARD)).collect();
        let samples: Vec<Sample> = places
            .into_par_iter()
            .map(|n| {
                let caption = format!("photograph {n} of a red house beside a lake, two trees in the mist, ").repeat(3);
                Sample::new(format!("s00-{n:09}"))
                    .with("jpg", pixels::encode_jpeg(&picture(side, side * 3 / 4, n as u32), 92))
                    .with("txt", caption)
                    .with("json", "{}")
            })
            .collect();
        let mut writer = ShardWriter::create(folder.join("shards"), format!("{:06}.tar", first / SHARD))?;
        for sample in samples {
            writer.push(sample)?;
        }
        shards.push(writer.finish()?);
    }
    let index = Index {
        format: "stepdown-curated".into(),
        version: 1,
        fingerprint: Fingerprint::new(),
        shards,
        totals: json!({}),
    };
    Ok(index.publish(folder)?)
}

/// Smooth waves under fine grain, so that a JPEG has the size of a photograph's.
fn picture(width: u32, height: u32, seed: u32) -> pixels::Image {
    let mut grain = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut rgb = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        for x in 0..width {
            grain ^= grain << 13;
            grain ^= grain >> 17;
            grain ^= grain << 5;
            let noise = (grain >> 27) as f32;
            for channel in 0..3 {
                let wave = |a: u32, b: u32| (a as f32 * 0.013 + b as f32 * 0.007 + (seed + channel) as f32).sin();
                rgb.push((128.0 + 60.0 * wave(x, y) + 40.0 * wave(y * 3, x) + noise).clamp(0.0, 255.0) as u8);
            }
        }
    }
    pixels::Image::new(width, height, rgb)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
