//! `distill` and `export` from outside, and the objectives against PyTorch.

#[path = "../common/hashed.rs"]
mod hashed;
mod input;
mod parity;
mod resume;
mod whole;
mod world;
