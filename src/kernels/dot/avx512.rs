//! Products with AVX-512 and VNNI, in the order of [`Int8Row::laned`].

use std::arch::x86_64::*;

use super::activations::Int8Row;
use super::row::{DotRow, STEP_VALUES};
use crate::kernels::simd::avx512::{
    BLOCK, Codes, Gather, LevelBytes, Planes, first, load_ps, load_some, load64,
};

/// Step times activation scale, 16 units at a time; `out` and `scales` have whole blocks of 256
/// columns.
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](crate::Kernel::Avx512).
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn unit_factors(steps: &[u8], scales: &[f32], out: &mut [f32]) {
    let table = load_ps(&STEP_VALUES);
    let units = |eight: &[u8; 8]| {
        // SAFETY: eight bytes are there.
        let bytes = unsafe { _mm_loadl_epi64(eight.as_ptr().cast()) };
        let low = _mm_set1_epi8(15);
        let odd = _mm_and_si128(_mm_srli_epi16::<4>(bytes), low);
        _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_and_si128(bytes, low), odd))
    };
    let (whole, rest) = steps.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let (out, out_half) = out.as_chunks_mut::<16>();
    let (scales, scales_half) = scales.as_chunks::<16>();
    for ((out, scales), eight) in out.iter_mut().zip(scales).zip(whole.iter().chain([&last])) {
        let factors = _mm512_mul_ps(_mm512_permutexvar_ps(units(eight), table), load_ps(scales));
        // SAFETY: 16 values have room.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), factors) };
    }
    // A block is eight units.
    if let ([_, ..], [_, ..]) = (&*out_half, scales_half) {
        let eight = whole.get(out.len()).unwrap_or(&last);
        let factors = _mm512_permutexvar_ps(units(eight), table);
        let factors = _mm512_mul_ps(factors, load_some(scales_half));
        // SAFETY: the mask keeps to what `out` has.
        unsafe {
            let mask = first(out_half.len()) as u16;
            _mm512_mask_storeu_ps(out_half.as_mut_ptr(), mask, factors);
        }
    }
}

