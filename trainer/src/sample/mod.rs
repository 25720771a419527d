//! From prompts to images with a model in diffusers' layout.
//!
//! [`Pipeline`] holds the networks of one [`ModelChoice`]; [`Pipeline::embed`] turns prompts into
//! conditions, [`Pipeline::denoise`] noise into latents, [`Pipeline::decode`] latents into pixels.

mod picture;
mod size;

pub use picture::{Parameters, latents_to_npy, noise_from_npy, read_image, write_png};
pub use size::Size;

use std::path::{Path, PathBuf};

use encode::{
    AutoencoderKl, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, TextEncoders, Tokenizers, VaeConfig,
};
use nn::Weights;
use nn::settings::SettingsError;
use tch::{Device, Kind, Tensor};

use crate::condition::{Condition, NullPrompt};
use crate::lora_file::LoraStack;
use crate::schedulers::{Algorithm, PredictionType, Scheduler, SchedulerConfig, Steps, TimestepSpacing};
use crate::single_file::{self, Configurations, Part, SingleFile};
use crate::unet::{UNet, UNetConfig};
use crate::{Error, Result};

/// Everything that makes an image from a prompt.
pub struct Pipeline {
    unet: UNet,
    config: UNetConfig,
    scheduler: Scheduler,
    vae: AutoencoderKl,
    tokenizers: Tokenizers,
    text_encoders: TextEncoders,
    zeros_for_empty_prompt: bool,
    kind: Kind,
    device: Device,
}

/// A model folder and what is to be different from it.
#[derive(Clone, Debug)]
pub struct ModelChoice {
    /// The folder, in diffusers' layout.
    pub folder: PathBuf,
    /// Other weights: a bare UNet, or a single-file checkpoint, whose other networks are used as well if it holds any.
    pub weights: Option<PathBuf>,
    /// LoRA files to apply.
    pub loras: Vec<LoraChoice>,
    /// Another sampler.
    pub algorithm: Option<Algorithm>,
    /// Another spacing of timesteps.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Another meaning of the UNet's output.
    pub prediction_type: Option<PredictionType>,
}

/// A LoRA file and how strongly it is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraChoice {
    /// The file.
    pub file: PathBuf,
    /// 1 is as trained.
    pub strength: f64,
}

/// What a denoising run is steered by.
#[derive(Debug)]
pub struct Guidance {
    /// The prompt.
    pub prompt: Condition,
    /// What is guided away from, and how strongly: u + w (c - u).
    pub away: Option<(Condition, f64)>,
}

/// Where a denoising run starts.
#[derive(Debug)]
pub enum Start {
    /// From pure noise.
    Noise,
    /// From latents that are noised to the level of a later step (SDEdit).
    Latents {
        /// `[B, channels, h, w]`, scaled.
        clean: Tensor,
        /// 1 starts from pure noise, 0 changes nothing.
        strength: f64,
    },
}

