//! Coding one block of weights (UC-EXA-5 to UC-EXA-9, UC-EXA-24 to UC-EXA-29).

use std::sync::Arc;

use super::model::{ExactModel, NO_BASE, top_of};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::kernels::{Contexts, DecodeTables, Hint, Kernel, LANES, LOW, Lanes, Top, anchored};
use crate::memory::to_usize;
use crate::rule::Rule;

/// Bytes of a block before its references and words.
pub(super) const HEAD_BYTES: usize = 12 + 4 * LANES;

/// Where the weights of a row are expected.
#[derive(Debug)]
pub(crate) enum BlockBase<'a> {
    /// Codes, row by row, and the factor (scale times step) of each group, row by row.
    Planes { codes: &'a [u8], group: usize, factors: &'a [f32] },
    /// The row's references are in the block.
    None,
}

/// What blocks of one type, native count and level table are coded with.
#[derive(Debug)]
pub(crate) struct BlockTables {
    pub(super) kernel: Kernel,
    pub(super) dtype: Dtype,
    top: Top,
    contexts: Option<Contexts>,
    /// Hints by context, for blocks without a base.
    hints: Vec<Hint>,
    mantissa_bits: u32,
    tables: DecodeTables,
}

/// Codes blocks.
#[derive(Debug)]
pub(crate) struct BlockCoder {
    with: Arc<BlockTables>,
    /// Hints of a row, and its upper bits.
    row: Vec<Hint>,
    tops: Vec<[u8; 2]>,
}

/// What a reference byte stands for (UC-EXA-29): the upper 16 bits of a magnitude, in steps of a
/// quarter of an octave.
pub(crate) fn reference(top: Top, byte: u8) -> u32 {
    // Mantissa bits above the cut, and the first exponent of the scale.
    let (mantissa, first) = match top {
        Top::Half32 => (7, 75),
        Top::F16 => (10, 0),
        Top::Quarter64 => (4, 971),
    };
    (4 * first + u32::from(byte)) << (mantissa - 2)
}

/// The upper two bits of the mantissa of a reference, as context bits.
fn reference_context(byte: u8, mantissa_bits: u32) -> usize {
    usize::from(byte & 3) << mantissa_bits >> 2
}

/// Fields of a block, as slices of it.
struct Fields<'a> {
    states: [u32; LANES],
    references: &'a [u8],
    words: &'a [[u8; 2]],
    positions: &'a [[u8; 2]],
    exceptions: &'a [[u8; 2]],
    tails: &'a [u8],
}

pub(super) fn pad4(n: usize) -> usize {
    n.next_multiple_of(4)
}

/// Bytes of a weight below its upper 16 bits.
pub(crate) fn tail_bytes(dtype: Dtype) -> usize {
    usize::try_from(dtype.bits() / 8).expect("at most 8") - 2
}

impl<'a> Fields<'a> {
    fn split(bytes: &'a [u8], rows: usize, weights: usize, dtype: Dtype) -> Result<Self> {
        let cut = || Error::malformed(Rule::EXA_24, "block is shorter than its fields");
        let mut rest = bytes;
        let mut take = |n: usize| -> Result<&'a [u8]> {
            let (field, after) = rest.split_at_checked(pad4(n)).ok_or_else(cut)?;
            rest = after;
            let (field, padding) = field.split_at(n);
            match padding.iter().all(|&b| b == 0) {
                true => Ok(field),
                false => Err(Error::malformed(Rule::EXA_24, "padding of a block is not zero")),
            }
        };
        let head = take(HEAD_BYTES)?.as_chunks::<4>().0;
        let at = |i: usize| u32::from_le_bytes(head[i]);
        let (words, exceptions, tail) = (to_usize(at(0).into())?, to_usize(at(1).into())?, at(2));
        // Each weight takes at most one word, and is at most one exception.
        if tail > u32::from(tail_bytes(dtype) > 0) {
            return Err(Error::malformed(
                if tail > 1 { Rule::EXA_24 } else { Rule::EXA_8 },
                format!("{tail} for whether there are tails"),
            ));
        }
        if words > weights || exceptions > weights {
            return Err(Error::malformed(
                Rule::EXA_24,
                "block claims more than its weights can have",
            ));
        }
        let mut states = [0; LANES];
        states.iter_mut().zip(&head[3..]).for_each(|(s, b)| *s = u32::from_le_bytes(*b));
        let references = take(rows)?;
        let words = take(2 * words)?.as_chunks().0;
        let (positions, exceptions) = take(4 * exceptions)?.split_at(2 * exceptions);
        let tails = take(if tail == 1 { weights * tail_bytes(dtype) } else { 0 })?;
        if !rest.is_empty() {
            return Err(Error::malformed(Rule::EXA_24, "bytes behind the last field of a block"));
        }
        let (positions, exceptions) = (positions.as_chunks().0, exceptions.as_chunks().0);
        Ok(Self { states, references, words, positions, exceptions, tails })
    }
}