/// See [`RowDot::dot`](super::RowDot::dot).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](crate::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni")]
pub(super) unsafe fn dot(row: &DotRow<'_>, planes: &[&[u8]], x: &[&Int8Row], out: &mut [f32]) {
    match row.read {
        3 => dot_some::<3>(row, planes, x, out),
        4 => dot_some::<4>(row, planes, x, out),
        5 => dot_some::<5>(row, planes, x, out),
        6 => dot_some::<6>(row, planes, x, out),
        7 => dot_some::<7>(row, planes, x, out),
        _ => dot_some::<8>(row, planes, x, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni")]
fn dot_some<const READ: usize>(
    row: &DotRow<'_>,
    planes: &[&[u8]],
    x: &[&Int8Row],
    out: &mut [f32],
) {
    let planes = Planes::<READ>::new(planes);
    match (x, row.unit16) {
        ([a], false) => out[0] = dot_rows::<READ, 1, false>(row, &planes, [a])[0],
        ([a], true) => out[0] = dot_rows::<READ, 1, true>(row, &planes, [a])[0],
        ([a, rest @ ..], unit16) => {
            // Missing rows repeat the first.
            let other = |i: usize| rest.get(i).copied().unwrap_or(a);
            let x = [*a, other(0), other(1), other(2)];
            let sums = if unit16 {
                dot_rows::<READ, 4, true>(row, &planes, x)
            } else {
                dot_rows::<READ, 4, false>(row, &planes, x)
            };
            out.copy_from_slice(&sums[..out.len()]);
        }
        ([], _) => {}
    }
}

/// For the order of `Int8Row::laned`, which bytes make up the matrices of vector 0; vector 1 wants
/// two more.
const fn laned_index<const READ: usize>() -> [u8; 64] {
    let mut index = Gather::<READ>::INDEX[0];
    let mut i = 0;
    while i < 64 {
        let (word, at) = (i / 8, i / 8);
        // Byte `at` of the plane was meant.
        if i % 8 + READ >= 8 {
            index[i] += (4 * (word % 4) + word / 4) as u8;
            index[i] -= at as u8;
        }
        i += 1;
    }
    index
}

/// 128 columns at a time: codes, levels biased to 0..=255, products with `vpdpbusd` in lanes of
/// four columns. A unit has the same four lanes in both vectors, so both are added before the
/// factor comes in.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni")]
fn dot_rows<const READ: usize, const N: usize, const UNIT16: bool>(
    row: &DotRow<'_>,
    planes: &Planes<'_, READ>,
    x: [&Int8Row; N],
) -> [f32; N] {
    let first = load64(&const { laned_index::<READ>() });
    let index = [first, _mm512_add_epi8(first, _mm512_set1_epi8(2))];
    let bits = load64(&Gather::<READ>::BITS[0]);
    let mut levels = LevelBytes::load(row.levels);
    for v in &mut levels.0 {
        *v = _mm512_xor_si512(*v, _mm512_set1_epi8(-128));
    }
    // The unit of each lane: of 32 columns, or the first of two of 16.
    let unit = if UNIT16 {
        _mm512_set_epi32(6, 6, 4, 4, 2, 2, 0, 0, 6, 6, 4, 4, 2, 2, 0, 0)
    } else {
        _mm512_set_epi32(3, 3, 2, 2, 1, 1, 0, 0, 3, 3, 2, 2, 1, 1, 0, 0)
    };
    // Two sums each: additions wait for one another.
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    // No closure: with six calls it is not inlined, and sums go through memory.
    macro_rules! add {
        ($codes:expr, $at:expr) => {{
            let (codes, at): (Codes, usize) = ($codes, $at);
            let levels = index.map(|index| {
                let matrix = _mm512_permutex2var_epi8(codes.first, index, codes.second);
                levels.of::<READ>(_mm512_gf2p8affine_epi64_epi8::<0>(bits, matrix))
            });
            for n in 0..N {
                // SAFETY: activations and factors are padded to whole blocks of 256 columns.
                let (values, factors) = unsafe {
                    let values: *const __m512i = x[n].laned.as_ptr().add(128 * at).cast();
                    let factors = row.factors[n].as_ptr();
                    (
                        [0, 1].map(|v| _mm512_loadu_si512(values.add(v))),
                        if UNIT16 {
                            _mm512_castps256_ps512(_mm256_loadu_ps(factors.add(8 * at)))
                        } else {
                            _mm512_castps128_ps512(_mm_loadu_ps(factors.add(4 * at)))
                        },
                    )
                };
                if UNIT16 {
                    for v in 0..2 {
                        // SAFETY: as above.
                        let fix = unsafe {
                            _mm512_loadu_si512(x[n].fix.as_ptr().add(32 * at + 16 * v).cast())
                        };
                        let unit = _mm512_add_epi32(unit, _mm512_set1_epi32(v as i32));
                        let factor = _mm512_permutexvar_ps(unit, factors);
                        let products = _mm512_dpbusd_epi32(fix, levels[v], values[v]);
                        sums[n][v] =
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, sums[n][v]);
                    }
                } else {
                    let fix = x[n].fix_both.as_ptr();
                    // SAFETY: as above.
                    let fix = unsafe { _mm512_loadu_si512(fix.add(16 * at).cast()) };
                    let factor = _mm512_permutexvar_ps(unit, factors);
                    let products = _mm512_dpbusd_epi32(fix, levels[0], values[0]);
                    let products = _mm512_dpbusd_epi32(products, levels[1], values[1]);
                    let sum = &mut sums[n][at % 2];
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, *sum);
                }
            }
        }};
    }
    let full = row.cols / BLOCK;
    let fours = full / 4;
    for four in 0..fours {
        // A line of each plane.
        planes.prefetch(4 * four);
        // Spelled out, so that each sum has a register of its own.
        add!(planes.block(4 * four), 4 * four);
        add!(planes.block(4 * four + 1), 4 * four + 1);
        add!(planes.block(4 * four + 2), 4 * four + 2);
        add!(planes.block(4 * four + 3), 4 * four + 3);
    }
    for at in 4 * fours..full {
        add!(planes.block(at), at);
    }
    if !row.cols.is_multiple_of(BLOCK) {
        add!(planes.last_block(full), full);
    }
    sums.map(|[a, b]| _mm512_reduce_add_ps(_mm512_add_ps(a, b)))
}

/// See [`dot_f32`](super::dot_f32).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](crate::Kernel::Avx512).
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<64>();
    let (b, b_rest) = b.as_chunks::<64>();
    let mut sums = [_mm512_setzero_ps(); 4];
    for (a, b) in a.iter().zip(b) {
        let some = a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0);
        for (sum, (a, b)) in sums.iter_mut().zip(some) {
            *sum = _mm512_fmadd_ps(load_ps(a), load_ps(b), *sum);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest.chunks(16)).zip(b_rest.chunks(16)) {
        *sum = _mm512_fmadd_ps(load_some(a), load_some(b), *sum);
    }
    let [a, b, c, d] = sums;
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}
