//! AVX2, with F16C.
//!
//! A block is 256 columns, 32 bytes of each plane. An 8 x 8 bit transpose across the eight registers
//! (three rounds of swaps within bytes, three of unpacking between registers) turns them into codes in
//! order, except that the lower half of each register has columns of the block's first half and the
//! upper half those of the second. Values of two bytes come from byte tables by `vpshufb`: a table of
//! 32 entries is four of 16 (low and high bytes, codes below and from 16).

use std::arch::x86_64::*;

use super::decode::{LevelTable, Row, Shape, Tables};
use super::dot::{DotRow, Int8Row, NIBBLE_BYTES, Packed, RowBits};
use super::exact::{ContextOf, Contexts, DecodeTables, FEW_CODES, Hint, LANES, Lanes, Top};
#[cfg(feature = "checkpoints")]
use super::exact::{EncodeTables, LaneEncoder};
use super::nearest::{Cells, TRIES, add_lanes, cell};
use super::target::{Float, STEPS};

/// Columns of a block.
const BLOCK: usize = 256;
/// Bytes of a block in one plane.
const BYTES: usize = BLOCK / 8;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 bytes in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn load_twice(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are there.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
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

/// Codes of a block: register `j` has columns `16 j ..` in its lower half and `128 + 16 j ..` in its upper.
type Codes = [__m256i; 8];

/// Block `at` of the planes, most significant first, as codes.
#[inline]
#[target_feature(enable = "avx2")]
fn codes<const READ: usize>(planes: &[&[u8; BYTES]; READ]) -> Codes {
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
fn strided<const READ: usize>(planes: &[&[u8; BYTES]; READ]) -> Codes {
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
fn look_up<const N: usize>(tables: &[__m256i; N], codes: __m256i) -> __m256i {
    let mut found = _mm256_setzero_si256();
    for (s, table) in tables.iter().enumerate() {
        // 0x70 to 0x7f for the table's own codes; above, where the shuffle gives zero, for all others.
        let mut index = _mm256_sub_epi8(codes, _mm256_set1_epi8((16 * s) as i8));
        // No codes are above the last table's, and those below have wrapped around.
        if s + 1 < N || N > 8 {
            index = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
        }
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(*table, index));
    }
    found
}

/// Decodes one row.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
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
        (Float::F64, _) => super::scalar::decode_row(shape, row, levels, tables, out),
    }
}

/// Calls `f` with planes, number and output of each block; the last may be partial and goes through a buffer.
#[inline]
#[target_feature(enable = "avx2")]
fn each_block<const READ: usize, const OUT: usize>(
    row: &Row<'_>,
    out: &mut [u8],
    f: impl FnMut(&[&[u8; BYTES]; READ], usize, &mut [u8; OUT]),
) {
    blocks(row.planes, out, f);
}

/// As [`each_block`], of planes.
#[inline]
#[target_feature(enable = "avx2")]
fn blocks<const READ: usize, const OUT: usize>(
    planes: &[&[u8]],
    out: &mut [u8],
    mut f: impl FnMut(&[&[u8; BYTES]; READ], usize, &mut [u8; OUT]),
) {
    let Ok(planes) = <&[&[u8]; READ]>::try_from(planes) else { return };
    let (whole, tail) = out.as_chunks_mut::<OUT>();
    let full = whole.len();
    whole_blocks(&planes.map(|p| p.as_chunks::<BYTES>().0), 0, whole, &mut f);
    if !tail.is_empty() {
        let mut padded = [[0; BYTES]; READ];
        for (to, plane) in padded.iter_mut().zip(planes) {
            let rest = &plane[BYTES * full..];
            to[..rest.len()].copy_from_slice(rest);
        }
        let mut buffer = [[0; OUT]];
        whole_blocks(&padded.each_ref().map(std::slice::from_ref), full, &mut buffer, &mut f);
        tail.copy_from_slice(&buffer[0][..tail.len()]);
    }
}

