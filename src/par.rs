//! Maps over indices on all threads, in order; on one thread without the `rayon` feature. Results
//! never depend on which.

/// `f(0), f(1), ..., f(n - 1)` in order.
#[cfg(feature = "rayon")]
pub(crate) fn map<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    use rayon::prelude::*;
    (0..n).into_par_iter().map(f).collect()
}

/// `f(0), f(1), ..., f(n - 1)` in order.
#[cfg(not(feature = "rayon"))]
pub(crate) fn map<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    (0..n).map(f).collect()
}

/// Runs both and returns both results.
#[cfg(all(feature = "rayon", feature = "safetensors"))]
pub(crate) fn join<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    rayon::join(a, b)
}

/// Runs both and returns both results.
#[cfg(all(not(feature = "rayon"), feature = "safetensors"))]
pub(crate) fn join<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    (a(), b())
}
