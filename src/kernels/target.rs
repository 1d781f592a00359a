//! Steps, and the types that decoded weights are written as (spec/codec.md, "Values").

/// The sixteen steps: `round(32 * 4^(k/15))` (UC-VAL-2).
pub const STEPS: [u8; 16] = [32, 35, 38, 42, 46, 51, 56, 61, 67, 74, 81, 88, 97, 106, 117, 128];

/// A type of decoded weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    Bf16,
    F16,
    F32,
    F64,
}

impl Float {
    /// Bytes of one weight.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// The bfloat16 nearest to `v`, which is finite, ties to even (UC-VAL-4).
pub(crate) fn bf16_bits(v: f32) -> u16 {
    // Half a unit in the last place, less one when the last place is even.
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let [_, _, lo, hi] = rounded.to_le_bytes();
    u16::from_le_bytes([lo, hi])
}

/// The binary16 nearest to `v`, ties to even (UC-VAL-4).
pub(crate) fn f16_bits(v: f32) -> u16 {
    half::f16::from_f32(v).to_bits()
}
