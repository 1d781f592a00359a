//! Rows to values with AVX2 and F16C.
//!
//! Values of two bytes come from byte tables by `vpshufb`: a table of 32 entries is four of 16 (low
//! and high bytes, codes below and from 16). Others are products, and so are values of codes that
//! would need too many tables.

use std::arch::x86_64::*;

use super::row::{Row, Shape, Tables};
use super::scalar;
use super::to::{BF16, F16, F32};
use crate::kernels::planes::{BLOCK, BLOCK_BYTES, LevelTable};
use crate::kernels::simd::avx2::{
    Codes, blocks, codes, from_nibbles, level_tables, load_ps, load_twice, look_up, swap,
};
use crate::kernels::target::Float;

/// Decodes one row.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn decode_row(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    tables: &mut Tables,
    out: &mut [u8],
) {
    macro_rules! blocks {
        ($read:literal, $size:literal, $block:expr) => {
            each_block::<$read, { $size * BLOCK }>(row, out, $block)
        };
    }
    macro_rules! halves {
        ($read:literal, $subs:literal) => {{
            fill_halves::<$subs>(shape, row, levels, tables);
            let tables = &*tables;
            if shape.unit16 {
                blocks!($read, 2, |planes, at, out| halves::<$subs, true>(
                    &codes(planes),
                    &row.units[16 * at..],
                    tables,
                    out
                ))
            } else {
                blocks!($read, 2, |planes, at, out| halves::<$subs, false>(
                    &codes(planes),
                    &row.units[8 * at..],
                    tables,
                    out
                ))
            }
        }};
    }
    macro_rules! products {
        ($to:ident, $size:literal, $read:literal, $subs:literal) => {{
            let levels = level_tables::<$subs>(levels);
            let per_block = BLOCK / shape.unit();
            blocks!($read, $size, |planes, at, out| {
                products::<$to, $subs>(
                    &codes(planes),
                    &row.units[per_block * at..],
                    shape.unit16,
                    row.factors,
                    &levels,
                    out,
                )
            })
        }};
    }
    macro_rules! floats {
        ($read:literal) => {{
            let tables = biased_tables(levels);
            let biases = row.factors.map(|f| -FLOAT_BIAS * f);
            if shape.unit16 {
                blocks!($read, 4, |planes, at, out| floats::<$read, true>(
                    planes,
                    &row.units[16 * at..],
                    [row.factors, &biases],
                    &tables,
                    out
                ))
            } else {
                blocks!($read, 4, |planes, at, out| floats::<$read, false>(
                    planes,
                    &row.units[8 * at..],
                    [row.factors, &biases],
                    &tables,
                    out
                ))
            }
        }};
    }
    match (shape.float, shape.read) {
        (Float::F32, 3) if has_biases(row) => floats!(3),
        (Float::F32, 4) if has_biases(row) => floats!(4),
        (Float::F32, 5) if has_biases(row) => floats!(5),
        (Float::Bf16 | Float::F16, 3) => halves!(3, 1),
        (Float::Bf16 | Float::F16, 4) => halves!(4, 1),
        (Float::Bf16 | Float::F16, 5) => halves!(5, 2),
        (Float::Bf16 | Float::F16, 6) => halves!(6, 4),
        (Float::Bf16, 7) => products!(BF16, 2, 7, 8),
        (Float::Bf16, _) => products!(BF16, 2, 8, 16),
        (Float::F16, 7) => products!(F16, 2, 7, 8),
        (Float::F16, _) => products!(F16, 2, 8, 16),
        (Float::F32, 3) => products!(F32, 4, 3, 1),
        (Float::F32, 4) => products!(F32, 4, 4, 1),
        (Float::F32, 5) => products!(F32, 4, 5, 2),
        (Float::F32, 6) => products!(F32, 4, 6, 4),
        (Float::F32, 7) => products!(F32, 4, 7, 8),
        (Float::F32, _) => products!(F32, 4, 8, 16),
        (Float::F64, _) => scalar::decode_row(shape, row, levels, tables, out),
    }
}

