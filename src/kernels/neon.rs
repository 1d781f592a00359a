//! NEON, which every AArch64 CPU has. Little-endian only: lanes of different widths share registers.
//!
//! A block is 128 columns, 16 bytes of each plane. An 8 x 8 bit transpose turns them into codes: two
//! rounds of swaps within each nibble, on four registers at a time; then bytes are interleaved to the
//! order of columns; the round between nibbles comes last, where up to 4 planes leave one register
//! for two, and where `sli` and `sri` need no masks. Values of two bytes come from byte tables by `tbl`,
//! low and high bytes apart, and `st2` brings them together.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::decode::{LevelTable, Row, Shape, Tables};
use super::dot::{self, DotRow, Int8Row, NIBBLE_BYTES, Packed, RowBits};
use super::nearest::{Cells, TRIES, add_lanes, cell};
use super::target::{Float, STEPS};

/// Columns of a block.
const BLOCK: usize = 128;
/// Bytes of a block in one plane.
const BYTES: usize = BLOCK / 8;

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are there.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_ps(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: four values are there.
    unsafe { vld1q_f32(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(to: &mut [u8; 16], v: uint8x16_t) {
    // SAFETY: 16 bytes are there.
    unsafe { vst1q_u8(to.as_mut_ptr(), v) };
}

/// Codes of a block: register `j` has columns `16 j ..`.
type Codes = [uint8x16_t; 8];

/// Transposes a 4 x 4 bit matrix in each nibble: bit `i` of register `j` becomes bit `j` of register `i`.
#[inline]
#[target_feature(enable = "neon")]
fn transpose_nibbles(mut v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    // Exchange the upper part of each field of `a` with the lower part of `b`'s.
    macro_rules! swap {
        ($shift:literal, $mask:literal, $a:literal, $b:literal) => {
            let mask = vdupq_n_u8($mask);
            let (a, b) = (v[$a], v[$b]);
            v[$a] = vbslq_u8(mask, a, vshlq_n_u8::<$shift>(b));
            v[$b] = vbslq_u8(mask, vshrq_n_u8::<$shift>(a), b);
        };
    }
    swap!(2, 0x33, 0, 2);
    swap!(2, 0x33, 1, 3);
    swap!(1, 0x55, 0, 1);
    swap!(1, 0x55, 2, 3);
    v
}

/// Interleaves the bytes of four registers.
#[inline]
#[target_feature(enable = "neon")]
fn interleave([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    let (p, q) = (vzip1q_u8(a, c), vzip2q_u8(a, c));
    let (r, s) = (vzip1q_u8(b, d), vzip2q_u8(b, d));
    [vzip1q_u8(p, r), vzip2q_u8(p, r), vzip1q_u8(q, s), vzip2q_u8(q, s)]
}

/// The reverse of [`interleave`].
#[inline]
#[target_feature(enable = "neon")]
fn separate([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    let (p, r) = (vuzp1q_u8(a, b), vuzp2q_u8(a, b));
    let (q, s) = (vuzp1q_u8(c, d), vuzp2q_u8(c, d));
    [vuzp1q_u8(p, q), vuzp1q_u8(r, s), vuzp2q_u8(p, q), vuzp2q_u8(r, s)]
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

/// Looks up `N` tables of 16 bytes, one behind the other, by codes below `16 N`.
#[inline]
#[target_feature(enable = "neon")]
fn look_up<const N: usize>(tables: &[uint8x16_t; N], codes: uint8x16_t) -> uint8x16_t {
    match *tables.as_slice() {
        [a] => vqtbl1q_u8(a, codes),
        [a, b] => vqtbl2q_u8(uint8x16x2_t(a, b), codes),
        _ => {
            let mut found = codes;
            for (s, &[a, b, c, d]) in tables.as_chunks::<4>().0.iter().enumerate() {
                let four = uint8x16x4_t(a, b, c, d);
                found = if s == 0 {
                    vqtbl4q_u8(four, codes)
                } else {
                    // Codes of other tables become 64 or more, where `tbx` changes nothing.
                    vqtbx4q_u8(found, four, vsubq_u8(codes, vdupq_n_u8((64 * s) as u8)))
                };
            }
            found
        }
    }
}

/// Decodes one row.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](super::Kernel::Neon).
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
        (Float::F64, _) => super::scalar::decode_row(shape, row, levels, tables, out),
    }
}

/// Calls `f` with codes, number and output of each block; the last may be partial and goes through a buffer.
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

/// The loop of [`each_block`], the only place that calls `f`: with two, the compiler leaves `f` a function of
/// its own, and codes go through memory.
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

/// What [`round`] and [`products`] write.
const F32: u8 = 0;
const BF16: u8 = 1;
const F16: u8 = 2;

/// The values of two bytes nearest to 16 values, ties to even. Conversion to binary16 keeps subnormals
/// (Rust runs with the default floating-point environment).
#[inline]
#[target_feature(enable = "neon")]
fn round<const TO: u8>([a, b, c, d]: [float32x4_t; 4]) -> [uint8x16_t; 2] {
    if TO == F16 {
        let pair = |a, b| vreinterpretq_u8_f16(vcvt_high_f16_f32(vcvt_f16_f32(a), b));
        return [pair(a, b), pair(c, d)];
    }
    // Half a unit in the last place, less one when the last place is even: the test gives -1 for odd.
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
        let places = low.as_chunks_mut::<16>().0.iter_mut().zip(high.as_chunks_mut::<16>().0);
        for ((low, high), levels) in places.zip(sixteens) {
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

/// The levels of 16 codes a table.
#[inline]
#[target_feature(enable = "neon")]
fn level_tables<const SUBS: usize>(levels: &LevelTable) -> [uint8x16_t; SUBS] {
    let mut tables = [vdupq_n_u8(0); SUBS];
    for (to, from) in tables.iter_mut().zip(levels.bytes.as_chunks::<16>().0) {
        *to = load(&from.map(i8::cast_unsigned));
    }
    tables
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
        let places = out.as_chunks_mut::<16>().0.iter_mut();
        if TO == F32 {
            places.zip(values).for_each(|(to, v)| store(to, vreinterpretq_u8_f32(v)));
        } else {
            places.zip(round::<TO>(values)).for_each(|(to, v)| store(to, v));
        }
    }
}

/// The cells of four values.
#[inline]
#[target_feature(enable = "neon")]
fn cells_of(y: float32x4_t) -> [usize; 4] {
    let y = vminq_f32(vmaxq_f32(y, vdupq_n_f32(-256.0)), vdupq_n_f32(255.0));
    let at = vreinterpretq_u64_s32(vcvtq_s32_f32(vaddq_f32(y, vdupq_n_f32(256.0))));
    let (a, b) = (vgetq_lane_u64::<0>(at), vgetq_lane_u64::<1>(at));
    // Cells are 0 to 511 already; masks say so to the compiler.
    [a, a >> 32, b, b >> 32].map(|cell| cell as usize % 512)
}

/// See [`Nearest::errors`](super::nearest::Nearest::errors). One factor at a time, so that four sums
/// and four look-ups overlap. No operation may be fused.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](super::Kernel::Neon).
#[target_feature(enable = "neon")]
pub(super) unsafe fn errors(cells: &Cells, x: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
    let (whole, rest) = x.as_chunks::<16>();
    let mut out = [0.0; TRIES];
    for (out, factor) in out.iter_mut().zip(factors) {
        let mut sums = [vdupq_n_f32(0.0); 4];
        for x in whole {
            for (sum, x) in sums.iter_mut().zip(x.as_chunks::<4>().0) {
                let y = vmulq_n_f32(load_ps(x), *factor);
                let e = vsubq_f32(y, load_ps(&cells_of(y).map(|cell| cells.twice[cell])));
                *sum = vaddq_f32(*sum, vmulq_f32(e, e));
            }
        }
        let mut lanes = [0f32; 16];
        for (lanes, sum) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            // SAFETY: four lanes have room.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), sum) };
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

/// The bytes of one block in each plane, least significant first: what [`codes`] does, backwards.
#[inline]
#[target_feature(enable = "neon")]
fn plane_bytes(codes: &[u8; BLOCK]) -> [[u8; BYTES]; 8] {
    let (mut low, mut high) = ([vdupq_n_u8(0); 4], [vdupq_n_u8(0); 4]);
    let pairs = codes.as_chunks::<16>().0.as_chunks::<2>().0;
    for (pair, (low, high)) in pairs.iter().zip(low.iter_mut().zip(&mut high)) {
        let [a, b] = pair.each_ref().map(|codes| vreinterpretq_u32_u8(load(codes)));
        let (first, second) =
            (vreinterpretq_u8_u32(vuzp1q_u32(a, b)), vreinterpretq_u8_u32(vuzp2q_u32(a, b)));
        *low = vsliq_n_u8::<4>(first, second);
        *high = vsriq_n_u8::<4>(second, first);
    }
    let mut out = [[0; BYTES]; 8];
    let bits = [low, high].map(|four| transpose_nibbles(separate(four)));
    out.iter_mut().zip(bits.as_flattened()).for_each(|(to, v)| store(to, *v));
    out
}

/// See [`Nearest::scatter`](super::nearest::Nearest::scatter).
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](super::Kernel::Neon).
#[target_feature(enable = "neon")]
pub(super) unsafe fn scatter_codes(codes: &[u8], planes: &mut [&mut [u8]]) {
    let (whole, rest) = codes.as_chunks::<BLOCK>();
    for (at, codes) in whole.iter().enumerate() {
        for (plane, bytes) in planes.iter_mut().rev().zip(plane_bytes(codes)) {
            plane[BYTES * at..][..BYTES].copy_from_slice(&bytes);
        }
    }
    if !rest.is_empty() {
        let mut last = [0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        for (plane, bytes) in planes.iter_mut().rev().zip(plane_bytes(&last)) {
            let to = &mut plane[BYTES * whole.len()..];
            let len = to.len();
            to.copy_from_slice(&bytes[..len]);
        }
    }
}

/// Step times activation scale, eight units at a time; there are whole blocks of them.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](super::Kernel::Neon).
#[target_feature(enable = "neon")]
pub(super) unsafe fn unit_factors(units: &[u8], scales: &[f32], out: &mut [f32]) {
    let steps = load(&STEPS);
    let some = units.as_chunks::<8>().0.iter().zip(scales.as_chunks::<8>().0);
    for (out, (units, scales)) in out.as_chunks_mut::<8>().0.iter_mut().zip(some) {
        // SAFETY: eight bytes are there.
        let units = unsafe { vld1_u8(units.as_ptr()) };
        let steps = vmovl_u8(vqtbl1_u8(steps, units));
        let fours = [vmovl_u16(vget_low_u16(steps)), vmovl_high_u16(steps)];
        let places = out.as_chunks_mut::<4>().0.iter_mut().zip(scales.as_chunks::<4>().0);
        for ((out, scales), steps) in places.zip(fours) {
            let factors = vmulq_f32(vcvtq_f32_u32(steps), load_ps(scales));
            // SAFETY: four values have room.
            unsafe { vst1q_f32(out.as_mut_ptr(), factors) };
        }
    }
}

/// See [`RowDot::dot`](super::dot::RowDot::dot); units are 32 columns.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](super::Kernel::Neon).
#[target_feature(enable = "neon")]
pub(super) unsafe fn dot(row: &DotRow<'_>, bits: RowBits<'_>, x: &[&Int8Row], out: &mut [f32]) {
    let sdot = is_aarch64_feature_detected!("dotprod");
    match x {
        [a] if sdot => out.copy_from_slice(&dot_some::<1, true>(row, bits, [a])),
        [a] => out.copy_from_slice(&dot_some::<1, false>(row, bits, [a])),
        [a, rest @ ..] => {
            // Missing rows repeat the first.
            let other = |i: usize| rest.get(i).copied().unwrap_or(a);
            let x = [*a, other(0), other(1), other(2)];
            let sums = if sdot {
                dot_some::<4, true>(row, bits, x)
            } else {
                dot_some::<4, false>(row, bits, x)
            };
            out.copy_from_slice(&sums[..out.len()]);
        }
        [] => {}
    }
}

/// `SDOT` only where the CPU has that instruction.
#[target_feature(enable = "neon")]
fn dot_some<const N: usize, const SDOT: bool>(
    row: &DotRow<'_>,
    bits: RowBits<'_>,
    x: [&Int8Row; N],
) -> [f32; N] {
    let mut sums = Sums::<N, SDOT>::new(row, x);
    match (bits, row.read) {
        (RowBits::Planes(p), 3) => dot_planes::<3, 1, N, SDOT>(row, p, sums),
        (RowBits::Planes(p), 4) => dot_planes::<4, 1, N, SDOT>(row, p, sums),
        (RowBits::Planes(p), 5) => dot_planes::<5, 2, N, SDOT>(row, p, sums),
        (RowBits::Planes(p), 6) => dot_planes::<6, 4, N, SDOT>(row, p, sums),
        (RowBits::Planes(p), 7) => dot_planes::<7, 8, N, SDOT>(row, p, sums),
        (RowBits::Planes(p), _) => dot_planes::<8, 16, N, SDOT>(row, p, sums),
        (RowBits::Packed(bytes), read) if Packed::of(read) == Packed::Nibbles => {
            let tables = level_tables::<2>(row.levels);
            for block in bytes.as_chunks::<NIBBLE_BYTES>().0 {
                // Register `2 i + half`.
                let at = |i: usize| load(&block.as_chunks().0[i]);
                sums.add(|half| {
                    let low = [0, 1, 2, 3].map(|i| at(2 * i + half));
                    let zero = vdupq_n_u8(0);
                    let high = transpose_nibbles([at(8 + half), zero, zero, zero]);
                    join(low, high).map(|codes| look_up(&tables, codes))
                });
            }
            sums.total()
        }
        (RowBits::Packed(bytes), _) => {
            for block in bytes.as_chunks::<{ dot::BLOCK }>().0 {
                let levels = block.as_chunks().0;
                sums.add(|half| [0, 1, 2, 3, 4, 5, 6, 7].map(|k| load(&levels[2 * k + half])));
            }
            sums.total()
        }
    }
}

/// Sums over the blocks of a row, those of 256 columns.
struct Sums<'a, const N: usize, const SDOT: bool> {
    x: [&'a [[i8; dot::BLOCK]]; N],
    factors: [&'a [[f32; 8]]; N],
    at: usize,
    sums: [float32x4_t; N],
}

impl<'a, const N: usize, const SDOT: bool> Sums<'a, N, SDOT> {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(row: &DotRow<'a>, x: [&'a Int8Row; N]) -> Self {
        let mut factors = [&[][..]; N];
        for (to, from) in factors.iter_mut().zip(row.factors) {
            *to = from.as_chunks().0;
        }
        let x = x.map(|x| x.strided.as_chunks().0);
        Self { x, factors, at: 0, sums: [vdupq_n_f32(0.0); N] }
    }

    /// Adds a block. Of each half, 128 columns, `levels` are in eight registers: `k` has those of columns
    /// `8 b + k`, so that four bytes are one unit.
    #[inline]
    #[target_feature(enable = "neon")]
    fn add(&mut self, levels: impl Fn(usize) -> [uint8x16_t; 8]) {
        let x = self.x.map(|x| x[self.at].as_chunks::<16>().0);
        let factors = self.factors.map(|f| f[self.at].as_chunks::<4>().0);
        for half in 0..2 {
            let mut products = [[vdupq_n_s32(0); 2]; N];
            let levels = levels(half).map(|v| vreinterpretq_s8_u8(v));
            for (i, two) in levels.as_chunks::<2>().0.iter().enumerate() {
                for (products, x) in products.iter_mut().zip(&x) {
                    let x = [0, 1].map(|j| load(&x[4 * i + 2 * j + half].map(i8::cast_unsigned)));
                    *products =
                        add_products::<SDOT>(*products, *two, x.map(|v| vreinterpretq_s8_u8(v)));
                }
            }
            for ((sum, [a, b]), factors) in self.sums.iter_mut().zip(products).zip(factors) {
                let units = if SDOT { vaddq_s32(a, b) } else { vpaddq_s32(a, b) };
                *sum = vfmaq_f32(*sum, vcvtq_f32_s32(units), load_ps(&factors[half]));
            }
        }
        self.at += 1;
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn total(self) -> [f32; N] {
        self.sums.map(|sum| vaddvq_f32(sum))
    }
}

/// Adds the products of two pairs of registers; the sums of four units come out when the two of `sums` are
/// added (`SDOT`: lane by lane, otherwise each two neighbours).
#[inline]
#[target_feature(enable = "neon")]
fn add_products<const SDOT: bool>(
    [mut a, mut b]: [int32x4_t; 2],
    levels: [int8x16_t; 2],
    x: [int8x16_t; 2],
) -> [int32x4_t; 2] {
    if SDOT {
        // The intrinsic is not stable in Rust 1.95.
        // SAFETY: the CPU has the instruction, which reads and writes these registers and nothing else.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {a:v}.4s, {l:v}.16b, {x:v}.16b",
                "sdot {b:v}.4s, {m:v}.16b, {y:v}.16b",
                a = inout(vreg) a,
                b = inout(vreg) b,
                l = in(vreg) levels[0],
                x = in(vreg) x[0],
                m = in(vreg) levels[1],
                y = in(vreg) x[1],
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        return [a, b];
    }
    // Up to 2 x 128 x 127: within 16 bits.
    let [(l, x), (m, y)] = [(levels[0], x[0]), (levels[1], x[1])];
    let low = vmlal_s8(vmull_s8(vget_low_s8(l), vget_low_s8(x)), vget_low_s8(m), vget_low_s8(y));
    let high = vmlal_high_s8(vmull_high_s8(l, x), m, y);
    [vpadalq_s16(a, low), vpadalq_s16(b, high)]
}

/// Codes from their low and high four bits: those of codes `k` and `k + 4` are in registers `k`.
#[inline]
#[target_feature(enable = "neon")]
fn join(low: [uint8x16_t; 4], high: [uint8x16_t; 4]) -> Codes {
    let mut out = [vdupq_n_u8(0); 8];
    for k in 0..4 {
        out[k] = vsliq_n_u8::<4>(low[k], high[k]);
        out[k + 4] = vsriq_n_u8::<4>(high[k], low[k]);
    }
    out
}

/// 128 columns of the planes as codes: register `k` has column `8 b + k` in byte `b`.
#[inline]
#[target_feature(enable = "neon")]
fn strided<const READ: usize>(planes: &[&[u8; BYTES]; READ]) -> Codes {
    let mut bit = [vdupq_n_u8(0); 8];
    for (bit, plane) in bit.iter_mut().zip(planes.iter().rev()) {
        *bit = load(plane);
    }
    let [b0, b1, b2, b3, b4, b5, b6, b7] = bit;
    let low = transpose_nibbles([b0, b1, b2, b3]);
    if READ > 4 {
        return join(low, transpose_nibbles([b4, b5, b6, b7]));
    }
    let mut out = bit;
    for k in 0..4 {
        out[k] = vandq_u8(low[k], vdupq_n_u8(15));
        out[k + 4] = vshrq_n_u8::<4>(low[k]);
    }
    out
}

#[target_feature(enable = "neon")]
fn dot_planes<const READ: usize, const SUBS: usize, const N: usize, const SDOT: bool>(
    row: &DotRow<'_>,
    planes: &[&[u8]],
    mut sums: Sums<'_, N, SDOT>,
) -> [f32; N] {
    let Ok(planes) = <&[&[u8]; READ]>::try_from(planes) else { return [0.0; N] };
    let tables = level_tables::<SUBS>(row.levels);
    let full = row.cols / dot::BLOCK;
    let mut last = [[0; 2 * BYTES]; READ];
    for (to, plane) in last.iter_mut().zip(planes) {
        let rest = &plane[2 * BYTES * full..];
        to[..rest.len()].copy_from_slice(rest);
    }
    // One length for all: otherwise each plane would be checked at each block.
    let planes = planes.map(|p| &p.as_chunks::<{ 2 * BYTES }>().0[..full]);
    // One place that adds: with two, the compiler would keep the sums in memory.
    for at in 0..row.cols.div_ceil(dot::BLOCK) {
        let block = if at < full { planes.map(|p| &p[at]) } else { last.each_ref() };
        sums.add(|half| {
            let codes = strided(&block.map(|b| &b.as_chunks().0[half]));
            codes.map(|codes| look_up(&tables, codes))
        });
    }
    sums.total()
}

/// See [`dot_f32`](super::dot::dot_f32).
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](super::Kernel::Neon).
#[target_feature(enable = "neon")]
pub(super) unsafe fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<32>();
    let (b, b_rest) = b.as_chunks::<32>();
    let mut sums = [vdupq_n_f32(0.0); 8];
    for (a, b) in a.iter().zip(b) {
        let fours = a.as_chunks::<4>().0.iter().zip(b.as_chunks::<4>().0);
        for (sum, (a, b)) in sums.iter_mut().zip(fours) {
            *sum = vfmaq_f32(*sum, load_ps(a), load_ps(b));
        }
    }
    let [c, d, e, f, g, h, i, j] = sums;
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    let (low, high) = (add_four([c, d, e, f]), add_four([g, h, i, j]));
    vaddvq_f32(vaddq_f32(low, high)) + rest
}

#[inline]
#[target_feature(enable = "neon")]
fn add_four([a, b, c, d]: [float32x4_t; 4]) -> float32x4_t {
    vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))
}
