//! What a finished stage leaves.

use std::collections::BTreeMap;
use std::path::Path;

use nn::Weights;
use tch::{Device, Kind, Tensor};
use trainer::flow::Formulation;
use trainer::model::ModelFolder;
use trainer::schedulers::PredictionType;

use crate::model::SmallModel;
use crate::world::{World, head, phase, stderr, two_phases};

fn names(path: &Path) -> Vec<String> {
    Weights::open(path).unwrap().names().into_iter().map(str::to_string).collect()
}

#[test]
fn a_stage_publishes_what_users_load_and_is_done_once() {
    let world = World::new(&[("4to2", two_phases(("base", 4), 2, 2))]);
    world.distill_well("4to2");
    let stage = world.stage("4to2");
    for file in [
        "export/model_index.json",
        "export/scheduler/scheduler_config.json",
        "export/vae/diffusion_pytorch_model.safetensors",
        "export/text_encoder_2/model.safetensors",
        "export/tokenizer/vocab.json",
        "export/sdxl_lightning_2step_unet.safetensors",
        "export/README.md",
        "report.html",
        "samples/000000004.png",
    ] {
        assert!(stage.join(file).is_file(), "{file}");
    }
    let base = names(&world.manifest().join("model/unet/diffusion_pytorch_model.safetensors"));
    assert_eq!(names(&stage.join("export/unet/diffusion_pytorch_model.safetensors")), base);

    let lora = stage.join("export/sdxl_lightning_2step_lora.safetensors");
    let weights = Weights::open(&lora).unwrap().to(Kind::Float, Device::Cpu);
    let alpha = weights.tensor("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha").unwrap();
    assert_eq!(alpha.double_value(&[]), 2.0);
    assert!(names(&lora).iter().all(|name| {
        name.starts_with("lora_unet_")
            && [".lora_down.weight", ".lora_up.weight", ".alpha"].iter().any(|end| name.ends_with(end))
    }));

    let lineage = std::fs::read_to_string(stage.join("export/lineage.json")).unwrap();
    assert!(lineage.contains("\"curated\""), "{lineage}");
    let card = std::fs::read_to_string(stage.join("export/README.md")).unwrap();
    for words in [
        "num_inference_steps=2",
        "adversarial, unconditional",
        "| latents: vae |",
        "latents: curated",
        "\"batch_size\": 4",
    ] {
        assert!(card.contains(words), "{words:?} is not in:\n{card}");
    }
    let report = std::fs::read_to_string(stage.join("report.html")).unwrap();
    assert!(report.contains("sample &lt;0&gt;") && report.contains("<polyline"), "captions escaped, curves drawn");

    let before = world.results("4to2");
    let again = world.distill("4to2");
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stdout).contains("was done before"));
    assert_eq!(world.results("4to2"), before);
}

/// What a finished stage was made from is compared, as it is for one in progress.
#[test]
fn a_finished_stage_of_another_recipe_or_teacher_is_refused() {
    let recipe = two_phases(("base", 4), 2, 1);
    let world = World::new(&[("4to2", recipe.clone())]);
    world.distill_well("4to2");
    let refused = |difference: &str| {
        let output = world.distill("4to2");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("4to2/export belongs to another run") && said.contains(difference), "{said}");
    };
    world.write_stage("4to2", &recipe.replace("seed = 3", "seed = 4"));
    refused("recipe");
    // How a run is watched does not matter to what it makes.
    world.write_stage("4to2", &recipe.replace("samples = 2", "samples = 1"));
    assert!(String::from_utf8_lossy(&world.distill("4to2").stdout).contains("was done before"));
    let scheduler = world.base().join("scheduler/scheduler_config.json");
    let other = std::fs::read_to_string(&scheduler).unwrap().replace("0.012", "0.011");
    std::fs::write(&scheduler, other).unwrap();
    refused("base");
}

/// A base model's own noise schedule and formulation come through to the student's.
#[test]
fn students_are_published_with_their_bases_schedule() {
    let world = World::new(&[("4to2", head(("base", 4), 2, "") + &phase("mse", "mse", "full", 1, ""))]);
    let scheduler = world.base().join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&scheduler).unwrap();
    let other = text.replace("0.012", "0.011").replace("\"epsilon\"", "\"sample\"");
    std::fs::write(&scheduler, other).unwrap();
    world.distill_well("4to2");
    let export = world.stage("4to2").join("export");
    let published = ModelFolder::open(&export).unwrap();
    let base = ModelFolder::open(&world.base()).unwrap();
    assert_eq!(published.scheduler, base.scheduler.distilled(PredictionType::Sample));
    assert_eq!(published.formulation, Formulation::Sample);
    assert!(export.join("sdxl_lightning_2step_unet_x0.safetensors").is_file());
}