impl Pipeline {
    /// Loads a model.
    pub fn open(choice: &ModelChoice, kind: Kind, device: Device) -> Result<Self> {
        let model = choice.folder.as_path();
        if !model.is_dir() {
            return Err(document(model, "is not a folder; a model is a folder in diffusers' layout"));
        }
        let mut scheduler = parse(&model.join("scheduler/scheduler_config.json"), SchedulerConfig::from_json)?;
        scheduler.algorithm = choice.algorithm.unwrap_or(scheduler.algorithm);
        scheduler.timestep_spacing = choice.timestep_spacing.unwrap_or(scheduler.timestep_spacing);
        scheduler.prediction_type = choice.prediction_type.unwrap_or(scheduler.prediction_type);
        let config = parse(&model.join("unet/config.json"), UNetConfig::from_json)?;
        let tokenizers = Tokenizers::open(model)?;
        let vae_config = VaeConfig::read(&model.join("vae"))?;
        vae_config.check_rgb().map_err(|error| document(&model.join("vae/config.json"), error.to_string()))?;
        for (key, channels) in [("in_channels", config.in_channels), ("out_channels", config.out_channels)] {
            if channels != vae_config.latent_channels {
                let reason = format!("`{key}`: {channels}, the VAE's latents have {}", vae_config.latent_channels);
                return Err(document(&model.join("unet/config.json"), reason));
            }
        }
        // The published VAE overflows in FP16, and its config says so.
        let vae_kind = if kind == Kind::Half && vae_config.force_upcast { Kind::Float } else { kind };

        let (mut single, mut bare) = (None, None);
        if let Some(file) = &choice.weights {
            if single_file::is_single_file(file)? {
                let configurations = Configurations {
                    unet: config.clone(),
                    vae: vae_config.clone(),
                    text_encoder: ClipTextConfig::read(&model.join("text_encoder"))?,
                    text_encoder_2: ClipTextConfig::read(&model.join("text_encoder_2"))?,
                };
                single = Some((SingleFile::open(file, &configurations)?, configurations));
            } else {
                bare = Some(file);
            }
        }
        let from = |part| single.as_ref().filter(|(file, _)| file.holds(part));

        let unet_weights = match (from(Part::UNet), bare) {
            (Some((file, _)), _) => file.weights(Part::UNet, kind, device)?,
            (None, Some(file)) => Weights::open(file)?.to(kind, device),
            (None, None) => Weights::open_folder(&model.join("unet"), "diffusion_pytorch_model")?.to(kind, device),
        };
        let unet = if choice.loras.is_empty() {
            unet_weights.build(|scope| UNet::new(scope, &config))?.0
        } else {
            let mut stack = LoraStack::default();
            for lora in &choice.loras {
                stack.add(&lora.file, lora.strength, &config)?;
            }
            unet_weights.build_adapted(stack.into_adapters(), |scope| UNet::new(scope, &config))?.net
        };
        let mut vae = match from(Part::Vae) {
            Some((file, _)) => {
                let weights = file.weights(Part::Vae, vae_kind, device)?;
                weights.build(|scope| AutoencoderKl::new(scope, &vae_config))?.0
            }
            None => AutoencoderKl::open(&model.join("vae"), vae_kind, device)?,
        };
        // One image at a time: the decoder needs more memory than the UNet, and gains nothing from a batch.
        vae.memory.slicing = true;
        let first = match from(Part::TextEncoder) {
            Some((file, configurations)) => {
                let weights = file.weights(Part::TextEncoder, kind, device)?;
                weights.build(|scope| ClipTextModel::new(scope, &configurations.text_encoder))?.0
            }
            None => ClipTextModel::open(&model.join("text_encoder"), kind, device)?,
        };
        let second = match from(Part::TextEncoder2) {
            Some((file, configurations)) => {
                let weights = file.weights(Part::TextEncoder2, kind, device)?;
                weights.build(|scope| ClipTextModelWithProjection::new(scope, &configurations.text_encoder_2))?.0
            }
            None => ClipTextModelWithProjection::open(&model.join("text_encoder_2"), kind, device)?,
        };
        Ok(Self {
            unet,
            scheduler: Scheduler::new(scheduler),
            vae,
            tokenizers,
            text_encoders: TextEncoders::new(first, second, device),
            zeros_for_empty_prompt: encode::prompt::zeros_for_empty_prompt(model)?,
            config,
            kind,
            device,
        })
    }

    /// The image size that the model was made for, if its config says.
    pub fn native_size(&self) -> Option<Size> {
        let side = self.config.sample_size? * self.vae.config().factor();
        Some(Size { width: side, height: side })
    }

    /// `[batch, channels, h, w]` of latents for images of a size.
    pub fn latent_shape(&self, batch: usize, size: Size) -> Result<[i64; 4]> {
        let factor = self.vae.config().factor();
        if size.width % factor != 0 || size.height % factor != 0 {
            return Err(Error::Argument(format!("the size {size} is not a multiple of {factor} on both sides")));
        }
        Ok([batch as i64, self.config.in_channels, size.height / factor, size.width / factor])
    }

    /// The sampler's name, for people.
    pub fn sampler(&self) -> String {
        let config = self.scheduler.config();
        format!("{} {}", config.algorithm, config.timestep_spacing)
    }

    /// The steps of a run in the model's own schedule.
    pub fn steps(&self, count: usize) -> Result<Steps> {
        self.scheduler.steps(count).map_err(|error| Error::Argument(error.to_string()))
    }

    /// Conditions for a batch of prompts. `negative` and a `scale` above 1 make guidance; without a negative prompt it
    /// is guided away from the model's null prompt.
    pub fn embed(
        &self,
        prompts: &[&str],
        negative: Option<&str>,
        scale: f64,
        ids: &MicroCondition,
    ) -> Result<Guidance> {
        let prompt = self.condition(prompts, ids)?;
        let away = match (scale > 1.0, negative) {
            (false, _) => None,
            (true, None) if self.zeros_for_empty_prompt => Some((prompt.null(&NullPrompt::Zeros), scale)),
            (true, negative) => Some((self.condition(&vec![negative.unwrap_or(""); prompts.len()], ids)?, scale)),
        };
        Ok(Guidance { prompt, away })
    }