/// Calls `f` for whole blocks. A function of its own, so that `f` is called in one place only: with two,
/// it stays a call of its own, and codes go through memory.
#[inline]
#[target_feature(enable = "avx2")]
fn whole_blocks<const READ: usize, const OUT: usize>(
    planes: &[&[[u8; BYTES]]; READ],
    first: usize,
    out: &mut [[u8; OUT]],
    f: &mut impl FnMut(&[&[u8; BYTES]; READ], usize, &mut [u8; OUT]),
) {
    // One length for all: otherwise each plane would be checked at each block.
    let planes = planes.map(|p| &p[..out.len()]);
    for (at, out) in out.iter_mut().enumerate() {
        f(&planes.map(|p| &p[at]), first + at, out);
    }
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
        let places = low.as_chunks_mut::<16>().0.iter_mut().zip(high.as_chunks_mut::<16>().0);
        let factor = _mm256_set1_ps(*factor);
        for ((low, high), levels) in places.zip(sixteens) {
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
    let places = left.as_chunks_mut::<32>().0.iter_mut().zip(right.as_chunks_mut::<32>().0);
    let mut low = [_mm256_setzero_si256(); SUBS];
    let mut high = low;
    for (j, ((left, right), codes)) in places.zip(codes).enumerate() {
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

/// The levels of 16 codes a table, in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn level_tables<const SUBS: usize>(levels: &LevelTable) -> [__m256i; SUBS] {
    let mut tables = [_mm256_setzero_si256(); SUBS];
    for (to, from) in tables.iter_mut().zip(levels.bytes.as_chunks::<16>().0) {
        *to = load_twice(&from.map(i8::cast_unsigned));
    }
    tables
}

/// What [`products`] writes.
const F32: u8 = 0;
const BF16: u8 = 1;
const F16: u8 = 2;

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
    let places = left.chunks_exact_mut(16 * size).zip(right.chunks_exact_mut(16 * size));
    for (j, ((left, right), codes)) in places.zip(codes).enumerate() {
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

/// Bytes of a plane in halves: the lower has bits 0 to 3 of each byte, the upper bits 4 to 7; those of the
/// first 16 bytes are the low four bits of the register's bytes, those of the last 16 the high four.
#[inline]
#[target_feature(enable = "avx2")]
fn halved(plane: &[u8; BYTES]) -> __m256i {
    let [first, last] = plane.as_chunks::<16>().0 else { return _mm256_setzero_si256() };
    let first = _mm256_srlv_epi64(load_twice(first), _mm256_setr_epi64x(0, 0, 4, 4));
    let last = _mm256_sllv_epi64(load_twice(last), _mm256_setr_epi64x(4, 4, 0, 0));
    let low = _mm256_set1_epi8(15);
    _mm256_or_si256(_mm256_and_si256(low, first), _mm256_andnot_si256(low, last))
}

/// Binary32 values of one block of up to five planes, with factors and [`FLOAT_BIAS`] times minus those.
///
/// The lower half of each register has columns `8 b ..` to `8 b + 3` of 16 bytes of a plane, the upper half
/// the next four, so that interleaving within halves ends in eight columns in order. A level becomes the
/// third byte of a binary32 number between 2^15 and 2^15 + 255; the fused multiplication takes the bias off
/// again, and is exact, since level times factor has 22 bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn floats<const READ: usize, const UNIT16: bool>(
    planes: &[&[u8; BYTES]; READ],
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

/// The cells of eight values.
#[inline]
#[target_feature(enable = "avx2")]
fn cells_of(y: __m256) -> __m256i {
    let y = _mm256_min_ps(_mm256_max_ps(y, _mm256_set1_ps(-256.0)), _mm256_set1_ps(255.0));
    _mm256_cvttps_epi32(_mm256_add_ps(y, _mm256_set1_ps(256.0)))
}

/// See [`Nearest::errors`](super::nearest::Nearest::errors).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn errors(cells: &Cells, x: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
    let (whole, rest) = x.as_chunks::<16>();
    let mut sums = [[_mm256_setzero_ps(); 2]; TRIES];
    for x in whole {
        for half in 0..2 {
            // SAFETY: 16 values are there.
            let x = unsafe { _mm256_loadu_ps(x[8 * half..].as_ptr()) };
            for (sums, factor) in sums.iter_mut().zip(factors) {
                let y = _mm256_mul_ps(x, _mm256_set1_ps(*factor));
                // SAFETY: cells are 0 to 511.
                let near = unsafe { _mm256_i32gather_ps::<4>(cells.twice.as_ptr(), cells_of(y)) };
                let e = _mm256_sub_ps(y, near);
                sums[half] = _mm256_add_ps(sums[half], _mm256_mul_ps(e, e));
            }
        }
    }
    let mut out = [0.0; TRIES];
    for ((out, [low, high]), factor) in out.iter_mut().zip(sums).zip(factors) {
        let mut lanes = [0f32; 16];
        // SAFETY: 16 lanes have room.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), low);
            _mm256_storeu_ps(lanes[8..].as_mut_ptr(), high);
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            let y = x * factor;
            let e = y - cells.twice[cell(y)];
            *lane += e * e;
        }
        *out = add_lanes(&lanes);
    }
    out
}

/// See [`Nearest::codes`](super::nearest::Nearest::codes).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn nearest_codes(cells: &Cells, x: &[f32], factor: f32, codes: &mut [u8]) {
    let (whole, rest) = x.as_chunks::<8>();
    let (codes, codes_rest) = codes.as_chunks_mut::<8>();
    let f = _mm256_set1_ps(factor);
    for (x, codes) in whole.iter().zip(codes) {
        let mut at = [0u32; 8];
        // SAFETY: eight values are there, and eight lanes have room.
        unsafe {
            let y = _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr()), f);
            _mm256_storeu_si256(at.as_mut_ptr().cast(), cells_of(y));
        }
        *codes = at.map(|cell| cells.codes[cell as usize % cells.codes.len()]);
    }
    for (code, x) in codes_rest.iter_mut().zip(rest) {
        *code = cells.codes[cell(x * factor)];
    }
}

