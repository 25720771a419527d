//! Precision, offloading, recomputation and running means, on whole stages.

use std::collections::BTreeMap;

use nn::Weights;
use tch::{Kind, Tensor};

use crate::resume::{assert_same, interrupt};
use crate::world::{World, head, phase};

const EMA: &str = "ema_decay = 0.75";
const OFFLOAD: &str = "offload_optimizer = true";
const RECOMPUTE: &str = "checkpoint_activations = true";

/// LoRA, then everything.
fn recipe(precision: &str, extra: &str, learning_rate: &str) -> String {
    let text = head(("base", 4), 2, &format!("lora = {{ rank = 4, alpha = 2.0 }}\n{extra}"))
        + &phase("lora", "adversarial_conditional", "lora", 5, "")
        + &phase("full", "adversarial_unconditional", "full", 5, "");
    text.replace("precision = 'f32'", &format!("precision = '{precision}'"))
        .replace("learning_rate = 1e-3", &format!("learning_rate = {learning_rate}"))
}

fn world(precision: &str, extra: &str) -> World {
    World::new(&[("4to2", recipe(precision, extra, "1e-3"))])
}

fn distilled(precision: &str, extra: &str) -> World {
    let world = world(precision, extra);
    world.distill_well("4to2");
    world
}

/// The tensors of the last checkpoint whose names begin with a prefix, without it.
fn saved(world: &World, prefix: &str) -> BTreeMap<String, Tensor> {
    let file = Weights::open(&world.stage("4to2").join("checkpoints/000000010/student.safetensors")).unwrap();
    let names = file.names();
    let tensors = names.iter().filter_map(|name| Some((name.strip_prefix(prefix)?, file.tensor(name).unwrap())));
    tensors.map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

fn exported(world: &World, name: &str) -> Tensor {
    let file = world.stage("4to2").join("export/unet/diffusion_pytorch_model.safetensors");
    Weights::open(&file).unwrap().tensor(name).unwrap()
}

/// A rate that moves nothing leaves a discriminator as it was built, whatever the student does; the student's own rate,
/// spelt out, changes nothing.
#[test]
fn the_discriminator_has_a_rate_of_its_own_where_one_is_named() {
    let run = |rate: Option<&str>| {
        let extra = rate.map_or_else(String::new, |rate| format!("discriminator_learning_rate = {rate}"));
        let text = head(("base", 4), 2, "") + &phase("full", "adversarial_conditional", "full", 3, &extra);
        let world = World::new(&[("4to2", text)]);
        world.distill_well("4to2");
        world
    };
    let state = |world: &World, file: &str| {
        let file = Weights::open(&world.stage("4to2").join("checkpoints/000000003").join(file)).unwrap();
        let masters = file.names().into_iter().filter(|name| name.starts_with("master."));
        Tensor::cat(&masters.map(|name| file.tensor(name).unwrap().flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let (usual, spelt_out, still) = (run(None), run(Some("1e-3")), run(Some("1e-30")));
    let discriminator = |world: &World| state(world, "discriminator.safetensors");
    assert_eq!(discriminator(&usual), discriminator(&spelt_out));
    assert_eq!(state(&usual, "student.safetensors"), state(&spelt_out, "student.safetensors"));

    let moved = |world: &World| (discriminator(world) - discriminator(&still)).abs().max().double_value(&[]);
    // Adam without a first moment moves each weight by about its rate in an update.
    assert!((1e-3..1e-2).contains(&moved(&usual)), "{}", moved(&usual));
    let students = (state(&usual, "student.safetensors") - state(&still, "student.safetensors")).abs();
    assert!(students.max().double_value(&[]) > 1e-5, "the student follows another discriminator");
}

#[test]
fn every_option_resumes_bit_for_bit() {
    let all = [EMA, OFFLOAD, RECOMPUTE].join("\n");
    for (precision, extra) in [("f32", [EMA, OFFLOAD].join("\n")), ("f32", RECOMPUTE.into()), ("bf16", all)] {
        let straight = distilled(precision, &extra);
        let interrupted = world(precision, &extra);
        for (iteration, signal) in [(3, "-KILL"), (8, "-TERM")] {
            interrupt(interrupted.command("4to2").spawn().unwrap(), &interrupted, "4to2", iteration, signal);
        }
        interrupted.distill_well("4to2");
        assert_same(&straight, &interrupted, &["4to2"]);
    }
}

/// Masters of their own on the host: not one bit is another.
#[test]
fn offloading_changes_nothing() {
    for precision in ["f32", "bf16"] {
        let (plain, offloaded) = (distilled(precision, ""), distilled(precision, OFFLOAD));
        assert_eq!(offloaded.losses("4to2"), plain.losses("4to2"), "{precision}");
        assert_eq!(offloaded.results("4to2"), plain.results("4to2"), "{precision}");
    }
}

/// Activations computed twice: the same but for the order in which gradients of what many blocks use are added up.
#[test]
fn recomputing_changes_rounding_alone() {
    let (plain, recomputed) = (distilled("f32", "").losses("4to2"), distilled("f32", RECOMPUTE).losses("4to2"));
    assert_eq!(recomputed[0], plain[0], "nothing is added up before the first loss");
    for (recomputed, plain) in recomputed.iter().zip(&plain) {
        assert!((recomputed.1 / plain.1 - 1.0).abs() < 1e-3, "{recomputed:?} and {plain:?}");
    }
}

/// Five updates of 1e-6 are far below what bf16 can add to a weight; masters keep them all the same.
#[test]
fn bf16_masters_keep_small_updates() {
    let moved = |precision: &str| {
        let world = World::new(&[("4to2", recipe(precision, "", "1e-6"))]);
        world.distill_well("4to2");
        let start = Weights::open(&world.base().join("unet/diffusion_pytorch_model.safetensors")).unwrap();
        let (mut sum, mut count) = (0.0, 0.0);
        for (name, master) in saved(&world, "master.") {
            assert_eq!(master.kind(), Kind::Float);
            // The LoRA phase before has moved some by its merged adapters, and others not at all.
            if name.ends_with("norm1.weight") || name.ends_with("norm2.weight") {
                let start = start.tensor(&name).unwrap();
                sum += (&master - start).abs().sum(Kind::Double).double_value(&[]);
                count += master.numel() as f64;
                let rounded = master.to_kind(Kind::BFloat16).to_kind(Kind::Float);
                assert!((&master - rounded).abs().max().double_value(&[]) > 0.0, "{name} is no wider than bf16");
            }
        }
        sum / count
    };
    let (wide, narrow) = (moved("f32"), moved("bf16"));
    // With beta1 = 0 every update is about the learning rate, in one direction or the other.
    assert!((1e-6..=5.1e-6).contains(&wide), "{wide:e}");
    assert!((narrow / wide - 1.0).abs() < 0.25, "{narrow:e} in bf16, {wide:e} in f32");
}

/// The running mean is what is exported, and it is not the last weights.
#[test]
fn the_running_mean_is_exported() {
    let world = distilled("f32", EMA);
    let (means, masters) = (saved(&world, "mean."), saved(&world, "master."));
    assert_eq!(means.keys().collect::<Vec<_>>(), masters.keys().collect::<Vec<_>>());
    for name in ["conv_in.weight", "mid_block.resnets.0.conv1.weight"] {
        let found = exported(&world, name);
        assert_eq!(found, means[name].to_kind(Kind::Half).to_kind(found.kind()), "{name}");
        assert!((&means[name] - &masters[name]).abs().max().double_value(&[]) > 1e-4, "{name}");
    }
    let without = distilled("f32", "");
    assert_eq!(saved(&without, "master.")["conv_in.weight"], masters["conv_in.weight"], "the mean is an onlooker");
}
