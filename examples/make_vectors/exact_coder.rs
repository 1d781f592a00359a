//! A literal encoder of spec/exact.md, weight by weight.

use std::collections::BTreeMap;

use ultracompress::codec::{LevelSet, STEPS};
use ultracompress::{Digest, Dtype};

use super::file::{File, Part, Record, hex, pad, plain, tensor};
use super::planes::Planes;

/// Shift, offset, symbols with frequencies.
pub type Table = (u8, i16, Vec<(u8, u16)>);

/// A model, field by field.
#[derive(Clone)]
pub struct Model {
    pub dtype: Dtype,
    pub native: u8,
    pub precision: u8,
    pub mantissa_bits: u8,
    pub fraction_bits: u8,
    pub of_value: u8,
    pub classes: Vec<u8>,
    pub contexts: Vec<u8>,
    pub tables: Vec<Table>,
}

impl Model {
    pub fn each(&self) -> usize {
        1 << (self.mantissa_bits + self.fraction_bits)
    }

    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![
            self.dtype.code(),
            self.native,
            self.precision,
            self.mantissa_bits,
            self.fraction_bits,
            self.of_value,
        ];
        let short = |n: usize| u16::try_from(n).expect("small").to_le_bytes();
        out.extend(short(self.contexts.len() / self.each()));
        out.extend(short(self.tables.len()));
        out.extend([0; 2]);
        out.extend(&self.classes);
        out.extend(&self.contexts);
        for (shift, offset, frequencies) in &self.tables {
            out.extend([*shift, 0]);
            out.extend(offset.to_le_bytes());
            out.extend(short(frequencies.len()));
            out.extend(frequencies.iter().map(|(symbol, _)| symbol));
            out.extend(frequencies.iter().flat_map(|(_, f)| f.to_le_bytes()));
        }
        out
    }

    pub fn name(&self) -> [u8; 8] {
        Digest::of(&self.body()).0[..8].try_into().expect("8 of 32 bytes")
    }

    pub fn record(&self) -> Record {
        record_of(&self.body())
    }
}

pub fn record_of(body: &[u8]) -> Record {
    let name = hex(&Digest::of(body).0[..8]).into_bytes();
    Record { kind: 5, flags: 1, name, body: body.to_vec(), ..Record::default() }
}

/// The upper 16 bits of a value, towards zero (UC-EXA-5).
pub fn top(dtype: Dtype, v: f32) -> u16 {
    let exact = f64::from(v);
    match dtype {
        Dtype::F16 => {
            let nearest = half::f16::from_f64(exact);
            let away = nearest.to_f64().abs() > exact.abs();
            if away { nearest.to_bits() - 1 } else { nearest.to_bits() }
        }
        Dtype::F64 => u16::try_from(exact.to_bits() >> 48).expect("16 bits"),
        _ => u16::try_from(v.to_bits() >> 16).expect("16 bits"),
    }
}

pub fn anchor(levels: &[i8], code: usize) -> f32 {
    let level = f32::from(levels[code]);
    if levels[code] == 0 {
        return 0.5;
    }
    let inner = if level > 0.0 { code.checked_sub(1) } else { Some(code + 1) };
    match inner.and_then(|d| levels.get(d)).map(|l| f32::from(*l)) {
        Some(inner) if inner * level >= 0.0 => (inner + level) / 2.0,
        _ => level,
    }
}

/// Table and expected top of a weight.
pub fn expected(model: &Model, levels: &[i8], code: usize, factor: f32) -> (usize, u16) {
    let value = factor * anchor(levels, code);
    let bits = if model.of_value == 1 { value } else { factor }.to_bits();
    let mantissa = (bits & 0x7f_ffff) >> (23 - model.mantissa_bits);
    let fraction = (bits & 0xffff) >> (16 - model.fraction_bits);
    let number = (mantissa << model.fraction_bits | fraction) as usize;
    let context = usize::from(model.classes[code]) * model.each() + number;
    (model.contexts[context].into(), top(model.dtype, value))
}

/// A block, field by field.
#[derive(Clone)]
pub struct Block {
    pub words: Vec<u16>,
    pub exceptions: Vec<(u16, u16)>,
    pub has_tails: u32,
    pub states: [u32; 32],
    pub references: Vec<u8>,
    pub tails: Vec<u8>,
}

