//! The training side: SDXL's UNet, samplers, distillation, and the programs `sample`, `distill`, `export` and `evaluate`.

#![forbid(unsafe_code)]

pub mod schedulers;
mod settings;
pub mod unet;

pub use settings::SettingsError;
