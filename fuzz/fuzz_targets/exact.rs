//! Attacks the exact rung: a model and a block of anything. Every kernel gives the same values or
//! the same error.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ultracompress::codec::LevelSet;
use ultracompress::codec::exact::{ExactModel, ExactTable, decode_block};
use ultracompress::{Dtype, Kernel};

#[derive(Debug, Arbitrary)]
struct Input {
    /// A model as it is stored; one of our own where it isn't valid.
    model: Vec<u8>,
    dtype: u8,
    native: u8,
    tables: Vec<(u8, i16, u8)>,
    rows: u8,
    cols: u8,
    group: u8,
    codes: Vec<u8>,
    factors: Vec<u16>,
    /// Counts of words and exceptions, and whether there are tails: mostly near the truth.
    head: [u8; 3],
    block: Vec<u8>,
}

/// A model with flat tables.
fn flat(input: &Input) -> ExactModel {
    let floats = [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64];
    let native = [0, 3, 4, 5, 6, 7, 8][usize::from(input.native % 7)];
    let codes = if native == 0 { 1 } else { 1usize << native };
    let table = |&(shift, offset, skip): &(u8, i16, u8)| ExactTable {
        shift: shift % 8,
        offset,
        frequencies: (0..128u8).map(|s| (s.wrapping_mul(2) | (skip & 1), 2)).collect(),
    };
    let mut tables: Vec<ExactTable> = input.tables.iter().take(9).map(table).collect();
    if tables.is_empty() {
        tables.push(table(&(0, 0, 0)));
    }
    let classes: Vec<u8> = (0..codes).map(|c| u8::try_from(c % 3).expect("below 3")).collect();
    let n = usize::from(*classes.iter().max().expect("a code")) + 1;
    let table_of = |i: usize| u8::try_from(i % tables.len()).expect("at most 9");
    let contexts = (0..n << 3).map(table_of).collect();
    ExactModel {
        dtype: floats[usize::from(input.dtype % 4)],
        native,
        precision: 8,
        of_value: input.dtype & 16 != 0,
        mantissa_bits: 2,
        fraction_bits: 1,
        classes,
        contexts,
        tables,
    }
}

fuzz_target!(|input: Input| {
    let model = match ExactModel::parse(&input.model) {
        Ok(model) => {
            assert_eq!(model.to_bytes().expect("it parsed"), input.model);
            model
        }
        Err(_) => flat(&input),
    };
    let levels =
        (model.native > 0).then(|| LevelSet::default_for(model.native).table(model.native));
    let (rows, cols) = (usize::from(input.rows % 5) + 1, usize::from(input.cols) + 1);
    let group = [16, 32, cols][usize::from(input.group % 3)].min(cols);
    let mut codes = input.codes.iter().copied().chain(std::iter::repeat(7));
    let mask = levels.map_or(0, |l| u8::try_from(l.len() - 1).expect("at most 255"));
    let codes: Vec<u8> = codes.by_ref().take(rows * cols).map(|c| c & mask).collect();
    // Factors as they can be: positive, normal, with room for levels.
    let factor = |f: u16| f32::from_bits((u32::from(f % 0x2000) + 0x3000) << 16);
    let factors = input.factors.iter().copied().chain(std::iter::repeat(99)).map(factor);
    let factors: Vec<f32> = factors.take(rows * cols.div_ceil(group)).collect();
    let mut block = vec![];
    let words = u32::from(input.head[0]) * 2;
    block.extend(words.to_le_bytes());
    block.extend(u32::from(input.head[1] % 4).to_le_bytes());
    block.extend(u32::from(input.head[2] % 2).to_le_bytes());
    block.extend(&input.block);
    let decode = |kernel| {
        decode_block(&model, levels, kernel, (&codes, group, &factors), (rows, cols), &block)
            .map_err(|e| e.to_string())
    };
    let expected = decode(Kernel::Scalar);
    for kernel in Kernel::available() {
        assert!(decode(kernel) == expected, "{kernel}");
    }
});
