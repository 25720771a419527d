//! Who is measured: the base model, the finished stages of a run, and baselines of the user's.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::recipe::{EvaluateRecipe, Sampling};
use crate::distill::{StagePaths, manifest_flow};
use crate::recipe::{Stage, Trains};
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

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contender {
    /// Its name, which is also that of its files.
    pub name: String,
    /// What of it was trained.
    pub kind: Kind,
    /// What made it.
    pub method: String,
    /// Its folder.
    pub model: PathBuf,
    /// Adapters on top.
    pub lora: Option<PathBuf>,
    /// How it is sampled.
    pub sampling: Sampling,
}

/// All contenders, the teacher first.
pub fn contenders(recipe: &EvaluateRecipe, manifest: &Path, run: &Path) -> Result<Vec<Contender>> {
    let base = encode::ModelManifest::read(manifest, run)?.base;
    let of_base = |sampling: Sampling| Contender {
        name: format!("base-{}", sampling.steps),
        kind: Kind::Base,
        method: "base".into(),
        model: base.clone(),
        lora: None,
        sampling,
    };
    let mut all = vec![of_base(recipe.teacher)];
    let fewer = recipe.fewer_steps.iter().filter(|&&steps| steps != recipe.teacher.steps);
    all.extend(fewer.map(|&steps| of_base(Sampling { steps, ..recipe.teacher })));

    let stages = Stage::load_all(&manifest.join("stages"), &manifest_flow(manifest, run)?)?;
    for stage in &stages {
        let paths = StagePaths::new(run, &stage.name);
        if paths.is_done() {
            all.push(of_stage(stage, paths.export()));
        }
    }
    for baseline in &recipe.contenders {
        let path = |written: &str| manifest.join(written.replace("{run}", &run.display().to_string()));
        all.push(Contender {
            name: baseline.name.clone(),
            kind: if baseline.lora.is_some() { Kind::Lora } else { Kind::Full },
            method: baseline.method.clone(),
            model: path(&baseline.model),
            lora: baseline.lora.as_deref().map(path),
            sampling: baseline.sampling,
        });
    }
    check_names(&all, manifest)?;
    Ok(all)
}

fn of_stage(stage: &Stage, export: PathBuf) -> Contender {
    let adversarial = stage.phases.iter().any(|phase| phase.objective.is_adversarial());
    let full = stage.phases.iter().any(|phase| phase.trains == Trains::Full);
    Contender {
        name: stage.name.clone(),
        kind: if full { Kind::Full } else { Kind::Lora },
        method: if adversarial { "lightning" } else { "mse" }.into(),
        model: export,
        lora: None,
        sampling: Sampling { steps: stage.student_steps as usize, guidance_scale: 0.0 },
    }
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
