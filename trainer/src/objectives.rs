//! What a phase minimises: the teacher's walk, the losses, and the two step functions.
//!
//! Nothing here knows of optimizers, devices' settings, files or logs. A step function runs one micro-batch forward
//! and backward, which leaves gradients in the trained tensors, and returns a report.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::condition::{Condition, NullPrompt};
use crate::discriminator::Discriminator;
use crate::draw::Draw;
use crate::flow::{Flow, Formulation, Timestep, model_timesteps};
use crate::unet::UNet;

/// One micro-batch of training data.
#[derive(Debug)]
pub struct Batch {
    /// `x_0`, `[B, C, H, W]`, times the VAE's scaling factor, in FP32.
    pub latents: Tensor,
    /// What goes with it.
    pub condition: Condition,
}

/// A frozen network that is followed.
#[derive(Debug)]
pub struct Teacher {
    /// The network.
    pub unet: UNet,
    /// Its weights' dtype.
    pub kind: Kind,
    /// What it predicts.
    pub formulation: Formulation,
    /// Its inference steps.
    pub steps: u32,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance_scale: f64,
    /// What guidance leads away from.
    pub null_prompt: NullPrompt,
}

/// The network that learns.
#[derive(Debug)]
pub struct Student {
    /// The network.
    pub unet: UNet,
    /// Its weights' dtype.
    pub kind: Kind,
    /// What it predicts.
    pub formulation: Formulation,
    /// Its inference steps.
    pub steps: u32,
}

/// `f(x_t, t, c)` in FP32 (equation 2).
fn predict(unet: &UNet, kind: Kind, x_t: &Tensor, t: &[Timestep], condition: &Condition) -> Tensor {
    let condition = condition.to_kind(kind);
    let timesteps = model_timesteps(t, x_t.device());
    unet.forward(&x_t.to_kind(kind), &timesteps, &condition.prompt_embeds, &condition.pooled, &condition.time_ids)
        .to_kind(Kind::Float)
}

impl Teacher {
    /// `u_t`, guided: `u + w (c - u)` against the null prompt.
    fn predict(&self, x_t: &Tensor, t: &[Timestep], condition: &Condition) -> Tensor {
        if self.guidance_scale == 1.0 {
            return predict(&self.unet, self.kind, x_t, t, condition);
        }
        let both = predict(
            &self.unet,
            self.kind,
            &Tensor::cat(&[x_t, x_t], 0),
            &t.repeat(2),
            &condition.null(&self.null_prompt).and(condition),
        );
        let halves = both.chunk(2, 0);
        &halves[0] + (&halves[1] - &halves[0]) * self.guidance_scale
    }

    /// Equations 7 to 13: from `x_t` the points that the teacher's steps lead to, the last at `to`. Samples that
    /// arrive early stay where they are.
    pub fn walk(
        &self,
        flow: &Flow,
        x_t: &Tensor,
        t: &[Timestep],
        to: &[Timestep],
        condition: &Condition,
    ) -> Vec<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let mut points: Vec<Tensor> = Vec::new();
        let mut here = t.to_vec();
        while here != to {
            let there: Vec<Timestep> =
                here.iter().zip(to).map(|(t, end)| flow.next(*t, self.steps).max(*end)).collect();
            let x = points.last().unwrap_or(x_t);
            let u = self.predict(x, &here, condition);
            points.push(flow.step(x, &u, &here, &there, self.formulation));
            here = there;
        }
        points
    }
}

impl Student {
    /// `f_student(x_t, t, c)` (equation 14).
    pub fn predict(&self, x_t: &Tensor, t: &[Timestep], condition: &Condition) -> Tensor {
        predict(&self.unet, self.kind, x_t, t, condition)
    }

    /// Its inference: from pure noise to data in its own number of steps.
    pub fn sample(&self, flow: &Flow, noise: &Tensor, condition: &Condition) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let mut x = noise.shallow_clone();
        let mut here = vec![flow.last(); noise.size()[0] as usize];
        while here.iter().any(|t| *t != Timestep::DATA) {
            let there = self.destinations(flow, &here);
            let u = self.predict(&x, &here, condition);
            x = flow.step(&x, &u, &here, &there, self.formulation);
            here = there;
        }
        x
    }

    /// Where its steps from `t` lead: `t - n s`.
    pub fn destinations(&self, flow: &Flow, t: &[Timestep]) -> Vec<Timestep> {
        t.iter().map(|t| flow.next(*t, self.steps)).collect()
    }
}

