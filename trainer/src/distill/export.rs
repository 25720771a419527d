//! What a finished stage publishes.
//!
//! ```text
//! export/  model_index.json  unet/  scheduler/            a diffusers folder; the rest is the base model's
//!          sdxl_lightning_Nstep_unet.safetensors          the UNet alone, for hubs (the folder's file under its own name)
//!          sdxl_lightning_Nstep_lora.safetensors          adapters alone, where some were trained
//!          README.md                                      the model card
//! ```
//!
//! `model_index.json` is written last: where it is, the export is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use shards::Fingerprint;
use shards::atomic::{link, read_json, write_atomic, write_json};
use tch::{Kind, Tensor};

use super::metrics::{self, Metrics};
use super::paths::StagePaths;
use super::phase::Sources;
use crate::error::refuse_stale;
use crate::flow::Formulation;
use crate::model::UNET_STEM;
use crate::recipe::{Objective, Stage};
use crate::schedulers::{PredictionType, SchedulerConfig};
use crate::{Error, Result};

/// Parts of a pipeline that distillation leaves as they are.
const UNTOUCHED: [&str; 5] = ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"];
const INDEX: &str = "model_index.json";
const LINEAGE: &str = "lineage.json";
const MADE_FROM: &str = "made_from";

/// Publishes a student's FP32 weights as FP16 with all that goes with them.
pub(super) fn publish(
    stage: &Stage,
    sources: &Sources,
    weights: &BTreeMap<String, Tensor>,
    lineage: &Value,
    paths: &StagePaths,
) -> Result<()> {
    let export = paths.export();
    // An export that was cut short is begun anew.
    if export.exists() {
        fs::remove_dir_all(&export).map_err(Error::io("remove", &export))?;
    }
    for part in UNTOUCHED {
        link_folder(&sources.base.path.join(part), &export.join(part))?;
    }

    let unet = export.join("unet");
    let halves: Vec<(&str, Tensor)> =
        weights.iter().map(|(name, tensor)| (name.as_str(), tensor.to_kind(Kind::Half))).collect();
    let file = unet.join(format!("{UNET_STEM}.safetensors"));
    nn::save(&file, halves.iter().map(|(name, tensor)| (*name, tensor)), &[])?;
    write_atomic(unet.join("config.json"), sources.teacher.unet_json.as_bytes())?;
    let scheduler = scheduler(stage, sources);
    write_atomic(export.join("scheduler/scheduler_config.json"), scheduler.to_json().as_bytes())?;

    let name = |part: &str| export.join(format!("{}_{part}.safetensors", released_name(stage.student_steps)));
    link(&file, name(if scheduler.prediction_type == PredictionType::Sample { "unet_x0" } else { "unet" }))?;
    if paths.adapters().is_file() {
        link(paths.adapters(), name("lora"))?;
    }
    let recorded = metrics::read(&paths.metrics())?;
    write_atomic(export.join("README.md"), card(stage, scheduler.prediction_type, &recorded, lineage).as_bytes())?;
    write_json(export.join(LINEAGE), lineage)?;
    write_json(export.join(INDEX), &index(&sources.base.path)?)?;
    Ok(())
}

/// What the student is sampled with.
fn scheduler(stage: &Stage, sources: &Sources) -> SchedulerConfig {
    sources.base.scheduler.distilled(match stage.student_formulation(sources.teacher.formulation) {
        Formulation::Epsilon => PredictionType::Epsilon,
        Formulation::Sample => PredictionType::Sample,
    })
}

/// As the released files are called: `sdxl_lightning_4step`.
pub fn released_name(steps: u32) -> String {
    format!("sdxl_lightning_{steps}step")
}

/// The base model's index, with the sampler that distilled models want.
pub(super) fn index(base: &Path) -> Result<Map<String, Value>> {
    let path = base.join(INDEX);
    if !path.is_file() {
        let reason = "is not there; the index of a student's export is made from it".into();
        return Err(Error::Document { path, reason });
    }
    let mut index: Map<String, Value> = read_json(path)?;
    index.insert("scheduler".into(), json!(["diffusers", "EulerDiscreteScheduler"]));
    Ok(index)
}

