//! Times one network of SDXL with random weights, or checks the UNet's results on a device.
//!
//! ```text
//! cargo bench --workspace --bench networks -- --network unet --config benches/unet/full/config.json --dtype bf16 --device cuda
//! cargo bench --workspace --bench networks -- --check tests/fixtures --device cuda
//! ```
//! Prints one JSON object per measurement; eager.py beside it does the same with PyTorch's eager diffusers and
//! transformers, and ../run.sh runs both in turn.

#![forbid(unsafe_code)]

#[path = "../../tests/common/hashed.rs"]
mod hashed;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use encode::{AutoencoderKl, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, Dtype, VaeConfig};
use nn::{Scope, Weights};
use serde_json::json;
use tch::{Cuda, Device, Kind, Tensor};
use trainer::sample::Size;
use trainer::unet::{UNet, UNetConfig};

/// Tokens of each caption.
const TOKENS: i64 = 77;
/// SDXL's micro-conditioning.
const TIME_IDS: i64 = 6;
/// The factor of SDXL's VAE.
const FACTOR: i64 = 8;

/// Times a network with random weights.
#[derive(Parser)]
struct Arguments {
    /// Which network, and which way through it
    #[arg(long, value_enum, default_value = "unet")]
    network: Network,
    /// The network's config.json
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo/model/unet/config.json"))]
    config: PathBuf,
    /// Size of the image, eight times that of the latent; text encoders do not look at it
    #[arg(long, value_name = "WxH", default_value = "128x128")]
    size: Size,
    /// Images or captions at once; of several, one measurement follows the other
    #[arg(long, value_name = "N", default_values_t = [1])]
    batch: Vec<i64>,
    /// The network's precision
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
    /// Write the weights to a scratch folder first and load them from there, as a model's are
    #[arg(long)]
    from_disk: bool,
    /// Instead, compare the small UNets of tests/fixtures with diffusers' results on this device
    #[arg(long, value_name = "FIXTURES")]
    check: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Network {
    Unet,
    VaeEncode,
    VaeDecode,
    #[value(name = "text_encoder")]
    TextEncoder,
    #[value(name = "text_encoder_2")]
    TextEncoder2,
}

fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(!arguments.from_disk || arguments.device == "cpu", "--from-disk counts the memory of a CPU");
    // With --from-disk not yet: see `build`.
    let device = if arguments.from_disk { Device::Cpu } else { nn::parse_device(&arguments.device)? };
    tch::set_num_threads(arguments.threads);
    let _guard = tch::no_grad_guard();
    match &arguments.check {
        Some(fixtures) => check(fixtures, arguments.dtype.kind(), device),
        None => measure(&arguments, device),
    }
}

/// One forward with a batch of that size.
type Forward = Box<dyn Fn(i64) -> Box<dyn Fn() -> Tensor>>;

fn measure(arguments: &Arguments, device: Device) -> Result<()> {
    let kind = arguments.dtype.kind();
    let (forward, load_seconds) = load(arguments, kind, device)?;
    for &batch in &arguments.batch {
        let forward = forward(batch);
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
                "network": name_of(arguments.network),
                "config": arguments.config,
                "size": arguments.size.to_string(),
                "batch": batch,
                "dtype": name_of(arguments.dtype),
                "device": arguments.device,
                "threads": arguments.threads,
                "load_seconds": load_seconds,
                "seconds": seconds,
                "peak_bytes": peak_bytes,
            })
        );
    }
    Ok(())
}

