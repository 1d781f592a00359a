//! How much memory long operations may take (`--max-ram`).

use crate::error::{Error, Result};
use crate::format::Preamble;

/// Least `max_ram` that operations accept, in bytes.
pub const MIN_MAX_RAM: u64 = 128 << 20;
/// `max_ram` unless the caller says otherwise, in bytes.
pub const DEFAULT_MAX_RAM: u64 = 1 << 30;

/// Memory that an index takes while it is parsed and held, over its length; as measured on packs of
/// 100,000 and of 900,000 tensors.
pub(crate) const INDEX_FACTOR: u64 = 5;
/// The same of a manifest, which is held as text and as maps while it is read.
pub(crate) const MANIFEST_FACTOR: u64 = 6;

/// What a process takes before it does any work: code, stacks, buffers of libraries.
const BASE: u64 = 32 << 20;

/// About how much memory the index and the manifest of a file take.
pub(crate) fn tables_bytes(p: &Preamble) -> u64 {
    let index = p.index_len.saturating_mul(INDEX_FACTOR);
    index.saturating_add(p.manifest_len.saturating_mul(MANIFEST_FACTOR))
}

/// What is left of `max_ram` for work in progress when `held` bytes of tables stay in memory, of which
/// one job needs `one_job`.
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
