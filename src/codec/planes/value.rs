//! Row scales (spec/codec.md, "Values").

use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::rule::Rule;

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
