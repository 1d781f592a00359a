//! Vectors of overlays: spec/overlay.md, weight by weight.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde_json::{Value, json};
use ultracompress::codec::convert_raw;
use ultracompress::format::{TreeHasher, tensor_leaf};
use ultracompress::{Digest, Dtype};

use super::{File, Planes, Record, VectorSet, alias, hex, plain, raw};

/// A way of adding up products, and of scaling what comes out.
type Sum = fn(&[f32], f32) -> f32;

/// A block, field by field.
#[derive(Clone)]
struct Block {
    tensor: String,
    factors: u8,
    rank: u32,
    rows: u64,
    cols: u64,
    scaling: u32,
    /// What is stored, without padding.
    content: Vec<u8>,
    /// What it makes of values in binary32, given their place.
    product: Vec<f32>,
    effective: Option<Digest>,
    reserved: u8,
}

fn int8(i: usize, seed: usize) -> i8 {
    i8::try_from((i * 37 + seed * 61) % 255).map_or_else(
        |_| i8::try_from((i * 37 + seed * 61) % 255 - 128).expect("below 128"),
        |v| if seed.is_multiple_of(2) { v } else { -v },
    )
}

impl Block {
    fn int8(tensor: &str, rows: usize, cols: usize, rank: usize, seed: usize) -> Self {
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
    fn set_scale(&mut self, at: usize, scale: bf16) {
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
    fn zero_int8(tensor: &str, cols: usize) -> Self {
        let mut block = Self::int8(tensor, 1, cols, 1, 0);
        let n = block.content.len();
        block.content[n - cols..].fill(0);
        block.product = vec![0.0; cols];
        block
    }

    fn f16(tensor: &str, rows: usize, cols: usize, rank: usize, scaling: f32) -> Self {
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
    fn of_f16(tensor: &str, cols: usize, a: &[f16], b: &[f16], scaling: f32) -> Self {
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

    /// int8 factors whose sums are as large as they can be and whose scales have all their bits. Checks that rounding the
    /// product shows: a sum of unrounded product and value is another number somewhere.
    fn large_int8(tensor: &str, base: &[f32], cols: usize) -> Self {
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

    /// Factors of binary16 whose sum in any of the orders that come to mind is another number somewhere.
    fn ordered_f16(tensor: &str, rows: usize, cols: usize) -> Self {
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
    fn new(
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

    fn record(&self) -> Vec<u8> {
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
struct Overlay {
    name: &'static str,
    order: u16,
    blocks: Vec<Block>,
    info: Vec<u8>,
    base_root: Option<Digest>,
    effective_root: Option<Digest>,
    n_blocks: Option<u32>,
    reserved: u16,
    /// What padding behind blocks is made of.
    padding: u8,
    /// Bytes behind the last field.
    tail: Vec<u8>,
    /// Bytes of the part more or less.
    extra: i32,
}

impl Overlay {
    fn new(name: &'static str, order: u16, blocks: Vec<Block>) -> Self {
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

    fn record(&self) -> Record {
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
struct Base {
    record: Record,
    values: Vec<f32>,
}

fn planes_base(planes: &Planes) -> Base {
    let values = planes.decode(&planes.stored(), 8, Dtype::F32);
    let values = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Base { record: planes.record(), values }
}

fn raw_base(name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Base {
    let wide = convert_raw(bytes.to_vec(), dtype, Dtype::F32).0;
    let values = wide.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Base { record: raw(name, dtype, shape, bytes), values }
}

fn root(bases: &[Base], effective: &BTreeMap<String, Digest>) -> Digest {
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
fn apply(bases: &[Base], overlays: &mut [Overlay]) -> Vec<Value> {
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

fn file(bases: &[Base], overlays: &[Overlay]) -> File {
    let mut records: Vec<Record> = bases.iter().map(|b| b.record.clone()).collect();
    let mut own: Vec<Record> = overlays.iter().map(Overlay::record).collect();
    own.sort_by(|a, b| a.name.cmp(&b.name));
    records.extend(own);
    File::of(records)
}

/// Tensors of all kinds that overlays may change, and one they may not.
fn bases() -> Vec<Base> {
    let planes = Planes::new("b.planes", Dtype::Bf16, &[3, 80], 32, &[5, 4, 5]);
    let other = Planes::new("c.f16", Dtype::F16, &[2, 2, 24], 0, &[6, 6, 6, 6]);
    let other = Planes { row_dims: 2, ..other };
    let f32s: Vec<u8> = [1.0f32, f32::NEG_INFINITY, -0.0, f32::from_bits(0x7fa0_0001), 3e-3, 2e5]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let bf16s: Vec<u8> = (0..8u16).flat_map(|i| (0x3c00 + 37 * i).to_le_bytes()).collect();
    let b = planes_base(&planes);
    let alias = Base { record: alias("a.alias", "b.planes", &b.record), values: vec![] };
    vec![
        alias,
        b,
        planes_base(&other),
        raw_base("d.f32", Dtype::F32, &[2, 3], &f32s),
        raw_base("e.bf16", Dtype::Bf16, &[8], &bf16s),
        raw_base("f.i16", Dtype::I16, &[4], &[1; 8]),
    ]
}

fn example() -> (Vec<Base>, Vec<Overlay>) {
    let first = Overlay::new(
        "first",
        1,
        vec![Block::int8("b.planes", 3, 80, 3, 0), Block::int8("d.f32", 2, 3, 1, 2)],
    );
    (bases(), vec![first])
}

fn add(
    set: &mut VectorSet,
    id: &str,
    rules: &[&str],
    comment: &str,
    bases: &[Base],
    mut overlays: Vec<Overlay>,
) {
    let outputs = apply(bases, &mut overlays);
    set.valid_with(id, rules, comment, &file(bases, &overlays), Some(outputs.into()));
}

pub fn valid(set: &mut VectorSet) {
    let (bases, overlays) = example();
    add(
        set,
        "overlay-int8",
        &["OVL-1", "OVL-2", "OVL-4", "OVL-5", "OVL-6", "OVL-8", "OVL-9"],
        "int8 factors on a tensor of planes, which has an alias, and on a raw one with an infinity and a NaN",
        &bases,
        overlays,
    );
    let adapter = Overlay::new(
        "adapter",
        1,
        vec![
            Block::f16("b.planes", 3, 80, 5, 1.0 / 65536.0),
            Block::f16("c.f16", 4, 24, 2, -1.5 / 65536.0),
            Block::f16("d.f32", 2, 3, 8, 1.0 / 1024.0),
            Block::f16("e.bf16", 1, 8, 1, 1.0 / 1024.0),
        ],
    );
    // On zeros of binary32 the product is what comes out.
    let zeros = raw_base("g.zeros", Dtype::F32, &[4, 12], &[0; 4 * 12 * 4]);
    let mut with_zeros = self::bases();
    with_zeros.push(zeros);
    let mut ordered = adapter.clone();
    ordered.blocks.push(Block::ordered_f16("g.zeros", 4, 12));
    add(
        set,
        "overlay-binary16",
        &["OVL-2", "OVL-4", "OVL-7", "OVL-8"],
        "binary16 factors whose sums depend on their order; a vector as one row",
        &with_zeros,
        vec![ordered],
    );
    let values: Vec<f32> = (0..36u8).map(|i| f32::from(i) / 7.0 - 2.5).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let large = Block::large_int8("w", &values, 12);
    add(
        set,
        "overlay-int8-rounding",
        &["OVL-6", "OVL-8"],
        "rank 1024, sums up to 2^24: the product is rounded before it is added",
        &[raw_base("w", Dtype::F32, &[3, 12], &bytes)],
        vec![Overlay::new("first", 1, vec![large])],
    );
    // What is just in range.
    let mut scales = Block::int8("a", 2, 1, 1, 0);
    scales.set_scale(0, bf16::from_f32(2f32.powi(40)));
    scales.set_scale(1, bf16::from_f32(2f32.powi(-60)));
    scales.set_scale(2, bf16::from_f32(2f32.powi(-60)));
    let tiny = [f16::from_bits(1), f16::from_bits(0x8001)];
    let ones: Vec<u8> = [1.0f32, -1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let on_ones = ["a", "b", "c"].map(|name| raw_base(name, Dtype::F32, &[2], &ones));
    add(
        set,
        "overlay-limits",
        &["OVL-2", "OVL-4", "OVL-5"],
        "the largest and smallest scales and scalings; a vector as one column",
        &on_ones,
        vec![Overlay::new(
            "first",
            1,
            vec![
                scales,
                Block::of_f16("b", 1, &tiny, &[f16::ONE], 2f32.powi(64)),
                Block::of_f16("c", 1, &[f16::MAX, f16::MIN], &[f16::MAX], -2f32.powi(-64)),
            ],
        )],
    );
    // Products of +0 and -0 on zeros of both signs: only two negative zeros have a negative sum.
    let zeros: Vec<u8> = [0.0f32, -0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let on_zeros = [
        raw_base("a", Dtype::F32, &[2], &zeros),
        raw_base("b", Dtype::F32, &[2], &zeros),
        raw_base("c", Dtype::Bf16, &[2], &[0, 0, 0, 0x80]),
    ];
    let none = [f16::ZERO, f16::ZERO];
    let one = [f16::ONE];
    add(
        set,
        "overlay-negative-zero",
        &["OVL-6", "OVL-7", "OVL-8"],
        "sums of zeros: a product of binary16 factors is negative zero where the scaling is negative, one of int8 never",
        &on_zeros,
        vec![Overlay::new(
            "first",
            1,
            vec![
                Block::of_f16("a", 2, &one, &none, 1.0),
                Block::of_f16("b", 2, &one, &none, -1.0),
                Block::zero_int8("c", 2),
            ],
        )],
    );
    let mut unset = file(&on_zeros, &[]);
    unset.optional = Some(2);
    set.valid(
        "overlay-feature-unused",
        &["HDR-5", "OVL-3"],
        "no overlays, though the optional bit says that there are",
        &unset,
    );
    let (some, mut overlays) = example();
    let outputs = apply(&some, &mut overlays);
    let mut unset = file(&some, &overlays);
    unset.optional = Some(0);
    set.valid_with(
        "overlay-feature-unset",
        &["HDR-5", "OVL-3"],
        "an overlay, though the optional bit says that there is none: readers don't rely on it",
        &unset,
        Some(outputs.into()),
    );
    let mut alone = shards();
    let all = File::of(alone.iter().flat_map(|f| f.records.clone()).collect());
    let mut first = alone.remove(0);
    first.shard = Some((1, 2));
    first.manifest =
        Some(serde_json_canonicalizer::to_vec(&all.default_manifest()).expect("plain JSON"));
    set.valid_with(
        "shard-alone",
        &["SHD-7"],
        "the first shard of two: its manifest and its overlay speak of tensors that aren't here",
        &first,
        None,
    );
    // Names sort the other way round.
    let stack = vec![
        Overlay { name: "second", ..adapter },
        Overlay::new(
            "first",
            2,
            vec![Block::int8("b.planes", 3, 80, 16, 5), Block::int8("c.f16", 2, 48, 2, 6)],
        ),
    ];
    add(
        set,
        "overlay-stack",
        &["OVL-3", "OVL-8", "OVL-9"],
        "two overlays: the one whose name comes last is applied first; rows as another product of dimensions",
        &bases,
        stack,
    );
    let (bases, mut overlays) = example();
    apply(&bases, &mut overlays);
    let records = overlays.iter().map(Overlay::record).collect();
    set.valid_with(
        "overlay-file",
        &["OVL-10"],
        "an overlay without its base",
        &File::of(records),
        None,
    );
}

/// Two shards, of which the first has an overlay for tensors of both.
pub fn shards() -> Vec<File> {
    let (bases, mut overlays) = example();
    apply(&bases, &mut overlays);
    let (second, first) = bases.split_at(3);
    let own = |bases: &[Base]| bases.iter().map(|b| b.record.clone()).collect::<Vec<_>>();
    let overlays = overlays.iter().map(Overlay::record).collect();
    vec![File::of([own(first), overlays].concat()), File::of(own(second))]
}

#[allow(clippy::too_many_lines, reason = "a list")]
pub fn invalid(set: &mut VectorSet) {
    type Change = fn(&mut Overlay);
    let mut one = |id: &str, rule: &str, comment: &str, expect: &str, change: Change| {
        let (bases, mut overlays) = example();
        apply(&bases, &mut overlays);
        change(&mut overlays[0]);
        set.invalid(id, &[rule], comment, expect, &file(&bases, &overlays).bytes());
    };
    let m = "malformed";
    one("overlay-reserved", "OVL-1", "a reserved byte of the body is set", m, |o| o.reserved = 1);
    one("overlay-block-reserved", "OVL-2", "a reserved byte of a block is set", m, |o| {
        o.blocks[0].reserved = 1;
    });
    one("overlay-order-zero", "OVL-3", "order 0", m, |o| o.order = 0);
    one("overlay-no-blocks", "OVL-1", "no blocks", m, |o| o.n_blocks = Some(0));
    one("overlay-more-blocks", "OVL-1 NAM-1 OVL-2", "more blocks than there are", m, |o| {
        o.n_blocks = Some(3);
    });
    one("overlay-unsorted", "OVL-1", "blocks in another order", m, |o| o.blocks.swap(0, 1));
    one("overlay-block-twice", "OVL-1", "two blocks for one tensor", m, |o| {
        o.blocks[1] = o.blocks[0].clone();
    });
    one("overlay-tail", "OVL-1", "bytes behind the info", m, |o| o.tail = vec![0; 8]);
    one("overlay-info-spaces", "OVL-1", "info isn't canonical JSON", m, |o| {
        o.info = br#"{ "kind":"vector"}"#.to_vec();
    });
    one("overlay-info-array", "OVL-1", "info isn't an object", m, |o| o.info = b"[]".to_vec());
    one("overlay-info-fraction", "OVL-1", "info has a number that isn't an integer", m, |o| {
        o.info = br#"{"x":0.5}"#.to_vec();
    });
    one("overlay-factor-type", "OVL-2", "factors of type 3", m, |o| o.blocks[0].factors = 3);
    one("overlay-rank-zero", "OVL-2", "rank 0", m, |o| o.blocks[0].rank = 0);
    one("overlay-rows-zero", "OVL-2", "no rows", m, |o| o.blocks[0].rows = 0);
    one("overlay-int8-scaling", "OVL-2", "int8 factors with a scaling", m, |o| {
        o.blocks[0].scaling = 1f32.to_bits();
    });
    one("overlay-int8-negative-zero", "OVL-2", "int8 factors with a scaling of -0", m, |o| {
        o.blocks[0].scaling = (-0f32).to_bits();
    });
    one("overlay-huge", "OVL-2", "factors that no file can hold", m, |o| {
        (o.blocks[0].rows, o.blocks[0].cols) = (u64::MAX / 2, u64::MAX / 2);
    });
    one("overlay-part-short", "OVL-2", "the part is shorter than the blocks", m, |o| o.extra = -64);
    one("overlay-part-long", "OVL-2", "the part is longer than the blocks", m, |o| o.extra = 64);
    one("overlay-padding", "OVL-2", "padding behind a block is not zero", m, |o| o.padding = 1);
    one("overlay-order-gap", "OVL-3", "the only overlay is the second", m, |o| o.order = 2);
    one("overlay-other-base", "OVL-3", "for another base", m, |o| {
        o.base_root = Some(Digest::of(b"another"));
    });
    one("overlay-no-tensor", "OVL-4", "for a tensor that isn't there", m, |o| {
        o.blocks[1].tensor = "e.bf17".into();
    });
    one("overlay-on-alias", "OVL-4", "for an alias", m, |o| o.blocks[0].tensor = "a.alias".into());
    one("overlay-on-integers", "OVL-4", "for a tensor of integers", m, |o| {
        o.blocks[1] = Block::int8("f.i16", 1, 4, 1, 0);
    });
    one("overlay-digest", "OVL-9", "a tensor leads to other bytes", "integrity", |o| {
        o.blocks[0].effective = Some(Digest::of(b"others"));
    });
    one("overlay-factor-changed", "OVL-9", "a factor was changed", "integrity", |o| {
        *o.blocks[0].content.last_mut().expect("there") ^= 0x40;
    });
    one("overlay-root", "OVL-9", "the effective root is another", "integrity", |o| {
        o.effective_root = Some(Digest::of(b"another"));
    });

    // What it leads to is what a reader makes of it that doesn't look.
    let mut lenient = |id: &str, rule: &str, comment: &str, change: &dyn Fn(&mut Block)| {
        let (bases, mut overlays) = example();
        change(&mut overlays[0].blocks[1]);
        apply(&bases, &mut overlays);
        set.invalid(id, &[rule], comment, m, &file(&bases, &overlays).bytes());
    };
    lenient("overlay-other-shape", "OVL-4", "rows that are no product of first dimensions", &|b| {
        *b = Block::int8("d.f32", 3, 2, 1, 2);
    });
    for (id, comment, scale, at) in [
        ("overlay-scale-zero", "a row scale of zero", bf16::ZERO, 1),
        ("overlay-scale-negative", "a negative column scale", bf16::NEG_ONE, 3),
        ("overlay-scale-nan", "a row scale that is no number", bf16::NAN, 0),
        ("overlay-scale-large", "a row scale above 2^40", bf16::from_f32(2e12), 0),
        ("overlay-scale-small", "a column scale below 2^-60", bf16::from_f32(4e-19), 2),
    ] {
        lenient(id, "OVL-5", comment, &|b| b.set_scale(at, scale));
    }
    for (id, comment, scaling) in [
        ("overlay-scaling-small", "a scaling below 2^-64", 5e-20),
        ("overlay-scaling-large", "a scaling above 2^64", 4e19),
    ] {
        lenient(id, "OVL-2", comment, &|b| {
            *b = Block::of_f16("d.f32", 3, &[f16::ONE; 2], &[f16::ONE; 3], scaling);
        });
    }
    lenient("overlay-rank-high", "OVL-2", "rank 1025", &|b| {
        *b = Block::int8("d.f32", 2, 3, 1025, 2);
    });
    lenient("overlay-f16-infinite", "OVL-5", "a binary16 factor is infinite", &|b| {
        *b = Block::of_f16("d.f32", 3, &[f16::INFINITY, f16::ONE], &[f16::ONE; 3], 0.5);
    });

    let adapter = |change: fn(&mut Block)| {
        let (bases, mut overlays) = (
            bases(),
            vec![Overlay::new("adapter", 1, vec![Block::f16("c.f16", 4, 24, 2, 1.0 / 65536.0)])],
        );
        apply(&bases, &mut overlays);
        change(&mut overlays[0].blocks[0]);
        file(&bases, &overlays).bytes()
    };
    for (id, rule, comment, bytes) in [
        (
            "overlay-scaling-zero",
            "OVL-2",
            "binary16 factors with a scaling of zero",
            adapter(|b| b.scaling = 0),
        ),
        (
            "overlay-scaling-nan",
            "OVL-2",
            "a scaling that is no number",
            adapter(|b| b.scaling = f32::NAN.to_bits()),
        ),
    ] {
        set.invalid(id, &[rule], comment, m, &bytes);
    }

    let (bases, mut overlays) = example();
    apply(&bases, &mut overlays);
    let mut same = overlays.clone();
    same.push(Overlay { name: "zweite", ..overlays[0].clone() });
    set.invalid(
        "overlay-order-twice",
        &["OVL-3"],
        "two overlays of order 1",
        m,
        &file(&bases, &same).bytes(),
    );
    // Each adds nothing, and all their digests are right.
    let one = [raw_base("w", Dtype::F32, &[1, 2], &[0; 8])];
    let mut many: Vec<Overlay> =
        (1..=257).map(|order| Overlay::new("x", order, vec![Block::zero_int8("w", 2)])).collect();
    apply(&one, &mut many);
    let many = many.iter().map(|o| {
        let mut record = o.record();
        record.name = format!("o{:03}", o.order).into_bytes();
        record
    });
    let records = [vec![one[0].record.clone()], many.collect()].concat();
    let bytes = File::of(records).bytes();
    set.invalid("overlay-too-many", &["OVL-3"], "257 overlays", m, &bytes);
    let mut two =
        [overlays[0].clone(), Overlay { name: "second", order: 2, ..overlays[0].clone() }];
    two[1].base_root = Some(Digest::of(b"another"));
    let of_two = File::of(two.iter().map(Overlay::record).collect());
    set.invalid(
        "overlays-two-bases",
        &["OVL-10"],
        "a file of overlays for two bases",
        m,
        &of_two.bytes(),
    );
    let mut shard = shards().remove(0);
    shard.records.push(two[1].record());
    shard.shard = Some((1, 2));
    set.invalid(
        "shard-two-bases",
        &["OVL-3"],
        "the first shard of two has overlays for two bases",
        m,
        &shard.bytes(),
    );
    let mut spaces = shards().remove(0);
    let info = br#"{ "kind":"vector"}"#.to_vec();
    let n = spaces.records.len() - 1;
    spaces.records[n] = Overlay { info, ..overlays[0].clone() }.record();
    let bases_of_all = File::of(bases.iter().map(|b| b.record.clone()).collect());
    let manifest = serde_json_canonicalizer::to_vec(&bases_of_all.default_manifest());
    spaces.manifest = Some(manifest.expect("plain JSON"));
    spaces.shard = Some((1, 2));
    set.invalid(
        "shard-overlay-info",
        &["SHD-7", "OVL-1"],
        "the first shard of two: info of an overlay isn't canonical JSON",
        m,
        &spaces.bytes(),
    );
    for (id, rule, comment, at) in [
        ("overlay-reserved-word", "OVL-1", "the reserved word of the body is set", 76),
        ("overlay-block-word", "OVL-2", "the reserved word of a block is set", 80 + 28),
    ] {
        let mut file = file(&bases, &overlays);
        file.records.last_mut().expect("the overlay").body[at] = 1;
        set.invalid(id, &[rule], comment, m, &file.bytes());
    }
    let doubles: Vec<u8> = [1.0f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let doubles = [raw_base("a", Dtype::F64, &[2], &doubles)];
    let mut on_doubles = [Overlay::new("first", 1, vec![Block::int8("a", 1, 2, 1, 0)])];
    apply(&doubles, &mut on_doubles);
    set.invalid(
        "overlay-on-f64",
        &["OVL-4"],
        "for a raw tensor of F64",
        m,
        &file(&doubles, &on_doubles).bytes(),
    );
    let (coded, model) = super::exact_vectors::coded_example();
    let source = &coded.tensor.as_ref().expect("a tensor").decoded;
    let mut coded = [
        raw_base("a", Dtype::Bf16, &[3, 50], source),
        Base { record: coded.clone(), values: vec![] },
    ];
    coded[0].record = coded[1].record.clone();
    let coded = &coded[..1];
    let mut on_coded = [Overlay::new("first", 1, vec![Block::int8("a", 3, 50, 1, 0)])];
    apply(coded, &mut on_coded);
    let mut of_coded = file(coded, &on_coded);
    of_coded.records.push(model.clone());
    set.invalid("overlay-on-coded", &["OVL-4"], "for a coded tensor", m, &of_coded.bytes());
    let alone = || File::of(overlays.iter().map(Overlay::record).collect());
    let mut with_table = alone();
    with_table.records.insert(0, super::level_record("t", 3, &super::custom3()));
    let mut with_model = alone();
    with_model.records.push(model);
    let mut of_shards = alone();
    (of_shards.shard, of_shards.required) = (Some((1, 2)), Some(6));
    for (id, comment, file) in [
        ("overlays-only-table", "a level table in a file of overlays", with_table),
        ("overlays-only-model", "an exact model in a file of overlays", with_model),
        ("overlays-only-shard", "a file of overlays that is a shard", of_shards),
    ] {
        set.invalid(id, &["OVL-10"], comment, m, &file.bytes());
    }
    let mut required = file(&bases, &overlays);
    required.records.last_mut().expect("the overlay").flags = 0;
    set.invalid(
        "overlay-required",
        &["IDX-5"],
        "an overlay that isn't optional",
        m,
        &required.bytes(),
    );
    let mut second = file(&bases, &overlays);
    (second.shard, second.manifest) = (Some((2, 2)), Some(vec![]));
    set.invalid(
        "overlay-in-second-shard",
        &["OVL-3"],
        "an overlay in a shard that isn't the first",
        m,
        &second.bytes(),
    );
    let mut only = file(&bases, &overlays);
    only.required = Some(4);
    set.invalid(
        "overlays-only-with-tensors",
        &["OVL-10"],
        "tensors in a file of overlays",
        m,
        &only.bytes(),
    );
    let none = File { required: Some(4), ..File::default() };
    set.invalid(
        "overlays-only-empty",
        &["OVL-10"],
        "a file of overlays without any",
        m,
        &none.bytes(),
    );
    let mut without = File::of(overlays.iter().map(Overlay::record).collect());
    without.required = Some(0);
    set.invalid(
        "overlay-without-base",
        &["OVL-3"],
        "an overlay and no tensors, without the feature",
        m,
        &without.bytes(),
    );
    let mut zstd = file(&bases, &overlays);
    let part = &mut zstd.records.last_mut().expect("the overlay").parts[0];
    part.storage = 1;
    set.invalid("overlay-zstd", &["PRT-7"], "factors in a part of storage zstd", m, &zstd.bytes());
    let mut two = file(&bases, &overlays);
    let record = two.records.last_mut().expect("the overlay");
    record.parts.push(plain(2, 0, &[0; 64]));
    set.invalid("overlay-two-parts", &["OVL-2"], "an overlay with two parts", m, &two.bytes());
}
