//! Losses, gradients, ten optimizer steps and teacher trajectories against PyTorch and diffusers.
//!
//! See tests/fixtures/distill/make_fixtures.py. Weights and inputs are hashes of their names on both sides; a tensor is
//! compared by its norm and by three products with random vectors.

use std::collections::BTreeMap;

use nn::{Adapters, Weights};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use trainer::adapters::{TARGETS, by_layer};
use trainer::condition::{Condition, NullPrompt};
use trainer::discriminator::{Discriminator, DiscriminatorWeights, HeadShape, HeadWeights};
use trainer::draw::{Draw, Look};
use trainer::flow::{Flow, Formulation, Timestep};
use trainer::objectives::{Batch, Judge, Student, Teacher, Trace, discriminator_step, student_step};
use trainer::optimizer::{AdamConfig, Optimizer, StateDevice, Update};
use trainer::recipe::LoraRecipe;
use trainer::unet::{Recompute, UNet, UNetConfig};

use crate::hashed;

const BATCH: i64 = 2;
const LORA: LoraRecipe = LoraRecipe { rank: 4, alpha: 2.0 };

type Sketch = [f64; 4];
type Sketches = BTreeMap<String, Sketch>;

#[derive(Deserialize)]
struct Fixtures {
    one_step: Vec<OneStep>,
    ten_steps: Vec<TenSteps>,
    trajectories: Vec<Trajectory>,
}

#[derive(Deserialize)]
struct OneStep {
    #[serde(flatten)]
    case: Case,
    discriminator_loss: Option<f64>,
    discriminator_gradients: Option<Sketches>,
    student_loss: f64,
    student_gradients: Sketches,
}

#[derive(Deserialize)]
struct TenSteps {
    case: Case,
    learning_rate: f64,
    betas: [f64; 2],
    losses: Vec<Vec<f64>>,
    student: Sketches,
    discriminator: Sketches,
}

#[derive(Deserialize)]
struct Trajectory {
    steps: u32,
    points: Vec<Sketch>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    lora: bool,
    conditional: Option<bool>,
    teacher_steps: u32,
    student_steps: u32,
    guidance: f64,
    sample: bool,
    look: Option<Vec<Timestep>>,
    conversion: bool,
    t: Vec<Timestep>,
}

fn fixtures() -> Fixtures {
    serde_json::from_str(include_str!("../fixtures/distill/parity.json")).unwrap()
}

fn config() -> UNetConfig {
    UNetConfig::from_json(include_str!("../fixtures/distill/unet_config.json")).unwrap()
}

fn weights(prefix: &str) -> BTreeMap<String, Tensor> {
    let config = config();
    let (_, shapes) = Weights::shapes_only().build(|scope| UNet::new(scope, &config)).unwrap();
    let weight = |name: &str, tensor: &Tensor| hashed::weight(&format!("{prefix}{name}"), &tensor.size());
    shapes.iter().map(|(name, tensor)| (name.to_string(), weight(name, tensor))).collect()
}

fn unet(prefix: &str) -> (UNet, nn::Params) {
    let config = config();
    Weights::from_tensors(prefix, weights(prefix)).build(|scope| UNet::new(scope, &config)).unwrap()
}

/// A student and the optimizer of what is trained of it.
fn student(lora: bool) -> (UNet, Optimizer) {
    let (config, state) = (config(), StateDevice::Same);
    if !lora {
        let (net, params) = unet("base.");
        return (net, Optimizer::new(params.iter(), state, false).unwrap());
    }
    let fresh =
        Adapters::Fresh { targets: TARGETS.map(String::from).into(), rank: LORA.rank, alpha: LORA.alpha, seed: 0 };
    let shapes = Weights::shapes_only().build_adapted(fresh, |scope| UNet::new(scope, &config)).unwrap().lora;
    let weight = |name: &str, tensor: &Tensor| hashed::weight(&format!("lora.{name}"), &tensor.size());
    let given = shapes.iter().map(|(name, tensor)| (name.to_string(), weight(name, tensor))).collect();
    let adapted = Weights::from_tensors("base", weights("base."))
        .build_adapted(Adapters::Given(by_layer(&given, &LORA)), |scope| UNet::new(scope, &config))
        .unwrap();
    adapted.base.set_requires_grad(false);
    (adapted.net, Optimizer::new(adapted.lora.iter(), state, false).unwrap())
}

struct Setting {
    student: Student,
    student_optimizer: Optimizer,
    teacher: Teacher,
    critic: Option<(Discriminator, Optimizer)>,
}

