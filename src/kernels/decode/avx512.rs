//! Rows to values with AVX-512.
//!
//! A permutation of a step's table by the codes gives the values in order. For 64 columns that is
//! five shuffles of 512 bits, one a cycle on Zen 4, beside four cycles for storing them as
//! bfloat16.

use std::arch::x86_64::*;

use super::row::{Row, Shape, Tables};
use super::scalar;
use super::to::{BF16, F16, F32};
use crate::kernels::planes::LevelTable;
use crate::kernels::simd::avx512::{
    BLOCK, Codes, Gather, LevelBytes, Planes, first, load_ps, load64,
};
use crate::kernels::target::Float;

/// Decodes one row.
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](crate::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
pub(super) unsafe fn decode_row(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    tables: &mut Tables,
    out: &mut [u8],
) {
    macro_rules! by_unit {
        ($f:ident::<$($n:tt),+>($($arg:expr),*)) => {
            if shape.unit16 {
                $f::<$($n),+, true>($($arg),*)
            } else {
                $f::<$($n),+, false>($($arg),*)
            }
        };
    }
    match (shape.float, shape.read) {
        (Float::F32, ..=5) => fill_singles(row, levels, tables),
        (Float::Bf16 | Float::F16, ..=6) => fill_halves(shape, row, levels, tables),
        _ => {}
    }
    match (shape.float, shape.read) {
        (Float::Bf16 | Float::F16, 3) => by_unit!(halves::<3>(row, tables, out)),
        (Float::Bf16 | Float::F16, 4) => by_unit!(halves::<4>(row, tables, out)),
        (Float::Bf16 | Float::F16, 5) => by_unit!(halves::<5>(row, tables, out)),
        (Float::Bf16 | Float::F16, 6) => by_unit!(halves::<6>(row, tables, out)),
        (Float::F32, 3) => by_unit!(singles::<3>(row, tables, out)),
        (Float::F32, 4) => by_unit!(singles::<4>(row, tables, out)),
        (Float::F32, 5) => by_unit!(singles::<5>(row, tables, out)),
        (Float::F32, 6) => by_unit!(products::<F32, 6>(row, levels, out)),
        (Float::F32, 7) => by_unit!(products::<F32, 7>(row, levels, out)),
        (Float::F32, _) => by_unit!(products::<F32, 8>(row, levels, out)),
        (Float::Bf16, 7) => by_unit!(products::<BF16, 7>(row, levels, out)),
        (Float::Bf16, _) => by_unit!(products::<BF16, 8>(row, levels, out)),
        (Float::F16, 7) => by_unit!(products::<F16, 7>(row, levels, out)),
        (Float::F16, _) => by_unit!(products::<F16, 8>(row, levels, out)),
        (Float::F64, _) => scalar::decode_row(shape, row, levels, tables, out),
    }
}

/// The bfloat16 nearest to each lane, in its upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn round_bf16(v: __m512) -> __m512i {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
}

/// The binary16 nearest to each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn round_f16(v: __m512) -> __m256i {
    _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
}

/// Tables of values of two bytes: 64 entries a step (of up to 5 planes, the first 32).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn fill_halves(shape: Shape, row: &Row<'_>, levels: &LevelTable, tables: &mut Tables) {
    if shape.float == Float::F16 {
        let pack =
            |a, b| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(round_f16(a)), round_f16(b));
        return fill_tables(shape, row, levels, tables, pack);
    }
    if is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the feature was detected.
        return unsafe { fill_bf16(shape, row, levels, tables) };
    }
    fill_tables(shape, row, levels, tables, |a, b| {
        let a = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(a)));
        let b = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(b)));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
    });
}

/// As [`fill_halves`] for bfloat16, with one instruction to round and pack. It flushes subnormals,
/// but a product of scale (at least 2^-126), step (at least 2^5) and level (at least 1) is none.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16")]
fn fill_bf16(shape: Shape, row: &Row<'_>, levels: &LevelTable, tables: &mut Tables) {
    fill_tables(shape, row, levels, tables, |a, b| {
        // SAFETY: both types are 64 bytes without padding.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a)) }
    });
}

