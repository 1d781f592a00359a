//! Rows of planes to values: the decoder that callers hold, and the choice among its kernels.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod row;
mod scalar;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod to;

use self::row::{Row, Shape, TABLE_BYTES, Tables};
use super::choice::{Kernel, dispatch};
use super::planes::{LevelTable, UNIT16, spread_steps, step_bytes};
use super::target::{Float, STEPS};

/// Decodes rows that share a level table.
#[derive(Debug)]
pub(crate) struct RowDecoder {
    kernel: Kernel,
    shape: Shape,
    /// Units that share a step; 0 when whole rows do.
    group_units: usize,
    levels: Box<LevelTable>,
    tables: Box<Tables>,
    units: Vec<u8>,
}

impl RowDecoder {
    /// A decoder of rows read as `log2(levels.len())` planes. `group` is 0 for whole rows,
    /// otherwise a power of two from 16.
    ///
    /// # Panics
    /// When the CPU can't run `kernel`, or there are more than 256 levels.
    pub(crate) fn new(kernel: Kernel, levels: &[i8], group: usize, float: Float) -> Self {
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        let read = levels.len().ilog2() as usize;
        let shape = Shape { read, float, unit16: group == UNIT16 };
        Self {
            kernel,
            shape,
            group_units: group / shape.unit(),
            levels: Box::new(LevelTable::new(levels)),
            tables: Box::new(Tables([[0; TABLE_BYTES]; 16])),
            units: Vec::new(),
        }
    }

    /// Decodes a row of `cols` columns into `out`, little-endian.
    ///
    /// # Panics
    /// When a slice has not the size that `cols` needs.
    pub(crate) fn decode(
        &mut self,
        planes: &[&[u8]],
        steps: &[u8],
        scale: f32,
        cols: usize,
        out: &mut [u8],
    ) {
        assert_eq!(planes.len(), self.shape.read, "planes");
        assert!(planes.iter().all(|p| p.len() == cols.div_ceil(8)), "bytes of a plane");
        assert_eq!(out.len(), cols * self.shape.float.bytes(), "bytes of the output");
        let group_cols = self.group_units * self.shape.unit();
        assert_eq!(steps.len(), step_bytes(cols, group_cols), "bytes of the steps");
        // Subnormal scales would need care with instructions that flush.
        debug_assert!(scale.is_normal(), "row scale");
        // Kernels look at the units of whole blocks.
        let n = cols.div_ceil(self.shape.unit()) + 16;
        spread_steps(&mut self.units, steps, self.group_units, n);
        let factors = STEPS.map(|step| scale * f32::from(step));
        let used = used_steps(&self.units[..cols.div_ceil(self.shape.unit())], self.group_units);
        let row = Row { planes, units: &self.units, factors: &factors, used };
        let (shape, levels, tables) = (self.shape, &self.levels, &mut self.tables);
        // The scalar loops serve what a kernel has no loop for.
        let has_loop = shape.float != Float::F64;
        // SAFETY: `new` asserted that the CPU has what the kernel needs.
        dispatch!(unsafe self.kernel,
            avx512 if has_loop => avx512::decode_row(shape, &row, levels, tables, out),
            avx2 if has_loop => avx2::decode_row(shape, &row, levels, tables, out),
            neon if has_loop => neon::decode_row(shape, &row, levels, tables, out),
            _ => scalar::decode_row(shape, &row, levels, tables, out),
        );
    }
}

/// The steps that a row's units use, one bit for each. Long rows are taken to use all.
fn used_steps(units: &[u8], group_units: usize) -> u16 {
    match units {
        _ if group_units == 0 => 1 << 15,
        units if units.len() > 24 => u16::MAX,
        units => units.iter().fold(0, |mask, &k| mask | 1 << (k & 15)),
    }
}
