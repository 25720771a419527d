//! Weights and inputs that need no file: every element is a hash of its name and place.
//!
//! Python's half is tests/fixtures/hashed.py; both give the same bits.

use std::collections::BTreeMap;

use nn::Params;
use tch::Tensor;

/// `count` doubles in [-1, 1), multiples of 2^-31.
pub fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let hash = name.bytes().fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    (0..count as u32).map(move |place| {
        // The finaliser of MurmurHash3.
        let mut x = place.wrapping_mul(2_654_435_769).wrapping_add(hash);
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        x ^= x >> 16;
        f64::from(x) / 2_f64.powi(31) - 1.0
    })
}

/// An input.
pub fn tensor(name: &str, shape: &[i64], scale: f64) -> Tensor {
    let values: Vec<f32> = uniform(name, numel(shape)).map(|u| (u * scale) as f32).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// A parameter, of a size that keeps activations near 1.
pub fn weight(name: &str, shape: &[i64]) -> Tensor {
    let count = numel(shape);
    let values = uniform(name, count).map(|u| match shape {
        [outputs, _, ..] => u * (3.0 * *outputs as f64 / count as f64).sqrt(),
        _ if name.ends_with("weight") => 1.0 + 0.1 * u,
        _ => 0.1 * u,
    });
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// Every parameter of a network whose shapes are known.
pub fn weights(shapes: &Params) -> BTreeMap<String, Tensor> {
    shapes.iter().map(|(name, tensor)| (name.to_owned(), weight(name, &tensor.size()))).collect()
}

fn numel(shape: &[i64]) -> usize {
    shape.iter().product::<i64>() as usize
}
