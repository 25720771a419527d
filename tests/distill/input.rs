//! What is wrong with the input is said in one line, with exit code 2, and nothing is touched.

use std::os::unix::process::CommandExt;

use crate::world::{World, head, phase, stderr, two_phases};

fn one_stage() -> World {
    World::new(&[("4to2", two_phases(("base", 4), 2, 2))])
}

#[track_caller]
fn assert_refused(world: &World, stage: &str, words: &[&str]) {
    let output = world.distill(stage);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!world.stage(stage).join("export").exists());
}

#[test]
fn an_unknown_stage_is_named_with_those_that_exist() {
    assert_refused(&one_stage(), "3to2", &["3to2", "it has 4to2"]);
}

#[test]
fn a_contradiction_in_a_recipe_is_named() {
    let world = one_stage();
    world.write_stage("4to2", &two_phases(("base", 4), 3, 2));
    assert_refused(&world, "4to2", &["4to2.toml", "multiple of student_steps"]);
}

#[test]
fn a_teacher_that_is_not_there_says_what_makes_it() {
    let world = one_stage();
    world.write_stage("2to1", &two_phases(("4to2", 2), 1, 2));
    assert_refused(&world, "2to1", &["4to2/export", "--stage 4to2"]);
}

#[test]
fn a_teacher_of_other_steps_than_its_recipe_makes_is_refused() {
    let world = one_stage();
    world.write_stage("2to1", &two_phases(("4to2", 4), 1, 2));
    assert_refused(&world, "2to1", &["2to1.toml", "4to2", "2 steps"]);
    world.write_stage("2to1", &two_phases(("2to1", 2), 1, 2));
    assert_refused(&world, "2to1", &["2to1.toml", "its own teacher"]);
}

#[test]
fn a_teacher_of_another_shape_is_refused() {
    let world = one_stage();
    world.distill_well("4to2");
    world.write_stage("2to1", &two_phases(("4to2", 2), 1, 2));
    let config = world.stage("4to2").join("export/unet/config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("\"layers_per_block\": 1", "\"layers_per_block\": 2");
    std::fs::write(&config, text).unwrap();
    assert_refused(&world, "2to1", &["describes another network"]);
}

#[test]
fn a_base_model_without_an_index_is_refused_before_it_is_trained() {
    let world = one_stage();
    std::fs::remove_file(world.base().join("model_index.json")).unwrap();
    assert_refused(&world, "4to2", &["model_index.json", "is not there"]);
    assert!(!world.stage("4to2").join("checkpoints").exists());
}

/// Another network is another hash of its configuration or weights; the error names the network.
#[test]
fn latents_of_other_networks_are_refused_by_name() {
    for (file, part) in [
        ("vae/config.json", "vae changed"),
        ("text_encoder/config.json", "text_encoder changed"),
        ("text_encoder_2/config.json", "text_encoder_2 changed"),
        ("tokenizer/vocab.json", "tokenizer changed"),
    ] {
        let world = one_stage();
        let path = world.base().join(file);
        let text = std::fs::read_to_string(&path).unwrap() + "\n";
        std::fs::write(&path, text).unwrap();
        assert_refused(&world, "4to2", &[part, "encode-latents"]);
    }
}

#[test]
fn latents_of_another_scale_or_resolution_are_refused() {
    let world = one_stage();
    let config = world.base().join("vae/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"scaling_factor\": "));
    std::fs::write(&config, text.replace("\"scaling_factor\": ", "\"scaling_factor\": 1")).unwrap();
    assert_refused(&world, "4to2", &["vae changed"]);

    for (resolution, latents) in [(128, "mean"), (64, "sample")] {
        let world = one_stage();
        world.write_manifest(resolution, latents);
        assert_refused(&world, "4to2", &["transform changed", "encode-latents"]);
    }
}

/// A batch is of one shape. Encoded as they are asked for, they would end a run at the first rectangle.
#[test]
fn latents_in_buckets_are_refused_before_the_first_step() {
    let world = one_stage();
    let document = world.manifest().join("model.toml");
    let text = std::fs::read_to_string(&document).unwrap();
    std::fs::write(&document, text.replace("shape = 'square'", "shape = 'buckets'")).unwrap();
    world.write_latents(8);
    assert_refused(&world, "4to2", &["run/latents", "encode.shape is \"buckets\"", "\"square\""]);
}

