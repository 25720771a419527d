//! The files that every stage of stepdown leaves behind: WebDataset shards, their index, and the rules by
//! which a file becomes visible.
//!
//! A *shard* is an uncompressed tar archive whose members share a basename when they belong to one *sample*:
//! `KEY.jpg`, `KEY.txt`, `KEY.json`. A folder of shards is described by one `index.json` that is written last,
//! so that a reader who finds the index finds everything it names. Shards are byte-reproducible: same samples,
//! same bytes.
//!
//! ```text
//! RUN/curated/shards/000000.tar     KEY.jpg KEY.json KEY.txt ...
//! RUN/curated/index.json            names, counts, sizes, SHA-256, totals, fingerprint
//! ```
//!
//! This crate knows neither tables nor networks; every other crate that reads or writes results stands on it.
#![forbid(unsafe_code)]

pub mod atomic;
mod error;
pub mod fingerprint;
pub mod hash;
pub mod index;
pub mod lock;
pub mod npy;
pub mod sample;
pub mod shard;

pub use error::Error;
pub use fingerprint::Fingerprint;
pub use hash::ContentHash;
pub use index::Index;
pub use lock::RunLock;
pub use sample::{Part, Sample};
pub use shard::{ShardEntry, ShardReader, ShardWriter};

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