/// Equation 16, `|| a - b ||^2`, as the mean over all elements.
pub fn mse_loss(prediction: &Tensor, target: &Tensor) -> Tensor {
    (prediction - target).square().mean(Kind::Float)
}

/// Equation 20, `-log D(real) - log(1 - D(fake))`, from logits: `softplus(-real) + softplus(fake)`, each a mean.
pub fn discriminator_loss(real: &Tensor, fake: &Tensor) -> Tensor {
    (-real).softplus().mean(Kind::Float) + fake.softplus().mean(Kind::Float)
}

/// Equation 21, `-log D(fake)`, from logits: `softplus(-fake)`, a mean.
pub fn generator_loss(fake: &Tensor) -> Tensor {
    (-fake).softplus().mean(Kind::Float)
}

/// What entered and left a step, for anyone who wants to compute it again elsewhere.
#[derive(Debug, Default)]
pub enum Trace {
    /// Nothing is kept.
    #[default]
    Off,
    /// Tensors by name.
    On(BTreeMap<String, Tensor>),
}

impl Trace {
    fn put(&mut self, name: &str, tensor: &Tensor) {
        if let Trace::On(tensors) = self {
            tensors.insert(name.to_string(), tensor.detach().copy());
        }
    }

    fn put_timesteps(&mut self, name: &str, t: &[Timestep]) {
        if let Trace::On(tensors) = self {
            let values: Vec<i64> = t.iter().map(|t| i64::from(t.0)).collect();
            tensors.insert(name.to_string(), Tensor::from_slice(&values));
        }
    }

    fn put_batch(&mut self, batch: &Batch, draw: &Draw, x_t: &Tensor, to: &[Timestep]) {
        self.put("latents", &batch.latents);
        self.put("prompt_embeds", &batch.condition.prompt_embeds);
        self.put("pooled_prompt_embeds", &batch.condition.pooled);
        self.put("time_ids", &batch.condition.time_ids);
        self.put("noise", &draw.noise);
        self.put("x_t", x_t);
        self.put_timesteps("t", &draw.t);
        self.put_timesteps("t_minus_ns", to);
        if let Some(look) = &draw.look {
            self.put("look_noise", &look.noise);
            self.put_timesteps("look_t", &look.t);
        }
    }

    fn put_walk(&mut self, points: &[Tensor]) {
        for (at, point) in points.iter().enumerate() {
            self.put(&format!("teacher.{at:03}"), point);
        }
    }
}

/// What one micro-batch did for the student. Tensors stay on the device: reading them is the caller's choice.
#[derive(Debug)]
pub struct StudentReport {
    /// The loss, a scalar.
    pub loss: Tensor,
    /// Logits of its points, `[B]`, where there is a discriminator.
    pub logits: Option<Tensor>,
}

/// What one micro-batch did for the discriminator.
#[derive(Debug)]
pub struct DiscriminatorReport {
    /// The loss, a scalar.
    pub loss: Tensor,
    /// Logits of the teacher's points, `[B]`.
    pub real: Tensor,
    /// Logits of the student's points, `[B]`.
    pub fake: Tensor,
}

