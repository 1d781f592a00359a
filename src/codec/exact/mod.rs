//! The exact rung: from decoded values back to the source's bits (spec/exact.md).
//!
//! [`ExactModel`] says where a weight is expected, given its code and scale, and how likely each
//! distance is; `block` and `encode` code blocks of weights by it, `fit` makes models.

mod block;
#[cfg(feature = "checkpoints")]
mod encode;
#[cfg(feature = "checkpoints")]
pub(crate) mod fit;
mod layout;
mod model;
mod tables;

pub(crate) use block::{BlockBase, BlockCoder, BlockTables};
#[cfg(feature = "checkpoints")]
pub(crate) use encode::{BlockEncoder, EncoderTables};
#[cfg(feature = "checkpoints")]
pub(crate) use fit::{best_reference, reference_hint};
#[cfg(feature = "checkpoints")]
pub(crate) use layout::residual_header;
pub(crate) use layout::{Block, ExactLayout, RESIDUAL_HEADER_BYTES, coded_matrix};
#[cfg(feature = "checkpoints")]
pub(crate) use model::NO_BASE;
pub(crate) use model::exact_model_name;
pub use model::{ExactModel, ExactTable};
pub(crate) use tables::ExactTables;

use crate::error::Result;
use crate::kernels::Kernel;

/// Decodes one block by itself, for fuzzing: codes, how many columns share a factor, and factors
/// (ignored without a base), rows and columns, and the bytes of the block.
///
/// # Errors
/// `Malformed` for a block that a reader refuses.
///
/// # Panics
/// When codes and factors don't fit rows and columns.
#[doc(hidden)]
pub fn decode_block(
    model: &ExactModel,
    levels: Option<&[i8]>,
    kernel: Kernel,
    (codes, group, factors): (&[u8], usize, &[f32]),
    (rows, cols): (usize, usize),
    block: &[u8],
) -> Result<Vec<u8>> {
    let mut coder = BlockCoder::new(BlockTables::new(model, levels, kernel)?.into());
    let base = match levels {
        Some(_) => BlockBase::Planes { codes, group, factors },
        None => BlockBase::None,
    };
    let mut out = vec![0; rows * cols * usize::try_from(model.dtype.bits() / 8).unwrap_or(8)];
    coder.decode(block, &base, (rows, cols), &mut out)?;
    Ok(out)
}
