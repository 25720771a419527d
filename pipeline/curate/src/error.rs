//! What stops a run.

use std::path::{Path, PathBuf};

use shards::fingerprint::Difference;

/// What stops a run. A row that fails is not here: it is a [`Reason`](crate::reason::Reason) in the ledger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe cannot be read, parsed or made sense of.
    #[error("{}: {reason}", path.display())]
    Recipe {
        /// The document.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A path or glob of a source leads to no table.
    #[error("source {source_index}: no parquet file matches {pattern}: {reason}")]
    NoTable {
        /// Position of the source in the recipe, from 0.
        source_index: usize,
        /// The path as it was resolved.
        pattern: String,
        /// What is there instead.
        reason: String,
    },
    /// A table cannot be read, or is not the table that the recipe takes it for.
    #[error("{}: {reason}", path.display())]
    Table {
        /// The parquet file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An object store refuses, or cannot be reached.
    #[error("{url}: {reason}")]
    Store {
        /// What was asked for.
        url: String,
        /// What the store said, in the words of somebody who has to mend it.
        reason: String,
        /// Whether recipe or environment are wrong, rather than the store or the network.
        wrong: bool,
    },
    /// The run folder holds the work of another recipe or of other tables.
    #[error(
        "{}: holds a run of another recipe: {}; choose another --run, or remove this folder",
        folder.display(), list(differences)
    )]
    Changed {
        /// `RUN/curated`.
        folder: PathBuf,
        /// The parts of the fingerprint that differ.
        differences: Vec<Difference>,
    },
    /// The run whose answers are to be used again asked or measured otherwise.
    #[error(
        "{}: its answers are not those of this recipe: {}; what changes them needs a new run, without --refilter",
        folder.display(), list(differences)
    )]
    NotComparable {
        /// `RUN/curated` of that run.
        folder: PathBuf,
        /// The parts of the fingerprint that differ and are no rules.
        differences: Vec<Difference>,
    },
    /// Nothing to verify or to go on from.
    #[error("{}: holds no finished run; run `curate` without this option first", folder.display())]
    Unfinished {
        /// `RUN/curated`.
        folder: PathBuf,
    },
    /// A second round was asked for before the first is through.
    #[error("{}: holds an unfinished run; finish it first: run the same command without --retry-failed", folder.display())]
    InTheMiddle {
        /// `RUN/curated`.
        folder: PathBuf,
    },
    /// The counts of a run contradict each other, or its files do.
    #[error("{}: {reason}", path.display())]
    Inconsistent {
        /// The file or folder.
        path: PathBuf,
        /// The contradiction.
        reason: String,
    },
    /// The network is down.
    #[error("{0}; nothing is lost: run the same command again to go on")]
    Outage(#[from] fetch::Outage),
    /// A file could not be read, written or locked.
    #[error(transparent)]
    Storage(#[from] shards::Error),
    /// A fault of this program.
    #[error("a request panicked, which is a fault of this program: {0}")]
    Panicked(String),
    /// SIGINT or SIGTERM.
    #[error("interrupted; run the same command again to go on")]
    Interrupted,
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The exit code that tells a script what happened.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Recipe { .. }
            | Error::NoTable { .. }
            | Error::Table { .. }
            | Error::Changed { .. }
            | Error::NotComparable { .. }
            | Error::Unfinished { .. }
            | Error::InTheMiddle { .. }
            | Error::Store { wrong: true, .. } => 2,
            Error::Interrupted => 130,
            Error::Inconsistent { .. }
            | Error::Outage(_)
            | Error::Panicked(_)
            | Error::Storage(_)
            | Error::Store { .. } => 1,
        }
    }

    pub(crate) fn table(path: &Path, reason: impl ToString) -> Error {
        Error::Table { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn inconsistent(path: &Path, reason: impl ToString) -> Error {
        Error::Inconsistent { path: path.to_owned(), reason: reason.to_string() }
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
