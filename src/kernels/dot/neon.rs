//! Products with NEON, in the order of [`Int8Row::strided`]; with `SDOT` where the CPU has it.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::activations::Int8Row;
use super::row::{DotRow, NIBBLE_BYTES, Packed, RowBits};
use crate::kernels::planes::{BLOCK, BLOCK_BYTES};
use crate::kernels::simd::neon::{
    BYTES, Codes, level_tables, load, load_ps, look_up, transpose_nibbles,
};
use crate::kernels::target::STEPS;

/// Step times activation scale, eight units at a time; there are whole blocks of them.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](crate::Kernel::Neon).
#[target_feature(enable = "neon")]
pub(super) unsafe fn unit_factors(units: &[u8], scales: &[f32], out: &mut [f32]) {
    let steps = load(&STEPS);
    let some = units.as_chunks::<8>().0.iter().zip(scales.as_chunks::<8>().0);
    for (out, (units, scales)) in out.as_chunks_mut::<8>().0.iter_mut().zip(some) {
        // SAFETY: eight bytes are there.
        let units = unsafe { vld1_u8(units.as_ptr()) };
        let steps = vmovl_u8(vqtbl1_u8(steps, units));
        let fours = [vmovl_u16(vget_low_u16(steps)), vmovl_high_u16(steps)];
        let slots = out.as_chunks_mut::<4>().0.iter_mut().zip(scales.as_chunks::<4>().0);
        for ((out, scales), steps) in slots.zip(fours) {
            let factors = vmulq_f32(vcvtq_f32_u32(steps), load_ps(scales));
            // SAFETY: four values have room.
            unsafe { vst1q_f32(out.as_mut_ptr(), factors) };
        }
    }
}

/// See [`RowDot::dot`](super::RowDot::dot); units are 32 columns.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](crate::Kernel::Neon).
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
            for block in bytes.as_chunks::<BLOCK>().0 {
                let levels = block.as_chunks().0;
                sums.add(|half| [0, 1, 2, 3, 4, 5, 6, 7].map(|k| load(&levels[2 * k + half])));
            }
            sums.total()
        }
    }
}

/// Sums over the blocks of a row, those of 256 columns.
struct Sums<'a, const N: usize, const SDOT: bool> {
    x: [&'a [[i8; BLOCK]]; N],
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

    /// Adds a block. Of each half, 128 columns, `levels` are in eight registers: `k` has those of
    /// columns `8 b + k`, so that four bytes are one unit.
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

/// Adds the products of two pairs of registers; the sums of four units come out when the two of
/// `sums` are added (`SDOT`: lane by lane, otherwise each two neighbours).
#[inline]
#[target_feature(enable = "neon")]
fn add_products<const SDOT: bool>(
    [mut a, mut b]: [int32x4_t; 2],
    levels: [int8x16_t; 2],
    x: [int8x16_t; 2],
) -> [int32x4_t; 2] {
    if SDOT {
        // The intrinsic is not stable in Rust 1.95.
        // SAFETY: the CPU has the instruction, which reads and writes these registers and nothing
        // else.
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
    let full = row.cols / BLOCK;
    let mut last = [[0; BLOCK_BYTES]; READ];
    for (to, plane) in last.iter_mut().zip(planes) {
        let rest = &plane[BLOCK_BYTES * full..];
        to[..rest.len()].copy_from_slice(rest);
    }
    // One length for all: otherwise each plane would be checked at each block.
    let planes = planes.map(|p| &p.as_chunks::<BLOCK_BYTES>().0[..full]);
    // One place that adds: with two, the compiler would keep the sums in memory.
    for at in 0..row.cols.div_ceil(BLOCK) {
        let block = if at < full { planes.map(|p| &p[at]) } else { last.each_ref() };
        sums.add(|half| {
            let codes = strided(&block.map(|b| &b.as_chunks().0[half]));
            codes.map(|codes| look_up(&tables, codes))
        });
    }
    sums.total()
}

/// See [`dot_f32`](super::dot_f32).
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](crate::Kernel::Neon).
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
