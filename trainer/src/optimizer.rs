//! Adam over flat FP32 masters.
//!
//! The trained tensors of a network are moved into one buffer for each dtype, and their gradients into another, so
//! that zeroing, accumulation, the norm and the update are a kernel each, whatever the number of tensors; the state
//! is one contiguous piece that can be saved, moved to the host or sharded without the loop's knowledge.
//!
//! ```text
//! weights  [w0 | w1 | ...]  network's dtype, what the layers see      gradients  [g0 | g1 | ...]  what autograd adds to
//! masters  [w0 | w1 | ...]  FP32; the weights themselves where those are FP32 on the same device
//! moments  [m0 | m1 | ...]  [v0 | v1 | ...]  FP32
//! ```

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use torch_shim::{Adam, WeightDecay};

use crate::{Error, Result};

/// Each tensor starts on a multiple of this many elements: 256 bytes in FP32, as the allocator's own.
const ALIGNMENT: i64 = 64;

/// Elements given to the fused kernel at once; its indices are 32 bits wide in places.
const CHUNK: i64 = 1 << 28;

/// Gradients added to wider sums at once: a CPU widens them into memory of their own first.
const WIDENED: i64 = 1 << 22;

/// Constants of one phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decays of the moments.
    pub betas: [f64; 2],
    /// Gradients longer than this are scaled down to it.
    pub max_gradient_norm: Option<f64>,
}

/// The epsilon of PyTorch's and everyone's Adam.
const EPSILON: f64 = 1e-8;

/// What came of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    /// The weights moved.
    Applied {
        /// Before clipping.
        gradient_norm: f64,
    },
    /// The gradients were NaN or infinite; nothing moved.
    Skipped,
}

/// The trained tensors of one network and Adam's state for them.
#[derive(Debug)]
pub struct Optimizer {
    groups: Vec<Group>,
    /// Updates applied, which is Adam's own count.
    updates: u64,
}

/// Tensors of one dtype.
#[derive(Debug)]
struct Group {
    places: Vec<Place>,
    weights: Tensor,
    gradients: Tensor,
    /// FP32 sums of `gradients` over micro-batches, where those are narrower.
    sums: Option<Tensor>,
    masters: Tensor,
    /// Whether the masters are the weights.
    shares_masters: bool,
    first_moment: Tensor,
    second_moment: Tensor,
    mean: Option<Tensor>,
}

#[derive(Debug)]
struct Place {
    name: String,
    tensor: Tensor,
    start: i64,
    shape: Vec<i64>,
}

impl Place {
    fn view(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.start, self.shape.iter().product()).view(self.shape.as_slice())
    }
}

/// Where masters and moments lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateDevice {
    /// Beside the weights.
    Same,
    /// In host memory: a third of the device memory, at the price of two copies for each update.
    Host,
}

/// What an optimizer holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptimizerBytes {
    /// The weights that the layers see.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// Sums of gradients in FP32, where those are narrower.
    pub sums: u64,
    /// Masters, where they are not the weights themselves.
    pub masters: u64,
    /// Both moments.
    pub moments: u64,
    /// The running mean, where one is kept.
    pub mean: u64,
}

