//! The judges of the paper's exam against pytorch-fid, transformers and clean-fid: fixtures/evaluate/make_evaluate.py.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nn::{Params, Weights};
use tch::{Kind, Tensor};
use trainer::evaluate::clip::{ClipConfig, ClipModel, ClipScorer, prepare};
use trainer::evaluate::inception::InceptionV3;
use trainer::evaluate::resize::resize;

use super::{DEMO, hashed, refused_by};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/evaluate")).join(name)
}

fn fixtures() -> Weights {
    Weights::open(&fixture("evaluate.safetensors")).unwrap()
}

/// `name<TAB>shape` of every tensor, in order of names.
fn listing(shapes: &Params) -> String {
    let line = |(name, tensor): (&str, &Tensor)| {
        let sizes: Vec<String> = tensor.size().iter().map(i64::to_string).collect();
        format!("{name}\t{}\n", sizes.join(","))
    };
    let mut lines: Vec<String> = shapes.iter().map(line).collect();
    lines.sort();
    lines.concat()
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let worst = (found - expected).abs().max().double_value(&[]);
    assert!(worst <= tolerance, "{what}: {worst:e} apart");
}

fn inception_shapes() -> Params {
    Weights::shapes_only().build(InceptionV3::new).unwrap().1
}

/// Convolutions are scaled by the root of two, variances lie around one.
fn inception_weights() -> BTreeMap<String, Tensor> {
    let weight = |name: &str, shape: &[i64]| match name.rsplit_once('.') {
        Some((_, "running_var")) => hashed::tensor(name, shape, 0.1) + 1.0,
        Some((conv, "weight")) if conv.ends_with(".conv") => hashed::weight(name, shape) * 2f64.sqrt(),
        _ => hashed::weight(name, shape),
    };
    inception_shapes().iter().map(|(name, tensor)| (name.to_owned(), weight(name, &tensor.size()))).collect()
}

#[test]
fn inception_has_the_names_and_the_features_of_pytorch_fid() {
    let expected = std::fs::read_to_string(fixture("inception.shapes.tsv")).unwrap();
    assert!(listing(&inception_shapes()) == expected, "names or shapes differ");

    let _no_grad = tch::no_grad_guard();
    let (net, _) = Weights::from_tensors("hashed", inception_weights()).build(InceptionV3::new).unwrap();
    let coarse = hashed::tensor("pictures", &[2, 3, 13, 13], 0.5) + 0.5;
    let pictures = coarse.upsample_nearest2d([299, 299], None, None);
    let features = net.forward(&pictures);
    assert_close("features", &features, &fixtures().tensor("inception.features").unwrap(), 1e-4);
}

#[test]
fn clip_has_the_names_and_the_features_of_transformers() {
    let config = ClipConfig::read(&fixture("clip")).unwrap();
    let (_, shapes) = Weights::shapes_only().build(|scope| ClipModel::new(scope, &config)).unwrap();
    let expected = std::fs::read_to_string(fixture("clip.shapes.tsv")).unwrap();
    assert!(listing(&shapes) == expected, "names or shapes differ:\n{}", listing(&shapes));

    let _no_grad = tch::no_grad_guard();
    let weights = Weights::from_tensors("hashed", hashed::weights(&shapes));
    let (net, _) = weights.build(|scope| ClipModel::new(scope, &config)).unwrap();
    let fixtures = fixtures();
    let ids = fixtures.tensor("clip.ids").unwrap().to_kind(Kind::Int64);
    assert_close("text", &net.text_features(&ids), &fixtures.tensor("clip.text_features").unwrap(), 1e-4);
    let pixels = hashed::tensor("pixels", &[2, 3, 32, 32], 2.0);
    assert_close("image", &net.image_features(&pixels), &fixtures.tensor("clip.image_features").unwrap(), 1e-4);
}

#[test]
fn pictures_are_resized_as_clean_fid_and_prepared_as_transformers_do() {
    let fixtures = fixtures();
    let cases: Vec<&str> = fixtures.names().into_iter().filter_map(|name| name.strip_suffix(".resized")).collect();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let picture = fixtures.tensor(&format!("{case}.picture")).unwrap().unsqueeze(0);
        let expected = fixtures.tensor(&format!("{case}.resized")).unwrap().unsqueeze(0);
        let (_, _, height, width) = expected.size4().unwrap();
        // The issue's bound is a whole grey level.
        assert_close(case, &resize(&picture, height, width), &expected, 0.01);
    }
    // One grey level is 1 / 255 / 0.261 of the narrowest channel.
    let picture = fixtures.tensor("prepare.picture").unwrap().unsqueeze(0);
    let expected = fixtures.tensor("prepare.pixels").unwrap().unsqueeze(0);
    assert_close("prepare", &prepare(&picture, 32), &expected, 0.0151);
}

/// A CLIP's folder: the fixture's configuration, hashed weights and the demo's tokenizer.
fn clip_folder(folder: &Path) -> PathBuf {
    let clip = folder.join("clip");
    std::fs::create_dir_all(&clip).unwrap();
    std::fs::copy(fixture("clip/config.json"), clip.join("config.json")).unwrap();
    for file in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::copy(Path::new(DEMO).join("model/tokenizer").join(file), clip.join(file)).unwrap();
    }
    let config = ClipConfig::read(&clip).unwrap();
    let (_, shapes) = Weights::shapes_only().build(|scope| ClipModel::new(scope, &config)).unwrap();
    let mut weights = hashed::weights(&shapes);
    // What published files hold beside the weights.
    weights.insert("logit_scale".into(), Tensor::from(2.6f32));
    weights.insert("vision_model.embeddings.position_ids".into(), Tensor::arange(17, (Kind::Int64, tch::Device::Cpu)));
    nn::save(&clip.join("model.safetensors"), weights.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])
        .unwrap();
    clip
}

