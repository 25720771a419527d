//! `evaluate.toml`: as written and as validated.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::inception::INCEPTION_FEATURES;
use crate::probe::FEATURES;
use crate::schedulers::{PredictionType, Sampler, TimestepSpacing};
use crate::{Error, Result};

/// What is measured, and on how much. Every key but the contenders and the demo's lot is required: a recipe is a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateRecipe {
    /// What is asked of all contenders, and who judges.
    pub exam: ExamRecipe,
    /// One row of results for each; the same for all contenders.
    pub seeds: Vec<u64>,
    /// Captions in one pass.
    pub batch: usize,
    /// Columns of the grids.
    pub grid: usize,
    /// The base model as the teacher of all.
    pub teacher: Sampling,
    /// The base model with fewer steps, for comparison.
    pub fewer_steps: Vec<usize>,
    /// Models beside the base and the stages: baselines whose weights the user has.
    #[serde(default, rename = "contender")]
    pub contenders: Vec<Baseline>,
}

/// Captions, references and judges. Paths are relative to the manifest; `{run}` is the run's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExamRecipe {
    /// The demo world: captions and scenes of combinations that no training has shown, judged by the probe.
    Demo {
        /// The probe's weights.
        probe: String,
        /// Held-out captions.
        captions: u64,
        /// Held-out scenes rendered as references.
        references: u64,
        /// Which captions and scenes are drawn: recipes are chosen on one lot and examined on another, the table's 0.
        #[serde(default)]
        lot: u64,
    },
    /// The paper's: captions and images of COCO, judged by InceptionV3 and a CLIP.
    Coco {
        /// COCO's `captions_*.json`: the first caption of each of its first images.
        captions: String,
        /// The folder of those images.
        references: String,
        /// How many images and captions.
        count: usize,
        /// InceptionV3's weights for FID, as safetensors.
        inception: String,
        /// A CLIP's folder in transformers' layout.
        clip: String,
    },
}

/// How a model is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Steps.
    pub steps: usize,
    /// Weight of classifier-free guidance, u + w (c - u); up to 1 there is none.
    pub guidance_scale: f64,
}

/// A model of somebody else's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Its name in the results.
    pub name: String,
    /// What made it: `lcm`, `turbo`, ...
    pub method: String,
    /// Its folder in diffusers' layout, or `hf:OWNER/NAME[@REVISION][:fp16]`, which is fetched.
    pub model: String,
    /// Another UNet for that folder, or a single-file checkpoint.
    pub weights: Option<String>,
    /// A LoRA file on top.
    pub lora: Option<String>,
    /// How it is sampled.
    pub sampling: Sampling,
    /// The side of its pictures in pixels, if not the manifest's; they are resized before patches are cut.
    pub side: Option<i64>,
    /// Another sampler than the scheduler in its folder.
    pub sampler: Option<Sampler>,
    /// Another spacing of timesteps.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Another meaning of the UNet's output.
    pub prediction_type: Option<PredictionType>,
}

impl EvaluateRecipe {
    /// Reads and checks `MANIFEST/evaluate.toml`.
    pub fn read(manifest: &Path) -> Result<Self> {
        let path = manifest.join("evaluate.toml");
        let invalid = |reason: String| Error::Document { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|error| invalid(error.to_string()))?;
        let recipe: Self = toml::from_str(&text).map_err(|error| invalid(error.to_string().trim_end().to_owned()))?;
        recipe.check().map_err(invalid)?;
        Ok(recipe)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let counts = match self.exam {
            ExamRecipe::Demo { captions, references, .. } => {
                vec![("captions", captions, FEATURES), ("references", references, FEATURES)]
            }
            ExamRecipe::Coco { count, .. } => vec![("count", count as u64, INCEPTION_FEATURES)],
        };
        for (what, count, features) in counts {
            let needed = features as u64 + 1;
            if count < needed {
                return Err(format!(
                    "exam.{what} is {count}: a Fréchet distance over {features} features takes {needed}"
                ));
            }
        }
        if self.seeds.is_empty() || self.batch == 0 {
            return Err("there have to be a seed and a caption in a pass".into());
        }
        let samplings = self.contenders.iter().map(|contender| contender.sampling).chain([self.teacher]);
        for Sampling { steps, guidance_scale } in samplings {
            if steps == 0 || !guidance_scale.is_finite() || guidance_scale < 0.0 {
                return Err(format!("{steps} steps with a guidance_scale of {guidance_scale} draw nothing"));
            }
        }
        if self.fewer_steps.contains(&0) {
            return Err("fewer_steps has a 0".into());
        }
        if let Some(contender) = self.contenders.iter().find(|contender| contender.side.is_some_and(|side| side <= 0)) {
            return Err(format!("contender {:?}: side is not positive", contender.name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

    fn refusal(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("evaluate.toml"), text).unwrap();
        EvaluateRecipe::read(folder.path()).unwrap_err().to_string()
    }

    #[track_caller]
    fn changed(manifest: &str, from: &str, to: &str) -> String {
        let text = std::fs::read_to_string(format!("{MANIFESTS}/{manifest}/evaluate.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        refusal(&text.replace(from, to))
    }

    #[test]
    fn the_recipes_at_hand_are_valid() {
        for manifest in ["demo", "demo-long", "sdxl"] {
            EvaluateRecipe::read(&Path::new(MANIFESTS).join(manifest)).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert!(changed("demo", "captions = 96", "captions = 64").contains("takes 65"));
        assert!(changed("demo", "seeds = [0]", "seeds = []").contains("a seed"));
        assert!(changed("demo", "captions = 96", "captions = 96\nsurplus = 1").contains("surplus"));
        assert!(changed("sdxl", "count = 10000", "count = 2048").contains("takes 2049"));
        assert!(changed("sdxl", "side = 512", "side = 0").contains("turbo"));
        assert!(refusal("").contains("missing field"));
    }
}
