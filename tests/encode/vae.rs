//! `AutoencoderKl` against diffusers' `AutoencoderKL`.

use std::collections::BTreeMap;

use encode::{AutoencoderKl, MemoryUse, VaeConfig};
use nn::Weights;
use serde::Deserialize;

use super::{assert_close, assert_shapes, fixture, hashed, hashed_weights, read_json, sampled};

#[derive(Deserialize)]
struct Case {
    config: VaeConfig,
    image: Vec<i64>,
    latent: Vec<i64>,
    tiled: bool,
}

fn cases() -> BTreeMap<String, Case> {
    read_json("vae/cases.json")
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
        let mut vae = build(&case.config);
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
    let mut vae = build(&case.config);
    let (images, latents) =
        (hashed::tensor("images", &[3, 3, 32, 48], 1.0), hashed::tensor("latents", &[3, 4, 4, 6], 1.0));
    let whole = (vae.encode(&images).mean, vae.decode(&latents));
    vae.memory = MemoryUse { slicing: true, tiling: false };
    assert_close("encode", &vae.encode(&images).mean, &whole.0);
    assert_close("decode", &vae.decode(&latents), &whole.1);
}

#[test]
fn scaling_and_its_inverse_agree() {
    let config = VaeConfig { scaling_factor: 0.13025, shift_factor: Some(0.5), ..VaeConfig::default() };
    let vae = build(&config);
    let latents = hashed::tensor("latents", &[1, 4, 3, 3], 5.0);
    assert_close("unscale", &vae.unscale(&vae.scale(&latents)), &latents);
    assert_close("scale", &vae.scale(&latents), &((latents - 0.5) * 0.13025));
}

#[test]
fn the_full_vae_of_sdxl_has_its_248_tensors() {
    let config: VaeConfig = read_json("vae/sdxl.config.json");
    let (_, params) = Weights::shapes_only().build(|scope| AutoencoderKl::new(scope, &config)).unwrap();
    assert_shapes(&params, "vae/sdxl.shapes.tsv", str::to_owned);
    assert_eq!((params.len(), params.count()), (248, 83_653_863));
}

#[test]
fn configs_that_no_network_can_have_are_refused() {
    let good: VaeConfig = read_json("vae/sdxl.config.json");
    let refused = |change: fn(&mut VaeConfig), named: &str| {
        let mut config = good.clone();
        change(&mut config);
        let reason = config.check().unwrap_err();
        assert!(reason.contains(named), "{reason}");
    };
    refused(|c| c.block_out_channels.truncate(3), "block_out_channels has 3 entries");
    refused(|c| c.block_out_channels[1] = 100, "does not divide 100 channels");
    refused(|c| c.norm_num_groups = 0, "out of range");
    refused(|c| c.latents_mean = Some(vec![0.0; 4]), "latents_mean");
    refused(|c| c.scaling_factor = 0.0, "scaling_factor is 0");
    assert_eq!(good.check(), Ok(()));
}
