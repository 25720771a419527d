//! `pretrain` and `evaluate` from outside, on a model and a probe that have seen next to nothing.

#[path = "../common/hashed.rs"]
mod hashed;
mod judges;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo");

const PRETRAIN: &str = r#"
model = "model"
seed = 1
resolution = 128
checkpoint_minutes = 60.0
probe = { file = "probe.safetensors", batch = 2, updates = { steps = 2, learning_rate = 1e-3, warmup_steps = 0, cooldown_steps = 0, ema_decay = 0.9 } }
vae = { windows = 1, window = 64, whole_steps = 1, whole_batch = 1, squares_weight = 2.0, slopes_weight = 0.25, kl_weight = 5e-4, updates = { steps = 2, learning_rate = 1e-3, warmup_steps = 0, cooldown_steps = 0, ema_decay = 0.9 } }
decoder = { batch = 1, updates = { steps = 2, learning_rate = 1e-3, warmup_steps = 0, cooldown_steps = 0, ema_decay = 0.9 } }
latents = { count = 8 }
text = { batch = 2, updates = { steps = 2, learning_rate = 1e-3, warmup_steps = 0, cooldown_steps = 0, ema_decay = 0.9 } }
unet = { batch = 2, null_prompts = 0.5, updates = { steps = UNET_STEPS, learning_rate = 1e-3, warmup_steps = 0, cooldown_steps = 0, ema_decay = 0.9 } }
"#;

const EVALUATE: &str = r#"
exam = { kind = "demo", probe = "probe.safetensors", captions = 65, references = 65 }
seeds = [0]
batch = 32
grid = 4
teacher = { steps = 2, guidance_scale = 3.0 }
fewer_steps = [1]
"#;

/// A copy of the demo's manifest, without weights and stages, with recipes of a few updates.
struct Manifest(tempfile::TempDir);