impl Optimizer {
    /// Takes over tensors of a network, by name. From here on their values and gradients live in flat buffers; the
    /// network sees every update. They require gradients afterwards.
    pub fn new<'a>(
        tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
        state: StateDevice,
        with_mean: bool,
    ) -> Result<Optimizer> {
        let _no_grad = tch::no_grad_guard();
        // By dtype in order of appearance, so that the layout is a function of the network alone.
        let mut by_kind: Vec<(Kind, Vec<(&str, &Tensor)>)> = Vec::new();
        for (name, tensor) in tensors {
            match by_kind.iter_mut().find(|(kind, _)| *kind == tensor.kind()) {
                Some((_, members)) => members.push((name, tensor)),
                None => by_kind.push((tensor.kind(), vec![(name, tensor)])),
            }
        }
        let groups =
            by_kind.into_iter().map(|(_, members)| Group::new(&members, state, with_mean)).collect::<Result<_>>()?;
        Ok(Optimizer { groups, updates: 0 })
    }

    /// What it holds.
    pub fn bytes(&self) -> OptimizerBytes {
        let sum = |part: fn(&Group) -> Option<&Tensor>| {
            self.groups
                .iter()
                .filter_map(part)
                .map(|flat| (flat.numel() * flat.kind().elt_size_in_bytes()) as u64)
                .sum()
        };
        OptimizerBytes {
            weights: sum(|group| Some(&group.weights)),
            gradients: sum(|group| Some(&group.gradients)),
            sums: sum(|group| group.sums.as_ref()),
            masters: sum(|group| (!group.shares_masters).then_some(&group.masters)),
            moments: sum(|group| Some(&group.first_moment)) + sum(|group| Some(&group.second_moment)),
            mean: sum(|group| group.mean.as_ref()),
        }
    }

    /// How many numbers are trained.
    pub fn count(&self) -> i64 {
        self.groups.iter().flat_map(|group| &group.places).map(|place| place.shape.iter().product::<i64>()).sum()
    }

    /// Whether backward passes reach these tensors.
    pub fn set_trainable(&self, trainable: bool) {
        for place in self.groups.iter().flat_map(|group| &group.places) {
            let _handle = place.tensor.set_requires_grad(trainable);
        }
    }

    /// Ends a micro-batch: its gradients are added up in FP32.
    pub fn accumulate(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for group in &mut self.groups {
            if let Some(sums) = &group.sums {
                for (mut sum, gradient) in pieces(sums, WIDENED).zip(pieces(&group.gradients, WIDENED)) {
                    let _sum = sum.g_add_(&gradient);
                }
                let _zeroed = group.gradients.zero_();
            }
        }
    }

    /// Forgets all gradients.
    pub fn zero_gradients(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for group in &mut self.groups {
            let _zeroed = group.gradients.zero_();
            if let Some(sums) = &mut group.sums {
                let _zeroed = sums.zero_();
            }
        }
    }

    /// One update by the gradients accumulated so far, which are then forgotten.
    pub fn update(&mut self, adam: &AdamConfig, ema_decay: Option<f64>) -> Result<Update> {
        let _no_grad = tch::no_grad_guard();
        let totals: Vec<Tensor> = self.groups.iter().map(Group::total).collect();
        let chunks: Vec<Tensor> = totals.iter().flat_map(chunks).collect();
        let gradient_norm = torch_shim::global_norm(&chunks)?.double_value(&[]);
        if !gradient_norm.is_finite() {
            self.zero_gradients();
            return Ok(Update::Skipped);
        }
        if let Some(limit) = adam.max_gradient_norm.filter(|limit| gradient_norm > *limit) {
            for mut total in totals.iter().map(Tensor::shallow_clone) {
                let _scaled = total.g_mul_scalar_(limit / gradient_norm);
            }
        }
        self.updates += 1;
        for (group, total) in self.groups.iter_mut().zip(&totals) {
            group.apply(adam, total, self.updates)?;
            group.publish(ema_decay);
        }
        self.zero_gradients();
        Ok(Update::Applied { gradient_norm })
    }

    /// Starts Adam anew, weights untouched.
    pub fn reset_moments(&mut self) {
        let _no_grad = tch::no_grad_guard();
        self.updates = 0;
        for group in &mut self.groups {
            let _zeroed = group.first_moment.zero_();
            let _zeroed = group.second_moment.zero_();
        }
    }

    /// Sets the masters, where the weights were built from something narrower.
    pub fn set_masters(&mut self, values: &BTreeMap<String, Tensor>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (name, mut master) in self.masters() {
            let value = values.get(&name).ok_or_else(|| mismatch(&format!("{name} is missing")))?;
            master.copy_(value);
        }
        for group in &mut self.groups {
            group.publish(None);
            if let Some(mean) = &mut group.mean {
                mean.copy_(&group.masters);
            }
        }
        Ok(())
    }

    /// FP32 masters by name.
    pub fn masters(&self) -> BTreeMap<String, Tensor> {
        self.views(|group| Some(&group.masters))
    }

    /// The running mean of the masters by name, where one is kept.
    pub fn means(&self) -> Option<BTreeMap<String, Tensor>> {
        self.groups.iter().all(|group| group.mean.is_some()).then(|| self.views(|group| group.mean.as_ref()))
    }

    /// Gradients by name, as the next update would see them.
    pub fn gradients(&self) -> BTreeMap<String, Tensor> {
        self.views(|group| Some(group.sums.as_ref().unwrap_or(&group.gradients)))
    }

    /// Everything that an exact continuation needs, as named tensors, and the number of updates.
    pub fn state(&self) -> (BTreeMap<String, Tensor>, u64) {
        let mut state = BTreeMap::new();
        for (part, flats) in [
            ("master", self.views(|group| Some(&group.masters))),
            ("first_moment", self.views(|group| Some(&group.first_moment))),
            ("second_moment", self.views(|group| Some(&group.second_moment))),
            ("mean", self.views(|group| group.mean.as_ref())),
        ] {
            state.extend(flats.into_iter().map(|(name, tensor)| (format!("{part}.{name}"), tensor)));
        }
        (state, self.updates)
    }

    /// Goes on from a saved state; every tensor has to be there, in its shape, and no other.
    pub fn restore(&mut self, mut saved: BTreeMap<String, Tensor>, updates: u64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (name, mut place) in self.state().0 {
            let tensor = saved.remove(&name).ok_or_else(|| mismatch(&format!("{name} is missing")))?;
            if tensor.size() != place.size() || tensor.kind() != Kind::Float {
                let found = (tensor.kind(), tensor.size());
                return Err(mismatch(&format!("{name} is {found:?}, expected {:?} in FP32", place.size())));
            }
            place.copy_(&tensor);
        }
        if let Some(name) = saved.keys().next() {
            return Err(mismatch(&format!("{name} is unknown")));
        }
        self.updates = updates;
        for group in &mut self.groups {
            group.publish(None);
        }
        Ok(())
    }

    fn views<'a>(&'a self, flat: impl Fn(&'a Group) -> Option<&'a Tensor>) -> BTreeMap<String, Tensor> {
        self.groups
            .iter()
            .filter_map(|group| flat(group).map(|flat| (group, flat)))
            .flat_map(|(group, flat)| group.places.iter().map(|place| (place.name.clone(), place.view(flat))))
            .collect()
    }
}

