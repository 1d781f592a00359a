//! AVX2: loads, the transpose of a block of planes to codes, and look-ups by codes.
//!
//! A block is 256 columns, 32 bytes of each plane. An 8 x 8 bit transpose across the eight
//! registers (three rounds of swaps within bytes, three of unpacking between registers) turns them
//! into codes in order, except that the lower half of each register has columns of the block's
//! first half and the upper half those of the second. A table of 16 bytes is looked up by
//! `vpshufb`; longer ones are several of these.

use std::arch::x86_64::*;

use crate::kernels::planes::{BLOCK_BYTES, LevelTable};

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 bytes in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn load_twice(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are there.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn load_ps(values: &[f32; 8]) -> __m256 {
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Exchanges the upper part of each field of register `a` with the lower part of `b`'s.
macro_rules! swap {
    ($bit:ident, $shift:literal, $mask:literal, $a:literal, $b:literal) => {
        let mask = _mm256_set1_epi8($mask);
        let (a, b) = ($bit[$a], $bit[$b]);
        $bit[$a] = _mm256_or_si256(
            _mm256_and_si256(a, mask),
            _mm256_slli_epi16::<$shift>(_mm256_and_si256(b, mask)),
        );
        $bit[$b] = _mm256_or_si256(
            _mm256_and_si256(_mm256_srli_epi16::<$shift>(a), mask),
            _mm256_andnot_si256(mask, b),
        );
    };
}
pub(in crate::kernels) use swap;

/// Codes of a block: register `j` has columns `16 j ..` in its lower half and `128 + 16 j ..` in
/// its upper.
pub(in crate::kernels) type Codes = [__m256i; 8];

/// Block `at` of the planes, most significant first, as codes.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn codes<const READ: usize>(planes: &[&[u8; BLOCK_BYTES]; READ]) -> Codes {
    let zero = _mm256_setzero_si256();
    let bit = strided(planes);
    // Interleave to the order of columns.
    let pair = |a, b| (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
    let [(p0, q0), (p1, q1), (p2, q2), (p3, q3)] =
        [pair(bit[0], bit[1]), pair(bit[2], bit[3]), pair(bit[4], bit[5]), pair(bit[6], bit[7])];
    let mut out = [zero; 8];
    for (i, [a, b, c, d]) in [[p0, p1, p2, p3], [q0, q1, q2, q3]].into_iter().enumerate() {
        let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        let (low2, high2) = (_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d));
        out[4 * i] = _mm256_unpacklo_epi32(low, low2);
        out[4 * i + 1] = _mm256_unpackhi_epi32(low, low2);
        out[4 * i + 2] = _mm256_unpacklo_epi32(high, high2);
        out[4 * i + 3] = _mm256_unpackhi_epi32(high, high2);
    }
    out
}

/// Block `at` of the planes as codes: register `k` has column `8 b + k` in byte `b`.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn strided<const READ: usize>(planes: &[&[u8; BLOCK_BYTES]; READ]) -> Codes {
    // Register i: bit i of the codes, eight columns a byte.
    let mut bit = [_mm256_setzero_si256(); 8];
    for (i, plane) in planes.iter().rev().enumerate() {
        bit[i] = load(plane);
    }
    swap!(bit, 4, 0x0f, 0, 4);
    swap!(bit, 4, 0x0f, 1, 5);
    swap!(bit, 4, 0x0f, 2, 6);
    swap!(bit, 4, 0x0f, 3, 7);
    swap!(bit, 2, 0x33, 0, 2);
    swap!(bit, 2, 0x33, 1, 3);
    swap!(bit, 2, 0x33, 4, 6);
    swap!(bit, 2, 0x33, 5, 7);
    swap!(bit, 1, 0x55, 0, 1);
    swap!(bit, 1, 0x55, 2, 3);
    swap!(bit, 1, 0x55, 4, 5);
    swap!(bit, 1, 0x55, 6, 7);
    bit
}