#[test]
fn a_picture_and_a_caption_have_a_score() {
    let _no_grad = tch::no_grad_guard();
    let folder = tempfile::tempdir().unwrap();
    let scorer = ClipScorer::open(&clip_folder(folder.path()), tch::Device::Cpu).unwrap();
    let pictures = (hashed::tensor("pictures", &[2, 3, 64, 64], 127.5) + 127.5).round();
    let captions = ["a red circle".to_owned(), "a blue square".to_owned()];
    let scores: Vec<f32> = scorer.scores(&pictures, &captions).unwrap().try_into().unwrap();
    let swapped: Vec<f32> = scorer.scores(&pictures.flip([0i64]), &captions).unwrap().try_into().unwrap();
    assert!(scores.iter().all(|score| (-100.0..=100.0).contains(score)));
    assert_ne!(scores, swapped);
}

#[test]
fn a_clip_that_wants_other_pixels_is_refused_by_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let clip = clip_folder(folder.path());
    let side = ClipConfig::read(&clip).unwrap().vision_config.image_size;
    let opened = |settings: &str| {
        std::fs::write(clip.join("preprocessor_config.json"), settings).unwrap();
        ClipScorer::open(&clip, tch::Device::Cpu).err().map(|error| error.to_string())
    };
    // As the published folders have it, in both ages.
    let mean = "[0.48145466, 0.4578275, 0.40821073]";
    for good in [
        format!(r#"{{"size": {side}, "crop_size": {side}, "resample": 3, "image_mean": {mean}}}"#),
        format!(r#"{{"size": {{"shortest_edge": {side}}}, "crop_size": {{"height": {side}, "width": {side}}}}}"#),
    ] {
        assert_eq!(opened(&good), None, "{good}");
    }
    for (bad, key) in [
        (r#"{"image_mean": [0.5, 0.5, 0.5]}"#, "`image_mean`"),
        (r#"{"size": {"shortest_edge": 8}}"#, "`size`"),
        (r#"{"resample": 2}"#, "`resample`"),
    ] {
        let message = opened(bad).expect(bad);
        assert!(message.contains("preprocessor_config.json") && message.contains(key), "{message}");
    }
}

#[test]
fn a_clip_of_another_tokenizer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let clip = clip_folder(folder.path());
    let path = clip.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["text_config"]["vocab_size"] = 3.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let message = ClipScorer::open(&clip, tch::Device::Cpu).err().unwrap().to_string();
    assert!(message.contains("config.json") && message.contains("a vocab_size of 3"), "{message}");
}

const COCO: &str = r#"
seeds = [0]
batch = 2
grid = 2
teacher = { steps = 1, guidance_scale = 1.0 }
fewer_steps = []
exam = { kind = "coco", captions = "captions.json", references = "images", count = 2049, inception = "inception.safetensors", clip = "clip" }
"#;

/// Everything that the user brings is looked at before anything is drawn, and named where it is wrong.
#[test]
fn what_is_wrong_with_the_users_files_is_named() {
    let manifest = super::Manifest::new();
    super::succeeded(&manifest.pretrain(&["--export-only"]));
    let model = std::fs::read_to_string(manifest.path("model.toml")).unwrap();
    std::fs::write(manifest.path("model.toml"), model.replace("resolution = 128", "resolution = 304")).unwrap();
    std::fs::write(manifest.path("evaluate.toml"), COCO).unwrap();
    refused_by(&manifest, "captions.json");

    // One picture stands for all images.
    let images: Vec<String> = (0..2049).map(|id| format!(r#"{{"id": {id}, "file_name": "one.jpg"}}"#)).collect();
    let captions: Vec<String> =
        (0..2049).map(|id| format!(r#"{{"image_id": {id}, "caption": "a caption"}}"#)).collect();
    let coco = format!(r#"{{"images": [{}], "annotations": [{}]}}"#, images.join(","), captions.join(","));
    std::fs::write(manifest.path("captions.json"), coco).unwrap();
    std::fs::create_dir(manifest.path("images")).unwrap();
    refused_by(&manifest, "one.jpg");
    std::fs::write(manifest.path("images/one.jpg"), b"\xff\xd8\xff\xe0 not much of a picture").unwrap();
    refused_by(&manifest, "inception.safetensors");

    let mut weights = inception_weights();
    let save = |weights: &BTreeMap<String, Tensor>| {
        let tensors = weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
        nn::save(&manifest.path("inception.safetensors"), tensors, &[]).unwrap();
    };
    let taken = weights.remove("Mixed_7c.branch_pool.conv.weight").unwrap();
    save(&weights);
    refused_by(&manifest, "Mixed_7c.branch_pool.conv.weight");
    weights.insert("Mixed_7c.branch_pool.conv.weight".into(), taken);
    // The classifier of the published file is passed over.
    weights.insert("fc.bias".into(), hashed::tensor("fc.bias", &[1008], 0.1));
    save(&weights);
    refused_by(&manifest, "clip/config.json");
    clip_folder(manifest.path("clip").parent().unwrap());
    refused_by(&manifest, "one.jpg");

    let pickle = COCO.replace("inception.safetensors", "inception.pth");
    std::fs::write(manifest.path("evaluate.toml"), pickle).unwrap();
    refused_by(&manifest, "pickle");
}
