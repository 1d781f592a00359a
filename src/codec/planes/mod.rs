//! The encoding `planes`: layout, level tables, values, and the uncalibrated encoder
//! (spec/codec.md).
//!
//! The loops are left to `kernels`, the calibrated encoder to `encoder`, bytes of files to
//! `container`. `container`, `matrix`, `encoder`, `pack`, `edit` and `codec::exact` call the room.

mod layout;
mod levels;
mod quantize;
pub mod reference;
mod run;
mod scale_grid;
mod value;

pub(crate) use layout::RunCursor;
pub use layout::{PlaneCounts, PlaneLayout, RowRun};
pub(crate) use levels::OwnedLevels;
#[cfg(feature = "checkpoints")]
pub(crate) use levels::TableSet;
pub use levels::{LevelSet, Levels};
pub(crate) use quantize::not_finite;
pub use quantize::{EncodedRows, RowEncoder};
pub use run::{RunBytes, RunDecoder};
#[cfg(feature = "checkpoints")]
pub(crate) use scale_grid::{POINTS, ScaleGrid, scale_bits};
pub(crate) use value::scale_f32;
