//! A row to multiply as the kernels get it: its bits as stored or repacked, and its factors.

use crate::kernels::planes::{BLOCK, BLOCK_BYTES, LevelTable};
use crate::kernels::simd::scalar;
#[cfg(target_arch = "x86_64")]
use crate::kernels::target::STEPS;

/// Rows of activations that kernels multiply at a time: their sums stay in registers.
pub(crate) const MOST: usize = 4;
/// Bytes of a block in [`Packed::Nibbles`]: as many as five planes have.
pub(super) const NIBBLE_BYTES: usize = 5 * BLOCK_BYTES;

/// A row for [`RowDot`](super::RowDot): its bits as stored, or repacked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowBits<'a> {
    /// The bytes of each plane read, most significant first.
    Planes(&'a [&'a [u8]]),
    /// Bytes of [`Packed`].
    Packed(&'a [u8]),
}

/// The forms of a repacked row. Each block of 256 columns is by itself; its codes are in the order
/// of [`Int8Row::strided`](super::Int8Row::strided).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    /// Up to five planes: four times 32 bytes with the low four bits of codes `k` and `k + 4`, then
    /// 32 bytes with the fifth bits of all eight.
    Nibbles,
    /// More: the levels, one byte each.
    Levels,
}

impl Packed {
    /// The form for rows read as `read` planes.
    pub(crate) fn of(read: usize) -> Self {
        if read <= 5 { Self::Nibbles } else { Self::Levels }
    }

    /// Bytes of a row of `cols` columns.
    pub(crate) fn row_bytes(self, cols: usize) -> usize {
        let block = if self == Self::Nibbles { NIBBLE_BYTES } else { BLOCK };
        cols.div_ceil(BLOCK) * block
    }
}

/// Repacks one row, given its planes and its level table.
///
/// # Panics
/// When `out` has not [`Packed::row_bytes`].
pub(crate) fn pack_row(planes: &[&[u8]], levels: &[i8], cols: usize, out: &mut [u8]) {
    let form = Packed::of(planes.len());
    assert_eq!(out.len(), form.row_bytes(cols), "bytes of a row");
    out.fill(0);
    for b in 0..cols.div_ceil(8) {
        let codes = scalar::codes(planes, b);
        let (block, b) = (b / BLOCK_BYTES, b % BLOCK_BYTES);
        match form {
            Packed::Nibbles => {
                let out = &mut out[block * NIBBLE_BYTES..][..NIBBLE_BYTES];
                for (k, code) in codes.iter().enumerate() {
                    out[BLOCK_BYTES * (k % 4) + b] |= (code & 15) << (k / 4 * 4);
                    out[4 * BLOCK_BYTES + b] |= (code >> 4) << k;
                }
            }
            Packed::Levels => {
                for (k, code) in codes.iter().enumerate() {
                    let level = levels[usize::from(*code)];
                    out[block * BLOCK + BLOCK_BYTES * k + b] = level.cast_unsigned();
                }
            }
        }
    }
}

/// What the kernels get: one row, its factors, and up to [`MOST`] rows of activations.
pub(super) struct DotRow<'a> {
    pub read: usize,
    pub unit16: bool,
    pub cols: usize,
    pub levels: &'a LevelTable,
    /// For each row of activations, step times activation scale of each unit, padded with zeros to
    /// whole blocks.
    pub factors: &'a [Vec<f32>; MOST],
}

/// The steps as binary32, for kernels that look them up by index.
#[cfg(target_arch = "x86_64")]
pub(super) const STEP_VALUES: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = STEPS[i] as f32;
        i += 1;
    }
    values
};
