//! Rows to values with NEON.
//!
//! Bytes are interleaved to the order of columns between the rounds of the transpose. Values of two
//! bytes come from byte tables by `tbl`, low and high bytes apart, and `st2` brings them together.

use std::arch::aarch64::*;

use super::row::{Row, Shape, Tables};
use super::scalar;
use super::to::{BF16, F16, F32};
use crate::kernels::planes::LevelTable;
use crate::kernels::simd::neon::{
    BLOCK, BYTES, Codes, level_tables, load, load_ps, look_up, store, transpose_nibbles,
};
use crate::kernels::target::Float;

/// Decodes one row.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](crate::Kernel::Neon).
#[target_feature(enable = "neon")]
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
            match shape.float {
                Float::Bf16 => fill_halves::<BF16, $subs>(row, levels, tables),
                _ => fill_halves::<F16, $subs>(row, levels, tables),
            }
            let (units, tables) = (row.units, &*tables);
            if shape.unit16 {
                blocks!($read, 2, |codes, at, out| {
                    halves::<$subs, true>(codes, &units[8 * at..], tables, out);
                })
            } else {
                blocks!($read, 2, |codes, at, out| {
                    halves::<$subs, false>(codes, &units[4 * at..], tables, out);
                })
            }
        }};
    }
    macro_rules! products {
        ($to:ident, $size:literal, $read:literal, $subs:literal) => {{
            let levels = level_tables::<$subs>(levels);
            let per_block = BLOCK / shape.unit();
            blocks!($read, $size, |codes, at, out| {
                let units = &row.units[per_block * at..];
                products::<$to, $subs>(codes, units, shape.unit16, row.factors, &levels, out);
            })
        }};
    }
    match (shape.float, shape.read) {
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

/// Interleaves the bytes of four registers.
#[inline]
#[target_feature(enable = "neon")]
fn interleave([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    let (p, q) = (vzip1q_u8(a, c), vzip2q_u8(a, c));
    let (r, s) = (vzip1q_u8(b, d), vzip2q_u8(b, d));
    [vzip1q_u8(p, r), vzip2q_u8(p, r), vzip1q_u8(q, s), vzip2q_u8(q, s)]
}

/// Block `at` of the planes, most significant first, as codes.
#[inline]
#[target_feature(enable = "neon")]
fn codes<const READ: usize>(planes: &[&[u8; BYTES]; READ]) -> Codes {
    // Register i: bit i of the codes, eight columns a byte.
    let mut bit = [vdupq_n_u8(0); 8];
    for (bit, plane) in bit.iter_mut().zip(planes.iter().rev()) {
        *bit = load(plane);
    }
    let [b0, b1, b2, b3, b4, b5, b6, b7] = bit;
    // Byte 4 i + k: bits 0 to 3 of columns 8 i + k and 8 i + 4 + k; `high` has bits 4 to 7.
    let low = interleave(transpose_nibbles([b0, b1, b2, b3]));
    let high = interleave(transpose_nibbles([b4, b5, b6, b7]));
    let mut out = bit;
    for ((out, low), high) in out.as_chunks_mut::<2>().0.iter_mut().zip(low).zip(high) {
        let (first, second) = if READ > 4 {
            (vsliq_n_u8::<4>(low, high), vsriq_n_u8::<4>(high, low))
        } else {
            (vandq_u8(low, vdupq_n_u8(15)), vshrq_n_u8::<4>(low))
        };
        let (first, second) = (vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second));
        *out =
            [vzip1q_u32(first, second), vzip2q_u32(first, second)].map(|v| vreinterpretq_u8_u32(v));
    }
    out
}

/// Calls `f` with codes, number and output of each block; the last may be partial and goes through
/// a buffer.
#[inline]
#[target_feature(enable = "neon")]
fn each_block<const READ: usize, const OUT: usize>(
    row: &Row<'_>,
    out: &mut [u8],
    mut f: impl FnMut(&Codes, usize, &mut [u8; OUT]),
) {
    let Ok(planes) = <&[&[u8]; READ]>::try_from(row.planes) else { return };
    let (whole, tail) = out.as_chunks_mut::<OUT>();
    let full = whole.len();
    whole_blocks(&planes.map(|p| p.as_chunks().0), 0, whole, &mut f);
    if !tail.is_empty() {
        let mut padded = [[[0; BYTES]]; READ];
        for ([to], plane) in padded.iter_mut().zip(planes) {
            let rest = &plane[BYTES * full..];
            to[..rest.len()].copy_from_slice(rest);
        }
        let mut buffer = [[0; OUT]];
        whole_blocks(&padded.each_ref().map(|p| p.as_slice()), full, &mut buffer, &mut f);
        tail.copy_from_slice(&buffer[0][..tail.len()]);
    }
}

/// The loop of [`each_block`], the only place that calls `f`: with two, the compiler leaves `f` a
/// function of its own, and codes go through memory.
#[inline]
#[target_feature(enable = "neon")]
fn whole_blocks<const READ: usize, const OUT: usize>(
    planes: &[&[[u8; BYTES]]; READ],
    first: usize,
    out: &mut [[u8; OUT]],
    f: &mut impl FnMut(&Codes, usize, &mut [u8; OUT]),
) {
    // One length for all: otherwise each plane would be checked at each block.
    let planes = planes.map(|p| &p[..out.len()]);
    for (at, out) in out.iter_mut().enumerate() {
        f(&codes(&planes.map(|p| &p[at])), first + at, out);
    }
}

/// The values of two bytes nearest to 16 values, ties to even. Conversion to binary16 keeps
/// subnormals (Rust runs with the default floating-point environment).
#[inline]
#[target_feature(enable = "neon")]
fn round<const TO: u8>([a, b, c, d]: [float32x4_t; 4]) -> [uint8x16_t; 2] {
    if TO == F16 {
        let pair = |a, b| vreinterpretq_u8_f16(vcvt_high_f16_f32(vcvt_f16_f32(a), b));
        return [pair(a, b), pair(c, d)];
    }
    // Half a unit in the last place, less one when the last place is even: the test gives -1 for
    // odd.
    let half = |bits| vsubq_u32(vdupq_n_u32(0x7fff), vtstq_u32(bits, vdupq_n_u32(1 << 16)));
    let pair = |a, b| {
        let (a, b) = (vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b));
        vreinterpretq_u8_u16(vaddhn_high_u32(vaddhn_u32(a, half(a)), b, half(b)))
    };
    [pair(a, b), pair(c, d)]
}