/// Looks up `N` tables of 16 bytes, one behind the other, by codes below `16 N`.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn look_up<const N: usize>(
    tables: &[__m256i; N],
    codes: __m256i,
) -> __m256i {
    let mut found = _mm256_setzero_si256();
    for (s, table) in tables.iter().enumerate() {
        // 0x70 to 0x7f for the table's own codes; above, where the shuffle gives zero, for all
        // others.
        let mut index = _mm256_sub_epi8(codes, _mm256_set1_epi8((16 * s) as i8));
        // No codes are above the last table's, and those below have wrapped around.
        if s + 1 < N || N > 8 {
            index = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
        }
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(*table, index));
    }
    found
}

/// The levels of 16 codes a table, in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn level_tables<const SUBS: usize>(levels: &LevelTable) -> [__m256i; SUBS] {
    let mut tables = [_mm256_setzero_si256(); SUBS];
    for (to, from) in tables.iter_mut().zip(levels.bytes.as_chunks::<16>().0) {
        *to = load_twice(&from.map(i8::cast_unsigned));
    }
    tables
}

/// The levels of columns `8 b + K` from registers with the low four bits of codes `k` and `k + 4`,
/// and one with the fifth bits of all eight.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn from_nibbles<const K: i32>(
    tables: &[__m256i; 2],
    nibbles: [__m256i; 4],
    high: Option<__m256i>,
) -> __m256i {
    let both = nibbles[K as usize % 4];
    let low = if K < 4 { both } else { _mm256_srli_epi16::<4>(both) };
    let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
    let below = _mm256_shuffle_epi8(tables[0], low);
    let Some(high) = high else { return below };
    // The fifth bit goes to the top, which is what the blend looks at.
    let above = _mm256_sll_epi16(high, _mm_cvtsi32_si128(7 - K));
    _mm256_blendv_epi8(below, _mm256_shuffle_epi8(tables[1], low), above)
}

/// Calls `f` with planes, number and output of each block; the last may be partial and goes through
/// a buffer.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn blocks<const READ: usize, const OUT: usize>(
    planes: &[&[u8]],
    out: &mut [u8],
    mut f: impl FnMut(&[&[u8; BLOCK_BYTES]; READ], usize, &mut [u8; OUT]),
) {
    let Ok(planes) = <&[&[u8]; READ]>::try_from(planes) else { return };
    let (whole, tail) = out.as_chunks_mut::<OUT>();
    let full = whole.len();
    whole_blocks(&planes.map(|p| p.as_chunks::<BLOCK_BYTES>().0), 0, whole, &mut f);
    if !tail.is_empty() {
        let mut padded = [[0; BLOCK_BYTES]; READ];
        for (to, plane) in padded.iter_mut().zip(planes) {
            let rest = &plane[BLOCK_BYTES * full..];
            to[..rest.len()].copy_from_slice(rest);
        }
        let mut buffer = [[0; OUT]];
        whole_blocks(&padded.each_ref().map(std::slice::from_ref), full, &mut buffer, &mut f);
        tail.copy_from_slice(&buffer[0][..tail.len()]);
    }
}

/// Calls `f` for whole blocks. A function of its own, so that `f` is called in one place only: with
/// two, it stays a call of its own, and codes go through memory.
#[inline]
#[target_feature(enable = "avx2")]
fn whole_blocks<const READ: usize, const OUT: usize>(
    planes: &[&[[u8; BLOCK_BYTES]]; READ],
    first: usize,
    out: &mut [[u8; OUT]],
    f: &mut impl FnMut(&[&[u8; BLOCK_BYTES]; READ], usize, &mut [u8; OUT]),
) {
    // One length for all: otherwise each plane would be checked at each block.
    let planes = planes.map(|p| &p[..out.len()]);
    for (at, out) in out.iter_mut().enumerate() {
        f(&planes.map(|p| &p[at]), first + at, out);
    }
}