/// See [`Nearest::scatter`](super::nearest::Nearest::scatter): a mask of one bit of 32 codes is four
/// bytes of a plane.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn scatter_codes(codes: &[u8], planes: &mut [&mut [u8]]) {
    let n = planes.len();
    for (at, codes) in codes.chunks(32).enumerate() {
        let mut padded = [0; 32];
        padded[..codes.len()].copy_from_slice(codes);
        let codes = load(&padded);
        for (p, plane) in planes.iter_mut().enumerate() {
            // The bit to the top of each byte; what comes along below it doesn't matter.
            let count = _mm_cvtsi32_si128(8 - (n - p) as i32);
            let bits = _mm256_movemask_epi8(_mm256_sll_epi16(codes, count));
            let to = &mut plane[4 * at..];
            let len = to.len().min(4);
            to[..len].copy_from_slice(&bits.to_le_bytes()[..len]);
        }
    }
}

/// The steps as binary32, eight at a time.
const STEP_VALUES: [[f32; 8]; 2] = {
    let mut values = [[0.0; 8]; 2];
    let mut i = 0;
    while i < 16 {
        values[i / 8][i % 8] = STEPS[i] as f32;
        i += 1;
    }
    values
};

#[inline]
#[target_feature(enable = "avx2")]
fn load_ps(values: &[f32; 8]) -> __m256 {
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Step times activation scale, eight units at a time; `out` and `scales` have whole blocks of them.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unit_factors(steps: &[u8], scales: &[f32], out: &mut [f32]) {
    let [low, high] = STEP_VALUES.each_ref().map(|v| load_ps(v));
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

/// See [`RowDot::dot`](super::dot::RowDot::dot); units are 32 columns.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
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

/// Adds a block to `sums`; arguments as of [`from_nibbles`]. No function: as one it is not inlined, and the sums
/// go through memory.
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
                let [a, b, c, d, high] = block.as_chunks::<BYTES>().0 else { continue };
                let nibbles = [load(a), load(b), load(c), load(d)];
                add_nibbles!(sums, &tables, nibbles, Some(load(high)));
            }
            sums.total()
        }
        (RowBits::Packed(bytes), _) => {
            let mut sums = Sums::new(row, x);
            for block in bytes.as_chunks::<BLOCK>().0 {
                let mut products = [_mm256_setzero_si256(); N];
                for (k, levels) in block.as_chunks::<BYTES>().0.iter().enumerate() {
                    sums.add(&mut products, k, load(levels));
                }
                sums.end_block(products);
            }
            sums.total()
        }
    }
}

/// See [`round`](super::dot::round).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn round(x: &[f32], values: &mut [i8], scales: &mut [f32]) {
    super::dot::round(x, values, scales);
}

