//! Products of rows of planes with activations: what callers hold, and the choice among the
//! kernels.
//!
//! Unlike decoded values and encoded bytes, sums here may differ between kernels in their last
//! bits: each adds in the order that suits it.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod row;
mod scalar;

use self::activations::{SCALE_COLS, round};
use self::row::DotRow;
use super::choice::{Kernel, dispatch};
use super::memory::Aligned;
use super::planes::{BLOCK, LevelTable, UNIT16, spread_steps, step_bytes, unit_columns};

pub(crate) use self::activations::Int8Row;
pub(crate) use self::row::{MOST, Packed, RowBits, pack_row};

impl Int8Row {
    /// Rounds to 8 bits with one scale for each 32 values: the largest magnitude becomes 127.
    pub(crate) fn new(x: &[f32]) -> Self {
        let len = x.len().next_multiple_of(BLOCK);
        let mut values = Aligned::<i8>::new(len);
        let mut scales = Aligned::<f32>::new(len / SCALE_COLS);
        // SAFETY: the CPU has what the kernel needs, as was detected.
        dispatch!(unsafe Kernel::detect(),
            x86 => avx2::round(x, &mut values, &mut scales),
            _ => round(x, &mut values, &mut scales),
        );
        Self::of(values, scales)
    }
}

/// Multiplies rows that share a level table with activations.
#[derive(Debug)]
pub(crate) struct RowDot<'a> {
    kernel: Kernel,
    read: usize,
    unit16: bool,
    group_units: usize,
    levels: &'a LevelTable,
    units: Vec<u8>,
    factors: [Vec<f32>; MOST],
}

impl<'a> RowDot<'a> {
    /// For rows read as `read` planes; `group` as in `RowDecoder::new`.
    ///
    /// # Panics
    /// When the CPU can't run `kernel`.
    pub(crate) fn new(kernel: Kernel, levels: &'a LevelTable, read: usize, group: usize) -> Self {
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        let unit16 = group == UNIT16;
        Self {
            kernel,
            read,
            unit16,
            group_units: group / unit_columns(unit16),
            levels,
            units: Vec::new(),
            factors: Default::default(),
        }
    }

    /// Writes the products of a row of `cols` columns (without its row scale) with each row of `x`
    /// to `out`.
    ///
    /// # Panics
    /// When a slice has not the size that `cols` needs, or there are more than [`MOST`] rows.
    pub(crate) fn dot(
        &mut self,
        row: RowBits<'_>,
        steps: &[u8],
        cols: usize,
        x: &[&Int8Row],
        out: &mut [f32],
    ) {
        let blocks = cols.div_ceil(BLOCK);
        assert!(x.len() <= MOST && x.len() == out.len(), "rows of activations");
        assert!(
            x.iter().all(|x| x.values.len() == blocks * BLOCK
                && x.strided.len() == x.values.len()
                && x.laned.len() == x.values.len()
                && x.scales.len() * SCALE_COLS == x.values.len()
                && x.fix.len() * 4 == x.values.len()
                && x.fix_both.len() * 8 == x.values.len()),
            "columns"
        );
        match row {
            RowBits::Planes(planes) => {
                assert_eq!(planes.len(), self.read, "planes");
                assert!(planes.iter().all(|p| p.len() == cols.div_ceil(8)), "bytes of a plane");
            }
            RowBits::Packed(bytes) => {
                assert_eq!(bytes.len(), Packed::of(self.read).row_bytes(cols), "bytes of a row");
            }
        }
        let unit = unit_columns(self.unit16);
        let group_cols = self.group_units * unit;
        assert_eq!(steps.len(), step_bytes(cols, group_cols), "bytes of the steps");
        let n_units = blocks * BLOCK / unit;
        // Kernels look at the factors of missing rows too.
        self.factors.iter_mut().for_each(|f| f.resize(n_units, 0.0));
        let spread = !(self.group_units == 1 && has_unit_factors(self.kernel, self.unit16));
        if spread {
            spread_steps(&mut self.units, steps, self.group_units, n_units);
        }
        for (factors, x) in self.factors.iter_mut().zip(x) {
            // SAFETY: `new` asserted that the CPU has what the kernel needs.
            dispatch!(unsafe self.kernel,
                avx512 if !spread => avx512::unit_factors(steps, &x.scales, factors),
                avx2 if !spread => avx2::unit_factors(steps, &x.scales, factors),
                neon if !self.unit16 => neon::unit_factors(&self.units, &x.scales, factors),
                _ => scalar::unit_factors(&self.units, &x.scales, SCALE_COLS / unit, factors),
            );
        }
        let row_of = DotRow {
            read: self.read,
            unit16: self.unit16,
            cols,
            levels: self.levels,
            factors: &self.factors,
        };
        match (self.kernel, row) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` asserted that the CPU has what the kernel needs.
            (Kernel::Avx512, RowBits::Planes(planes)) => unsafe {
                avx512::dot(&row_of, planes, x, out);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; what runs AVX-512 runs AVX2.
            (Kernel::Avx512 | Kernel::Avx2, _) if !self.unit16 => unsafe {
                avx2::dot(&row_of, row, x, out);
            },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: as above.
            (Kernel::Neon, _) if !self.unit16 => unsafe {
                neon::dot(&row_of, row, x, out);
            },
            _ => scalar::dot(&row_of, row, x, out),
        }
    }
}

/// Whether the kernel makes factors from the steps as they are stored.
fn has_unit_factors(kernel: Kernel, unit16: bool) -> bool {
    matches!(kernel, Kernel::Avx2 | Kernel::Avx512) && !unit16
}

/// The sum of the products of `a` and `b`, in binary32 in some order.
///
/// # Panics
/// When the CPU can't run `kernel`.
pub(crate) fn dot_f32(kernel: Kernel, a: &[f32], b: &[f32]) -> f32 {
    assert!(kernel.is_available(), "kernel {kernel} can't run here");
    // SAFETY: the CPU has what the kernel needs, as was asserted.
    dispatch!(unsafe kernel,
        avx512 => avx512::dot_f32(a, b),
        avx2 => avx2::dot_f32(a, b),
        neon => neon::dot_f32(a, b),
        _ => scalar::dot_f32(a, b),
    )
}
