//! Encoding one block of weights: what [`BlockCoder`] decodes.

#![allow(clippy::cast_possible_truncation, reason = "bit arithmetic on known ranges")]

use std::sync::Arc;

use super::block::{BlockBase, BlockTables, HEAD_BYTES, pad4, tail_bytes};
use super::model::ExactModel;
use crate::error::Result;
use crate::kernels::{EncodeTables, EncodedLanes, Hint, Kernel, LaneEncoder};

/// How far `top` is from what symbol 0 stands for, modulo 2^16.
pub(super) fn distance(hint: Hint, top: u16) -> u32 {
    u32::from(top).wrapping_sub(hint) & 0xffff
}

/// The symbol of a distance, if there is one: bit 7 turns the sign.
pub(super) fn symbol(distance: u32, shift: u32) -> Option<u8> {
    let above = (distance & 0x7fff) >> shift;
    (above < 128).then(|| (distance >> 15 << 7 | above).to_le_bytes()[0])
}

/// What blocks of one type, native count and level table are encoded with.
#[derive(Debug)]
pub(crate) struct EncoderTables {
    with: BlockTables,
    tables: EncodeTables,
}

impl EncoderTables {
    /// For tensors with these levels, or without a base.
    ///
    /// # Errors
    /// As [`BlockTables::new`].
    pub(crate) fn new(model: &ExactModel, levels: Option<&[i8]>, kernel: Kernel) -> Result<Self> {
        let with = BlockTables::new(model, levels, kernel)?;
        let symbols = model.tables.iter().map(|t| &t.frequencies[..]);
        Ok(Self { with, tables: EncodeTables::new(symbols, model.precision.into()) })
    }
}

/// The encoder of blocks.
#[derive(Debug)]
pub(crate) struct BlockEncoder {
    tables: Arc<EncoderTables>,
    /// Hints of a row, and its upper bits.
    row: Vec<Hint>,
    tops: Vec<[u8; 2]>,
    words: Vec<[u8; 2]>,
}

impl BlockEncoder {
    pub(crate) fn new(tables: Arc<EncoderTables>) -> Self {
        Self { tables, row: vec![], tops: vec![], words: vec![] }
    }

    /// Codes a block whose elements are `source`. Without a base `references` has a byte for each
    /// row.
    ///
    /// # Panics
    /// When `base`, `references` or `source` don't fit rows and columns, or there are more than
    /// 65,536 weights.
    pub(crate) fn encode(
        &mut self,
        base: &BlockBase<'_>,
        references: &[u8],
        (rows, cols): (usize, usize),
        source: &[u8],
    ) -> Vec<u8> {
        let EncoderTables { with, tables } = &*self.tables;
        let Self { row: hints, tops, words, .. } = self;
        let tail = tail_bytes(with.dtype);
        let size = tail + 2;
        assert!(rows * cols <= 1 << 16, "weights of a block");
        assert_eq!(source.len(), rows * cols * size, "bytes of the source");
        // The decoder goes forwards, so the encoder goes backwards.
        let mut lanes = LaneEncoder::new(std::mem::take(words), rows * cols);
        hints.resize(cols, 0);
        for (i, row) in source.chunks_exact(cols * size).enumerate().rev() {
            with.fill(base, references, i, hints);
            let own = match size {
                2 => row.as_chunks().0,
                _ => {
                    tops.clear();
                    tops.extend(row.chunks_exact(size).map(|e| [e[tail], e[tail + 1]]));
                    &tops[..]
                }
            };
            lanes.encode(with.kernel, tables, hints, own, i * cols);
        }
        let EncodedLanes { states, words: buffer, start, exceptions } = lanes.end();
        *words = buffer;
        let words = &words[start..];
        let is_zero = |e: &[u8]| e[..tail].iter().all(|&b| b == 0);
        let tails_zero = tail == 0 || source.chunks_exact(size).all(is_zero);
        let length = |n: usize| u32::try_from(n).expect("at most 65,536").to_le_bytes();
        let mut out = Vec::with_capacity(HEAD_BYTES + 2 * words.len() + 16);
        out.extend(length(words.len()));
        out.extend(length(exceptions.len()));
        out.extend(u32::from(!tails_zero).to_le_bytes());
        out.extend(states.iter().flat_map(|s| s.to_le_bytes()));
        let pad = |out: &mut Vec<u8>| out.resize(pad4(out.len()), 0);
        if matches!(base, BlockBase::None) {
            out.extend(references);
            pad(&mut out);
        }
        out.extend(words.as_flattened());
        pad(&mut out);
        out.extend(exceptions.iter().flat_map(|(at, _)| at.to_le_bytes()));
        out.extend(exceptions.iter().flat_map(|(_, top)| top));
        if !tails_zero {
            source.chunks_exact(size).for_each(|e| out.extend_from_slice(&e[..tail]));
            pad(&mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::LevelSet;
    use crate::codec::exact::BlockCoder;
    use crate::codec::exact::fit::{Counts, best_reference, reference_hint};
    use crate::format::Dtype;

    struct Random(u32);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.0 >> 8
        }
    }

    /// Elements near their codes' values, with any bits here and there.
    fn elements(random: &mut Random, values: &[f32], dtype: Dtype) -> Vec<u8> {
        let mut all = vec![];
        for value in values {
            let value = value * (1.0 + (random.next() % 256) as f32 / 1024.0);
            let mut bytes = match dtype {
                Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::F32 => value.to_le_bytes().to_vec(),
                _ => (f64::from(value) * 1.000_000_001).to_le_bytes().to_vec(),
            };
            if random.next().is_multiple_of(64) {
                bytes.iter_mut().for_each(|b| *b = random.next().to_le_bytes()[0]);
            }
            all.extend(bytes);
        }
        all
    }

    #[test]
    fn blocks_come_back_from_every_kernel() {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::F64] {
            for (native, rows, cols, group) in [
                (3u8, 1usize, 1usize, 1usize),
                (4, 3, 31, 31),
                (5, 9, 300, 32),
                (6, 4, 65, 16),
                (7, 5, 64, 64),
                (8, 7, 96, 32),
            ] {
                let mut random = Random(u32::from(native));
                let levels = LevelSet::default_for(native).table(native);
                let groups = cols.div_ceil(group);
                let factors: Vec<f32> = (0..rows * groups)
                    .map(|_| (random.next() % 97 + 32) as f32 * 2f32.powi(-12))
                    .collect();
                let codes: Vec<u8> = (0..rows * cols)
                    .map(|_| (random.next() % (1 << native)).to_le_bytes()[0])
                    .collect();
                let value = |i: usize| {
                    let factor = factors[i / cols * groups + i % cols / group];
                    factor * f32::from(levels[usize::from(codes[i])])
                };
                let values: Vec<f32> = (0..rows * cols).map(value).collect();
                let source = elements(&mut random, &values, dtype);
                let base = BlockBase::Planes { codes: &codes, group, factors: &factors };
                let size = tail_bytes(dtype) + 2;

                let mut counts = Counts::new(dtype, Some(levels)).expect("a type that is coded");
                let mut hints = vec![0; cols];
                for (r, row) in source.chunks_exact(cols * size).enumerate() {
                    let (codes, factors) =
                        (&codes[r * cols..][..cols], &factors[r * groups..][..groups]);
                    counts.contexts().hints(Kernel::Scalar, codes, group, factors, &mut hints);
                    for (e, hint) in row.chunks_exact(size).zip(&hints) {
                        counts.add(*hint, u16::from_le_bytes([e[size - 2], e[size - 1]]));
                    }
                }
                let model = counts.fit().expect("valid").expect("something was counted");
                let parsed = ExactModel::parse(&model.to_bytes().expect("valid")).expect("valid");
                assert_eq!(parsed, model);
                check(&model, Some(levels), &base, &[], (rows, cols), &source);
            }
        }
    }