/// Sums over the blocks of a row.
struct Sums<'a, const N: usize> {
    x: [&'a [[i8; BYTES]]; N],
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
        let x = x.map(|x| x.strided.as_chunks::<BYTES>().0);
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

    /// Adds the products of a whole block to the sums. Four bytes of a register are one unit, and so is each
    /// 32-bit lane of the products.
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

/// The levels of columns `8 b + K` from registers with the low four bits of codes `k` and `k + 4`, and one
/// with the fifth bits of all eight.
#[inline]
#[target_feature(enable = "avx2")]
fn from_nibbles<const K: i32>(
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

/// The low four bits of codes `k` and `k + 4` from the last planes (three or four of them).
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(planes: &[&[u8; BYTES]]) -> [__m256i; 4] {
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
    let mut add = |planes: [&[u8; BYTES]; READ]| {
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
    let blocks = planes.map(|p| p.as_chunks::<BYTES>());
    for at in 0..row.cols / BLOCK {
        add(blocks.map(|(b, _)| &b[at]));
    }
    if !row.cols.is_multiple_of(BLOCK) {
        let mut padded = [[0; BYTES]; READ];
        for (to, (_, rest)) in padded.iter_mut().zip(&blocks) {
            to[..rest.len()].copy_from_slice(rest);
        }
        if blocks[0].1.is_empty() {
            // The last block is whole in bytes, not in columns.
            padded = blocks.map(|(b, _)| b.last().copied().unwrap_or([0; BYTES]));
        }
        add(padded.each_ref());
    }
    sums.total()
}

/// See [`dot_f32`](super::dot::dot_f32).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
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

/// See [`stream_copy`](super::memory::stream_copy).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn stream_copy(to: &mut [u8], from: &[u8]) {
    let head = to.as_ptr().align_offset(64).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let (to, to_tail) = to.as_chunks_mut::<64>();
    let (from, from_tail) = from.as_chunks::<64>();
    // Whole lines at a time: half a line would be written twice.
    for (to, from) in to.iter_mut().zip(from) {
        let [low, high] = from.as_chunks::<32>().0 else { continue };
        // SAFETY: 64 bytes have room, at a multiple of 64.
        unsafe {
            _mm256_stream_si256(to.as_mut_ptr().cast(), load(low));
            _mm256_stream_si256(to[32..].as_mut_ptr().cast(), load(high));
        }
    }
    to_tail.copy_from_slice(from_tail);
}

/// The codes of a row.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unpack(planes: &[&[u8]], out: &mut [u8]) {
    macro_rules! blocks {
        ($read:literal) => {
            blocks::<$read, BLOCK>(planes, out, |planes, _, out| {
                let (left, right) = out.split_at_mut(BLOCK / 2);
                let places =
                    left.as_chunks_mut::<16>().0.iter_mut().zip(right.as_chunks_mut::<16>().0);
                for (codes, (left, right)) in codes(planes).into_iter().zip(places) {
                    // SAFETY: 16 bytes have room, twice.
                    unsafe {
                        _mm256_storeu2_m128i(
                            right.as_mut_ptr().cast(),
                            left.as_mut_ptr().cast(),
                            codes,
                        );
                    }
                }
            })
        };
    }
    match planes.len() {
        3 => blocks!(3),
        4 => blocks!(4),
        5 => blocks!(5),
        6 => blocks!(6),
        7 => blocks!(7),
        _ => blocks!(8),
    }
}

/// Eight numbers of a table.
///
/// # Safety
/// Indices are below the table's length.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn gather(table: &[u32], at: __m256i) -> __m256i {
    // Loads one by one are at least as fast as the gather instruction here, and on some CPUs much faster.
    let pairs = [
        _mm256_extract_epi64::<0>(at) as u64,
        _mm256_extract_epi64::<1>(at) as u64,
        _mm256_extract_epi64::<2>(at) as u64,
        _mm256_extract_epi64::<3>(at) as u64,
    ];
    // SAFETY: the caller's promise.
    let get = |i: u64| unsafe { *table.get_unchecked(i as usize) } as i32;
    let low = |i: u64| i & 0xffff_ffff;
    _mm256_setr_epi32(
        get(low(pairs[0])),
        get(pairs[0] >> 32),
        get(low(pairs[1])),
        get(pairs[1] >> 32),
        get(low(pairs[2])),
        get(pairs[2] >> 32),
        get(low(pairs[3])),
        get(pairs[3] >> 32),
    )
}

/// The upper 16 bits of eight magnitudes that binary32 numbers of either sign have.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn top_magnitudes(top: Top, v: __m256) -> __m256i {
    let bits = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fff_ffff));
    match top {
        Top::Half32 => _mm256_srli_epi32::<16>(bits),
        Top::F16 => _mm256_cvtepu16_epi32(_mm256_cvtps_ph::<{ _MM_FROUND_TO_ZERO }>(
            _mm256_castsi256_ps(bits),
        )),
        Top::Quarter64 => {
            _mm256_add_epi32(_mm256_srli_epi32::<19>(bits), _mm256_set1_epi32(896 << 4))
        }
    }
}

/// Hints with something added to their lower halves.
#[inline]
#[target_feature(enable = "avx2")]
fn placed(hint: __m256i, top: __m256i) -> __m256i {
    _mm256_blend_epi16::<0b0101_0101>(hint, _mm256_add_epi32(hint, top))
}

