//! The parameters of one network.

use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::Error;

/// An ordered registry of a network's parameters, in the order in which the network took them.
///
/// The tensors are the network's own (handles on the same storage), so a change in place, or [`to`](Params::to),
/// reaches the layers.
#[derive(Debug, Default)]
pub struct Params {
    entries: Vec<(String, Tensor)>,
    places: HashMap<String, usize>,
}

impl Params {
    /// Adds a parameter.
    ///
    /// # Panics
    /// If the name is taken: two layers of one network may not be the same.
    pub fn push(&mut self, name: String, tensor: Tensor) {
        let earlier = self.places.insert(name.clone(), self.entries.len());
        assert!(earlier.is_none(), "parameter `{name}` was taken twice");
        self.entries.push((name, tensor));
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The names in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// The tensors in order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.entries.iter().map(|(_, tensor)| tensor)
    }

    /// One parameter by its name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.places.get(name).map(|&place| &self.entries[place].1)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many numbers there are.
    pub fn count(&self) -> usize {
        self.tensors().map(Tensor::numel).sum()
    }

    /// Switches the recording of gradients on or off for all of them.
    pub fn set_requires_grad(&self, requires_grad: bool) {
        for tensor in self.tensors() {
            let _handle = tensor.set_requires_grad(requires_grad);
        }
    }

    /// Casts and moves all of them in place; the network sees it.
    pub fn to(&mut self, kind: Kind, device: Device) {
        let _guard = tch::no_grad_guard();
        for (_, tensor) in &mut self.entries {
            if (tensor.kind(), tensor.device()) != (kind, device) {
                let moved = tensor.to_device(device).to_kind(kind);
                tensor.set_data(&moved);
            }
        }
    }

    /// Writes all of them to a safetensors file; see [`save`](crate::save).
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        crate::save(path, self.iter(), &[])
    }
}
