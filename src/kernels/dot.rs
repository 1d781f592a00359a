//! Products of rows of planes with activations.
//!
//! Unlike decoded values and encoded bytes, sums here may differ between kernels in their last bits:
//! each adds in the order that suits it.

use super::choice::Kernel;
use super::decode::{LevelTable, spread_steps};
use super::memory::Aligned;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use super::neon;
use super::scalar;
use super::target::STEPS;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Columns of a block; activations and packed rows are padded to whole blocks.
pub(crate) const BLOCK: usize = 256;
/// Columns that share a scale in [`Int8Row`].
pub(crate) const SCALE_COLS: usize = 32;
/// Rows of activations that kernels multiply at a time.
pub(crate) const MOST: usize = 4;
/// Bytes of a block in [`Packed::Nibbles`].
pub(super) const NIBBLE_BYTES: usize = 160;

/// One row of activations as `values * scales`, with 8-bit values.
#[derive(Debug, Clone)]
pub(crate) struct Int8Row {
    /// In order, padded with zeros.
    pub values: Aligned<i8>,
    /// In each block, value `8 b + k` at `32 k + b`: the order in which planes give up their bits most
    /// cheaply.
    pub strided: Aligned<i8>,
    /// One for each 32 columns, padded with zeros.
    pub scales: Aligned<f32>,
    /// In each 128 columns, value `32 u + 8 b + i` (for `u`, `b` below 4) at `64 (b / 2) + 32 (b % 2) + 8 u + i`:
    /// all columns of a unit of 32 in the same lanes of two vectors.
    pub laned: Aligned<i8>,
    /// For each four values of `laned` -128 times their sum: undoes that levels are biased by 128 where an
    /// instruction wants them unsigned.
    pub fix: Aligned<i32>,
    /// Of each 128 columns, the sums of both vectors' fixes.
    pub fix_both: Aligned<i32>,
}

impl Int8Row {
    /// Rounds to 8 bits with one scale for each 32 values: the largest magnitude becomes 127.
    pub(crate) fn new(x: &[f32]) -> Self {
        let len = x.len().next_multiple_of(BLOCK);
        let mut values = Aligned::<i8>::new(len);
        let mut scales = Aligned::<f32>::new(len / SCALE_COLS);
        match Kernel::detect() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has what the kernel needs.
            Kernel::Avx512 | Kernel::Avx2 => unsafe { avx2::round(x, &mut values, &mut scales) },
            _ => round(x, &mut values, &mut scales),
        }
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

/// Rounds each 32 of `x` to 8 bits with a scale. The same on every kernel: without SSE4.1 rounding is a call for each
/// number, which takes longer than multiplying a few rows.
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
    for (k, to) in to.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (to, row) in to.iter_mut().zip(rows) {
            *to = row[k];
        }
    }
}

/// A row for [`RowDot`]: its bits as stored, or repacked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowBits<'a> {
    /// The bytes of each plane read, most significant first.
    Planes(&'a [&'a [u8]]),
    /// Bytes of [`Packed`].
    Packed(&'a [u8]),
}

/// The forms of a repacked row. Each block of 256 columns is by itself; its codes are in the order of
/// [`Int8Row::strided`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    /// Up to five planes: four times 32 bytes with the low four bits of codes `k` and `k + 4`, then 32
    /// bytes with the fifth bits of all eight.
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
        let unit16 = group == 16;
        Self {
            kernel,
            read,
            unit16,
            group_units: group / if unit16 { 16 } else { 32 },
            levels,
            units: Vec::new(),
            factors: Default::default(),
        }
    }

    /// Writes the products of a row of `cols` columns (without its row scale) with each row of `x` to
    /// `out`.
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
        let unit = if self.unit16 { 16 } else { SCALE_COLS };
        let groups = match self.group_units {
            0 => 0,
            units => cols.div_ceil(units * unit),
        };
        assert_eq!(steps.len(), groups.div_ceil(2), "bytes of the steps");
        let n_units = blocks * BLOCK / unit;
        // Kernels look at the factors of missing rows too.
        self.factors.iter_mut().for_each(|f| f.resize(n_units, 0.0));
        let spread = !(self.group_units == 1 && has_unit_factors(self.kernel, self.unit16));
        if spread {
            spread_steps(&mut self.units, steps, self.group_units, n_units);
        }
        for (factors, x) in self.factors.iter_mut().zip(x) {
            match self.kernel {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `new` asserted that the CPU has what the kernel needs.
                Kernel::Avx512 if !spread => unsafe {
                    avx512::unit_factors(steps, &x.scales, factors);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Kernel::Avx2 if !spread => unsafe {
                    avx2::unit_factors(steps, &x.scales, factors);
                },
                #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
                // SAFETY: as above.
                Kernel::Neon if !self.unit16 => unsafe {
                    neon::unit_factors(&self.units, &x.scales, factors);
                },
                _ => {
                    let per_scale = SCALE_COLS / unit;
                    for (u, (factor, k)) in factors.iter_mut().zip(&self.units).enumerate() {
                        *factor = f32::from(STEPS[usize::from(k & 15)]) * x.scales[u / per_scale];
                    }
                }
            }
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
        let (block, b) = (b / 32, b % 32);
        match form {
            Packed::Nibbles => {
                let out = &mut out[block * NIBBLE_BYTES..][..NIBBLE_BYTES];
                for (k, code) in codes.iter().enumerate() {
                    out[32 * (k % 4) + b] |= (code & 15) << (k / 4 * 4);
                    out[128 + b] |= (code >> 4) << k;
                }
            }
            Packed::Levels => {
                for (k, code) in codes.iter().enumerate() {
                    let level = levels[usize::from(*code)];
                    out[block * BLOCK + 32 * k + b] = level.cast_unsigned();
                }
            }
        }
    }
}

/// The sum of the products of `a` and `b`, in binary32 in some order.
///
/// # Panics
/// When the CPU can't run `kernel`.
pub(crate) fn dot_f32(kernel: Kernel, a: &[f32], b: &[f32]) -> f32 {
    assert!(kernel.is_available(), "kernel {kernel} can't run here");
    match kernel {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has what the kernel needs.
        Kernel::Avx512 => unsafe { avx512::dot_f32(a, b) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kernel::Avx2 => unsafe { avx2::dot_f32(a, b) },
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        // SAFETY: as above.
        Kernel::Neon => unsafe { neon::dot_f32(a, b) },
        _ => scalar::dot_f32(a, b),
    }
}
