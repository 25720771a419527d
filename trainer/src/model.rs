//! A model in diffusers' layout, as far as training touches it: the UNet and the scheduler's settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nn::{Params, Weights};
use shards::{ContentHash, Fingerprint};
use tch::{Device, Kind, Tensor};

use crate::flow::{Flow, Formulation};
use crate::schedulers::{PredictionType, Scheduler, SchedulerConfig};
use crate::unet::{Recompute, UNet, UNetConfig};
use crate::{Error, Result};

/// The stem of a UNet's files of weights.
pub const UNET_STEM: &str = "diffusion_pytorch_model";

/// A folder with `unet/` and `scheduler/`.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// The UNet's shape.
    pub unet: UNetConfig,
    /// `unet/config.json` as it is written.
    pub unet_json: String,
    /// Its sampler's settings.
    pub scheduler: SchedulerConfig,
    /// What the UNet predicts.
    pub formulation: Formulation,
    /// The noise schedule.
    pub flow: Flow,
}

impl ModelFolder {
    /// Reads the configurations.
    pub fn open(path: &Path) -> Result<ModelFolder> {
        let document = |path: &Path, reason: String| Error::Document { path: path.to_owned(), reason };
        let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::io("read", path));
        let (unet_path, scheduler_path) = (path.join("unet/config.json"), path.join("scheduler/scheduler_config.json"));
        let unet_json = read(&unet_path)?;
        let unet = UNetConfig::from_json(&unet_json).map_err(|e| document(&unet_path, e.to_string()))?;
        let scheduler = SchedulerConfig::from_json(&read(&scheduler_path)?)
            .map_err(|e| document(&scheduler_path, e.to_string()))?;
        let formulation = match scheduler.prediction_type {
            PredictionType::Epsilon => Formulation::Epsilon,
            PredictionType::Sample => Formulation::Sample,
            PredictionType::V => {
                let reason = "the model predicts v; distillation takes models that predict epsilon or the sample";
                return Err(document(&scheduler_path, reason.into()));
            }
        };
        let noise = Scheduler::new(scheduler).noise().clone();
        let flow = Flow::from_alpha_bars((0..noise.num_train_timesteps()).map(|t| noise.alpha_cumprod(t)));
        Ok(ModelFolder { path: path.to_owned(), unet, unet_json, scheduler, formulation, flow })
    }

    /// Refuses a model whose UNet has another shape than `base`'s.
    pub fn same_shape_as(&self, base: &ModelFolder) -> Result<()> {
        if self.unet == base.unet {
            return Ok(());
        }
        Err(Error::WrongModel {
            folder: self.path.clone(),
            expected: format!("student of {}", base.path.display()),
            difference: "its unet/config.json describes another network".into(),
        })
    }

    /// The UNet's weights, cast and moved as they are read.
    pub fn weights(&self, kind: Kind, device: Device) -> Result<Weights> {
        Ok(Weights::open_folder(&self.path.join("unet"), UNET_STEM)?.to(kind, device))
    }

    /// A UNet that is not trained.
    pub fn frozen_unet(&self, kind: Kind, device: Device) -> Result<(UNet, Params)> {
        let (mut unet, params) = self.weights(kind, device)?.build(|scope| UNet::new(scope, &self.unet))?;
        unet.set_recompute(Recompute::Never);
        params.set_requires_grad(false);
        Ok((unet, params))
    }

    /// All tensors of the UNet by name, in FP32 on the CPU.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let weights = self.weights(Kind::Float, Device::Cpu)?;
        weights.names().into_iter().map(|name| Ok((name.to_string(), weights.tensor(name)?))).collect()
    }

    /// One hash over everything that the UNet's answers and its flow follow from: weights, `unet/config.json` and the
    /// scheduler's settings as they are understood.
    pub fn hash(&self) -> Result<ContentHash> {
        let parts = Fingerprint::new()
            .with("unet", encode::network_hash(&self.path.join("unet"), UNET_STEM)?)
            .with("scheduler", ContentHash::of(self.scheduler.to_json().as_bytes()));
        Ok(parts.digest())
    }
}
