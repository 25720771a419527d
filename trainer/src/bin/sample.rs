//! Draws images from prompts.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use encode::{Dtype, ModelManifest};
use indicatif::{ProgressBar, ProgressStyle};
use tch::Tensor;
use trainer::distill::distilled_steps;
use trainer::draw::{sample_noise, step_noise};
use trainer::sample::{
    LoraChoice, MicroCondition, ModelChoice, Parameters, Pipeline, Size, Start, latents_to_npy, noise_from_npy,
    read_image, write_png,
};
use trainer::schedulers::{PredictionType, Sampler, TimestepSpacing};
use trainer::{Error, Result};

/// Draws images from prompts with a model in diffusers' layout.
///
/// Image i of a prompt has the seed SEED + i, and is the same whatever else is drawn in the same run. Exit codes: 0 done,
/// 1 failed, 2 the input is wrong.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The model: a folder (a base model or the export of a stage), or hf:OWNER/NAME[@REVISION][:fp16], which is fetched
    #[arg(long, value_name = "DIR", required_unless_present = "manifest")]
    model: Option<String>,
    /// In place of --model: the base model that the model.toml in this folder names
    #[arg(long, value_name = "DIR", conflicts_with = "model", requires = "run")]
    manifest: Option<PathBuf>,
    /// The folder of the run, where model.toml says {run}
    #[arg(long, value_name = "DIR", requires = "manifest")]
    run: Option<PathBuf>,
    /// What to draw; may be repeated
    #[arg(long, value_name = "TEXT", required = true)]
    prompt: Vec<String>,
    /// What to keep away from; needs guidance
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// The number of steps [default: for the export of a stage, what it was distilled to]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Weight of classifier-free guidance, u + w (c - u); up to 1 there is none, as distilled models want it
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    guidance_scale: f64,
    /// Where the noise comes from
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Images for each prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    images: usize,
    /// Images drawn at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch_size: usize,
    /// The picture, a .png; of several, -0, -1, ... are added to the name
    #[arg(long, value_name = "IMAGE")]
    out: PathBuf,
    /// Size of the picture, both sides multiples of 8 [default: the model's own]
    #[arg(long, value_name = "WxH")]
    size: Option<Size>,
    /// The size before cropping that the model is told [default: the size of the picture]
    #[arg(long, value_name = "WxH")]
    original_size: Option<Size>,
    /// A LoRA file in kohya's or diffusers' names, and its strength; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = parse_lora)]
    lora: Vec<LoraChoice>,
    /// Other weights for the model: a bare UNet or a single-file checkpoint
    #[arg(long, value_name = "FILE.safetensors")]
    weights: Option<PathBuf>,
    /// Another sampler than the model's
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// Another spacing of timesteps than the model's
    #[arg(long, value_name = "NAME")]
    timestep_spacing: Option<TimestepSpacing>,
    /// Another meaning of the model's output than its scheduler says
    #[arg(long, value_name = "NAME")]
    prediction_type: Option<PredictionType>,
    /// Unit noise to start from instead of the seed's, [images, channels, h, w]
    #[arg(long, value_name = "FILE.npy")]
    noise: Option<PathBuf>,
    /// Also write the latents before decoding
    #[arg(long, value_name = "FILE.npy")]
    latents_out: Option<PathBuf>,
    /// A picture to start from (SDEdit)
    #[arg(long, value_name = "IMAGE")]
    init: Option<PathBuf>,
    /// How much of that picture is redrawn, 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.5, requires = "init")]
    strength: f64,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// The networks' precision [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long)]
    dtype: Option<Dtype>,
}

fn main() -> ExitCode {
    console::start_log("info");
    let arguments = Arguments::parse();
    console::run("sample", || run(&arguments), Error::exit_code)
}