impl Block {
    /// Codes rows of `cols` weights: table, expected top and top of each.
    pub fn code(model: &Model, cols: usize, weights: &[(usize, u16, u16)]) -> Self {
        let mut states = [1u32 << 16; 32];
        let (mut words, mut exceptions) = (vec![], vec![]);
        for (at, (table, expected, top)) in weights.iter().enumerate().rev() {
            let (shift, offset, frequencies) = &model.tables[*table];
            let zero = expected.wrapping_add(offset.cast_unsigned());
            let distance = top.wrapping_sub(zero);
            let symbol = (distance & 0x7fff) >> shift;
            let symbol = (symbol < 128).then_some(symbol | (distance >> 15 << 7));
            let mut start = 0u32;
            let mut coded = None;
            for (s, f) in frequencies {
                if Some(u16::from(*s)) == symbol {
                    coded = Some((start, u32::from(*f), u32::from(distance) & ((1 << shift) - 1)));
                }
                start += u32::from(*f);
            }
            let (start, frequency, raw) = coded.unwrap_or_else(|| {
                exceptions.insert(0, (u16::try_from(at).expect("small"), *top));
                (0, frequencies[0].1.into(), 0)
            });
            let x = &mut states[at % cols % 32];
            let limit =
                u64::from(frequency) << (32 - u32::from(model.precision) - u32::from(*shift));
            if u64::from(*x) >= limit {
                words.insert(0, u16::try_from(*x & 0xffff).expect("16 bits"));
                *x >>= 16;
            }
            let value = *x << shift | raw;
            *x = ((value / frequency) << model.precision) + value % frequency + start;
        }
        Self { words, exceptions, has_tails: 0, states, references: vec![], tails: vec![] }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).expect("small").to_le_bytes();
        let mut out = vec![];
        out.extend(count(self.words.len()));
        out.extend(count(self.exceptions.len()));
        out.extend(self.has_tails.to_le_bytes());
        out.extend(self.states.iter().flat_map(|x| x.to_le_bytes()));
        let mut field = |bytes: Vec<u8>| {
            out.extend(bytes);
            pad(&mut out, 4, 0);
        };
        field(self.references.clone());
        field(self.words.iter().flat_map(|w| w.to_le_bytes()).collect());
        let positions = self.exceptions.iter().flat_map(|(at, _)| at.to_le_bytes());
        let tops = self.exceptions.iter().flat_map(|(_, top)| top.to_le_bytes());
        field(positions.chain(tops).collect());
        field(self.tails.clone());
        out
    }
}

/// A residual, field by field.
#[derive(Clone)]
pub struct Residual {
    pub models: [[u8; 8]; 6],
    pub blocks: Vec<Vec<u8>>,
    /// Written in place of how many blocks there are.
    pub n_blocks: Option<u32>,
}

impl Residual {
    pub fn bytes(&self) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).expect("small").to_le_bytes();
        let mut out: Vec<u8> = self.models.iter().flatten().copied().collect();
        out.extend(self.n_blocks.map_or(count(self.blocks.len()), u32::to_le_bytes));
        out.extend(self.blocks.iter().flat_map(|b| count(b.len())));
        out.extend(self.blocks.iter().flatten());
        out
    }
}

/// Upper 16 bits and tail of a source element that is `near` a value of so many bytes.
pub fn element(near: &[u8], i: usize, odd: bool) -> Vec<u8> {
    let mut bytes = near.to_vec();
    let tail = bytes.len() - 2;
    let top = u16::from_le_bytes([bytes[tail], bytes[tail + 1]]);
    // A few steps away from zero or towards it, and now and then anything.
    let odd_tops = [0x8000, 0x7fc1, 0xff80, 0x0001, 0x7bff, 0xffff];
    let new = match odd {
        true => odd_tops[i / 13 % odd_tops.len()],
        false => top.wrapping_add(u16::try_from(i * 5 % 7).expect("small")).wrapping_sub(2),
    };
    bytes[tail..].copy_from_slice(&new.to_le_bytes());
    for (j, b) in bytes[..tail].iter_mut().enumerate() {
        *b = u8::try_from((i * 31 + j * 7) % 256).expect("a byte");
    }
    bytes
}

/// A `planes` tensor with a residual.
pub struct Exact {
    pub planes: Planes,
    pub source: Vec<u8>,
    pub models: BTreeMap<u8, Model>,
    pub residual: Residual,
}

