//! Products with AVX2: eight levels of each byte of a plane at a time, in the order of
//! [`Int8Row::strided`].

use std::arch::x86_64::*;

use super::activations::{self, Int8Row};
use super::row::{DotRow, NIBBLE_BYTES, Packed, RowBits, STEP_VALUES};
use crate::kernels::planes::{BLOCK, BLOCK_BYTES};
use crate::kernels::simd::avx2::{
    from_nibbles, level_tables, load, load_ps, look_up, strided, swap,
};

/// Step times activation scale, eight units at a time; `out` and `scales` have whole blocks of
/// them.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unit_factors(steps: &[u8], scales: &[f32], out: &mut [f32]) {
    let [low, high] = STEP_VALUES.as_chunks::<8>().0 else { return };
    let (low, high) = (load_ps(low), load_ps(high));
    let (whole, rest) = steps.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let some = whole.iter().chain([&last]).zip(scales.as_chunks::<8>().0);
    for (out, (four, scales)) in out.as_chunks_mut::<8>().0.iter_mut().zip(some) {
        let bytes = _mm_cvtsi32_si128(i32::from_le_bytes(*four));
        let odd = _mm_srli_epi16::<4>(bytes);
        let units = _mm_and_si128(_mm_unpacklo_epi8(bytes, odd), _mm_set1_epi8(15));
        let units = _mm256_cvtepu8_epi32(units);
        let from = |table| _mm256_permutevar8x32_ps(table, units);
        // Bit 3 of the index becomes the sign.
        let above = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(units));
        let steps = _mm256_blendv_ps(from(low), from(high), above);
        // SAFETY: eight values have room.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(steps, load_ps(scales))) };
    }
}

/// See [`RowDot::dot`](super::RowDot::dot); units are 32 columns.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dot(row: &DotRow<'_>, bits: RowBits<'_>, x: &[&Int8Row], out: &mut [f32]) {
    match x {
        [a] => out.copy_from_slice(&dot_some::<1>(row, bits, [a])),
        [a, rest @ ..] => {
            // Missing rows repeat the first.
            let other = |i: usize| rest.get(i).copied().unwrap_or(a);
            let x = [*a, other(0), other(1), other(2)];
            out.copy_from_slice(&dot_some::<4>(row, bits, x)[..out.len()]);
        }
        [] => {}
    }
}

/// Adds a block to `sums`; arguments as of [`from_nibbles`]. No function: as one it is not inlined,
/// and the sums go through memory.
macro_rules! add_nibbles {
    ($sums:expr, $tables:expr, $nibbles:expr, $high:expr) => {{
        let (sums, tables, nibbles, high) = (&mut $sums, $tables, $nibbles, $high);
        let mut products = [_mm256_setzero_si256(); N];
        sums.add(&mut products, 0, from_nibbles::<0>(tables, nibbles, high));
        sums.add(&mut products, 1, from_nibbles::<1>(tables, nibbles, high));
        sums.add(&mut products, 2, from_nibbles::<2>(tables, nibbles, high));
        sums.add(&mut products, 3, from_nibbles::<3>(tables, nibbles, high));
        sums.add(&mut products, 4, from_nibbles::<4>(tables, nibbles, high));
        sums.add(&mut products, 5, from_nibbles::<5>(tables, nibbles, high));
        sums.add(&mut products, 6, from_nibbles::<6>(tables, nibbles, high));
        sums.add(&mut products, 7, from_nibbles::<7>(tables, nibbles, high));
        sums.end_block(products);
    }};
}

#[target_feature(enable = "avx2,fma")]
fn dot_some<const N: usize>(row: &DotRow<'_>, bits: RowBits<'_>, x: [&Int8Row; N]) -> [f32; N] {
    match (bits, row.read) {
        (RowBits::Planes(p), 3) => dot_planes::<3, 1, N>(row, p, x),
        (RowBits::Planes(p), 4) => dot_planes::<4, 1, N>(row, p, x),
        (RowBits::Planes(p), 5) => dot_planes::<5, 2, N>(row, p, x),
        (RowBits::Planes(p), 6) => dot_planes::<6, 4, N>(row, p, x),
        (RowBits::Planes(p), 7) => dot_planes::<7, 8, N>(row, p, x),
        (RowBits::Planes(p), _) => dot_planes::<8, 16, N>(row, p, x),
        (RowBits::Packed(bytes), read) if Packed::of(read) == Packed::Nibbles => {
            let tables = level_tables::<2>(row.levels);
            let mut sums = Sums::new(row, x);
            for block in bytes.as_chunks::<NIBBLE_BYTES>().0 {
                let [a, b, c, d, high] = block.as_chunks::<BLOCK_BYTES>().0 else { continue };
                let nibbles = [load(a), load(b), load(c), load(d)];
                add_nibbles!(sums, &tables, nibbles, Some(load(high)));
            }
            sums.total()
        }
        (RowBits::Packed(bytes), _) => {
            let mut sums = Sums::new(row, x);
            for block in bytes.as_chunks::<BLOCK>().0 {
                let mut products = [_mm256_setzero_si256(); N];
                for (k, levels) in block.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
                    sums.add(&mut products, k, load(levels));
                }
                sums.end_block(products);
            }
            sums.total()
        }
    }
}

