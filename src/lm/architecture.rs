//! The trait [`Network`]: a model as blocks that are run one at a time.

use std::collections::BTreeMap;

use candle_core::{Result as CandleResult, Tensor};

use super::linear::Pass;
use super::weights::Weights;
use crate::error::Result;

/// A language model as a stack of blocks that can be run one at a time: `embed`, then each `block`,
/// then `head`. States are `[batch, n, hidden]`, logits `[batch, n, vocab]`.
pub(crate) trait Network: Send + Sync {
    /// How many blocks there are.
    fn blocks(&self) -> usize;
    /// Reads the weights of block `i`, or lets go of them. Blocks run only while they are held.
    fn hold(&mut self, i: usize, weights: Option<&Weights<'_>>) -> Result<()>;
    /// States of tokens `[batch, n]`.
    fn embed(&self, ids: &Tensor) -> CandleResult<Tensor>;
    /// States after block `i`.
    fn block(&self, i: usize, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor>;
    /// Logits of the last block's states.
    fn head(&self, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor>;
}

/// Rows of an embedding table.
pub(super) fn embed(table: &Tensor, ids: &Tensor) -> CandleResult<Tensor> {
    let (batch, n) = ids.dims2()?;
    table.index_select(&ids.flatten_all()?, 0)?.reshape((batch, n, table.dim(1)?))
}

/// A block that is held.
pub(super) fn held<T>(blocks: &BTreeMap<usize, T>, i: usize) -> CandleResult<&T> {
    blocks.get(&i).ok_or_else(|| candle_core::Error::Msg(format!("block {i} isn't held")))
}
