//! Makes the demo world and serves it on loopback.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use demo_world::serve::Server;
use demo_world::tokenizer::write_tokenizer;
use demo_world::world::{Identity, Outcome, generate};
use demo_world::{Error, serve};
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes the demo world and serves it on loopback, faults included.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make tables and pictures; nothing is done where they are there.
    Generate {
        /// The folder of the world.
        #[arg(long, value_name = "DIR")]
        world: PathBuf,
        /// Same seed, same bytes.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The port that the tables' addresses name.
        #[arg(long, default_value_t = DEFAULT_PORT)]
        port: u16,
        /// Sound pictures with captions in addition to the usual 200: what long trainings need
        #[arg(long, value_name = "ROWS", default_value_t = 0)]
        more_clean: usize,
    },
    /// Learn the tokenizer of the demo's model from captions, and write vocab.json and merges.txt.
    Tokenizer {
        /// The tokenizer's folder.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Answer requests from the world, until interrupted or, with a command, until that ends.
    Serve {
        /// The folder of the world.
        #[arg(long, value_name = "DIR")]
        world: PathBuf,
        /// The port to listen on: the one the world was made for, unless told otherwise.
        #[arg(long)]
        port: Option<u16>,
        /// A command to run while serving; its exit code becomes this program's.
        #[arg(last = true, value_name = "CMD ARGS")]
        command: Vec<String>,
    },
}

const DEFAULT_PORT: u16 = 18573;

fn main() -> ExitCode {
    console::start_log("error");
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => console::failure("demo-world", error, Error::exit_code),
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Generate { world, seed, port, more_clean } => {
            let (outcome, summary) = generate(&world, Identity::new(seed, port, more_clean))?;
            let verb = match outcome {
                Outcome::Made => "made",
                Outcome::Found => "found",
            };
            println!(
                "{verb} {}: {} rows, {} pictures, {:.0} MB",
                world.display(),
                summary.rows.values().sum::<usize>(),
                summary.images,
                summary.image_bytes as f64 / 1e6,
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Tokenizer { out } => {
            write_tokenizer(&out)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve { world, port, command } => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("starting the server's threads")?;
            let code = runtime.block_on(async {
                let server = Server::bind(&world, port).await?;
                match command.split_first() {
                    Some((program, arguments)) => serve::during(server, program, arguments).await,
                    None => serve::until_interrupted(server).await.map(|()| 0),
                }
            })?;
            Ok(ExitCode::from(code))
        }
    }
}
