//! What this machine can run, for tests: each kernel gives the same at every level, bit for bit.

use fearless_simd::Level;

/// The levels of vector instructions that this machine has, the least first.
pub(crate) fn levels() -> impl Iterator<Item = Level> {
    let best = Level::new();
    #[cfg(target_arch = "x86_64")]
    let between =
        [best.as_sse4_2().map(Level::Sse4_2), best.as_avx2().map(Level::Avx2), best.as_avx512().map(Level::Avx512)];
    #[cfg(not(target_arch = "x86_64"))]
    let between = [Some(best)];
    std::iter::once(Level::baseline()).chain(between.into_iter().flatten())
}
