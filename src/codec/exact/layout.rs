//! The cut of a tensor into blocks that are coded each by itself (UC-EXA-4).

use std::ops::Range;

use crate::codec::{PlaneCounts, PlaneLayout};
use crate::error::{Error, Result};
use crate::format::{MAX_PLANES, MIN_PLANES, elements};
use crate::memory::to_usize;
use crate::rule::Rule;

/// Most weights of a block.
pub(crate) const BLOCK_WEIGHTS: u64 = 1 << 16;

/// Bytes of a residual before the lengths of its blocks: names of six models and the number of
/// blocks.
pub(crate) const RESIDUAL_HEADER_BYTES: u64 = 52;

/// One block: stored rows of one native count, or some columns of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// Native planes of the rows, or 0 when the tensor has none.
    pub native: u8,
    /// Its place in the part.
    pub number: usize,
    /// Rows in storage order.
    pub rows: Range<u64>,
    /// Columns; all of them unless a row is longer than a block.
    pub cols: Range<u64>,
}

/// Rows and columns of a coded tensor without a base (UC-EXA-10).
///
/// # Errors
/// `Malformed(UC-EXA-10)` when there is no such view, or it is empty.
pub(crate) fn coded_matrix(shape: &[u64], row_dims: u8) -> Result<(u64, u64)> {
    let view = shape.split_at_checked(usize::from(row_dims));
    let sizes = view.and_then(|(r, c)| Some((elements(r)?, elements(c)?)));
    match sizes {
        Some((rows @ 1.., cols @ 1..)) => Ok((rows, cols)),
        _ => Err(Error::malformed(
            Rule::EXA_10,
            format!("shape {shape:?} with {row_dims} row dimensions is no matrix"),
        )),
    }
}

impl Block {
    pub(crate) fn weights(&self) -> u64 {
        (self.rows.end - self.rows.start) * (self.cols.end - self.cols.start)
    }
}

/// The blocks of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct ExactLayout {
    cols: u64,
    /// Native planes and stored rows, in storage order.
    runs: Vec<(u8, Range<u64>)>,
}

impl ExactLayout {
    /// Of a `planes` tensor.
    pub(crate) fn of_planes(layout: &PlaneLayout, counts: &PlaneCounts) -> Self {
        let runs = match counts {
            PlaneCounts::Uniform(n) => vec![(*n, 0..layout.rows)],
            PlaneCounts::PerRow(_) => {
                let with = counts.rows_with(layout.rows);
                let above = |n: u8| with.get(usize::from(n)).copied().unwrap_or(0);
                let run = |n: u8| (n, above(n)..with[usize::from(n) - 1]);
                (MIN_PLANES..=MAX_PLANES)
                    .rev()
                    .map(run)
                    .filter(|(_, rows)| !rows.is_empty())
                    .collect()
            }
        };
        Self { cols: layout.cols, runs }
    }

    /// Of a tensor without planes.
    pub(crate) fn of_raw(rows: u64, cols: u64) -> Self {
        Self { cols, runs: vec![(0, 0..rows)] }
    }

    pub(crate) fn cols(&self) -> u64 {
        self.cols
    }

    /// Native planes and stored rows, in storage order.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn runs(&self) -> &[(u8, Range<u64>)] {
        &self.runs
    }

    /// Native counts that occur.
    pub(crate) fn natives(&self) -> impl Iterator<Item = u8> + '_ {
        self.runs.iter().map(|(native, _)| *native)
    }

    /// Rows of a block, and the pieces that a row is cut into.
    fn cut(&self) -> (u64, u64) {
        ((BLOCK_WEIGHTS / self.cols).max(1), self.cols.div_ceil(BLOCK_WEIGHTS))
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> Result<usize> {
        let (step, pieces) = self.cut();
        let blocks = |r: &Range<u64>| (r.end - r.start).div_ceil(step).saturating_mul(pieces);
        to_usize(self.runs.iter().fold(0u64, |n, (_, rows)| n.saturating_add(blocks(rows))))
    }

    /// The blocks that hold stored rows `rows`, in order.
    pub(crate) fn blocks(&self, rows: Range<u64>) -> Result<Vec<Block>> {
        let (step, pieces) = self.cut();
        let mut blocks = vec![];
        let mut number = 0;
        for (native, run) in &self.runs {
            let (from, to) = (rows.start.max(run.start), rows.end.min(run.end));
            if from < to {
                let first = (from - run.start) / step;
                let last = (to - 1 - run.start) / step;
                for i in first..=last {
                    let start = run.start + i * step;
                    for piece in 0..pieces {
                        let col = piece * BLOCK_WEIGHTS;
                        blocks.push(Block {
                            native: *native,
                            number: to_usize(number + i * pieces + piece)?,
                            rows: start..run.end.min(start + step),
                            cols: col..self.cols.min(col + BLOCK_WEIGHTS),
                        });
                    }
                }
            }
            number += (run.end - run.start).div_ceil(step) * pieces;
        }
        Ok(blocks)
    }
}

/// What a residual begins with: the models by native planes less 3, and the number of blocks.
///
/// # Errors
/// `InvalidArgument` for too many blocks.
#[cfg(feature = "checkpoints")]
pub(crate) fn residual_header(models: &[[u8; 8]; 6], blocks: usize) -> Result<Vec<u8>> {
    let n = u32::try_from(blocks).map_err(|_| Error::argument("too many blocks"))?;
    Ok(models.iter().flatten().copied().chain(n.to_le_bytes()).collect())
}
