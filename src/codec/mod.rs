//! Codes, planes, levels and values: what `planes` tensors decode to (spec/codec.md).
//!
//! The safe API here checks lengths and values; the loops themselves are in `kernels`.

mod convert;
pub mod exact;
mod layout;
mod levels;
mod overlay;
mod quantize;
pub mod reference;
mod run;
mod scale_grid;
mod value;

pub use crate::kernels::STEPS;
pub use convert::convert_raw;
pub(crate) use convert::read_f32;
pub(crate) use layout::RunCursor;
pub use layout::{PlaneCounts, PlaneLayout, RowRun};
pub(crate) use levels::OwnedLevels;
pub use levels::{LevelSet, Levels};
pub use overlay::Factors;
pub(crate) use overlay::round_to;
pub(crate) use quantize::not_finite;
pub use quantize::{EncodedRows, RowEncoder};
pub use run::{RunBytes, RunDecoder};
#[cfg(feature = "checkpoints")]
pub(crate) use scale_grid::{POINTS, ScaleGrid, scale_bits};
pub(crate) use value::scale_f32;