/// Hints of columns, `group` of which share a factor, by the contexts of factors.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn hints_by_factor(
    contexts: &Contexts,
    codes: &[u8],
    group: usize,
    factors: &[f32],
    out: &mut [Hint],
) {
    let (doubled, top) = contexts.doubled();
    // Entries 0 to 15, and 16 to 31.
    let halves = |bytes: &[u8; FEW_CODES]| {
        // SAFETY: 32 bytes are there.
        unsafe {
            let at: *const __m128i = bytes.as_ptr().cast();
            (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)))
        }
    };
    let a = halves(doubled);
    for ((codes, out), factor) in codes.chunks(group).zip(out.chunks_mut(group)).zip(factors) {
        let [b0, b1, b2, b3] = &contexts.by_factor(*factor).hint;
        let (b0, b1, b2, b3) = (halves(b0), halves(b1), halves(b2), halves(b3));
        let half = _mm256_set1_ps(factor * 0.5);
        let (sixteens, rest) = codes.as_chunks::<16>();
        let (outs, out_rest) = out.as_chunks_mut::<16>();
        for (codes, out) in sixteens.iter().zip(outs) {
            // SAFETY: 16 bytes are there.
            let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
            let high = _mm_slli_epi16::<3>(codes);
            macro_rules! look_up {
                ($t:ident) => {{
                    let (low, upper) =
                        (_mm_shuffle_epi8($t.0, codes), _mm_shuffle_epi8($t.1, codes));
                    _mm_blendv_epi8(low, upper, high)
                }};
            }
            let (b0, b1) = (look_up!(b0), look_up!(b1));
            let (b2, b3, a) = (look_up!(b2), look_up!(b3), look_up!(a));
            let (low, low2) = (_mm_unpacklo_epi8(b0, b1), _mm_unpackhi_epi8(b0, b1));
            let (up, up2) = (_mm_unpacklo_epi8(b2, b3), _mm_unpackhi_epi8(b2, b3));
            let hint = [
                _mm256_set_m128i(_mm_unpackhi_epi16(low, up), _mm_unpacklo_epi16(low, up)),
                _mm256_set_m128i(_mm_unpackhi_epi16(low2, up2), _mm_unpacklo_epi16(low2, up2)),
            ];
            let anchor = [_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(a))];
            let places = out.as_chunks_mut::<8>().0;
            for ((hint, anchor), out) in hint.into_iter().zip(anchor).zip(places) {
                let v = _mm256_mul_ps(_mm256_cvtepi32_ps(anchor), half);
                // SAFETY: 32 bytes have room.
                unsafe {
                    let hint = placed(hint, top_magnitudes(top, v));
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), hint);
                }
            }
        }
        for (out, code) in out_rest.iter_mut().zip(rest) {
            *out = contexts.hint(*code, *factor);
        }
    }
}

/// Hints of columns, `group` of which share a factor, by the contexts of values. With `PLAIN` anchors and classes are computed (see
/// `plain_code` in `kernels::exact`).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn hints_by_value<const PLAIN: bool>(
    contexts: &Contexts,
    codes: &[u8],
    group: usize,
    factors: &[f32],
    out: &mut [Hint],
) {
    let (by_code, by_context, top, context_bits) = contexts.parts();
    if context_bits.of == ContextOf::Factor {
        return super::scalar::hints(contexts, codes, group, factors, out);
    }
    let count = |bits: u32| _mm_cvtsi32_si128(bits as i32);
    let to_mantissa = count(23 - context_bits.mantissa);
    let (from_fraction, fraction_bits) =
        (count(16 - context_bits.fraction), count(context_bits.fraction));
    let free = _mm256_set1_epi32(0x7fff);
    let each = count(context_bits.mantissa + context_bits.fraction);
    let (one, top_bit) = (_mm256_set1_epi32(1), _mm256_set1_epi32(i32::MIN));
    for ((codes, out), factor) in codes.chunks(group).zip(out.chunks_mut(group)).zip(factors) {
        let (eights, rest) = codes.as_chunks::<8>();
        let (outs, out_rest) = out.as_chunks_mut::<8>();
        let (factor_8, half) = (_mm256_set1_ps(*factor), _mm256_set1_ps(factor * 0.5));
        for (codes, out) in eights.iter().zip(outs) {
            // SAFETY: eight bytes are there.
            let codes = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast())) };
            let (v, first) = if PLAIN {
                let level = _mm256_sub_epi32(codes, _mm256_set1_epi32(128));
                let magnitude = _mm256_abs_epi32(level);
                let twice = _mm256_sub_epi32(_mm256_add_epi32(magnitude, magnitude), one);
                let anchor = _mm256_cvtepi32_ps(_mm256_max_epi32(twice, one));
                let sign = _mm256_castsi256_ps(_mm256_and_si256(level, top_bit));
                let v = _mm256_or_ps(_mm256_mul_ps(anchor, half), sign);
                let float = _mm256_castps_si256(_mm256_cvtepi32_ps(magnitude));
                let eighths =
                    _mm256_sub_epi32(_mm256_srli_epi32::<20>(float), _mm256_set1_epi32(1032));
                let small = _mm256_min_epi32(magnitude, _mm256_set1_epi32(15));
                (v, _mm256_sll_epi32(_mm256_max_epi32(eighths, small), each))
            } else {
                // SAFETY: each code has an entry.
                let entry = unsafe { gather(by_code, codes) };
                let anchor = _mm256_castsi256_ps(_mm256_andnot_si256(free, entry));
                (_mm256_mul_ps(anchor, factor_8), _mm256_and_si256(entry, free))
            };
            let bits = _mm256_castps_si256(v);
            let low_23 = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f_ffff));
            let low_16 = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff));
            let mantissa = _mm256_sll_epi32(_mm256_srl_epi32(low_23, to_mantissa), fraction_bits);
            let fraction = _mm256_srl_epi32(low_16, from_fraction);
            let number = _mm256_or_si256(mantissa, fraction);
            let context = _mm256_add_epi32(first, number);
            // SAFETY: contexts of all codes exist.
            let hint = unsafe { gather(by_context, context) };
            let sign = _mm256_slli_epi32::<15>(_mm256_srli_epi32::<31>(bits));
            let hint = placed(hint, _mm256_or_si256(sign, top_magnitudes(top, v)));
            // SAFETY: 32 bytes have room.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), hint) };
        }
        for (out, code) in out_rest.iter_mut().zip(rest) {
            *out = contexts.hint(*code, *factor);
        }
    }
}

