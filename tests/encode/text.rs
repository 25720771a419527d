//! CLIP's text models against transformers.

use std::collections::BTreeMap;

use encode::{ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, TextEncoders, Tokenizers};
use nn::Weights;
use serde::Deserialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{assert_close, assert_shapes, fixture, hashed_weights, read_json, read_text, sampled};

#[derive(Deserialize)]
struct Case {
    projected: bool,
    config: serde_json::Value,
}

/// `[3, 77]`; the fixture's integers.
fn ids(name: &str) -> Tensor {
    Tensor::read_safetensors(fixture("text/outputs.safetensors"))
        .unwrap()
        .into_iter()
        .find_map(|(tensor, ids)| (tensor == format!("{name}.ids")).then_some(ids))
        .unwrap()
}

#[test]
fn states_are_those_of_transformers() {
    let _guard = tch::no_grad_guard();
    let expected = Weights::open(&fixture("text/outputs.safetensors")).unwrap();
    for (name, Case { projected, config }) in read_json::<BTreeMap<String, Case>>("text/cases.json") {
        let config = ClipTextConfig::from_json(&config.to_string()).unwrap();
        let (states, pooled) = if projected {
            let network = |scope: &nn::Scope| ClipTextModelWithProjection::new(scope, &config);
            let (_, shapes) = Weights::shapes_only().build(network).unwrap();
            let (model, _) = hashed_weights(&shapes).build(network).unwrap();
            model.forward(&ids(&name))
        } else {
            let network = |scope: &nn::Scope| ClipTextModel::new(scope, &config);
            let (_, shapes) = Weights::shapes_only().build(network).unwrap();
            let (model, _) = hashed_weights(&shapes).build(network).unwrap();
            let states = model.forward(&ids(&name));
            let pooled = states.pooled.shallow_clone();
            (states, pooled)
        };
        for (part, found) in [
            ("penultimate", &sampled(&states.penultimate, 13)),
            ("last", &sampled(&states.last, 13)),
            ("pooled", &pooled),
        ] {
            let what = format!("{name}.{part}");
            assert_close(&what, found, &expected.tensor(&what).unwrap());
        }
    }
}

#[test]
fn a_folder_saved_by_transformers_gives_its_states() {
    let _guard = tch::no_grad_guard();
    let model = fixture("encode/model");
    let tokenizers = Tokenizers::open(&model).unwrap();
    let captions =
        ["a red square", "two blue circles on a green field!", ""].map(|text| tokenizers.encode(text).unwrap());
    let encoders = TextEncoders::open(&model, Kind::Float, Device::Cpu).unwrap();
    let found = encoders.encode(&captions);
    let expected = Weights::open(&fixture("encode/outputs.safetensors")).unwrap();
    let every_fifth = found.prompt_embeds.slice(1, None, None, 5);
    assert_close("prompt_embeds", &every_fifth, &expected.tensor("prompt_embeds").unwrap());
    assert_close("pooled", &found.pooled_prompt_embeds, &expected.tensor("pooled_prompt_embeds").unwrap());
}

/// transformers 5 leaves the prefix out of one of the two; older files have it in both, and a buffer of positions.
#[test]
fn every_spelling_of_the_names_loads() {
    let source = fixture("encode/model/text_encoder");
    let plain = Weights::open_folder(&source, "model").unwrap();
    assert!(plain.names().iter().all(|name| !name.starts_with("text_model.")));
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut tensors: Vec<(String, Tensor)> =
        plain.names().iter().map(|name| (format!("text_model.{name}"), plain.tensor(name).unwrap())).collect();
    tensors.push((
        "text_model.embeddings.position_ids".into(),
        Tensor::arange(77, (Kind::Int64, Device::Cpu)).unsqueeze(0),
    ));
    let file = folder.path().join("model.safetensors");
    nn::save(&file, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[]).unwrap();

    let ids = Tensor::arange(77, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let states =
        |folder: &std::path::Path| ClipTextModel::open(folder, Kind::Float, Device::Cpu).unwrap().penultimate(&ids);
    assert_eq!(states(folder.path()), states(&source));
}

#[test]
fn the_full_text_encoders_of_sdxl_have_their_tensors() {
    let published = |name: &str| match name {
        _ if name.starts_with("text_model.") || name.starts_with("text_projection.") => name.to_owned(),
        _ => format!("text_model.{name}"),
    };
    let config = ClipTextConfig::from_json(&read_text("text/sdxl_text_encoder.config.json")).unwrap();
    let (_, params) = Weights::shapes_only().build(|scope| ClipTextModel::new(scope, &config)).unwrap();
    assert_shapes(&params, "text/sdxl_text_encoder.shapes.tsv", published);
    assert_eq!((params.len(), params.count()), (196, 123_060_480));

    let config = ClipTextConfig::from_json(&read_text("text/sdxl_text_encoder_2.config.json")).unwrap();
    let (_, params) = Weights::shapes_only().build(|scope| ClipTextModelWithProjection::new(scope, &config)).unwrap();
    assert_shapes(&params, "text/sdxl_text_encoder_2.shapes.tsv", published);
    assert_eq!((params.len(), params.count()), (517, 694_659_840));
}

#[test]
fn a_config_that_disagrees_with_the_weights_lists_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("encode/model/text_encoder");
    std::fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let config = config.replace("\"intermediate_size\": 32", "\"intermediate_size\": 33");
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let message = ClipTextModel::open(folder.path(), Kind::Float, Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("missing (16)") && message.contains("layers.2.self_attn.q_proj.weight"), "{message}");
    assert!(message.contains("fc1.weight: expected [33, 16], found [32, 16]"), "{message}");
}

#[test]
fn configs_of_other_networks_are_refused_by_name() {
    let text = read_text("text/sdxl_text_encoder.config.json");
    let refused = |key: &str, value: serde_json::Value| {
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document[key] = value;
        ClipTextConfig::from_json(&document.to_string()).unwrap_err().to_string()
    };
    for (key, value, said) in [
        ("hidden_act", json!("gelu_new"), "`hidden_act`: unknown variant `gelu_new`"),
        ("num_attention_heads", json!(7), "`num_attention_heads`: 7 does not divide hidden_size 768"),
        ("num_hidden_layers", json!(0), "`num_hidden_layers`: 0 is out of range"),
        ("num_hidden_layers", json!(1025), "`num_hidden_layers`: 1025 is out of range"),
        ("model_type", json!("t5"), "`model_type`: t5 is not supported"),
        ("eos_token_id", json!([2, 3]), "`eos_token_id`: invalid type"),
        ("quantization_config", json!({"quant_method": "awq"}), "`quantization_config` ="),
        ("is_decoder", json!(true), "`is_decoder` = true is not supported"),
        ("num_key_value_heads", json!(4), "`num_key_value_heads` is not a setting of this class"),
    ] {
        let message = refused(key, value);
        assert!(message.starts_with(said), "{message}");
    }
    // As the published folder has it, from transformers 4.32.
    let published = r#"{"architectures": ["CLIPTextModelWithProjection"], "attention_dropout": 0.0, "bos_token_id": 0,
        "dropout": 0.0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_size": 1280, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 5120, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
        "model_type": "clip_text_model", "num_attention_heads": 20, "num_hidden_layers": 32, "pad_token_id": 1,
        "projection_dim": 1280, "torch_dtype": "float16", "transformers_version": "4.32.0.dev0", "vocab_size": 49408}"#;
    let today = ClipTextConfig::from_json(&read_text("text/sdxl_text_encoder_2.config.json")).unwrap();
    assert_eq!(ClipTextConfig::from_json(published).unwrap(), today);
}
