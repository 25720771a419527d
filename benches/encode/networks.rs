//! Time and memory of one forward of SDXL's VAE and text encoders at full size, with random weights.
//!
//! ```text
//! cargo bench -p encode --bench networks -- NETWORK DTYPE SIDE RUNS [THREADS]
//! ```
//! Without arguments: `vae-encode f32 256 3`. NETWORK is vae-encode, vae-decode, text_encoder or text_encoder_2; SIDE the image's side in pixels (the text encoders
//! take one caption and do not look at it). benches/encode/networks.py measures diffusers and transformers alike.

use std::path::Path;
use std::time::Instant;

use encode::{AutoencoderKl, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, VaeConfig};
use nn::{Params, Scope, Weights};
use tch::{Device, Kind, Tensor};

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.is_empty() {
        arguments = ["vae-encode", "f32", "256", "3"].map(String::from).into();
    }
    let [network, dtype, side, runs, threads @ ..] = &arguments[..] else {
        eprintln!("usage: networks NETWORK DTYPE SIDE RUNS [THREADS]");
        std::process::exit(2);
    };
    if let [threads] = threads {
        tch::set_num_threads(threads.parse().expect("THREADS is a number"));
    }
    let kind = match dtype.as_str() {
        "f32" => Kind::Float,
        "bf16" => Kind::BFloat16,
        other => panic!("DTYPE {other}: expected f32 or bf16"),
    };
    let (side, runs): (i64, u32) = (side.parse().expect("SIDE"), runs.parse().expect("RUNS"));
    let _guard = tch::no_grad_guard();
    let latents = Tensor::ones([1, 4, side / 8, side / 8], (kind, Device::Cpu));
    let images = Tensor::ones([1, 3, side, side], (kind, Device::Cpu));
    let ids = Tensor::full([1, 77], 7, (Kind::Int64, Device::Cpu));
    match network.as_str() {
        "vae-encode" | "vae-decode" => {
            let config: VaeConfig = read("vae/sdxl.config.json");
            let vae = load(kind, |scope| AutoencoderKl::new(scope, &config));
            if network == "vae-encode" {
                measure(runs, || vae.encode(&images).mean);
            } else {
                measure(runs, || vae.decode(&latents));
            }
        }
        "text_encoder" => {
            let config: ClipTextConfig = read("text/sdxl_text_encoder.config.json");
            let model = load(kind, |scope| ClipTextModel::new(scope, &config));
            measure(runs, || model.forward(&ids).last);
        }
        "text_encoder_2" => {
            let config: ClipTextConfig = read("text/sdxl_text_encoder_2.config.json");
            let model = load(kind, |scope| ClipTextModelWithProjection::new(scope, &config));
            measure(runs, || model.forward(&ids).1);
        }
        other => panic!("NETWORK {other}: not known"),
    }
}

fn read<T: serde::de::DeserializeOwned>(config: &str) -> T {
    encode::config::read_json(&Path::new(CONFIGS).join(config)).expect("the fixture is there")
}

/// Draws weights, writes them, and times how long it takes to load them again.
fn load<T>(kind: Kind, network: impl Fn(&Scope) -> T) -> T {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let file = folder.path().join("model.safetensors");
    let fresh = || -> Params { Weights::seeded(0).to(kind, Device::Cpu).build(&network).expect("it is complete").1 };
    fresh().save(&file).expect("it is written");
    reset_peak_memory();
    let start = Instant::now();
    let (net, params) = Weights::open(&file)
        .and_then(|weights| weights.to(kind, Device::Cpu).build(&network))
        .expect("what was written is read");
    println!("loaded {} parameters in {:.2} s", params.count(), start.elapsed().as_secs_f64());
    net
}

fn measure(runs: u32, mut forward: impl FnMut() -> Tensor) {
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            drop(forward());
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!(
        "{} threads: best {:.3} s, median {:.3} s, peak memory {:.2} GiB",
        tch::get_num_threads(),
        seconds[0],
        seconds[seconds.len() / 2],
        peak_memory_gib()
    );
}

/// Lets the kernel count the peak from here on.
fn reset_peak_memory() {
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux counts memory");
}

fn peak_memory_gib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux counts memory");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel reports the peak");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB");
    kib / 1024.0 / 1024.0
}
