//! A tensor that is encoded but not yet written. The files beside this one make it, one for each
//! encoding.

use crate::error::{Error, Result};
use crate::format::{CHUNK_LEN, Dtype, Part, PartKind, TensorEntry, check_name};

/// A tensor that is encoded but not yet written: its record and the stored bytes of its parts.
#[derive(Debug, Clone)]
pub struct EncodedTensor {
    pub(crate) entry: TensorEntry,
    pub(crate) payload: Vec<Vec<u8>>,
}

/// # Errors
/// `InvalidArgument` when `bytes` don't fit `dtype` and `shape`; `Malformed` for a bad name.
pub(super) fn check_source(name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Result<()> {
    check_name(name)?;
    if dtype.tensor_bytes(shape) != Some(bytes.len() as u64) {
        return Err(
            Error::argument(format!("{} bytes for {dtype} {shape:?}", bytes.len())).in_tensor(name)
        );
    }
    Ok(())
}

/// A part that is stored as it is.
pub(super) fn whole_part(kind: PartKind, content: &[u8]) -> Part {
    let mut part = Part::empty(kind, 0);
    content.chunks(CHUNK_LEN).for_each(|chunk| part.push_chunk(chunk.len(), chunk));
    part
}

impl EncodedTensor {
    /// The record it will have; part offsets are zero until it is written.
    pub fn entry(&self) -> &TensorEntry {
        &self.entry
    }
}
