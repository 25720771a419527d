//! The command line of `curate`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use curate::folder::{Folder, Totals};
use curate::plan::plan;
use curate::reason::Reason;
use curate::recipe::Recipe;
use curate::run::{self, Answers, Outcome};
use curate::stop::Stop;

/// Buffers of megabytes come and go with every image and every column: their pages are kept.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows of LAION, COYO and DataComp to filtered, downloaded and checked image shards.
///
/// Goes on where an earlier run stopped, and does nothing where all is done. Exit codes: 0 done, 1 failed,
/// 2 the input or the recipe is wrong, 130 interrupted and resumable.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Folder with data.toml.
    #[arg(long, value_name = "DIR")]
    manifest: PathBuf,
    /// Folder of the run; results go to its folder `curated`.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Print the recipe with every value spelled out, and do nothing else.
    #[arg(long, conflicts_with = "verify")]
    show_recipe: bool,
    /// Read and filter the tables, tell what a run would request, and request nothing.
    #[arg(long, conflicts_with = "verify")]
    plan: bool,
    /// Ask again for rows of a finished run that failed so: `fetch.dns`, `dns`, `fetch`, or a list of such.
    #[arg(long, value_name = "CLASSES", value_parser = Reason::named_by, conflicts_with_all = ["plan", "verify"])]
    retry_failed: Option<std::vec::Vec<Reason>>,
    /// Take the answers of this finished run instead of asking the network, and apply the rules anew.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["plan", "verify", "retry_failed"])]
    refilter: Option<PathBuf>,
    /// Prove a finished run: shards, samples.parquet and ledger by their checksums, and the counts.
    #[arg(long)]
    verify: bool,
}

fn main() -> ExitCode {
    console::start_log("error");
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console::failure("curate", error, curate::error::Error::exit_code),
    }
}

impl Arguments {
    fn answers(&self) -> Answers {
        match (&self.retry_failed, &self.refilter) {
            (Some(reasons), _) => Answers::Again(reasons.clone()),
            (None, Some(run)) => Answers::StoredIn(run.clone()),
            (None, None) => Answers::Network,
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let stop = Stop::on_signals().context("cannot listen for signals")?;
    let recipe = Recipe::read(&arguments.manifest, &arguments.run)?;
    let folder = Folder::of_run(&arguments.run);
    if arguments.show_recipe {
        say(&recipe.to_toml())
    } else if arguments.plan {
        say(&plan(&recipe, &stop)?.to_string())
    } else if arguments.verify {
        print(&run::verify(&folder)?, "verified")
    } else {
        match run::curate(recipe, &folder, arguments.answers(), &stop)? {
            Outcome::Finished(totals) => print(&totals, "finished"),
            Outcome::AlreadyDone(totals) => print(&totals, "nothing to do, already finished"),
        }
    }
}

fn print(totals: &Totals, outcome: &str) -> Result<()> {
    let Totals { rows, kept, reasons, .. } = totals;
    let mut text = format!("{outcome}: {rows} rows = {kept} kept + {} not kept\n", reasons.total());
    for (reason, rows) in reasons.iter() {
        text += &format!("{rows:>12}  {reason}\n");
    }
    say(&text)
}

/// Writes to standard output; a reader that has gone away, such as `head`, is no failure.
fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}