/// See [`round`](activations::round).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn round(x: &[f32], values: &mut [i8], scales: &mut [f32]) {
    activations::round(x, values, scales);
}

/// Sums over the blocks of a row.
struct Sums<'a, const N: usize> {
    x: [&'a [[i8; BLOCK_BYTES]]; N],
    factors: [&'a [[f32; 8]]; N],
    at: usize,
    sums: [__m256; N],
}

impl<'a, const N: usize> Sums<'a, N> {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new(row: &DotRow<'a>, x: [&'a Int8Row; N]) -> Self {
        let mut factors = [&[][..]; N];
        for (to, from) in factors.iter_mut().zip(row.factors) {
            *to = from.as_chunks::<8>().0;
        }
        let x = x.map(|x| x.strided.as_chunks::<BLOCK_BYTES>().0);
        Self { x, factors, at: 0, sums: [_mm256_setzero_ps(); N] }
    }

    /// Adds the products of levels of columns `8 b + k` of a block.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add(&self, products: &mut [__m256i; N], k: usize, levels: __m256i) {
        let sizes = _mm256_abs_epi8(levels);
        for (products, x) in products.iter_mut().zip(&self.x) {
            let x = load(&x[8 * self.at + k].map(i8::cast_unsigned));
            // Up to 2 x 128 x 127: within 16 bits.
            let pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(x, levels));
            let pairs = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            *products = _mm256_add_epi32(*products, pairs);
        }
    }

    /// Adds the products of a whole block to the sums. Four bytes of a register are one unit, and
    /// so is each 32-bit lane of the products.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn end_block(&mut self, products: [__m256i; N]) {
        for ((sum, products), factors) in self.sums.iter_mut().zip(products).zip(&self.factors) {
            let factors = load_ps(&factors[self.at]);
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), factors, *sum);
        }
        self.at += 1;
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn total(self) -> [f32; N] {
        self.sums.map(|sum| add_up(sum))
    }
}

/// The sum of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn add_up(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The low four bits of codes `k` and `k + 4` from the last planes (three or four of them).
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(planes: &[&[u8; BLOCK_BYTES]]) -> [__m256i; 4] {
    let mut bit = [_mm256_setzero_si256(); 4];
    for (bit, plane) in bit.iter_mut().zip(planes.iter().rev()) {
        *bit = load(plane);
    }
    swap!(bit, 2, 0x33, 0, 2);
    swap!(bit, 2, 0x33, 1, 3);
    swap!(bit, 1, 0x55, 0, 1);
    swap!(bit, 1, 0x55, 2, 3);
    bit
}

#[target_feature(enable = "avx2,fma")]
fn dot_planes<const READ: usize, const SUBS: usize, const N: usize>(
    row: &DotRow<'_>,
    planes: &[&[u8]],
    x: [&Int8Row; N],
) -> [f32; N] {
    let tables = level_tables::<SUBS>(row.levels);
    let few = level_tables::<2>(row.levels);
    let mut sums = Sums::new(row, x);
    let mut add = |planes: [&[u8; BLOCK_BYTES]; READ]| {
        if READ <= 5 {
            let nibbles = nibbles(&planes[READ.saturating_sub(4)..]);
            let high = (READ == 5).then(|| load(planes[0]));
            add_nibbles!(sums, &few, nibbles, high);
        } else {
            let mut products = [_mm256_setzero_si256(); N];
            for (k, codes) in strided(&planes).into_iter().enumerate() {
                sums.add(&mut products, k, look_up(&tables, codes));
            }
            sums.end_block(products);
        }
    };
    let Ok(planes) = <&[&[u8]; READ]>::try_from(planes) else { return [0.0; N] };
    let blocks = planes.map(|p| p.as_chunks::<BLOCK_BYTES>());
    for at in 0..row.cols / BLOCK {
        add(blocks.map(|(b, _)| &b[at]));
    }
    if !row.cols.is_multiple_of(BLOCK) {
        let mut padded = [[0; BLOCK_BYTES]; READ];
        for (to, (_, rest)) in padded.iter_mut().zip(&blocks) {
            to[..rest.len()].copy_from_slice(rest);
        }
        if blocks[0].1.is_empty() {
            // The last block is whole in bytes, not in columns.
            padded = blocks.map(|(b, _)| b.last().copied().unwrap_or([0; BLOCK_BYTES]));
        }
        add(padded.each_ref());
    }
    sums.total()
}

/// See [`dot_f32`](super::dot_f32).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<32>();
    let (b, b_rest) = b.as_chunks::<32>();
    let mut sums = [_mm256_setzero_ps(); 4];
    for (a, b) in a.iter().zip(b) {
        let eights = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
        for (sum, (a, b)) in sums.iter_mut().zip(eights) {
            *sum = _mm256_fmadd_ps(load_ps(a), load_ps(b), *sum);
        }
    }
    let [c, d, e, f] = sums;
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    add_up(_mm256_add_ps(_mm256_add_ps(c, d), _mm256_add_ps(e, f))) + rest
}