/// The lanes that a mask names, in their order, and how many they are.
const fn lanes_of(mask: usize) -> ([u8; 8], usize) {
    let (mut lanes, mut n, mut lane) = ([0; 8], 0, 0);
    while lane < 8 {
        if mask >> lane & 1 == 1 {
            lanes[n] = lane;
            n += 1;
        }
        lane += 1;
    }
    (lanes, n)
}

/// By the lanes that take a word: where in the next 16 bytes each finds its own, for its lower half; a byte above 127 gives zero.
static SPREAD: [[u8; 32]; 256] = {
    let mut table = [[0x80; 32]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (lanes, n) = lanes_of(mask);
        let mut word = 0;
        while word < n {
            let to = 4 * lanes[word] as usize;
            (table[mask][to], table[mask][to + 1]) = (2 * word as u8, 2 * word as u8 + 1);
            word += 1;
        }
        mask += 1;
    }
    table
};

/// Decodes whole steps of all lanes while their words surely suffice; returns how many weights that are.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2).
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn decode_exact<const PRECISION: i32>(
    lanes: &mut Lanes<'_>,
    tables: &DecodeTables,
    hints: &[Hint],
    out: &mut [[u8; 2]],
) -> usize {
    let entries = &tables.entries;
    debug_assert_eq!(PRECISION, tables.precision as i32, "precision");
    // No hint leads out of the tables, whatever it says.
    let last = _mm256_set1_epi32((entries.len() - 1) as i32);
    let slots = _mm256_set1_epi32((1 << PRECISION) - 1);
    let mut x = [_mm256_setzero_si256(); 4];
    for (x, states) in x.iter_mut().zip(lanes.states.as_chunks::<8>().0) {
        // SAFETY: 32 bytes are there.
        *x = unsafe { _mm256_loadu_si256(states.as_ptr().cast()) };
    }
    let mut words = lanes.words;
    let (steps, _) = hints.as_chunks::<LANES>();
    let (outs, _) = out.as_chunks_mut::<LANES>();
    let mut done = 0;
    for (hints, out) in steps.iter().zip(outs) {
        // Each group of eight looks at eight words and takes some of them.
        if words.len() < LANES {
            break;
        }
        // All look-ups first: they wait for memory together.
        let mut entries_of = [_mm256_setzero_si256(); 4];
        let mut hints_of = [_mm256_setzero_si256(); 4];
        for g in 0..4 {
            // SAFETY: 32 bytes are there.
            let hint = unsafe { _mm256_loadu_si256(hints.as_ptr().add(8 * g).cast()) };
            let table = _mm256_slli_epi32::<PRECISION>(_mm256_srli_epi32::<24>(hint));
            let at = _mm256_or_si256(table, _mm256_and_si256(x[g], slots));
            // SAFETY: `last` is the last entry's index.
            entries_of[g] = unsafe { gather(entries, _mm256_min_epu32(at, last)) };
            hints_of[g] = hint;
        }
        let mut tops = [_mm256_setzero_si256(); 4];
        for g in 0..4 {
            let (entry, hint) = (entries_of[g], hints_of[g]);
            let bias = _mm256_and_si256(_mm256_srli_epi32::<8>(entry), _mm256_set1_epi32(0xfff));
            let times = _mm256_srli_epi32::<PRECISION>(x[g]);
            let next =
                _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32::<20>(entry), times), bias);
            let shift = _mm256_and_si256(_mm256_srli_epi32::<16>(hint), _mm256_set1_epi32(15));
            let state = _mm256_srlv_epi32(next, shift);
            // The symbol in place of what is above the raw bits.
            let symbol = _mm256_and_si256(entry, _mm256_set1_epi32(0x7f));
            let above = _mm256_sllv_epi32(_mm256_sub_epi32(symbol, state), shift);
            let low = _mm256_add_epi32(next, above);
            let flip = _mm256_slli_epi32::<8>(_mm256_and_si256(entry, _mm256_set1_epi32(0x80)));
            let value = _mm256_xor_si256(_mm256_add_epi32(hint, low), flip);
            tops[g] = _mm256_blend_epi16::<0b1010_1010>(value, _mm256_setzero_si256());
            x[g] = state;
        }
        for x in &mut x {
            let takes = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(*x), _mm256_setzero_si256());
            let mask = _mm256_movemask_ps(_mm256_castsi256_ps(takes)) as usize & 255;
            // SAFETY: of 32 words at most 24 were taken, so 16 bytes are there; so they are in the table.
            let word = unsafe {
                let next_words = _mm_loadu_si128(words.as_ptr().cast());
                let order = _mm256_loadu_si256(SPREAD[mask].as_ptr().cast());
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(next_words), order)
            };
            let filled = _mm256_or_si256(_mm256_slli_epi32::<16>(*x), word);
            *x = _mm256_blendv_epi8(*x, filled, takes);
            words = &words[mask.count_ones() as usize..];
        }
        for ([low, high], out) in tops.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            let packed =
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(*low, *high));
            // SAFETY: 32 bytes have room.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), packed) };
        }
        done += LANES;
    }
    for (x, states) in x.iter().zip(lanes.states.as_chunks_mut::<8>().0) {
        // SAFETY: 32 bytes have room.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), *x) };
    }
    lanes.words = words;
    done
}

