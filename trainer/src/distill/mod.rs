//! One stage, from its recipe to its export: the loop, its checkpoints and its records.
//!
//! The loop owns scheduling, logging and files; what is minimised is in [`crate::objectives`], which knows none of it.

mod checkpoint;
mod export;
mod grid;
pub mod metrics;
mod paths;
mod phase;
mod plan;
mod rehearsal;
mod release;
mod report;
mod run;
mod tensorboard;

pub use export::{distilled_steps, released_name};
pub use paths::StagePaths;
pub use plan::{PhasePlan, StagePlan, model_shapes, plan, product_rate};
pub use rehearsal::{Rehearsal, Shapes};
pub use release::release;
pub use run::{Done, DumpStep, World, run_stage};

use std::path::Path;

/// The noise schedule of a manifest's base model, which says where stages' timesteps lie.
pub fn manifest_flow(manifest: &Path, run: &Path) -> crate::Result<crate::flow::Flow> {
    let model = encode::ModelManifest::read(manifest, run)?;
    Ok(crate::model::ModelFolder::open(&model.base)?.flow)
}
