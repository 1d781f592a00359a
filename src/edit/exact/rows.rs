//! Source elements in the order in which a pack stores them.

use crate::codec::PlaneCounts;
use crate::codec::exact::Block;
use crate::error::{Error, Result};
use crate::memory::to_usize;
use crate::source::{Source, SourceTensor};

/// Rows and columns of a block.
pub(crate) fn shape_of(block: &Block) -> Result<(usize, usize)> {
    let rows = to_usize(block.rows.end - block.rows.start)?;
    Ok((rows, to_usize(block.cols.end - block.cols.start)?))
}

/// Rows of a source tensor in the order in which a pack stores them.
pub(crate) struct SourceRows<'a> {
    source: &'a Source,
    tensor: &'a SourceTensor,
    cols: u64,
    /// The row at each place, when it is another.
    order: Option<Vec<u64>>,
}

impl<'a> SourceRows<'a> {
    pub(crate) fn new(
        source: &'a Source,
        name: &str,
        cols: u64,
        counts: &PlaneCounts,
    ) -> Result<Self> {
        let missing = || Error::source_file("has no such tensor").in_tensor(name);
        let tensor = source.tensor(name).ok_or_else(missing)?;
        let order = match counts {
            PlaneCounts::Uniform(_) => None,
            PlaneCounts::PerRow(counts) => {
                let mut order: Vec<u64> = (0..counts.len() as u64).collect();
                let mut keyed: Vec<_> = order.drain(..).zip(counts).collect();
                keyed.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
                Some(keyed.into_iter().map(|(row, _)| row).collect())
            }
        };
        Ok(Self { source, tensor, cols, order })
    }

    /// The elements of a block.
    pub(crate) fn read(&self, block: &Block) -> Result<Vec<u8>> {
        let size = self.tensor.dtype.bits() / 8;
        let width = block.cols.end - block.cols.start;
        let rows = block.rows.clone();
        // Pieces of rows come one row at a time.
        let contiguous = |from: u64, n: u64| {
            let at = (from * self.cols + block.cols.start) * size;
            self.source.read(self.tensor, at, n * width * size)
        };
        let Some(order) = &self.order else {
            return contiguous(rows.start, rows.end - rows.start);
        };
        let rows_of_block = &order[to_usize(rows.start)?..to_usize(rows.end)?];
        let mut all = Vec::with_capacity(to_usize(block.weights() * size)?);
        for run in rows_of_block.chunk_by(|a, b| a + 1 == *b) {
            all.extend(contiguous(run[0], run.len() as u64)?);
        }
        Ok(all)
    }
}
