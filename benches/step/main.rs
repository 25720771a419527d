//! Times whole iterations of distillation with random weights: the discriminator's half and the student's.
//!
//! ```text
//! cargo bench --workspace --bench step -- --config manifests/demo/model/unet --size 128x128 --trains lora
//! cargo bench --workspace --bench step -- --config benches/unet/full --size 1024x1024 --trains full --micro-batch 4 \
//!     --dtype bf16 --recompute --device cuda
//! ```
//! One iteration is one micro-batch here: four steps of the teacher's schedule to two of the student's, the conditional
//! discriminator or, with `--objective mse`, the teacher's point itself. Prints one JSON object; eager.py beside it does
//! the same with PyTorch and diffusers, and benches/run.sh runs both in turn. What `distill --plan` says of the same
//! iteration stands beside what was measured.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use encode::VaeConfig;
use serde_json::json;
use tch::{Cuda, Device};
use torch_shim::Meter;
use trainer::data::SampleShape;
use trainer::distill::{Rehearsal, Shapes, plan, product_rate};
use trainer::flow::Flow;
use trainer::optimizer::StateDevice;
use trainer::recipe::Stage;
use trainer::sample::Size;
use trainer::unet::UNetConfig;

/// Times whole iterations of distillation with random weights.
#[derive(Parser)]
struct Arguments {
    /// The folder with the UNet's config.json
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo/model/unet"))]
    config: PathBuf,
    /// Size of the image, eight times that of the latent
    #[arg(long, value_name = "WxH", default_value = "128x128")]
    size: Size,
    /// What is trained of the student
    #[arg(long, value_enum, default_value = "lora")]
    trains: Trains,
    /// What it is measured against; eager.py knows the first alone
    #[arg(long, value_enum, default_value = "adversarial_conditional")]
    objective: Objective,
    /// Images in a pass
    #[arg(long, default_value_t = 4)]
    micro_batch: usize,
    /// Precision of weights and activations
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Recompute activations in backward passes
    #[arg(long)]
    recompute: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Torch's threads
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Iterations that are timed
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Iterations before them
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Trains {
    Lora,
    Full,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Objective {
    AdversarialConditional,
    Mse,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Arguments {
    fn stage(&self, flow: &Flow) -> Result<Stage> {
        let text = format!(
            "teacher = {{ model = 'base', steps = 4 }}\nstudent_steps = 2\nbatch_size = {batch}\n\
             micro_batch_size = {batch}\nseed = 1\nprecision = '{dtype}'\ncheckpoint_activations = {recompute}\n{lora}\n\
             record = {{ checkpoint_every = 0, keep_checkpoints = 1, samples_every = 0, samples = 1, histograms_every = 0 }}\n\
             guard = {{ max_skipped_in_a_row = 0, collapse_loss = 0.0, collapse_patience = 1 }}\n\
             [[phase]]\nname = 'step'\nobjective = '{objective}'\ntrains = '{trains}'\niterations = 1\n\
             learning_rate = 1e-6\nbetas = [0.0, 0.99]\n",
            batch = self.micro_batch,
            dtype = name(self.dtype),
            recompute = self.recompute,
            objective = name(self.objective),
            trains = name(self.trains),
            lora = match self.trains {
                Trains::Lora => "lora = { rank = 64, alpha = 8.0 }",
                Trains::Full => "",
            },
        );
        Ok(Stage::parse("4to2", &text, flow)?)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = nn::parse_device(&arguments.device)?;
    tch::set_num_threads(arguments.threads);
    let file = arguments.config.join("config.json");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let unet = UNetConfig::from_json(&text).with_context(|| file.display().to_string())?;
    let flow = Flow::sdxl();
    let mut sample = SampleShape::of(&unet, &VaeConfig::default(), 1);
    // `--size` need not be a square.
    sample.latent[1..].copy_from_slice(&[arguments.size.height / 8, arguments.size.width / 8]);
    let shapes = Shapes { unet, vae: None, sample, tokens: 77 };
    let stage = arguments.stage(&flow)?;
    let planned = plan(&stage, &flow, &shapes)?.phases.remove(0);
    let rate = product_rate(stage.precision.kind(), device);

    let synchronize = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    let meter = Meter::start();
    let began = Instant::now();
    let mut iterations = Rehearsal::new(&stage, &stage.phases[0], &flow, &shapes, device, StateDevice::Same)?;
    synchronize();
    let load_seconds = began.elapsed().as_secs_f64();
    match device {
        Device::Cuda(index) => torch_shim::reset_cuda_peak(index)?,
        _ => meter.restart(),
    }
    let mut seconds = Vec::new();
    for at in 0..arguments.warmup + arguments.repeat {
        synchronize();
        let began = Instant::now();
        iterations.iterate()?;
        synchronize();
        if at >= arguments.warmup {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    let (peak_bytes, reserved_bytes) = match device {
        Device::Cuda(index) => {
            let memory = torch_shim::cuda_memory(index)?;
            (memory.peak_allocated, Some(memory.peak_reserved))
        }
        _ => (meter.read().peak_bytes, None),
    };
    println!(
        "{}",
        json!({
            "program": "stepdown",
            "config": arguments.config,
            "size": arguments.size.to_string(),
            "trains": name(arguments.trains),
            "objective": name(arguments.objective),
            "micro_batch": arguments.micro_batch,
            "dtype": name(arguments.dtype),
            "recompute": arguments.recompute,
            "device": arguments.device,
            "threads": arguments.threads,
            "load_seconds": load_seconds,
            "seconds": seconds,
            "peak_bytes": peak_bytes,
            "reserved_bytes": reserved_bytes,
            "planned_bytes": planned.peak_bytes,
            "operations": planned.operations,
            "product_rate": rate,
        })
    );
    Ok(())
}
