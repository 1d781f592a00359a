//! Searches with AVX2: eight weights at a time.

use std::arch::x86_64::*;

#[cfg(feature = "checkpoints")]
use super::cells::weighted;
use super::cells::{Cells, TRIES, cell};
use crate::kernels::simd::avx2::load;
use crate::kernels::simd::lanes::add_lanes;

/// The cells of eight values.
#[inline]
#[target_feature(enable = "avx2")]
fn cells_of(y: __m256) -> __m256i {
    let y = _mm256_min_ps(_mm256_max_ps(y, _mm256_set1_ps(-256.0)), _mm256_set1_ps(255.0));
    _mm256_cvttps_epi32(_mm256_add_ps(y, _mm256_set1_ps(256.0)))
}

/// See [`Nearest::errors`](super::Nearest::errors).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
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

/// See [`Nearest::weighted_errors`](super::Nearest::weighted_errors).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[cfg(feature = "checkpoints")]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn weighted_errors(
    cells: &Cells,
    x: &[f32],
    weights: &[f32],
    factors: &[f32; TRIES],
) -> [f32; TRIES] {
    weighted(cells, x, weights, factors)
}

/// See [`Nearest::codes`](super::Nearest::codes).
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn codes(cells: &Cells, x: &[f32], factor: f32, codes: &mut [u8]) {
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

/// See [`Nearest::scatter`](super::Nearest::scatter): a mask of one bit of 32 codes is four
/// bytes of a plane.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn scatter(codes: &[u8], planes: &mut [&mut [u8]]) {
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
