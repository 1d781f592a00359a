//! Factors of overlays and what they lead to: spec/overlay.md, weight by weight.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde_json::{Value, json};
use ultracompress::codec::convert_raw;
use ultracompress::format::{TreeHasher, tensor_leaf};
use ultracompress::{Digest, Dtype};

use super::file::{File, Record, hex, plain, raw};
use super::planes::Planes;

/// A way of adding up products, and of scaling what comes out.
pub type Sum = fn(&[f32], f32) -> f32;

/// A block, field by field.
#[derive(Clone)]
pub struct Block {
    pub tensor: String,
    pub factors: u8,
    pub rank: u32,
    pub rows: u64,
    pub cols: u64,
    pub scaling: u32,
    /// What is stored, without padding.
    pub content: Vec<u8>,
    /// What it makes of values in binary32, given their place.
    pub product: Vec<f32>,
    pub effective: Option<Digest>,
    pub reserved: u8,
}

pub fn int8(i: usize, seed: usize) -> i8 {
    i8::try_from((i * 37 + seed * 61) % 255).map_or_else(
        |_| i8::try_from((i * 37 + seed * 61) % 255 - 128).expect("below 128"),
        |v| if seed.is_multiple_of(2) { v } else { -v },
    )
}

impl Block {
    pub fn int8(tensor: &str, rows: usize, cols: usize, rank: usize, seed: usize) -> Self {
        let a: Vec<i8> = (0..rows * rank).map(|i| int8(i, seed)).collect();
        let b: Vec<i8> = (0..rank * cols).map(|i| int8(i, seed + 1)).collect();
        let scale = |i: usize, base: u16| base + u16::try_from(i * 29 % 120).expect("small");
        let row_scales: Vec<u16> = (0..rows).map(|i| scale(i, 0x3c80)).collect();
        let column_scales: Vec<u16> = (0..cols).map(|i| scale(i, 0x3c00)).collect();
        let mut content = vec![];
        content.extend(row_scales.iter().chain(&column_scales).flat_map(|s| s.to_le_bytes()));
        content.extend(a.iter().chain(&b).map(|v| v.cast_unsigned()));
        let value = |bits: u16| bf16::from_bits(bits).to_f32();
        let product = |i: usize| {
            let (r, c) = (i / cols, i % cols);
            let sum: i32 =
                (0..rank).map(|k| i32::from(a[r * rank + k]) * i32::from(b[k * cols + c])).sum();
            #[allow(clippy::cast_precision_loss, reason = "below 2^24")]
            let sum = sum as f32;
            sum * (value(row_scales[r]) * value(column_scales[c]))
        };
        Self::new(
            tensor,
            1,
            rows,
            cols,
            rank,
            0.0,
            content,
            (0..rows * cols).map(product).collect(),
        )
    }

    /// Exchanges one of the scales, those of rows first, of int8 factors.
    pub fn set_scale(&mut self, at: usize, scale: bf16) {
        let whole = |n: u64| usize::try_from(n).expect("small");
        let (rows, cols, rank) = (whole(self.rows), whole(self.cols), self.rank as usize);
        self.content[2 * at..][..2].copy_from_slice(&scale.to_le_bytes());
        let value =
            |i: usize| bf16::from_le_bytes([self.content[2 * i], self.content[2 * i + 1]]).to_f32();
        let factors = &self.content[2 * (rows + cols)..];
        let (a, b) = factors.split_at(rows * rank);
        let product = |i: usize| {
            let (r, c) = (i / cols, i % cols);
            let term = |k: usize| {
                i16::from(a[r * rank + k].cast_signed()) * i16::from(b[k * cols + c].cast_signed())
            };
            let sum: i32 = (0..rank).map(|k| i32::from(term(k))).sum();
            #[allow(clippy::cast_precision_loss, reason = "below 2^24")]
            let sum = sum as f32;
            sum * (value(r) * value(rows + c))
        };
        self.product = (0..rows * cols).map(product).collect();
    }

    /// One row of factors whose product is zero.
    pub fn zero_int8(tensor: &str, cols: usize) -> Self {
        let mut block = Self::int8(tensor, 1, cols, 1, 0);
        let n = block.content.len();
        block.content[n - cols..].fill(0);
        block.product = vec![0.0; cols];
        block
    }

