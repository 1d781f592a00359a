//! Bytes to typed headers and back: preamble, index records, attachments, names, roots.
//!
//! Implements spec/container.md. Nothing here touches tensor payload or does I/O.

mod attachments;
mod dtype;
mod index;
mod names;
mod overlay;
mod preamble;
mod root;
mod rule;

pub use attachments::{Attachment, AttachmentKind};
pub(crate) use attachments::{parse_attachments, write_attachments};
pub use dtype::{Dtype, elements};
#[cfg(feature = "safetensors")]
pub(crate) use index::OtherEntry;
pub(crate) use index::write_index;
pub use index::{
    Chunk, Encoding, ExactModelEntry, FileEntry, Index, LevelsEntry, Part, PartKind, Role, Storage,
    TensorEntry,
};
pub(crate) use names::{check_file_path, check_name};
#[cfg(feature = "safetensors")]
pub(crate) use overlay::MAX_INFO_BYTES;
pub use overlay::{FactorType, MAX_OVERLAY_RANK, OverlayBlock, OverlayEntry};
pub(crate) use preamble::MAX_SHARDS;
pub use preamble::{FORMAT_MAJOR, FORMAT_MINOR, Preamble};
pub(crate) use root::decoded_root;
pub use root::{Digest, TreeHasher, tensor_leaf};
pub use rule::Rule;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limit;

/// Alignment of every payload, index, manifest and attachment section, in bytes (UC-PRT-3, UC-HDR-7).
pub const ALIGN_BYTES: u64 = 64;
/// Length of the preamble in bytes (UC-HDR-4).
pub const PREAMBLE_BYTES: usize = 256;
/// Bytes of a part that share one checksum, and leaf size of the stored root (UC-PRT-2, UC-ROOT-3).
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Longest name of a tensor, table or carried file, in bytes (UC-NAM-1).
pub const MAX_NAME_BYTES: usize = 1024;
/// Highest number of dimensions of a tensor (UC-TEN-1).
pub const MAX_RANK: usize = 16;

/// Rounds up to a multiple of `step` (a power of two); nothing when that overflows.
pub(crate) fn align_up(n: u64, step: u64) -> Option<u64> {
    Some(n.checked_add(step - 1)? & !(step - 1))
}

/// An empty buffer with room for `n` bytes, or an error where there is no such memory.
pub(crate) fn reserve(n: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    reserve_more(&mut buffer, n)?;
    Ok(buffer)
}

/// A buffer of `n` zeros, of which no more is touched than what is written later, or an error where there is
/// no such memory.
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
