//! A literal transcription of spec/codec.md, one weight at a time, with exact integers. Slow on
//! purpose: it judges the kernels in every test and is never optimised.

use bitvec::prelude::*;

use crate::codec::{Levels, PlaneCounts, PlaneLayout};
use crate::format::Dtype;

/// What a `planes` tensor stores, whole.
#[derive(Debug, Clone)]
pub struct StoredPlanes<'a> {
    /// Rows, columns, group.
    pub layout: PlaneLayout,
    /// Planes of each row.
    pub counts: &'a PlaneCounts,
    /// Level tables.
    pub levels: Levels<'a>,
    /// The scales part.
    pub scales: &'a [u8],
    /// The steps part.
    pub steps: &'a [u8],
    /// The plane parts, most significant first.
    pub planes: &'a [Vec<u8>],
}

/// Decodes weight (`row`, `col`), reading at most `rung` planes, as the bits of `dtype`.
///
/// # Panics
/// When the parts are shorter than the layout says, or `dtype` is not F16, BF16, F32 or F64.
///
/// # Spec
/// UC-PLN-3 to UC-PLN-9, UC-LVL-1, UC-VAL-1 to UC-VAL-9.
pub fn decode_weight(t: &StoredPlanes<'_>, row: usize, col: usize, rung: u8, dtype: Dtype) -> u64 {
    let cols = usize::try_from(t.layout.cols).expect("test sizes");
    let rows = usize::try_from(t.layout.rows).expect("test sizes");

    // UC-PLN-5: rows are stored in stable order of falling count.
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by_key(|&r| std::cmp::Reverse(t.counts.of(r)));
    let stored = order.iter().position(|&r| r == row).expect("row of the tensor");

    // UC-PLN-6: the place of the weight's bit in each plane.
    let row_bytes = cols.div_ceil(8);
    let bit = 8 * stored * row_bytes + col;

    // UC-VAL-5: the code is made of the planes read, most significant first.
    let native = t.counts.of(row);
    let read = native.min(rung);
    let mut code = 0usize;
    for plane in &t.planes[..usize::from(read)] {
        code = 2 * code + usize::from(plane.view_bits::<Lsb0>()[bit]);
    }
    let level = i64::from(t.levels.set(native).table(read)[code]);

    // UC-PLN-7, UC-VAL-2: the step of the weight's group.
    let step = if t.layout.group == 0 {
        128
    } else {
        let group = usize::try_from(t.layout.group).expect("at most 256");
        let per_row = cols.div_ceil(group).div_ceil(2);
        let nibbles = t.steps[stored * per_row..][..per_row].view_bits::<Lsb0>();
        let k: u8 = nibbles[4 * (col / group)..][..4].load_le();
        i64::from(
            [32, 35, 38, 42, 46, 51, 56, 61, 67, 74, 81, 88, 97, 106, 117, 128][usize::from(k)],
        )
    };

    // UC-VAL-1: the row scale is (128 + fraction) * 2^(exponent - 134).
    let scale = u16::from_le_bytes([t.scales[2 * stored], t.scales[2 * stored + 1]]);
    let fraction = i64::from(scale & 0x7f);
    let exponent = i32::from(scale >> 7);

    // UC-VAL-3: the exact value is integer * 2^(exponent - 134).
    let integer = (128 + fraction) * step * level;
    round_to(integer, exponent - 134, dtype)
}

/// UC-VAL-4, UC-VAL-7 to UC-VAL-9: the bits of the value of `dtype` nearest to
/// `integer * 2^exponent`, ties to even.
pub(crate) fn round_to(integer: i64, exponent: i32, dtype: Dtype) -> u64 {
    let (total_bits, fraction_bits, min_exponent) = match dtype {
        Dtype::F16 => (16, 10, -14),
        Dtype::Bf16 => (16, 7, -126),
        Dtype::F32 => (32, 23, -126),
        Dtype::F64 => (64, 52, -1022),
        other => panic!("{other} is no float of UC-VAL-4"),
    };
    let sign = u64::from(integer < 0) << (total_bits - 1);
    let magnitude = u128::from(integer.unsigned_abs());
    if magnitude == 0 {
        return 0;
    }
    // Exponent of the highest bit of the value; subnormals share the lowest one.
    let top = i32::try_from(magnitude.ilog2()).expect("at most 127") + exponent;
    let top = top.max(min_exponent);
    // One unit in the last place of the result is 2^ulp.
    let ulp = top - fraction_bits;
    let shift = ulp - exponent;
    let mut units = if shift <= 0 {
        magnitude << -shift
    } else {
        let shift = u32::try_from(shift).expect("positive");
        if shift > 120 {
            0
        } else {
            let floor = magnitude >> shift;
            let rest = magnitude - (floor << shift);
            let half = 1u128 << (shift - 1);
            floor + u128::from(rest > half || (rest == half && floor % 2 == 1))
        }
    };
    // `units` counts units in the last place; a normal number has the implicit bit set. Adding the
    // biased exponent on top of it carries over when rounding reached the next power of two.
    let biased = u128::from((top - min_exponent).unsigned_abs());
    units += biased << fraction_bits;
    // UC-VAL-1 keeps values finite at the source's type; a narrower target overflows to infinity,
    // the next bit pattern after the largest finite value.
    let infinity = ((1u128 << (total_bits - 1 - fraction_bits)) - 1) << fraction_bits;
    sign | u64::try_from(units.min(infinity)).expect("at most 63 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_the_half_crate_and_with_binary32() {
        // Scale bits, integer product: every exponent, products around ties.
        for exponent in (1u16..=254).step_by(1) {
            for product in
                (1i64..4_000_000).step_by(40_127).chain([1, 255 * 128 * 127, 3, 257, 513, 2049])
            {
                for integer in [product, -product] {
                    let e = i32::from(exponent) - 134;
                    #[allow(
                        clippy::cast_precision_loss,
                        reason = "the reference value is exact in f64"
                    )]
                    let exact = integer as f64 * 2f64.powi(e);
                    if exact.abs() < 3.0e38 {
                        assert_eq!(
                            round_to(integer, e, Dtype::Bf16),
                            u64::from(half::bf16::from_f64(exact).to_bits())
                        );
                        #[allow(
                            clippy::cast_possible_truncation,
                            reason = "rounding is what is tested"
                        )]
                        let single = exact as f32;
                        assert_eq!(round_to(integer, e, Dtype::F32), u64::from(single.to_bits()));
                    }
                    if exact.abs() < 65_504.0 {
                        assert_eq!(
                            round_to(integer, e, Dtype::F16),
                            u64::from(half::f16::from_f64(exact).to_bits())
                        );
                    }
                    assert_eq!(round_to(integer, e, Dtype::F64), exact.to_bits());
                }
            }
        }
    }
}
