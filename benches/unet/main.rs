//! Times a UNet with random weights, or checks the UNet's results on a device.
//!
//! ```text
//! cargo bench --workspace --bench unet -- --config benches/unet/full --size 1024x1024 --dtype bf16 --device cuda
//! cargo bench --workspace --bench unet -- --check tests/fixtures --device cuda
//! ```
//! Prints one JSON object per measurement; eager.py beside it does the same with PyTorch's eager diffusers, and run.sh
//! runs both in turn.

#![forbid(unsafe_code)]

#[path = "../../tests/common/hashed.rs"]
mod hashed;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use nn::Weights;
use serde_json::json;
use tch::{Cuda, Device, Kind, Tensor};
use trainer::sample::Size;
use trainer::unet::{UNet, UNetConfig};

/// Text states that go with each image.
const TOKENS: i64 = 77;
/// SDXL's micro-conditioning.
const TIME_IDS: i64 = 6;

/// Times a UNet with random weights.
#[derive(Parser)]
struct Arguments {
    /// The folder with the UNet's config.json
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo/model/unet"))]
    config: PathBuf,
    /// Size of the image, eight times that of the latent
    #[arg(long, value_name = "WxH", default_value = "128x128")]
    size: Size,
    /// Images at once
    #[arg(long, default_value_t = 1)]
    batch: i64,
    /// The UNet's precision
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Torch's threads
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Forwards that are timed
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Forwards before them
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Instead, compare the small UNets of tests/fixtures with diffusers' results on this device
    #[arg(long, value_name = "FIXTURES")]
    check: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

fn main() -> Result<()> {
    torch_shim::start_cuda();
    let arguments = Arguments::parse();
    let device = nn::parse_device(&arguments.device)?;
    tch::set_num_threads(arguments.threads);
    let _guard = tch::no_grad_guard();
    match &arguments.check {
        Some(fixtures) => check(fixtures, arguments.dtype.kind(), device),
        None => measure(&arguments, device),
    }
}

fn measure(arguments: &Arguments, device: Device) -> Result<()> {
    let kind = arguments.dtype.kind();
    let began = Instant::now();
    let forward = forward(arguments, kind, device)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let synchronize = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    let mut seconds = Vec::new();
    for i in 0..arguments.warmup + arguments.repeat {
        synchronize();
        let began = Instant::now();
        let out = forward();
        synchronize();
        drop(out);
        if i >= arguments.warmup {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    let peak_bytes = match device {
        Device::Cuda(index) => torch_shim::cuda_memory(index)?.peak_allocated,
        _ => peak_resident_bytes()?,
    };
    println!(
        "{}",
        json!({
            "program": "stepdown",
            "config": arguments.config,
            "size": arguments.size.to_string(),
            "batch": arguments.batch,
            "dtype": arguments.dtype.to_possible_value().map(|value| value.get_name().to_owned()),
            "device": arguments.device,
            "threads": arguments.threads,
            "load_seconds": load_seconds,
            "seconds": seconds,
            "peak_bytes": peak_bytes,
        })
    );
    Ok(())
}

/// Builds the UNet; each call of the closure is one forward.
fn forward(arguments: &Arguments, kind: Kind, device: Device) -> Result<impl Fn() -> Tensor> {
    let file = arguments.config.join("config.json");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let config = UNetConfig::from_json(&text).with_context(|| file.display().to_string())?;
    let (unet, _) = Weights::seeded(0).to(kind, device).build(|scope| UNet::new(scope, &config))?;
    let (batch, Size { width, height }) = (arguments.batch, arguments.size);
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_device(device).to_kind(kind);
    let sample = normal(&[batch, config.in_channels, height / 8, width / 8]);
    let t = Tensor::full([batch], 500.0, (Kind::Float, device));
    let context = normal(&[batch, TOKENS, config.context_dim()]);
    let pooled = normal(&[batch, config.addition_input_dim - TIME_IDS * config.addition_time_embed_dim]);
    let ids = Tensor::full([batch, TIME_IDS], 1024.0, (Kind::Float, device));
    Ok(move || unet.forward(&sample, &t, &context, &pooled, &ids))
}

/// The small UNets of tests/fixtures/unet on a device. In FP32 they have to be diffusers' to 1e-3, which no
/// multiplication in TF32 reaches; the errors of shorter types are told.
fn check(fixtures: &Path, kind: Kind, device: Device) -> Result<()> {
    torch_shim::set_numerics(torch_shim::Numerics { allow_tf32: false, deterministic: false, cudnn_benchmark: false })?;
    const POOLED: i64 = 24;
    let expected = Weights::open(&fixtures.join("unet/outputs.safetensors"))?;
    for (name, batch, height, width, tokens) in [("sdxl", 1, 72, 104, 77), ("refiner", 2, 18, 26, 7)] {
        let config = UNetConfig::from_json(&std::fs::read_to_string(fixtures.join(format!("unet/{name}.json")))?)?;
        let (_, shapes) = Weights::shapes_only().build(|scope| UNet::new(scope, &config))?;
        let weights = Weights::from_tensors("hashed", hashed::weights(&shapes)).to(kind, device);
        let (unet, _) = weights.build(|scope| UNet::new(scope, &config))?;
        let to = |tensor: Tensor| tensor.to_device(device).to_kind(kind);
        let Some(ids) = config.time_ids_for(POOLED) else { bail!("{name}: the fixture's pooled width has changed") };
        let found = unet.forward(
            &to(hashed::tensor("sample", &[batch, 4, height, width], 1.0)),
            &Tensor::from_slice(&[999.0, 37.5]).narrow(0, 0, batch).to_device(device),
            &to(hashed::tensor("encoder_hidden_states", &[batch, tokens, config.context_dim()], 1.0)),
            &to(hashed::tensor("text_embeds", &[batch, POOLED], 1.0)),
            &hashed::tensor("time_ids", &[batch, ids], 1024.0).to_device(device),
        );
        let expected = expected.tensor(name)?;
        let worst = |x: &Tensor| x.abs().max().double_value(&[]);
        let error = worst(&(found.to_kind(Kind::Float).to_device(Device::Cpu) - &expected)) / worst(&expected);
        println!("{}", json!({ "check": name, "dtype": format!("{kind:?}"), "relative_error": error }));
        ensure!(kind != Kind::Float || error <= 1e-3, "{name} is not diffusers' on {device:?}: {error:e}");
    }
    Ok(())
}

/// The most memory that the process has held, from the kernel.
fn peak_resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes << 10)
}