    pub fn f16(tensor: &str, rows: usize, cols: usize, rank: usize, scaling: f32) -> Self {
        let factor = |i: usize, seed: usize| {
            // Sizes far apart, so that the order of the sum shows.
            let size = 2f32.powi(i32::try_from(i * 7 % 19).expect("small") - 15);
            f16::from_f32(f32::from(int8(i, seed)) * size)
        };
        let a: Vec<f16> = (0..rows * rank).map(|i| factor(i, 3)).collect();
        let b: Vec<f16> = (0..rank * cols).map(|i| factor(i, 4)).collect();
        Self::of_f16(tensor, cols, &a, &b, scaling)
    }

    /// Factors of binary16, given as they are.
    pub fn of_f16(tensor: &str, cols: usize, a: &[f16], b: &[f16], scaling: f32) -> Self {
        let rank = b.len() / cols;
        let rows = a.len() / rank;
        let content = a.iter().chain(b).flat_map(|v| v.to_le_bytes()).collect();
        let product = |i: usize| {
            let mut sum = 0f32;
            for k in 0..rank {
                sum += a[i / cols * rank + k].to_f32() * b[k * cols + i % cols].to_f32();
            }
            sum * scaling
        };
        let product = (0..rows * cols).map(product).collect();
        Self::new(tensor, 2, rows, cols, rank, scaling, content, product)
    }

    /// int8 factors whose sums are as large as they can be and whose scales have all their bits.
    /// Checks that rounding the product shows: a sum of unrounded product and value is another
    /// number somewhere.
    pub fn large_int8(tensor: &str, base: &[f32], cols: usize) -> Self {
        let (rank, rows) = (1024, base.len() / cols);
        let a: Vec<i8> =
            (0..rows * rank).map(|i| if i < rank { -128 } else { int8(i, 1) | 64 }).collect();
        let b: Vec<i8> =
            (0..rank * cols).map(|i| if i % cols == 0 { -128 } else { int8(i, 2) | 32 }).collect();
        let scale = |i: usize, base: u16| base + u16::try_from(i * 53 % 128).expect("small");
        let row_scales: Vec<u16> = (0..rows).map(|i| scale(i + 1, 0x3b00)).collect();
        let column_scales: Vec<u16> = (0..cols).map(|i| scale(i + 1, 0x3b00)).collect();
        let mut content = vec![];
        content.extend(row_scales.iter().chain(&column_scales).flat_map(|s| s.to_le_bytes()));
        content.extend(a.iter().chain(&b).map(|v| v.cast_unsigned()));
        let value = |bits: u16| bf16::from_bits(bits).to_f32();
        let term =
            |r: usize, c: usize, k: usize| i32::from(a[r * rank + k]) * i32::from(b[k * cols + c]);
        let sum = |i: usize| -> i32 { (0..rank).map(|k| term(i / cols, i % cols, k)).sum() };
        let scales = |i: usize| value(row_scales[i / cols]) * value(column_scales[i % cols]);
        assert_eq!(sum(0), 1 << 24, "the largest sum");
        #[allow(clippy::cast_precision_loss, reason = "at most 2^24")]
        let product: Vec<f32> = (0..base.len()).map(|i| sum(i) as f32 * scales(i)).collect();
        #[allow(clippy::cast_possible_truncation, reason = "this is the rounding")]
        let fused =
            |i: usize| (f64::from(base[i]) + f64::from(sum(i)) * f64::from(scales(i))) as f32;
        assert!((0..base.len()).any(|i| fused(i) != base[i] + product[i]));
        Self::new(tensor, 1, rows, cols, rank, 0.0, content, product)
    }

