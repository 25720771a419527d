//! The single-file checkpoint's names, which diffusers' own converters have proven (fixtures/sample/make_fixtures.py).

use std::collections::BTreeMap;

use nn::Weights;
use tch::{Device, Kind, Tensor};
use trainer::single_file::{self, Part, SingleFile};

use super::fixture;
use super::model::{SmallModel, configurations};

type Table = BTreeMap<String, (String, String, Vec<i64>)>;

fn table() -> Table {
    serde_json::from_str(&std::fs::read_to_string(fixture("sample/single_file.json")).unwrap()).unwrap()
}

fn part(name: &str) -> Part {
    match name {
        "unet" => Part::UNet,
        "vae" => Part::Vae,
        "text_encoder" => Part::TextEncoder,
        "text_encoder_2" => Part::TextEncoder2,
        _ => panic!("{name}"),
    }
}

#[test]
fn every_tensor_has_the_reference_name_and_shape() {
    let model = SmallModel::new();
    let file = model.file("all.safetensors");
    let networks = model.networks();
    single_file::write(&file, &networks, &configurations()).unwrap();
    let written = Weights::open(&file).unwrap();
    assert_eq!(written.names(), table().keys().map(String::as_str).collect::<Vec<_>>());
    for (theirs, (of, ours, shape)) in table() {
        let tensor = written.tensor(&theirs).unwrap();
        assert_eq!(tensor.size(), shape, "{theirs}");
        let source = &networks[&part(&of)][&ours];
        let same = match theirs.rsplit('.').next().unwrap() {
            "text_projection" => tensor.tr().equal(source),
            "in_proj_weight" | "in_proj_bias" => tensor.narrow(0, 0, source.size()[0]).equal(source),
            _ => tensor.reshape(source.size()).equal(source),
        };
        assert!(same, "{theirs}");
    }
}

#[test]
fn what_is_written_reads_back() {
    let model = SmallModel::new();
    let file = model.file("all.safetensors");
    let networks = model.networks();
    single_file::write(&file, &networks, &configurations()).unwrap();
    let read = SingleFile::open(&file, &configurations()).unwrap();
    for (part, tensors) in &networks {
        let weights = read.weights(*part, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(weights.names(), tensors.keys().map(String::as_str).collect::<Vec<_>>());
        for (name, tensor) in tensors {
            assert!(weights.tensor(name).unwrap().equal(tensor), "{name}");
        }
    }
}

#[test]
fn missing_and_surplus_tensors_are_listed() {
    let model = SmallModel::new();
    let file = model.file("broken.safetensors");
    single_file::write(&file, &model.networks(), &configurations()).unwrap();
    let weights = Weights::open(&file).unwrap();
    let mut tensors: BTreeMap<&str, Tensor> =
        weights.names().into_iter().map(|name| (name, weights.tensor(name).unwrap())).collect();
    tensors.remove("model.diffusion_model.out.2.bias");
    tensors.insert("first_stage_model.encoder.extra", Tensor::from(1.0_f32));
    tensors.insert("conditioner.embedders.1.model.logit_scale", Tensor::from(4.6_f32));
    let broken = model.file("broken2.safetensors");
    nn::save(&broken, tensors.iter().map(|(name, tensor)| (*name, tensor)), &[]).unwrap();
    let Err(error) = SingleFile::open(&broken, &configurations()) else { panic!("a broken checkpoint was opened") };
    let said = error.to_string();
    assert!(said.contains("missing (1):\n    model.diffusion_model.out.2.bias"), "{said}");
    assert!(said.contains("surplus (1):\n    first_stage_model.encoder.extra"), "{said}");
}
