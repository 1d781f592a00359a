//! Portable products: integers of a unit at a time.

use super::activations::Int8Row;
use super::row::{DotRow, NIBBLE_BYTES, Packed, RowBits};
use crate::kernels::planes::{BLOCK, BLOCK_BYTES};
use crate::kernels::simd::lanes::add_lanes;
use crate::kernels::simd::scalar::codes;
use crate::kernels::target::STEPS;

/// See [`RowDot::dot`](super::RowDot::dot).
pub(super) fn dot(row: &DotRow<'_>, bits: RowBits<'_>, x: &[&Int8Row], out: &mut [f32]) {
    let per_unit = if row.unit16 { 2 } else { 4 };
    out.fill(0.0);
    for u in 0..row.cols.div_ceil(8 * per_unit) {
        let bytes = u * per_unit..row.cols.div_ceil(8).min((u + 1) * per_unit);
        let mut levels = [[0i32; 8]; 4];
        for (levels, b) in levels.iter_mut().zip(bytes.clone()) {
            *levels = levels_of(row, bits, b);
        }
        for ((out, x), factors) in out.iter_mut().zip(x).zip(row.factors) {
            let values = &x.values.as_chunks::<8>().0[bytes.clone()];
            let products = levels.iter().flatten().zip(values.iter().flatten());
            let sum: i32 = products.map(|(l, x)| l * i32::from(*x)).sum();
            *out += sum as f32 * factors[u];
        }
    }
}

/// The levels of columns `8 b` to `8 b + 7`.
fn levels_of(row: &DotRow<'_>, bits: RowBits<'_>, b: usize) -> [i32; 8] {
    let level = |code: u8| i32::from(row.levels.bytes[usize::from(code)]);
    match bits {
        RowBits::Planes(planes) => codes(planes, b).map(level),
        RowBits::Packed(bytes) if Packed::of(row.read) == Packed::Nibbles => {
            let (block, b) = (b / BLOCK_BYTES, b % BLOCK_BYTES);
            let block = &bytes[block * NIBBLE_BYTES..][..NIBBLE_BYTES];
            std::array::from_fn(|k| {
                let low = block[BLOCK_BYTES * (k % 4) + b] >> (k / 4 * 4) & 15;
                level(low | (block[4 * BLOCK_BYTES + b] >> k & 1) << 4)
            })
        }
        RowBits::Packed(bytes) => {
            let (block, b) = (b / BLOCK_BYTES, b % BLOCK_BYTES);
            let block = &bytes[block * BLOCK..][..BLOCK];
            std::array::from_fn(|k| i32::from(block[BLOCK_BYTES * k + b].cast_signed()))
        }
    }
}

/// Step times activation scale of each unit, of which `per_scale` share a scale.
#[inline]
pub(super) fn unit_factors(units: &[u8], scales: &[f32], per_scale: usize, out: &mut [f32]) {
    for (u, (factor, k)) in out.iter_mut().zip(units).enumerate() {
        *factor = f32::from(STEPS[usize::from(k & 15)]) * scales[u / per_scale];
    }
}

/// See [`dot_f32`](super::dot_f32).
pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    add_lanes(&lanes) + rest
}
