//! The samplers, the UNet, LoRA files and the `sample` program, against diffusers 0.42.1.

#[path = "../common/hashed.rs"]
mod hashed;
mod model;
mod program;
mod schedulers;
mod single_file;
mod unet;

use std::path::PathBuf;

use tch::{Kind, Tensor};

/// A file below tests/fixtures.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// The largest difference, relative to the largest value expected.
fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let worst = |x: Tensor| x.to_kind(Kind::Double).abs().max().double_value(&[]);
    worst(found - expected) / worst(expected.shallow_clone())
}