fn mismatch(what: &str) -> Error {
    Error::Stale { path: "the optimizer's state".into(), difference: what.to_string() }
}

impl Group {
    fn new(members: &[(&str, &Tensor)], state: StateDevice, with_mean: bool) -> Result<Group> {
        let mut places = Vec::new();
        let mut end = 0;
        for (name, tensor) in members {
            let (start, shape) = (end, tensor.size());
            end += shape.iter().product::<i64>().next_multiple_of_alignment();
            places.push(Place { name: (*name).to_string(), tensor: tensor.shallow_clone(), start, shape });
        }
        let (kind, device) = (members[0].1.kind(), members[0].1.device());
        let weights = Tensor::zeros([end], (kind, device));
        let gradients = Tensor::zeros([end], (kind, device));
        for place in &mut places {
            place.view(&weights).copy_(&place.tensor);
            place.tensor.set_data(&place.view(&weights));
            place.tensor = place.tensor.set_requires_grad(true);
            torch_shim::set_grad(&place.tensor, &place.view(&gradients))?;
        }
        let state_device = match state {
            StateDevice::Same => device,
            StateDevice::Host => Device::Cpu,
        };
        let shares_masters = kind == Kind::Float && state == StateDevice::Same;
        let masters = match shares_masters {
            true => weights.shallow_clone(),
            false => {
                let mut masters = Tensor::zeros([end], (Kind::Float, state_device));
                masters.copy_(&weights);
                masters
            }
        };
        Ok(Group {
            sums: (kind != Kind::Float).then(|| Tensor::zeros([end], (Kind::Float, device))),
            first_moment: masters.zeros_like(),
            second_moment: masters.zeros_like(),
            mean: with_mean.then(|| masters.copy()),
            places,
            weights,
            gradients,
            masters,
            shares_masters,
        })
    }

