//! Weights in and out: what is loaded is what was saved, and what cannot be loaded is said in full.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{
    Activation, Adapters, Conv2d, Conv2dConfig, Error, Linear, Lora, Masking, Params, Scope, TimestepEmbedding,
    Weights, attention, save, timestep_embedding,
};

struct Net {
    conv: Conv2d,
    head: Linear,
}

impl Net {
    fn new(scope: &Scope) -> Self {
        Self {
            conv: scope.sub("blocks").sub(0).sub("conv").conv2d(3, 4, 3, Conv2dConfig::padded(1).stride(2)),
            head: scope.sub("head").linear(4, 2, true),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = Activation::Silu.forward(&self.conv.forward(x));
        self.head.forward(&x.mean_dim([2i64, 3].as_slice(), false, Kind::Float))
    }
}

fn input() -> Tensor {
    Tensor::arange(2 * 3 * 6 * 6, (Kind::Float, Device::Cpu)).sin().reshape([2, 3, 6, 6])
}

fn tensors(params: &Params) -> BTreeMap<String, Tensor> {
    params.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
}

fn saved(folder: &Path) -> (std::path::PathBuf, Params) {
    let (_, params) = Weights::seeded(3).build(Net::new).unwrap();
    let path = folder.join("model.safetensors");
    params.save(&path).unwrap();
    (path, params)
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && (a - b).abs().max().double_value(&[]) < 1e-5
}

#[test]
fn what_is_saved_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let (path, params) = saved(folder.path());
    let (net, loaded) = Weights::open(&path).unwrap().build(Net::new).unwrap();
    assert_eq!(tensors(&loaded), tensors(&params));
    let (seeded, _) = Weights::seeded(3).build(Net::new).unwrap();
    assert_eq!(net.forward(&input()), seeded.forward(&input()));
    let first = std::fs::read(&path).unwrap();
    params.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "same tensors, same bytes");
}

/// The other loader of the field reads what is written here: names, values, and the format that Python looks for.
#[test]
fn the_file_is_plain_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let (wide, half) = (Tensor::from_slice(&[1i64, 2, 3]), Tensor::from_slice(&[1.5f32]).to_kind(Kind::BFloat16));
    save(&path, [("b", &half), ("a", &wide)], &[("note", "kept")]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = metadata.metadata().as_ref().unwrap();
    assert_eq!((about["format"].as_str(), about["note"].as_str()), ("pt", "kept"));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("a").unwrap().data(), [1i64, 2, 3].map(i64::to_le_bytes).concat());
    assert_eq!(file.tensor("b").unwrap().dtype(), safetensors::Dtype::BF16);
    assert!(matches!(save(&path, [("a", &wide), ("a", &wide)], &[]), Err(Error::Duplicate { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "a failed save leaves the old file");
}

#[test]
fn every_dtype_on_disk_becomes_the_wanted_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, params) = saved(folder.path());
    for stored in [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double] {
        let cast: Vec<_> = params.iter().map(|(name, tensor)| (name, tensor.to_kind(stored))).collect();
        save(&path, cast.iter().map(|(name, tensor)| (*name, tensor)), &[]).unwrap();
        for wanted in [Kind::Float, Kind::BFloat16] {
            let (_, loaded) = Weights::open(&path).unwrap().to(wanted, Device::Cpu).build(Net::new).unwrap();
            for (name, tensor) in loaded.iter() {
                assert_eq!(*tensor, params.get(name).unwrap().to_kind(stored).to_kind(wanted), "{stored:?} {wanted:?}");
            }
        }
    }
}

/// A tensor that begins at an odd place, as a header of any length allows.
#[test]
fn misaligned_tensors_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.safetensors");
    let header = json!({
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    });
    let header = header.to_string();
    let data = [&[9u8][..], &1.25f32.to_le_bytes(), &(-2.0f32).to_le_bytes()].concat();
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.tensor("x").unwrap(), Tensor::from_slice(&[1.25f32, -2.0]));
    let halves = Weights::open(&path).unwrap().to(Kind::Half, Device::Cpu).tensor("x").unwrap();
    assert_eq!(halves, Tensor::from_slice(&[1.25f32, -2.0]).to_kind(Kind::Half));
    assert!(matches!(weights.tensor("byte"), Err(Error::Dtype { .. })));
    assert!(matches!(weights.tensor("absent"), Err(Error::NoTensor { .. })));
}