/// By the lanes that give a word: which bytes of eight words move to the end, in their order. (What comes before is not looked at.)
#[cfg(feature = "checkpoints")]
static COLLECT: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (lanes, n) = lanes_of(mask);
        let mut word = 0;
        while word < n {
            let (from, to) = (2 * lanes[word], 2 * (8 - n + word));
            (table[mask][to], table[mask][to + 1]) = (from, from + 1);
            word += 1;
        }
        mask += 1;
    }
    table
};

/// Encodes whole steps of all lanes, the last weight first.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](super::Kernel::Avx2); hints and tops are as many, a multiple of the lanes, and the encoder has
/// room for a word of each and eight more.
#[cfg(feature = "checkpoints")]
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn encode_exact(
    encoder: &mut LaneEncoder,
    tables: &EncodeTables,
    hints: &[Hint],
    tops: &[[u8; 2]],
    first: usize,
) {
    let EncodeTables { codes, reciprocals, usual, precision } = tables;
    let zero = _mm256_setzero_si256();
    // No hint leads out of the tables, whatever it says.
    let last = _mm256_set1_epi32((codes.len() - 1) as i32);
    let (up, kept) =
        (_mm_cvtsi32_si128(*precision as i32), _mm256_set1_epi32(32 - *precision as i32));
    let mut x = [zero; 4];
    for (x, states) in x.iter_mut().zip(encoder.states.as_chunks::<8>().0) {
        // SAFETY: 32 bytes are there.
        *x = unsafe { _mm256_loadu_si256(states.as_ptr().cast()) };
    }
    let steps = hints.as_chunks::<LANES>().0.iter().zip(tops.as_chunks::<LANES>().0);
    for (step, (hints, tops)) in steps.enumerate().rev() {
        for g in (0..4).rev() {
            // SAFETY: 32 and 16 bytes are there.
            let (hint, top) = unsafe {
                (
                    _mm256_loadu_si256(hints.as_ptr().add(8 * g).cast()),
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(tops.as_ptr().add(8 * g).cast())),
                )
            };
            let shift = _mm256_and_si256(_mm256_srli_epi32::<16>(hint), _mm256_set1_epi32(15));
            // How far it is, in the lower half; the sign is its bit 15.
            let distance = _mm256_sub_epi32(top, hint);
            let near = _mm256_and_si256(distance, _mm256_set1_epi32(0x7fff));
            let symbol = _mm256_srlv_epi32(near, shift);
            let sign = _mm256_and_si256(_mm256_srli_epi32::<8>(distance), _mm256_set1_epi32(0x80));
            let table = _mm256_slli_epi32::<8>(_mm256_srli_epi32::<24>(hint));
            let low = _mm256_and_si256(symbol, _mm256_set1_epi32(0x7f));
            let number = _mm256_or_si256(table, _mm256_or_si256(sign, low));
            // SAFETY: `last` is the last code's index.
            let mut code = unsafe { gather(codes, _mm256_min_epu32(number, last)) };
            // The raw bits are what the symbol leaves.
            let mut raw = _mm256_sub_epi32(near, _mm256_sllv_epi32(symbol, shift));
            let far = _mm256_cmpgt_epi32(symbol, _mm256_set1_epi32(0x7f));
            let odd = _mm256_or_si256(far, _mm256_cmpeq_epi32(code, zero));
            let odd = _mm256_movemask_ps(_mm256_castsi256_ps(odd));
            if odd != 0 {
                let (mut own, mut own_raw) = ([0u32; 8], [0u32; 8]);
                // SAFETY: 32 bytes have room in each.
                unsafe {
                    _mm256_storeu_si256(own.as_mut_ptr().cast(), code);
                    _mm256_storeu_si256(own_raw.as_mut_ptr().cast(), raw);
                }
                for lane in (0..8).rev().filter(|lane| odd >> lane & 1 == 1) {
                    let at = 8 * g + lane;
                    encoder.exceptions.push(((first + LANES * step + at) as u16, tops[at]));
                    (own[lane], own_raw[lane]) = (usual[(hints[at] >> 24) as usize], 0);
                }
                // SAFETY: 32 bytes are there.
                unsafe {
                    code = _mm256_loadu_si256(own.as_ptr().cast());
                    raw = _mm256_loadu_si256(own_raw.as_ptr().cast());
                }
            }
            let frequency = _mm256_and_si256(code, _mm256_set1_epi32(0xffff));
            // SAFETY: no frequency is above 2^precision.
            let reciprocal = unsafe { gather(reciprocals, frequency) };
            let above = _mm256_srlv_epi32(x[g], _mm256_sub_epi32(kept, shift));
            let stays = _mm256_cmpgt_epi32(frequency, above);
            let full = !_mm256_movemask_ps(_mm256_castsi256_ps(stays)) as usize & 255;
            let low_words = _mm256_and_si256(x[g], _mm256_set1_epi32(0xffff));
            let words = _mm_packus_epi32(
                _mm256_castsi256_si128(low_words),
                _mm256_extracti128_si256::<1>(low_words),
            );
            // SAFETY: at least eight words more than are still to come have room before `start`.
            unsafe {
                let order = _mm_loadu_si128(COLLECT[full].as_ptr().cast());
                let at = encoder.words.as_mut_ptr().add(encoder.start - 8);
                _mm_storeu_si128(at.cast(), _mm_shuffle_epi8(words, order));
            }
            encoder.start -= full.count_ones() as usize;
            let state = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(x[g]), x[g], stays);
            let value = _mm256_or_si256(_mm256_sllv_epi32(state, shift), raw);
            // The upper halves of products; right, or one too small.
            let even = _mm256_srli_epi64::<32>(_mm256_mul_epu32(value, reciprocal));
            let odd = _mm256_mul_epu32(
                _mm256_srli_epi64::<32>(value),
                _mm256_srli_epi64::<32>(reciprocal),
            );
            let quotient = _mm256_blend_epi32::<0b1010_1010>(even, odd);
            let rest = _mm256_sub_epi32(value, _mm256_mullo_epi32(quotient, frequency));
            let more = _mm256_cmpgt_epi32(frequency, rest);
            // All ones where the quotient is right, else zero.
            let quotient = _mm256_add_epi32(_mm256_add_epi32(quotient, _mm256_set1_epi32(1)), more);
            let rest = _mm256_sub_epi32(rest, _mm256_andnot_si256(more, frequency));
            let slot = _mm256_add_epi32(rest, _mm256_srli_epi32::<16>(code));
            x[g] = _mm256_add_epi32(_mm256_sll_epi32(quotient, up), slot);
        }
    }
    for (x, states) in x.iter().zip(encoder.states.as_chunks_mut::<8>().0) {
        // SAFETY: 32 bytes have room.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), *x) };
    }
}
