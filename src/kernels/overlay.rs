//! Adding the product of two thin factors to decoded values (spec/overlay.md).
//!
//! Sums of int8 products are exact integers, and the rest are three roundings in a stated order, so
//! every kernel gives the same bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::choice::{Kernel, dispatch};

/// Columns that one step of the kernels has.
const STEP: usize = 16;
/// Bytes of B that stay in the nearest cache while all rows go by.
const NEAR_BYTES: usize = 24 << 10;

/// int8 factors, laid out for products of pairs.
#[derive(Debug, Clone)]
pub(crate) struct Int8Factors {
    rows: usize,
    cols: usize,
    /// Half the rank, rounded up.
    pairs: usize,
    /// `[rows][pairs]`, two factors each.
    a: Vec<[i16; 2]>,
    row_scales: Vec<f32>,
    /// `[pairs][cols]`, two factors each.
    b: Vec<[i16; 2]>,
    column_scales: Vec<f32>,
}

impl Int8Factors {
    /// `a` is `[rows, rank]`, `b` `[rank, cols]`, both row by row; a scale for each row of A and
    /// each column of B.
    pub(crate) fn new(a: &[u8], b: &[u8], row_scales: Vec<f32>, column_scales: Vec<f32>) -> Self {
        let (rows, cols) = (row_scales.len(), column_scales.len());
        let rank = a.len() / rows.max(1);
        let pairs = rank.div_ceil(2);
        let at = |factors: &[u8], i: usize| i16::from(factors[i].cast_signed());
        let of_a = |i: usize| {
            let (row, k) = (i / pairs, 2 * (i % pairs));
            let second = if k + 1 < rank { at(a, row * rank + k + 1) } else { 0 };
            [at(a, row * rank + k), second]
        };
        let of_b = |i: usize| {
            let (k, col) = (2 * (i / cols), i % cols);
            let second = if k + 1 < rank { at(b, (k + 1) * cols + col) } else { 0 };
            [at(b, k * cols + col), second]
        };
        Self {
            rows,
            cols,
            pairs,
            a: (0..rows * pairs).map(of_a).collect(),
            row_scales,
            b: (0..pairs * cols).map(of_b).collect(),
            column_scales,
        }
    }

    /// Factors as binary32 numbers with their scales: A and B, row by row.
    pub(crate) fn to_f32(&self) -> (Vec<f32>, Vec<f32>) {
        let both = |pair: &[i16; 2], scale: f32| pair.map(|v| f32::from(v) * scale);
        let rows = self.a.chunks_exact(self.pairs).zip(&self.row_scales);
        let a = rows.flat_map(|(row, scale)| row.iter().flat_map(|p| both(p, *scale)));
        let pairs = self.b.chunks_exact(self.cols);
        let b = pairs.flat_map(|row| {
            let of = |k: usize| {
                row.iter().zip(&self.column_scales).map(move |(p, s)| f32::from(p[k]) * s)
            };
            of(0).chain(of(1)).collect::<Vec<_>>()
        });
        (a.collect(), b.collect())
    }

    /// Rank, rounded up to an even number: what [`Int8Factors::to_f32`] has.
    pub(crate) fn even_rank(&self) -> usize {
        2 * self.pairs
    }

    /// Adds the product to values of columns `col..` of rows `row..`, `width` of each row.
    ///
    /// # Panics
    /// When `out` is no whole number of rows, or reaches beyond the matrix.
    pub(crate) fn add(
        &self,
        kernel: Kernel,
        row: usize,
        col: usize,
        width: usize,
        out: &mut [f32],
    ) {
        assert!(width > 0 && out.len().is_multiple_of(width) && col + width <= self.cols);
        assert!(row + out.len() / width <= self.rows);
        let near = (NEAR_BYTES / (4 * self.pairs)).max(STEP) / STEP * STEP;
        for from in (0..width).step_by(near) {
            let to = width.min(from + near);
            // SAFETY: callers have kernels that the CPU can run.
            dispatch!(unsafe kernel,
                x86 => self.add_avx2(row, col, width, from..to, out),
                _ => self.add_portable(row, col, width, from..to, out),
            );
        }
    }