/// The network, ready for batches, and the seconds that its weights took to load.
fn load(arguments: &Arguments, kind: Kind, device: Device) -> Result<(Forward, f64)> {
    let text = std::fs::read_to_string(&arguments.config).with_context(|| arguments.config.display().to_string())?;
    let wrong = || arguments.config.display().to_string();
    let Size { width, height } = arguments.size;
    let normal = move |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_device(device).to_kind(kind);
    let ids = move |batch: i64| Tensor::randint(1000, [batch, TOKENS], (Kind::Int64, Device::Cpu)).to_device(device);
    Ok(match arguments.network {
        Network::Unet => {
            let config = UNetConfig::from_json(&text).with_context(wrong)?;
            let (unet, seconds) = build(arguments, kind, device, |scope| UNet::new(scope, &config))?;
            let unet = std::rc::Rc::new(unet);
            let forward = move |batch: i64| -> Box<dyn Fn() -> Tensor> {
                let sample = normal(&[batch, config.in_channels, height / FACTOR, width / FACTOR]);
                let t = Tensor::full([batch], 500.0, (Kind::Float, device));
                let context = normal(&[batch, TOKENS, config.context_dim()]);
                let pooled = normal(&[batch, config.addition_input_dim - TIME_IDS * config.addition_time_embed_dim]);
                let time_ids = Tensor::full([batch, TIME_IDS], 1024.0, (Kind::Float, device));
                let unet = unet.clone();
                Box::new(move || unet.forward(&sample, &t, &context, &pooled, &time_ids))
            };
            (Box::new(forward), seconds)
        }
        Network::VaeEncode | Network::VaeDecode => {
            let config = VaeConfig::from_json(&text).with_context(wrong)?;
            let (vae, seconds) = build(arguments, kind, device, |scope| AutoencoderKl::new(scope, &config))?;
            let (vae, encodes) = (std::rc::Rc::new(vae), matches!(arguments.network, Network::VaeEncode));
            let forward = move |batch: i64| -> Box<dyn Fn() -> Tensor> {
                let (vae, factor) = (vae.clone(), config.factor());
                if encodes {
                    let images = normal(&[batch, config.in_channels, height, width]);
                    Box::new(move || vae.encode(&images).mean)
                } else {
                    let latents = normal(&[batch, config.latent_channels, height / factor, width / factor]);
                    Box::new(move || vae.decode(&latents))
                }
            };
            (Box::new(forward), seconds)
        }
        Network::TextEncoder => {
            let config = ClipTextConfig::from_json(&text).with_context(wrong)?;
            let (model, seconds) = build(arguments, kind, device, |scope| ClipTextModel::new(scope, &config))?;
            let model = std::rc::Rc::new(model);
            let forward = move |batch: i64| -> Box<dyn Fn() -> Tensor> {
                let (model, ids) = (model.clone(), ids(batch));
                Box::new(move || model.forward(&ids).last)
            };
            (Box::new(forward), seconds)
        }
        Network::TextEncoder2 => {
            let config = ClipTextConfig::from_json(&text).with_context(wrong)?;
            let network = |scope: &Scope| ClipTextModelWithProjection::new(scope, &config);
            let (model, seconds) = build(arguments, kind, device, network)?;
            let model = std::rc::Rc::new(model);
            let forward = move |batch: i64| -> Box<dyn Fn() -> Tensor> {
                let (model, ids) = (model.clone(), ids(batch));
                Box::new(move || model.forward(&ids).1)
            };
            (Box::new(forward), seconds)
        }
    })
}

/// Builds a network with random weights of a size that keeps activations finite, and times the loading where it is
/// from a disk. The count of memory begins with the loading, and so does the allocator's thrift: what drawing and
/// writing the weights left behind is no part of it.
fn build<T>(arguments: &Arguments, kind: Kind, device: Device, network: impl Fn(&Scope) -> T) -> Result<(T, f64)> {
    let (_, shapes) = Weights::shapes_only().build(&network)?;
    let tensors = shapes.iter().map(|(name, shape)| {
        let shape = shape.size();
        let inputs = shape.iter().skip(1).product::<i64>().max(1) as f64;
        // On a GPU straight where they are wanted: billions of numbers take minutes on a CPU.
        let at = if arguments.from_disk { Device::Cpu } else { device };
        (name.to_owned(), Tensor::randn(&shape, (kind, at)) / inputs.sqrt())
    });
    if !arguments.from_disk {
        let weights = Weights::from_tensors("random", tensors.collect()).to(kind, device);
        let began = Instant::now();
        let (net, _) = weights.build(&network)?;
        return Ok((net, began.elapsed().as_secs_f64()));
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("model.safetensors");
    {
        let tensors: Vec<(String, Tensor)> = tensors.collect();
        nn::save(&file, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])?;
    }
    nn::parse_device(&arguments.device)?;
    std::fs::write("/proc/self/clear_refs", "5").context("the kernel's count of memory")?;
    let began = Instant::now();
    let (net, _) = Weights::open(&file)?.to(kind, device).build(&network)?;
    Ok((net, began.elapsed().as_secs_f64()))
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
