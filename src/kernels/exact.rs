//! The inner loops of the exact rung (spec/exact.md): where each weight is expected, and the decoder of what it is.
//!
//! Every kernel does the same integer operations, so what comes out is the same whatever the bytes are.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::choice::Kernel;
use super::scalar;

/// Coders that take turns, weight by weight.
pub(crate) const LANES: usize = 32;
/// A state below this takes a word.
pub(crate) const LOW: u32 = 1 << 16;
/// What is known of a weight before it is decoded: bits 0 to 15 what its symbol 0 stands for, bits 16 to 19 the shift, bits
/// 24 to 31 the table.
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
    /// By code: the anchor as binary32, whose lower 15 bits are free and hold the class's first context.
    codes: Box<[u32; 256]>,
    /// By context: table, shift and offset, laid out as a [`Hint`].
    hints: Vec<Hint>,
    top: Top,
    bits: ContextBits,
    /// Twice the magnitude of each anchor.
    doubled: [u8; FEW_CODES],
    /// By context of the factor; empty when contexts are of values, or codes are many.
    by_factor: Vec<ByCode>,
    /// Whether anchors and classes are those of [`plain_code`], which kernels find without looking them up.
    is_plain: bool,
}

/// Twice the anchor, and the class, of a code of 8 planes with the levels -128 to 127, whose classes are one for each of the first
/// sixteen magnitudes and then eight to an octave.
fn plain_code(code: usize) -> (i32, u32) {
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
    /// When anchors are no multiples of one half up to 127.5, contexts don't fill their classes or are more than 2^15.
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
        let mut codes = Box::new([0; 256]);
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
                    let hint = place(hint, u32::from(*anchor < 0.0) << 15);
                    for (bytes, byte) in table.hint.iter_mut().zip(hint.to_le_bytes()) {
                        bytes[i] = byte;
                    }
                }
                by_factor.push(table);
            }
        }
        let is_plain = anchors.len() == 256
            && (0..256).all(|i| {
                let (twice, class) = plain_code(i);
                anchors[i] * 2.0 == twice as f32 && u32::from(classes[i]) == class
            });
        Self { codes, hints, top, bits, doubled, by_factor, is_plain }
    }

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
        match kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has what the kernel needs; contexts of all codes exist.
            Kernel::Avx2 | Kernel::Avx512 => unsafe {
                match (self.by_factor.is_empty(), self.is_plain) {
                    (false, _) => avx2::hints_by_factor(self, codes, group, factors, out),
                    (true, false) => {
                        avx2::hints_by_value::<false>(self, codes, group, factors, out)
                    }
                    (true, true) => avx2::hints_by_value::<true>(self, codes, group, factors, out),
                }
            },
            _ => scalar::hints(self, codes, group, factors, out),
        }
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
    pub(super) fn parts(&self) -> (&[u32; 256], &[Hint], Top, ContextBits) {
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
        place(self.hints[context as usize], self.top.of(v))
    }
}

/// Adds the upper bits of what is expected to a context's hint.
pub(crate) fn place(hint: Hint, top: u32) -> Hint {
    (hint & 0xffff_0000) | (hint.wrapping_add(top) & 0xffff)
}

/// Decoding tables, one behind the other, each with 2^precision entries: bits 20 to 31 a symbol's frequency, bits 8 to 19 how far
/// the entry is from the symbol's first, bits 0 to 7 the symbol.
#[derive(Debug, Clone)]
pub(crate) struct DecodeTables {
    pub(super) entries: Vec<u32>,
    pub(super) precision: u32,
}

impl DecodeTables {
    /// # Panics
    /// When entries don't fill whole tables.
    pub(crate) fn new(entries: Vec<u32>, precision: u32) -> Self {
        assert!(
            (1..=11).contains(&precision) && entries.len().is_multiple_of(1 << precision),
            "tables"
        );
        Self { entries, precision }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.entries[..])
    }
}

/// The state of the coders of one block.
#[derive(Debug)]
pub(crate) struct Lanes<'a> {
    pub states: [u32; LANES],
    /// Words that are left.
    pub words: &'a [[u8; 2]],
}

impl Lanes<'_> {
    /// Decodes weights, of which the first belongs to lane 0. `false` when the words are used up before.
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
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::Avx512 => {
                // Where a whole step surely has its words; the scalar loop does the rest.
                // SAFETY: the CPU has what the kernel needs.
                let done = unsafe {
                    match tables.precision {
                        8 => avx2::decode_exact::<8>(self, tables, hints, out),
                        9 => avx2::decode_exact::<9>(self, tables, hints, out),
                        10 => avx2::decode_exact::<10>(self, tables, hints, out),
                        11 => avx2::decode_exact::<11>(self, tables, hints, out),
                        _ => 0,
                    }
                };
                scalar::decode_exact(self, tables, &hints[done..], &mut out[done..])
            }
            _ => scalar::decode_exact(self, tables, hints, out),
        }
    }
}

