//! Vectors of spec/overlay.md.

use half::{bf16, f16};
use ultracompress::{Digest, Dtype};

use super::exact;
use super::file::{File, alias, level_record, plain};
use super::overlay_factors::{Base, Block, Overlay, apply, file, planes_base, raw_base};
use super::planes::{Planes, custom3};
use super::set::VectorSet;

pub fn add(set: &mut VectorSet) {
    valid(set);
    invalid(set);
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

fn applied(
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

fn valid(set: &mut VectorSet) {
    let (bases, overlays) = example();
    applied(
        set,
        "overlay-int8",
        &[
            "HDR-10", "OVL-1", "OVL-2", "OVL-4", "OVL-5", "OVL-6", "OVL-8", "OVL-9", "OVL-11",
            "OVL-13", "OVL-19", "OVL-23", "OVL-25",
        ],
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
    applied(
        set,
        "overlay-binary16",
        &["OVL-2", "OVL-4", "OVL-7", "OVL-8", "OVL-17", "OVL-24"],
        "binary16 factors whose sums depend on their order; a vector as one row",
        &with_zeros,
        vec![ordered],
    );
    let values: Vec<f32> = (0..36u8).map(|i| f32::from(i) / 7.0 - 2.5).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let large = Block::large_int8("w", &values, 12);
    applied(
        set,
        "overlay-int8-rounding",
        &["OVL-6", "OVL-23"],
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
    applied(
        set,
        "overlay-limits",
        &["OVL-5", "OVL-12", "OVL-17", "OVL-18"],
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
    applied(
        set,
        "overlay-negative-zero",
        &["OVL-6", "OVL-7", "OVL-23"],
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
        &["HDR-12"],
        "no overlays, though the optional bit says that there are",
        &unset,
    );
    let (some, mut overlays) = example();
    let outputs = apply(&some, &mut overlays);
    let mut unset = file(&some, &overlays);
    unset.optional = Some(0);
    set.valid_with(
        "overlay-feature-unset",
        &["HDR-12"],
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
        &["SHD-7", "SHD-18", "SHD-19"],
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
    applied(
        set,
        "overlay-stack",
        &["OVL-3", "OVL-9", "OVL-17", "OVL-19", "OVL-23", "OVL-24"],
        "two overlays: the one whose name comes last is applied first; rows as another product of dimensions",
        &bases,
        stack,
    );
    let (bases, mut overlays) = example();
    apply(&bases, &mut overlays);
    let records = overlays.iter().map(Overlay::record).collect();
    set.valid_with(
        "overlay-file",
        &["OVL-10", "OVL-20", "OVL-22"],
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
fn invalid(set: &mut VectorSet) {
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
    one("overlay-unsorted", "OVL-11", "blocks in another order", m, |o| o.blocks.swap(0, 1));
    one("overlay-block-twice", "OVL-11", "two blocks for one tensor", m, |o| {
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
    one("overlay-int8-scaling", "OVL-12", "int8 factors with a scaling", m, |o| {
        o.blocks[0].scaling = 1f32.to_bits();
    });
    one("overlay-int8-negative-zero", "OVL-12", "int8 factors with a scaling of -0", m, |o| {
        o.blocks[0].scaling = (-0f32).to_bits();
    });
    one("overlay-huge", "OVL-13", "factors that no file can hold", m, |o| {
        (o.blocks[0].rows, o.blocks[0].cols) = (u64::MAX / 2, u64::MAX / 2);
    });
    one("overlay-part-short", "OVL-13", "the part is shorter than the blocks", m, |o| {
        o.extra = -64
    });
    one("overlay-part-long", "OVL-13", "the part is longer than the blocks", m, |o| o.extra = 64);
    one("overlay-padding", "OVL-13", "padding behind a block is not zero", m, |o| o.padding = 1);
    one("overlay-order-gap", "OVL-3", "the only overlay is the second", m, |o| o.order = 2);
    one("overlay-other-base", "OVL-15", "for another base", m, |o| {
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
    one("overlay-root", "OVL-19", "the effective root is another", "integrity", |o| {
        o.effective_root = Some(Digest::of(b"another"));
    });

    // What it leads to is what a reader makes of it that doesn't look.
    let mut lenient = |id: &str, rule: &str, comment: &str, change: &dyn Fn(&mut Block)| {
        let (bases, mut overlays) = example();
        change(&mut overlays[0].blocks[1]);
        apply(&bases, &mut overlays);
        set.invalid(id, &[rule], comment, m, &file(&bases, &overlays).bytes());
    };
    lenient(
        "overlay-other-shape",
        "OVL-17",
        "rows that are no product of first dimensions",
        &|b| {
            *b = Block::int8("d.f32", 3, 2, 1, 2);
        },
    );
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
        lenient(id, "OVL-12", comment, &|b| {
            *b = Block::of_f16("d.f32", 3, &[f16::ONE; 2], &[f16::ONE; 3], scaling);
        });
    }
    lenient("overlay-rank-high", "OVL-2", "rank 1025", &|b| {
        *b = Block::int8("d.f32", 2, 3, 1025, 2);
    });
    lenient("overlay-f16-infinite", "OVL-18", "a binary16 factor is infinite", &|b| {
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
            "OVL-12",
            "binary16 factors with a scaling of zero",
            adapter(|b| b.scaling = 0),
        ),
        (
            "overlay-scaling-nan",
            "OVL-12",
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
    set.invalid("overlay-too-many", &["OVL-14"], "257 overlays", m, &bytes);
    let mut two =
        [overlays[0].clone(), Overlay { name: "second", order: 2, ..overlays[0].clone() }];
    two[1].base_root = Some(Digest::of(b"another"));
    let of_two = File::of(two.iter().map(Overlay::record).collect());
    set.invalid(
        "overlays-two-bases",
        &["OVL-21"],
        "a file of overlays for two bases",
        m,
        &of_two.bytes(),
    );
    let mut shard = shards().remove(0);
    shard.records.push(two[1].record());
    shard.shard = Some((1, 2));
    set.invalid(
        "shard-two-bases",
        &["OVL-15"],
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
    let (coded, model) = exact::coded_example();
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
    with_table.records.insert(0, level_record("t", 3, &custom3()));
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
        &["IDX-9"],
        "an overlay that isn't optional",
        m,
        &required.bytes(),
    );
    let mut second = file(&bases, &overlays);
    (second.shard, second.manifest) = (Some((2, 2)), Some(vec![]));
    set.invalid(
        "overlay-in-second-shard",
        &["OVL-16"],
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
        &["OVL-15", "OVL-20"],
        "an overlay and no tensors, without the feature",
        m,
        &without.bytes(),
    );
    let mut zstd = file(&bases, &overlays);
    let part = &mut zstd.records.last_mut().expect("the overlay").parts[0];
    part.storage = 1;
    set.invalid("overlay-zstd", &["PRT-27"], "factors in a part of storage zstd", m, &zstd.bytes());
    let mut two = file(&bases, &overlays);
    let record = two.records.last_mut().expect("the overlay");
    record.parts.push(plain(2, 0, &[0; 64]));
    set.invalid("overlay-two-parts", &["OVL-13"], "an overlay with two parts", m, &two.bytes());
}