    fn add_portable(
        &self,
        row: usize,
        col: usize,
        width: usize,
        part: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            self.add_row(row + r, col + part.start, &mut out[part.clone()]);
        }
    }

    /// Columns `col..` of one row.
    fn add_row(&self, row: usize, col: usize, out: &mut [f32]) {
        let a = &self.a[row * self.pairs..][..self.pairs];
        let scale = self.row_scales[row];
        for (i, out) in out.chunks_mut(STEP).enumerate() {
            let first = col + STEP * i;
            let mut sums = [0i32; STEP];
            for (k, &[a0, a1]) in a.iter().enumerate() {
                let b = &self.b[k * self.cols + first..][..out.len()];
                for (sum, &[b0, b1]) in sums.iter_mut().zip(b) {
                    *sum += i32::from(a0) * i32::from(b0) + i32::from(a1) * i32::from(b1);
                }
            }
            let scales = &self.column_scales[first..][..out.len()];
            for ((v, sum), column) in out.iter_mut().zip(sums).zip(scales) {
                *v += exact_f32(sum) * (scale * column);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn add_avx2(
        &self,
        row: usize,
        col: usize,
        width: usize,
        part: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        let whole = part.start + (part.end - part.start) / STEP * STEP;
        let mut rows = out.chunks_exact_mut(4 * width);
        for (r, out) in rows.by_ref().enumerate() {
            let (o0, rest) = out.split_at_mut(width);
            let (o1, rest) = rest.split_at_mut(width);
            let (o2, o3) = rest.split_at_mut(width);
            for at in (part.start..whole).step_by(STEP) {
                self.step::<4>(
                    row + 4 * r,
                    col + at,
                    [
                        &mut o0[at..at + STEP],
                        &mut o1[at..at + STEP],
                        &mut o2[at..at + STEP],
                        &mut o3[at..at + STEP],
                    ],
                );
            }
            for (i, out) in [o0, o1, o2, o3].into_iter().enumerate() {
                self.add_row(row + 4 * r + i, col + whole, &mut out[whole..part.end]);
            }
        }
        let done = out.len() / width / 4 * 4;
        for (r, out) in out.chunks_exact_mut(width).enumerate().skip(done) {
            for at in (part.start..whole).step_by(STEP) {
                self.step::<1>(row + r, col + at, [&mut out[at..at + STEP]]);
            }
            self.add_row(row + r, col + whole, &mut out[whole..part.end]);
        }
    }

    /// Sixteen columns of `ROWS` rows.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    fn step<const ROWS: usize>(&self, row: usize, col: usize, out: [&mut [f32]; ROWS]) {
        let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
        let a: [&[[i16; 2]]; ROWS] =
            std::array::from_fn(|r| &self.a[(row + r) * self.pairs..][..self.pairs]);
        for k in 0..self.pairs {
            let b = &self.b[k * self.cols + col..][..STEP];
            // SAFETY: sixteen pairs of 4 bytes are there.
            let b = unsafe {
                let at = b.as_ptr().cast::<__m256i>();
                [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))]
            };
            for (sums, a) in sums.iter_mut().zip(a) {
                let [low, high] = a[k];
                let pair = i32::from(high) << 16 | i32::from(low.cast_unsigned());
                let pair = _mm256_set1_epi32(pair);
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(pair, b[0]));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(pair, b[1]));
            }
        }
        let columns = &self.column_scales[col..][..STEP];
        for ((r, out), sums) in out.into_iter().enumerate().zip(sums) {
            let scale = _mm256_set1_ps(self.row_scales[row + r]);
            for (i, sum) in sums.into_iter().enumerate() {
                let (column, out) = (&columns[8 * i..][..8], &mut out[8 * i..][..8]);
                // SAFETY: eight numbers are there.
                unsafe {
                    let scale = _mm256_mul_ps(scale, _mm256_loadu_ps(column.as_ptr()));
                    let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
                    let v = _mm256_add_ps(_mm256_loadu_ps(out.as_ptr()), product);
                    _mm256_storeu_ps(out.as_mut_ptr(), v);
                }
            }
        }
    }
}

