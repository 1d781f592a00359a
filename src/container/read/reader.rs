//! The trait of readers: the same few operations for each encoding.

use std::ops::Range;

use super::open::TensorView;
use crate::codec::convert_raw;
use crate::error::Result;
use crate::format::{Dtype, TensorEntry};
use crate::kernels::Kernel;
use crate::storage::ReadAt;

/// Weights that are decoded at a time when a tensor goes by in tiles: what they are made from, and
/// the values, stay in a core's own cache.
pub(super) const TILE_WEIGHTS: u64 = 1 << 17;
/// Bytes of a raw tensor that are read at a time: some chunks, so that a server is asked less
/// often.
pub(super) const RAW_PIECE_BYTES: u64 = 4 << 20;

/// What is asked of a tensor.
pub(super) struct Request<'a, R> {
    /// The tensor; no alias.
    pub view: TensorView<'a, R>,
    /// Most planes that are read of a row.
    pub rung: u8,
    /// The type of the output.
    pub target: Dtype,
    /// The kernel; that of the process by default.
    pub kernel: Option<Kernel>,
    /// Stored bytes that may be read at once and kept.
    pub whole_bytes: u64,
}

impl<R: ReadAt> Request<'_, R> {
    /// # Errors
    /// `InvalidArgument` for a kernel that `UC_KERNEL` names and this CPU can't run.
    pub(super) fn kernel(&self) -> Result<Kernel> {
        self.kernel.map_or_else(Kernel::selected, Ok)
    }

    /// Bytes of the tensor's own type at the type of the output.
    pub(super) fn convert(&self, bytes: Vec<u8>) -> Vec<u8> {
        convert_raw(bytes, self.view.dtype(), self.target).0
    }
}

/// Takes the bytes of a tile.
pub(super) type Emit<'e> = &'e mut dyn FnMut(&[u8]) -> Result<()>;

/// Reads tensors of one encoding.
pub(super) trait TensorReader<R: ReadAt> {
    /// Rows and columns, as [`DecodeOptions::rows`](super::DecodeOptions::rows) counts them.
    ///
    /// # Errors
    /// `Malformed` for a shape that the encoding can't have.
    fn matrix(&self, entry: &TensorEntry) -> Result<(u64, u64)>;

    /// Decodes `rows` into `out`, which has room for just these.
    ///
    /// # Errors
    /// As for decoding.
    fn rows(&self, asked: &Request<'_, R>, rows: Range<u64>, out: &mut [u8]) -> Result<()>;

    /// Decodes `rows`, which have columns, and gives them to `emit` in order, some at a time, or
    /// pieces of long ones.
    ///
    /// # Errors
    /// As for decoding, and whatever `emit` returns.
    fn tiles(&self, asked: &Request<'_, R>, rows: Range<u64>, emit: Emit<'_>) -> Result<()>;

    /// About how many bytes of memory [`TensorReader::tiles`] needs where stored bytes up to
    /// `whole_bytes` may be kept.
    fn cost(&self, view: &TensorView<'_, R>, whole_bytes: u64) -> u64;
}

/// A tile of up to eight bytes a weight, and what it is made from.
pub(super) fn tile_cost(entry: &TensorEntry) -> u64 {
    let decoded = entry.dtype.tensor_bytes(&entry.shape).unwrap_or(u64::MAX);
    decoded.saturating_mul(2).min(3 * RAW_PIECE_BYTES) + (1 << 20)
}

/// Ranges of rows of about [`TILE_WEIGHTS`] each.
pub(super) fn tiles_of(rows: Range<u64>, cols: u64) -> impl Iterator<Item = Range<u64>> {
    let step = (TILE_WEIGHTS / cols).max(1);
    let mut row = rows.start;
    std::iter::from_fn(move || {
        let tile = row..row.saturating_add(step).min(rows.end);
        row = tile.end;
        Some(tile).filter(|tile| !tile.is_empty())
    })
}
