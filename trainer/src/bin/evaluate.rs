//! Measures the students of a run against their teacher.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use trainer::evaluate::{EvaluateRecipe, evaluate, markdown};
use trainer::{Error, Result};

/// Measures the finished stages of a run and the base model on held-out captions, and writes RUN/evaluation: the table
/// as JSON, CSV and Markdown, and report.html with charts and pictures. Goes on where it stopped.
///
/// Exit codes: 0 done, 1 failed, 2 the input or the recipe is wrong, 130 interrupted and resumable.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The manifest's folder, with evaluate.toml
    #[arg(long, value_name = "DIR")]
    manifest: PathBuf,
    /// The run's folder
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Print the recipe as it is understood, and stop
    #[arg(long)]
    show_recipe: bool,
}

fn main() -> ExitCode {
    console::start_log("info");
    let arguments = Arguments::parse();
    console::run("evaluate", || run(&arguments), Error::exit_code)
}

fn run(arguments: &Arguments) -> Result<()> {
    let recipe = EvaluateRecipe::read(&arguments.manifest)?;
    if arguments.show_recipe {
        println!("{}", serde_json::to_string_pretty(&recipe).expect("a recipe has a JSON form"));
        return Ok(());
    }
    let device = nn::parse_device(&arguments.device)?;
    let interrupted = console::stop_on_signals().map_err(|source| Error::Io {
        action: "watch for signals in",
        path: "this process".into(),
        source,
    })?;
    let rows = evaluate(&recipe, &arguments.manifest, &arguments.run, device, &interrupted)?;
    print!("{}", markdown(&rows));
    Ok(())
}
