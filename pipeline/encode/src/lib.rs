//! The networks on either side of the diffusion model, and the cache of what they make of a data set.
#![forbid(unsafe_code)]

mod base;
pub mod cache;
pub mod clip;
pub mod config;
mod encoder;
mod error;
mod fingerprint;
mod frame;
pub mod manifest;
mod prepare;
pub mod prompt;
mod report;
mod run;
pub mod tokenizer;
pub mod vae;

pub use base::model_folder;
pub use clip::{ClipLayer, ClipLayerConfig, ClipTextModel, ClipTextModelWithProjection, TextStates};
pub use config::{ClipTextConfig, VaeConfig};
pub use error::{Error, Result};
pub use fingerprint::{model_fingerprint, network_hash, surroundings_fingerprint};
pub use manifest::{Dtype, ModelManifest};
pub use prompt::{PromptEmbeddings, TextEncoders, TokenizedCaption, Tokenizers};
pub use run::{Outcome, Work, encode_latents};
pub use tokenizer::{ClipTokenizer, TokenIds};
pub use vae::{AutoencoderKl, MemoryUse, Posterior};