/// A model whose contexts take turns at two tables.
pub fn model(dtype: Dtype, native: u8, of_value: u8) -> Model {
    let (mantissa_bits, fraction_bits) = if of_value == 1 { (3, 1) } else { (2, 0) };
    let codes = 1usize << native;
    // Codes of one magnitude share a class, up to eight classes.
    let class = |c: usize| c.max(codes - 1 - c) * 8 / codes;
    let classes: Vec<u8> = (0..codes).map(|c| u8::try_from(class(c)).expect("below 8")).collect();
    let n =
        (usize::from(*classes.iter().max().expect("codes")) + 1) << (mantissa_bits + fraction_bits);
    let wide = (0..64u8).map(|s| (s, if s < 32 { 12 } else { 4 })).collect();
    let narrow = (0..16u8).chain(128..132).map(|s| (s, if s < 16 { 28 } else { 8 })).collect();
    Model {
        dtype,
        native,
        precision: 9,
        mantissa_bits,
        fraction_bits,
        of_value,
        classes,
        contexts: (0..n).map(|i| u8::from(i % 3 == 0)).collect(),
        tables: vec![(4, -512, wide), (2, -32, narrow)],
    }
    .filled()
}

impl Model {
    /// The same with what frequencies lack given to the last symbol.
    pub fn filled(mut self) -> Self {
        for (_, _, frequencies) in &mut self.tables {
            let sum: u16 = frequencies.iter().map(|(_, f)| f).sum();
            let last = frequencies.last_mut().expect("a symbol");
            last.1 = last.1 + (1 << self.precision) - sum;
        }
        self
    }
}

impl Exact {
    /// `of_value` by native count.
    pub fn new(planes: Planes, of_value: impl Fn(u8) -> u8, odd: bool, tails: bool) -> Self {
        let natives: Vec<u8> = planes.counts.clone();
        let of = |n: &u8| (*n, model(planes.dtype, *n, of_value(*n)));
        let models = natives.iter().map(of).collect();
        Self::with(planes, models, odd, tails)
    }

    pub fn with(planes: Planes, models: BTreeMap<u8, Model>, odd: bool, tails: bool) -> Self {
        let stored = planes.stored();
        let decoded = planes.decode(&stored, 8, planes.dtype);
        let size = usize::try_from(planes.dtype.bits() / 8).expect("small");
        let mut source = vec![];
        for (i, near) in decoded.chunks(size).enumerate() {
            let mut bytes = element(near, i, odd && i % 13 == 5);
            if !tails {
                bytes[..size - 2].fill(0);
            }
            source.extend(bytes);
        }
        Self::of_source(planes, models, tails, |place, _| source[place * size..][..size].to_vec())
    }

    /// What is expected of two-byte elements is what the source has.
    pub fn as_expected(planes: Planes, models: BTreeMap<u8, Model>) -> Self {
        Self::of_source(planes, models, false, |_, top| top.to_le_bytes().to_vec())
    }

    /// `element` gives the source's bytes by place and expected top.
    pub fn of_source(
        planes: Planes,
        models: BTreeMap<u8, Model>,
        tails: bool,
        element: impl Fn(usize, u16) -> Vec<u8>,
    ) -> Self {
        let stored = planes.stored();
        let size = usize::try_from(planes.dtype.bits() / 8).expect("small");
        let cols = usize::try_from(stored.layout.cols).expect("small");
        let mut source = vec![0; planes.counts.len() * cols * size];
        let mut names = [[0; 8]; 6];
        for (native, model) in &models {
            names[usize::from(*native) - 3] = model.name();
        }
        let mut blocks = vec![];
        for (native, model) in models.iter().rev() {
            let levels = LevelSet::default_for(*native).table(*native);
            let rows: Vec<usize> =
                (0..planes.counts.len()).filter(|&r| planes.counts[r] == *native).collect();
            for rows in rows.chunks((65_536 / cols).max(1)) {
                for from in (0..cols).step_by(65_536) {
                    let to = cols.min(from + 65_536);
                    let mut weights = vec![];
                    let mut lower = vec![];
                    for &row in rows {
                        for col in from..to {
                            let scale = planes.scale + u16::try_from(row % 64).expect("small");
                            let step = match planes.group {
                                0 => 128,
                                n => STEPS[(col / n as usize * 7 + row * 3) % 16],
                            };
                            let scale = f32::from_bits(u32::from(scale) << 16);
                            let code = usize::from(Planes::code(*native, row, col));
                            let (table, expected) =
                                expected(model, levels, code, scale * f32::from(step));
                            let e = element(row * cols + col, expected);
                            source[(row * cols + col) * size..][..size].copy_from_slice(&e);
                            lower.extend_from_slice(&e[..size - 2]);
                            weights.push((
                                table,
                                expected,
                                u16::from_le_bytes([e[size - 2], e[size - 1]]),
                            ));
                        }
                    }
                    let mut block = Block::code(model, to - from, &weights);
                    if tails && size > 2 {
                        (block.has_tails, block.tails) = (1, lower);
                    }
                    blocks.push(block.bytes());
                }
            }
        }
        let residual = Residual { models: names, blocks, n_blocks: None };
        Self { planes, source, models, residual }
    }

