//! The value that is expected of a weight, from its code and its factor: contexts and their hints.

use crate::kernels::planes::CODES;

/// What is known of a weight before it is decoded: bits 0 to 15 what its symbol 0 stands for, bits
/// 16 to 19 the shift, bits 24 to 31 the table.
pub(crate) type Hint = u32;

/// Where the upper 16 bits of a type's values lie, given the binary32 number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Top {
    /// bfloat16, and the upper half of binary32.
    Half32,
    /// binary16, rounded towards zero.
    F16,
    /// The upper quarter of binary64.
    Quarter64,
}

impl Top {
    /// The upper 16 bits of the value `v`, which is normal, towards zero.
    pub(crate) fn of(self, v: f32) -> u32 {
        let bits = v.to_bits();
        match self {
            Self::Half32 => bits >> 16,
            Self::F16 => f16_towards_zero(bits),
            Self::Quarter64 => {
                let (exponent, mantissa) = ((bits >> 23) & 0xff, bits & 0x7f_ffff);
                (bits >> 31) << 15 | (exponent + 896) << 4 | mantissa >> 19
            }
        }
    }
}

/// The binary16 next to a binary32 number below 65,520, towards zero.
fn f16_towards_zero(bits: u32) -> u32 {
    let (sign, exponent, mantissa) = (bits >> 31 << 15, (bits >> 23) & 0xff, bits & 0x7f_ffff);
    match exponent {
        113.. => sign | (exponent - 112) << 10 | mantissa >> 13,
        // Subnormal: the implied bit moves into the mantissa.
        102..113 => sign | (mantissa | 1 << 23) >> (126 - exponent),
        _ => sign,
    }
}

/// Which number's mantissa a context is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContextOf {
    /// The factor's (scale times step).
    Factor,
    /// The expected value's, with bits below those that are coded.
    Value,
}

/// The contexts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContextBits {
    pub of: ContextOf,
    /// Upper bits of the mantissa.
    pub mantissa: u32,
    /// Bits below the upper 16.
    pub fraction: u32,
}

impl ContextBits {
    /// Contexts of a class.
    pub(crate) fn each(self) -> usize {
        1 << (self.mantissa + self.fraction)
    }

    /// Which of them belongs to the number with these bits.
    fn number(self, bits: u32) -> u32 {
        let mantissa = (bits & 0x7f_ffff) >> (23 - self.mantissa);
        mantissa << self.fraction | (bits & 0xffff) >> (16 - self.fraction)
    }
}

/// Codes that [`ByCode`] has room for.
pub(super) const FEW_CODES: usize = 32;

/// What hints of one factor are made from, byte by byte, by code.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "for kernels that use byte tables")
)]
#[repr(C, align(32))]
#[derive(Debug, Clone, Copy)]
pub(super) struct ByCode {
    /// The bytes of the context's hint, lowest first, with the anchor's sign added.
    pub hint: [[u8; FEW_CODES]; 4],
}

/// What hints are made from: a model's contexts for one level table.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "for kernels that use byte tables")
)]
#[derive(Debug, Clone)]
pub(crate) struct Contexts {
    /// By code: the anchor as binary32, whose lower 15 bits are free and hold the class's first
    /// context.
    codes: Box<[u32; CODES]>,
    /// By context: table, shift and offset, laid out as a [`Hint`].
    hints: Vec<Hint>,
    top: Top,
    bits: ContextBits,
    /// Twice the magnitude of each anchor.
    doubled: [u8; FEW_CODES],
    /// By context of the factor; empty when contexts are of values, or codes are many.
    by_factor: Vec<ByCode>,
    /// Whether anchors and classes are those of [`plain_code`], which kernels find without looking
    /// them up.
    is_plain: bool,
}

/// Twice the anchor, and the class, of a code of 8 planes with the levels -128 to 127, whose
/// classes are one for each of the first sixteen magnitudes and then eight to an octave.
pub(super) fn plain_code(code: usize) -> (i32, u32) {
    let level = code as i32 - 128;
    let magnitude = level.unsigned_abs();
    let eighths = ((magnitude as f32).to_bits() >> 20) as i32 - 1032;
    let anchor = (2 * magnitude as i32 - 1).max(1);
    (if level < 0 { -anchor } else { anchor }, eighths.max(magnitude.min(15) as i32) as u32)
}

