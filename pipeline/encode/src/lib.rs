//! The networks on either side of the diffusion model, and the cache of what they make of a data set.
#![forbid(unsafe_code)]

pub mod clip;
pub mod config;
mod error;
pub mod vae;

pub use clip::{ClipTextModel, ClipTextModelWithProjection, TextStates};
pub use config::{ClipTextConfig, VaeConfig};
pub use error::{Error, Result};
pub use vae::{AutoencoderKl, MemoryUse, Posterior};
