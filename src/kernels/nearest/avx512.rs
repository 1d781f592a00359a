//! Searches with AVX-512: 16 weights at a time, in tables that stay in registers.

use std::arch::x86_64::*;

use super::cells::{Cells, TRIES};
use crate::kernels::simd::avx512::{first, load_some, load64};
use crate::kernels::simd::lanes::add_lanes;

/// A table of 512 bytes.
struct Bytes512([__m512i; 8]);

impl Bytes512 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8; 512]) -> Self {
        let mut all = [_mm512_setzero_si512(); 8];
        for (to, bytes) in all.iter_mut().zip(bytes.as_chunks::<64>().0) {
            *to = load64(bytes);
        }
        Self(all)
    }

    /// The byte of each index, 0 to 511, in the low byte of its lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn look_up(&self, index: __m512i) -> __m512i {
        let [a, b, c, d, e, f, g, h] = self.0;
        let at_128 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(128));
        let at_256 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(256));
        let pair = |a, b, c, d| {
            let (low, high) =
                (_mm512_permutex2var_epi8(a, index, b), _mm512_permutex2var_epi8(c, index, d));
            _mm512_mask_blend_epi32(at_128, low, high)
        };
        _mm512_mask_blend_epi32(at_256, pair(a, b, c, d), pair(e, f, g, h))
    }
}

/// The cells of 16 values.
#[inline]
#[target_feature(enable = "avx512f")]
fn cells_of(y: __m512) -> __m512i {
    let y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(-256.0)), _mm512_set1_ps(255.0));
    _mm512_cvttps_epi32(_mm512_add_ps(y, _mm512_set1_ps(256.0)))
}

/// See [`Nearest::errors`](super::Nearest::errors).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](crate::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) unsafe fn errors(cells: &Cells, x: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
    let table = Bytes512::load(&cells.levels);
    let mut sums = [_mm512_setzero_ps(); TRIES];
    for x in x.chunks(16) {
        let mask = first(x.len()) as u16;
        let x = load_some(x);
        for (sum, factor) in sums.iter_mut().zip(factors) {
            let y = _mm512_mul_ps(x, _mm512_set1_ps(*factor));
            let level = table.look_up(cells_of(y));
            // The byte goes to the top of the lane and, with its sign, back to twice its value.
            let twice = _mm512_srai_epi32::<23>(_mm512_slli_epi32::<24>(level));
            let e = _mm512_sub_ps(y, _mm512_cvtepi32_ps(twice));
            *sum = _mm512_mask_add_ps(*sum, mask, *sum, _mm512_mul_ps(e, e));
        }
    }
    sums.map(|sum| {
        let mut lanes = [0f32; 16];
        // SAFETY: 16 lanes have room.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        add_lanes(&lanes)
    })
}

/// See [`Nearest::codes`](super::Nearest::codes).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](crate::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) unsafe fn codes(cells: &Cells, x: &[f32], factor: f32, codes: &mut [u8]) {
    let table = Bytes512::load(&cells.codes);
    let factor = _mm512_set1_ps(factor);
    for (x, codes) in x.chunks(16).zip(codes.chunks_mut(16)) {
        let found = table.look_up(cells_of(_mm512_mul_ps(load_some(x), factor)));
        let mask = first(x.len()) as u16;
        // SAFETY: the mask keeps to the codes that have room.
        unsafe { _mm512_mask_cvtepi32_storeu_epi8(codes.as_mut_ptr().cast(), mask, found) };
    }
}

/// See [`Nearest::scatter`](super::Nearest::scatter): a mask of one bit of 64 codes is eight
/// bytes of a plane.
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](crate::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn scatter(codes: &[u8], planes: &mut [&mut [u8]]) {
    let (whole, rest) = codes.as_chunks::<64>();
    let n = planes.len();
    for (at, codes) in whole.iter().enumerate() {
        let codes = load64(codes);
        for (p, plane) in planes.iter_mut().enumerate() {
            let bits = _mm512_test_epi8_mask(codes, _mm512_set1_epi8((1u8 << (n - 1 - p)) as i8));
            plane[8 * at..][..8].copy_from_slice(&bits.to_le_bytes());
        }
    }
    if !rest.is_empty() {
        let mut last = [0; 64];
        last[..rest.len()].copy_from_slice(rest);
        let codes = load64(&last);
        for (p, plane) in planes.iter_mut().enumerate() {
            let bits = _mm512_test_epi8_mask(codes, _mm512_set1_epi8((1u8 << (n - 1 - p)) as i8));
            let to = &mut plane[8 * whole.len()..];
            let len = to.len();
            to.copy_from_slice(&bits.to_le_bytes()[..len]);
        }
    }
}