fn setting(case: &Case, recompute: Recompute) -> Setting {
    let formulation = if case.sample { Formulation::Sample } else { Formulation::Epsilon };
    let (mut unet_, student_optimizer) = student(case.lora);
    unet_.set_recompute(recompute);
    let student = Student { unet: unet_, kind: Kind::Float, formulation, steps: case.student_steps };
    let (net, params) = unet(if case.lora { "base." } else { "teacher." });
    params.set_requires_grad(false);
    let teacher = Teacher {
        unet: net,
        kind: Kind::Float,
        formulation: Formulation::Epsilon,
        steps: case.teacher_steps,
        guidance_scale: case.guidance,
        null_prompt: NullPrompt::Zeros,
    };
    let critic = case.conditional.map(|conditional| {
        let shape = HeadShape::of(&config(), 8, conditional);
        let place = (Kind::Float, Device::Cpu);
        let build = |head| {
            let weights = DiscriminatorWeights { backbone: weights("base."), head };
            Discriminator::new(&config(), shape, weights, place, recompute).unwrap()
        };
        let (_, shapes) = build(HeadWeights::Fresh { seed: 0 });
        let head = shapes
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("head.")?, hashed::weight(name, &tensor.size()))))
            .map(|(name, tensor)| (name.to_string(), tensor))
            .collect();
        let (discriminator, params) = build(HeadWeights::Given(head));
        (discriminator, Optimizer::new(params.iter(), StateDevice::Same, false).unwrap())
    });
    Setting { student, student_optimizer, teacher, critic }
}

fn condition(tag: &str) -> Condition {
    let ids = [64.0_f32, 80.0, 0.0, 8.0, 64.0, 64.0].repeat(BATCH as usize);
    Condition {
        prompt_embeds: hashed::tensor(&format!("{tag}.context"), &[BATCH, 5, 32], 1.0),
        pooled: hashed::tensor(&format!("{tag}.pooled"), &[BATCH, 16], 1.0),
        time_ids: Tensor::from_slice(&ids).view([BATCH, 6]),
    }
}

fn inputs(case: &Case, tag: &str) -> (Batch, Draw) {
    let latent = |part: &str| hashed::tensor(&format!("{tag}.{part}"), &[BATCH, 4, 8, 8], 1.0);
    let batch = Batch { latents: latent("latents"), condition: condition(tag) };
    let look = case.look.clone().map(|t| Look { noise: latent("look"), t });
    (batch, Draw { noise: latent("noise"), t: case.t.clone(), look })
}

impl Setting {
    fn discriminator_step(&mut self, case: &Case, tag: &str) -> f64 {
        let (batch, draw) = inputs(case, tag);
        let Some((discriminator, optimizer)) = &mut self.critic else { panic!("there is no discriminator") };
        optimizer.set_trainable(true);
        let flow = Flow::sdxl();
        let report =
            discriminator_step(&flow, &self.student, &self.teacher, discriminator, &batch, &draw, 1.0, &mut Trace::Off);
        optimizer.accumulate();
        optimizer.set_trainable(false);
        report.loss.double_value(&[])
    }

    fn student_step(&mut self, case: &Case, tag: &str) -> f64 {
        let (batch, draw) = inputs(case, tag);
        let judge = match &self.critic {
            Some((discriminator, optimizer)) => {
                optimizer.set_trainable(false);
                Judge::Discriminator(discriminator)
            }
            None if case.conversion => Judge::FrozenCopy(&self.teacher),
            None => Judge::Distance(&self.teacher),
        };
        let report = student_step(&Flow::sdxl(), &self.student, judge, &batch, &draw, 1.0, &mut Trace::Off);
        self.student_optimizer.accumulate();
        report.loss.double_value(&[])
    }
}

fn sketch(tensor: &Tensor, name: &str) -> Sketch {
    let values = tensor.detach().to_kind(Kind::Double).flatten(0, -1);
    let product = |k: usize| {
        let random: Vec<f64> = hashed::uniform(&format!("sketch{k}.{name}"), values.numel()).collect();
        values.dot(&Tensor::from_slice(&random)).double_value(&[])
    };
    [values.norm().double_value(&[]), product(0), product(1), product(2)]
}

/// All tensors at once: the worst difference of a sketch, relative to the tensor's norm, but to no less than a
/// ten-thousandth of the largest norm, below which a gradient is rounding alone.
#[track_caller]
fn assert_close(found: &BTreeMap<String, Tensor>, expected: &Sketches, tolerance: f64, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    let largest = expected.values().map(|sketch| sketch[0]).fold(0.0, f64::max);
    assert!(largest > 0.0, "{what}: nothing but zeros");
    for (name, tensor) in found {
        let (found, expected) = (sketch(tensor, name), &expected[name]);
        let scale = expected[0].max(1e-4 * largest);
        for (a, b) in found.iter().zip(expected) {
            let error = (a - b).abs() / scale;
            assert!(error < tolerance, "{what}: {name} is {found:?}, expected {expected:?} ({error:.1e})");
        }
    }
}

#[track_caller]
fn assert_loss(found: f64, expected: f64, tolerance: f64, what: &str) {
    let error = (found - expected).abs() / expected.abs();
    assert!(error < tolerance, "{what}: loss {found}, expected {expected} ({error:.1e})");
}