impl Manifest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_configurations(&Path::new(DEMO).join("model"), &folder.path().join("model"));
        fs::create_dir(folder.path().join("stages")).unwrap();
        fs::copy(Path::new(DEMO).join("model.toml"), folder.path().join("model.toml")).unwrap();
        fs::write(folder.path().join("evaluate.toml"), EVALUATE).unwrap();
        let manifest = Self(folder);
        manifest.set_unet_steps(2);
        manifest
    }

    fn set_unet_steps(&self, steps: u64) {
        fs::write(self.path("pretrain.toml"), PRETRAIN.replace("UNET_STEPS", &steps.to_string())).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pretrain(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pretrain"))
            .args(["--manifest", self.0.path().to_str().unwrap()])
            .args(["--work", self.path("work").to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evaluate"));
        command.args(["--manifest", self.0.path().to_str().unwrap()]);
        command.args(["--run", self.path("run").to_str().unwrap()]);
        command
    }

    fn evaluate(&self) -> Output {
        self.command().output().unwrap()
    }

    fn results(&self) -> Vec<Value> {
        serde_json::from_slice(&fs::read(self.path("run/evaluation/results.json")).unwrap()).unwrap()
    }

    fn weights(&self) -> Vec<Vec<u8>> {
        ["vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"]
            .map(|name| fs::read(self.path(&format!("model/{name}.safetensors"))).unwrap())
            .into()
    }
}

fn copy_configurations(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_configurations(&path, &target);
        } else if path.extension().is_none_or(|extension| extension != "safetensors") {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn refused(output: &Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(words), "{stderr}");
}

#[track_caller]
fn refused_by(manifest: &Manifest, words: &str) {
    refused(&manifest.evaluate(), words);
}

/// A UNet phase that ends, is lengthened and goes on gives the weights of one that was long from the start.
#[test]
fn pretraining_goes_on_to_the_same_weights() {
    let straight = Manifest::new();
    straight.set_unet_steps(4);
    succeeded(&straight.pretrain(&[]));

    let resumed = Manifest::new();
    succeeded(&resumed.pretrain(&[]));
    let short = resumed.weights();
    resumed.set_unet_steps(4);
    succeeded(&resumed.pretrain(&[]));
    assert!(resumed.weights() == straight.weights(), "resumed and straight weights differ");
    assert!(resumed.weights() != short);

    let metrics = fs::read_to_string(resumed.path("work/metrics.jsonl")).unwrap();
    let steps: Vec<(String, u64)> = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| (line["phase"].as_str().unwrap().to_owned(), line["step"].as_u64().unwrap()))
        .collect();
    let expected = [("vae", 2), ("text", 2), ("unet", 2), ("decoder", 2), ("unet", 4)]
        .map(|(phase, step)| (phase.to_owned(), step));
    assert_eq!(steps, expected);

    // A phase that has begun is bound to what it began with.
    let recipe = fs::read_to_string(resumed.path("pretrain.toml")).unwrap();
    fs::write(resumed.path("pretrain.toml"), recipe.replace("seed = 1", "seed = 2")).unwrap();
    refused(&resumed.pretrain(&[]), "it began with");
}

/// Exported weights are a start for whoever has no checkpoints, and phases can be trained one by one.
#[test]
fn exported_weights_go_on_without_checkpoints() {
    let manifest = Manifest::new();
    succeeded(&manifest.pretrain(&[]));
    let exported = manifest.weights();
    let seen = || serde_json::from_slice::<Value>(&fs::read(manifest.path("model/pretrained.json")).unwrap()).unwrap();
    assert_eq!((seen()["unet_updates"].as_u64(), seen()["decoder_updates"].as_u64()), (Some(2), Some(2)));

    // Nothing is left to do: the weights come back as they were.
    fs::remove_dir_all(manifest.path("work")).unwrap();
    succeeded(&manifest.pretrain(&["--from-exported"]));
    assert!(manifest.weights() == exported, "nothing was trained, and the weights have changed");

    // The UNet alone goes on. Its text encoders go along, the autoencoder stays.
    fs::remove_dir_all(manifest.path("work")).unwrap();
    manifest.set_unet_steps(4);
    succeeded(&manifest.pretrain(&["--from-exported", "--only", "unet"]));
    assert!(manifest.weights() == exported, "a single phase has exported");
    succeeded(&manifest.pretrain(&["--export-only"]));
    let now = manifest.weights();
    assert!(now[0] == exported[0]);
    assert!(now[1..].iter().zip(&exported[1..]).all(|(now, then)| now != then));
    assert_eq!(seen()["unet_updates"].as_u64(), Some(4));
}

#[test]
fn an_evaluation_measures_once_and_again_only_what_has_changed() {
    let manifest = Manifest::new();
    succeeded(&manifest.pretrain(&["--export-only"]));
    refused(&manifest.evaluate(), "probe.safetensors");
    succeeded(&manifest.pretrain(&["--probe"]));
    succeeded(&manifest.evaluate());

    let rows = manifest.results();
    let names: Vec<&str> = rows.iter().map(|row| row["model"].as_str().unwrap()).collect();
    assert_eq!(names, ["base-2", "base-1"]);
    for row in &rows {
        assert_eq!((row["kind"].as_str(), row["n_images"].as_u64()), (Some("base"), Some(65)));
        assert!(row["frechet_whole"].as_f64().unwrap() > 0.0 && row["frechet_patch"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(rows[0]["teacher_distance"].as_f64(), Some(0.0));
    assert!(rows[1]["teacher_distance"].as_f64().unwrap() > 0.0);
    for file in ["results.csv", "results.md", "report.html", "samples/base-2.png", "samples/base-1.png"] {
        assert!(manifest.path("run/evaluation").join(file).is_file(), "{file} is missing");
    }

    // A second run draws nothing; with another sampling, that contender alone is measured again.
    let again = manifest.evaluate();
    succeeded(&again);
    assert!(!String::from_utf8_lossy(&again.stderr).contains("pictures with seed"));
    assert_eq!(manifest.results(), rows);
    fs::write(manifest.path("evaluate.toml"), EVALUATE.replace("fewer_steps = [1]", "fewer_steps = [1, 3]")).unwrap();
    let more = manifest.evaluate();
    succeeded(&more);
    assert_eq!(String::from_utf8_lossy(&more.stderr).matches("pictures with seed").count(), 1);
    assert_eq!(manifest.results()[..2], rows);
    assert_eq!(manifest.results()[2]["model"], "base-3");
}

/// SIGTERM after the first chunk: the second run draws what is left, and the table is that of a straight run.
#[test]
fn a_stopped_evaluation_goes_on_where_it_was() {
    let manifest = Manifest::new();
    succeeded(&manifest.pretrain(&["--export-only"]));
    succeeded(&manifest.pretrain(&["--probe"]));
    let mut running = manifest.command().spawn().unwrap();
    let chunk = manifest.path("run/evaluation/parts/base-2-seed0/000000.safetensors");
    while !chunk.exists() {
        assert!(running.try_wait().unwrap().is_none(), "it ended before there was anything to stop");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(running.wait().unwrap().code(), Some(130));
    assert!(!manifest.path("run/evaluation/results.json").exists());
    let written = fs::metadata(&chunk).unwrap().modified().unwrap();

    let resumed = manifest.evaluate();
    succeeded(&resumed);
    assert_eq!(fs::metadata(&chunk).unwrap().modified().unwrap(), written);
    let rows = manifest.results();
    fs::remove_dir_all(manifest.path("run")).unwrap();
    succeeded(&manifest.evaluate());
    assert_eq!(manifest.results(), rows);
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_drawn() {
    let manifest = Manifest::new();
    fs::write(manifest.path("evaluate.toml"), EVALUATE.replace("captions = 65", "captions = 64")).unwrap();
    refused(&manifest.evaluate(), "captions is 64");
    fs::remove_file(manifest.path("evaluate.toml")).unwrap();
    refused(&manifest.evaluate(), "evaluate.toml");
    fs::write(manifest.path("pretrain.toml"), "surplus = 1").unwrap();
    refused(&manifest.pretrain(&[]), "surplus");
    assert!(!manifest.path("run").exists() && !manifest.path("work").exists());
}
