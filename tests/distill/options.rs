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
