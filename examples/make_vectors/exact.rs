//! Vectors of spec/exact.md.

use std::collections::BTreeMap;

use serde_json::json;
use ultracompress::codec::LevelSet;
use ultracompress::{Digest, Dtype};

use super::exact_coder::{
    Block, Exact, Model, Residual, anchor, around_one, coded, coded_model, model, record_of, small,
    top,
};
use super::file::{File, Part, Record, alias, carried, plain, raw, unknown_part};
use super::planes::Planes;
use super::set::VectorSet;

pub fn add(set: &mut VectorSet) {
    valid(set);
    invalid(set);
}

fn valid(set: &mut VectorSet) {
    set.valid(
        "exact-bf16",
        &["EXA-1", "EXA-2", "EXA-3", "EXA-4", "EXA-5", "EXA-6", "EXA-7", "EXA-9", "EXA-11", "EXA-13", "EXA-22", "EXA-24", "EXA-33"],
        "rows of 5 and 4 planes with residual; contexts of the factor and of the value; NaN, infinity, negative zero, subnormals",
        &small().file(),
    );
    // Every code occurs.
    let planes = |name| Planes::new(name, Dtype::F16, &[2, 256], 32, &[8, 8]);
    let usual = Exact::new(planes("v"), |_| 1, true, false);
    // Products from 2^-26 up.
    let tiny = Planes { scale: 97 << 7, ..planes("w") };
    assert_tops_are_cut(&tiny);
    let tiny = Exact::new(tiny, |_| 1, true, false);
    let [mut records, more] = [usual.records(), tiny.records()];
    records.insert(1, more[0].clone());
    assert_eq!(records[2].name, more[1].name, "one model serves both");
    set.valid(
        "exact-f16",
        &["EXA-5"],
        "8 planes, with the level 0; expected values that are subnormal or cut to a zero of their sign",
        &File::of(records),
    );
    for (dtype, name) in [(Dtype::F32, "f32"), (Dtype::F64, "f64")] {
        let planes = Planes::new("w", dtype, &[2, 33], 0, &[3, 3]);
        let with = Exact::new(planes.clone(), |_| 0, true, true);
        set.valid(&format!("exact-{name}"), &["EXA-8"], "lower bits as they are", &with.file());
        let without = Exact::new(planes, |_| 1, false, false);
        let id = format!("exact-{name}-no-tails");
        set.valid(&id, &["EXA-8", "EXA-26"], "lower bits that are all zero", &without.file());
    }
    // One symbol that takes no bits: the source is what is expected, and long rows make short
    // residuals.
    let silent = |native| {
        let mut one = model(Dtype::Bf16, native, 0);
        one.tables = vec![(0, 0, vec![(0, 512)]); 2];
        (native, one)
    };
    let (eight, mut most) = silent(8);
    (most.mantissa_bits, most.fraction_bits) = (4, 4);
    most.classes = (0..=255u8).map(|c| c / 2).collect();
    most.contexts = vec![0; 128 << 8];
    let planes = Planes::new("w", Dtype::Bf16, &[1, 40], 32, &[8]);
    let most = Exact::as_expected(planes, BTreeMap::from([(eight, most)]));
    set.valid(
        "model-most-contexts",
        &["EXA-16"],
        "128 classes of 256 contexts: 32,768",
        &most.file(),
    );
    // A context for each of as many tables as there may be, and the least and the most slots of
    // one.
    let mut least = silent(3).1;
    (least.precision, least.mantissa_bits, least.fraction_bits) = (8, 5, 0);
    least.contexts = (0..8 << 5u8).map(|i| u8::try_from(i % 256).expect("a byte")).collect();
    least.tables = vec![(8, 0, vec![(0, 256)]); 256];
    let mut slots = silent(4).1;
    slots.precision = 11;
    slots.tables = vec![(5, 0, vec![(0, 2048)]); 2];
    let planes = Planes::new("w", Dtype::Bf16, &[2, 256], 16, &[3, 4]);
    let least = Exact::as_expected(planes, BTreeMap::from([(3, least), (4, slots)]));
    set.valid(
        "model-limits",
        &["EXA-2", "EXA-19"],
        "256 tables, precisions of 8 and 11 with as many bits below as there may be",
        &least.file(),
    );
    let mut long = Planes::new("w", Dtype::Bf16, &[1, 65_576], 256, &[3]);
    long.scale = 0x3a00;
    let long = Exact::as_expected(long, BTreeMap::from([silent(3)]));
    set.valid("exact-long-row", &["EXA-4"], "a row that is cut into two blocks", &long.file());
    let rows = Planes::new("w", Dtype::Bf16, &[6, 20_000], 256, &[3, 4, 3, 3, 3, 3]);
    let rows = Exact::as_expected(rows, BTreeMap::from([silent(3), silent(4)]));
    assert_eq!(rows.residual.blocks.len(), 3, "one row of four planes, three and two of three");
    set.valid(
        "exact-blocks",
        &["EXA-4"],
        "blocks of three rows, of two that are left, and of one with another count",
        &rows.file(),
    );

    let bf16 = coded_model(Dtype::Bf16);
    let (f32, f16, f64) =
        (coded_model(Dtype::F32), coded_model(Dtype::F16), coded_model(Dtype::F64));
    let mut models: Vec<Record> = [&bf16, &f32, &f16, &f64].map(Model::record).to_vec();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    let records = [
        vec![
            coded("a", Dtype::Bf16, &[3, 2, 25], 1, &bf16, &around_one(Dtype::Bf16, 150)),
            coded("b", Dtype::F32, &[45], 0, &f32, &around_one(Dtype::F32, 45)),
            coded("c", Dtype::F16, &[3, 40], 1, &f16, &around_one(Dtype::F16, 120)),
            coded("d", Dtype::F64, &[2, 3, 11], 2, &f64, &around_one(Dtype::F64, 66)),
            raw("e", Dtype::U8, &[3], &[1, 2, 3]),
        ],
        models,
    ];
    set.valid(
        "coded-raw",
        &["EXA-10", "EXA-28", "EXA-29", "HDR-10", "TEN-7"],
        "tensors of each type that are coded without planes, and the required feature bit",
        &File::of(records.concat()),
    );
    // Contexts of none, one and three bits: what isn't used of them names the other table.
    let (mut tensors, mut models) = (vec![], vec![]);
    for (name, bits, contexts) in
        [("a", 0, vec![1]), ("b", 1, vec![1, 0]), ("c", 3, vec![1, 9, 0, 9, 1, 9, 0, 9])]
    {
        let mut m = coded_model(Dtype::Bf16);
        (m.mantissa_bits, m.fraction_bits) = (bits / 2, bits - bits / 2);
        m.contexts = contexts.into_iter().map(|t: u8| if t == 9 { 2 } else { t }).collect();
        let third = (0, 7, vec![(0, 2048)]);
        m.tables.push(third);
        tensors.push(coded(name, Dtype::Bf16, &[5, 40], 1, &m, &around_one(Dtype::Bf16, 200)));
        models.push(m.record());
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    set.valid(
        "coded-contexts",
        &["EXA-29"],
        "contexts of none, one and three bits: the lowest two bits of the reference are at their upper end",
        &File::of([tensors, models].concat()),
    );
    let unknown = |kind| unknown_part(kind, 0);
    let mut records = small().records();
    let n = records[0].parts.len() - 1;
    records[0].parts.insert(n, unknown(15));
    records[0].parts.push(unknown(17));
    let mut a = coded("a", Dtype::Bf16, &[3, 50], 1, &bf16, &around_one(Dtype::Bf16, 150));
    a.parts.insert(0, unknown(6));
    a.parts.push(unknown(17));
    records.insert(0, a);
    records.push(bf16.record());
    records[2..].sort_by(|a, b| a.name.cmp(&b.name));
    set.valid(
        "unknown-parts-exact",
        &["PRT-22"],
        "optional parts of unknown kinds before and behind residuals, of planes and of a coded tensor",
        &File::of(records),
    );
    let mut unset = small().file();
    unset.optional = Some(0);
    set.valid(
        "residual-feature-unset",
        &["HDR-12"],
        "a residual, though the optional bit says there is none: readers don't rely on it",
        &unset,
    );

    set.valid(
        "heads",
        &["EXA-12", "EXA-31", "EXA-32"],
        "what stood in front of the tensors",
        &with_head(|_| {}),
    );
    let more = with_head(|r| r.parts.push(unknown_part(6, 0)));
    set.valid("head-unknown-part", &["PRT-22", "EXA-31"], "a head with an optional part", &more);
    let recorded = with_rungs(None);
    set.valid("rungs", &["MAN-9", "MAN-10"], "the decoded roots of two rungs", &recorded);
}

/// A file with the head of a weights file.
fn with_head(change: impl Fn(&mut Record)) -> File {
    let head = b"\x40\0\0\0\0\0\0\0{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}        ";
    let mut record = Record { kind: 6, flags: 1, ..carried("model.safetensors", head) };
    change(&mut record);
    let mut file = File::of(vec![raw("b", Dtype::U8, &[3], &[1, 2, 3]), record]);
    let whole = [&head[..], &[1, 2, 3]].concat();
    let mut manifest = file.default_manifest();
    manifest["files"] = json!([{
        "path": "model.safetensors", "role": "weights", "bytes": whole.len(),
        "sha256": Digest::of(&whole).to_string(),
    }]);
    manifest["tensors"]["b"]["file"] = "model.safetensors".into();
    file.manifest = Some(serde_json_canonicalizer::to_vec(&manifest).expect("plain JSON"));
    file
}

/// The same with another list of files, for a tensor that is said to be of none.
fn with_listed(files: serde_json::Value) -> File {
    let mut file = with_head(|_| {});
    let mut manifest = file.default_manifest();
    manifest["files"] = files;
    file.manifest = Some(serde_json_canonicalizer::to_vec(&manifest).expect("plain JSON"));
    file
}

/// Checks that a vector in which every code occurs shows how values of F16 are cut: towards zero,
/// which keeps its sign, and below normal numbers too.
fn assert_tops_are_cut(planes: &Planes) {
    let levels = LevelSet::default_for(8).table(8);
    let scale = f32::from_bits(u32::from(planes.scale) << 16);
    let values = || (0..256).map(|code| scale * 32.0 * anchor(levels, code));
    let cut = |v: f32| top(Dtype::F16, v);
    let nearest = |v: f32| half::f16::from_f32(v).to_bits();
    assert!(values().any(|v| cut(v) == 0x8000) && values().any(|v| cut(v) == 0));
    assert!(values().any(|v| cut(v) != nearest(v) && cut(v) & 0x7fff != 0));
}

/// A coded tensor of bfloat16, its bytes, and the model.
pub fn coded_example() -> (Record, Record) {
    let model = coded_model(Dtype::Bf16);
    let source = around_one(Dtype::Bf16, 150);
    (coded("a", Dtype::Bf16, &[3, 50], 1, &model, &source), model.record())
}

/// Records of a tensor with a residual, whose model is the same whatever it is called.
pub fn with_residual(name: &'static str) -> Vec<Record> {
    let planes = Planes::new(name, Dtype::Bf16, &[2, 40], 16, &[4, 4]);
    Exact::new(planes, |_| 0, true, false).records()
}

/// A file whose manifest has decoded roots of rungs, of which `wrong` has another.
fn with_rungs(wrong: Option<(&str, &str)>) -> File {
    let mut file = small().file();
    let t = file.records[0].tensor.clone().expect("a tensor");
    let mut manifest = file.default_manifest();
    for rung in [3, 4] {
        let mut tree = ultracompress::format::TreeHasher::new();
        let digest = Digest::of(&t.rungs[&rung]);
        tree.push(ultracompress::format::tensor_leaf("w", t.dtype, &t.shape, digest));
        manifest["rungs"][rung.to_string()] = tree.root().to_string().into();
    }
    if let Some((rung, root)) = wrong {
        manifest["rungs"][rung] = root.into();
    }
    file.manifest = Some(serde_json_canonicalizer::to_vec(&manifest).expect("plain JSON"));
    file
}

fn invalid(set: &mut VectorSet) {
    let mut add = |id: &str, rule: &str, comment: &str, expect: &str, file: &File| {
        set.invalid(id, &[rule], comment, expect, &file.bytes());
    };
    // Changes of a model, which no tensor uses.
    let good = model(Dtype::Bf16, 3, 0);
    let body = |m: &Model| File::of(vec![record_of(&m.body())]);
    let mut named = good.record();
    named.name = b"0123456789abcdef".to_vec();
    add("model-name", "EXA-13", "a model of another name", "malformed", &File::of(vec![named]));
    let mut short = good.body();
    short.pop();
    let cut = File::of(vec![record_of(&short)]);
    add("model-cut", "EXA-1", "a model without its last byte", "malformed", &cut);
    let long = [good.body(), vec![0]].concat();
    let long = File::of(vec![record_of(&long)]);
    add("model-long", "EXA-1", "a byte behind the last table", "malformed", &long);
    for (at, value, rule, what) in [
        (3, 8, "EXA-2", "mantissa bits"),
        (5, 2, "EXA-2", "of_value"),
        (10, 1, "EXA-1", "reserved"),
    ] {
        let mut bytes = good.body();
        bytes[at] = value;
        let file = File::of(vec![record_of(&bytes)]);
        let id = format!("model-field-{at}");
        add(&id, rule, &format!("{what} out of range"), "malformed", &file);
    }
    let mut m = good.clone();
    m.precision = 12;
    let m = m.filled();
    add("model-precision", "EXA-2", "precision 12", "malformed", &body(&m));
    let mut m = good.clone();
    m.precision = 7;
    m.tables = vec![(0, 0, vec![(0, 128)]); 2];
    add("model-precision-seven", "EXA-2", "precision 7", "malformed", &body(&m));
    let mut m = good.clone();
    m.contexts[1] = 2;
    add("model-context", "EXA-17", "a context of a third of two tables", "malformed", &body(&m));
    let mut m = good.clone();
    m.dtype = Dtype::I16;
    add("model-dtype", "EXA-2", "a model of integers", "malformed", &body(&m));
    let mut m = good.clone();
    m.classes.iter_mut().for_each(|c| *c = 0);
    add("model-classes", "EXA-14", "contexts of classes that no code has", "malformed", &body(&m));
    let mut m = model(Dtype::Bf16, 8, 0);
    (m.mantissa_bits, m.fraction_bits) = (4, 4);
    m.classes = (0..=255u8).map(|c| c.min(128)).collect();
    m.contexts = vec![0; 129 << 8];
    add("model-contexts", "EXA-16", "129 classes of 256 contexts: 33,024", "malformed", &body(&m));
    let mut m = coded_model(Dtype::Bf16);
    m.classes = vec![1];
    m.contexts = [m.contexts.clone(), m.contexts].concat();
    add("model-coded-class", "EXA-15", "class 1 without planes", "malformed", &body(&m));
    let mut bytes = good.body();
    let table = 12 + good.classes.len() + good.contexts.len();
    bytes[table + 1] = 1;
    let reserved = File::of(vec![record_of(&bytes)]);
    add("model-table-reserved", "EXA-1", "a reserved byte of a table", "malformed", &reserved);
    let mut m = good.clone();
    m.tables[0].2[0].1 += 1;
    add("model-sum", "EXA-18", "frequencies of a table sum to 513", "malformed", &body(&m));
    let mut m = good.clone();
    m.tables[1].2.swap(0, 1);
    add("model-order", "EXA-3", "symbols are not in order", "malformed", &body(&m));
    let mut m = good.clone();
    m.tables[0].2[0].1 = 0;
    m.tables[0].2[1].1 += 12;
    add("model-zero", "EXA-20", "a frequency of zero", "malformed", &body(&m));
    let mut m = good.clone();
    m.tables[0].0 = 8;
    add("model-shift", "EXA-19", "shift 8 with precision 9", "malformed", &body(&m));
    let mut required = good.record();
    required.flags = 0;
    let required = File::of(vec![required]);
    add("model-required", "IDX-9", "a model that is not optional", "malformed", &required);
    let mut parts = good.record();
    parts.parts = vec![plain(1, 0, b"x")];
    add("model-parts", "PRT-22", "a model with a part", "malformed", &File::of(vec![parts]));

    // Changes of a residual.
    let exact = small();
    let with = |residual: &Residual| {
        let mut file = exact.file();
        let part = file.records[0].parts.last_mut().expect("the residual");
        *part = Part { flags: 1, ..plain(16, 0, &residual.bytes()) };
        file
    };
    let mut r = exact.residual.clone();
    r.n_blocks = Some(3);
    add("residual-n-blocks", "EXA-4", "three blocks, two expected", "malformed", &with(&r));
    let mut file = with(&exact.residual);
    let part = file.records[0].parts.last_mut().expect("the residual");
    let longer = [exact.residual.bytes(), vec![0; 4]].concat();
    *part = Part { flags: 1, ..plain(16, 0, &longer) };
    add("residual-long", "EXA-21", "bytes behind the last block", "malformed", &file);
    let mut r = exact.residual.clone();
    r.blocks[1].extend([0; 4]);
    add("block-long", "EXA-24", "bytes behind the last field of a block", "malformed", &with(&r));
    let mut r = exact.residual.clone();
    let n = r.blocks[1].len();
    r.blocks[1].truncate(n - 4);
    add("block-short", "EXA-24", "a block without its last bytes", "malformed", &with(&r));
    let mut r = exact.residual.clone();
    r.models[0] = r.models[1];
    add(
        "residual-model-unused",
        "EXA-23",
        "a model for rows of 3 planes, of which there are none",
        "malformed",
        &with(&r),
    );
    let mut r = exact.residual.clone();
    r.models[2] = *b"no model";
    add("residual-model-missing", "EXA-22", "a model that isn't there", "malformed", &with(&r));
    let mut r = exact.residual.clone();
    r.models[2] = r.models[1];
    add(
        "residual-model-other",
        "EXA-22",
        "a model for another plane count",
        "malformed",
        &with(&r),
    );
    // Upper halves of BF16 and F32 are the same, so that the model would do.
    let planes = Planes::new("w", Dtype::Bf16, &[1, 40], 16, &[5]);
    let other = Exact::with(planes, BTreeMap::from([(5, model(Dtype::F32, 5, 0))]), true, false);
    let comment = "a model for another type, which would do";
    add("residual-model-dtype", "EXA-22", comment, "malformed", &other.file());
    let mut r = exact.residual.clone();
    r.blocks[0][0..4].copy_from_slice(&100_000u32.to_le_bytes());
    add("block-words", "EXA-24", "more words than weights", "malformed", &with(&r));
    let mut file = with(&exact.residual);
    let part = file.records[0].parts.last_mut().expect("the residual");
    *part = Part { flags: 1, ..plain(16, 0, &[0; 51]) };
    add("residual-cut", "EXA-21 EXA-23", "a residual shorter than its header", "malformed", &file);

    // The block of the row of 4 planes, field by field.
    let block = |change: &dyn Fn(&mut Block)| {
        let mut r = exact.residual.clone();
        let mut parsed = parse(&r.blocks[1], 2);
        change(&mut parsed);
        r.blocks[1] = parsed.bytes();
        with(&r)
    };
    assert_eq!(block(&|_| {}).bytes(), exact.file().bytes());
    let fewer = block(&|b| {
        b.words.pop();
    });
    add("words-end", "EXA-33", "a word is missing", "malformed", &fewer);
    let more = block(&|b| b.words.push(1));
    add("words-left", "EXA-27", "a word is left", "malformed", &more);
    let state = block(&|b| b.states[7] ^= 1 << 20);
    add("state", "EXA-9", "a coder doesn't end where it began", "malformed", &state);
    let twice = block(&|b| {
        let (at, top) = b.exceptions[0];
        b.exceptions.insert(0, (at, top ^ 1));
    });
    add("exceptions-twice", "EXA-7", "two exceptions at one place", "malformed", &twice);
    // The words of a block end in the middle of four bytes.
    let mut r = exact.residual.clone();
    let odd = |b: &Vec<u8>| b[0] % 2 == 1;
    let i = r.blocks.iter().position(odd).expect("a block with an odd number of words");
    let end = 140 + 2 * usize::from(r.blocks[i][0]);
    assert_eq!(r.blocks[i][1], 0, "fewer than 256 words");
    r.blocks[i][end] = 1;
    add("block-padding", "EXA-24", "padding behind the words is not zero", "malformed", &with(&r));
    let mut tied = exact.records();
    tied.insert(0, alias("v", "w", &tied[0]));
    let mut tied = File::of(tied);
    let mut manifest = tied.default_manifest();
    manifest["tensors"]["v"]["sha256"] = Digest::of(b"another").to_string().into();
    tied.manifest = Some(serde_json_canonicalizer::to_vec(&manifest).expect("plain JSON"));
    let comment = "an alias whose source is said to differ from its target's, which is exact";
    add("exact-alias", "EXA-30", comment, "integrity", &tied);
    let order = block(&|b| b.exceptions.reverse());
    add("exceptions-order", "EXA-7", "exceptions are not in order", "malformed", &order);
    let beyond = block(&|b| b.exceptions.last_mut().expect("some").0 = 40);
    add("exceptions-beyond", "EXA-25", "an exception behind the last weight", "malformed", &beyond);
    let tails = block(&|b| b.has_tails = 1);
    add("tails-bf16", "EXA-8", "tails of a type that has none", "malformed", &tails);
    let value = block(&|b| b.exceptions[0].1 ^= 1);
    add("exact-value", "EXA-11", "another value than the source's", "integrity", &value);

    let mut file = exact.file();
    file.records[0].parts.last_mut().expect("the residual").plane = 1;
    add("residual-plane", "PRT-14", "a residual of plane 1", "malformed", &file);
    let mut file = exact.file();
    file.records[0].parts.last_mut().expect("the residual").flags = 0;
    add(
        "residual-required",
        "PRT-13",
        "a residual of planes that isn't optional",
        "malformed",
        &file,
    );

    // Coded tensors.
    let bf16 = coded_model(Dtype::Bf16);
    let a = || coded("a", Dtype::Bf16, &[3, 50], 1, &bf16, &around_one(Dtype::Bf16, 150));
    let coded_file = |a: Record| File::of(vec![a, bf16.record()]);
    let mut padding = a();
    // Three references at 140 in the block, which is behind 48 bytes of names, the count and one
    // length.
    padding.parts[0].chunks[0][56 + 143] = 1;
    let comment = "padding behind the references is not zero";
    add("coded-padding", "EXA-24", comment, "malformed", &coded_file(padding));
    let mut optional = a();
    optional.parts[0].flags = 1;
    let optional = coded_file(optional);
    add(
        "coded-optional",
        "PRT-13",
        "the residual of a coded tensor is optional",
        "malformed",
        &optional,
    );
    let mut none = a();
    none.parts.clear();
    add("coded-empty", "PRT-22", "a coded tensor without its part", "malformed", &coded_file(none));
    let mut rows = coded("a", Dtype::Bf16, &[3, 50], 2, &bf16, &around_one(Dtype::Bf16, 150));
    rows.body[4] = 3;
    add(
        "coded-row-dims",
        "EXA-10",
        "three of two dimensions are rows",
        "malformed",
        &coded_file(rows),
    );
    let mut planes = a();
    planes.body[6] = 5;
    add(
        "coded-planes",
        "TEN-3",
        "a coded tensor with a plane count",
        "malformed",
        &coded_file(planes),
    );
    let mut integers = a();
    integers.body[0] = Dtype::I16.code();
    integers.tensor.as_mut().expect("a tensor").dtype = Dtype::I16;
    add("coded-integers", "EXA-28", "coded integers", "malformed", &coded_file(integers));
    let mut feature = coded_file(a());
    feature.required = Some(0);
    add("coded-feature", "TEN-7", "a coded tensor without the feature bit", "malformed", &feature);
    let mut digest = coded_file(a());
    let mut manifest = digest.default_manifest();
    manifest["tensors"]["a"]["sha256"] = Digest::of(b"another").to_string().into();
    digest.manifest = Some(serde_json_canonicalizer::to_vec(&manifest).expect("plain JSON"));
    add("coded-source", "MAN-3", "a coded tensor with another source digest", "malformed", &digest);

    let head = with_head(|r| r.body[0] += 1);
    add("head-length", "EXA-31", "a head of another length than its part", "malformed", &head);
    let unlisted = with_listed(json!([]));
    add("head-unlisted", "EXA-12", "a head of a file that isn't listed", "malformed", &unlisted);
    let left_out = with_listed(json!([
        { "path": "model.safetensors", "role": "left_out", "bytes": 75 },
    ]));
    add("head-left-out", "EXA-12", "a head of a file that was left out", "malformed", &left_out);
    let head = with_head(|r| r.flags = 0);
    add("head-required", "IDX-9", "a head that is not optional", "malformed", &head);

    let digest = Digest::of(b"another").to_string();
    let other = with_rungs(Some(("4", &digest)));
    add("rung-root", "MAN-9", "another decoded root of rung 4", "integrity", &other);
    let eight = with_rungs(Some(("8", &digest)));
    add("rung-eight", "MAN-5", "a rung of all planes", "malformed", &eight);
    let hex = with_rungs(Some(("3", "12")));
    add("rung-digest", "MAN-10", "a root that is no SHA-256", "malformed", &hex);
}

/// Reads a block without references whose tails have `size - 2` bytes a weight.
fn parse(bytes: &[u8], size: usize) -> Block {
    assert_eq!(size, 2, "blocks without tails");
    let word = |i: usize| u32::from_le_bytes(bytes[4 * i..][..4].try_into().expect("4 bytes"));
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (n_words, n) = (word(0) as usize, word(1) as usize);
    let mut states = [0; 32];
    states.iter_mut().enumerate().for_each(|(i, s)| *s = word(3 + i));
    let at = 140 + (2 * n_words).next_multiple_of(4);
    Block {
        words: (0..n_words).map(|i| half(140 + 2 * i)).collect(),
        exceptions: (0..n).map(|i| (half(at + 2 * i), half(at + 2 * n + 2 * i))).collect(),
        has_tails: word(2),
        states,
        references: vec![],
        tails: vec![],
    }
}