#[test]
fn every_difference_is_listed_at_once() {
    let (_, params) = Weights::seeded(3).build(Net::new).unwrap();
    let mut tensors = tensors(&params);
    tensors.remove("head.bias");
    tensors.insert("head.weight".into(), Tensor::zeros([2, 5], (Kind::Float, Device::Cpu)));
    tensors.insert("extra".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
    let Err(Error::Mismatch(mismatch)) = Weights::from_tensors("memory", tensors).build(Net::new) else {
        panic!("a network was built");
    };
    assert_eq!(mismatch.missing, ["head.bias"]);
    assert_eq!(mismatch.surplus, ["extra"]);
    assert_eq!((&mismatch.misshapen[0].expected[..], &mismatch.misshapen[0].found[..]), (&[2, 4][..], &[2, 5][..]));
    let message = mismatch.to_string();
    for said in ["memory", "missing (1)", "head.bias", "surplus (1)", "extra", "expected [2, 4], found [2, 5]"] {
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn shards_are_one_set_and_the_index_is_held_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let (_, params) = Weights::seeded(3).build(Net::new).unwrap();
    let (mut files, mut map) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::new());
    for (n, (name, tensor)) in params.iter().enumerate() {
        let file = format!("model-{}-of-2.safetensors", n % 2 + 1);
        files.entry(file.clone()).or_default().push((name, tensor));
        map.insert(name, file);
    }
    for (file, tensors) in &files {
        save(&folder.path().join(file), tensors.iter().copied(), &[]).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    let write = |map: &BTreeMap<&str, String>| {
        std::fs::write(&index, json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string()).unwrap();
    };
    write(&map);
    let weights = Weights::open_folder(folder.path(), "model").unwrap();
    assert_eq!(weights.files().len(), 3);
    let (_, loaded) = weights.build(Net::new).unwrap();
    assert_eq!(tensors(&loaded), tensors(&params));

    let refused = |change: &dyn Fn(&mut BTreeMap<&str, String>), said: &str| {
        let mut wrong = map.clone();
        change(&mut wrong);
        write(&wrong);
        let message = Weights::open(&index).err().expect("refused").to_string();
        assert!(message.contains(said), "{said}: {message}");
    };
    refused(&|m| drop(m.insert("head.bias", "../model.safetensors".into())), "not the name of a file");
    refused(&|m| drop(m.insert("head.bias", "absent.safetensors".into())), "absent.safetensors");
    refused(&|m| drop(m.insert("ghost", "model-1-of-2.safetensors".into())), "`ghost` is not in");
    refused(&|m| drop(m.remove("head.bias")), "`head.bias` is in");
    std::fs::write(&index, "{").unwrap();
    assert!(matches!(Weights::open(&index), Err(Error::Index { .. })));
}

#[test]
fn an_empty_folder_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let message = Weights::open_folder(folder.path(), "model").err().expect("refused").to_string();
    assert!(message.contains("model.safetensors") && message.contains("index.json"), "{message}");
}

#[test]
fn renaming_may_not_merge_two_tensors() {
    let tensors = BTreeMap::from([("a".to_owned(), input()), ("b".to_owned(), input())]);
    let merged = Weights::from_tensors("memory", tensors).rename(|_| Some("c".into()));
    assert!(matches!(merged, Err(Error::Duplicate { tensor, .. }) if tensor == "c"));
}

#[test]
fn shapes_take_no_memory() {
    let (_, params) = Weights::shapes_only().build(|scope| scope.linear(1 << 20, 1 << 20, false)).unwrap();
    assert_eq!(params.get("weight").unwrap().size(), [1 << 20, 1 << 20]);
    assert_eq!(params.count(), 1 << 40);
}

#[test]
fn params_are_the_networks_own_tensors() {
    let (net, mut params) = Weights::seeded(3).build(Net::new).unwrap();
    let before = net.forward(&input());
    {
        let _guard = tch::no_grad_guard();
        for tensor in params.tensors() {
            let _ = tensor.shallow_clone().zero_();
        }
    }
    assert_eq!(net.forward(&input()), before.zeros_like());
    params.to(Kind::Double, Device::Cpu);
    assert_eq!(net.conv.weight.kind(), Kind::Double);
    params.set_requires_grad(true);
    assert!(net.head.weight.requires_grad());
}

fn lora(down: &[i64], up: &[i64], scale: f64) -> Lora {
    let values = |shape: &[i64], seed: f64| {
        (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) + seed).sin().reshape(shape)
    };
    Lora { down: values(down, 0.3), up: values(up, 0.7), scale }
}

#[test]
fn an_adapter_adds_its_delta_to_the_weight() {
    let given = || {
        BTreeMap::from([
            ("blocks.0.conv".to_owned(), lora(&[2, 3, 3, 3], &[4, 2, 1, 1], 0.5)),
            ("head".to_owned(), lora(&[3, 4], &[2, 3], 0.25)),
        ])
    };
    let adapted = Weights::seeded(3).build_adapted(Adapters::Given(given()), Net::new).unwrap();
    let names: Vec<_> = adapted.lora.names().collect();
    assert_eq!(
        names,
        ["blocks.0.conv.lora_A.weight", "blocks.0.conv.lora_B.weight", "head.lora_A.weight", "head.lora_B.weight"]
    );
    let merged: BTreeMap<_, _> = tensors(&adapted.base)
        .into_iter()
        .map(|(name, tensor)| {
            let delta = name.strip_suffix(".weight").and_then(|layer| given().remove(layer)).map(|lora| lora.delta());
            (name, delta.map_or_else(|| tensor.shallow_clone(), |delta| &tensor + delta))
        })
        .collect();
    let (merged, _) = Weights::from_tensors("merged", merged).build(Net::new).unwrap();
    let (adapted_out, merged_out) = (adapted.net.forward(&input()), merged.forward(&input()));
    assert!(close(&adapted_out, &merged_out));
    let (plain, _) = Weights::seeded(3).build(Net::new).unwrap();
    assert!(!close(&adapted_out, &plain.forward(&input())));
}