    /// The gradients of this update in FP32.
    fn total(&self) -> Tensor {
        self.sums.as_ref().unwrap_or(&self.gradients).shallow_clone()
    }

    fn apply(&mut self, adam: &AdamConfig, total: &Tensor, updates: u64) -> Result<()> {
        let device = self.masters.device();
        let gradients = chunks(&if total.device() == device { total.shallow_clone() } else { total.to_device(device) });
        let count = Tensor::from_slice(&[updates as f32]).to_device(device);
        let counts: Vec<Tensor> = gradients.iter().map(|_| count.copy()).collect();
        torch_shim::fused_adam(
            &Adam {
                learning_rate: adam.learning_rate,
                beta1: adam.betas[0],
                beta2: adam.betas[1],
                epsilon: EPSILON,
                weight_decay: WeightDecay::L2(0.0),
            },
            &chunks(&self.masters),
            &gradients,
            &chunks(&self.first_moment),
            &chunks(&self.second_moment),
            &counts,
        )?;
        Ok(())
    }

    /// Brings the masters to where the layers see them, and into the mean.
    fn publish(&mut self, ema_decay: Option<f64>) {
        if !self.shares_masters {
            self.weights.copy_(&self.masters);
        }
        if let (Some(mean), Some(decay)) = (&mut self.mean, ema_decay) {
            let _mean = mean.lerp_(&self.masters, 1.0 - decay);
        }
    }
}

trait Aligned {
    fn next_multiple_of_alignment(self) -> Self;
}

