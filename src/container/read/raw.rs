//! The encoding `raw`: source bytes as they are.

use std::ops::Range;

use super::open::TensorView;
use super::reader::{Emit, RAW_PIECE_BYTES, Request, TensorReader, tile_cost};
use crate::error::Result;
use crate::format::{PartKind, TensorEntry, elements};
use crate::storage::ReadAt;

/// Reads raw tensors.
pub(super) struct Raw;

impl<R: ReadAt> TensorReader<R> for Raw {
    /// First dimension and the rest.
    fn matrix(&self, entry: &TensorEntry) -> Result<(u64, u64)> {
        // Whole bytes a row: element types of 4 and 6 bits are read as one row.
        Ok(match entry.shape.split_first() {
            Some((&rows, rest)) if entry.dtype.tensor_bytes(rest).is_some() => {
                (rows, elements(rest).unwrap_or(0))
            }
            _ => (1, elements(&entry.shape).unwrap_or(0)),
        })
    }

    fn rows(&self, asked: &Request<'_, R>, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        let Some(part) = asked.view.part(PartKind::Data) else { return Ok(()) };
        let bytes = asked.view.container().read_part(part, self.bytes_of(&asked.view, rows)?)?;
        out.copy_from_slice(&asked.convert(bytes));
        Ok(())
    }

    /// Raw tensors go in pieces of whole chunks, whatever their shape: a row may be as long as the
    /// tensor.
    fn tiles(&self, asked: &Request<'_, R>, rows: Range<u64>, emit: Emit<'_>) -> Result<()> {
        let Some(part) = asked.view.part(PartKind::Data) else { return Ok(()) };
        let Range { start: mut from, end } = self.bytes_of(&asked.view, rows)?;
        while from < end {
            // Elements of two bytes and more never straddle a piece: both are powers of two.
            let to = end.min((from / RAW_PIECE_BYTES + 1) * RAW_PIECE_BYTES);
            let bytes = asked.view.container().read_part(part, from..to)?;
            emit(&asked.convert(bytes))?;
            from = to;
        }
        Ok(())
    }

    fn cost(&self, view: &TensorView<'_, R>, _: u64) -> u64 {
        tile_cost(view.entry())
    }
}

impl Raw {
    /// Where rows lie in the data part.
    fn bytes_of<R: ReadAt>(
        &self,
        view: &TensorView<'_, R>,
        rows: Range<u64>,
    ) -> Result<Range<u64>> {
        let (_, cols) = TensorReader::<R>::matrix(self, view.entry())?;
        let row_bits = u128::from(cols) * u128::from(view.dtype().bits());
        let at = |row: u64| u64::try_from(u128::from(row) * row_bits / 8).expect("within the part");
        Ok(at(rows.start)..at(rows.end))
    }
}
