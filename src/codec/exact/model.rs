//! Models: contexts and tables of frequencies, one for each type and native count (UC-EXA-1 to
//! UC-EXA-3, UC-EXA-13 to UC-EXA-20).

use crate::error::{Error, Result};
use crate::format::{Digest, Dtype, MAX_PLANES, MIN_PLANES};
use crate::kernels::{ContextBits, ContextOf, Contexts, DecodeTables, Hint, LOW, Top};
use crate::rule::Rule;

/// Native planes of a model for tensors without planes.
pub(crate) const NO_BASE: u8 = 0;
/// Bytes before the classes.
const HEADER_BYTES: usize = 12;
/// Contexts have 15 bits.
const MAX_CONTEXTS: usize = 1 << 15;

/// One table of frequencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactTable {
    /// How many bits below the symbol are stored as they are.
    pub shift: u8,
    /// What symbol 0 stands for, from where the weight is expected.
    pub offset: i16,
    /// The symbols that occur, in order, with frequencies that sum to 2^precision. Bit 7 of a
    /// symbol says that the weight's sign is not the expected one.
    pub frequencies: Vec<(u8, u16)>,
}

/// Where weights are expected and how far from there they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactModel {
    /// Element type.
    pub dtype: Dtype,
    /// Native planes, or 0 for tensors without.
    pub native: u8,
    /// Frequencies of a table sum to two to the power of this: 8 to 11.
    pub precision: u8,
    /// Whether contexts are of the expected value, and not of the factor (scale times step).
    pub of_value: bool,
    /// How many upper bits of the mantissa are context.
    pub mantissa_bits: u8,
    /// How many bits below those that are coded are context.
    pub fraction_bits: u8,
    /// The class of each code; one class without planes.
    pub classes: Vec<u8>,
    /// The table of each context: class, mantissa bits, fraction bits.
    pub contexts: Vec<u8>,
    /// The tables.
    pub tables: Vec<ExactTable>,
}

/// Where the upper 16 bits of `dtype` are; nothing for types without planes.
pub(crate) fn top_of(dtype: Dtype) -> Option<Top> {
    match dtype {
        Dtype::Bf16 | Dtype::F32 => Some(Top::Half32),
        Dtype::F16 => Some(Top::F16),
        Dtype::F64 => Some(Top::Quarter64),
        _ => None,
    }
}

/// Where a weight of each code is expected, in units of scale times step (UC-EXA-5): the end of its
/// cell on the side of zero, or, when zero is in the cell, the level itself.
pub(crate) fn anchors(levels: &[i8]) -> Vec<f32> {
    let anchor = |i: usize| {
        let level = f32::from(levels[i]);
        let inner = match levels[i] {
            0 => return 0.5,
            1.. => i.checked_sub(1),
            _ => Some(i + 1).filter(|&j| j < levels.len()),
        };
        match inner.map(|j| f32::from(levels[j])) {
            Some(inner) if inner * level >= 0.0 => (level + inner) / 2.0,
            _ => level,
        }
    };
    (0..levels.len()).map(anchor).collect()
}

impl ExactModel {
    fn bits(&self) -> ContextBits {
        let of = if self.of_value { ContextOf::Value } else { ContextOf::Factor };
        let (mantissa, fraction) = (self.mantissa_bits.into(), self.fraction_bits.into());
        ContextBits { of, mantissa, fraction }
    }

    /// Contexts of a class.
    pub(crate) fn each(&self) -> usize {
        self.bits().each()
    }

