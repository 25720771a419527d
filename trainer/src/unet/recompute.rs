//! Activation checkpointing at the borders of blocks.

use tch::Tensor;

/// Whether the insides of blocks are kept for the backward pass or computed again in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// Everything is kept: fast, and large.
    Never,
    /// Each residual block and each transformer block keeps its inputs alone: a third more arithmetic, a fraction of
    /// the memory, the same gradients but for the order in which shared inputs sum theirs.
    Blocks,
}

/// A block that can run again in the backward pass.
pub(super) trait Segment: Send + Sized + 'static {
    /// From the inputs alone: everything that needs a gradient and is not a weight comes in here.
    fn forward(&self, inputs: &[Tensor]) -> Tensor;

    /// Another set of handles on the same weights.
    fn shallow_clone(&self) -> Self;
}

impl Recompute {
    pub(super) fn run<S: Segment>(self, segment: &S, inputs: &[Tensor]) -> Tensor {
        if self == Self::Never {
            return segment.forward(inputs);
        }
        let segment = segment.shallow_clone();
        torch_shim::checkpoint(inputs, move |inputs| segment.forward(inputs)).unwrap_or_else(|error| panic!("{error}"))
    }
}
