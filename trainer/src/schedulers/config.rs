//! `scheduler_config.json`, as diffusers writes it.

use std::fmt;

use clap::ValueEnum;
use nn::settings::{Settings, SettingsError, bad_value};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::noise::BetaSchedule;

/// What a scheduler cannot be asked for.
#[derive(Debug, Error)]
pub enum SchedulerError {
    /// A number of steps outside what the schedule was trained on.
    #[error("{count} steps were asked of a scheduler with {train} training timesteps")]
    StepCount {
        /// The steps asked for.
        count: usize,
        /// The training timesteps.
        train: usize,
    },
    /// A number of steps that a consistency schedule cannot give.
    #[error("{count} steps cannot be picked from {original} original steps over {train} training timesteps")]
    LcmStepCount {
        /// The steps asked for.
        count: usize,
        /// `original_inference_steps`.
        original: usize,
        /// The training timesteps.
        train: usize,
    },
    /// `steps_offset` leads out of the schedule.
    #[error("`steps_offset` moves the first timestep to {timestep}, beyond the {train} training timesteps")]
    BeyondTraining {
        /// The first timestep.
        timestep: f64,
        /// The training timesteps.
        train: usize,
    },
}

/// What the model's output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The clean image.
    Sample,
    /// Salimans and Ho's velocity.
    #[serde(rename = "v_prediction")]
    #[value(name = "v_prediction")]
    V,
}

/// How the timesteps of a run lie among the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// From a fixed offset upwards.
    Leading,
    /// Both ends included.
    Linspace,
    /// From the noisiest timestep downwards: what distilled models want.
    Trailing,
}

impl fmt::Display for TimestepSpacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leading => "leading",
            Self::Linspace => "linspace",
            Self::Trailing => "trailing",
        })
    }
}

/// The sampler, with the settings that it alone reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `DDIMScheduler`.
    Ddim {
        /// Whether the last step lands on a noiseless sample rather than on timestep 0.
        set_alpha_to_one: bool,
        /// The range that clean estimates are clipped to.
        clip: Option<f64>,
    },
    /// `LCMScheduler`.
    Lcm {
        /// The number of timesteps that the consistency model was distilled on.
        original_inference_steps: usize,
        /// What timesteps are multiplied by in the boundary conditions.
        timestep_scaling: f64,
        /// The range that clean estimates are clipped to.
        clip: Option<f64>,
    },
}

/// A sampler by name, for command lines and recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `DDIMScheduler`.
    Ddim,
    /// `LCMScheduler`.
    Lcm,
}

impl Sampler {
    /// With the settings that diffusers gives it in SDXL's pipelines.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::Euler => Algorithm::Euler,
            Self::EulerAncestral => Algorithm::EulerAncestral,
            Self::Ddim => Algorithm::Ddim { set_alpha_to_one: false, clip: None },
            Self::Lcm => Algorithm::Lcm { original_inference_steps: 50, timestep_scaling: 10.0, clip: None },
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler a",
            Self::Ddim { .. } => "DDIM",
            Self::Lcm { .. } => "LCM",
        })
    }
}

/// A validated scheduler configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The sampler.
    pub algorithm: Algorithm,
    /// The number of training timesteps.
    pub num_train_timesteps: usize,
    /// The variances of the forward process.
    pub betas: BetaSchedule,
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
    /// How the timesteps of a run are spaced; LCM has a spacing of its own.
    pub timestep_spacing: TimestepSpacing,
    /// Added to each timestep under leading spacing.
    pub steps_offset: usize,
}

impl SchedulerConfig {
    /// The same noise schedule under Euler's method with trailing timesteps: what models distilled from this one are
    /// sampled with.
    #[must_use]
    pub fn distilled(self, prediction_type: PredictionType) -> Self {
        Self { algorithm: Algorithm::Euler, prediction_type, timestep_spacing: TimestepSpacing::Trailing, ..self }
    }

