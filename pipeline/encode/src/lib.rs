//! The networks on either side of the diffusion model, and the cache of what they make of a data set.
#![forbid(unsafe_code)]

pub mod clip;
pub mod config;
mod error;
pub mod prompt;
pub mod tokenizer;
pub mod vae;

pub use clip::{ClipTextModel, ClipTextModelWithProjection, TextStates};
pub use config::{ClipTextConfig, VaeConfig};
pub use error::{Error, Result};
pub use prompt::{PromptEmbeddings, TextEncoders, TokenizedCaption, Tokenizers};
pub use tokenizer::{ClipTokenizer, TokenIds};
pub use vae::{AutoencoderKl, MemoryUse, Posterior};
