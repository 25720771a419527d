//! What is asked of every contender, and what judges see in the answers.

use std::ops::Range;

use serde_json::Value;
use tch::Tensor;

use super::frechet::FrechetError;
use crate::{Error, Result};

/// Captions, references and judges.
///
/// Pictures are `[B, 3, H, W]` of whole grey levels from 0 to 255 in FP32.
pub trait Exam {
    /// The captions. The noise for each is a function of the seed and of its place in this list.
    fn captions(&self) -> &[String];

    /// How many references there are.
    fn references(&self) -> usize;

    /// The features of some references.
    fn reference_features(&self, items: Range<usize>) -> Result<Features>;

    /// What the judges see in pictures drawn for some captions.
    fn look(&self, pictures: &Tensor, items: Range<usize>) -> Result<Sight>;

    /// What the judges' answers to all captions come to; `agreement` is that of all sights.
    fn tally(&self, agreement: &Tensor) -> Agreement;

    /// Everything that features, sights and captions depend on.
    fn conditions(&self) -> Value;
}

/// What Fréchet distances are taken over.
#[derive(Debug)]
pub struct Features {
    /// `[B, D]`, of whole pictures.
    pub whole: Tensor,
    /// `[B, D]`, of the middle in full resolution.
    pub patch: Tensor,
}

/// What judges see in pictures.
#[derive(Debug)]
pub struct Sight {
    /// Their features.
    pub features: Features,
    /// `[B, A]` in FP32: how they fit their captions, in the exam's own terms.
    pub agreement: Tensor,
}

/// How pictures fit their captions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Agreement {
    /// Shares of captions and of attributes that are drawn right.
    Probe {
        /// Captions of which everything is there.
        captions: f64,
        /// Attributes asked for that are there.
        attributes: f64,
    },
    /// 100 times the mean cosine of pictures and captions.
    Clip(f64),
}

impl From<FrechetError> for Error {
    fn from(error: FrechetError) -> Self {
        Error::Argument(error.to_string())
    }
}