/// Against whom the student's step is measured.
#[derive(Debug, Clone, Copy)]
pub enum Judge<'a> {
    /// The teacher's points (equation 16).
    Distance(&'a Teacher),
    /// A discriminator (equation 21).
    Discriminator(&'a Discriminator),
    /// A frozen copy's data (equation 29).
    FrozenCopy(&'a Teacher),
}

/// One micro-batch of the student: forward, loss, backward. `weight` is its share of the update.
pub fn student_step(
    flow: &Flow,
    student: &Student,
    judge: Judge,
    batch: &Batch,
    draw: &Draw,
    weight: f64,
    trace: &mut Trace,
) -> StudentReport {
    let x_t = flow.forward_to_pure_noise(&batch.latents, &draw.noise, &draw.t);
    let to = student.destinations(flow, &draw.t);
    trace.put_batch(batch, draw, &x_t, &to);
    let u = student.predict(&x_t, &draw.t, &batch.condition);
    trace.put("student.prediction", &u);
    let (loss, logits) = match judge {
        Judge::Distance(teacher) => {
            let walk = teacher.walk(flow, &x_t, &draw.t, &to, &batch.condition);
            trace.put_walk(&walk);
            let target = walk.last().unwrap_or(&x_t);
            let point = flow.step(&x_t, &u, &draw.t, &to, student.formulation);
            trace.put("student.point", &point);
            (mse_loss(&point, target), None)
        }
        Judge::Discriminator(discriminator) => {
            let point = flow.step(&x_t, &u, &draw.t, &to, student.formulation);
            trace.put("student.point", &point);
            let (seen, at) = noised(flow, &point, &to, draw);
            let logits = discriminator.logits(&[&seen], &at, &x_t, &draw.t, &batch.condition).remove(0);
            trace.put("student.logits", &logits);
            (generator_loss(&logits), Some(logits.detach()))
        }
        Judge::FrozenCopy(frozen) => {
            let data = {
                let _no_grad = tch::no_grad_guard();
                let u = frozen.predict(&x_t, &draw.t, &batch.condition);
                flow.x(&x_t, &u, &draw.t, frozen.formulation)
            };
            trace.put("frozen.data", &data);
            (mse_loss(&flow.x(&x_t, &u, &draw.t, student.formulation), &data), None)
        }
    };
    trace.put("student.loss", &loss);
    (&loss * weight).backward();
    StudentReport { loss: loss.detach(), logits }
}

/// One micro-batch of the discriminator: both networks' points, loss, backward. `weight` is its share of the update.
#[allow(clippy::too_many_arguments)]
pub fn discriminator_step(
    flow: &Flow,
    student: &Student,
    teacher: &Teacher,
    discriminator: &Discriminator,
    batch: &Batch,
    draw: &Draw,
    weight: f64,
    trace: &mut Trace,
) -> DiscriminatorReport {
    let (x_t, to, real, fake) = {
        let _no_grad = tch::no_grad_guard();
        let x_t = flow.forward_to_pure_noise(&batch.latents, &draw.noise, &draw.t);
        let to = student.destinations(flow, &draw.t);
        trace.put_batch(batch, draw, &x_t, &to);
        let mut walk = teacher.walk(flow, &x_t, &draw.t, &to, &batch.condition);
        trace.put_walk(&walk);
        let u = student.predict(&x_t, &draw.t, &batch.condition);
        let fake = flow.step(&x_t, &u, &draw.t, &to, student.formulation);
        trace.put("discriminator.student_point", &fake);
        let real = walk.pop().unwrap_or_else(|| x_t.shallow_clone());
        (x_t, to, real, fake)
    };
    let (real, at) = noised(flow, &real, &to, draw);
    let (fake, _) = noised(flow, &fake, &to, draw);
    let mut logits = discriminator.logits(&[&real, &fake], &at, &x_t, &draw.t, &batch.condition).into_iter();
    let (Some(real), Some(fake)) = (logits.next(), logits.next()) else { unreachable!("one logit for each point") };
    trace.put("discriminator.real", &real);
    trace.put("discriminator.fake", &fake);
    let loss = discriminator_loss(&real, &fake);
    trace.put("discriminator.loss", &loss);
    (&loss * weight).backward();
    DiscriminatorReport { loss: loss.detach(), real: real.detach(), fake: fake.detach() }
}

/// Equations 25 and 26: a point at 0 as the discriminator sees it, and where; elsewhere the point itself.
fn noised(flow: &Flow, point: &Tensor, to: &[Timestep], draw: &Draw) -> (Tensor, Vec<Timestep>) {
    match &draw.look {
        Some(look) => (flow.forward(point, &look.noise, &look.t), look.t.clone()),
        None => (point.shallow_clone(), to.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_probabilities() {
        let logits = Tensor::from_slice(&[-2.0_f32, 0.5, 3.0]);
        let p = logits.sigmoid();
        let close = |a: &Tensor, b: Tensor| (a - b).abs().double_value(&[]) < 1e-6;
        assert!(close(&generator_loss(&logits), -p.log().mean(Kind::Float)));
        let fake = &logits * -0.7;
        // 1 - D(fake) is D(-fake).
        let expected = -p.log().mean(Kind::Float) - (-&fake).sigmoid().log().mean(Kind::Float);
        assert!(close(&discriminator_loss(&logits, &fake), expected));
    }

    #[test]
    fn losses_stay_finite_where_a_sigmoid_is_zero() {
        let logits = Tensor::from_slice(&[-500.0_f32]);
        assert_eq!(generator_loss(&logits).double_value(&[]), 500.0);
        assert_eq!(discriminator_loss(&logits, &-&logits).double_value(&[]), 1000.0);
    }

    #[test]
    fn an_undecided_discriminator_has_twice_log_two() {
        let zero = Tensor::from_slice(&[0.0_f32]);
        let loss = discriminator_loss(&zero, &zero).double_value(&[]);
        assert!((loss - 2.0 * std::f64::consts::LN_2).abs() < 1e-6);
    }
}