/// A sum of at most 1024 products of int8, whose magnitude is at most 2^24.
#[allow(clippy::cast_precision_loss, reason = "exact, see above")]
fn exact_f32(sum: i32) -> f32 {
    sum as f32
}

/// Factors of an imported adapter, widened.
#[derive(Debug, Clone)]
pub(crate) struct WideFactors {
    /// `[rows, rank]`.
    pub a: Vec<f32>,
    /// `[rank, cols]`.
    pub b: Vec<f32>,
    pub rank: usize,
    pub cols: usize,
    pub scaling: f32,
}

impl WideFactors {
    /// As [`Int8Factors::add`]. Products of two binary16 numbers are exact in binary32, so fused
    /// operations would give the same.
    ///
    /// # Panics
    /// As [`Int8Factors::add`].
    pub(crate) fn add(&self, row: usize, col: usize, width: usize, out: &mut [f32]) {
        assert!(width > 0 && out.len().is_multiple_of(width) && col + width <= self.cols);
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let a = &self.a[(row + r) * self.rank..][..self.rank];
            for (i, out) in out.chunks_mut(4 * STEP).enumerate() {
                let mut sums = [0f32; 4 * STEP];
                for (k, a) in a.iter().enumerate() {
                    let b = &self.b[k * self.cols + col + 4 * STEP * i..][..out.len()];
                    sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                }
                out.iter_mut().zip(sums).for_each(|(v, sum)| *v += sum * self.scaling);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize, seed: u32) -> Vec<u8> {
        let mix = |i: u32| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b1) >> 7) as u8;
        (0..).map(mix).take(n).collect()
    }

    #[test]
    fn kernels_give_the_bits_of_the_definition() {
        for (rows, cols, rank) in [(1, 1, 1), (5, 17, 3), (9, 100, 16), (4, 800, 64), (13, 48, 7)] {
            let (a, b) = (bytes(rows * rank, 1), bytes(rank * cols, 77));
            let scale = |i: usize| f32::from(200u8.wrapping_add((i * 37) as u8)) / 4096.0 + 0.01;
            let row_scales: Vec<f32> = (0..rows).map(scale).collect();
            let column_scales: Vec<f32> = (0..cols).map(|i| scale(i + 5)).collect();
            let base: Vec<f32> = (0..rows * cols).map(|i| scale(i) - 0.03).collect();
            let at = |x: &[u8], i: usize| i32::from(x[i].cast_signed());
            let mut expected = base.clone();
            for (i, expected) in expected.iter_mut().enumerate() {
                let (r, c) = (i / cols, i % cols);
                let sum: i32 = (0..rank).map(|k| at(&a, r * rank + k) * at(&b, k * cols + c)).sum();
                *expected += sum as f32 * (row_scales[r] * column_scales[c]);
            }
            let factors = Int8Factors::new(&a, &b, row_scales, column_scales);
            for kernel in Kernel::available() {
                let mut found = base.clone();
                factors.add(kernel, 0, 0, cols, &mut found);
                assert!(found == expected, "{kernel}, {rows} x {cols} of rank {rank}");
                // A piece of one row.
                let (row, from) = (rows - 1, cols / 3);
                let piece = row * cols + from..row * cols + cols;
                let mut found = base[piece.clone()].to_vec();
                factors.add(kernel, row, from, cols - from, &mut found);
                assert!(found == expected[piece], "{kernel}, a piece");
            }
            let (wide_a, wide_b) = factors.to_f32();
            let even = factors.even_rank();
            let product: f32 = (0..even).map(|k| wide_a[k] * wide_b[k * cols]).sum();
            assert!((product - (expected[0] - base[0])).abs() <= product.abs() * 1e-3 + 1e-4);
        }
    }
}