    /// Factors of binary16 whose sum in any of the orders that come to mind is another number
    /// somewhere.
    pub fn ordered_f16(tensor: &str, rows: usize, cols: usize) -> Self {
        let rank = 33;
        let factor = |i: usize, seed: usize| {
            let size = 2f32.powi(i32::try_from(i * 5 % 13).expect("small") - 9);
            f16::from_f32(f32::from(int8(i, seed)) * size)
        };
        let a: Vec<f16> = (0..rows * rank).map(|i| factor(i, 7)).collect();
        let b: Vec<f16> = (0..rank * cols).map(|i| factor(i, 8)).collect();
        let scaling = 1.7f32;
        let block = Self::of_f16(tensor, cols, &a, &b, scaling);
        let terms = |i: usize| -> Vec<f32> {
            let (a, b) = (&a[i / cols * rank..][..rank], b.iter().skip(i % cols).step_by(cols));
            a.iter().zip(b).map(|(a, b)| a.to_f32() * b.to_f32()).collect()
        };
        fn lanes(terms: &[f32], n: usize) -> f32 {
            (0..n)
                .map(|l| terms.iter().skip(l).step_by(n).fold(0.0, |s, t| s + t))
                .fold(0.0, |s, t| s + t)
        }
        #[allow(clippy::cast_possible_truncation, reason = "this is the rounding")]
        let others: [(&str, Sum); 7] = [
            ("from the last", |t, x| t.iter().rev().fold(0.0, |s, t| s + t) * x),
            ("two sums", |t, x| lanes(t, 2) * x),
            ("four sums", |t, x| lanes(t, 4) * x),
            ("eight sums", |t, x| lanes(t, 8) * x),
            ("sixteen sums", |t, x| lanes(t, 16) * x),
            ("binary64", |t, x| t.iter().map(|t| f64::from(*t)).sum::<f64>() as f32 * x),
            ("scaled terms", |t, x| t.iter().fold(0.0, |s, t| s + t * x)),
        ];
        for (what, other) in others {
            let differs = |i: &usize| other(&terms(*i), scaling) != block.product[*i];
            assert!((0..rows * cols).filter(differs).count() > rows, "{what} shows");
        }
        block
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a block")]
    pub fn new(
        tensor: &str,
        factors: u8,
        rows: usize,
        cols: usize,
        rank: usize,
        scaling: f32,
        content: Vec<u8>,
        product: Vec<f32>,
    ) -> Self {
        Self {
            tensor: tensor.into(),
            factors,
            rank: u32::try_from(rank).expect("small"),
            rows: rows as u64,
            cols: cols as u64,
            scaling: scaling.to_bits(),
            content,
            product,
            effective: None,
            reserved: 0,
        }
    }

    pub fn record(&self) -> Vec<u8> {
        let name_len = u16::try_from(self.tensor.len()).expect("short");
        let mut out = name_len.to_le_bytes().to_vec();
        out.extend([self.factors, self.reserved]);
        out.extend(self.rank.to_le_bytes());
        out.extend(self.rows.to_le_bytes());
        out.extend(self.cols.to_le_bytes());
        out.extend(self.scaling.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.effective.unwrap_or(Digest([0; 32])).0);
        out.extend(self.tensor.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

/// An overlay, field by field.
#[derive(Clone)]
pub struct Overlay {
    pub name: &'static str,
    pub order: u16,
    pub blocks: Vec<Block>,
    pub info: Vec<u8>,
    pub base_root: Option<Digest>,
    pub effective_root: Option<Digest>,
    pub n_blocks: Option<u32>,
    pub reserved: u16,
    /// What padding behind blocks is made of.
    pub padding: u8,
    /// Bytes behind the last field.
    pub tail: Vec<u8>,
    /// Bytes of the part more or less.
    pub extra: i32,
}

impl Overlay {
    pub fn new(name: &'static str, order: u16, blocks: Vec<Block>) -> Self {
        Self {
            name,
            order,
            blocks,
            info: br#"{"kind":"vector"}"#.to_vec(),
            base_root: None,
            effective_root: None,
            n_blocks: None,
            reserved: 0,
            padding: 0,
            tail: vec![],
            extra: 0,
        }
    }

    pub fn record(&self) -> Record {
        let zero = Digest([0; 32]);
        let mut body = self.base_root.unwrap_or(zero).0.to_vec();
        body.extend(self.effective_root.unwrap_or(zero).0);
        body.extend(self.order.to_le_bytes());
        body.extend(self.reserved.to_le_bytes());
        let n = u32::try_from(self.blocks.len()).expect("few");
        body.extend(self.n_blocks.unwrap_or(n).to_le_bytes());
        body.extend(u32::try_from(self.info.len()).expect("short").to_le_bytes());
        body.extend([0; 4]);
        self.blocks.iter().for_each(|b| body.extend(b.record()));
        body.extend(&self.info);
        body.resize(body.len().next_multiple_of(8), 0);
        body.extend(&self.tail);
        let mut content = vec![];
        for block in &self.blocks {
            content.extend(&block.content);
            content.resize(content.len().next_multiple_of(64), self.padding);
        }
        let len = i32::try_from(content.len()).expect("small") + self.extra;
        content.resize(usize::try_from(len).expect("positive"), 0);
        let parts = if content.is_empty() { vec![] } else { vec![plain(1, 0, &content)] };
        Record { kind: 4, flags: 1, name: self.name.into(), body, parts, ..Record::default() }
    }
}

/// A tensor below overlays: its record, and its values in binary32.
pub struct Base {
    pub record: Record,
    pub values: Vec<f32>,
}

pub fn planes_base(planes: &Planes) -> Base {
    let values = planes.decode(&planes.stored(), 8, Dtype::F32);
    let values = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Base { record: planes.record(), values }
}

pub fn raw_base(name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Base {
    let wide = convert_raw(bytes.to_vec(), dtype, Dtype::F32).0;
    let values = wide.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Base { record: raw(name, dtype, shape, bytes), values }
}

pub fn root(bases: &[Base], effective: &BTreeMap<String, Digest>) -> Digest {
    let mut tree = TreeHasher::new();
    for base in bases {
        let t = base.record.tensor.as_ref().expect("a tensor");
        let name = String::from_utf8_lossy(&base.record.name).into_owned();
        // An alias has its target's.
        let own = if base.record.body[1] == 3 { "b.planes" } else { &name };
        let digest = effective.get(own).copied().unwrap_or(Digest::of(&t.decoded));
        tree.push(tensor_leaf(&name, t.dtype, &t.shape, digest));
    }
    tree.root()
}

/// Applies overlays in the order in which they come; what each leads to.
pub fn apply(bases: &[Base], overlays: &mut [Overlay]) -> Vec<Value> {
    let mut values: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut effective = BTreeMap::new();
    let mut outputs = vec![];
    let base_root = root(bases, &effective);
    for overlay in overlays {
        let mut tensors = serde_json::Map::new();
        for block in &mut overlay.blocks {
            let named = |b: &&Base| b.record.name == block.tensor.as_bytes();
            let Some(base) = bases.iter().find(named) else { continue };
            let t = base.record.tensor.as_ref().expect("a tensor");
            let values = values.entry(block.tensor.clone()).or_insert_with(|| base.values.clone());
            let size = usize::try_from(t.dtype.bits() / 8).expect("small");
            let mut bytes = vec![];
            for (i, (v, d)) in values.iter_mut().zip(&block.product).enumerate() {
                if v.is_finite() {
                    *v += d;
                    let one = v.to_le_bytes().to_vec();
                    bytes.extend(convert_raw(one, Dtype::F32, t.dtype).0);
                } else {
                    bytes.extend(&t.decoded[i * size..][..size]);
                }
            }
            block.effective.get_or_insert(Digest::of(&bytes));
            effective.insert(block.tensor.clone(), Digest::of(&bytes));
            tensors.insert(block.tensor.clone(), hex(&bytes).into());
        }
        overlay.base_root.get_or_insert(base_root);
        let effective_root = root(bases, &effective);
        overlay.effective_root.get_or_insert(effective_root);
        outputs.push(json!({
            "name": overlay.name, "effective_root": effective_root.to_string(), "tensors": tensors,
        }));
    }
    outputs
}

pub fn file(bases: &[Base], overlays: &[Overlay]) -> File {
    let mut records: Vec<Record> = bases.iter().map(|b| b.record.clone()).collect();
    let mut own: Vec<Record> = overlays.iter().map(Overlay::record).collect();
    own.sort_by(|a, b| a.name.cmp(&b.name));
    records.extend(own);
    File::of(records)
}
