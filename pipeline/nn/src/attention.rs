//! Multi-head attention.

use tch::Tensor;

/// What a query may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masking {
    /// Everything.
    None,
    /// Its own position and those before it.
    Causal,
}

/// `softmax(Q K^T / sqrt(d)) V` for each head. `query` is `[batch, queries, heads * d]`, `key` and `value` are
/// `[batch, keys, heads * d]`; the result has the query's shape. No mask tensor is ever made, so torch is free to choose
/// its fused kernels.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64, masking: Masking) -> Tensor {
    let (batch, queries, width) = query.size3().expect("a query is [batch, queries, width]");
    let split = |x: &Tensor| x.view([batch, -1, heads, width / heads]).transpose(1, 2);
    let causal = masking == Masking::Causal;
    Tensor::scaled_dot_product_attention(
        &split(query),
        &split(key),
        &split(value),
        None::<&Tensor>,
        0.0,
        causal,
        None,
        false,
    )
    .transpose(1, 2)
    .reshape([batch, queries, width])
}
