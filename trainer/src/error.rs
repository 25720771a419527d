//! Everything that can go wrong in this crate.

use std::io;
use std::path::{Path, PathBuf};

use shards::Fingerprint;

use crate::recipe::RecipeError;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A manifest or recipe that says what cannot be done.
    #[error("{path}: {source}")]
    Recipe {
        /// The document.
        path: PathBuf,
        /// What is wrong with it.
        source: RecipeError,
    },
    /// A command line that asks for what cannot be done.
    #[error("{0}")]
    Argument(String),
    /// A document that cannot be read as what it should be.
    #[error("{path}: {reason}")]
    Document {
        /// The document.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A stage that the manifest has no document for.
    #[error("there is no stage {stage:?} in {folder}: it has {known}")]
    UnknownStage {
        /// The stage asked for.
        stage: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// The stages that are there.
        known: String,
    },
    /// A model that the stage learns from is not there.
    #[error("the teacher {folder} does not exist: {hint}")]
    NoTeacher {
        /// Where it should be.
        folder: PathBuf,
        /// What makes it.
        hint: String,
    },
    /// Two networks that have to be alike are not.
    #[error("{folder} is no {expected}: {difference}")]
    WrongModel {
        /// The model's folder.
        folder: PathBuf,
        /// What was needed.
        expected: String,
        /// How it differs.
        difference: String,
    },
    /// Latents that do not fit the model.
    #[error("the latents in {folder} do not fit: {reason}; run encode-latents for this manifest")]
    Latents {
        /// The folder of latents.
        folder: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A checkpoint or a run that belongs to something else.
    #[error("{path} belongs to another run ({difference}); remove the folder to start anew")]
    Stale {
        /// The folder or file.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// Gradients that stay NaN or infinite.
    #[error(
        "{updates} updates in a row had NaN or infinite gradients ({what}), the last at iteration {iteration}; the last checkpoint is untouched"
    )]
    NonFinite {
        /// How many were skipped.
        updates: u32,
        /// Whose gradients.
        what: &'static str,
        /// Counted over the stage.
        iteration: u64,
    },
    /// A discriminator that no longer teaches.
    #[error(
        "the discriminator has won: its loss was below {limit} for {iterations} iterations up to {iteration}; \
         lower the learning rate or lengthen the conditional phase"
    )]
    Collapsed {
        /// The limit of the recipe.
        limit: f64,
        /// The patience of the recipe.
        iterations: u64,
        /// Counted over the stage.
        iteration: u64,
    },
    /// The user asked to stop; the run can go on.
    #[error("interrupted at iteration {iteration}; repeat the command to go on")]
    Interrupted {
        /// Counted over the stage.
        iteration: u64,
    },
    /// Files of a run.
    #[error(transparent)]
    Shards(#[from] shards::Error),
    /// Weights.
    #[error(transparent)]
    Weights(#[from] nn::Error),
    /// VAE, tokenizers and text encoders.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// torch.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// torch through the shim.
    #[error(transparent)]
    Shim(#[from] torch_shim::Error),
}

/// Refuses what lies at `path` and was made from `recorded`, where that is not `current`.
pub(crate) fn refuse_stale(path: &Path, recorded: &Fingerprint, current: &Fingerprint) -> Result<()> {
    let differences: Vec<String> = recorded.difference(current).iter().map(ToString::to_string).collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Stale { path: path.to_owned(), difference: differences.join(", ") })
}

impl Error {
    /// For `map_err` on file operations.
    pub fn io<'a>(action: &'static str, path: impl AsRef<Path> + 'a) -> impl FnOnce(io::Error) -> Error + 'a {
        move |source| Error::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// Exit codes of the binaries: 1 failed, 2 the input or the recipe is wrong, 130 interrupted and resumable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Interrupted { .. } => 130,
            // A file that is not there is the input's fault; a disk that is full or unreadable is nobody's.
            Error::Weights(nn::Error::Io { source, .. }) | Error::Shards(shards::Error::Io { source, .. })
                if source.kind() != io::ErrorKind::NotFound =>
            {
                1
            }
            Error::Recipe { .. }
            | Error::Document { .. }
            | Error::Argument(_)
            | Error::UnknownStage { .. }
            | Error::NoTeacher { .. }
            | Error::WrongModel { .. }
            | Error::Latents { .. }
            | Error::Stale { .. }
            | Error::Weights(_)
            | Error::Shards(_) => 2,
            Error::Encode(error) if error.is_input() => 2,
            _ => 1,
        }
    }
}
