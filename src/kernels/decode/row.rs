//! A row to decode as the kernels get it, and the tables that they fill.

use crate::kernels::planes::unit_columns;
use crate::kernels::target::Float;

/// Bytes of the tables of one step: 64 values of two bytes, or 32 of four.
pub(super) const TABLE_BYTES: usize = 128;

/// The values of all codes at each of the 16 steps of a row, in the form the kernel looks them up.
/// A row has far more weights than 16 tables have entries, so rounding once for each entry is
/// cheap.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub(super) struct Tables(pub [[u8; TABLE_BYTES]; 16]);

/// One row (or a piece of one that starts at a multiple of 256 columns), ready for a kernel.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Bytes of the row in each plane read, most significant first.
    pub planes: &'a [&'a [u8]],
    /// The step index of each unit of columns, below 16, and 16 more entries.
    pub units: &'a [u8],
    /// Scale times step, for each step index.
    pub factors: &'a [f32; 16],
    /// The step indices that occur, one bit for each (and perhaps others: tables are filled for
    /// all).
    pub used: u16,
}

/// How rows are decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Planes read, 3 to 8.
    pub read: usize,
    /// What is written.
    pub float: Float,
    /// Whether a unit is 16 columns; otherwise it is 32.
    pub unit16: bool,
}

impl Shape {
    /// Columns of a unit: all of them share a step.
    pub fn unit(self) -> usize {
        unit_columns(self.unit16)
    }

    /// Whether values come from [`Tables`] (kernels may know better for binary32).
    pub fn has_tables(self) -> bool {
        self.float.bytes() == 2 && self.read <= 6
    }
}
