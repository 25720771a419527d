//! Low-rank adapters in training: which layers have one, how they are merged, and their published form.

use std::collections::BTreeMap;
use std::path::Path;

use nn::Lora;
use tch::{Kind, Tensor};

use crate::recipe::LoraRecipe;
use crate::{Error, Result};

/// The layers that LCM-LoRA and SDXL-Lightning adapt: all convolutions and linear layers but those at input and
/// output and those of the shared embeddings. 788 in SDXL.
pub const TARGETS: [&str; 14] = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
];

const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";

/// Adapters by the path of their layer, from their tensors by name (`PATH.lora_A.weight`, `PATH.lora_B.weight`).
pub fn by_layer(tensors: &BTreeMap<String, Tensor>, recipe: &LoraRecipe) -> BTreeMap<String, Lora> {
    tensors
        .iter()
        .filter_map(|(name, down)| {
            let layer = name.strip_suffix(DOWN)?;
            let up = tensors.get(&format!("{layer}{UP}"))?;
            let scale = recipe.alpha / recipe.rank as f64;
            Some((layer.to_string(), Lora { down: down.shallow_clone(), up: up.shallow_clone(), scale }))
        })
        .collect()
}

/// Adds adapters to the weights below them, in FP32.
pub fn merge(weights: &mut BTreeMap<String, Tensor>, adapters: &BTreeMap<String, Lora>) {
    let _no_grad = tch::no_grad_guard();
    for (layer, adapter) in adapters {
        if let Some(weight) = weights.get_mut(&format!("{layer}.weight")) {
            let merged = &*weight + adapter.delta().to_device(weight.device());
            *weight = merged;
        }
    }
}

/// Writes adapters under the names that every program in the field reads: `lora_unet_PATH.lora_down.weight`,
/// `.lora_up.weight` and `.alpha`, with underscores for dots.
pub fn save(path: &Path, adapters: &BTreeMap<String, Lora>, recipe: &LoraRecipe) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut tensors: Vec<(String, Tensor)> = Vec::with_capacity(3 * adapters.len());
    for (layer, adapter) in adapters {
        let name = format!("lora_unet_{}", layer.replace('.', "_"));
        tensors.push((format!("{name}.lora_down.weight"), adapter.down.to_kind(Kind::Half)));
        tensors.push((format!("{name}.lora_up.weight"), adapter.up.to_kind(Kind::Half)));
        tensors.push((format!("{name}.alpha"), Tensor::from(recipe.alpha as f32).to_kind(Kind::Half)));
    }
    nn::save(path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[]).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unet::{UNet, UNetConfig};
    use nn::{Adapters, Weights};

    /// SDXL's own: 788 modules, 196,751,360 parameters at rank 64.
    #[test]
    fn targets_are_the_released_models() {
        let json = include_str!("../../tests/fixtures/unet/full_sdxl.json");
        let config = UNetConfig::from_json(json).unwrap();
        let adapters = Adapters::Fresh { targets: TARGETS.map(String::from).into(), rank: 64, alpha: 8.0, seed: 0 };
        let adapted = Weights::shapes_only().build_adapted(adapters, |scope| UNet::new(scope, &config)).unwrap();
        assert_eq!(adapted.lora.len(), 2 * 788);
        assert_eq!(adapted.lora.count(), 196_751_360);
        assert_eq!(adapted.base.count(), 2_567_463_684);
    }

    #[test]
    fn merging_adds_the_branch() {
        let recipe = LoraRecipe { rank: 2, alpha: 1.0 };
        let tensors = BTreeMap::from([
            ("a.lora_A.weight".to_string(), Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2])),
            ("a.lora_B.weight".to_string(), Tensor::from_slice(&[1.0_f32, -1.0]).view([1, 2])),
        ]);
        let mut weights =
            BTreeMap::from([("a.weight".to_string(), Tensor::from_slice(&[10.0_f32, 20.0]).view([1, 2]))]);
        merge(&mut weights, &by_layer(&tensors, &recipe));
        assert_eq!(weights["a.weight"], Tensor::from_slice(&[9.0_f32, 19.0]).view([1, 2]));
    }
}