/// Where the model comes from, down to the curated rows.
pub(super) fn lineage(
    stage: &Stage,
    sources: &Sources,
    (made_from, latents, run): (&Fingerprint, &Path, &Path),
) -> Result<Value> {
    let of = |path: PathBuf| -> Result<Value> { if path.is_file() { Ok(read_json(path)?) } else { Ok(Value::Null) } };
    let fingerprint = |index: Value| index.get("fingerprint").cloned().unwrap_or(Value::Null);
    Ok(json!({
        "stage": stage,
        MADE_FROM: made_from,
        "base_unet": made_from.part("base"),
        "teacher_unet": made_from.part("teacher"),
        "teacher": of(sources.teacher.path.join(LINEAGE))?,
        "latents": fingerprint(of(latents.join("index.json"))?),
        "curated": fingerprint(of(run.join("curated/index.json"))?),
    }))
}

/// Refuses a finished export of another recipe, teacher, base model or data set.
pub(super) fn check_made_from(export: &Path, current: &Fingerprint) -> Result<()> {
    let path = export.join(LINEAGE);
    let mut lineage: Value = read_json(&path)?;
    let recorded: Fingerprint = serde_json::from_value(lineage[MADE_FROM].take())
        .map_err(|error| Error::Document { path, reason: format!("{MADE_FROM}: {error}") })?;
    refuse_stale(export, &recorded, current)
}

/// The steps that a model was distilled to, as its export says; none for a model that no stage has made.
pub fn distilled_steps(model: &Path) -> Result<Option<usize>> {
    #[derive(Deserialize)]
    struct Lineage {
        stage: Steps,
    }
    #[derive(Deserialize)]
    struct Steps {
        student_steps: usize,
    }
    let path = model.join(LINEAGE);
    if !path.is_file() {
        return Ok(None);
    }
    let lineage: Lineage = read_json(path)?;
    Ok(Some(lineage.stage.student_steps))
}

/// The model card.
fn card(stage: &Stage, prediction: PredictionType, recorded: &[Metrics], lineage: &Value) -> String {
    let steps = stage.student_steps;
    let prediction = json!(prediction);
    let released = released_name(steps);
    let mut card = format!(
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags: [sdxl, distillation, sdxl-lightning]\n---\n\
         # {steps}-step model, stage {}\n\n\
         Distilled from {} steps by stepdown, after SDXL-Lightning (arXiv 2402.13929).\n\n\
         ```python\nfrom diffusers import StableDiffusionXLPipeline\n\n\
         pipeline = StableDiffusionXLPipeline.from_pretrained(\"PATH/TO/THIS/FOLDER\")\n\
         image = pipeline(\"a prompt\", num_inference_steps={steps}, guidance_scale=0).images[0]\n```\n\n\
         Take exactly {steps} step{} with guidance 0: `EulerDiscreteScheduler`, `timestep_spacing=\"trailing\"`, \
         `prediction_type={prediction}`, as in `scheduler/`.\n\n\
         | file | for |\n|---|---|\n| this folder | diffusers |\n| `{released}_unet*.safetensors` | the UNet alone |\n",
        stage.name,
        stage.teacher.steps,
        if steps == 1 { "" } else { "s" },
    );
    if stage.lora.is_some() {
        let stands_on = match stage.teacher.is_base() {
            true => "the base model".to_string(),
            false => format!(
                "the {}-step UNet of stage {}, which they were trained on",
                stage.teacher.steps, stage.teacher.model
            ),
        };
        card += &format!("| `{released}_lora.safetensors` | adapters for {stands_on} |\n");
    }
    card += "\n## Training\n\n| phase | objective | trains | iterations | learning rate | last student loss | last discriminator loss |\n|---|---|---|---|---|---|---|\n";
    for phase in &stage.phases {
        let last = recorded.iter().rev().find(|metrics| metrics.phase == phase.name);
        let objective = match &phase.objective {
            Objective::Mse => "mse",
            Objective::Adversarial { conditional: true, .. } => "adversarial, conditional",
            Objective::Adversarial { conditional: false, .. } => "adversarial, unconditional",
            Objective::X0Conversion => "x0 conversion",
        };
        let discriminator = last.and_then(|metrics| metrics.discriminator.as_ref());
        card += &format!(
            "| {} | {objective} | {} | {} | {:e} | {} | {} |\n",
            phase.name,
            json!(phase.trains).as_str().unwrap_or_default(),
            phase.iterations,
            phase.learning_rate,
            last.map_or_else(String::new, |metrics| format!("{:.5}", metrics.student_loss)),
            discriminator.map_or_else(String::new, |discriminator| format!("{:.5}", discriminator.loss)),
        );
    }
    card += &format!(
        "\nBatch {}, seed {}. Everything that the model follows from, by SHA-256; `lineage.json` has it whole, with the \
         lineage of every teacher.\n\n| input | SHA-256 |\n|---|---|\n",
        stage.batch_size, stage.seed,
    );
    let mut inputs = vec![("base UNet", &lineage["base_unet"]), ("teacher UNet", &lineage["teacher_unet"])];
    let made_from = |whose: &'static str| {
        let parts = lineage[whose].as_object().into_iter().flatten();
        parts.map(move |(part, hash)| (format!("{whose}: {part}"), hash))
    };
    let parts: Vec<(String, &Value)> = made_from("latents").chain(made_from("curated")).collect();
    inputs.extend(parts.iter().map(|(name, hash)| (name.as_str(), *hash)));
    for (input, hash) in inputs {
        card += &format!("| {input} | `{}` |\n", hash.as_str().unwrap_or_default());
    }
    let recipe = serde_json::to_string_pretty(stage).expect("a recipe has a JSON form");
    card + &format!("\n## Recipe\n\n```json\n{recipe}\n```\n")
}

