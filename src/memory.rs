//! Memory: buffers that are refused where there is no room, and how much long operations may take
//! (`--max-ram`).

use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limit;

/// Least `max_ram` that operations accept, in bytes.
pub const MIN_MAX_RAM: u64 = 128 << 20;
/// `max_ram` unless the caller says otherwise, in bytes.
pub const DEFAULT_MAX_RAM: u64 = 1 << 30;

/// What a process takes before it does any work: code, stacks, buffers of libraries.
const BASE: u64 = 32 << 20;

/// What is left of `max_ram` for work in progress when `held` bytes of tables stay in memory, of
/// which one job needs `one_job`.
///
/// # Errors
/// `InvalidArgument` with the least value that would do.
pub(crate) fn for_work(max_ram: u64, held: u64, one_job: u64) -> Result<u64> {
    let needed = BASE.saturating_add(held).saturating_add(one_job).max(MIN_MAX_RAM);
    if max_ram < needed {
        let mib = needed.div_ceil(1 << 20);
        return Err(Error::argument(format!(
            "max-ram of {} MiB is too little: this needs at least {mib} MiB",
            max_ram >> 20
        )));
    }
    Ok(max_ram - BASE - held)
}

/// An empty buffer with room for `n` bytes, or an error where there is no such memory.
pub(crate) fn reserve(n: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    reserve_more(&mut buffer, n)?;
    Ok(buffer)
}

/// A buffer of `n` zeros, of which no more is touched than what is written later, or an error where
/// there is no such memory.
pub(crate) fn zeroed(n: usize) -> Result<Vec<u8>> {
    crate::kernels::zeroed(n).ok_or_else(|| {
        Error::new(
            ErrorKind::LimitExceeded(Limit::AddressSpace),
            format!("no memory for {n} bytes"),
        )
    })
}

/// Makes room for `n` more bytes, or fails where there is no such memory.
pub(crate) fn reserve_more(buffer: &mut Vec<u8>, n: usize) -> Result<()> {
    buffer.try_reserve_exact(n).map_err(|e| {
        Error::new(
            ErrorKind::LimitExceeded(Limit::AddressSpace),
            format!("no memory for {n} bytes"),
        )
        .with_source(e)
    })
}

/// Converts a length of the file to this machine's `usize`.
pub(crate) fn to_usize(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| {
        Error::new(
            ErrorKind::LimitExceeded(Limit::AddressSpace),
            format!("{n} bytes don't fit this machine's address space"),
        )
    })
}
