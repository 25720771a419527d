//! How sharp an image is, on a scale that its size does not change.

use crate::Luma;

/// The version of the measure. Scores of different versions are not comparable, and it is stored
/// beside them.
pub const SHARPNESS_VERSION: u32 = 1;

/// Raw scores; thresholds are the recipe's. All are finite and not negative.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sharpness {
    /// Variance of the 3 x 3 Laplacian over the whole image at the fixed scale.
    pub whole: f64,
    /// The 90th percentile of the same variance over tiles: a sharp subject before a soft
    /// background scores high here and low in `whole`.
    pub tile: f64,
    /// Laplacian energy at full resolution over that at the fixed scale. Near 0 the full
    /// resolution adds nothing: the image was enlarged from a smaller one. 1 where the image is
    /// not larger than the fixed scale, which then says nothing.
    pub detail: f64,
}

/// Measures an image. Its cost is about one pass over the samples.
#[must_use]
pub fn sharpness(luma: &Luma) -> Sharpness {
    unimplemented!("{luma:?}")
}