/// Guidance leads away from zeros, or from the empty prompt's embeddings where the base model's pipeline says so.
#[test]
fn guidance_leads_away_from_the_base_models_null_prompt() {
    let recipe = head(("base", 4), 2, "") + &phase("mse", "mse", "full", 1, "guidance_scale = 3.0");
    let student = |null: Option<f32>| {
        let world = World::new(&[("4to2", recipe.clone())]);
        if let Some(value) = null {
            world.embed_the_empty_prompt(value);
        }
        world.distill_well("4to2");
        world.results("4to2")
    };
    let zeros = student(None);
    assert_eq!(student(Some(0.0))[0], zeros[0], "an empty prompt of zeros is no other than zeros");
    assert_ne!(student(Some(0.5))[0], zeros[0]);
}

/// A stage changes what it trains: the student is no longer the teacher, and a LoRA is not zero.
#[test]
fn training_moves_the_weights() {
    let world = World::new(&[("4to2", two_phases(("base", 4), 2, 2))]);
    world.distill_well("4to2");
    let open = |path: &Path| Weights::open(path).unwrap().to(Kind::Float, Device::Cpu);
    let teacher = open(&world.manifest().join("model/unet/diffusion_pytorch_model.safetensors"));
    let student = open(&world.stage("4to2").join("export/unet/diffusion_pytorch_model.safetensors"));
    for name in ["conv_in.weight", "mid_block.resnets.0.conv1.weight"] {
        assert_ne!(teacher.tensor(name).unwrap(), student.tensor(name).unwrap(), "{name}");
    }
    let lora = open(&world.stage("4to2").join("lora.safetensors"));
    let up = lora.tensor("lora_unet_mid_block_resnets_0_conv1.lora_up.weight").unwrap();
    assert!(up.abs().max().double_value(&[]) > 0.0);
}

#[test]
fn a_stage_of_one_step_says_that_it_predicts_data() {
    let recipe = head(("base", 2), 1, "") + &phase("convert", "x0_conversion", "full", 2, "");
    let world = World::new(&[("2to1", recipe)]);
    world.distill_well("2to1");
    let export = world.stage("2to1").join("export");
    let scheduler = std::fs::read_to_string(export.join("scheduler/scheduler_config.json")).unwrap();
    assert!(scheduler.contains("\"prediction_type\": \"sample\""), "{scheduler}");
    assert!(scheduler.contains("\"timestep_spacing\": \"trailing\""), "{scheduler}");
    assert!(export.join("sdxl_lightning_1step_unet_x0.safetensors").is_file());
    assert!(!export.join("sdxl_lightning_1step_lora.safetensors").exists());
}

#[test]
fn export_writes_every_published_form() {
    let world = World::new(&[("4to2", two_phases(("base", 4), 2, 2))]);
    world.distill_well("4to2");
    let output = world.export();
    assert!(output.status.success(), "{}", stderr(&output));
    let folder = world.run().join("export/4to2");
    for file in [
        "sdxl_lightning_2step.safetensors",
        "sdxl_lightning_2step_unet.safetensors",
        "sdxl_lightning_2step_lora.safetensors",
        "sdxl_lightning_workflow_full_2step.json",
        "sdxl_lightning_workflow_lora_2step.json",
        "scheduler_config_2step.json",
        "README_2step.md",
    ] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let single = names(&folder.join("sdxl_lightning_2step.safetensors"));
    for prefix in
        ["model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1."]
    {
        assert!(single.iter().any(|name| name.starts_with(prefix)), "{prefix}");
    }
}

/// The name of a file says no more than its steps.
#[test]
fn stages_of_the_same_steps_are_exported_side_by_side() {
    let recipe = head(("base", 4), 2, "") + &phase("full", "mse", "full", 2, "");
    let world = World::new(&[("4to2", recipe.clone()), ("4to2-mse", recipe)]);
    world.distill_well("all");
    let output = world.export();
    assert!(output.status.success(), "{}", stderr(&output));
    for stage in ["4to2", "4to2-mse"] {
        let hash = |path: std::path::PathBuf| shards::ContentHash::of_file(path).unwrap();
        let released = world.run().join("export").join(stage).join("sdxl_lightning_2step_unet.safetensors");
        let unet = world.stage(stage).join("export/unet/diffusion_pytorch_model.safetensors");
        assert_eq!(hash(released), hash(unet), "{stage}");
    }
}

