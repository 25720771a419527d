//! What can go wrong on the way of a model into the cache.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate; it names the model, the file or the address at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is none.
    #[error("{name}: {reason}")]
    Name {
        /// As it was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A variable of the environment that cannot be used.
    #[error("{variable} {reason}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The network is to be left alone and the cache is not enough.
    #[error("{model}: {lacks}, and HF_HUB_OFFLINE is set")]
    Offline {
        /// The model.
        model: String,
        /// What is missing where.
        lacks: String,
    },
    /// The hub does not know the repository, the revision or the file.
    #[error("{url}: not found ({answer})")]
    NotFound {
        /// What was asked for.
        url: String,
        /// The status, and the hub's own word for it.
        answer: String,
    },
    /// The hub knows it and does not give it, or does not say whether it knows it.
    #[error("{url}: refused ({answer}); the name is wrong, or it is private or gated: {hint}")]
    Denied {
        /// What was asked for.
        url: String,
        /// The status, and the hub's own word for it.
        answer: String,
        /// What may help.
        hint: &'static str,
    },
    /// A server could not be reached, or went away, as often as it was tried.
    #[error("{url}: {reason}, {attempts} times in a row; the same command goes on from here")]
    Network {
        /// What was asked for.
        url: String,
        /// The last reason.
        reason: String,
        /// Tries in a row that brought nothing.
        attempts: u32,
    },
    /// An answer that is not what the hub's protocol says.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The repository is not a pipeline of SDXL's parts.
    #[error("{model}: holds no {lacks}; a model is a repository in diffusers' layout with SDXL's parts")]
    Layout {
        /// The model.
        model: String,
        /// The file that is not there.
        lacks: String,
    },
    /// A file or folder of the cache.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the name or the environment is at fault, and not the machine or the network.
    pub fn is_input(&self) -> bool {
        match self {
            Error::Name { .. }
            | Error::Environment { .. }
            | Error::Offline { .. }
            | Error::NotFound { .. }
            | Error::Denied { .. }
            | Error::Layout { .. } => true,
            Error::Network { .. } | Error::Answer { .. } | Error::Io { .. } => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