    /// Reads `scheduler_config.json`. A missing key has the default of diffusers' class of that name; a setting that
    /// would change the result and is not implemented is refused.
    pub fn from_json(text: &str) -> Result<Self, SettingsError> {
        let mut settings = Settings::parse(text)?;
        let class: Class = settings.required("_class_name")?;
        let clip_sample = settings.or("clip_sample", matches!(class, Class::Ddim))?;
        let clip_sample_range = settings.or("clip_sample_range", 1.0)?;
        let clip = clip_sample.then_some(clip_sample_range);
        let set_alpha_to_one = settings.or("set_alpha_to_one", true)?;
        let original_inference_steps = settings.or("original_inference_steps", 50)?;
        let timestep_scaling = settings.or("timestep_scaling", 10.0)?;
        let algorithm = match class {
            Class::Euler => Algorithm::Euler,
            Class::EulerAncestral => Algorithm::EulerAncestral,
            Class::Ddim => Algorithm::Ddim { set_alpha_to_one, clip },
            Class::Lcm => Algorithm::Lcm { original_inference_steps, timestep_scaling, clip },
        };
        let (start, end, name) = match class {
            Class::Lcm => (0.00085, 0.012, BetaScheduleName::ScaledLinear),
            Class::Euler | Class::EulerAncestral | Class::Ddim => (0.0001, 0.02, BetaScheduleName::Linear),
        };
        let (start, end) = (settings.or("beta_start", start)?, settings.or("beta_end", end)?);
        if !(0.0 < start && start <= end && end < 1.0) {
            return Err(bad_value("beta_start", format!("betas from {start} to {end} do not grow within (0, 1)")));
        }
        let num_train_timesteps: usize = settings.or("num_train_timesteps", 1000)?;
        if !(2..=1 << 20).contains(&num_train_timesteps) {
            return Err(bad_value("num_train_timesteps", format!("{num_train_timesteps} is out of range")));
        }
        let spacing = match class {
            Class::Euler | Class::EulerAncestral => TimestepSpacing::Linspace,
            Class::Ddim | Class::Lcm => TimestepSpacing::Leading,
        };
        let config = Self {
            algorithm,
            num_train_timesteps,
            betas: match settings.or("beta_schedule", name)? {
                BetaScheduleName::Linear => BetaSchedule::Linear { start, end },
                BetaScheduleName::ScaledLinear => BetaSchedule::ScaledLinear { start, end },
                BetaScheduleName::SquaredCosine => BetaSchedule::SquaredCosine,
            },
            prediction_type: settings.or("prediction_type", PredictionType::Epsilon)?,
            timestep_spacing: settings.or("timestep_spacing", spacing)?,
            steps_offset: settings.or("steps_offset", 0)?,
        };
        settings.finish(
            &[
                ("trained_betas", Value::Null),
                ("thresholding", false.into()),
                ("rescale_betas_zero_snr", false.into()),
                ("use_karras_sigmas", false.into()),
                ("use_exponential_sigmas", false.into()),
                ("use_beta_sigmas", false.into()),
                ("interpolation_type", "linear".into()),
                ("timestep_type", "discrete".into()),
                ("final_sigmas_type", "zero".into()),
            ],
            // Read by other samplers alone, or only under a setting refused above.
            &["sigma_min", "sigma_max", "sample_max_value", "dynamic_thresholding_ratio", "skip_prk_steps"],
        )?;
        Ok(config)
    }

    /// Writes `scheduler_config.json` for diffusers and for [`SchedulerConfig::from_json`].
    pub fn to_json(&self) -> String {
        let class = match self.algorithm {
            Algorithm::Euler => Class::Euler,
            Algorithm::EulerAncestral => Class::EulerAncestral,
            Algorithm::Ddim { .. } => Class::Ddim,
            Algorithm::Lcm { .. } => Class::Lcm,
        };
        let mut document = json!({
            "_class_name": class,
            "num_train_timesteps": self.num_train_timesteps,
            "prediction_type": self.prediction_type,
            "timestep_spacing": self.timestep_spacing,
            "steps_offset": self.steps_offset,
        });
        match self.betas {
            BetaSchedule::Linear { start, end } => {
                document["beta_schedule"] = json!(BetaScheduleName::Linear);
                (document["beta_start"], document["beta_end"]) = (json!(start), json!(end));
            }
            BetaSchedule::ScaledLinear { start, end } => {
                document["beta_schedule"] = json!(BetaScheduleName::ScaledLinear);
                (document["beta_start"], document["beta_end"]) = (json!(start), json!(end));
            }
            BetaSchedule::SquaredCosine => document["beta_schedule"] = json!(BetaScheduleName::SquaredCosine),
        }
        match self.algorithm {
            Algorithm::Euler | Algorithm::EulerAncestral => {}
            Algorithm::Ddim { set_alpha_to_one, .. } => document["set_alpha_to_one"] = json!(set_alpha_to_one),
            Algorithm::Lcm { original_inference_steps, timestep_scaling, .. } => {
                document["original_inference_steps"] = json!(original_inference_steps);
                document["timestep_scaling"] = json!(timestep_scaling);
            }
        }
        if matches!(self.algorithm, Algorithm::Ddim { .. } | Algorithm::Lcm { .. }) {
            document["clip_sample"] = json!(self.clip().is_some());
            document["clip_sample_range"] = json!(self.clip().unwrap_or(1.0));
        }
        format!("{document:#}\n")
    }

    pub(super) fn clip(&self) -> Option<f64> {
        match self.algorithm {
            Algorithm::Ddim { clip, .. } | Algorithm::Lcm { clip, .. } => clip,
            Algorithm::Euler | Algorithm::EulerAncestral => None,
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Class {
    #[serde(rename = "EulerDiscreteScheduler")]
    Euler,
    #[serde(rename = "EulerAncestralDiscreteScheduler")]
    EulerAncestral,
    #[serde(rename = "DDIMScheduler")]
    Ddim,
    #[serde(rename = "LCMScheduler")]
    Lcm,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BetaScheduleName {
    Linear,
    ScaledLinear,
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}