/// Names that the loaders have always understood: the attention's of before diffusers 0.18, and a buffer of positions.
#[test]
fn a_base_with_names_of_old_is_exported_too() {
    let world = World::new(&[("4to2", head(("base", 4), 2, "") + &phase("full", "mse", "full", 1, ""))]);
    let old = |name: &str| {
        [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
            .into_iter()
            .fold(name.to_owned(), |name, (new, old)| name.replace(&format!(".{new}."), &format!(".{old}.")))
    };
    rewrite(&world.base().join("vae/diffusion_pytorch_model.safetensors"), |tensors| {
        tensors.into_iter().map(|(name, tensor)| (old(&name), tensor)).collect()
    });
    rewrite(&world.base().join("text_encoder/model.safetensors"), |mut tensors| {
        let positions = Tensor::arange(32, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        tensors.insert("text_model.embeddings.position_ids".to_owned(), positions);
        tensors
    });
    world.write_latents(8);
    world.distill_well("4to2");
    let output = world.export();
    assert!(output.status.success(), "{}", stderr(&output));
    let single = names(&world.run().join("export/4to2/sdxl_lightning_2step.safetensors"));
    assert!(single.contains(&"first_stage_model.encoder.mid.attn_1.q.weight".to_owned()), "{single:?}");
    assert!(!single.iter().any(|name| name.ends_with("position_ids")), "{single:?}");
}

/// Puts other tensors into a file of weights.
fn rewrite(file: &Path, change: impl FnOnce(BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor>) {
    let weights = Weights::open(file).unwrap();
    let tensors = weights.names().into_iter().map(|name| (name.to_owned(), weights.tensor(name).unwrap())).collect();
    let changed = change(tensors);
    nn::save(file, changed.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[]).unwrap();
}

/// As `hf:OWNER/NAME:fp16` brings it. `from_pretrained(FOLDER)` looks for plain names alone.
#[test]
fn an_export_of_a_base_in_fp16_is_loaded_without_naming_the_variant() {
    let world = World::new(&[("4to2", head(("base", 4), 2, "") + &phase("full", "mse", "full", 1, ""))]);
    for (part, stem) in [("text_encoder", "model"), ("text_encoder_2", "model")] {
        let file = |ending: &str| world.base().join(part).join(format!("{stem}.{ending}"));
        std::fs::rename(file("safetensors"), file("fp16.safetensors")).unwrap();
    }
    let vae = world.base().join("vae");
    let whole = names(&vae.join("diffusion_pytorch_model.safetensors"));
    in_two_fp16_shards(&vae);
    world.write_latents(8);
    world.distill_well("4to2");

    let export = world.stage("4to2").join("export");
    assert!(export.join("text_encoder/model.safetensors").is_file());
    assert!(export.join("text_encoder_2/model.safetensors").is_file());
    assert_eq!(names(&export.join("vae/diffusion_pytorch_model.safetensors.index.json")), whole);
    for part in ["vae", "text_encoder", "text_encoder_2"] {
        for entry in std::fs::read_dir(export.join(part)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.contains("fp16"), "{part}/{name}");
        }
    }
}

/// Replaces a VAE's file by shards of the variant and their index.
fn in_two_fp16_shards(vae: &Path) {
    let file = vae.join("diffusion_pytorch_model.safetensors");
    let weights = Weights::open(&file).unwrap();
    let names = weights.names();
    let mut index = serde_json::json!({ "metadata": {}, "weight_map": {} });
    for (half, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let shard = format!("diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors", half + 1);
        let tensors: Vec<(&str, Tensor)> =
            names.iter().map(|name| (*name, weights.tensor(name).unwrap().to_kind(Kind::Half))).collect();
        nn::save(&vae.join(&shard), tensors.iter().map(|(name, tensor)| (*name, tensor)), &[]).unwrap();
        for name in names {
            index["weight_map"][name] = shard.as_str().into();
        }
    }
    shards::atomic::write_json(vae.join("diffusion_pytorch_model.safetensors.index.fp16.json"), &index).unwrap();
    std::fs::remove_file(file).unwrap();
}

/// What is released beside is looked for as soon as it is there: whole, and nothing beside it.
#[test]
fn an_export_that_is_repeated_leaves_the_same_files_and_two_do_not_meet() {
    let world = World::new(&[("4to2", two_phases(("base", 4), 2, 1))]);
    world.distill_well("4to2");
    let files = || {
        let entries = std::fs::read_dir(world.run().join("export/4to2")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let first = world.export();
    assert!(first.status.success(), "{}", stderr(&first));
    let before = files();
    assert!(world.export().status.success());
    assert_eq!(files(), before, "links to what is linked already leave no temporary names");

    let _held = shards::RunLock::acquire(world.run().join("export")).unwrap();
    let output = world.export();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("export/.lock"), "{}", stderr(&output));
}

/// `make sample` with a base model that the manifest names in TOML's other quotes and by `{run}`, and with a stage of
/// another name than the usual five.
#[test]
fn pictures_are_drawn_from_the_base_and_from_every_finished_stage() {
    let recipe = head(("base", 4), 2, "") + &phase("full", "mse", "full", 1, "");
    let model = SmallModel::new();
    let world = World::around(&model.path(), (48, 24), &[("4to2-mse", recipe.clone()), ("4to2", recipe)]);
    world.distill_well("4to2-mse");
    let document = world.manifest().join("model.toml");
    let text = std::fs::read_to_string(&document).unwrap();
    std::fs::write(&document, text.replace("base = 'model'", "base = '{run}/../manifest/model'")).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/sample.sh");
    let programs = Path::new(env!("CARGO_BIN_EXE_sample")).parent().unwrap();
    let mut command = std::process::Command::new(script);
    command.arg(programs).arg(world.manifest()).arg(world.run()).args(["cpu", "A red Circle", "7"]);
    let output = command.env("OMP_NUM_THREADS", "1").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let folder = world.run().join("samples/a-red-circle-s7");
    let parameters = |name: &str| {
        let file = std::io::BufReader::new(std::fs::File::open(folder.join(name)).unwrap());
        png::Decoder::new(file).read_info().unwrap().info().utf8_text[0].get_text().unwrap()
    };
    assert!(parameters("base-32.png").contains("Steps: 32, "));
    assert!(parameters("4to2-mse.png").contains("Steps: 2, "));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "one stage is not finished");
}

/// Torch panics where these halves are put together.
#[test]
fn a_panic_of_torchs_is_a_failure_like_any_other() {
    let world = World::new(&[("4to2", head(("base", 4), 2, "") + &phase("full", "mse", "full", 1, ""))]);
    world.distill_well("4to2");
    let file = world.stage("4to2").join("export/text_encoder_2/model.safetensors");
    rewrite(&file, |mut tensors| {
        let name = "text_model.encoder.layers.0.self_attn.k_proj.weight";
        let narrow = tensors[name].narrow(1, 0, 1);
        tensors.insert(name.to_owned(), narrow);
        tensors
    });
    let output = world.export();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("Sizes of tensors must match"), "{}", stderr(&output));
}

/// Everything that entered and left an iteration, from which the loss can be computed again.
#[test]
fn a_dumped_step_can_be_computed_again() {
    let world = World::new(&[("4to2", two_phases(("base", 4), 2, 3))]);
    let file = world.run().join("step.safetensors");
    let output = world.command("4to2").args(["--dump-step", "2"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let dump = Weights::open(&file).unwrap().to(Kind::Float, Device::Cpu);
    let found = dump.names();
    for name in [
        "000.latents",
        "001.prompt_embeds",
        "000.time_ids",
        "000.noise",
        "000.t",
        "000.x_t",
        "000.teacher.001",
        "000.student.prediction",
        "001.discriminator.real",
        "gradient.student.mid_block.resnets.0.conv1.lora_B.weight",
        "gradient.discriminator.head.projection.weight",
    ] {
        assert!(found.contains(&name), "{name} is not among {found:?}");
    }
    // Equation 20 from the dumped logits.
    for micro_batch in ["000", "001"] {
        let tensor = |name: &str| dump.tensor(&format!("{micro_batch}.discriminator.{name}")).unwrap();
        let loss = trainer::objectives::discriminator_loss(&tensor("real"), &tensor("fake"));
        assert_eq!(loss, tensor("loss"));
    }
    let late = world.command("4to2").args(["--dump-step", "99"]).arg(&file).output().unwrap();
    assert_eq!(late.status.code(), Some(2), "{}", stderr(&late));
    assert!(stderr(&late).contains("cannot be dumped"), "{}", stderr(&late));
}
