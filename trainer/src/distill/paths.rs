//! Where a stage leaves what.

use std::path::{Path, PathBuf};

/// `RUN/stages/NAME/`.
#[derive(Debug, Clone)]
pub struct StagePaths {
    root: PathBuf,
}

impl StagePaths {
    /// Of the stage `name` of a run.
    pub fn new(run: &Path, name: &str) -> StagePaths {
        StagePaths { root: run.join("stages").join(name) }
    }

    /// The folder of the stage.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Saved states, one folder each.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// What users load.
    pub fn export(&self) -> PathBuf {
        self.root.join("export")
    }

    /// Whether the stage is finished: its export is published last.
    pub fn is_done(&self) -> bool {
        self.export().join("model_index.json").is_file()
    }

    /// Grids of pictures.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// One JSON object for each iteration.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The same for TensorBoard.
    pub fn events(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// The adapters of the last phase that trained some.
    pub fn adapters(&self) -> PathBuf {
        self.root.join("lora.safetensors")
    }

    /// For reading in a browser.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }
}
