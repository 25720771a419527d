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
    /// A sample of the cache cannot be used.
    #[error("sample {key}, .{part}: {reason}")]
    Sample {
        /// The sample.
        key: String,
        /// The part's extension.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to encode.
    #[error("{}: no curated images; run `make curate` first", folder.display())]
    NotCurated {
        /// Where they should be.
        folder: PathBuf,
    },
    /// The curated shards are not on this machine.
    #[error("{}: its shards lie in an object store, as target.json says; bring them to the folder `shards` here", folder.display())]
    ShardsElsewhere {
        /// The curated run.
        folder: PathBuf,
    },
    /// The folder holds latents that were made otherwise.
    #[error(
        "{}: holds latents that were made otherwise ({}); choose another --run, or remove this folder to encode anew",
        folder.display(), differences.join(", ")
    )]
    MadeOtherwise {
        /// The folder of latents.
        folder: PathBuf,
        /// The parts that differ.
        differences: Vec<String>,
    },
    /// A model could not be had by its name.
    #[error(transparent)]
    Hub(#[from] hub::Error),
    /// Weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] nn::Error),
    /// Shards, an index or a lock.
    #[error(transparent)]
    Shards(#[from] shards::Error),
    /// The handlers of SIGINT and SIGTERM could not be set.
    #[error("signal handlers: {source}")]
    Signals {
        /// What the system says.
        source: std::io::Error,
    },
    /// Torch refused an operation.
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// Whether the input or the recipe is at fault, and not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Error::Invalid { .. }
            | Error::Tokenizer { .. }
            | Error::Sample { .. }
            | Error::NotCurated { .. }
            | Error::ShardsElsewhere { .. }
            | Error::MadeOtherwise { .. } => true,
            Error::Io { source, .. } | Error::Weights(nn::Error::Io { source, .. }) => {
                source.kind() == std::io::ErrorKind::NotFound
            }
            Error::Hub(error) => error.is_input(),
            Error::Weights(error) => !matches!(error, nn::Error::Torch { .. } | nn::Error::Save(_)),
            Error::Shards(error) => !matches!(error, shards::Error::Io { .. } | shards::Error::Locked { .. }),
            Error::Signals { .. } | Error::Torch(_) => false,
        }
    }

    pub(crate) fn invalid(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Invalid { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
