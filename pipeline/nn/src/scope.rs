//! A path into a set of weights.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;

use tch::{Device, Kind, Tensor};

use crate::layers::{Conv2d, Conv2dConfig, Embedding, GroupNorm, LayerNorm, Linear};
use crate::lora::{Adapters, Lora};
use crate::{Init, Mismatch, Params, Weights};

/// A path into the weights that a network is being built from. Layers take their tensors here.
pub struct Scope<'a> {
    build: &'a Build<'a>,
    path: String,
}

/// One building of one network: what has been taken and what was wrong.
pub(crate) struct Build<'a> {
    weights: &'a Weights,
    adapters: Option<Adapters>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    base: Params,
    lora: Params,
    adapted: BTreeSet<String>,
    mismatch: Mismatch,
}

impl<'a> Build<'a> {
    pub(crate) fn new(weights: &'a Weights, adapters: Option<Adapters>) -> Self {
        Self { weights, adapters, state: RefCell::default() }
    }

    /// The parameters taken, those of the adapters, and what was wrong.
    pub(crate) fn finish(self) -> (Params, Params, Mismatch) {
        let State { base, lora, adapted, mut mismatch } = self.state.into_inner();
        if let Some(adapters) = &self.adapters {
            mismatch.surplus.extend(adapters.without_layer(&adapted));
        }
        (base, lora, mismatch)
    }
}

impl<'a> Scope<'a> {
    pub(crate) fn root(build: &'a Build<'a>) -> Self {
        Self { build, path: String::new() }
    }

    /// The scope one name further down: `scope.sub("resnets").sub(0)` is `resnets.0`.
    pub fn sub(&self, name: impl Display) -> Self {
        Self { build: self.build, path: self.join(name) }
    }

    /// The dotted path from the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The dtype of the network.
    pub fn kind(&self) -> Kind {
        self.build.weights.kind()
    }

    /// The device of the network.
    pub fn device(&self) -> Device {
        self.build.weights.device()
    }

    fn join(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// Takes one tensor of this scope. `init` is its distribution when the weights are a seed.
    ///
    /// # Panics
    /// If the network asks for the same name twice.
    pub fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let name = self.join(name);
        let state = &mut *self.build.state.borrow_mut();
        let tensor = self.build.weights.take(&name, shape, init, &mut state.mismatch);
        state.base.push(name, tensor.shallow_clone());
        tensor
    }

    /// A linear layer, `weight [outputs, inputs]` and `bias [outputs]`.
    pub fn linear(&self, inputs: i64, outputs: i64, bias: bool) -> Linear {
        let init = Init::fan_in(inputs);
        Linear {
            weight: self.tensor("weight", &[outputs, inputs], init),
            bias: bias.then(|| self.tensor("bias", &[outputs], init)),
            lora: self.lora(&[inputs], &[outputs], &[]),
        }
    }

    /// A convolution with a square kernel, `weight [outputs, inputs, kernel, kernel]` and `bias [outputs]`.
    pub fn conv2d(&self, inputs: i64, outputs: i64, kernel: i64, config: Conv2dConfig) -> Conv2d {
        let init = Init::fan_in(inputs * kernel * kernel);
        Conv2d {
            weight: self.tensor("weight", &[outputs, inputs, kernel, kernel], init),
            bias: config.bias.then(|| self.tensor("bias", &[outputs], init)),
            stride: config.stride,
            padding: config.padding,
            lora: self.lora(&[inputs, kernel, kernel], &[outputs], &[1, 1]),
        }
    }

    /// A group normalisation with weight and bias.
    pub fn group_norm(&self, groups: i64, channels: i64, eps: f64) -> GroupNorm {
        GroupNorm {
            weight: self.tensor("weight", &[channels], Init::Ones),
            bias: self.tensor("bias", &[channels], Init::Zeros),
            groups,
            eps,
        }
    }

    /// A layer normalisation over the last dimension, with weight and bias.
    pub fn layer_norm(&self, width: i64, eps: f64) -> LayerNorm {
        LayerNorm {
            weight: self.tensor("weight", &[width], Init::Ones),
            bias: self.tensor("bias", &[width], Init::Zeros),
            eps,
        }
    }

    /// A table of `entries` vectors. PyTorch's own default is a standard deviation of 1.
    pub fn embedding(&self, entries: i64, width: i64, init: Init) -> Embedding {
        Embedding { weight: self.tensor("weight", &[entries, width], init) }
    }

    /// The adapter of the layer at this path, if it has one. `input` is the shape of one row of `down`, `output` the
    /// number of rows of `up`, `point` what follows the rank in `up`'s shape.
    fn lora(&self, input: &[i64], output: &[i64], point: &[i64]) -> Option<Lora> {
        let adapters = self.build.adapters.as_ref()?;
        let State { lora, adapted, mismatch, .. } = &mut *self.build.state.borrow_mut();
        let to = (self.kind(), self.device());
        let adapter = adapters.for_layer(&self.path, input, output, point, to, mismatch)?;
        adapted.insert(self.path.clone());
        lora.push(self.join("lora_A.weight"), adapter.down.shallow_clone());
        lora.push(self.join("lora_B.weight"), adapter.up.shallow_clone());
        Some(adapter)
    }
}
