//! Adding the exact rung to a pack: residuals of its planes, coded tensors without a base, heads of
//! the source's files.
//!
//! Models and coding are left to `codec::exact`, writing to `container`, copying of the other parts
//! to `edit`. `pack` calls the room for `--exact` and `--exact-only`, the tool for `--onto`.

mod adder;
mod options;
mod rows;
mod spool;

pub(crate) use adder::{Adder, SAMPLE_WEIGHTS};
pub(crate) use options::estimate;
pub use options::{ExactOptions, ExactReport};
pub(crate) use rows::{SourceRows, shape_of};