/// Tables of values of two bytes: `SUBS` times 16 low bytes, then as many high bytes.
#[inline]
#[target_feature(enable = "neon")]
fn fill_halves<const TO: u8, const SUBS: usize>(
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
        for ((low, high), levels) in slots.zip(sixteens) {
            let mut values = [vdupq_n_f32(0.0); 4];
            for (value, levels) in values.iter_mut().zip(levels.as_chunks::<4>().0) {
                *value = vmulq_n_f32(load_ps(levels), *factor);
            }
            let [a, b] = round::<TO>(values);
            store(low, vuzp1q_u8(a, b));
            store(high, vuzp2q_u8(a, b));
        }
    }
}

/// Values of two bytes of one block.
#[inline]
#[target_feature(enable = "neon")]
fn halves<const SUBS: usize, const UNIT16: bool>(
    codes: &Codes,
    units: &[u8],
    tables: &Tables,
    out: &mut [u8; 2 * BLOCK],
) {
    // Registers of a unit: 16 columns each.
    let per_unit = if UNIT16 { 1 } else { 2 };
    let units = &units[..8 / per_unit];
    let mut low = [vdupq_n_u8(0); SUBS];
    let mut high = low;
    for (j, (out, codes)) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes).enumerate() {
        if j % per_unit == 0 {
            let table = tables.0[usize::from(units[j / per_unit] & 15)].as_chunks::<16>().0;
            for s in 0..SUBS {
                low[s] = load(&table[s]);
                high[s] = load(&table[SUBS + s]);
            }
        }
        let pair = uint8x16x2_t(look_up(&low, *codes), look_up(&high, *codes));
        // SAFETY: 32 bytes have room.
        unsafe { vst2q_u8(out.as_mut_ptr(), pair) };
    }
}

/// Values of one block by multiplication.
#[inline]
#[target_feature(enable = "neon")]
fn products<const TO: u8, const SUBS: usize>(
    codes: &Codes,
    units: &[u8],
    unit16: bool,
    factors: &[f32; 16],
    levels: &[uint8x16_t; SUBS],
    out: &mut [u8],
) {
    let size = if TO == F32 { 4 } else { 2 };
    let units = &units[..8];
    let by_sixteen = [0, 1, 2, 3, 4, 5, 6, 7]
        .map(|j| factors[usize::from(units[if unit16 { j } else { j / 2 }] & 15)]);
    for ((out, codes), factor) in out.chunks_exact_mut(16 * size).zip(codes).zip(by_sixteen) {
        let product = |four| vmulq_n_f32(vcvtq_f32_s32(four), factor);
        let levels = vreinterpretq_s8_u8(look_up(levels, *codes));
        let (a, b) = (vmovl_s8(vget_low_s8(levels)), vmovl_high_s8(levels));
        let values = [
            product(vmovl_s16(vget_low_s16(a))),
            product(vmovl_high_s16(a)),
            product(vmovl_s16(vget_low_s16(b))),
            product(vmovl_high_s16(b)),
        ];
        let slots = out.as_chunks_mut::<16>().0.iter_mut();
        if TO == F32 {
            slots.zip(values).for_each(|(to, v)| store(to, vreinterpretq_u8_f32(v)));
        } else {
            slots.zip(round::<TO>(values)).for_each(|(to, v)| store(to, v));
        }
    }
}