#[test]
fn fresh_adapters_change_nothing_and_share_the_base() {
    let (plain, base) = Weights::seeded(3).build(Net::new).unwrap();
    let fresh = |targets: &[&str]| Adapters::Fresh {
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        rank: 2,
        alpha: 1.0,
        seed: 5,
    };
    let adapted = Weights::shared(&base).build_adapted(fresh(&["conv", "head"]), Net::new).unwrap();
    assert_eq!(adapted.net.forward(&input()), plain.forward(&input()));
    assert_eq!(adapted.net.head.lora.as_ref().unwrap().scale, 0.5);
    assert_eq!(adapted.net.head.weight.data_ptr(), plain.head.weight.data_ptr());
    let refused = Weights::shared(&base).build_adapted(fresh(&["conv", "to_q"]), Net::new);
    assert!(matches!(refused, Err(Error::Mismatch(m)) if m.surplus == ["to_q (target of an adapter)"]));
}

#[test]
fn an_adapter_that_fits_nowhere_is_listed() {
    let given = BTreeMap::from([
        ("head".to_owned(), lora(&[3, 5], &[2, 3], 1.0)),
        ("tail".to_owned(), lora(&[3, 4], &[2, 3], 1.0)),
    ]);
    let Err(Error::Mismatch(mismatch)) = Weights::seeded(3).build_adapted(Adapters::Given(given), Net::new) else {
        panic!("a network was built");
    };
    assert_eq!(mismatch.surplus, ["tail (adapter)"]);
    assert_eq!(mismatch.misshapen[0].name, "head.lora_A.weight");
}

#[test]
fn attention_is_the_softmax_of_products() {
    let values = |seed: f64, length: i64| {
        (Tensor::arange(2 * length * 6, (Kind::Float, Device::Cpu)) * seed).sin().reshape([2, length, 6])
    };
    let (q, k, v) = (values(0.7, 5), values(1.3, 5), values(2.1, 5));
    for masking in [Masking::None, Masking::Causal] {
        let heads = |x: &Tensor| x.reshape([2, 5, 2, 3]).transpose(1, 2);
        let mut scores = heads(&q).matmul(&heads(&k).transpose(-1, -2)) / 3f64.sqrt();
        if masking == Masking::Causal {
            let later = Tensor::ones([5, 5], (Kind::Bool, Device::Cpu)).triu(1);
            scores = scores.masked_fill(&later, f64::NEG_INFINITY);
        }
        let expected = scores.softmax(-1, Kind::Float).matmul(&heads(&v)).transpose(1, 2).reshape([2, 5, 6]);
        assert!(close(&attention(&q, &k, &v, 2, masking), &expected), "{masking:?}");
    }
}

#[test]
fn timestep_embeddings_follow_their_formula() {
    let t = Tensor::from_slice(&[0.0f32, 999.0]);
    let found = timestep_embedding(&t, 5, true, 0.0);
    let row = |t: f64| {
        let w = 10000f64.powf(-0.5);
        [t.cos(), (t * w).cos(), t.sin(), (t * w).sin(), 0.0].map(|value| value as f32)
    };
    assert!(
        (found - Tensor::from_slice(&[row(0.0), row(999.0)].concat()).reshape([2, 5])).abs().max().double_value(&[])
            < 1e-4
    );
    let (embedding, params) =
        Weights::seeded(1).build(|scope| TimestepEmbedding::new(scope, 4, 6, Activation::Silu)).unwrap();
    assert_eq!(embedding.forward(&timestep_embedding(&t, 4, true, 0.0)).size(), [2, 6]);
    assert_eq!(params.names().next(), Some("linear_1.weight"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is done to a file, it is loaded as the network it says it is, or refused; nothing panics.
    #[test]
    fn damaged_files_are_errors(flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..6),
                                cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = saved(folder.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, bit) in flips {
            bytes[at.index(header)] ^= 1 << bit;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(weights) = Weights::open(&path) {
            match weights.build(Net::new) {
                Ok((net, _)) => prop_assert_eq!(net.forward(&input()).size(), [2, 2]),
                Err(error) => prop_assert!(error.to_string().contains("model.safetensors")),
            }
        }
    }

    /// A header that was written by somebody who means ill.
    #[test]
    fn hostile_headers_are_errors(dtype in "(F32|F64|BF16|F4|I64|X)", shape in prop::collection::vec(any::<u64>(), 0..4),
                                  start in any::<u64>(), end in any::<u64>(), length in any::<u64>(), honest in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.safetensors");
        let header = json!({"x": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}).to_string();
        let length = if honest { header.len() as u64 } else { length };
        std::fs::write(&path, [&length.to_le_bytes()[..], header.as_bytes(), &[0; 64]].concat()).unwrap();
        if let Ok(weights) = Weights::open(&path) {
            let _ = weights.tensor("x");
            prop_assert!(weights.build(Net::new).is_err());
        }
    }
}