#[test]
fn latents_of_another_size_are_refused() {
    let world = one_stage();
    world.write_latents(16);
    assert_refused(&world, "4to2", &["[4, 16, 16]", "[4, 8, 8]"]);
}

#[test]
fn a_flipped_bit_in_a_shard_is_found_before_the_first_step() {
    let world = one_stage();
    let shard = world.run().join("latents/shards/000001.tar");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert_refused(&world, "4to2", &["000001.tar"]);
}

#[test]
fn a_missing_shard_is_named() {
    let world = one_stage();
    std::fs::remove_file(world.run().join("latents/shards/000000.tar")).unwrap();
    let output = world.distill("4to2");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("000000.tar"));
}

#[test]
fn no_latents_at_all_say_what_makes_them() {
    let world = one_stage();
    std::fs::remove_dir_all(world.run().join("latents")).unwrap();
    assert_refused(&world, "4to2", &["there are none", "encode-latents"]);
}

#[test]
fn a_changed_recipe_does_not_continue_an_old_run() {
    let world = one_stage();
    world.distill_well("4to2");
    std::fs::remove_dir_all(world.stage("4to2").join("export")).unwrap();
    world.write_stage("4to2", &two_phases(("base", 4), 2, 3));
    assert_refused(&world, "4to2", &["belongs to another run", "recipe changed"]);
}

/// Gradients that are never finite: nothing is updated, skips are bounded, the checkpoints stay.
#[test]
fn gradients_that_are_not_finite_stop_the_run() {
    let mse = head(("base", 4), 2, "") + &phase("mse", "mse", "full", 9, "");
    let world = World::new(&[("4to2", mse.replace("learning_rate = 1e-3", "learning_rate = 1e38"))]);
    let output = world.distill("4to2");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("3 updates in a row had NaN or infinite gradients (student)"),
        "{}",
        stderr(&output)
    );
    assert!(!world.stage("4to2").join("export").exists());
}

#[test]
fn a_discriminator_that_has_won_stops_the_run() {
    let recipe = two_phases(("base", 4), 2, 9).replace("collapse_loss = 0.0", "collapse_loss = 1e9");
    let world = World::new(&[("4to2", recipe.replace("collapse_patience = 100", "collapse_patience = 4"))]);
    let output = world.distill("4to2");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the discriminator has won"), "{}", stderr(&output));
    assert_eq!(world.losses("4to2").len(), 4);
}

/// Files cannot grow beyond 100 KiB, as on a full disk: the run stops, what was saved before stays as it is, and the next
/// run with room goes on.
#[test]
fn a_full_disk_during_a_checkpoint_leaves_the_run_resumable() {
    let straight = one_stage();
    straight.distill_well("4to2");

    for with_a_checkpoint in [false, true] {
        let world = one_stage();
        if with_a_checkpoint {
            crate::resume::interrupt(world.command("4to2").spawn().unwrap(), &world, "4to2", 1, "-TERM");
        }
        let before = checkpoints(&world);
        assert_eq!(before.is_empty(), !with_a_checkpoint);

        let distill = world.command("4to2");
        let mut limited = std::process::Command::new("bash");
        let line = format!("trap '' XFSZ; ulimit -f 100; exec {} \"$@\"", env!("CARGO_BIN_EXE_distill"));
        limited.arg0("bash").args(["-c", &line, "distill"]).args(distill.get_args()).env("OMP_NUM_THREADS", "1");
        let output = limited.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("safetensors"), "{}", stderr(&output));
        assert!(!world.stage("4to2").join("export").exists());
        assert_eq!(checkpoints(&world), before);

        world.distill_well("4to2");
        assert_eq!(world.results("4to2"), straight.results("4to2"));
    }
}

/// Published checkpoints: every file and its hash.
fn checkpoints(world: &World) -> Vec<(std::path::PathBuf, shards::ContentHash)> {
    let folder = world.stage("4to2").join("checkpoints");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        for file in std::fs::read_dir(entry.path()).unwrap() {
            let path = file.unwrap().path();
            let hash = shards::ContentHash::of_file(&path).unwrap();
            files.push((path, hash));
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

#[test]
fn two_processes_do_not_share_a_stage() {
    let world = one_stage();
    let _held = shards::RunLock::acquire(world.stage("4to2")).unwrap();
    let output = world.distill("4to2");
    assert!(!output.status.success());
    assert!(stderr(&output).contains(".lock"), "{}", stderr(&output));
}
