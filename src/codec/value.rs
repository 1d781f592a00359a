//! The value of a weight and its rounding (spec/codec.md, "Values").

use crate::error::{Error, Result};
use crate::format::{Dtype, Rule};

/// The sixteen steps: `round(32 * 4^(k/15))` (UC-VAL-2).
pub const STEPS: [u8; 16] = [32, 35, 38, 42, 46, 51, 56, 61, 67, 74, 81, 88, 97, 106, 117, 128];

/// The highest biased exponent of a row scale for tensors of this source type (UC-VAL-1).
///
/// It leaves room for the largest step and level (2^7 each) below the type's largest finite value.
pub(crate) fn max_scale_exponent(dtype: Dtype) -> u16 {
    if dtype == Dtype::F16 { 128 } else { 240 }
}

/// Checks that `bits` is a positive normal bfloat16 whose products stay finite in `dtype`.
///
/// # Errors
/// `Malformed(UC-VAL-1)`.
pub(crate) fn check_scale(bits: u16, dtype: Dtype) -> Result<()> {
    let exponent = (bits >> 7) & 0xff;
    if bits >> 15 != 0 || exponent == 0 || exponent > max_scale_exponent(dtype) {
        return Err(Error::malformed(
            Rule::VAL_1,
            format!(
                "row scale {bits:#06x} is not a positive normal bfloat16 with exponent up to {} ({dtype} tensor)",
                max_scale_exponent(dtype)
            ),
        ));
    }
    Ok(())
}

/// The row scale as a binary32.
pub(crate) fn scale_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// A type that decoded weights are written as: little-endian bytes of the nearest value, ties to
/// even (UC-VAL-4).
pub(crate) trait Target: Copy {
    /// Bytes of one weight.
    const BYTES: usize;
    /// Writes the nearest value to `v`, which is finite.
    fn put(v: f32, out: &mut [u8]);
}

#[derive(Clone, Copy)]
pub(crate) struct ToBf16;
#[derive(Clone, Copy)]
pub(crate) struct ToF16;
#[derive(Clone, Copy)]
pub(crate) struct ToF32;
#[derive(Clone, Copy)]
pub(crate) struct ToF64;

impl Target for ToBf16 {
    const BYTES: usize = 2;
    fn put(v: f32, out: &mut [u8]) {
        // Finite input: half a unit in the last place, less one when the last place is even.
        let bits = v.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let [_, _, lo, hi] = rounded.to_le_bytes();
        out.copy_from_slice(&[lo, hi]);
    }
}

impl Target for ToF16 {
    const BYTES: usize = 2;
    fn put(v: f32, out: &mut [u8]) {
        out.copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
    }
}

impl Target for ToF32 {
    const BYTES: usize = 4;
    fn put(v: f32, out: &mut [u8]) {
        out.copy_from_slice(&v.to_le_bytes());
    }
}

impl Target for ToF64 {
    const BYTES: usize = 8;
    fn put(v: f32, out: &mut [u8]) {
        out.copy_from_slice(&f64::from(v).to_le_bytes());
    }
}