/// Fills the table of each step that the row uses, 32 products at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fill_tables(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    tables: &mut Tables,
    pack: impl Fn(__m512, __m512) -> __m512i,
) {
    let used = row.used;
    let pairs = levels.values.as_chunks::<32>().0;
    for (v, pair) in
        pairs[..(1 << shape.read) / 32 + usize::from(shape.read < 5)].iter().enumerate()
    {
        let [a, b] = pair.as_chunks::<16>().0 else { return };
        let (a, b) = (load_ps(a), load_ps(b));
        for (k, (table, factor)) in tables.0.iter_mut().zip(row.factors).enumerate() {
            if used >> k & 1 == 1 {
                let factor = _mm512_set1_ps(*factor);
                let values = pack(_mm512_mul_ps(factor, a), _mm512_mul_ps(factor, b));
                let to: &mut [u8] = &mut table[64 * v..][..64];
                // SAFETY: 64 bytes are there.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), values) };
            }
        }
    }
}

/// Tables of 32 binary32 values.
#[target_feature(enable = "avx512f,avx512bw")]
fn fill_singles(row: &Row<'_>, levels: &LevelTable, tables: &mut Tables) {
    let [a, b, ..] = levels.values.as_chunks::<16>().0 else { return };
    let (a, b) = (load_ps(a), load_ps(b));
    let used = row.used;
    for (k, (table, factor)) in tables.0.iter_mut().zip(row.factors).enumerate() {
        if used >> k & 1 == 1 {
            let factor = _mm512_set1_ps(*factor);
            // SAFETY: a table has 128 bytes.
            unsafe {
                _mm512_storeu_ps(table.as_mut_ptr().cast(), _mm512_mul_ps(factor, a));
                _mm512_storeu_ps(table[64..].as_mut_ptr().cast(), _mm512_mul_ps(factor, b));
            }
        }
    }
}

/// The two vectors of the table of step `k`.
#[inline]
#[target_feature(enable = "avx512f")]
fn table(tables: &Tables, k: u8) -> (__m512i, __m512i) {
    debug_assert!(k < 16);
    // SAFETY: units are below 16, and a table has 128 bytes.
    unsafe {
        let low = tables.0.get_unchecked(usize::from(k)).as_ptr();
        (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(low.add(64).cast()))
    }
}

/// Values of two bytes, 3 to 6 planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
fn halves<const READ: usize, const UNIT16: bool>(row: &Row<'_>, tables: &Tables, out: &mut [u8]) {
    let index = load64(&Gather::<READ>::INDEX[1]);
    let bits = load64(&Gather::<READ>::BITS[1]);
    let planes = Planes::<READ>::new(row.planes);
    let per_block = if UNIT16 { 8 } else { 4 };
    let values = |codes: Codes, q: usize, units: &[u8]| {
        let lanes = codes.lanes::<2>(index, bits, q);
        let look_up = |k: u8| {
            let (low, high) = table(tables, k);
            if READ == 6 {
                _mm512_permutex2var_epi16(low, lanes, high)
            } else {
                _mm512_permutexvar_epi16(lanes, low)
            }
        };
        if UNIT16 {
            let (left, right) = (look_up(units[2 * q]), look_up(units[2 * q + 1]));
            _mm512_mask_blend_epi16(0xffff_0000, left, right)
        } else {
            look_up(units[q])
        }
    };
    let (whole, tail) = out.as_chunks_mut::<{ 2 * BLOCK }>();
    let (full, rest) = (whole.len(), whole.len() * per_block);
    for ((at, out), units) in whole.iter_mut().enumerate().zip(row.units.chunks_exact(per_block)) {
        let codes = planes.block(at);
        for (q, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            // SAFETY: 64 bytes are there.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), values(codes, q, units)) };
        }
    }
    if !tail.is_empty() {
        let codes = planes.last_block(full);
        for (q, out) in tail.chunks_mut(64).enumerate() {
            let mask = first(out.len() / 2);
            // SAFETY: the mask keeps to the words that `out` has.
            unsafe {
                let values = values(codes, q, &row.units[rest..]);
                _mm512_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, values);
            }
        }
    }
}

