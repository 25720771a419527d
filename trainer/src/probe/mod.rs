//! The probe: a small fixed classifier that says what a picture shows, trained on the generator's own labels.

pub mod questions;