    /// Checks what [`ExactModel::parse`] doesn't by itself.
    ///
    /// # Errors
    /// `Malformed` (UC-EXA-2, UC-EXA-3, UC-EXA-14 to UC-EXA-20).
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |rule, text: &str| Err(Error::malformed(rule, text.to_owned()));
        if top_of(self.dtype).is_none() || !matches!(self.native, NO_BASE | MIN_PLANES..=MAX_PLANES)
        {
            return bad(Rule::EXA_2, "model is for no type or plane count that is coded");
        }
        if !(8..=11).contains(&self.precision) || self.mantissa_bits > 7 || self.fraction_bits > 7 {
            return bad(Rule::EXA_2, "precision or context bits out of range");
        }
        let codes = if self.native == NO_BASE { 1 } else { 1 << self.native };
        let classes = self.classes.iter().max().map_or(0, |&c| usize::from(c) + 1);
        if self.native == NO_BASE && classes > 1 {
            // Their contexts are of class 0 (UC-EXA-29).
            return bad(Rule::EXA_15, "the one class without planes is not 0");
        }
        let contexts = classes * self.each();
        if self.classes.len() != codes || self.contexts.len() != contexts || contexts > MAX_CONTEXTS
        {
            return bad(
                if contexts > MAX_CONTEXTS { Rule::EXA_16 } else { Rule::EXA_14 },
                "classes and contexts don't fit each other",
            );
        }
        if self.tables.is_empty()
            || self.tables.len() > 256
            || self.contexts.iter().any(|&t| usize::from(t) >= self.tables.len())
        {
            return bad(
                if (1..=256).contains(&self.tables.len()) { Rule::EXA_17 } else { Rule::EXA_2 },
                "a context has no table",
            );
        }
        for table in &self.tables {
            let sum: u32 = table.frequencies.iter().map(|&(_, f)| u32::from(f)).sum();
            if sum != 1 << self.precision || table.frequencies.iter().any(|&(_, f)| f == 0) {
                return bad(
                    if sum == 1 << self.precision { Rule::EXA_20 } else { Rule::EXA_18 },
                    "frequencies of a table don't fill it",
                );
            }
            if table.frequencies.windows(2).any(|w| w[0].0 >= w[1].0) {
                return bad(Rule::EXA_3, "symbols of a table are not in order");
            }
            if u32::from(table.shift) + u32::from(self.precision) > LOW.ilog2() {
                return bad(Rule::EXA_19, "a table takes more bits than a word refills");
            }
        }
        Ok(())
    }

    /// The first eight bytes of the SHA-256 of the record's body, by which residuals name the model
    /// (UC-EXA-13).
    ///
    /// # Errors
    /// As [`ExactModel::to_bytes`].
    pub fn name(&self) -> Result<[u8; 8]> {
        let Digest(sha256) = Digest::of(&self.to_bytes()?);
        Ok({
            let [a, b, c, d, e, f, g, h, ..] = sha256;
            [a, b, c, d, e, f, g, h]
        })
    }

    /// The body of the model's record.
    ///
    /// # Errors
    /// `Malformed` where [`ExactModel::parse`] would refuse it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check()?;
        let count = |n: usize| u16::try_from(n).map_err(|_| Error::argument("model is too large"));
        let mut out = vec![
            self.dtype.code(),
            self.native,
            self.precision,
            self.mantissa_bits,
            self.fraction_bits,
            self.of_value.into(),
        ];
        out.extend(count(self.contexts.len() / self.each())?.to_le_bytes());
        out.extend(count(self.tables.len())?.to_le_bytes());
        out.extend([0; 2]);
        out.extend(&self.classes);
        out.extend(&self.contexts);
        for table in &self.tables {
            out.extend([table.shift, 0]);
            out.extend(table.offset.to_le_bytes());
            out.extend(count(table.frequencies.len())?.to_le_bytes());
            out.extend(table.frequencies.iter().map(|&(symbol, _)| symbol));
            out.extend(table.frequencies.iter().flat_map(|&(_, f)| f.to_le_bytes()));
        }
        Ok(out)
    }

    /// Reads the body of a model's record.
    ///
    /// # Errors
    /// `Malformed` (UC-EXA-1 to UC-EXA-3, UC-EXA-14 to UC-EXA-20).
    pub fn parse(mut bytes: &[u8]) -> Result<Self> {
        let cut = || Error::malformed(Rule::EXA_1, "model is cut off");
        let mut take = |n: usize| -> Result<&[u8]> {
            let (field, rest) = bytes.split_at_checked(n).ok_or_else(cut)?;
            bytes = rest;
            Ok(field)
        };
        let u16_at = |b: &[u8], i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let header = take(HEADER_BYTES)?;
        let (native, mantissa_bits, fraction_bits) = (header[1], header[3], header[4]);
        if header[5] > 1 || header[10..12] != [0; 2] || mantissa_bits > 7 || fraction_bits > 7 {
            let rule = if header[10..12] == [0; 2] { Rule::EXA_2 } else { Rule::EXA_1 };
            return Err(Error::malformed(rule, "model header is out of range"));
        }
        if !matches!(native, NO_BASE | MIN_PLANES..=MAX_PLANES) {
            return Err(Error::malformed(Rule::EXA_2, "model is for no plane count that exists"));
        }
        let no_type = || Error::malformed(Rule::EXA_2, format!("dtype {}", header[0]));
        let dtype = Dtype::from_code(header[0]).ok_or_else(no_type)?;
        let codes = if native == NO_BASE { 1 } else { 1 << native };
        let contexts = usize::from(u16_at(header, 6)) << (mantissa_bits + fraction_bits);
        let mut model = Self {
            dtype,
            native,
            precision: header[2],
            of_value: header[5] == 1,
            mantissa_bits,
            fraction_bits,
            classes: take(codes)?.to_vec(),
            contexts: take(contexts)?.to_vec(),
            tables: vec![],
        };
        for _ in 0..u16_at(header, 8) {
            let head = take(6)?;
            if head[1] != 0 {
                return Err(Error::malformed(Rule::EXA_1, "reserved byte of a table is not zero"));
            }
            let n = usize::from(u16_at(head, 4));
            let symbols = take(n)?;
            let frequencies =
                take(2 * n)?.as_chunks::<2>().0.iter().map(|f| u16::from_le_bytes(*f));
            model.tables.push(ExactTable {
                shift: head[0],
                offset: i16::from_le_bytes([head[2], head[3]]),
                frequencies: symbols.iter().copied().zip(frequencies).collect(),
            });
        }
        if !bytes.is_empty() {
            return Err(Error::malformed(Rule::EXA_1, "bytes behind the last table"));
        }
        model.check()?;
        Ok(model)
    }

    /// What the tables say, by slot.
    pub(crate) fn decode_tables(&self) -> DecodeTables {
        let mut entries = Vec::with_capacity(self.tables.len() << self.precision);
        for table in &self.tables {
            for &(symbol, frequency) in &table.frequencies {
                let entry = |i: u32| u32::from(frequency) << 20 | i << 8 | u32::from(symbol);
                entries.extend((0..u32::from(frequency)).map(entry));
            }
        }
        DecodeTables::new(entries, u32::from(self.precision))
    }

    /// Hints by context, before the expected value is added.
    pub(crate) fn hints(&self) -> Vec<Hint> {
        let hint = |&table: &u8| {
            let t = &self.tables[usize::from(table)];
            let offset = u32::from(t.offset.cast_unsigned());
            u32::from(table) << 24 | u32::from(t.shift) << 16 | offset
        };
        self.contexts.iter().map(hint).collect()
    }

    /// The contexts of a tensor with these levels.
    pub(crate) fn with_levels(&self, levels: &[i8]) -> Result<Contexts> {
        let top = top_of(self.dtype).filter(|_| levels.len() == self.classes.len());
        let top =
            top.ok_or_else(|| Error::malformed(Rule::EXA_22, "model is for other tensors"))?;
        Ok(Contexts::new(&anchors(levels), &self.classes, self.hints(), top, self.bits()))
    }
}

/// The name of the record of a model (UC-EXA-13).
pub(crate) fn exact_model_name(name: [u8; 8]) -> String {
    name.iter().map(|b| format!("{b:02x}")).collect()
}