/// [`blocks`] of a row.
#[inline]
#[target_feature(enable = "avx2")]
fn each_block<const READ: usize, const OUT: usize>(
    row: &Row<'_>,
    out: &mut [u8],
    f: impl FnMut(&[&[u8; BLOCK_BYTES]; READ], usize, &mut [u8; OUT]),
) {
    blocks(row.planes, out, f);
}

/// 16 bytes for each half.
#[inline]
#[target_feature(enable = "avx2")]
fn load_pair(low: &[u8; 16], high: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are there, twice.
    unsafe { _mm256_loadu2_m128i(high.as_ptr().cast(), low.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(to: &mut [u8; 32], v: __m256i) {
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) };
}

/// Tables of values of two bytes: `SUBS` times 16 low bytes, then as many high bytes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn fill_halves<const SUBS: usize>(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    tables: &mut Tables,
) {
    let used = row.used;
    let sixteens = &levels.values.as_chunks::<16>().0[..SUBS];
    for (k, (table, factor)) in tables.0.iter_mut().zip(row.factors).enumerate() {
        if used >> k & 1 == 0 {
            continue;
        }
        let (low, high) = table.split_at_mut(16 * SUBS);
        let slots = low.as_chunks_mut::<16>().0.iter_mut().zip(high.as_chunks_mut::<16>().0);
        let factor = _mm256_set1_ps(*factor);
        for ((low, high), levels) in slots.zip(sixteens) {
            let [a, b] = levels.as_chunks::<8>().0 else { continue };
            let (a, b) = (_mm256_mul_ps(load_ps(a), factor), _mm256_mul_ps(load_ps(b), factor));
            let [a, b] = if shape.float == Float::Bf16 {
                let words = |v| {
                    let v = round_bf16(v);
                    _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v))
                };
                [words(a), words(b)]
            } else {
                [a, b].map(|v| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
            };
            let byte = _mm_set1_epi16(255);
            let bytes = [
                _mm_packus_epi16(_mm_and_si128(a, byte), _mm_and_si128(b, byte)),
                _mm_packus_epi16(_mm_srli_epi16::<8>(a), _mm_srli_epi16::<8>(b)),
            ];
            // SAFETY: 16 bytes have room, twice.
            unsafe {
                _mm_storeu_si128(low.as_mut_ptr().cast(), bytes[0]);
                _mm_storeu_si128(high.as_mut_ptr().cast(), bytes[1]);
            }
        }
    }
}

/// Values of two bytes of one block.
#[inline]
#[target_feature(enable = "avx2")]
fn halves<const SUBS: usize, const UNIT16: bool>(
    codes: &Codes,
    units: &[u8],
    tables: &Tables,
    out: &mut [u8; 2 * BLOCK],
) {
    // Registers of a unit: 16 columns each.
    let per_unit = if UNIT16 { 1 } else { 2 };
    let units = &units[..16 / per_unit];
    let (left, right) = out.split_at_mut(BLOCK);
    let slots = left.as_chunks_mut::<32>().0.iter_mut().zip(right.as_chunks_mut::<32>().0);
    let mut low = [_mm256_setzero_si256(); SUBS];
    let mut high = low;
    for (j, ((left, right), codes)) in slots.zip(codes).enumerate() {
        if j % per_unit == 0 {
            let unit = j / per_unit;
            let table = |u: usize| tables.0[usize::from(units[u] & 15)].as_chunks::<16>().0;
            let (first, second) = (table(unit), table(unit + 8 / per_unit));
            for s in 0..SUBS {
                low[s] = load_pair(&first[s], &second[s]);
                high[s] = load_pair(&first[SUBS + s], &second[SUBS + s]);
            }
        }
        let (a, b) = (look_up(&low, *codes), look_up(&high, *codes));
        let (x, y) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        store(left, _mm256_permute2x128_si256::<0x20>(x, y));
        store(right, _mm256_permute2x128_si256::<0x31>(x, y));
    }
}