/// To 1e-4 in FP32, every objective, LoRA and full, with activations kept and recomputed.
#[test]
fn losses_and_gradients_are_pytorchs() {
    for OneStep { case, discriminator_loss, discriminator_gradients, student_loss, student_gradients } in
        fixtures().one_step
    {
        for recompute in [Recompute::Never, Recompute::Blocks] {
            let what = format!("{}, {recompute:?}", case.name);
            let mut setting = setting(&case, recompute);
            if let (Some(loss), Some(gradients)) = (discriminator_loss, &discriminator_gradients) {
                assert_loss(setting.discriminator_step(&case, "one"), loss, 1e-4, &what);
                let found = setting.critic.as_ref().unwrap().1.gradients();
                assert_close(&found, gradients, 1e-4, &format!("{what}, discriminator"));
            }
            assert_loss(setting.student_step(&case, "one"), student_loss, 1e-4, &what);
            assert_close(&setting.student_optimizer.gradients(), &student_gradients, 1e-4, &what);
        }
    }
}

/// Ten updates, alternating where there is a discriminator: losses and weights to 1e-3.
#[test]
fn ten_optimizer_steps_are_pytorchs() {
    for TenSteps { case, learning_rate, betas, losses, student, discriminator } in fixtures().ten_steps {
        let adam = AdamConfig { learning_rate, betas, max_gradient_norm: None };
        let mut setting = setting(&case, Recompute::Never);
        for (step, expected) in losses.into_iter().enumerate() {
            let (tag, what) = (format!("ten{step}"), format!("{}, step {step}", case.name));
            let mut found = Vec::new();
            if setting.critic.is_some() {
                found.push(setting.discriminator_step(&case, &tag));
                let critic = &mut setting.critic.as_mut().unwrap().1;
                assert!(matches!(critic.update(&adam, None).unwrap(), Update::Applied { .. }));
            }
            found.push(setting.student_step(&case, &tag));
            setting.student_optimizer.update(&adam, None).unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.into_iter().zip(expected) {
                assert_loss(found, expected, 1e-3, &what);
            }
        }
        assert_close(&setting.student_optimizer.masters(), &student, 1e-3, &case.name);
        if let Some((_, critic)) = setting.critic {
            assert_close(&critic.masters(), &discriminator, 1e-3, &case.name);
        }
    }
}

/// diffusers' DDIM at the same timesteps, every point to 1e-4.
#[test]
fn teacher_trajectories_are_ddims() {
    for Trajectory { steps, points } in fixtures().trajectories {
        let (net, params) = unet("teacher.");
        params.set_requires_grad(false);
        let teacher = Teacher {
            unet: net,
            kind: Kind::Float,
            formulation: Formulation::Epsilon,
            steps,
            guidance_scale: 1.0,
            null_prompt: NullPrompt::Zeros,
        };
        let flow = Flow::sdxl();
        let noise = hashed::tensor("walk.noise", &[BATCH, 4, 8, 8], 1.0);
        let (from, to) = (vec![flow.last(); 2], vec![Timestep::DATA; 2]);
        let walked = teacher.walk(&flow, &noise, &from, &to, &condition("walk"));
        assert_eq!(walked.len(), points.len());
        for (at, (point, expected)) in walked.iter().zip(points).enumerate() {
            for (a, b) in sketch(point, "point").iter().zip(expected) {
                assert!((a - b).abs() < 1e-4 * expected[0], "{steps} steps, point {at}");
            }
        }
    }
}

/// A student that is its teacher, taking the teacher's own step, has nothing to learn.
#[test]
fn a_student_equal_to_its_teacher_has_no_loss() {
    let (student_net, _) = unet("teacher.");
    let (teacher_net, params) = unet("teacher.");
    params.set_requires_grad(false);
    let case = &fixtures().one_step[0].case;
    let student = Student { unet: student_net, kind: Kind::Float, formulation: Formulation::Epsilon, steps: 2 };
    let teacher = Teacher {
        unet: teacher_net,
        kind: Kind::Float,
        formulation: Formulation::Epsilon,
        steps: 2,
        guidance_scale: 1.0,
        null_prompt: NullPrompt::Zeros,
    };
    let (batch, draw) = inputs(case, "one");
    let _no_grad = tch::no_grad_guard();
    let flow = Flow::sdxl();
    let x_t = flow.forward_to_pure_noise(&batch.latents, &draw.noise, &draw.t);
    let to = student.destinations(&flow, &draw.t);
    let u = student.predict(&x_t, &draw.t, &batch.condition);
    let point = flow.step(&x_t, &u, &draw.t, &to, student.formulation);
    assert_eq!(Some(&point), teacher.walk(&flow, &x_t, &draw.t, &to, &batch.condition).last());
}
