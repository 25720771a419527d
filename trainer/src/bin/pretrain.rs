//! Trains the demo's base model from nothing.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use trainer::Error;
use trainer::pretrain::{Desk, Goal, Phase, PretrainRecipe, Start, pretrain_model, pretrain_probe};

/// Trains the demo's base model from nothing: autoencoder, text encoders and UNet. Goes on where it stopped.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The manifest's folder, with pretrain.toml and the model's configurations.
    #[arg(long, value_name = "DIR", default_value = "manifests/demo")]
    manifest: PathBuf,
    /// Checkpoints and metrics [default: pretrain-demo in STEPDOWN_CACHE or ~/.cache/stepdown]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Threads for torch
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Train the probe that judges pictures of the demo world instead of the model
    #[arg(long)]
    probe: bool,
    /// Train this phase alone and export nothing; unet and decoder can be trained side by side
    #[arg(long, value_enum, value_name = "PHASE", conflicts_with = "probe")]
    only: Option<Phase>,
    /// Train nothing: export the model's checkpoints as they are
    #[arg(long, conflicts_with_all = ["probe", "only"])]
    export_only: bool,
    /// Where there are no checkpoints, go on from the weights in the model's folder instead of beginning anew
    #[arg(long, conflicts_with = "probe")]
    from_exported: bool,
    /// Print the recipe as it is understood, and stop
    #[arg(long)]
    show_recipe: bool,
}

fn main() -> ExitCode {
    console::start_log("info");
    let arguments = Arguments::parse();
    console::exit_code_of(|| match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console::failure("pretrain", error, Error::exit_code),
    })
}

fn run(arguments: Arguments) -> Result<()> {
    let recipe = PretrainRecipe::read(&arguments.manifest.join("pretrain.toml"))?;
    if arguments.show_recipe {
        println!("{}", toml::to_string_pretty(&recipe)?);
        return Ok(());
    }
    let interrupted = console::stop_on_signals().context("listening for signals")?;
    tch::set_num_threads(arguments.threads);
    let work = arguments.work.map_or_else(default_work, Ok)?;
    let desk = Desk::new(&work, Duration::from_secs_f64(60.0 * recipe.checkpoint_minutes), interrupted)?;
    let done = if arguments.probe {
        serde_json::to_string(&pretrain_probe(&recipe, &arguments.manifest, &desk)?)?
    } else {
        let goal = match arguments.only {
            Some(phase) => Goal::Phase(phase),
            None if arguments.export_only => Goal::ExportCheckpoints,
            None => Goal::Model,
        };
        let start = if arguments.from_exported { Start::exported(&recipe, &arguments.manifest)? } else { Start::Seed };
        match pretrain_model(&recipe, &arguments.manifest, &desk, goal, &start)? {
            Some(exported) => serde_json::to_string(&exported)?,
            None => return Ok(()),
        }
    };
    println!("{done}");
    Ok(())
}

fn default_work() -> Result<PathBuf> {
    let cache = std::env::var_os("STEPDOWN_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/stepdown")));
    Ok(cache.context("neither STEPDOWN_CACHE nor HOME is set: name a folder with --work")?.join("pretrain-demo"))
}