    pub fn records(&self) -> Vec<Record> {
        let mut w = self.planes.record();
        w.parts.push(Part { flags: 1, ..plain(16, 0, &self.residual.bytes()) });
        w.tensor.as_mut().expect("a tensor").exact = Some(self.source.clone());
        let mut models: Vec<Record> = self.models.values().map(Model::record).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        [vec![w], models].concat()
    }

    pub fn file(&self) -> File {
        File::of(self.records())
    }
}

/// A tensor that is coded without planes.
pub fn coded(
    name: &str,
    dtype: Dtype,
    shape: &[u64],
    row_dims: u8,
    model: &Model,
    source: &[u8],
) -> Record {
    let rows: usize =
        shape[..usize::from(row_dims)].iter().product::<u64>().try_into().expect("small");
    let size = usize::try_from(dtype.bits() / 8).expect("small");
    let cols = source.len() / size / rows;
    let (mantissa, first) = match dtype {
        Dtype::F16 => (10, 0),
        Dtype::F64 => (4, 971),
        _ => (7, 75u16),
    };
    let mut weights = vec![];
    // Near one, whatever the first exponent is.
    let near_one = if dtype == Dtype::F16 { 60 } else { 200 };
    let references: Vec<u8> =
        (0..rows).map(|r| u8::try_from(near_one + r % 5).expect("a byte")).collect();
    for (row, r) in source.chunks(cols * size).zip(&references) {
        let expected = (4 * first + u16::from(*r)) << (mantissa - 2);
        let context = usize::from(r % 4) << (model.mantissa_bits + model.fraction_bits) >> 2;
        let table = usize::from(model.contexts[context]);
        for e in row.chunks(size) {
            weights.push((table, expected, u16::from_le_bytes([e[size - 2], e[size - 1]])));
        }
    }
    let mut block = Block::code(model, cols, &weights);
    block.references = references;
    if size > 2 {
        block.has_tails = 1;
        block.tails = source.chunks(size).flat_map(|e| e[..size - 2].to_vec()).collect();
    }
    let mut models = [[0; 8]; 6];
    models[0] = model.name();
    let residual = Residual { models, blocks: vec![block.bytes()], n_blocks: None };
    let parts = vec![plain(16, 0, &residual.bytes())];
    tensor(name, dtype, shape, source, [4, 1, row_dims, 0, 0], &[], parts)
}

pub fn coded_model(dtype: Dtype) -> Model {
    let symbols = (0..100u8).chain(128..228).map(|s| (s, 8)).collect();
    let few = (0..120u8).map(|s| (s, 4)).collect();
    Model {
        dtype,
        native: 0,
        precision: 11,
        mantissa_bits: 2,
        fraction_bits: 0,
        of_value: 0,
        classes: vec![0],
        contexts: vec![0, 1, 0, 1],
        tables: vec![(4, -1000, symbols), (5, -2000, few)],
    }
    .filled()
}

/// Elements around one, of either sign.
pub fn around_one(dtype: Dtype, n: usize) -> Vec<u8> {
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 40.0;
    (0..n)
        .flat_map(|i| match dtype {
            Dtype::Bf16 => half::bf16::from_f32(value(i)).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f32(value(i)).to_le_bytes().to_vec(),
            Dtype::F64 => (f64::from(value(i)) / 3.0).to_le_bytes().to_vec(),
            _ => value(i).to_le_bytes().to_vec(),
        })
        .collect()
}

pub fn small() -> Exact {
    let planes = Planes::new("w", Dtype::Bf16, &[3, 40], 16, &[5, 4, 5]);
    Exact::new(planes, |n| u8::from(n == 4), true, false)
}
