//! `export`: every published form of the finished stages.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use trainer::distill::{StagePaths, manifest_flow, release};
use trainer::recipe::Stage;
use trainer::{Error, Result};

/// Writes each finished stage of a run into RUN/export/STAGE in the forms that users of few-step models know: bare UNet,
/// LoRA, single file and workflow for ComfyUI, scheduler settings, model card.
///
/// Exit codes: 0 done, 1 failed, 2 the input is wrong.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder with model.toml and stages/.
    #[arg(long)]
    manifest: PathBuf,
    /// Folder of the run.
    #[arg(long)]
    run: PathBuf,
    /// A stage by name; all finished ones where none is named.
    #[arg(long)]
    stage: Option<String>,
}

fn main() -> ExitCode {
    console::start_log("info");
    let arguments = Arguments::parse();
    console::run("export", || run(&arguments), Error::exit_code)
}

fn run(arguments: &Arguments) -> Result<()> {
    let flow = manifest_flow(&arguments.manifest, &arguments.run)?;
    let folder = arguments.manifest.join("stages");
    let stages = match &arguments.stage {
        Some(name) => vec![Stage::load(&folder, name, &flow)?],
        None => Stage::load_all(&folder, &flow)?,
    };
    for stage in &stages {
        if arguments.stage.is_none() && !StagePaths::new(&arguments.run, &stage.name).is_done() {
            println!("stage {} is not finished: passed over", stage.name);
            continue;
        }
        for path in release(&arguments.manifest, &arguments.run, stage)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}
