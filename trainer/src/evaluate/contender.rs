//! Who is measured: the base model, the finished stages of a run, and baselines of the user's.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::recipe::{EvaluateRecipe, Sampling};
use crate::distill::{StagePaths, manifest_flow};
use crate::recipe::{Stage, Trains};
use crate::schedulers::{PredictionType, Sampler, TimestepSpacing};
use crate::{Error, Result};

/// What of a model was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A base model.
    Base,
    /// All weights of a student.
    Full,
    /// Adapters.
    Lora,
}

/// One line of the table. Its JSON says how it is sampled, and not where it lies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contender {
    /// Its name, which is also that of its files.
    pub name: String,
    /// What of it was trained.
    pub kind: Kind,
    /// What made it.
    pub method: String,
    /// Its folder.
    #[serde(skip)]
    pub model: PathBuf,
    /// Another UNet, or a single-file checkpoint.
    #[serde(skip)]
    pub weights: Option<PathBuf>,
    /// Adapters on top.
    #[serde(skip)]
    pub lora: Option<PathBuf>,
    /// How it is sampled.
    pub sampling: Sampling,
    /// The side of its pictures in pixels.
    pub side: i64,
    /// Another sampler than its folder's.
    pub sampler: Option<Sampler>,
    /// Another spacing of timesteps.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Another meaning of the UNet's output.
    pub prediction_type: Option<PredictionType>,
}

impl Contender {
    /// A model as its folder has it.
    fn new(name: String, kind: Kind, method: &str, model: PathBuf, sampling: Sampling, side: i64) -> Self {
        Self {
            name,
            kind,
            method: method.into(),
            model,
            weights: None,
            lora: None,
            sampling,
            side,
            sampler: None,
            timestep_spacing: None,
            prediction_type: None,
        }
    }
}

/// A path of a manifest: relative to it, `{run}` the run's folder.
pub(super) fn resolve(manifest: &Path, run: &Path, written: &str) -> PathBuf {
    manifest.join(written.replace("{run}", &run.display().to_string()))
}

/// All contenders, the teacher first.
pub fn contenders(recipe: &EvaluateRecipe, manifest: &Path, run: &Path) -> Result<Vec<Contender>> {
    let model = encode::ModelManifest::read(manifest, run)?;
    let side = i64::from(model.resolution);
    let of_base = |sampling: Sampling| {
        Contender::new(format!("base-{}", sampling.steps), Kind::Base, "base", model.base.clone(), sampling, side)
    };
    let mut all = vec![of_base(recipe.teacher)];
    let fewer = recipe.fewer_steps.iter().filter(|&&steps| steps != recipe.teacher.steps);
    all.extend(fewer.map(|&steps| of_base(Sampling { steps, ..recipe.teacher })));

    let stages = Stage::load_all(&manifest.join("stages"), &manifest_flow(manifest, run)?)?;
    for stage in &stages {
        let paths = StagePaths::new(run, &stage.name);
        if paths.is_done() {
            all.push(of_stage(stage, paths.export(), side));
        }
    }
    for baseline in &recipe.contenders {
        let path = |written: &str| resolve(manifest, run, written);
        let kind = if baseline.lora.is_some() { Kind::Lora } else { Kind::Full };
        let model = encode::model_folder(&baseline.model.replace("{run}", &run.display().to_string()), manifest)?;
        let side = baseline.side.unwrap_or(side);
        all.push(Contender {
            weights: baseline.weights.as_deref().map(path),
            lora: baseline.lora.as_deref().map(path),
            sampler: baseline.sampler,
            timestep_spacing: baseline.timestep_spacing,
            prediction_type: baseline.prediction_type,
            ..Contender::new(baseline.name.clone(), kind, &baseline.method, model, baseline.sampling, side)
        });
    }
    check_names(&all, manifest)?;
    Ok(all)
}

fn of_stage(stage: &Stage, export: PathBuf, side: i64) -> Contender {
    let adversarial = stage.phases.iter().any(|phase| phase.objective.is_adversarial());
    let full = stage.phases.iter().any(|phase| phase.trains == Trains::Full);
    Contender::new(
        stage.name.clone(),
        if full { Kind::Full } else { Kind::Lora },
        if adversarial { "lightning" } else { "mse" },
        export,
        Sampling { steps: stage.student_steps as usize, guidance_scale: 0.0 },
        side,
    )
}

/// Names are names of files, each of one contender.
fn check_names(all: &[Contender], manifest: &Path) -> Result<()> {
    for (at, contender) in all.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let taken = all[..at].iter().any(|other| other.name == contender.name);
        if taken || contender.name.is_empty() || !contender.name.chars().all(plain) {
            let why =
                if taken { "is taken by another contender" } else { "may have letters, digits, - _ . and no others" };
            let reason = format!("the name {:?} {why}", contender.name);
            return Err(Error::Document { path: manifest.join("evaluate.toml"), reason });
        }
    }
    Ok(())
}