    #[test]
    fn blocks_without_a_base_come_back() {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::F64] {
            for (rows, cols) in [(1usize, 1usize), (1, 5000), (40, 70)] {
                let mut random = Random(7);
                let values: Vec<f32> = (0..rows * cols)
                    .map(|_| (random.next() % 2000) as f32 / 1000.0 - 1.0)
                    .collect();
                let source = elements(&mut random, &values, dtype);
                let size = tail_bytes(dtype) + 2;
                let mut counts = Counts::new(dtype, None).expect("a type that is coded");
                let mut references = vec![];
                for row in source.chunks_exact(cols * size) {
                    let byte = best_reference(dtype, row);
                    for e in row.chunks_exact(size) {
                        let top = u16::from_le_bytes([e[size - 2], e[size - 1]]);
                        counts.add(reference_hint(dtype, byte), top);
                    }
                    references.push(byte);
                }
                let model = counts.fit().expect("valid").expect("something was counted");
                check(&model, None, &BlockBase::None, &references, (rows, cols), &source);
            }
        }
    }

    /// Every kernel encodes to the same bytes and decodes them to the source; damage is an error or
    /// other values, never a panic.
    fn check(
        model: &ExactModel,
        levels: Option<&[i8]>,
        base: &BlockBase<'_>,
        references: &[u8],
        shape: (usize, usize),
        source: &[u8],
    ) {
        let encode = |kernel| {
            let tables = EncoderTables::new(model, levels, kernel).expect("fits");
            let mut encoder = BlockEncoder::new(tables.into());
            encoder.encode(base, references, shape, source)
        };
        let decoder =
            |kernel| BlockCoder::new(BlockTables::new(model, levels, kernel).expect("fits").into());
        let bytes = encode(Kernel::Scalar);
        let mut out = vec![0; source.len()];
        for kernel in Kernel::available() {
            assert!(encode(kernel) == bytes, "{kernel}");
            let mut decoder = decoder(kernel);
            out.fill(0x5a);
            decoder.decode(&bytes, base, shape, &mut out).expect("valid");
            assert!(out == source, "{kernel}, {}, {shape:?}", model.dtype);
        }
        for at in (0..bytes.len()).step_by(bytes.len() / 40 + 1) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x24;
            let mut results = vec![];
            for kernel in Kernel::available() {
                let mut decoder = decoder(kernel);
                out.fill(0);
                let result = decoder.decode(&damaged, base, shape, &mut out);
                results.push(result.map(|()| out.clone()).map_err(|e| e.to_string()));
            }
            assert!(results.windows(2).all(|w| w[0] == w[1]), "kernels differ, byte {at}");
            let cut = &bytes[..at];
            let mut decoder = decoder(Kernel::Scalar);
            decoder.decode(cut, base, shape, &mut out).expect_err("it is cut off");
        }
    }
}
