//! Exports in diffusers: the pictures of its pipelines from our files are those of `sample`.
//!
//! `tests/fixtures/exports/make_exports.py` opens these files in diffusers by every road that users have and stores what
//! it draws, with the hashes of the files. Weights are hashes of their names, and the stages' updates are too small to
//! change them, so that the files are the same on every machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use nn::Weights;
use shards::ContentHash;
use shards::npy::{Npy, to_npy_f32};
use tch::Tensor;
use trainer::adapters;
use trainer::recipe::LoraRecipe;

use crate::model::SmallModel;
use crate::world::{World, head, phase, stderr};
use crate::{fixture, hashed};

const PROMPT: &str = "a red circle on a blue field, soft light";
const LORA: LoraRecipe = LoraRecipe { rank: 4, alpha: 2.0 };
/// The figure.
const TOLERANCE: f64 = 1e-3;

/// Stages of 2 steps and of 1, whose weights are the base model's but for rounding, and adapters that are not zero.
fn exported() -> World {
    let tiny = |text: String| text.replace("learning_rate = 1e-3", "learning_rate = 1e-30");
    let two = head(("base", 4), 2, "lora = { rank = 4, alpha = 2.0 }")
        + &phase("lora", "adversarial_conditional", "lora", 1, "")
        + &phase("full", "adversarial_unconditional", "full", 1, "");
    let one = head(("4to2", 2), 1, "") + &phase("convert", "x0_conversion", "full", 1, "");
    let model = SmallModel::new();
    let world = World::around(&model.path(), (48, 24), &[("4to2", tiny(two)), ("2to1", tiny(one))]);
    world.distill_well("all");

    let modules: Vec<(String, Vec<i64>, Vec<i64>)> =
        serde_json::from_str(&std::fs::read_to_string(fixture("sample/lora.json")).unwrap()).unwrap();
    let halves = modules.into_iter().flat_map(|(module, down, up)| {
        [("lora_A", "down", down), ("lora_B", "up", up)].map(|(half, name, shape)| {
            (format!("{module}.{half}.weight"), hashed::weight(&format!("{module}.{name}.weight"), &shape))
        })
    });
    let trained: BTreeMap<String, Tensor> = halves.collect();
    let file = world.stage("4to2").join("lora.safetensors");
    let before: Vec<String> = names(&file);
    adapters::save(&file, &adapters::by_layer(&trained, &LORA), &LORA).unwrap();
    assert_eq!(names(&file), before, "adapters on the modules that the stage trains");

    let output = world.export();
    assert!(output.status.success(), "{}", stderr(&output));
    world
}

fn names(file: &Path) -> Vec<String> {
    Weights::open(file).unwrap().names().into_iter().map(str::to_owned).collect()
}

fn save_npy(path: &Path, tensor: &Tensor) {
    let shape: Vec<usize> = tensor.size().iter().map(|&side| side as usize).collect();
    let values: Vec<f32> = Vec::try_from(tensor.flatten(0, -1)).unwrap();
    std::fs::write(path, to_npy_f32(&shape, &values).unwrap()).unwrap();
}

/// Latents and picture of `sample`.
fn sample(world: &World, model: &Path, steps: u32, lora: Option<&Path>) -> (Tensor, Vec<u8>) {
    let place = |name: &str| world.run().join(name);
    save_npy(&place("noise.npy"), &hashed::tensor("noise", &[1, 4, 8, 8], 1.7));
    let mut command = Command::new(env!("CARGO_BIN_EXE_sample"));
    command.env("OMP_NUM_THREADS", "1").arg("--model").arg(model).args(["--prompt", PROMPT, "--size", "64x64"]);
    command.args(["--steps", &steps.to_string()]).arg("--noise").arg(place("noise.npy"));
    command.arg("--latents-out").arg(place("latents.npy")).arg("--out").arg(place("picture.png"));
    if let Some(lora) = lora {
        command.arg("--lora").arg(lora);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let array = Npy::parse(&std::fs::read(place("latents.npy")).unwrap()).unwrap();
    let shape: Vec<i64> = array.shape.iter().map(|&side| side as i64).collect();
    let latents = Tensor::from_slice(&array.to_f32()).reshape(shape);
    (latents, image::open(place("picture.png")).unwrap().to_rgb8().into_raw())
}

#[test]
fn diffusers_draws_from_our_exports_what_sample_draws() {
    let world = exported();
    // For make_exports.py.
    if let Some(folder) = std::env::var_os("STEPDOWN_EXPORTS") {
        let copy = Command::new("cp").args(["-rL"]).arg(world.manifest()).arg(world.run()).arg(&folder).status();
        assert!(copy.unwrap().success());
        return;
    }
    let files: BTreeMap<PathBuf, ContentHash> =
        serde_json::from_str(&std::fs::read_to_string(fixture("exports/files.json")).unwrap()).unwrap();
    for (file, expected) in &files {
        let found = ContentHash::of_file(world.run().join(file)).unwrap();
        assert_eq!(found, *expected, "{} is not the file that diffusers opened", file.display());
    }

    let expected = Weights::open(&fixture("exports/outputs.safetensors")).unwrap();
    let base = world.base();
    let (two, one) = (world.stage("4to2").join("export"), world.stage("2to1").join("export"));
    let lora = world.run().join("export/4to2/sdxl_lightning_2step_lora.safetensors");
    for (model, steps, lora, roads) in [
        (&two, 2, None, &["from_pretrained", "bare_unet", "single_file"][..]),
        (&base, 2, Some(lora.as_path()), &["load_lora_weights"]),
        (&one, 1, None, &["one_step_from_pretrained", "one_step_bare_unet"]),
    ] {
        let (latents, picture) = sample(&world, model, steps, lora);
        for road in roads {
            let theirs = expected.tensor(&format!("{road}.latents")).unwrap();
            let worst = |x: Tensor| x.abs().max().double_value(&[]);
            let error = worst(&latents - &theirs) / worst(theirs.shallow_clone());
            assert!(error <= TOLERANCE, "{road}: {error:e}");
        }
        let theirs = expected.tensor(&format!("{}.picture", roads[0])).unwrap();
        let theirs: Vec<f32> = Vec::try_from(theirs.flatten(0, -1)).unwrap();
        assert_eq!(theirs.len(), picture.len());
        // In grey levels; `sample` writes whole ones.
        let apart = theirs.iter().zip(&picture).map(|(a, b)| (a * 255.0 - f32::from(*b)).abs()).fold(0.0, f32::max);
        assert!(apart <= 0.5 + 255.0 * TOLERANCE as f32, "{}: {apart} grey levels", roads[0]);
    }
    // Adapters are no small thing, so that these are different pictures.
    let apart =
        expected.tensor("from_pretrained.latents").unwrap() - expected.tensor("load_lora_weights.latents").unwrap();
    assert!(apart.abs().max().double_value(&[]) > 0.05);
}
