//! Progress of long operations, and requests that they stop.

use crate::error::{Error, ErrorKind, Result};

/// Watches a long operation. Called from several threads.
pub trait Progress: Sync {
    /// `bytes` more were processed.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Whether the operation should stop; it then ends with `Cancelled` and leaves no output.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Reports nothing and never stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}

/// Reports `bytes` and fails when the operation should stop.
pub(crate) fn step(progress: &dyn Progress, bytes: u64) -> Result<()> {
    progress.advance(bytes);
    if progress.cancelled() {
        return Err(Error::new(ErrorKind::Cancelled, "stopped on request"));
    }
    Ok(())
}

/// Passes on that the work should stop, not how much of it is done.
#[cfg(feature = "checkpoints")]
pub(crate) struct Silent<'a>(pub &'a dyn Progress);

#[cfg(feature = "checkpoints")]
impl Progress for Silent<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}
