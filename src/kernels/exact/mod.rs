//! The inner loops of the exact rung (spec/exact.md): the expected place of each weight, and the
//! decoder of its own.
//!
//! Every kernel does the same integer operations, so the result is the same whatever the bytes are.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod contexts;
mod scalar;
mod tables;

use super::choice::{Kernel, dispatch};

pub(crate) use self::contexts::{ContextBits, ContextOf, Contexts, Hint, Top, anchored};
pub(crate) use self::tables::{DecodeTables, LANES, LOW, Lanes};
#[cfg(feature = "checkpoints")]
pub(crate) use self::tables::{EncodeTables, EncodedLanes, LaneEncoder};

impl Contexts {
    /// Hints of consecutive columns, `group` of which share a factor (scale times step).
    ///
    /// # Panics
    /// When the lengths don't fit, or the CPU can't run `kernel`.
    pub(crate) fn hints(
        &self,
        kernel: Kernel,
        codes: &[u8],
        group: usize,
        factors: &[f32],
        out: &mut [Hint],
    ) {
        assert_eq!(codes.len(), out.len(), "hints");
        assert_eq!(codes.len().div_ceil(group), factors.len(), "factors");
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        // SAFETY: the CPU has what the kernel needs, as was asserted; contexts of all codes exist.
        dispatch!(unsafe kernel,
            x86 => avx2::hints(self, codes, group, factors, out),
            _ => scalar::hints(self, codes, group, factors, out),
        );
    }
}

impl Lanes<'_> {
    /// Decodes weights, of which the first belongs to lane 0. `false` when the words are used up
    /// before.
    ///
    /// # Panics
    /// When the lengths differ, a hint names no table, or the CPU can't run `kernel`.
    pub(crate) fn decode(
        &mut self,
        kernel: Kernel,
        tables: &DecodeTables,
        hints: &[Hint],
        out: &mut [[u8; 2]],
    ) -> bool {
        assert_eq!(hints.len(), out.len(), "weights");
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        // Where a whole step surely has its words; the scalar loop does the rest.
        // SAFETY: the CPU has what the kernel needs, as was asserted.
        let done = dispatch!(unsafe kernel,
            x86 => avx2::decode(self, tables, hints, out),
            _ => 0,
        );
        scalar::decode(self, tables, &hints[done..], &mut out[done..])
    }
}

#[cfg(feature = "checkpoints")]
impl LaneEncoder {
    /// Encodes a row whose upper 16 bits are `tops`; `first` is its first place in the block.
    ///
    /// # Panics
    /// When the lengths differ, a hint names no table, there is no room for so many words, or the
    /// CPU can't run `kernel`.
    pub(crate) fn encode(
        &mut self,
        kernel: Kernel,
        tables: &EncodeTables,
        hints: &[Hint],
        tops: &[[u8; 2]],
        first: usize,
    ) {
        assert_eq!(hints.len(), tops.len(), "weights");
        assert!(self.start >= hints.len() + 8, "room for words");
        assert!(first + hints.len() <= 1 << 16, "weights of a block");
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        // SAFETY: the CPU has what the kernel needs, and there is room for a word of each weight
        // and eight more, as was asserted.
        dispatch!(unsafe kernel,
            x86 => {
                // What doesn't fill a step comes last, so it goes first.
                let whole = hints.len() - hints.len() % LANES;
                scalar::encode(self, tables, &hints[whole..], &tops[whole..], first + whole);
                avx2::encode(self, tables, &hints[..whole], &tops[..whole], first);
            },
            _ => scalar::encode(self, tables, hints, tops, first),
        );
    }
}

/// The codes of a row.
///
/// # Panics
/// When a slice has not the size that it needs, or the CPU can't run `kernel`.
pub(crate) fn unpack(kernel: Kernel, planes: &[&[u8]], codes: &mut [u8]) {
    assert!((3..=8).contains(&planes.len()), "planes");
    assert!(planes.iter().all(|p| p.len() == codes.len().div_ceil(8)), "bytes of a plane");
    assert!(kernel.is_available(), "kernel {kernel} can't run here");
    // SAFETY: the CPU has what the kernel needs, as was asserted.
    dispatch!(unsafe kernel,
        x86 => avx2::unpack(planes, codes),
        _ => scalar::unpack(planes, codes),
    );
}

#[cfg(test)]
mod tests {
    use super::contexts::plain_code;
    use super::*;

    /// Codes of 8 planes have the same hints from every kernel, whether anchors and classes are the
    /// plain ones or not.
    #[test]
    fn hints_of_eight_planes() {
        let codes: Vec<u8> = (0..=255).collect();
        let anchors: Vec<f32> = (0..256).map(|i| plain_code(i).0 as f32 / 2.0).collect();
        let plain: Vec<u8> = (0..256).map(|i| plain_code(i).1.to_le_bytes()[0]).collect();
        let mut other = plain.clone();
        other.swap(7, 200);
        let bits = ContextBits { of: ContextOf::Value, mantissa: 4, fraction: 1 };
        let hints: Vec<Hint> = (0..41 * 32).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).collect();
        for top in [Top::Half32, Top::F16, Top::Quarter64] {
            // The smallest and the largest that a row can have.
            let most = if top == Top::F16 { 500.0 } else { 2.5e36 };
            let factors = [1.5f32, 3.0e-8, 3.8e-37, most, 255.0, 7.0, 0.1875, 33.0];
            for (classes, is_plain) in [(&plain, true), (&other, false)] {
                let contexts = Contexts::new(&anchors, classes, hints.clone(), top, bits);
                assert_eq!(contexts.is_plain(), is_plain);
                let mut wanted = vec![0; 256];
                contexts.hints(Kernel::Scalar, &codes, 32, &factors, &mut wanted);
                for kernel in Kernel::available() {
                    let mut found = vec![0; 256];
                    contexts.hints(kernel, &codes, 32, &factors, &mut found);
                    assert!(found == wanted, "{kernel}, {top:?}, plain {is_plain}");
                }
            }
        }
    }
}
