//! Bytes to typed headers and back: preamble, index records, attachments, names, roots.
//!
//! Implements spec/container.md. Nothing here touches tensor payload or does I/O.

mod attachments;
mod digest;
mod dtype;
mod fields;
mod index;
mod names;
mod overlay;
mod part;
mod preamble;
mod root;
mod tensor;

pub use attachments::{Attachment, AttachmentKind};
pub(crate) use attachments::{parse_attachments, write_attachments};
pub use digest::Digest;
pub use dtype::{Dtype, elements};
#[cfg(feature = "checkpoints")]
pub(crate) use index::OtherEntry;
pub(crate) use index::write_index;
pub use index::{ExactModelEntry, FileEntry, Index, LevelsEntry};
pub(crate) use names::{check_file_path, check_name};
#[cfg(feature = "checkpoints")]
pub(crate) use overlay::MAX_INFO_BYTES;
pub use overlay::{FactorType, MAX_OVERLAY_RANK, OverlayBlock, OverlayEntry};
pub use part::{Chunk, Part, PartKind, Storage};
pub(crate) use preamble::MAX_SHARDS;
pub use preamble::{FORMAT_MAJOR, FORMAT_MINOR, Preamble};
pub(crate) use root::decoded_root;
pub use root::{TreeHasher, tensor_leaf};
pub use tensor::{Encoding, Role, TensorEntry};

/// Alignment of every payload, index, manifest and attachment section, in bytes (UC-PRT-3,
/// UC-HDR-7).
pub const ALIGN_BYTES: u64 = 64;
/// Length of the preamble in bytes (UC-HDR-4).
pub const PREAMBLE_BYTES: usize = 256;
/// Bytes of a part that share one checksum, and leaf size of the stored root (UC-PRT-2, UC-ROOT-3).
pub const CHUNK_BYTES: u64 = CHUNK_LEN as u64;
/// The same, as a length in memory.
pub(crate) const CHUNK_LEN: usize = 1 << 20;
/// Longest name of a tensor, table or carried file, in bytes (UC-NAM-1).
pub const MAX_NAME_BYTES: usize = 1024;
/// Fewest planes of a row, and of a rung: two planes hold too few levels for a model to work
/// (UC-PLN-3).
pub const MIN_PLANES: u8 = 3;
/// Most planes of a row: levels are int8 (UC-PLN-3).
pub const MAX_PLANES: u8 = 8;
/// Numbers of planes that a row can have: each has a place in `level_ids`, and a model of the exact
/// rung.
pub const PLANE_COUNTS: usize = (MAX_PLANES - MIN_PLANES + 1) as usize;

/// Which of the [`PLANE_COUNTS`] a number of planes is.
pub(crate) fn plane_index(planes: u8) -> usize {
    usize::from(planes - MIN_PLANES)
}

/// Highest number of dimensions of a tensor (UC-TEN-1).
pub const MAX_RANK: usize = 16;

/// Rounds up to a multiple of `step` (a power of two); nothing when that overflows.
pub(crate) fn align_up(n: u64, step: u64) -> Option<u64> {
    Some(n.checked_add(step - 1)? & !(step - 1))
}
