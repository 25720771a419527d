//! The networks and tokenizers against diffusers and transformers, and `encode-latents` from outside.
//!
//! Fixtures lie beside the scripts that made them, in tests/fixtures/{vae,text,tokenizer,encode}.

#[path = "../common/hashed.rs"]
mod hashed;
// The hub's own tests ask for more of its faults.
#[allow(dead_code)]
#[path = "../common/hub_server.rs"]
mod hub_server;

mod base;
mod faults;
mod program;
mod text;
mod tokenizer;
mod vae;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;

use nn::{Params, Weights};
use tch::Tensor;

/// float32 on the CPU, one forward of a network.
const MAX_RELATIVE_ERROR: f64 = 1e-4;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &str) -> T {
    encode::config::read_json(&fixture(path)).unwrap()
}

fn read_text(path: &str) -> String {
    std::fs::read_to_string(fixture(path)).unwrap()
}

/// The largest difference, as a part of the largest expected value.
fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]);
    ((found - expected).abs().max() / scale).double_value(&[])
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    let error = relative_error(found, expected);
    assert!(error < MAX_RELATIVE_ERROR, "{what}: relative error {error:e}");
}

/// Every `step`th value of the flattened tensor.
fn sampled(tensor: &Tensor, step: i64) -> Tensor {
    tensor.flatten(0, -1).slice(0, None, None, step)
}

fn hashed_weights(shapes: &Params) -> Weights {
    Weights::from_tensors("hashed", hashed::weights(shapes))
}

/// Holds a network's names and shapes against a table of `name<TAB>AxBxC`.
fn assert_shapes(params: &Params, table: &str, rename: impl Fn(&str) -> String) {
    let table = std::fs::read_to_string(fixture(table)).unwrap();
    let expected: BTreeMap<String, Vec<i64>> = table
        .lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').unwrap();
            (rename(name), shape.split('x').map(|side| side.parse().unwrap()).collect())
        })
        .collect();
    let found: BTreeMap<String, Vec<i64>> = params.iter().map(|(name, t)| (name.to_owned(), t.size())).collect();
    assert_eq!(found, expected);
}
