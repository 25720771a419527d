//! `evaluate.toml`: as written and as validated.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::probe::FEATURES;
use crate::{Error, Result};

/// What is measured, and on how much. Every key but the contenders is required: a recipe is a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateRecipe {
    /// The probe's weights, relative to the manifest.
    pub probe: String,
    /// Held-out captions; the same for all contenders.
    pub captions: u64,
    /// Held-out scenes rendered as references.
    pub references: u64,
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
    /// Its folder in diffusers' layout, relative to the manifest; `{run}` is the run's.
    pub model: String,
    /// A LoRA file on top, relative to the manifest.
    pub lora: Option<String>,
    /// How it is sampled, by the scheduler in its folder.
    pub sampling: Sampling,
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
        let needed = FEATURES as u64 + 1;
        for (what, count) in [("captions", self.captions), ("references", self.references)] {
            if count < needed {
                return Err(format!("{what} is {count}: a Fréchet distance over {FEATURES} features takes {needed}"));
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
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("evaluate.toml"), text).unwrap();
        folder
    }

    fn demo() -> String {
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo/evaluate.toml")).unwrap()
    }

    fn refusal(text: &str) -> String {
        EvaluateRecipe::read(manifest(text).path()).unwrap_err().to_string()
    }

    #[test]
    fn the_demo_recipe_is_valid() {
        EvaluateRecipe::read(manifest(&demo()).path()).unwrap();
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let changed = |from: &str, to: &str| {
            assert!(demo().contains(from), "{from}");
            refusal(&demo().replace(from, to))
        };
        assert!(changed("captions = 96", "captions = 64").contains("takes 65"));
        assert!(changed("seeds = [0]", "seeds = []").contains("a seed"));
        assert!(changed("captions = 96", "captions = 96\nsurplus = 1").contains("surplus"));
        assert!(refusal("").contains("missing field"));
    }
}
