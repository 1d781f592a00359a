//! A row of activations with 8-bit values, in the orders in which kernels want them.

use crate::kernels::memory::Aligned;
use crate::kernels::planes::{BLOCK, BLOCK_BYTES, UNIT};

/// Columns that share a scale: those of a unit, so that step times scale is one factor.
pub(crate) const SCALE_COLS: usize = UNIT;

/// One row of activations as `values * scales`, with 8-bit values.
#[derive(Debug, Clone)]
pub(crate) struct Int8Row {
    /// In order, padded with zeros.
    pub values: Aligned<i8>,
    /// In each block, value `8 b + k` at `32 k + b`: the order in which planes give up their bits
    /// most cheaply.
    pub strided: Aligned<i8>,
    /// One for each 32 columns, padded with zeros.
    pub scales: Aligned<f32>,
    /// In each 128 columns, value `32 u + 8 b + i` (for `u`, `b` below 4) at
    /// `64 (b / 2) + 32 (b % 2) + 8 u + i`: all columns of a unit of 32 in the same lanes of two
    /// vectors.
    pub laned: Aligned<i8>,
    /// For each four values of `laned` -128 times their sum: undoes that levels are biased by 128
    /// where an instruction wants them unsigned.
    pub fix: Aligned<i32>,
    /// Of each 128 columns, the sums of both vectors' fixes.
    pub fix_both: Aligned<i32>,
}

impl Int8Row {
    /// A row of `values`, one of `scales` for each [`SCALE_COLS`] of them, both padded with zeros
    /// to whole blocks.
    pub(super) fn of(values: Aligned<i8>, scales: Aligned<f32>) -> Self {
        let len = values.len();
        let mut strided = Aligned::<i8>::new(len);
        for (to, from) in strided.as_chunks_mut::<BLOCK>().0.iter_mut().zip(values.as_chunks().0) {
            transpose(from, to);
        }
        let mut laned = Aligned::<i8>::new(len);
        for (to, from) in laned.as_chunks_mut::<128>().0.iter_mut().zip(values.as_chunks::<128>().0)
        {
            let (to, from) = (to.as_chunks_mut::<8>().0, from.as_chunks::<8>().0);
            for u in 0..4 {
                for b in 0..4 {
                    to[4 * b + u] = from[4 * u + b];
                }
            }
        }
        let fix = laned.as_chunks::<4>().0.iter();
        let fix = fix.map(|v| -128 * v.iter().map(|&v| i32::from(v)).sum::<i32>());
        let fix: Vec<i32> = fix.collect();
        let blocks = fix.as_chunks::<32>().0.iter();
        let fix_both = blocks.flat_map(|f| (0..16).map(|i| f[i] + f[16 + i]));
        let fix_both = Aligned::from(&fix_both.collect::<Vec<_>>()[..]);
        let fix = Aligned::from(&fix[..]);
        Self { values, strided, scales, laned, fix, fix_both }
    }
}

/// Rounds each 32 of `x` to 8 bits with a scale. The same on every kernel: without SSE4.1 rounding
/// is a call for each number, which takes longer than multiplying a few rows.
#[inline]
pub(super) fn round(x: &[f32], values: &mut [i8], scales: &mut [f32]) {
    for ((x, values), scale) in
        x.chunks(SCALE_COLS).zip(values.chunks_mut(SCALE_COLS)).zip(scales.iter_mut())
    {
        let most = x.iter().fold(0f32, |m, v| if v.abs() > m { v.abs() } else { m });
        let inverse = 127.0 / most;
        // Zeros, and numbers too small for the bound (`matrix` says which).
        if !inverse.is_finite() {
            continue;
        }
        *scale = most / 127.0;
        for (value, x) in values.iter_mut().zip(x) {
            // Within 127, so that the conversion need not look for what doesn't fit.
            *value = (x * inverse).round_ties_even() as i32 as i8;
        }
    }
}

/// A block of [`Int8Row::strided`].
fn transpose(from: &[i8; BLOCK], to: &mut [i8; BLOCK]) {
    let (rows, _) = from.as_chunks::<8>();
    for (k, to) in to.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().enumerate() {
        for (to, row) in to.iter_mut().zip(rows) {
            *to = row[k];
        }
    }
}
