//! `export`: a finished stage in every form that users of the released models know.
//!
//! ```text
//! RUN/export/STAGE/  sdxl_lightning_Nstep_unet.safetensors   (unet_x0 for one step)   diffusers' UNet alone
//!                    sdxl_lightning_Nstep_lora.safetensors                            adapters, kohya's names
//!                    sdxl_lightning_Nstep.safetensors        (_x0 for one step)       everything, for ComfyUI
//!                    sdxl_lightning_workflow_*.json                                   for ComfyUI, API format
//!                    scheduler_config_Nstep.json, README_Nstep.md
//! ```
//!
//! Files are named by their steps, as the released models' are, and folders by the stage: a run may have several stages
//! of the same steps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use encode::{AutoencoderKl, ClipTextConfig, ClipTextModel, ModelManifest, VaeConfig};
use nn::Weights;
use serde_json::{Value, json};
use shards::RunLock;
use shards::atomic::{link, write_json};
use tch::{Device, Kind, Tensor};

use super::export::released_name;
use super::paths::StagePaths;
use crate::flow::Formulation;
use crate::model::{ModelFolder, UNET_STEM};
use crate::recipe::Stage;
use crate::single_file::{self, Configurations, Networks, Part};
use crate::{Error, Result};

/// Writes all forms of one finished stage into `RUN/export/STAGE` and names them.
pub fn release(manifest: &Path, run: &Path, stage: &Stage) -> Result<Vec<PathBuf>> {
    let paths = StagePaths::new(run, &stage.name);
    let folder = paths.export();
    if !paths.is_done() {
        let hint = format!("run `distill --stage {}` first", stage.name);
        return Err(Error::NoTeacher { folder, hint });
    }
    let base = ModelManifest::read(manifest, run)?;
    let exports = run.join("export");
    let _lock = RunLock::acquire(&exports)?;
    let out = exports.join(&stage.name);
    let released = released_name(stage.student_steps);
    let model = ModelFolder::open(&folder)?;
    let x0 = if model.formulation == Formulation::Sample { "_x0" } else { "" };

    let mut written = Vec::new();
    let mut place = |name: String| {
        let path = out.join(name);
        written.push(path.clone());
        path
    };
    link(folder.join(format!("unet/{UNET_STEM}.safetensors")), place(format!("{released}_unet{x0}.safetensors")))?;
    link(folder.join("README.md"), place(format!("README_{}step.md", stage.student_steps)))?;
    link(
        folder.join("scheduler/scheduler_config.json"),
        place(format!("scheduler_config_{}step.json", stage.student_steps)),
    )?;
    let whole = format!("{released}{x0}.safetensors");
    write_single_file(&place(whole.clone()), &folder, &model)?;
    let side = base.resolution;
    let workflow = place(format!("sdxl_lightning_workflow_full_{}step.json", stage.student_steps));
    write_json(workflow, &workflow_of(stage, model.formulation, &whole, None, side))?;
    if paths.adapters().is_file() {
        let lora = format!("{released}_lora.safetensors");
        link(paths.adapters(), place(lora.clone()))?;
        let workflow = place(format!("sdxl_lightning_workflow_lora_{}step.json", stage.student_steps));
        write_json(workflow, &workflow_of(stage, model.formulation, &lora_base(stage), Some(&lora), side))?;
    }
    Ok(written)
}

fn write_single_file(path: &Path, folder: &Path, model: &ModelFolder) -> Result<()> {
    let configurations = Configurations {
        unet: model.unet.clone(),
        vae: VaeConfig::read(&folder.join("vae"))?,
        text_encoder: ClipTextConfig::read(&folder.join("text_encoder"))?,
        text_encoder_2: ClipTextConfig::read(&folder.join("text_encoder_2"))?,
    };
    let networks = Networks::from([
        (Part::UNet, tensors(model.weights(Kind::Half, Device::Cpu)?)?),
        (Part::Vae, tensors(AutoencoderKl::weights(&folder.join("vae"))?)?),
        (Part::TextEncoder, tensors(ClipTextModel::weights(&folder.join("text_encoder"))?)?),
        (Part::TextEncoder2, tensors(ClipTextModel::weights(&folder.join("text_encoder_2"))?)?),
    ]);
    single_file::write(path, &networks, &configurations)
}

/// All tensors by the names that the networks know, in FP16.
fn tensors(weights: Weights) -> Result<BTreeMap<String, Tensor>> {
    let weights = weights.to(Kind::Half, Device::Cpu);
    weights.names().into_iter().map(|name| Ok((name.to_string(), weights.tensor(name)?))).collect()
}

/// The single file that a stage's adapters were trained on: its teacher's.
fn lora_base(stage: &Stage) -> String {
    match stage.teacher.is_base() {
        true => "sd_xl_base_1.0.safetensors".into(),
        false => format!("{}.safetensors", released_name(stage.teacher.steps)),
    }
}

/// ComfyUI's graph in its API format: Euler on the `sgm_uniform` (trailing) grid without guidance, as many steps as
/// the model was distilled to, and a model that predicts data told so.
fn workflow_of(stage: &Stage, formulation: Formulation, checkpoint: &str, lora: Option<&str>, side: u32) -> Value {
    let node = |class: &str, title: &str, inputs: Value| json!({ "class_type": class, "inputs": inputs, "_meta": { "title": title } });
    let mut nodes = serde_json::Map::new();
    let mut model = json!(["1", 0]);
    nodes.insert("1".into(), node("CheckpointLoaderSimple", "Load the checkpoint", json!({ "ckpt_name": checkpoint })));
    if let Some(lora) = lora {
        let inputs = json!({ "model": model, "lora_name": lora, "strength_model": 1.0 });
        nodes.insert("2".into(), node("LoraLoaderModelOnly", "Load the adapters", inputs));
        model = json!(["2", 0]);
    }
    if formulation == Formulation::Sample {
        let inputs = json!({ "model": model, "sampling": "x0", "zsnr": false });
        nodes.insert("3".into(), node("ModelSamplingDiscrete", "The model predicts data", inputs));
        model = json!(["3", 0]);
    }
    let text = |text: &str| json!({ "clip": ["1", 1], "text": text });
    nodes.insert("4".into(), node("CLIPTextEncode", "Prompt", text("A girl smiling")));
    nodes.insert("5".into(), node("CLIPTextEncode", "Negative prompt (has no effect without guidance)", text("")));
    nodes.insert(
        "6".into(),
        node("EmptyLatentImage", "Size", json!({ "width": side, "height": side, "batch_size": 1 })),
    );
    nodes.insert(
        "7".into(),
        node(
            "KSampler",
            "Sampler",
            json!({
                "model": model, "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0],
                "seed": 0, "steps": stage.student_steps, "cfg": 1.0, "denoise": 1.0,
                "sampler_name": "euler", "scheduler": "sgm_uniform",
            }),
        ),
    );
    nodes.insert("8".into(), node("VAEDecode", "Decode", json!({ "samples": ["7", 0], "vae": ["1", 2] })));
    let inputs = json!({ "images": ["8", 0], "filename_prefix": released_name(stage.student_steps) });
    nodes.insert("9".into(), node("SaveImage", "Save", inputs));
    Value::Object(nodes)
}
