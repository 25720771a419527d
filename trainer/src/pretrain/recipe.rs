//! `pretrain.toml`: as written and as validated.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the demo's base model is made. Every key is required: a recipe is a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRecipe {
    /// The folder with the networks' configurations and tokenizers, relative to the recipe; the weights go there.
    pub model: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// The side of the pictures in pixels.
    pub resolution: u32,
    /// Minutes between checkpoints.
    pub checkpoint_minutes: f64,
    /// The probe that judges what is drawn.
    pub probe: ProbeRecipe,
    /// The autoencoder.
    pub vae: VaeRecipe,
    /// The autoencoder's decoder, once more by itself.
    pub decoder: DecoderRecipe,
    /// What the UNet learns from.
    pub latents: LatentsRecipe,
    /// The text encoders by themselves.
    pub text: TextRecipe,
    /// The UNet, with the text encoders.
    pub unet: UNetRecipe,
}

/// How one phase moves its weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Updates {
    /// How many there are.
    pub steps: u64,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// Updates over which the learning rate rises from zero.
    pub warmup_steps: u64,
    /// Updates at the end over which it falls to zero.
    pub cooldown_steps: u64,
    /// The decay of the running mean of the weights that is exported.
    pub ema_decay: f64,
}

/// The phase of the probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecipe {
    /// The file of its weights, relative to the recipe.
    pub file: String,
    /// Pictures in one update.
    pub batch: usize,
    /// Weights' updates.
    pub updates: Updates,
}

/// The phase of the autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeRecipe {
    /// Weights' updates.
    pub updates: Updates,
    /// Windows in one update.
    pub windows: usize,
    /// The side of a window in pixels.
    pub window: u32,
    /// The last updates see whole pictures, this many at once: the statistics of a window are not those of a picture.
    pub whole_steps: u64,
    /// See `whole_steps`.
    pub whole_batch: usize,
    /// Weight of the pixels' squared errors beside their absolute ones.
    pub squares_weight: f64,
    /// Weight of the absolute errors of the differences between neighbouring pixels.
    pub slopes_weight: f64,
    /// Weight of the divergence from the unit normal distribution, per element.
    pub kl_weight: f64,
}

/// The phase of the decoder by itself, on whole pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderRecipe {
    /// Weights' updates.
    pub updates: Updates,
    /// Pictures in one update.
    pub batch: usize,
}

/// The pool of latents.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentsRecipe {
    /// Scenes in the pool.
    pub count: u64,
}

/// The phase of the text encoders.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRecipe {
    /// Weights' updates.
    pub updates: Updates,
    /// Captions in one update.
    pub batch: usize,
}

/// The phase of the UNet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetRecipe {
    /// Weights' updates.
    pub updates: Updates,
    /// Latents in one update.
    pub batch: usize,
    /// The share of captions that are replaced by the null prompt.
    pub null_prompts: f64,
}

impl PretrainRecipe {
    /// Reads and checks a recipe.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let invalid = |reason: String| Error::Document { path: path.to_owned(), reason };
        let recipe: Self = toml::from_str(&text).map_err(|error| invalid(error.to_string().trim_end().to_owned()))?;
        recipe.check().map_err(invalid)?;
        Ok(recipe)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let refuse = |why: String| Err(why);
        for (phase, updates) in [
            ("probe", &self.probe.updates),
            ("vae", &self.vae.updates),
            ("decoder", &self.decoder.updates),
            ("text", &self.text.updates),
            ("unet", &self.unet.updates),
        ] {
            if updates.steps == 0 || updates.warmup_steps + updates.cooldown_steps > updates.steps {
                return refuse(format!(
                    "{phase}.updates: {} steps do not hold {} of warm-up and {} of cool-down",
                    updates.steps, updates.warmup_steps, updates.cooldown_steps
                ));
            }
            if !(updates.learning_rate > 0.0 && updates.learning_rate < 1.0) {
                return refuse(format!("{phase}.updates.learning_rate is {}", updates.learning_rate));
            }
            if !(0.0..1.0).contains(&updates.ema_decay) {
                return refuse(format!("{phase}.updates.ema_decay is {}", updates.ema_decay));
            }
        }
        if !self.resolution.is_multiple_of(8) || !self.vae.window.is_multiple_of(8) || self.vae.window > self.resolution
        {
            return refuse(format!(
                "resolution {} and vae.window {} have to be multiples of 8, the window no larger than the picture",
                self.resolution, self.vae.window
            ));
        }
        if self.vae.whole_steps > self.vae.updates.steps {
            return refuse(format!("vae.whole_steps is {}, more than all steps", self.vae.whole_steps));
        }
        if [
            self.probe.batch,
            self.vae.windows,
            self.vae.whole_batch,
            self.decoder.batch,
            self.text.batch,
            self.unet.batch,
        ]
        .contains(&0)
            || self.latents.count == 0
        {
            return refuse("a batch or the pool of latents is empty".into());
        }
        if !(0.0..=1.0).contains(&self.unet.null_prompts) {
            return refuse(format!("unet.null_prompts is {}", self.unet.null_prompts));
        }
        if self.checkpoint_minutes.is_nan() || self.checkpoint_minutes <= 0.0 {
            return refuse(format!("checkpoint_minutes is {}", self.checkpoint_minutes));
        }
        Ok(())
    }
}

impl Updates {
    /// The learning rate of update `step`, counted from 0: a line up, a plateau and a line down.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let up = (step + 1) as f64 / self.warmup_steps.max(1) as f64;
        let down = self.steps.saturating_sub(step) as f64 / self.cooldown_steps.max(1) as f64;
        self.learning_rate * up.min(down).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATES: Updates =
        Updates { steps: 100, learning_rate: 0.5, warmup_steps: 10, cooldown_steps: 20, ema_decay: 0.9 };

    #[test]
    fn the_learning_rate_rises_stays_and_falls() {
        let rates = [0, 4, 9, 50, 80, 90, 99].map(|step| UPDATES.learning_rate_at(step));
        assert_eq!(rates, [0.05, 0.25, 0.5, 0.5, 0.5, 0.25, 0.025]);
    }

    #[test]
    fn the_demo_recipe_is_valid_and_unknown_keys_are_not() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo/pretrain.toml"));
        let recipe = PretrainRecipe::read(path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(toml::from_str::<PretrainRecipe>(&format!("surplus = 1\n{text}")).is_err());
        let longer_warmup = Updates { warmup_steps: recipe.vae.updates.steps + 1, ..recipe.vae.updates };
        let broken = PretrainRecipe { vae: VaeRecipe { updates: longer_warmup, ..recipe.vae }, ..recipe };
        assert!(broken.check().unwrap_err().contains("vae.updates"));
    }
}
