//! The UNet against fixtures/unet/make_fixtures.py.

use std::collections::BTreeMap;

use nn::Weights;
use serde_json::Value;
use tch::{Kind, Tensor};
use trainer::unet::{Recompute, UNet, UNetConfig, UNetEncoder};

use super::{fixture, hashed, relative_error};

fn config(name: &str) -> UNetConfig {
    let text = std::fs::read_to_string(fixture(&format!("unet/{name}.json"))).unwrap();
    UNetConfig::from_json(&text).unwrap()
}

fn hashed_weights(config: &UNetConfig) -> Weights {
    let (_, shapes) = Weights::shapes_only().build(|scope| UNet::new(scope, config)).unwrap();
    Weights::from_tensors("hashed", hashed::weights(&shapes))
}

struct Inputs {
    sample: Tensor,
    timestep: Tensor,
    context: Tensor,
    text_embeds: Tensor,
    time_ids: Tensor,
}

impl Inputs {
    fn new(config: &UNetConfig, batch: i64, (height, width): (i64, i64), tokens: i64) -> Self {
        const POOLED: i64 = 24;
        let ids = config.time_ids_for(POOLED).unwrap();
        Self {
            sample: hashed::tensor("sample", &[batch, config.in_channels, height, width], 1.0),
            timestep: Tensor::from_slice(&[999.0, 37.5]).narrow(0, 0, batch),
            context: hashed::tensor("encoder_hidden_states", &[batch, tokens, config.context_dim()], 1.0),
            text_embeds: hashed::tensor("text_embeds", &[batch, POOLED], 1.0),
            time_ids: hashed::tensor("time_ids", &[batch, ids], 1024.0),
        }
    }

    fn predict(&self, unet: &UNet) -> Tensor {
        unet.forward(&self.sample, &self.timestep, &self.context, &self.text_embeds, &self.time_ids)
    }
}

#[test]
fn one_forward_equals_diffusers() {
    let expected = Weights::open(&fixture("unet/outputs.safetensors")).unwrap();
    let _guard = tch::no_grad_guard();
    for (name, batch, size, tokens) in [
        ("sdxl", 1, (72, 104), 77),
        ("sdxl_odd", 2, (9, 13), 5),
        ("refiner", 2, (18, 26), 7),
        ("conv_projection", 1, (12, 20), 6),
        ("nested", 1, (8, 11), 4),
        ("one_level", 2, (5, 6), 4),
        ("mixed", 1, (11, 7), 3),
    ] {
        let config = config(name);
        let (unet, _) = hashed_weights(&config).build(|scope| UNet::new(scope, &config)).unwrap();
        let found = Inputs::new(&config, batch, size, tokens).predict(&unet);
        let error = relative_error(&found, &expected.tensor(name).unwrap());
        assert!(error <= 1e-4, "{name}: {error:e}");
    }
}

/// The names and shapes of the published model, from diffusers' own classes, without a byte of weights.
#[test]
fn full_sdxl_has_the_published_tensors() {
    let table = std::fs::read_to_string(fixture("unet/full_sdxl.shapes.tsv")).unwrap();
    let expected: BTreeMap<String, Vec<i64>> = table
        .lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').unwrap();
            (name.to_owned(), shape.split('x').map(|side| side.parse().unwrap()).collect())
        })
        .collect();
    let config = config("full_sdxl");
    let (_, params) = Weights::shapes_only().build(|scope| UNet::new(scope, &config)).unwrap();
    let found: BTreeMap<String, Vec<i64>> =
        params.iter().map(|(name, tensor)| (name.to_owned(), tensor.size())).collect();
    assert_eq!(found, expected);
    assert_eq!((params.len(), params.count()), (1680, 2_567_463_684));
}

#[test]
fn the_encoder_alone_is_the_encoder_of_the_whole() {
    let config = config("sdxl_odd");
    let weights = hashed_weights(&config);
    let (_, whole) = weights.build(|scope| UNet::new(scope, &config)).unwrap();
    let encoder_only = Weights::shared(&whole).rename(|name| UNetEncoder::owns(name).then(|| name.to_owned())).unwrap();
    let (encoder, params) = encoder_only.build(|scope| UNetEncoder::new(scope, &config)).unwrap();
    let owned = whole.iter().filter(|(name, _)| UNetEncoder::owns(name)).map(|(_, tensor)| tensor.numel());
    assert_eq!(params.count(), owned.sum::<usize>());
    let x = Inputs::new(&config, 2, (9, 13), 5);
    let features = encoder.forward(&x.sample, &x.timestep, &x.context, &x.text_embeds, &x.time_ids).mid;
    assert_eq!(features.size(), [2, 96, 3, 4]);
}

