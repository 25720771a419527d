//! A manifest and a run with a UNet of a few thousand weights and random latents.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use encode::ModelManifest;
use encode::cache::{Array, Conditioning, FORMAT, LatentIndex, LatentSample, LatentTotals, Unconditional, VERSION};
use half::f16;
use shards::{ContentHash, ShardWriter};
use tch::Tensor;
use trainer::unet::{UNet, UNetConfig};

use crate::hashed;

const SAMPLES: usize = 11;
const SIDE: usize = 8;
const TOKENS: usize = 5;

/// A temporary folder with `manifest/` and `run/`.
pub struct World {
    folder: tempfile::TempDir,
    /// Widths of text states and of pooled text.
    widths: (usize, usize),
}

/// The repository's demo model, whose VAE and text encoders serve here too.
fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/demo/model")
}

impl World {
    /// With the stages given, by name and recipe.
    pub fn new(stages: &[(&str, String)]) -> World {
        let world = World { folder: tempfile::tempdir().unwrap(), widths: (32, 16) };
        copy_model(&demo_model(), &world.base());
        world.write_unet(&world.base().join("unet"));
        world.furnish(stages);
        world
    }

    /// The same around another model, whose text states and pooled text have the given widths.
    pub fn around(model: &Path, widths: (usize, usize), stages: &[(&str, String)]) -> World {
        let world = World { folder: tempfile::tempdir().unwrap(), widths };
        copy_model(model, &world.base());
        copy_folder(&model.join("unet"), &world.base().join("unet"));
        world.furnish(stages);
        world
    }

    fn furnish(&self, stages: &[(&str, String)]) {
        self.write_manifest(8 * SIDE, "mean");
        std::fs::create_dir_all(self.manifest().join("stages")).unwrap();
        for (name, recipe) in stages {
            self.write_stage(name, recipe);
        }
        self.write_latents(SIDE);
    }

    /// `model.toml` with a resolution and a rule for latents.
    pub fn write_manifest(&self, resolution: usize, latents: &str) {
        std::fs::write(
            self.manifest().join("model.toml"),
            format!(
                "base = 'model'\nresolution = {resolution}\ndtype = 'f32'\n\
                 [encode]\ncrop = 'center'\nlatents = '{latents}'\nseed = 0\nbatch = 1\nshape = 'square'\n"
            ),
        )
        .unwrap();
    }

    /// The base model.
    pub fn base(&self) -> PathBuf {
        self.manifest().join("model")
    }

    pub fn manifest(&self) -> PathBuf {
        self.folder.path().join("manifest")
    }

    pub fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn stage(&self, name: &str) -> PathBuf {
        self.run().join("stages").join(name)
    }

    pub fn write_stage(&self, name: &str, recipe: &str) {
        std::fs::write(self.manifest().join(format!("stages/{name}.toml")), recipe).unwrap();
    }

