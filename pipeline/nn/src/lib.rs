//! Torch layers shared by every network of the toolkit, and the strict loading and saving of their weights.
//!
//! A network is a struct of layers that is built by walking a [`Scope`], a path into a set of [`Weights`]. Paths are
//! diffusers' own (`down_blocks.0.resnets.1.conv1.weight`), inside and out, so a file's names are the code's names.
//!
//! ```
//! use nn::{Conv2d, Conv2dConfig, Linear, Scope, Weights};
//!
//! struct Net {
//!     conv: Conv2d,
//!     head: Linear,
//! }
//!
//! impl Net {
//!     fn new(scope: &Scope) -> Self {
//!         Self {
//!             conv: scope.sub("conv").conv2d(3, 8, 3, Conv2dConfig::padded(1)),
//!             head: scope.sub("head").linear(8, 2, true),
//!         }
//!     }
//! }
//!
//! let (_net, params) = Weights::seeded(7).build(Net::new).unwrap();
//! let names: Vec<_> = params.names().collect();
//! assert_eq!(names, ["conv.weight", "conv.bias", "head.weight", "head.bias"]);
//! ```
//!
//! Loading is strict: every missing, surplus, misshapen or unreadable tensor is listed in one [`Error::Mismatch`], and
//! a network that is not complete is never returned.

#![deny(unsafe_code)]

mod attention;
mod device;
mod embeddings;
mod error;
mod file;
mod init;
mod layers;
mod lora;
mod params;
mod save;
mod scope;
pub mod settings;
#[cfg(test)]
mod tests;
mod weights;

pub use attention::{Masking, attention};
pub use device::parse_device;
pub use embeddings::{TimestepEmbedding, timestep_embedding};
pub use error::{Error, Mismatch, Misshapen};
pub use init::Init;
pub use layers::{Activation, Conv2d, Conv2dConfig, Embedding, GroupNorm, LayerNorm, Linear};
pub use lora::{Adapters, Lora};
pub use params::Params;
pub use save::save;
pub use scope::Scope;
pub use weights::{Adapted, Weights};
