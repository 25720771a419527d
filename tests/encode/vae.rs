//! `AutoencoderKl` against diffusers' `AutoencoderKL`.

use std::collections::BTreeMap;

use encode::{AutoencoderKl, MemoryUse, VaeConfig};
use nn::Weights;
use serde::Deserialize;
use serde_json::json;

use super::{assert_close, assert_shapes, fixture, hashed, hashed_weights, read_json, read_text, sampled};

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    image: Vec<i64>,
    latent: Vec<i64>,
    tiled: bool,
}

fn cases() -> BTreeMap<String, Case> {
    read_json("vae/cases.json")
}

impl Case {
    fn config(&self) -> VaeConfig {
        VaeConfig::from_json(&self.config.to_string()).unwrap()
    }
}

fn build(config: &VaeConfig) -> AutoencoderKl {
    let network = |scope: &nn::Scope| AutoencoderKl::new(scope, config);
    let (_, shapes) = Weights::shapes_only().build(network).unwrap();
    hashed_weights(&shapes).build(network).unwrap().0
}

#[test]
fn encodes_and_decodes_as_diffusers_does() {
    let _guard = tch::no_grad_guard();
    let expected = Weights::open(&fixture("vae/outputs.safetensors")).unwrap();
    for (name, case) in cases() {
        let mut vae = build(&case.config());
        vae.memory = MemoryUse { slicing: false, tiling: case.tiled };
        let posterior = vae.encode(&hashed::tensor(&format!("{name}.image"), &case.image, 1.0));
        let noise = hashed::tensor(&format!("{name}.noise"), &posterior.mean.size(), 1.0);
        let decoded = vae.decode(&hashed::tensor(&format!("{name}.latent"), &case.latent, 1.0));
        for (part, found, step) in
            [("mean", &posterior.mean, 13), ("sample", &posterior.sample(&noise), 13), ("decoded", &decoded, 61)]
        {
            let what = format!("{name}.{part}");
            assert_close(&what, &sampled(found, step), &expected.tensor(&what).unwrap());
        }
    }
}

#[test]
fn slicing_changes_nothing_but_the_rounding() {
    let _guard = tch::no_grad_guard();
    let case = &cases()["sdxl_like"];
    let mut vae = build(&case.config());
    let (images, latents) =
        (hashed::tensor("images", &[3, 3, 32, 48], 1.0), hashed::tensor("latents", &[3, 4, 4, 6], 1.0));
    let whole = (vae.encode(&images).mean, vae.decode(&latents));
    vae.memory = MemoryUse { slicing: true, tiling: false };
    assert_close("encode", &vae.encode(&images).mean, &whole.0);
    assert_close("decode", &vae.decode(&latents), &whole.1);
}

#[test]
fn scaling_and_its_inverse_agree() {
    let config = VaeConfig { scaling_factor: 0.13025, ..VaeConfig::default() };
    let vae = build(&config);
    let latents = hashed::tensor("latents", &[1, 4, 3, 3], 5.0);
    assert_close("unscale", &vae.unscale(&vae.scale(&latents)), &latents);
    assert_close("scale", &vae.scale(&latents), &(latents * 0.13025));
}

#[test]
fn the_full_vae_of_sdxl_has_its_248_tensors() {
    let config = VaeConfig::from_json(&read_text("vae/sdxl.config.json")).unwrap();
    let (_, params) = Weights::shapes_only().build(|scope| AutoencoderKl::new(scope, &config)).unwrap();
    assert_shapes(&params, "vae/sdxl.shapes.tsv", str::to_owned);
    assert_eq!((params.len(), params.count()), (248, 83_653_863));
}

#[test]
fn configs_that_no_network_can_have_are_refused() {
    let text = read_text("vae/sdxl.config.json");
    let refused = |key: &str, value: serde_json::Value| {
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document[key] = value;
        VaeConfig::from_json(&document.to_string()).unwrap_err().to_string()
    };
    for (key, value, said) in [
        ("block_out_channels", json!([128, 256, 512]), "`down_block_types`: 4 entries beside 3 block_out_channels"),
        ("block_out_channels", json!([128, 100, 512, 512]), "`norm_num_groups`: 32 does not divide"),
        ("norm_num_groups", json!(0), "`norm_num_groups`: 0 is out of range"),
        ("layers_per_block", json!(1025), "`layers_per_block`: 1025 is out of range"),
        ("layers_per_block", json!(1u64 << 40), "`layers_per_block`: 1099511627776 is out of range"),
        ("latents_mean", json!([0.0, 0.0, 0.0, 0.0]), "`latents_mean`: statistics"),
        ("shift_factor", json!(0.1159), "`shift_factor`: a shift of latents"),
        ("scaling_factor", json!(0), "`scaling_factor`: 0"),
        ("act_fn", json!("tanh"), "`act_fn`: unknown variant `tanh`"),
        ("down_block_types", json!(["AttnDownEncoderBlock2D"]), "`down_block_types`: unknown variant"),
        ("_class_name", json!("AutoencoderTiny"), "`_class_name`: AutoencoderTiny is not supported"),
        ("use_quant_convolution", json!(false), "`use_quant_convolution` is not a setting of this class"),
        ("force_upcast", json!(null), "`force_upcast` = null is not supported"),
    ] {
        let message = refused(key, value);
        assert!(message.starts_with(said), "{message}");
    }
    // As diffusers 0.19 to 0.42 wrote it for SDXL, with the keys that have no meaning here.
    let published = r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0", "_name_or_path": "x",
        "latents_mean": null, "latents_std": null, "shift_factor": null, "force_upcast": true}"#;
    assert_eq!(VaeConfig::from_json(published).unwrap(), VaeConfig::default());
    VaeConfig::from_json(r#"{"shift_factor": 0}"#).unwrap();
}
