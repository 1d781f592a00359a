//! One row of planes to values: what the kernels share, and the choice between them.

use super::choice::Kernel;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use super::neon;
use super::scalar;
use super::target::{Float, STEPS};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Bytes of the tables of one step: 64 values of two bytes, or 32 of four.
const TABLE_BYTES: usize = 128;

/// The values of all codes at each of the 16 steps of a row, in the form the kernel looks them up. A
/// row has far more weights than 16 tables have entries, so rounding once for each entry is cheap.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub(super) struct Tables(pub [[u8; TABLE_BYTES]; 16]);

/// The levels of one table, by code; entries behind the last are zero.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub(crate) struct LevelTable {
    pub values: [f32; 256],
    pub bytes: [i8; 256],
}

impl LevelTable {
    /// # Panics
    /// When there are more than 256 levels.
    pub(crate) fn new(levels: &[i8]) -> Self {
        let mut table = Self { values: [0.0; 256], bytes: [0; 256] };
        table.bytes[..levels.len()].copy_from_slice(levels);
        for (value, level) in table.values.iter_mut().zip(levels) {
            *value = f32::from(*level);
        }
        table
    }
}

/// One row (or a piece of one that starts at a multiple of 256 columns), ready for a kernel.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Bytes of the row in each plane read, most significant first.
    pub planes: &'a [&'a [u8]],
    /// The step index of each unit of columns, below 16, and 16 more entries.
    pub units: &'a [u8],
    /// Scale times step, for each step index.
    pub factors: &'a [f32; 16],
    /// The step indices that occur, one bit for each (and perhaps others: tables are filled for all).
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
        if self.unit16 { 16 } else { 32 }
    }

    /// Whether values come from [`Tables`] (kernels may know better for binary32).
    pub fn has_tables(self) -> bool {
        self.float.bytes() == 2 && self.read <= 6
    }
}

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
    /// A decoder of rows read as `log2(levels.len())` planes. `group` is 0 for whole rows, otherwise a
    /// power of two from 16.
    ///
    /// # Panics
    /// When the CPU can't run `kernel`, or there are more than 256 levels.
    pub(crate) fn new(kernel: Kernel, levels: &[i8], group: usize, float: Float) -> Self {
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        let read = levels.len().ilog2() as usize;
        let shape = Shape { read, float, unit16: group == 16 };
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
        let groups = match self.group_units {
            0 => 0,
            units => cols.div_ceil(units * self.shape.unit()),
        };
        assert_eq!(steps.len(), groups.div_ceil(2), "bytes of the steps");
        // Subnormal scales would need care with instructions that flush.
        debug_assert!(scale.is_normal(), "row scale");
        // Kernels look at the units of whole blocks.
        let n = cols.div_ceil(self.shape.unit()) + 16;
        spread_steps(&mut self.units, steps, self.group_units, n);
        let factors = STEPS.map(|step| scale * f32::from(step));
        let used = used_steps(&self.units[..cols.div_ceil(self.shape.unit())], self.group_units);
        let row = Row { planes, units: &self.units, factors: &factors, used };
        // The scalar loops serve what a kernel has no loop for.
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` asserted that the CPU has what the kernel needs.
            Kernel::Avx512 if self.shape.float != Float::F64 => unsafe {
                avx512::decode_row(self.shape, &row, &self.levels, &mut self.tables, out);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernel::Avx2 if self.shape.float != Float::F64 => unsafe {
                avx2::decode_row(self.shape, &row, &self.levels, &mut self.tables, out);
            },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: as above.
            Kernel::Neon if self.shape.float != Float::F64 => unsafe {
                neon::decode_row(self.shape, &row, &self.levels, &mut self.tables, out);
            },
            _ => scalar::decode_row(self.shape, &row, &self.levels, &mut self.tables, out),
        }
    }
}

/// Fills `units` with the step index of each of `n` units; `group_units` of them share one, all when it
/// is 0.
pub(super) fn spread_steps(units: &mut Vec<u8>, steps: &[u8], group_units: usize, n: usize) {
    if group_units == 0 {
        units.clear();
        units.resize(n, 15);
        return;
    }
    units.resize(n, 0);
    if group_units == 1 {
        for (pair, byte) in units.as_chunks_mut::<2>().0.iter_mut().zip(steps) {
            *pair = [byte & 15, byte >> 4];
        }
        return;
    }
    for (pair, byte) in units.chunks_mut(2 * group_units).zip(steps) {
        let (even, odd) = pair.split_at_mut(group_units.min(pair.len()));
        even.fill(byte & 15);
        odd.fill(byte >> 4);
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
