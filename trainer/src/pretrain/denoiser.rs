//! The UNet's phase, with the text encoders: eps-prediction on SDXL's noise schedule with captions dropped for
//! classifier-free guidance.

use std::path::Path;

use demo_world::scene::{Scene, item_rng};
use nn::Params;
use rand::Rng;
use tch::{Device, Kind, Tensor};

use super::desk::Desk;
use super::latents::{Pool, pool_scene};
use super::recipe::PretrainRecipe;
use super::text::{TextEncoders, captions};
use super::{Start, Stream, average, joined, reseed};
use crate::optimizer::{Optimizer, StateDevice};
use crate::schedulers::{Scheduler, SchedulerConfig};
use crate::unet::{UNet, UNetConfig};
use crate::{Error, Result};

/// The name of the phase and of its files.
pub const PHASE: &str = "unet";

/// The sides of the pictures that the world serves; a latent of one is conditioned on its size before the resize.
const ORIGINAL_SIDES: &[u32] = &[1024, 1152, 1280, 1536];

/// The UNet with the text encoders and their optimizer.
pub struct Denoiser<'a> {
    recipe: &'a PretrainRecipe,
    unet: UNet,
    text: TextEncoders,
    /// `sqrt(alpha_cumprod)` and `sqrt(1 - alpha_cumprod)` of each timestep.
    levels: [Tensor; 2],
    params: Params,
    trained: Params,
    optimizer: Optimizer,
}

impl<'a> Denoiser<'a> {
    /// A UNet of the configuration in a model's folder.
    pub fn new(
        recipe: &'a PretrainRecipe,
        model: &Path,
        text: TextEncoders,
        start: &Start,
        desk: &Desk,
    ) -> Result<Self> {
        let config = read(&model.join("unet/config.json"), UNetConfig::from_json)?;
        let scheduler =
            Scheduler::new(read(&model.join("scheduler/scheduler_config.json"), SchedulerConfig::from_json)?);
        let weights = start.weights("unet", "diffusion_pytorch_model", recipe.seed)?;
        let (unet, params) = weights.build(|scope| UNet::new(scope, &config))?;
        let trained = joined([("unet", &params), ("text_encoder", &text.params), ("text_encoder_2", &text.params_2)]);
        let optimizer = Optimizer::new(trained.iter(), StateDevice::Same, true)?;
        if let Start::Exported { exported, .. } = start {
            desk.adopt(PHASE, &optimizer, exported.unet_updates)?;
        }
        let noise = scheduler.noise();
        let level = |part: fn(f64) -> f64| {
            let levels: Vec<f32> =
                (0..noise.num_train_timesteps()).map(|t| part(noise.alpha_cumprod(t)).sqrt() as f32).collect();
            Tensor::from_slice(&levels)
        };
        Ok(Self { recipe, unet, text, levels: [level(|a| a), level(|a| 1.0 - a)], params, trained, optimizer })
    }

    /// Trains to the end on latents of the pool.
    pub fn train(&mut self, desk: &Desk, pool: &Pool) -> Result<()> {
        let Self { recipe, unet, text, levels, optimizer, .. } = self;
        let batch = recipe.unet.batch as i64;
        let timesteps = levels[0].size()[0];
        desk.train(PHASE, &recipe.unet.updates, optimizer, |step| {
            let draw = Draw::new(recipe, step);
            let latents = pool.0.index_select(0, &Tensor::from_slice(&draw.items));
            reseed(recipe.seed, Stream::UNet, step);
            let noise = latents.randn_like();
            // One timestep from each of as many equal parts of the schedule: less noise in the gradient than from
            // independent draws.
            let part =
                Tensor::arange(batch, (Kind::Float, Device::Cpu)) + Tensor::rand([batch], (Kind::Float, Device::Cpu));
            let timestep = (part * (timesteps as f64 / batch as f64)).clamp_max(timesteps - 1).to_kind(Kind::Int64);
            let [signal, noisiness] =
                [&levels[0], &levels[1]].map(|levels| levels.index_select(0, &timestep).view([-1, 1, 1, 1]));

            let embeddings = text.embed(&captions(&draw.scenes, recipe.seed, step))?;
            // SDXL's null prompt is all zeros.
            let kept = Tensor::from_slice(&draw.kept);
            let context = embeddings.context * kept.view([-1, 1, 1]);
            let pooled = embeddings.pooled * kept.view([-1, 1]);

            let noisy = latents * signal + &noise * noisiness;
            let predicted = unet.forward(&noisy, &timestep, &context, &pooled, &draw.time_ids);
            Ok(predicted.mse_loss(&noise, tch::Reduction::Mean))
        })
    }

    /// The weights as they are exported, means over the updates: UNet, text encoders.
    pub fn finish(mut self, desk: &Desk) -> Result<(Params, TextEncoders, u64)> {
        let updates = desk.restore(PHASE, &mut self.optimizer)?;
        average(&self.trained, &self.optimizer);
        Ok((self.params, self.text, updates))
    }
}

/// What chance decides for one update, but for the noise.
struct Draw {
    items: Vec<i64>,
    scenes: Vec<Scene>,
    /// 1 for a caption that is kept, 0 for one that becomes the null prompt.
    kept: Vec<f32>,
    /// `[B, 6]`: original height and width, crop top and left, target height and width.
    time_ids: Tensor,
}

impl Draw {
    fn new(recipe: &PretrainRecipe, step: u64) -> Self {
        let rng = &mut item_rng(recipe.seed, Stream::UNet as u64, step);
        let items: Vec<i64> =
            (0..recipe.unet.batch).map(|_| rng.random_range(0..recipe.latents.count) as i64).collect();
        let scenes = items.iter().map(|&item| pool_scene(recipe.seed, item as u64)).collect();
        let kept = (0..items.len()).map(|_| f32::from(!rng.random_bool(recipe.unet.null_prompts))).collect();
        let ids: Vec<f32> = (0..items.len()).flat_map(|_| time_ids(recipe.resolution, rng)).collect();
        Self { items, scenes, kept, time_ids: Tensor::from_slice(&ids).view([-1, 6]) }
    }
}

/// Half of the time those that a sampler gives, else those of a larger picture that was resized and cropped.
fn time_ids(side: u32, rng: &mut impl Rng) -> [f32; 6] {
    let target = side as f32;
    if rng.random_bool(0.5) {
        return [target, target, 0.0, 0.0, target, target];
    }
    let mut original = || ORIGINAL_SIDES[rng.random_range(0..ORIGINAL_SIDES.len())] as f32;
    let (height, width) = (original(), original());
    let scale = target / height.min(width);
    let crop = |length: f32| ((length * scale - target) / 2.0).floor();
    [height, width, crop(height), crop(width), target, target]
}

fn read<T>(path: &Path, parse: impl FnOnce(&str) -> std::result::Result<T, nn::settings::SettingsError>) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    parse(&text).map_err(|error| Error::Document { path: path.to_owned(), reason: error.to_string() })
}