fn run(arguments: &Arguments) -> Result<()> {
    let device = nn::parse_device(&arguments.device)?;
    let default = if device.is_cuda() { Dtype::Bf16 } else { Dtype::F32 };
    let kind = arguments.dtype.unwrap_or(default).kind();
    check(arguments)?;
    let folder = folder_of(arguments)?;
    let undistilled = || Error::Argument(format!("no stage has made {}: say --steps", folder.display()));
    let count = match arguments.steps {
        Some(count) => count,
        None => distilled_steps(&folder)?.ok_or_else(undistilled)?,
    };
    let choice = ModelChoice {
        folder: folder.clone(),
        weights: arguments.weights.clone(),
        loras: arguments.lora.clone(),
        algorithm: arguments.sampler.map(Sampler::algorithm),
        timestep_spacing: arguments.timestep_spacing,
        prediction_type: arguments.prediction_type,
    };
    let pipeline = Pipeline::open(&choice, kind, device)?;
    let native = || Error::Argument("the model's config names no sample_size: say --size".to_owned());
    let size = arguments.size.or_else(|| pipeline.native_size()).ok_or_else(native)?;
    let jobs: Vec<(&str, u64)> = (arguments.prompt.iter())
        .flat_map(|prompt| (0..arguments.images as u64).map(move |i| (prompt.as_str(), arguments.seed.wrapping_add(i))))
        .collect();
    let one = pipeline.latent_shape(1, size)?;
    let given = match &arguments.noise {
        Some(file) => Some(noise_from_npy(file, pipeline.latent_shape(jobs.len(), size)?)?),
        None => None,
    };
    let init = match &arguments.init {
        Some(file) => Some(pipeline.encode(&read_image(file, size)?)),
        None => None,
    };
    let steps = pipeline.steps(count)?;
    let ids = MicroCondition { original: arguments.original_size.unwrap_or(size), target: size };

    let batches = jobs.len().div_ceil(arguments.batch_size);
    let bar = ProgressBar::new((batches * count) as u64).with_style(
        ProgressStyle::with_template("{bar:30} step {pos}/{len}, {per_sec}, {eta} to go").expect("a template"),
    );
    let mut latents = Vec::new();
    for (at, batch) in jobs.chunks(arguments.batch_size).enumerate() {
        let prompts: Vec<&str> = batch.iter().map(|&(prompt, _)| prompt).collect();
        let guidance =
            pipeline.embed(&prompts, arguments.negative_prompt.as_deref(), arguments.guidance_scale, &ids)?;
        let draw = |noise: &dyn Fn(u64) -> Tensor| {
            let drawn: Vec<Tensor> = batch.iter().map(|&(_, seed)| noise(seed)).collect();
            Tensor::cat(&drawn, 0)
        };
        let noise = match &given {
            Some(given) => given.narrow(0, (at * arguments.batch_size) as i64, batch.len() as i64),
            None => draw(&|seed| sample_noise(seed, &one)),
        };
        let start = match &init {
            Some(clean) => {
                Start::Latents { clean: clean.repeat([batch.len() as i64, 1, 1, 1]), strength: arguments.strength }
            }
            None => Start::Noise,
        };
        let fresh = |step: usize| draw(&|seed| step_noise(seed, step, &one));
        let drawn = pipeline.denoise(&steps, &guidance, &start, &noise, fresh, |_| bar.inc(1))?;
        let images = pipeline.decode(&drawn).to_device(tch::Device::Cpu);
        for (i, &(prompt, seed)) in batch.iter().enumerate() {
            let parameters = Parameters {
                prompt: prompt.to_owned(),
                negative_prompt: arguments.negative_prompt.clone(),
                steps: count,
                guidance_scale: arguments.guidance_scale,
                seed: given.is_none().then_some(seed),
                size,
                sampler: pipeline.sampler(),
                model: arguments.model.clone().unwrap_or_else(|| folder.display().to_string()),
                loras: arguments.lora.clone(),
                strength: init.is_some().then_some(arguments.strength),
            };
            let path = numbered(&arguments.out, at * arguments.batch_size + i, jobs.len());
            write_png(&path, &images.get(i as i64), &parameters)?;
            bar.suspend(|| tracing::info!("{}", path.display()));
        }
        latents.push(drawn);
    }
    bar.finish_and_clear();
    if let Some(file) = &arguments.latents_out {
        latents_to_npy(file, &Tensor::cat(&latents, 0))?;
    }
    Ok(())
}

/// The folder of the model, fetched where it is named by `hf:`.
fn folder_of(arguments: &Arguments) -> Result<PathBuf> {
    Ok(match (&arguments.model, &arguments.manifest, &arguments.run) {
        (Some(model), ..) => encode::model_folder(model, Path::new(""))?,
        (None, Some(manifest), Some(run)) => ModelManifest::read(manifest, run)?.base,
        _ => unreachable!("clap asks for --model or for --manifest and --run"),
    })
}

/// What can be refused before anything is loaded.
fn check(arguments: &Arguments) -> Result<()> {
    let refuse = |reason: &str| Err(Error::Argument(reason.to_owned()));
    if arguments.out.extension().is_none_or(|extension| extension != "png") {
        return refuse("--out has to name a .png");
    }
    if arguments.steps == Some(0) || arguments.images == 0 || arguments.batch_size == 0 {
        return refuse("--steps, --images and --batch-size are at least 1");
    }
    if !arguments.guidance_scale.is_finite() || arguments.guidance_scale < 0.0 {
        return refuse("--guidance-scale is a number from 0 up");
    }
    if arguments.negative_prompt.is_some() && arguments.guidance_scale <= 1.0 {
        return refuse("--negative-prompt has no effect without a --guidance-scale above 1");
    }
    if !(0.0..=1.0).contains(&arguments.strength) {
        return refuse("--strength is a number from 0 to 1");
    }
    Ok(())
}

/// `picture.png` alone, or `picture-3.png` among several.
fn numbered(out: &Path, at: usize, of: usize) -> PathBuf {
    if of == 1 {
        return out.to_owned();
    }
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{stem}-{at}.png"))
}

fn parse_lora(text: &str) -> std::result::Result<LoraChoice, String> {
    if let Some((file, scale)) = text.rsplit_once(':')
        && let Ok(strength) = scale.parse::<f64>()
    {
        if !strength.is_finite() {
            return Err(format!("{scale} is no strength"));
        }
        return Ok(LoraChoice { file: file.into(), strength });
    }
    Ok(LoraChoice { file: text.into(), strength: 1.0 })
}
