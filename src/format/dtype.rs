//! Element types of tensors (spec/container.md, "Dtypes").

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::rule::Rule;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $bits:literal;)*) => {
        /// An element type, named as in safetensors files.
        ///
        /// # Spec
        /// UC-DTY-1.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Dtype {
            $($(#[$doc])* $variant,)*
        }

        impl Dtype {
            /// All element types, by code.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant,)*];

            /// The one-byte code of this type in index records and root leaves.
            pub const fn code(self) -> u8 {
                match self { $(Dtype::$variant => $code,)* }
            }

            /// The name of this type in safetensors headers.
            pub const fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name,)* }
            }

            /// Bits of one element.
            pub const fn bits(self) -> u64 {
                match self { $(Dtype::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    /// One byte, 0 or 1.
    Bool = 1, "BOOL", 8;
    /// Unsigned 8-bit integer.
    U8 = 2, "U8", 8;
    /// Signed 8-bit integer.
    I8 = 3, "I8", 8;
    /// Unsigned 16-bit integer.
    U16 = 4, "U16", 16;
    /// Signed 16-bit integer.
    I16 = 5, "I16", 16;
    /// Unsigned 32-bit integer.
    U32 = 6, "U32", 32;
    /// Signed 32-bit integer.
    I32 = 7, "I32", 32;
    /// Unsigned 64-bit integer.
    U64 = 8, "U64", 64;
    /// Signed 64-bit integer.
    I64 = 9, "I64", 64;
    /// IEEE 754 binary16.
    F16 = 10, "F16", 16;
    /// bfloat16: the upper half of a binary32.
    Bf16 = 11, "BF16", 16;
    /// IEEE 754 binary32.
    F32 = 12, "F32", 32;
    /// IEEE 754 binary64.
    F64 = 13, "F64", 64;
    /// Two binary32: real and imaginary part.
    C64 = 14, "C64", 64;
    /// 8-bit float, 4 exponent bits (OCP).
    F8E4M3 = 15, "F8_E4M3", 8;
    /// 8-bit float, 5 exponent bits (OCP).
    F8E5M2 = 16, "F8_E5M2", 8;
    /// 8-bit power-of-two scale (OCP MX).
    F8E8M0 = 17, "F8_E8M0", 8;
    /// 8-bit float, 4 exponent bits, no negative zero.
    F8E4M3Fnuz = 18, "F8_E4M3FNUZ", 8;
    /// 8-bit float, 5 exponent bits, no negative zero.
    F8E5M2Fnuz = 19, "F8_E5M2FNUZ", 8;
    /// 6-bit float, 2 exponent bits (OCP MX).
    F6E2M3 = 20, "F6_E2M3", 6;
    /// 6-bit float, 3 exponent bits (OCP MX).
    F6E3M2 = 21, "F6_E3M2", 6;
    /// 4-bit float (OCP MX).
    F4 = 22, "F4", 4;
}

impl Dtype {
    /// The type with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| d.code() == code)
    }

    /// The type with this safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| d.name() == name)
    }

    /// Whether `planes` tensors may have this source type: F16, BF16, F32 and F64.
    ///
    /// # Spec
    /// UC-PLN-1.
    pub const fn has_planes(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// Bytes of a tensor of this type with `shape`, or nothing when the size overflows 63 bits or
    /// isn't a whole number of bytes.
    pub fn tensor_bytes(self, shape: &[u64]) -> Option<u64> {
        let bits = elements(shape)?.checked_mul(self.bits())?;
        (bits % 8 == 0 && bits / 8 <= i64::MAX.unsigned_abs()).then_some(bits / 8)
    }

    pub(crate) fn require_code(code: u8) -> Result<Self> {
        Self::from_code(code).ok_or_else(|| {
            Error::new(
                ErrorKind::UnsupportedFeature,
                format!("dtype code {code} is not known ({})", Rule::DTY_1),
            )
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Number of elements of a tensor with `shape`; nothing when it overflows.
pub fn elements(shape: &[u64]) -> Option<u64> {
    // A zero anywhere makes the product zero, however large the other dimensions are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}