impl Aligned for i64 {
    fn next_multiple_of_alignment(self) -> i64 {
        (self + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
    }
}

fn chunks(flat: &Tensor) -> Vec<Tensor> {
    pieces(flat, CHUNK).collect()
}

fn pieces(flat: &Tensor, length: i64) -> impl Iterator<Item = Tensor> + '_ {
    let all = flat.size()[0];
    (0..all).step_by(length as usize).map(move |start| flat.narrow(0, start, length.min(all - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAM: AdamConfig = AdamConfig { learning_rate: 0.1, betas: [0.0, 0.99], max_gradient_norm: None };

    fn tensors(kind: Kind) -> Vec<(&'static str, Tensor)> {
        let values = |n: i64| (Tensor::arange(n, (Kind::Float, Device::Cpu)) / 5.0 - 1.0).to_kind(kind);
        vec![("a", values(6).view([2, 3])), ("b", values(5))]
    }

    fn optimizer(tensors: &[(&'static str, Tensor)], state: StateDevice) -> Optimizer {
        Optimizer::new(tensors.iter().map(|(name, tensor)| (*name, tensor)), state, false).unwrap()
    }

    fn backward(tensors: &[(&'static str, Tensor)], factor: f64) {
        let loss = tensors.iter().map(|(_, t)| t.to_kind(Kind::Float).square().sum(Kind::Float)).sum::<Tensor>();
        (loss * factor).backward();
    }

    #[test]
    fn the_network_sees_updates() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for state in [StateDevice::Same, StateDevice::Host] {
                let tensors = tensors(kind);
                let before = tensors[0].1.copy();
                let mut optimizer = optimizer(&tensors, state);
                backward(&tensors, 1.0);
                optimizer.accumulate();
                let Update::Applied { gradient_norm } = optimizer.update(&ADAM, None).unwrap() else { panic!() };
                assert!(gradient_norm > 0.0);
                // With beta1 = 0 the first step is the learning rate against the gradient's sign.
                let moved = (&before - &tensors[0].1).to_kind(Kind::Float);
                let expected = before.sign().to_kind(Kind::Float) * 0.1;
                assert!((moved - expected).abs().max().double_value(&[]) < 0.02, "{kind:?}");
                assert_eq!(optimizer.masters()["a"].to_kind(kind), tensors[0].1.detach());
            }
        }
    }

    #[test]
    fn two_halves_make_one_batch() {
        let run = |halves: u32| {
            let tensors = tensors(Kind::BFloat16);
            let mut optimizer = optimizer(&tensors, StateDevice::Same);
            for _ in 0..halves {
                backward(&tensors, 1.0 / f64::from(halves));
                optimizer.accumulate();
            }
            optimizer.update(&ADAM, None).unwrap();
            optimizer.masters().remove("b").unwrap()
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn non_finite_gradients_move_nothing() {
        let tensors = tensors(Kind::Float);
        let before = tensors[0].1.copy();
        let mut optimizer = optimizer(&tensors, StateDevice::Same);
        backward(&tensors, f64::NAN);
        assert_eq!(optimizer.update(&ADAM, None).unwrap(), Update::Skipped);
        assert_eq!(tensors[0].1, before);
        backward(&tensors, 1.0);
        assert!(matches!(optimizer.update(&ADAM, None).unwrap(), Update::Applied { .. }));
    }

    #[test]
    fn long_gradients_are_shortened() {
        let tensors = tensors(Kind::Float);
        let mut optimizer = optimizer(&tensors, StateDevice::Same);
        backward(&tensors, 1.0);
        let clipping = AdamConfig { max_gradient_norm: Some(0.5), betas: [0.0, 0.0], ..ADAM };
        optimizer.update(&clipping, None).unwrap();
        // With both betas 0 the second moment is the squared gradient that Adam saw.
        let seen: f64 = optimizer
            .state()
            .0
            .iter()
            .filter(|(name, _)| name.starts_with("second_moment"))
            .map(|(_, t)| t.sum(Kind::Double).double_value(&[]))
            .sum();
        assert!((seen.sqrt() - 0.5).abs() < 1e-5, "{seen}");
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_for_bit() {
        let tensors_a = tensors(Kind::Float);
        let mut a = optimizer(&tensors_a, StateDevice::Same);
        backward(&tensors_a, 1.0);
        a.update(&ADAM, None).unwrap();
        let (state, updates) = a.state();
        let saved: BTreeMap<_, _> = state.into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();

        let tensors_b = tensors(Kind::Float);
        let mut b = optimizer(&tensors_b, StateDevice::Same);
        b.restore(saved, updates).unwrap();
        for (tensors, optimizer) in [(&tensors_a, &mut a), (&tensors_b, &mut b)] {
            backward(tensors, 3.0);
            optimizer.update(&ADAM, None).unwrap();
        }
        assert_eq!(a.state().0, b.state().0);
        assert_eq!(tensors_a[1].1, tensors_b[1].1);
    }

    #[test]
    fn a_foreign_state_is_refused_by_name() {
        let tensors = tensors(Kind::Float);
        let mut optimizer = optimizer(&tensors, StateDevice::Same);
        let mut state: BTreeMap<_, _> = optimizer.state().0.into_iter().map(|(n, t)| (n, t.copy())).collect();
        let lost = state.remove("first_moment.b").unwrap();
        assert!(optimizer.restore(state, 1).unwrap_err().to_string().contains("first_moment.b"));
        let mut state: BTreeMap<_, _> = optimizer.state().0.into_iter().map(|(n, t)| (n, t.copy())).collect();
        state.insert("first_moment.c".into(), lost);
        assert!(optimizer.restore(state, 1).unwrap_err().to_string().contains("first_moment.c is unknown"));
    }

    #[test]
    fn the_mean_follows_slowly() {
        let tensors = tensors(Kind::Float);
        let start = tensors[1].1.copy();
        let mut optimizer =
            Optimizer::new(tensors.iter().map(|(name, tensor)| (*name, tensor)), StateDevice::Same, true).unwrap();
        backward(&tensors, 1.0);
        optimizer.update(&ADAM, Some(0.75)).unwrap();
        let expected = &start * 0.75 + &optimizer.masters()["b"] * 0.25;
        let mean = &optimizer.means().unwrap()["b"];
        assert!((mean - expected).abs().max().double_value(&[]) < 1e-6);
    }
}