    fn write_unet(&self, folder: &Path) {
        let json = include_str!("../fixtures/distill/unet_config.json");
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.json"), json).unwrap();
        let config = UNetConfig::from_json(json).unwrap();
        let (_, params) = nn::Weights::seeded(5).build(|scope| UNet::new(scope, &config)).unwrap();
        params.save(&folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    }

    /// Two shards of random samples whose latents have the given side.
    pub fn write_latents(&self, side: usize) {
        let folder = self.run().join("latents");
        let model = ModelManifest::read(&self.manifest(), &self.run()).unwrap();
        let mut entries = Vec::new();
        for (shard, numbers) in [(0, 0..6), (1, 6..SAMPLES)] {
            let mut writer = ShardWriter::create(folder.join("shards"), format!("{shard:06}.tar")).unwrap();
            for number in numbers {
                writer.push(sample(number, side, self.widths).to_sample().unwrap()).unwrap();
            }
            entries.push(writer.finish().unwrap());
        }
        let index = LatentIndex {
            format: FORMAT.into(),
            version: VERSION,
            fingerprint: encode::model_fingerprint(&model).unwrap().with("curated", ContentHash::of(b"rows")),
            shards: entries,
            totals: LatentTotals::default(),
        };
        index.publish(&folder).unwrap();
    }

    /// Has the base model's pipeline embed empty prompts, as `value` in all places.
    pub fn embed_the_empty_prompt(&self, value: f32) {
        let index = self.base().join("model_index.json");
        let mut settings: serde_json::Value = shards::atomic::read_json(&index).unwrap();
        settings["force_zeros_for_empty_prompt"] = false.into();
        shards::atomic::write_json(&index, &settings).unwrap();
        let array = |shape: &[usize]| Array {
            shape: shape.to_vec(),
            values: vec![f16::from_f32(value); shape.iter().product()],
        };
        let (context, pooled) = self.widths;
        let empty = Unconditional { prompt_embeds: array(&[TOKENS, context]), pooled_prompt_embeds: array(&[pooled]) };
        empty.publish(&self.run().join("latents")).unwrap();
        self.write_latents(SIDE);
    }

    pub fn command(&self, stage: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_distill"));
        command.arg("--manifest").arg(self.manifest()).arg("--run").arg(self.run()).args(["--stage", stage]);
        command.env("OMP_NUM_THREADS", "1").env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end, whatever that is.
    pub fn distill(&self, stage: &str) -> Output {
        self.command(stage).output().unwrap()
    }

    /// Runs a stage that has to succeed.
    pub fn distill_well(&self, stage: &str) {
        let output = self.distill(stage);
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// `export` of all finished stages.
    pub fn export(&self) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_export"));
        command.arg("--manifest").arg(self.manifest()).arg("--run").arg(self.run()).env("OMP_NUM_THREADS", "1");
        command.output().unwrap()
    }

    /// All that two runs of the same thing have to agree on, by name: exports and the last checkpoint.
    pub fn results(&self, stage: &str) -> Vec<(String, ContentHash)> {
        let stage = self.stage(stage);
        let mut files = vec![stage.join("export/unet/diffusion_pytorch_model.safetensors")];
        let last = std::fs::read_dir(stage.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).max();
        for name in ["student.safetensors", "discriminator.safetensors"] {
            files.push(last.as_ref().unwrap().join(name));
        }
        files.push(stage.join("lora.safetensors"));
        files
            .into_iter()
            .filter(|path| path.exists())
            .map(|path| {
                let name = path.strip_prefix(&stage).unwrap().display().to_string();
                (name, ContentHash::of_file(path).unwrap())
            })
            .collect()
    }

    /// Losses of every iteration as they were recorded.
    pub fn losses(&self, stage: &str) -> Vec<(u64, f64)> {
        let recorded = trainer::distill::metrics::read(&self.stage(stage).join("metrics.jsonl")).unwrap();
        recorded.iter().map(|metrics| (metrics.iteration, metrics.student_loss)).collect()
    }
}

fn sample(number: usize, side: usize, (context, pooled): (usize, usize)) -> LatentSample {
    let array = |part: &str, shape: &[usize]| {
        let sides: Vec<i64> = shape.iter().map(|side| *side as i64).collect();
        let tensor: Tensor = hashed::tensor(&format!("{part}.{number}"), &sides, 1.5).flatten(0, -1);
        let values = Vec::<f32>::try_from(tensor).unwrap().into_iter().map(f16::from_f32).collect();
        Array { shape: shape.to_vec(), values }
    };
    LatentSample {
        key: format!("s00-{number:09}"),
        latent: array("latent", &[4, side, side]),
        prompt_embeds: array("context", &[TOKENS, context]),
        pooled_prompt_embeds: array("pooled", &[pooled]),
        conditioning: Conditioning {
            original_size: (1024, 1100),
            crop_top_left: (0, 4),
            target_size: (64, 64),
            caption: format!("sample <{number}>"),
            sha256: ContentHash::of(b"picture"),
        },
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Everything but the UNet.
fn copy_model(from: &Path, to: &Path) {
    for part in ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"] {
        copy_folder(&from.join(part), &to.join(part));
    }
    std::fs::copy(from.join("model_index.json"), to.join("model_index.json")).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The head of a recipe: everything but the phases.
pub fn head(teacher: (&str, u32), student_steps: u32, extra: &str) -> String {
    let (model, steps) = teacher;
    format!(
        "teacher = {{ model = '{model}', steps = {steps} }}\nstudent_steps = {student_steps}\n\
         batch_size = 4\nmicro_batch_size = 2\nseed = 3\nprecision = 'f32'\n{extra}\n\
         record = {{ checkpoint_every = 3, keep_checkpoints = 2, samples_every = 0, samples = 2, histograms_every = 2 }}\n\
         guard = {{ max_skipped_in_a_row = 2, collapse_loss = 0.0, collapse_patience = 100 }}\n"
    )
}

/// One phase of a recipe.
pub fn phase(name: &str, objective: &str, trains: &str, iterations: u32, extra: &str) -> String {
    format!(
        "[[phase]]\nname = '{name}'\nobjective = '{objective}'\ntrains = '{trains}'\niterations = {iterations}\n\
         learning_rate = 1e-3\nbetas = [0.0, 0.99]\n{extra}\n"
    )
}

/// LoRA, then everything: a phase boundary at which weights are merged and the discriminator changes form.
pub fn two_phases(teacher: (&str, u32), student_steps: u32, iterations: u32) -> String {
    head(teacher, student_steps, "lora = { rank = 4, alpha = 2.0 }")
        + &phase("lora", "adversarial_conditional", "lora", iterations, "")
        + &phase("full", "adversarial_unconditional", "full", iterations, "")
}
