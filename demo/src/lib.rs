//! The demo world: a seeded generator of captioned scenes, the source tables that describe them and a loopback web
//! server that serves them with the faults of the real web.
//!
//! The three parts stand alone. [`scene`] draws scenes and puts them into words: pretraining renders them in memory
//! at a small size, and the probe learns from their labels. [`world`] turns a seed into a folder with LAION- and
//! COYO-shaped parquet tables and image files, the same bytes for the same seed. [`serve`] answers HTTP requests
//! from that folder.

#![forbid(unsafe_code)]

mod encode;
pub mod fate;
pub mod render;
pub mod routes;
pub mod scene;
pub mod serve;
mod tables;
pub mod tokenizer;
pub mod world;

use std::path::PathBuf;

/// What can go wrong between a seed and a served world.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the world could not be published or read back.
    #[error(transparent)]
    Publish(#[from] shards::Error),
    /// An image could not be encoded.
    #[error("encoding {path}: {source}")]
    Encode {
        /// The image's path in the world.
        path: String,
        /// What the encoder said.
        source: image::ImageError,
    },
    /// A table could not be written.
    #[error("{table}: {source}")]
    Table {
        /// The table's path in the world.
        table: String,
        /// What the parquet writer said.
        source: parquet::errors::ParquetError,
    },
    /// The folder holds a world of another seed, port or version.
    #[error("{} holds a world made with {found}, not with {wanted}: remove it or name another folder", dir.display())]
    OtherWorld {
        /// The folder.
        dir: PathBuf,
        /// What made it.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// There is no finished world in the folder.
    #[error("{}: no world here; make one with `demo-world generate --world {}`", dir.display(), dir.display())]
    NoWorld {
        /// The folder.
        dir: PathBuf,
    },
    /// The port is taken.
    #[error("cannot listen on 127.0.0.1:{port}: {source}; free the port, or generate a world with another `--port`")]
    Listen {
        /// The port asked for.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// Signals cannot be awaited.
    #[error("waiting for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The command to run while serving did not start.
    #[error("cannot run {command}: {source}")]
    Command {
        /// The program.
        command: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// The exit code that tells a script what happened: 2 where what was asked for is wrong.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::OtherWorld { .. } | Error::NoWorld { .. } => 2,
            _ => 1,
        }
    }
}

/// Every function that can fail here fails with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