    fn condition(&self, prompts: &[&str], ids: &MicroCondition) -> Result<Condition> {
        let captions =
            prompts.iter().map(|prompt| self.tokenizers.encode(prompt)).collect::<encode::Result<Vec<_>>>()?;
        for (prompt, _) in prompts.iter().zip(&captions).filter(|(_, caption)| caption.truncated()) {
            tracing::warn!("the end of the prompt is lost, it is too long: {prompt}");
        }
        let _guard = tch::no_grad_guard();
        let embeddings = self.text_encoders.encode(&captions);
        let (width, fits) = (embeddings.prompt_embeds.size()[2], self.config.context_dim());
        if width != fits {
            let reason = format!("text states of width {width} do not fit a UNet with cross_attention_dim {fits}");
            return Err(Error::Argument(reason));
        }
        let pooled = embeddings.pooled_prompt_embeds.size()[1];
        if self.config.time_ids_for(pooled) != Some(MicroCondition::LENGTH) {
            let fits = self.config.addition_input_dim - MicroCondition::LENGTH * self.config.addition_time_embed_dim;
            let reason = format!("pooled text of width {pooled} and 6 time ids do not fit a UNet made for {fits}");
            return Err(Error::Argument(reason));
        }
        Ok(Condition {
            prompt_embeds: embeddings.prompt_embeds,
            pooled: embeddings.pooled_prompt_embeds,
            time_ids: ids.to_tensor(prompts.len() as i64).to_device(self.device),
        })
    }

    /// Runs the steps from noise to latents. `noise` is a unit normal draw for the start; `fresh(i)` gives another for
    /// each step of a stochastic sampler; `each_step(done)` is told of progress.
    pub fn denoise(
        &self,
        steps: &Steps,
        guidance: &Guidance,
        start: &Start,
        noise: &Tensor,
        fresh: impl Fn(usize) -> Tensor,
        mut each_step: impl FnMut(usize),
    ) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let noise = noise.to_device(self.device).to_kind(Kind::Float);
        let (first, mut latents) = match start {
            Start::Noise => (0, noise * steps.init_noise_scale()),
            Start::Latents { clean, strength } => {
                let first = steps.start_for_strength(*strength).ok_or_else(|| {
                    let count = steps.timesteps().len();
                    Error::Argument(format!("a strength of {strength} leaves none of {count} steps to do"))
                })?;
                (first, steps.add_noise(first, &clean.to_kind(Kind::Float), &noise))
            }
        };
        for i in first..steps.timesteps().len() {
            let prediction = self.predict(&steps.model_input(i, &latents), steps.timesteps()[i], guidance);
            latents = steps.step(i, &latents, &prediction, || fresh(i).to_device(self.device));
            each_step(i + 1 - first);
        }
        Ok(latents)
    }

    /// The model's prediction, guided, in FP32.
    fn predict(&self, x: &Tensor, timestep: f64, guidance: &Guidance) -> Tensor {
        let forward = |x: &Tensor, condition: &Condition| {
            let batch = x.size()[0];
            let t = Tensor::full([batch], timestep, (Kind::Float, self.device));
            let x = x.to_kind(self.kind);
            self.unet
                .forward(&x, &t, &condition.prompt_embeds, &condition.pooled, &condition.time_ids)
                .to_kind(Kind::Float)
        };
        match &guidance.away {
            None => forward(x, &guidance.prompt),
            Some((away, scale)) => {
                let both = forward(&Tensor::cat(&[x, x], 0), &away.and(&guidance.prompt));
                let (u, c) = (both.narrow(0, 0, x.size()[0]), both.narrow(0, x.size()[0], x.size()[0]));
                &u + (c - &u) * *scale
            }
        }
    }

    /// Latents to pixels, `[B, 3, H, W]` in about [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let _guard = tch::no_grad_guard();
        self.vae.decode(&self.vae.unscale(latents).to_kind(self.vae.kind())).to_kind(Kind::Float)
    }

    /// Pixels in [-1, 1] to latents: the mean of the autoencoder's posterior.
    pub fn encode(&self, pixels: &Tensor) -> Tensor {
        let _guard = tch::no_grad_guard();
        let posterior = self.vae.encode(&pixels.to_device(self.device).to_kind(self.vae.kind()));
        self.vae.scale(&posterior.mean.to_kind(Kind::Float))
    }
}

/// SDXL's micro-conditioning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroCondition {
    /// The size of the picture that the model is to believe in, before its crop.
    pub original: Size,
    /// The size that is drawn.
    pub target: Size,
}

impl MicroCondition {
    const LENGTH: i64 = 6;

    fn to_tensor(self, batch: i64) -> Tensor {
        let Self { original, target } = self;
        let ids = [original.height, original.width, 0, 0, target.height, target.width].map(|id| id as f32);
        Tensor::from_slice(&ids).unsqueeze(0).repeat([batch, 1])
    }
}

fn document(path: &Path, reason: impl Into<String>) -> Error {
    Error::Document { path: path.to_owned(), reason: reason.into() }
}

/// Reads a configuration. A missing file of a model is the user's to put right, like a wrong one.
fn parse<T>(path: &Path, from_json: fn(&str) -> std::result::Result<T, SettingsError>) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|error| document(path, error.to_string()))?;
    from_json(&text).map_err(|error| document(path, error.to_string()))
}