/// Binary32, 3 to 5 planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
fn singles<const READ: usize, const UNIT16: bool>(row: &Row<'_>, tables: &Tables, out: &mut [u8]) {
    let index = load64(&Gather::<READ>::INDEX[2]);
    let bits = load64(&Gather::<READ>::BITS[2]);
    let planes = Planes::<READ>::new(row.planes);
    let per_block = if UNIT16 { 8 } else { 4 };
    let values = |codes: Codes, q: usize, units: &[u8]| {
        let (low, high) = table(tables, units[if UNIT16 { q } else { q / 2 }]);
        let lanes = codes.lanes::<4>(index, bits, q);
        _mm512_permutex2var_ps(_mm512_castsi512_ps(low), lanes, _mm512_castsi512_ps(high))
    };
    let (whole, tail) = out.as_chunks_mut::<{ 4 * BLOCK }>();
    let (full, rest) = (whole.len(), whole.len() * per_block);
    for ((at, out), units) in whole.iter_mut().enumerate().zip(row.units.chunks_exact(per_block)) {
        let codes = planes.block(at);
        for (q, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            // SAFETY: 64 bytes are there.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), values(codes, q, units)) };
        }
    }
    if !tail.is_empty() {
        let codes = planes.last_block(full);
        for (q, out) in tail.chunks_mut(64).enumerate() {
            store::<F32>(out, values(codes, q, &row.units[rest..]));
        }
    }
}

/// Rounds and stores 16 values, or as many as `out` has room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn store<const TO: u8>(out: &mut [u8], values: __m512) {
    let bytes = if TO == F32 { 4 } else { 2 };
    let mask = first(out.len() / bytes) as u16;
    let to = out.as_mut_ptr();
    // SAFETY: the mask keeps to the values that `out` has room for.
    unsafe {
        match TO {
            F32 => _mm512_mask_storeu_ps(to.cast(), mask, values),
            BF16 => {
                let words = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(values)));
                _mm256_mask_storeu_epi16(to.cast(), mask, words);
            }
            _ => _mm256_mask_storeu_epi16(to.cast(), mask, round_f16(values)),
        }
    }
}

/// Any count of planes, by multiplication.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
fn products<const TO: u8, const READ: usize, const UNIT16: bool>(
    row: &Row<'_>,
    levels: &LevelTable,
    out: &mut [u8],
) {
    let index = load64(&Gather::<READ>::INDEX[0]);
    let bits = load64(&Gather::<READ>::BITS[0]);
    let levels = LevelBytes::load(levels);
    let planes = Planes::<READ>::new(row.planes);
    let bytes = if TO == F32 { 4 } else { 2 };
    for (at, out) in out.chunks_mut(bytes * BLOCK).enumerate() {
        let codes =
            if out.len() == bytes * BLOCK { planes.block(at) } else { planes.last_block(at) };
        for (h, out) in out.chunks_mut(bytes * 64).enumerate() {
            let level = levels.of::<READ>(codes.lanes::<1>(index, bits, h));
            let sixteens = [
                _mm512_castsi512_si128(level),
                _mm512_extracti32x4_epi32::<1>(level),
                _mm512_extracti32x4_epi32::<2>(level),
                _mm512_extracti32x4_epi32::<3>(level),
            ];
            for (i, (out, level)) in out.chunks_mut(bytes * 16).zip(sixteens).enumerate() {
                let unit = if UNIT16 { 8 * at + 4 * h + i } else { 4 * at + 2 * h + i / 2 };
                let factor = row.factors[usize::from(row.units[unit] & 15)];
                let level = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(level));
                store::<TO>(out, _mm512_mul_ps(level, _mm512_set1_ps(factor)));
            }
        }
    }
}
