//! What can go wrong between a model folder, curated shards and latents.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate; it names the file, the key or the part at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of the model or a manifest is not what it should be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer could not be made from its files, or failed on a text.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The folder.
        path: PathBuf,
        /// What the tokenizers library says.
        source: tokenizers::Error,
    },
    /// Weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] nn::Error),
    /// Shards, an index or a lock.
    #[error(transparent)]
    Shards(#[from] shards::Error),
    /// Torch refused an operation.
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    pub(crate) fn invalid(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Invalid { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