/// Values of one block by multiplication.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn products<const TO: u8, const SUBS: usize>(
    codes: &Codes,
    units: &[u8],
    unit16: bool,
    factors: &[f32; 16],
    levels: &[__m256i; SUBS],
    out: &mut [u8],
) {
    let size = if TO == F32 { 4 } else { 2 };
    let (left, right) = out.split_at_mut(128 * size);
    let slots = left.chunks_exact_mut(16 * size).zip(right.chunks_exact_mut(16 * size));
    for (j, ((left, right), codes)) in slots.zip(codes).enumerate() {
        let found = look_up(levels, *codes);
        let halves = [_mm256_castsi256_si128(found), _mm256_extracti128_si256::<1>(found)];
        for ((out, levels), j) in [left, right].into_iter().zip(halves).zip([j, 8 + j]) {
            let factor = factors[usize::from(units[if unit16 { j } else { j / 2 }] & 15)];
            let factor = _mm256_set1_ps(factor);
            let product =
                |eight| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), factor);
            let (a, b) = (product(levels), product(_mm_bsrli_si128::<8>(levels)));
            let to = out[..16 * size].as_mut_ptr();
            // SAFETY: 16 values have room.
            unsafe {
                match TO {
                    F32 => {
                        _mm256_storeu_ps(to.cast(), a);
                        _mm256_storeu_ps(to.add(32).cast(), b);
                    }
                    BF16 => {
                        let words = _mm256_packus_epi32(round_bf16(a), round_bf16(b));
                        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                        _mm256_storeu_si256(to.cast(), words);
                    }
                    _ => {
                        let round = |v| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
                        _mm_storeu_si128(to.cast(), round(a));
                        _mm_storeu_si128(to.add(16).cast(), round(b));
                    }
                }
            }
        }
    }
}

/// `2^15 + 128`: what [`floats`] adds to levels.
const FLOAT_BIAS: f32 = 32896.0;

/// Whether the bias times each factor is finite. It is exact then: 9 bits times 15.
fn has_biases(row: &Row<'_>) -> bool {
    row.factors[15] < f32::MAX / FLOAT_BIAS
}

/// The levels of 32 codes plus 128, 16 a table.
#[inline]
#[target_feature(enable = "avx2")]
fn biased_tables(levels: &LevelTable) -> [__m256i; 2] {
    let [low, high] = level_tables::<2>(levels);
    let bias = _mm256_set1_epi8(-128);
    [_mm256_xor_si256(low, bias), _mm256_xor_si256(high, bias)]
}

/// Bytes of a plane in halves: the lower has bits 0 to 3 of each byte, the upper bits 4 to 7; those
/// of the first 16 bytes are the low four bits of the register's bytes, those of the last 16 the
/// high four.
#[inline]
#[target_feature(enable = "avx2")]
fn halved(plane: &[u8; BLOCK_BYTES]) -> __m256i {
    let [first, last] = plane.as_chunks::<16>().0 else { return _mm256_setzero_si256() };
    let first = _mm256_srlv_epi64(load_twice(first), _mm256_setr_epi64x(0, 0, 4, 4));
    let last = _mm256_sllv_epi64(load_twice(last), _mm256_setr_epi64x(4, 4, 0, 0));
    let low = _mm256_set1_epi8(15);
    _mm256_or_si256(_mm256_and_si256(low, first), _mm256_andnot_si256(low, last))
}

