//! Runs that are stopped, or met by something, on their way.

use std::sync::atomic::{AtomicU64, Ordering};

use ultracompress::Progress;

/// Asks the run to stop, or does something to it, after so many bytes or steps.
pub struct After<'a> {
    n: u64,
    seen: AtomicU64,
    act: &'a (dyn Fn() + Sync),
    stop: bool,
}

impl<'a> After<'a> {
    /// Asks the run to stop.
    pub fn stop(n: u64) -> Self {
        Self { n, seen: AtomicU64::new(0), act: &|| {}, stop: true }
    }

    /// Does something, and lets the run go on.
    pub fn act(n: u64, act: &'a (dyn Fn() + Sync)) -> Self {
        Self { n, seen: AtomicU64::new(0), act, stop: false }
    }
}

impl Progress for After<'_> {
    fn advance(&self, n: u64) {
        let before = self.seen.fetch_add(n, Ordering::SeqCst);
        if before < self.n && before + n >= self.n {
            (self.act)();
        }
    }

    fn cancelled(&self) -> bool {
        self.stop && self.seen.load(Ordering::SeqCst) >= self.n
    }
}