/// Links a part of the base model. Where its weights are the `fp16` variant alone, they take the plain names, under which
/// a folder is loaded that nobody names a variant for.
fn link_folder(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).map_err(Error::io("read the folder", from))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>();
    let paths = paths.map_err(Error::io("read the folder", from))?;
    let variant_alone = !paths.iter().any(|path| is_weights(path) && plain_name(path).is_none());
    for path in &paths {
        let name = path.file_name().unwrap_or_default();
        match plain_name(path).filter(|_| variant_alone) {
            _ if path.is_dir() => link_folder(path, &to.join(name))?,
            None => link(path, to.join(name))?,
            Some(plain) if plain.ends_with(".json") => write_plain_index(path, &to.join(plain))?,
            Some(plain) => link(path, to.join(plain))?,
        }
    }
    Ok(())
}

/// Whether a file is one of weights or names some.
fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".safetensors") || name.contains(".safetensors.index.")
}

/// The name without its variant, of a file of weights that has one: `model.fp16.safetensors`, and of shards and their
/// index both `model.fp16-00001-of-00002.safetensors` and `model-00001-of-00002.fp16.safetensors`.
fn plain_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let plain = name.replace(".fp16.", ".").replace(".fp16-", "-");
    (is_weights(path) && plain != name).then_some(plain)
}

/// An index whose shards are linked under their plain names.
fn write_plain_index(from: &Path, to: &Path) -> Result<()> {
    let mut index: Value = read_json(from)?;
    for shard in index["weight_map"].as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        if let Some(plain) = shard.as_str().and_then(|name| plain_name(Path::new(name))) {
            *shard = plain.into();
        }
    }
    Ok(write_json(to, &index)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_weights_have_a_variant() {
        for (name, plain) in [
            ("model.fp16.safetensors", Some("model.safetensors")),
            ("model.safetensors.index.fp16.json", Some("model.safetensors.index.json")),
            ("model.fp16-00001-of-00002.safetensors", Some("model-00001-of-00002.safetensors")),
            ("model-00001-of-00002.fp16.safetensors", Some("model-00001-of-00002.safetensors")),
            ("model.safetensors", None),
            ("model.safetensors.index.json", None),
            ("notes.fp16.json", None),
        ] {
            assert_eq!(plain_name(Path::new(name)).as_deref(), plain, "{name}");
        }
    }
}
