//! The folder of a run, and what its index counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shards::{ContentHash, Index};

use crate::counts::Counts;
use crate::error::Result;

/// The format named in `index.json`.
pub const FORMAT: &str = "stepdown-curated";
/// Its version.
pub const VERSION: u32 = 1;

/// What `index.json` counts. `rows = kept +` the sum of `reasons`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Rows of all tables.
    pub rows: u64,
    /// Samples.
    pub kept: u64,
    /// Rows that are no samples, by reason.
    pub reasons: Counts,
    /// Hashes of the files of `RUN/curated` that the rows are told in, by their paths there. Absent from the indices of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, ContentHash>,
}

/// The files of a run.
#[derive(Debug)]
pub struct Folder {
    /// `RUN/curated`.
    pub root: PathBuf,
}

impl Folder {
    /// `RUN/curated`.
    pub fn of_run(run: &Path) -> Folder {
        Folder { root: run.join("curated") }
    }

    /// Where the journal lies while the run goes on.
    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// What the run is being worked on for.
    pub(crate) fn task(&self) -> PathBuf {
        self.journal().join("task.json")
    }

    /// The journal's records.
    pub(crate) fn answers(&self) -> PathBuf {
        self.journal().join("answers")
    }

    /// Where the ledger lies.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger")
    }

    /// The published index, if there is one.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn index(&self) -> Result<Option<Index<Totals>>> {
        Ok(Index::load(&self.root, FORMAT, VERSION)?)
    }
}