/// Encoding tables.
#[cfg(feature = "checkpoints")]
#[derive(Debug, Clone)]
pub(crate) struct EncodeTables {
    /// By table (times 256) and symbol: bits 0 to 15 the frequency, or 0 for a symbol that the table doesn't have, bits 16 up the
    /// first slot.
    pub(super) codes: Vec<u32>,
    /// By frequency: 2^32 over it, rounded down, and at most 2^32 - 1.
    pub(super) reciprocals: Vec<u32>,
    /// By table, the code of its most frequent symbol: what exceptions are coded as.
    pub(super) usual: Vec<u32>,
    pub(super) precision: u32,
}

#[cfg(feature = "checkpoints")]
impl EncodeTables {
    /// Of symbols with their frequencies, table by table.
    ///
    /// # Panics
    /// When a table's frequencies don't sum to 2^precision, or tables are none or more than 256.
    pub(crate) fn new<'a>(tables: impl Iterator<Item = &'a [(u8, u16)]>, precision: u32) -> Self {
        assert!((1..=11).contains(&precision), "precision");
        let (mut codes, mut usual) = (vec![], vec![]);
        for table in tables {
            let first = codes.len();
            codes.resize(first + 256, 0);
            let (mut start, mut most) = (0u32, (0, 0));
            for &(symbol, frequency) in table {
                let code = start << 16 | u32::from(frequency);
                codes[first + usize::from(symbol)] = code;
                most = most.max((frequency, code));
                start += u32::from(frequency);
            }
            assert_eq!(start, 1 << precision, "frequencies");
            usual.push(most.1);
        }
        assert!((1..=256).contains(&usual.len()), "tables");
        let reciprocal = |f: u64| u32::try_from((1 << 32) / f.max(1)).unwrap_or(u32::MAX);
        let reciprocals = (0..=1 << precision).map(reciprocal).collect();
        Self { codes, reciprocals, usual, precision }
    }
}

/// What encodes the weights of one block, the last first.
#[cfg(feature = "checkpoints")]
#[derive(Debug)]
pub(crate) struct LaneEncoder {
    pub(super) states: [u32; LANES],
    /// Words, of which those from `start` on are written; there is room for eight more before them than weights need.
    pub(super) words: Vec<[u8; 2]>,
    pub(super) start: usize,
    /// Place and upper bits of weights that aren't coded by their symbol, the last first.
    pub(super) exceptions: Vec<(u16, [u8; 2])>,
}

#[cfg(feature = "checkpoints")]
impl LaneEncoder {
    /// For at most `weights` weights; `words` is a buffer, whatever is in it.
    pub(crate) fn new(mut words: Vec<[u8; 2]>, weights: usize) -> Self {
        words.resize(weights + 8, [0; 2]);
        Self { states: [LOW; LANES], start: words.len(), words, exceptions: vec![] }
    }

    /// Encodes a row whose upper 16 bits are `tops`; `first` is its first place in the block.
    ///
    /// # Panics
    /// When the lengths differ, a hint names no table, there is no room for so many words, or the CPU can't run `kernel`.
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
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::Avx512 => {
                // What doesn't fill a step comes last, so it goes first.
                let whole = hints.len() - hints.len() % LANES;
                scalar::encode_exact(self, tables, &hints[whole..], &tops[whole..], first + whole);
                // SAFETY: the CPU has what the kernel needs; there is room for a word of each weight and eight more.
                unsafe {
                    avx2::encode_exact(self, tables, &hints[..whole], &tops[..whole], first);
                }
            }
            _ => scalar::encode_exact(self, tables, hints, tops, first),
        }
    }

    /// What the decoder begins with.
    pub(crate) fn end(self) -> EncodedLanes {
        let Self { states, words, start, mut exceptions } = self;
        exceptions.reverse();
        EncodedLanes { states, words, start, exceptions }
    }
}

/// The weights of a block as they are stored.
#[cfg(feature = "checkpoints")]
#[derive(Debug)]
pub(crate) struct EncodedLanes {
    pub states: [u32; LANES],
    /// The buffer, in which words begin at `start`.
    pub words: Vec<[u8; 2]>,
    pub start: usize,
    /// Places, in order, and upper bits.
    pub exceptions: Vec<(u16, [u8; 2])>,
}

/// The codes of a row.
///
/// # Panics
/// When a slice has not the size that it needs, or the CPU can't run `kernel`.
pub(crate) fn unpack(kernel: Kernel, planes: &[&[u8]], codes: &mut [u8]) {
    assert!((3..=8).contains(&planes.len()), "planes");
    assert!(planes.iter().all(|p| p.len() == codes.len().div_ceil(8)), "bytes of a plane");
    assert!(kernel.is_available(), "kernel {kernel} can't run here");
    match kernel {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has what the kernel needs.
        Kernel::Avx2 | Kernel::Avx512 => unsafe { avx2::unpack(planes, codes) },
        _ => scalar::unpack(planes, codes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes of 8 planes have the same hints from every kernel, whether anchors and classes are the plain ones or not.
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
                assert_eq!(contexts.is_plain, is_plain);
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
