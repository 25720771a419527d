//! `distill`: one stage of distillation, or all of them.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use trainer::distill::{Done, DumpStep, World, model_shapes, plan, product_rate, run_stage};
use trainer::recipe::Stage;
use trainer::{Error, Result};

/// Distils a model of many steps into one of few, by the stages of a manifest.
///
/// Reads RUN/latents and the teacher, writes RUN/stages/NAME. A run that was stopped goes on where it stopped, bit for
/// bit; one that is done does nothing. Exit codes: 0 done, 1 failed, 2 the input or the recipe is wrong, 130
/// interrupted and resumable.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder with model.toml and stages/.
    #[arg(long)]
    manifest: PathBuf,
    /// Folder of the run.
    #[arg(long)]
    run: PathBuf,
    /// A stage by the name of its recipe, or all, each after its teacher.
    #[arg(long)]
    stage: String,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print the stage's recipe as it will be followed, and stop.
    #[arg(long)]
    show_recipe: bool,
    /// Print the memory, time and disk that each phase will take, and stop. Reads no weights and needs no latents; a
    /// base model that is named by `hf:` is fetched first.
    #[arg(long, conflicts_with_all = ["show_recipe", "dump_step"])]
    plan: bool,
    /// Write all that enters and leaves iteration N (from 1) to a safetensors file.
    #[arg(long, num_args = 2, value_names = ["N", "FILE"], conflicts_with = "show_recipe")]
    dump_step: Option<Vec<String>>,
}

fn main() -> ExitCode {
    console::start_log("info");
    let arguments = Arguments::parse();
    console::run("distill", || run(&arguments), Error::exit_code)
}

fn run(arguments: &Arguments) -> Result<()> {
    let flow = trainer::distill::manifest_flow(&arguments.manifest, &arguments.run)?;
    let folder = arguments.manifest.join("stages");
    let stages = match arguments.stage.as_str() {
        "all" => Stage::load_all(&folder, &flow)?,
        name => vec![Stage::load(&folder, name, &flow)?],
    };
    if arguments.show_recipe {
        for stage in &stages {
            println!("{}", serde_json::to_string_pretty(stage).expect("a recipe has a JSON form"));
        }
        return Ok(());
    }
    let dump = arguments.dump_step.as_deref().map(parse_dump).transpose()?;
    let device = nn::parse_device(&arguments.device)?;
    if arguments.plan {
        let shapes = model_shapes(&arguments.manifest, &arguments.run)?;
        for stage in &stages {
            let rate = product_rate(stage.precision.kind(), device);
            print!("{}", plan(stage, &flow, &shapes)?.describe(rate));
        }
        return Ok(());
    }
    let stop = console::stop_on_signals().map_err(|source| Error::Io {
        action: "watch for signals in",
        path: "this process".into(),
        source,
    })?;
    let world = World::open(&arguments.manifest, &arguments.run, device)?;
    for stage in &stages {
        match run_stage(&world, stage, dump.as_ref(), &stop)? {
            Done::Now => println!("stage {} is exported", stage.name),
            Done::Before => println!("stage {} was done before", stage.name),
        }
    }
    Ok(())
}

fn parse_dump(values: &[String]) -> Result<DumpStep> {
    let [iteration, file] = values else { unreachable!("clap asks for two values") };
    let file = PathBuf::from(file);
    match iteration.parse() {
        Ok(iteration) => Ok(DumpStep { iteration, file }),
        Err(_) => {
            let reason = format!("--dump-step: {iteration:?} is not the number of an iteration");
            Err(Error::Document { path: file, reason })
        }
    }
}
