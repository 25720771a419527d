//! `distill` and `export` from outside, and the objectives against PyTorch.

mod exports;
#[allow(dead_code, reason = "shared with tests that take whole networks")]
#[path = "../common/hashed.rs"]
mod hashed;
mod input;
#[allow(dead_code, reason = "shared with the tests of `sample`")]
#[path = "../sample/model.rs"]
mod model;
mod options;
mod parity;
mod plan;
mod resume;
mod whole;
mod world;

/// A file below tests/fixtures.
fn fixture(name: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}
