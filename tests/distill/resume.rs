//! A run that was interrupted equals one that was not, bit for bit.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use trainer::distill::metrics;

use crate::world::{World, head, phase, stderr, two_phases};

/// Waits until a stage has recorded an iteration, then sends a signal.
pub fn interrupt(mut child: Child, world: &World, stage: &str, iteration: u64, signal: &str) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let reached = world.stage(stage).join("metrics.jsonl").exists()
            && world.losses(stage).last().is_some_and(|(done, _)| *done >= iteration);
        if reached || child.try_wait().unwrap().is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "iteration {iteration} of {stage} was never reached");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    child.wait().unwrap()
}

pub fn assert_same(straight: &World, interrupted: &World, stages: &[&str]) {
    for stage in stages {
        assert_eq!(interrupted.losses(stage), straight.losses(stage), "{stage}");
        assert_eq!(interrupted.results(stage), straight.results(stage), "{stage}");
    }
}

/// Ten iterations with LoRA and ten in full, killed in each half and on the boundary.
#[test]
fn a_killed_run_equals_a_straight_one_across_phases() {
    let stages = [("4to2", two_phases(("base", 4), 2, 10))];
    let straight = World::new(&stages);
    straight.distill_well("4to2");
    assert_eq!(straight.losses("4to2").len(), 20);

    let interrupted = World::new(&stages);
    for iteration in [2, 7, 10, 16] {
        let child = interrupted.command("4to2").spawn().unwrap();
        interrupt(child, &interrupted, "4to2", iteration, "-KILL");
    }
    interrupted.distill_well("4to2");
    assert_same(&straight, &interrupted, &["4to2"]);
}

#[test]
fn a_killed_run_equals_a_straight_one_across_stages() {
    let conversion = head(("4to2", 2), 1, "student_timesteps = [500, 1000]\nema_decay = 0.9")
        + &phase("convert", "x0_conversion", "full", 4, "")
        + &phase(
            "noised",
            "adversarial_conditional",
            "full",
            4,
            "discriminator_noise = { timesteps = [10, 500], weights = [5.0, 1.0] }",
        );
    let stages = [("4to2", two_phases(("base", 4), 2, 4)), ("2to1", conversion)];
    let straight = World::new(&stages);
    straight.distill_well("all");

    let interrupted = World::new(&stages);
    for (stage, iteration) in [("4to2", 8), ("2to1", 1), ("2to1", 6)] {
        let child = interrupted.command("all").spawn().unwrap();
        interrupt(child, &interrupted, stage, iteration, "-KILL");
    }
    interrupted.distill_well("all");
    assert_same(&straight, &interrupted, &["4to2", "2to1"]);
}

/// SIGTERM and Ctrl-C save what is done, even half an iteration, and say so.
#[test]
fn an_asked_for_stop_saves_and_resumes_exactly() {
    let mut recipe = two_phases(("base", 4), 2, 10);
    let straight = World::new(&[("4to2", recipe.clone())]);
    straight.distill_well("4to2");

    // No checkpoint but the one that the stop makes.
    recipe = recipe.replace("checkpoint_every = 3", "checkpoint_every = 0");
    let interrupted = World::new(&[("4to2", recipe)]);
    for signal in ["-TERM", "-INT"] {
        let done = interrupted.losses("4to2").last().map_or(0, |(done, _)| *done);
        let child = interrupted.command("4to2").spawn().unwrap();
        let status = interrupt(child, &interrupted, "4to2", done + 2, signal);
        assert_eq!(status.code(), Some(130));
    }
    interrupted.distill_well("4to2");
    assert_same(&straight, &interrupted, &["4to2"]);
    // Half an iteration done before a stop is recorded with the half done after it.
    let losses = |world: &World| -> Vec<Option<f64>> {
        let recorded = metrics::read(&world.stage("4to2").join("metrics.jsonl")).unwrap();
        recorded.into_iter().map(|metrics| Some(metrics.discriminator?.loss)).collect()
    };
    assert_eq!(losses(&straight), losses(&interrupted));
}

/// What a name stands for is written once: a kill while it is replaced would leave a run with nothing.
#[test]
fn a_whole_checkpoint_is_not_written_again() {
    let world =
        World::new(&[("4to2", two_phases(("base", 4), 2, 4).replace("keep_checkpoints = 2", "keep_checkpoints = 1"))]);
    world.distill_well("4to2");
    let stage = world.stage("4to2");
    let state =
        std::fs::read_dir(stage.join("checkpoints")).unwrap().next().unwrap().unwrap().path().join("state.json");
    let written = |path: &std::path::Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let before = written(&state);
    // Without its exports the stage is finished again, from its last checkpoint.
    std::fs::remove_dir_all(stage.join("export")).unwrap();
    world.distill_well("4to2");
    assert_eq!(written(&state), before);
}

/// A save that was killed is of any position; the run that goes on may never come to it again.
#[test]
fn what_a_killed_save_has_left_is_gone_when_the_run_goes_on() {
    let world = World::new(&[("4to2", two_phases(("base", 4), 2, 4))]);
    let child = world.command("4to2").spawn().unwrap();
    interrupt(child, &world, "4to2", 2, "-TERM");
    let left = world.stage("4to2").join("checkpoints/.000000002-half.tmp");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("student.safetensors"), b"half of it").unwrap();
    world.distill_well("4to2");
    assert!(!left.exists());
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let recipe = two_phases(("base", 4), 2, 8);
    let straight = World::new(&[("4to2", recipe.clone())]);
    straight.distill_well("4to2");

    let damaged = World::new(&[("4to2", recipe)]);
    let child = damaged.command("4to2").spawn().unwrap();
    interrupt(child, &damaged, "4to2", 7, "-KILL");
    let checkpoints = damaged.stage("4to2").join("checkpoints");
    let mut found: Vec<_> = std::fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'));
    found.sort();
    let newest = found.last().unwrap().join("student.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();

    let output = damaged.distill("4to2");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("is damaged"), "{}", stderr(&output));
    assert_same(&straight, &damaged, &["4to2"]);
}

/// SIGKILL at any moment, with a checkpoint after every iteration, so that many fall on a half-written one.
#[test]
fn a_run_killed_at_any_moment_equals_a_straight_one() {
    let recipe = two_phases(("base", 4), 2, 10).replace("checkpoint_every = 3", "checkpoint_every = 1");
    let stages = [("4to2", recipe)];
    let straight = World::new(&stages);
    straight.distill_well("4to2");

    let killed = World::new(&stages);
    // The golden ratio's multiples spread evenly over the second or two that a start and a few iterations take.
    for kill in 1..=16 {
        let mut child = killed.command("4to2").spawn().unwrap();
        let share = (f64::from(kill) * 0.618_034).fract();
        std::thread::sleep(Duration::from_secs_f64(0.1 + 1.2 * share));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    killed.distill_well("4to2");
    assert_same(&straight, &killed, &["4to2"]);
    let left: Vec<_> = std::fs::read_dir(killed.stage("4to2").join("checkpoints")).unwrap().collect();
    assert_eq!(left.len(), 2, "the last two are kept and nothing else: {left:?}");
}
