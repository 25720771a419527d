//! Low-rank adapters on linear and convolution layers.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};

use crate::{Init, Mismatch, Misshapen};

/// A low-rank branch beside a layer: `y = base(x) + scale * up(down(x))`.
#[derive(Debug)]
pub struct Lora {
    /// `[rank, inputs]`, or `[rank, inputs, k, k]` beside a convolution, with that convolution's stride and padding.
    pub down: Tensor,
    /// `[outputs, rank]`, or `[outputs, rank, 1, 1]` beside a convolution.
    pub up: Tensor,
    /// The factor on the branch: alpha / rank, times any strength the user asks for.
    pub scale: f64,
}

impl Lora {
    /// What the branch adds to the base layer's weight, in that weight's shape.
    pub fn delta(&self) -> Tensor {
        let (rank, outputs) = (self.down.size()[0], self.up.size()[0]);
        let flat = self.up.reshape([outputs, rank]).matmul(&self.down.reshape([rank, -1])) * self.scale;
        let mut shape = self.down.size();
        shape[0] = outputs;
        flat.reshape(shape)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { down: self.down.shallow_clone(), up: self.up.shallow_clone(), scale: self.scale }
    }
}

/// Which layers get an adapter, and with what values.
#[derive(Debug)]
pub enum Adapters {
    /// New ones, as peft makes them: `down` like a linear layer's weight, `up` zero, so that they change nothing yet.
    Fresh {
        /// Layers by the end of their path: `to_q` adapts every layer whose path is `to_q` or ends in `.to_q`.
        targets: Vec<String>,
        /// The inner width.
        rank: i64,
        /// The scale is alpha / rank.
        alpha: f64,
        /// The seed of `down`.
        seed: u64,
    },
    /// Given ones, by the path of the layer. Every one has to find its layer.
    Given(BTreeMap<String, Lora>),
}

impl Adapters {
    /// The adapter for one layer, checked against that layer's shape.
    pub(crate) fn for_layer(
        &self,
        path: &str,
        input: &[i64],
        output: &[i64],
        point: &[i64],
        (kind, device): (Kind, Device),
        mismatch: &mut Mismatch,
    ) -> Option<Lora> {
        let shape = |parts: [&[i64]; 3]| parts.concat();
        match self {
            Adapters::Fresh { targets, rank, alpha, seed } => {
                targets.iter().find(|target| ends_with_path(path, target))?;
                let fan_in = input.iter().product();
                let down = shape([&[*rank], input, &[]]);
                Some(Lora {
                    down: Init::fan_in(fan_in).draw_on(*seed, path, &down, (kind, device)),
                    up: Tensor::zeros(shape([output, &[*rank], point]), (kind, device)),
                    scale: alpha / *rank as f64,
                })
            }
            Adapters::Given(given) => {
                let Lora { down, up, scale } = given.get(path)?;
                let rank = down.size().first().copied().unwrap_or(0);
                for (part, found, expected) in [
                    ("lora_A", down.size(), shape([&[rank], input, &[]])),
                    ("lora_B", up.size(), shape([output, &[rank], point])),
                ] {
                    if found != expected {
                        let name = format!("{path}.{part}.weight");
                        mismatch.misshapen.push(Misshapen { name, expected, found });
                    }
                }
                let to = |tensor: &Tensor| tensor.to_device(device).to_kind(kind);
                Some(Lora { down: to(down), up: to(up), scale: *scale })
            }
        }
    }

    /// What asked for a layer that the network has not got.
    pub(crate) fn without_layer(&self, adapted: &BTreeSet<String>) -> Vec<String> {
        match self {
            Adapters::Fresh { targets, .. } => targets
                .iter()
                .filter(|target| !adapted.iter().any(|path| ends_with_path(path, target)))
                .map(|target| format!("{target} (target of an adapter)"))
                .collect(),
            Adapters::Given(given) => {
                given.keys().filter(|path| !adapted.contains(*path)).map(|path| format!("{path} (adapter)")).collect()
            }
        }
    }
}

/// Whether whole names of the path end in `target`: `attn1.to_q` ends in `to_q`, `not_to_q` does not.
fn ends_with_path(path: &str, target: &str) -> bool {
    path.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_match_whole_names() {
        assert!(ends_with_path("to_q", "to_q"));
        assert!(ends_with_path("attn1.to_q", "to_q"));
        assert!(ends_with_path("blocks.0.ff.net.0.proj", "ff.net.0.proj"));
        assert!(!ends_with_path("not_to_q", "to_q"));
        assert!(!ends_with_path("to_q.inner", "to_q"));
    }
}
