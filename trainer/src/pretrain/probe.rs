//! The probe's phase: answering questions about pictures, spoiled a little as a generator might spoil them.

use std::path::Path;

use demo_world::render::View;
use demo_world::scene::{Scene, Split, item_rng};
use rand::Rng;
use tch::{Kind, Tensor};

use super::desk::Desk;
use super::pictures::pictures;
use super::recipe::PretrainRecipe;
use super::{Stream, average, reseed, save_as};
use crate::Result;
use crate::optimizer::{Optimizer, StateDevice};
use crate::probe::questions::{Accuracy, accuracy, answers, choices, loss};
use crate::probe::{Probe, SIDE};

/// The name of the phase and of its files.
pub const PHASE: &str = "probe";

/// Scenes that the finished probe is examined on.
const EXAMINED: u64 = 512;
/// The most noise that is added to a picture in training, in half the range of its values.
const NOISE: f64 = 0.1;

/// Trains the probe, writes it to `file` and examines it on held-out scenes.
pub fn train_probe(recipe: &PretrainRecipe, desk: &Desk, file: &Path) -> Result<Accuracy> {
    let (probe, params) = Probe::seeded(recipe.seed)?;
    let mut optimizer = Optimizer::new(params.iter(), StateDevice::Same, true)?;
    desk.train(PHASE, &recipe.probe.updates, &mut optimizer, |step| {
        let rng = &mut item_rng(recipe.seed, Stream::Probe as u64, step);
        let scenes: Vec<Scene> = (0..recipe.probe.batch).map(|_| Scene::draw(Split::Shown, rng)).collect();
        reseed(recipe.seed, Stream::Probe, step);
        let spoiled = spoil(&draw(&scenes), rng);
        Ok(loss(&probe.look(&spoiled).logits, &answers(&scenes)))
    })?;
    average(&params, &optimizer);
    save_as(Kind::Half, &params, file)?;
    examine(&probe, recipe.seed)
}

/// How well the probe reads sound pictures of scenes that it was never shown.
fn examine(probe: &Probe, seed: u64) -> Result<Accuracy> {
    let _no_grad = tch::no_grad_guard();
    let scenes: Vec<Scene> =
        (0..EXAMINED).map(|item| Scene::draw(Split::HeldOut, &mut item_rng(seed, Stream::Exam as u64, item))).collect();
    Ok(accuracy(&choices(&probe.look(&draw(&scenes)).logits), &scenes))
}

fn draw(scenes: &[Scene]) -> Tensor {
    let view = View::whole(SIDE as u32, SIDE as u32);
    pictures(&scenes.iter().map(|scene| (scene.clone(), view)).collect::<Vec<_>>())
}

/// Noise, a change of brightness and, every other time, a blur.
fn spoil(pictures: &Tensor, rng: &mut impl Rng) -> Tensor {
    let strength = rng.random_range(0.0..NOISE);
    let brightness = rng.random_range(-0.1..0.1);
    let noisy = pictures + pictures.randn_like() * strength + brightness;
    if rng.random_bool(0.5) {
        noisy.to_kind(Kind::Float).avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None)
    } else {
        noisy
    }
}
