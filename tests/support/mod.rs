//! What tests share, a file for each kind of help. Those of the library say `mod support;`; those
//! of the tool have this in theirs, `cli/tests/support`. Nothing here needs a feature of the
//! library, so each test may use it whatever is on; `tiny.rs` needs one, and is named by the tests
//! that have it.
#![allow(dead_code, reason = "each test uses a part")]

pub mod allocator;
pub mod checkpoint;
pub mod damage;
pub mod folder;
pub mod pack;
pub mod planes;
pub mod progress;
pub mod random;
pub mod range_server;
pub mod vectors;

/// Runs `work` with so many threads.
pub fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(work)
}