/// Recomputing blocks in the backward pass changes gradients by the order of summation alone.
#[test]
fn recomputed_gradients_are_the_same() {
    let config = config("nested");
    let gradients = |recompute| {
        let (mut unet, params) = hashed_weights(&config).build(|scope| UNet::new(scope, &config)).unwrap();
        params.set_requires_grad(true);
        unet.set_recompute(recompute);
        Inputs::new(&config, 1, (8, 11), 4).predict(&unet).square().mean(Kind::Float).backward();
        params.iter().map(|(name, tensor)| (name.to_owned(), tensor.grad().copy())).collect::<Vec<_>>()
    };
    let (kept, recomputed) = (gradients(Recompute::Never), gradients(Recompute::Blocks));
    for ((name, kept), (_, recomputed)) in kept.iter().zip(&recomputed) {
        let error = relative_error(recomputed, kept);
        assert!(error <= 1e-5, "{name}: {error:e}");
    }
}

#[test]
fn weights_of_another_shape_are_listed() {
    let (refiner, sdxl) = (config("refiner"), config("sdxl"));
    let error = hashed_weights(&refiner).build(|scope| UNet::new(scope, &sdxl)).unwrap_err();
    let nn::Error::Mismatch(mismatch) = error else { panic!("{error}") };
    assert!(mismatch.surplus.iter().any(|name| name.starts_with("down_blocks.3.")));
    assert!(mismatch.misshapen.iter().any(|m| m.name == "add_embedding.linear_1.weight"));
}

#[test]
fn settings_that_are_not_implemented_are_refused_by_name() {
    let text = std::fs::read_to_string(fixture("unet/sdxl.json")).unwrap();
    let refused = |key: &str, value: Value| {
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document[key] = value;
        UNetConfig::from_json(&document.to_string()).unwrap_err().to_string()
    };
    assert_eq!(refused("dual_cross_attention", true.into()), "`dual_cross_attention` = true is not supported");
    assert_eq!(refused("class_embed_type", "timestep".into()), "`class_embed_type` = \"timestep\" is not supported");
    assert_eq!(refused("mid_block_type", Value::Null), "`mid_block_type` = null is not supported");
    assert_eq!(
        refused("resnet_time_scale_shift", "scale_shift".into()),
        "`resnet_time_scale_shift` = \"scale_shift\" is not supported"
    );
    assert_eq!(refused("downsample_padding", Value::Null), "`downsample_padding` = null is not supported");
    assert!(refused("_class_name", "UNet2DModel".into()).starts_with("`_class_name`: UNet2DModel is not supported"));
    assert!(refused("mid_block_type", "UNetMidBlock2D".into()).contains("UNetMidBlock2D is not supported"));
    assert!(refused("act_fn", "tanh".into()).starts_with("`act_fn`: unknown variant `tanh`"));
    assert!(refused("attention_head_dim", 7.into()).contains("`attention_head_dim`: 7 does not divide"));
    assert!(refused("layers_per_block", 1025.into()).contains("`layers_per_block`: 1025 is out of range"));
    assert!(
        refused("layers_per_block", (1u64 << 40).into()).contains("`layers_per_block`: 1099511627776 is out of range")
    );
    assert!(refused("in_channels", (-4).into()).contains("`in_channels`: -4 is out of range"));
    assert_eq!(refused("block_out_chanels", 3.into()), "`block_out_chanels` is not a setting of this class");
    assert!(refused("down_block_types", vec!["DownBlock2D"].into()).contains("1 entries beside 3"));
    assert!(refused("norm_num_groups", 7.into()).contains("7 does not divide block_out_channels 32"));
    assert!(refused("addition_embed_type", "text".into()).contains("addition_embed_type"));
    assert_eq!(
        refused("cross_attention_dim", vec![48, 32, 48].into()),
        "`cross_attention_dim`: one text for all blocks has one width, not 32 and 48"
    );
}