impl BlockTables {
    /// For tensors with these levels, or without a base.
    ///
    /// # Errors
    /// `Malformed(UC-EXA-22)` when the model is for other tensors.
    pub(crate) fn new(model: &ExactModel, levels: Option<&[i8]>, kernel: Kernel) -> Result<Self> {
        let other = || Error::malformed(Rule::EXA_22, "model is for other tensors");
        if levels.is_none() != (model.native == NO_BASE) {
            return Err(other());
        }
        Ok(Self {
            kernel: kernel.require()?,
            dtype: model.dtype,
            top: top_of(model.dtype).ok_or_else(other)?,
            contexts: levels.map(|l| model.with_levels(l)).transpose()?,
            hints: model.hints(),
            mantissa_bits: model.each().ilog2(),
            tables: model.decode_tables(),
        })
    }

    /// Bytes of its decoding tables, which are most of it.
    pub(crate) fn bytes(&self) -> usize {
        self.tables.bytes()
    }

    /// Fills `hints` with those of row `i` of a block.
    pub(super) fn fill(
        &self,
        base: &BlockBase<'_>,
        references: &[u8],
        i: usize,
        hints: &mut [Hint],
    ) {
        let cols = hints.len();
        match (base, &self.contexts) {
            (BlockBase::Planes { codes, group, factors }, Some(contexts)) => {
                let group = (*group).min(cols).max(1);
                let groups = cols.div_ceil(group);
                let codes = &codes[i * cols..][..cols];
                let factors = &factors[i * groups..][..groups];
                contexts.hints(self.kernel, codes, group, factors, hints);
            }
            _ => {
                let byte = references[i];
                let context = reference_context(byte, self.mantissa_bits);
                let hint = self.hints.get(context).copied().unwrap_or_default();
                hints.fill(anchored(hint, reference(self.top, byte)));
            }
        }
    }
}

impl BlockCoder {
    pub(crate) fn new(with: Arc<BlockTables>) -> Self {
        Self { with, row: vec![], tops: vec![] }
    }

    /// Decodes a block of `rows` rows to little-endian elements.
    ///
    /// # Errors
    /// `Malformed` (UC-EXA-7 to UC-EXA-9, UC-EXA-24, UC-EXA-25, UC-EXA-27, UC-EXA-33).
    ///
    /// # Panics
    /// When `base` or `out` don't fit rows and columns.
    pub(crate) fn decode(
        &mut self,
        bytes: &[u8],
        base: &BlockBase<'_>,
        (rows, cols): (usize, usize),
        out: &mut [u8],
    ) -> Result<()> {
        let BlockTables { kernel, dtype, ref tables, .. } = *self.with;
        let size = tail_bytes(dtype) + 2;
        assert_eq!(out.len(), rows * cols * size, "bytes of the output");
        let raw = matches!(base, BlockBase::None);
        let fields = Fields::split(bytes, if raw { rows } else { 0 }, rows * cols, dtype)?;
        let mut lanes = Lanes { states: fields.states, words: fields.words };
        let Self { row, tops, .. } = self;
        row.resize(cols, 0);
        tops.resize(cols, [0; 2]);
        for (i, out) in out.chunks_exact_mut(cols * size).enumerate() {
            self.with.fill(base, fields.references, i, row);
            let to = if size == 2 { out.as_chunks_mut().0 } else { &mut tops[..] };
            if !lanes.decode(kernel, tables, row, to) {
                return Err(Error::malformed(Rule::EXA_33, "words of a block end too early"));
            }
            if size > 2 {
                let tails = fields.tails.get(i * cols * (size - 2)..).unwrap_or_default();
                join(out, tops, tails, size);
            }
        }
        if !lanes.words.is_empty() || lanes.states.iter().any(|&s| s != LOW) {
            return Err(Error::malformed(
                if lanes.words.is_empty() { Rule::EXA_9 } else { Rule::EXA_27 },
                "coders of a block don't end where they began",
            ));
        }
        let mut previous = None;
        for (position, top) in fields.positions.iter().zip(fields.exceptions) {
            let at = usize::from(u16::from_le_bytes(*position));
            if at >= rows * cols || previous.is_some_and(|p| p >= at) {
                return Err(Error::malformed(
                    if at < rows * cols { Rule::EXA_7 } else { Rule::EXA_25 },
                    "exceptions are not in order within the block",
                ));
            }
            previous = Some(at);
            out[(at + 1) * size - 2..][..2].copy_from_slice(top);
        }
        Ok(())
    }
}

/// Joins upper and lower bytes of elements; without `tails` the lower ones are zero.
fn join(out: &mut [u8], tops: &[[u8; 2]], tails: &[u8], size: usize) {
    if size == 4 {
        let (out, tails) = (out.as_chunks_mut::<4>().0, tails.as_chunks::<2>().0);
        match tails.is_empty() {
            true => out.iter_mut().zip(tops).for_each(|(out, top)| *out = [0, 0, top[0], top[1]]),
            false => out
                .iter_mut()
                .zip(tops)
                .zip(tails)
                .for_each(|((out, top), tail)| *out = [tail[0], tail[1], top[0], top[1]]),
        }
        return;
    }
    for (i, (out, top)) in out.chunks_exact_mut(size).zip(tops).enumerate() {
        match tails.get(i * (size - 2)..(i + 1) * (size - 2)) {
            Some(tail) => out[..size - 2].copy_from_slice(tail),
            None => out[..size - 2].fill(0),
        }
        out[size - 2..].copy_from_slice(top);
    }
}
