//! The small SDXL of fixtures/sample, with its hashed weights, in a folder of its own.

use std::path::{Path, PathBuf};

use encode::{AutoencoderKl, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, VaeConfig};
use nn::{Scope, Weights};
use tch::Tensor;
use tempfile::TempDir;
use trainer::single_file::{Configurations, Networks, Part};
use trainer::unet::{UNet, UNetConfig};

use super::{fixture, hashed};

pub struct SmallModel {
    folder: TempDir,
}

impl SmallModel {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = Self { folder };
        copy_folder(&fixture("sample/model"), &model.path());
        for (part, tensors) in model.networks() {
            let file = match part {
                Part::UNet => "unet/diffusion_pytorch_model.safetensors",
                Part::Vae => "vae/diffusion_pytorch_model.safetensors",
                Part::TextEncoder => "text_encoder/model.safetensors",
                Part::TextEncoder2 => "text_encoder_2/model.safetensors",
            };
            nn::save(&model.path().join(file), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])
                .unwrap();
        }
        model
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// A place for a file beside the model.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn configurations(&self) -> Configurations {
        configurations()
    }

    /// All weights by diffusers' names.
    pub fn networks(&self) -> Networks {
        fn tensors<T>(network: impl FnOnce(&Scope<'_>) -> T) -> std::collections::BTreeMap<String, Tensor> {
            hashed::weights(&Weights::shapes_only().build(network).unwrap().1)
        }
        let Configurations { unet, vae, text_encoder, text_encoder_2 } = configurations();
        Networks::from([
            (Part::UNet, tensors(|scope| UNet::new(scope, &unet))),
            (Part::Vae, tensors(|scope| AutoencoderKl::new(scope, &vae))),
            (Part::TextEncoder, tensors(|scope| ClipTextModel::new(scope, &text_encoder))),
            (Part::TextEncoder2, tensors(|scope| ClipTextModelWithProjection::new(scope, &text_encoder_2))),
        ])
    }
}

pub fn configurations() -> Configurations {
    let model = fixture("sample/model");
    Configurations {
        unet: UNetConfig::from_json(&std::fs::read_to_string(model.join("unet/config.json")).unwrap()).unwrap(),
        vae: VaeConfig::read(&model.join("vae")).unwrap(),
        text_encoder: ClipTextConfig::read(&model.join("text_encoder")).unwrap(),
        text_encoder_2: ClipTextConfig::read(&model.join("text_encoder_2")).unwrap(),
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, target) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.is_dir() {
            copy_folder(&entry, &target);
        } else {
            std::fs::copy(&entry, &target).unwrap();
        }
    }
}
