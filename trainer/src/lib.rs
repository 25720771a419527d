//! The training side: SDXL's UNet, samplers, distillation, and the programs `sample`, `distill`, `export` and `evaluate`.

#![forbid(unsafe_code)]

pub mod adapters;
pub mod condition;
pub mod data;
pub mod discriminator;
pub mod distill;
pub mod draw;
mod error;
pub mod evaluate;
pub mod flow;
pub mod lora_file;
pub mod model;
pub mod objectives;
pub mod optimizer;
pub mod pretrain;
pub mod probe;
pub mod recipe;
pub mod sample;
pub mod schedulers;
pub mod single_file;
pub mod unet;

pub use error::{Error, Result};