/// Binary32 values of one block of up to five planes, with factors and [`FLOAT_BIAS`] times minus
/// those.
///
/// The lower half of each register has columns `8 b ..` to `8 b + 3` of 16 bytes of a plane, the
/// upper half the next four, so that interleaving within halves ends in eight columns in order. A
/// level becomes the third byte of a binary32 number between 2^15 and 2^15 + 255; the fused
/// multiplication takes the bias off again, and is exact, since level times factor has 22 bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn floats<const READ: usize, const UNIT16: bool>(
    planes: &[&[u8; BLOCK_BYTES]; READ],
    units: &[u8],
    factors: [&[f32; 16]; 2],
    tables: &[__m256i; 2],
    out: &mut [u8; 4 * BLOCK],
) {
    let units = &units[..if UNIT16 { 16 } else { 8 }];
    let mut bit = [_mm256_setzero_si256(); 4];
    for (bit, plane) in bit.iter_mut().zip(planes.iter().rev()) {
        *bit = halved(plane);
    }
    swap!(bit, 2, 0x33, 0, 2);
    swap!(bit, 2, 0x33, 1, 3);
    swap!(bit, 1, 0x55, 0, 1);
    swap!(bit, 1, 0x55, 2, 3);
    let high = if READ == 5 { Some(halved(planes[0])) } else { None };
    let (first, second) = out.split_at_mut(2 * BLOCK);
    let halves = [
        [
            from_nibbles::<0>(tables, bit, high),
            from_nibbles::<1>(tables, bit, high),
            from_nibbles::<2>(tables, bit, high),
            from_nibbles::<3>(tables, bit, high),
        ],
        [
            from_nibbles::<4>(tables, bit, high),
            from_nibbles::<5>(tables, bit, high),
            from_nibbles::<6>(tables, bit, high),
            from_nibbles::<7>(tables, bit, high),
        ],
    ];
    float_half::<UNIT16>(halves[0], &units[..units.len() / 2], factors, first);
    float_half::<UNIT16>(halves[1], &units[units.len() / 2..], factors, second);
}

/// Half a block of [`floats`], from its biased levels.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn float_half<const UNIT16: bool>(
    [a, b, c, d]: [__m256i; 4],
    units: &[u8],
    factors: [&[f32; 16]; 2],
    out: &mut [u8],
) {
    let zero = _mm256_setzero_si256();
    let exponent = _mm256_set1_epi16(0x4700);
    let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
    let (ab2, cd2) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
    let by_32 = [
        _mm256_unpacklo_epi16(ab, cd),
        _mm256_unpackhi_epi16(ab, cd),
        _mm256_unpacklo_epi16(ab2, cd2),
        _mm256_unpackhi_epi16(ab2, cd2),
    ];
    for ((i, levels), out) in by_32.into_iter().enumerate().zip(out.as_chunks_mut::<128>().0) {
        let words = [_mm256_unpacklo_epi8(zero, levels), _mm256_unpackhi_epi8(zero, levels)];
        for ((j, words), out) in words.into_iter().enumerate().zip(out.as_chunks_mut::<64>().0) {
            let unit = usize::from(units[if UNIT16 { 2 * i + j } else { i }] & 15);
            let factor = _mm256_set1_ps(factors[0][unit]);
            let bias = _mm256_set1_ps(factors[1][unit]);
            let left = _mm256_castsi256_ps(_mm256_unpacklo_epi16(words, exponent));
            let right = _mm256_castsi256_ps(_mm256_unpackhi_epi16(words, exponent));
            // SAFETY: 16 values have room.
            unsafe {
                let to = out.as_mut_ptr();
                _mm256_storeu_ps(to.cast(), _mm256_fmadd_ps(left, factor, bias));
                _mm256_storeu_ps(to.add(32).cast(), _mm256_fmadd_ps(right, factor, bias));
            }
        }
    }
}

/// The bfloat16 nearest to each lane, in its lower half.
#[inline]
#[target_feature(enable = "avx2")]
fn round_bf16(v: __m256) -> __m256i {
    let bits = _mm256_castps_si256(v);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    _mm256_srli_epi32::<16>(rounded)
}
