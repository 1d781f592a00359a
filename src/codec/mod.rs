//! Between stored codes and values: what tensors decode to (spec/codec.md, spec/exact.md,
//! spec/overlay.md).
//!
//! Each encoding has a room; shared files lie beside them. The safe API here checks lengths and
//! values; the loops themselves are in `kernels`. Files are the business of `container`.

mod convert;
pub mod exact;
mod overlay;
mod planes;

pub use crate::kernels::STEPS;
pub use convert::convert_raw;
pub(crate) use convert::read_f32;
pub use overlay::Factors;
pub(crate) use overlay::round_to;
pub use planes::{
    EncodedRows, LevelSet, Levels, PlaneCounts, PlaneLayout, RowEncoder, RowRun, RunBytes,
    RunDecoder, reference,
};
pub(crate) use planes::{OwnedLevels, RunCursor, not_finite, scale_f32};
#[cfg(feature = "checkpoints")]
pub(crate) use planes::{POINTS, ScaleGrid, TableSet, scale_bits};
