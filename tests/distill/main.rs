//! `distill` and `export` from outside, and the objectives against PyTorch.

#[allow(dead_code, reason = "shared with tests that take whole networks")]
#[path = "../common/hashed.rs"]
mod hashed;
mod input;
mod parity;
mod plan;
mod resume;
mod whole;
mod world;
