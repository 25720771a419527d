//! `encode-latents`: the images and captions of a run to latents and text embeddings.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use encode::{ModelManifest, Outcome, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Turns curated images and captions into latents and text embeddings.
///
/// Reads RUN/curated and writes RUN/latents. A run that was stopped goes on where it stopped; one that is done does
/// nothing. Exit codes: 0 done, 1 failed, 2 the input or the manifest is wrong, 130 interrupted and resumable.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder with model.toml.
    #[arg(long)]
    manifest: PathBuf,
    /// Folder of the run.
    #[arg(long)]
    run: PathBuf,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

fn main() -> ExitCode {
    console::start_log("info");
    let arguments = Arguments::parse();
    console::exit_code_of(|| report(run(&arguments)))
}

fn report(outcome: Result<Outcome>) -> ExitCode {
    match outcome {
        Ok(Outcome::Done { totals, work }) => {
            let seconds = work.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
            let part = |spent: Duration| 100.0 * spent.as_secs_f64() / seconds;
            println!(
                "{} samples encoded, {} refused, {} captions truncated; {:.1} images/s, device busy {:.0} %, \
                 tokenising {:.1} %, files {:.1} %",
                totals.encoded,
                totals.refused.len(),
                totals.truncated_captions,
                work.samples as f64 / seconds,
                part(work.device),
                part(work.tokenising),
                part(work.files)
            );
            ExitCode::SUCCESS
        }
        Ok(Outcome::NothingToDo { totals }) => {
            println!("{} samples are encoded already", totals.encoded);
            ExitCode::SUCCESS
        }
        Ok(Outcome::Interrupted) => {
            eprintln!("interrupted; the same command goes on from here");
            ExitCode::from(console::INTERRUPTED)
        }
        Err(error) => {
            eprintln!("encode-latents: {error}");
            ExitCode::from(if error.is_input() { 2 } else { 1 })
        }
    }
}

fn run(arguments: &Arguments) -> Result<Outcome> {
    let device = nn::parse_device(&arguments.device)?;
    let manifest = ModelManifest::read(&arguments.manifest, &arguments.run)?;
    let stop = console::stop_on_signals().map_err(|source| encode::Error::Signals { source })?;
    encode::encode_latents(&manifest, &arguments.run, device, &progress_bar(), &stop)
}

fn progress_bar() -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} images, {per_sec}, {eta} left")
        .expect("the template is well formed");
    ProgressBar::with_draw_target(None, target).with_style(style)
}
