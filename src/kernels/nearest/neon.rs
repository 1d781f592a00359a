//! Searches with NEON: four weights at a time.

use std::arch::aarch64::*;

use super::cells::{CELLS, Cells, TRIES, cell};
use crate::kernels::simd::lanes::add_lanes;
use crate::kernels::simd::neon::{BLOCK, BYTES, load, load_ps, store, transpose_nibbles};

/// The reverse of interleaving: every fourth byte of four registers, one after the other.
#[inline]
#[target_feature(enable = "neon")]
fn separate([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    let (p, r) = (vuzp1q_u8(a, b), vuzp2q_u8(a, b));
    let (q, s) = (vuzp1q_u8(c, d), vuzp2q_u8(c, d));
    [vuzp1q_u8(p, q), vuzp1q_u8(r, s), vuzp2q_u8(p, q), vuzp2q_u8(r, s)]
}

/// The cells of four values.
#[inline]
#[target_feature(enable = "neon")]
fn cells_of(y: float32x4_t) -> [usize; 4] {
    let y = vminq_f32(vmaxq_f32(y, vdupq_n_f32(-256.0)), vdupq_n_f32(255.0));
    let at = vreinterpretq_u64_s32(vcvtq_s32_f32(vaddq_f32(y, vdupq_n_f32(256.0))));
    let (a, b) = (vgetq_lane_u64::<0>(at), vgetq_lane_u64::<1>(at));
    // Cells are 0 to 511 already; masks say so to the compiler.
    [a, a >> 32, b, b >> 32].map(|cell| cell as usize % CELLS)
}

/// See [`Nearest::errors`](super::Nearest::errors). One factor at a time, so that four sums
/// and four look-ups overlap. No operation may be fused.
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](crate::Kernel::Neon).
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

/// The bytes of one block in each plane, least significant first: what the decoder does, backwards.
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

/// See [`Nearest::scatter`](super::Nearest::scatter).
///
/// # Safety
/// The CPU can run [`Kernel::Neon`](crate::Kernel::Neon).
#[target_feature(enable = "neon")]
pub(super) unsafe fn scatter(codes: &[u8], planes: &mut [&mut [u8]]) {
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