impl Contexts {
    /// `anchors` and `classes` by code; `hints` by context, of which each class has its own.
    ///
    /// # Panics
    /// When anchors are no multiples of one half up to 127.5, contexts don't fill their classes or
    /// are more than 2^15.
    pub(crate) fn new(
        anchors: &[f32],
        classes: &[u8],
        hints: Vec<Hint>,
        top: Top,
        bits: ContextBits,
    ) -> Self {
        let most = classes.iter().max().map_or(0, |&c| usize::from(c) + 1);
        assert!(hints.len() >= most * bits.each() && hints.len() <= 1 << 15, "contexts");
        assert!(bits.mantissa <= 7 && bits.fraction <= 7, "context bits");
        let mut codes = Box::new([0; CODES]);
        let mut doubled = [0; FEW_CODES];
        for (i, (anchor, class)) in anchors.iter().zip(classes).enumerate() {
            let twice = (2.0 * anchor.abs()) as u8;
            assert!(f32::from(twice) == 2.0 * anchor.abs(), "anchor");
            codes[i] = anchor.to_bits() | (usize::from(*class) * bits.each()) as u32;
            if let Some(slot) = doubled.get_mut(i) {
                *slot = twice;
            }
        }
        let mut by_factor = vec![];
        if bits.of == ContextOf::Factor && anchors.len() <= FEW_CODES {
            for context in 0..bits.each() {
                let mut table = ByCode { hint: [[0; FEW_CODES]; 4] };
                for (i, (anchor, class)) in anchors.iter().zip(classes).enumerate() {
                    let hint = hints[usize::from(*class) * bits.each() + context];
                    // Adding the sign to bit 15 is the same as adding it with the magnitude.
                    let hint = anchored(hint, u32::from(*anchor < 0.0) << 15);
                    for (bytes, byte) in table.hint.iter_mut().zip(hint.to_le_bytes()) {
                        bytes[i] = byte;
                    }
                }
                by_factor.push(table);
            }
        }
        let is_plain = anchors.len() == CODES
            && (0..CODES).all(|i| {
                let (twice, class) = plain_code(i);
                anchors[i] * 2.0 == twice as f32 && u32::from(classes[i]) == class
            });
        Self { codes, hints, top, bits, doubled, by_factor, is_plain }
    }

    /// Whether hints are found by the contexts of factors, in byte tables.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_factors(&self) -> bool {
        !self.by_factor.is_empty()
    }

    /// Whether anchors and classes are those of [`plain_code`].
    #[cfg(any(test, target_arch = "x86_64"))]
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The bytes of hints of columns with this factor.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn by_factor(&self, factor: f32) -> &ByCode {
        &self.by_factor[self.bits.number(factor.to_bits()) as usize]
    }

    /// Twice the magnitude of each anchor, and the type.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn doubled(&self) -> (&[u8; FEW_CODES], Top) {
        (&self.doubled, self.top)
    }

    /// Entries by code, hints by context, the type, the context.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn parts(&self) -> (&[u32; CODES], &[Hint], Top, ContextBits) {
        (&self.codes, &self.hints, self.top, self.bits)
    }

    /// The hint of one weight.
    pub(super) fn hint(&self, code: u8, factor: f32) -> Hint {
        let entry = self.codes[usize::from(code)];
        let v = factor * f32::from_bits(entry & !0x7fff);
        let of = match self.bits.of {
            ContextOf::Factor => factor,
            ContextOf::Value => v,
        };
        let context = (entry & 0x7fff) + self.bits.number(of.to_bits());
        anchored(self.hints[context as usize], self.top.of(v))
    }
}

/// Adds the upper bits of what is expected to a context's hint.
pub(crate) fn anchored(hint: Hint, top: u32) -> Hint {
    (hint & 0xffff_0000) | (hint.wrapping_add(top) & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary16_towards_zero() {
        for bits in 0..0x7c00u16 {
            let v = half::f16::from_bits(bits).to_f32();
            assert_eq!(Top::F16.of(v), u32::from(bits));
            assert_eq!(Top::F16.of(-v), 0x8000 | u32::from(bits));
            if v > 0.0 {
                let below = f32::from_bits(v.to_bits() - 1);
                assert_eq!(Top::F16.of(below), u32::from(bits - 1), "{bits:#x}");
            }
        }
    }
}
