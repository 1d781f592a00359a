//! Overlays: in packs and files of their own, added, stacked, removed, refused; adapters in PEFT's
//! format.
#![cfg(feature = "checkpoints")]

mod support;

use std::path::{Path, PathBuf};

use serde_json::json;
use ultracompress::audit::same;
use ultracompress::edit::{
    NewBlock, NewFactors, NewOverlay, OverlayOptions, ReshardOptions, StripOptions, read_lora,
};
use ultracompress::manifest::PackStats;
use ultracompress::manifest::overlay_info;
use ultracompress::pack::{Exact, PackOptions, Recipe};
use ultracompress::source::{Model, Source};
use ultracompress::unpack::UnpackOptions;
use ultracompress::{
    Check, DecodeOptions, Dtype, ErrorKind, Input, NoProgress, OverlayMatrix, Pack, PlaneMatrix,
    VerifyOptions,
};

use support::checkpoint::{Tensor, f32s, number};
use support::folder::Desk;
use support::random::{Rng, size};

const ROWS: usize = 48;
const COLS: usize = 96;
const LAYERS: [&str; 2] = ["model.layers.0.a.weight", "model.layers.0.b.weight"];

fn write(path: &Path, dtype: Dtype, tensors: &[(&str, Vec<u64>, Vec<f32>)]) {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape, values)| {
            let bytes = values.iter().flat_map(|v| number((*v).into(), dtype)).collect();
            Tensor::new(*name, dtype, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(Tensor::view);
    safetensors::serialize_to_file(views, None, path).expect("writes");
}

fn numbers(rng: &mut Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.bell() * size).collect()
}

/// A checkpoint of two matrices, an embedding and a norm, and its pack.
fn packed(desk: &Desk) -> (PathBuf, PathBuf) {
    packed_sized(desk, ROWS, COLS)
}

fn packed_sized(desk: &Desk, rows: usize, cols: usize) -> (PathBuf, PathBuf) {
    let mut rng = Rng(3);
    let source = desk.path("model.safetensors");
    let mut tensors = vec![];
    for name in LAYERS {
        let shape = vec![rows as u64, cols as u64];
        tensors.push((name, shape, numbers(&mut rng, rows * cols, 0.05)));
    }
    tensors.push(("model.embed_tokens.weight", vec![16, 64], numbers(&mut rng, 1024, 0.1)));
    tensors.push(("model.norm.weight", vec![64], numbers(&mut rng, 64, 1.0)));
    write(&source, Dtype::Bf16, &tensors);
    let pack = desk.path("base.uc");
    let opened = Source::open(&source).expect("readable");
    PackOptions::new().pack(&opened, &pack).expect("packs");
    (source, pack)
}

fn overlay(name: &str, seed: u64, layers: &[&str], rank: usize) -> NewOverlay {
    overlay_sized(name, seed, layers, rank, [ROWS, COLS])
}

fn overlay_sized(
    name: &str,
    seed: u64,
    layers: &[&str],
    rank: usize,
    [rows, cols]: [usize; 2],
) -> NewOverlay {
    let mut rng = Rng(seed);
    let mut block = |tensor: &&str| {
        let mut ints =
            |n: usize| -> Vec<i8> { rng.bytes(n).into_iter().map(u8::cast_signed).collect() };
        let (a, b) = (ints(rows * rank), ints(rank * cols));
        let factors = NewFactors::Int8 {
            a,
            b,
            row_scales: vec![0x3b00; rows],
            column_scales: vec![0x3a80; cols],
        };
        NewBlock { tensor: (*tensor).to_owned(), rank, rows, cols, factors }
    };
    let blocks = layers.iter().map(&mut block).collect();
    let info = json!({ "made by": "a test" }).as_object().expect("an object").clone();
    NewOverlay { name: name.to_owned(), info, blocks }
}

fn open(path: &Path) -> Pack<Input> {
    Pack::open_path(path).expect("opens")
}

fn options() -> OverlayOptions {
    OverlayOptions::new()
}

fn add(pack: &Path, overlays: &[NewOverlay], output: &Path) {
    options().add(&open(pack), overlays, output, &NoProgress).expect("adds");
}

fn verified(path: &Path) -> usize {
    let report = VerifyOptions::new().verify_pack(&open(path)).expect("readable");
    assert!(report.is_ok() && report.effective == Check::Ok, "{:?}", report.failures);
    report.effective_checked
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("readable")
}

#[test]
fn overlays_stack_and_come_off_again() {
    let desk = Desk::new();
    let at = |name: &str| desk.path(name);
    let (_, base) = packed(&desk);
    let (one, two) = (overlay("one", 1, &LAYERS, 4), overlay("another", 2, &LAYERS[..1], 7));
    add(&base, std::slice::from_ref(&one), &at("1.uc"));
    add(&at("1.uc"), std::slice::from_ref(&two), &at("12.uc"));
    add(&base, &[one.clone(), two.clone()], &at("both.uc"));
    assert!(read(&at("12.uc")) == read(&at("both.uc")), "one by one or together");
    assert_eq!((verified(&at("1.uc")), verified(&at("12.uc"))), (2, 3));

    let pack = open(&at("12.uc"));
    let names: Vec<_> = pack.overlays().iter().map(|o| o.name.clone()).collect();
    assert_eq!(names, ["one", "another"]);
    assert_eq!(pack.decoded_root(), open(&base).decoded_root());
    assert_eq!(overlay_info(pack.overlays()[0]).expect("an object")["made by"], "a test");
    let bits = PackStats::of(&pack).overlay_bpw.expect("a body");
    let bytes = |rank: usize| ((ROWS + COLS) * (rank + 2)).next_multiple_of(64);
    #[allow(clippy::cast_precision_loss, reason = "small")]
    let expected = (2 * bytes(4) + bytes(7)) as f64 * 8.0 / (2 * ROWS * COLS) as f64;
    assert!((bits - expected).abs() < 1e-9, "{bits} {expected}");

    // What was there before, whichever goes first.
    let remove = |from: &str, name: &str, to: &str| {
        options().remove(&open(&at(from)), name, &at(to), &NoProgress).expect("removes");
    };
    remove("12.uc", "another", "1b.uc");
    remove("1b.uc", "one", "0.uc");
    assert!(read(&at("1b.uc")) == read(&at("1.uc")));
    assert!(read(&at("0.uc")) == read(&base));
    remove("12.uc", "one", "2.uc");
    add(&base, &[two], &at("2b.uc"));
    assert!(read(&at("2.uc")) == read(&at("2b.uc")));
    let missing = options().remove(&open(&base), "one", &at("x.uc"), &NoProgress);
    assert!(matches!(missing.expect_err("not there").kind(), ErrorKind::InvalidArgument));
    let again = options().add(&open(&at("1.uc")), &[one], &at("x.uc"), &NoProgress);
    assert!(matches!(again.expect_err("taken").kind(), ErrorKind::InvalidArgument));
    assert!(!at("x.uc").exists());
}

#[test]
fn values_are_base_and_products() {
    let desk = Desk::new();
    let (_, base) = packed(&desk);
    let with = desk.path("o.uc");
    let own = overlay("o", 5, &LAYERS[..1], 6);
    add(&base, std::slice::from_ref(&own), &with);
    let pack = open(&with);
    let tensor = pack.effective_tensor(LAYERS[0], 1).expect("there");
    let options = DecodeOptions::new().with_dtype(Dtype::F32);
    let (found, plain) = (
        f32s(&tensor.decode(&options).expect("decodes")),
        f32s(&options.decode(&pack.tensor(LAYERS[0]).expect("there")).expect("decodes")),
    );
    let NewFactors::Int8 { a, b, .. } = &own.blocks[0].factors else { panic!("int8") };
    let scale = half::bf16::from_bits(0x3b00).to_f32() * half::bf16::from_bits(0x3a80).to_f32();
    for i in 0..ROWS * COLS {
        let (r, c) = (i / COLS, i % COLS);
        let sum: i32 = (0..6).map(|k| i32::from(a[r * 6 + k]) * i32::from(b[k * COLS + c])).sum();
        #[allow(clippy::cast_precision_loss, reason = "below 2^24")]
        let expected = plain[i] + sum as f32 * scale;
        assert!(found[i].to_bits() == expected.to_bits(), "{i}");
    }
    assert!(found != plain);

    // A product with base and overlay is that with the decoded matrix.
    let x: Vec<f32> = numbers(&mut Rng(9), 2 * COLS, 1.0);
    let mut y = vec![0f32; 2 * ROWS];
    PlaneMatrix::read(&tensor.base()).expect("planes").multiply_f32(&x, &mut y).expect("fits");
    let thin = OverlayMatrix::new(&tensor.factors()[0]).expect("fits");
    thin.add_product(&x, &mut y).expect("fits");
    for (n, x) in x.chunks(COLS).enumerate() {
        for r in 0..ROWS {
            let row = &found[r * COLS..][..COLS];
            let expected: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let size: f64 =
                row.iter().zip(x).map(|(w, x)| (f64::from(*w) * f64::from(*x)).abs()).sum();
            assert!((f64::from(y[n * ROWS + r]) - expected).abs() < 1e-5 * (size + 1.0));
        }
    }
    assert!(thin.add_product(&x[1..], &mut y).is_err());
    // Overlays belong to all planes.
    assert!(tensor.decode(&DecodeOptions::new().with_planes(4)).is_err());

    // Both kinds of unpacking.
    let unpack = |overlays: bool, name: &str| {
        let to = desk.path(name);
        let options = UnpackOptions::new().with_overlays(overlays);
        options.unpack(&pack, &to).expect("unpacks")
    };
    let (effective, plain) = (unpack(true, "effective"), unpack(false, "base"));
    assert_eq!(Some(effective.decoded_root), pack.effective_root());
    assert_eq!((effective.overlays, effective.compared), (1, 4));
    assert_eq!((plain.decoded_root, plain.overlays), (pack.decoded_root(), 0));
}

#[test]
fn files_of_overlays_are_for_their_base_alone() {
    let desk = Desk::new();
    let at = |name: &str| desk.path(name);
    let (source, base) = packed(&desk);
    add(&base, &[overlay("one", 1, &LAYERS, 4), overlay("two", 2, &LAYERS, 3)], &at("12.uc"));
    options().export(&open(&at("12.uc")), "two", &at("two.uc"), &NoProgress).expect("exports");
    let file = open(&at("two.uc"));
    let report = VerifyOptions::new().verify_pack(&file).expect("readable");
    assert!(report.is_ok() && report.effective == Check::NotChecked, "{:?}", report.failures);
    assert_eq!(file.tensors().len(), 0);
    let add_from = |pack: &Path, rename: Option<&str>, to: &str| {
        options().add_from(&open(pack), &file, rename, &at(to), &NoProgress)
    };
    add_from(&base, None, "2.uc").expect("its base");
    let alone = overlay("two", 2, &LAYERS, 3);
    add(&base, &[alone], &at("2b.uc"));
    assert!(read(&at("2.uc")) == read(&at("2b.uc")));
    assert_eq!(open(&at("2.uc")).effective_root(), file.effective_root());
    add_from(&at("2.uc"), Some("again"), "22.uc").expect("another name");
    assert_eq!(verified(&at("22.uc")), 4);
    // A file of a file of overlays is the same.
    options().export(&file, "two", &at("copy.uc"), &NoProgress).expect("exports");
    assert!(read(&at("copy.uc")) == read(&at("two.uc")));

    let opened = Source::open(&source).expect("readable");
    let mut recipe = Recipe::default();
    recipe.bits = 6;
    PackOptions::new().with_recipe(recipe).pack(&opened, &at("six.uc")).expect("packs");
    let refused = add_from(&at("six.uc"), None, "x.uc").expect_err("another base");
    assert_eq!(*refused.kind(), ErrorKind::Integrity);
    for refused in [
        Model::open(&at("two.uc")).map(drop),
        UnpackOptions::new().unpack(&file, &at("x")).map(drop),
    ] {
        assert!(refused.expect_err("no base").to_string().contains("without a base"));
    }
    let nothing = options().add(&file, &[overlay("x", 1, &LAYERS, 1)], &at("x.uc"), &NoProgress);
    assert!(matches!(nothing.expect_err("no base").kind(), ErrorKind::InvalidArgument));
    assert!(!at("x.uc").exists());
}

#[test]
fn shards_and_the_exact_rung_keep_overlays() {
    let desk = Desk::new();
    let at = |name: &str| desk.path(name);
    // Shards have a megabyte at least.
    let (rows, cols) = (1000, 1100);
    let (source, base) = packed_sized(&desk, rows, cols);
    let own = [overlay_sized("o", 1, &LAYERS, 4, [rows, cols])];
    add(&base, &own, &at("o.uc"));
    let cut = ReshardOptions::new().with_shard_size(Some(1 << 20));
    cut.reshard(&open(&at("o.uc")), &at("cut.uc")).expect("cuts");
    let index = at("cut.uc.index.json");
    assert!(open(&index).containers().len() > 1);
    assert_eq!(verified(&index), 2);
    ReshardOptions::new().reshard(&open(&index), &at("joined.uc")).expect("joins");
    assert!(read(&at("joined.uc")) == read(&at("o.uc")));
    // Overlays on a pack of several files.
    cut.reshard(&open(&base), &at("plain.uc")).expect("cuts");
    add(&at("plain.uc.index.json"), &own, &at("later.uc"));
    assert_eq!(verified(&at("later.uc.index.json")), 2);

    let exact = PackOptions::new().with_exact(Exact::Residual);
    exact.pack(&Source::open(&source).expect("readable"), &at("exact.uc")).expect("packs");
    add(&at("exact.uc"), &own, &at("exact-o.uc"));
    let report = VerifyOptions::new().verify_pack(&open(&at("exact-o.uc"))).expect("readable");
    assert!(report.is_ok() && report.exact == Check::Ok && report.effective == Check::Ok);
    StripOptions::new().strip(&open(&at("exact-o.uc")), &at("stripped.uc")).expect("strips");
    assert!(read(&at("stripped.uc")) == read(&at("o.uc")));
    // Models are compared by their base.
    let model = |name: &str| Model::open(&at(name)).expect("opens");
    assert!(same(&model("o.uc"), &model("base.uc"), &NoProgress).expect("reads").same);
    let out = at("source");
    UnpackOptions::new().with_exact(true).unpack(&open(&at("exact-o.uc")), &out).expect("unpacks");
    assert!(read(&out.join("model.safetensors")) == read(&source));
}

#[test]
fn damaged_overlays_are_noticed() {
    let desk = Desk::new();
    let (_, base) = packed(&desk);
    let with = desk.path("o.uc");
    add(&base, &[overlay("o", 1, &LAYERS, 4)], &with);
    let bytes = read(&with);
    let pack = open(&with);
    let part = &pack.overlays()[0].parts[0];
    let from = size(part.offset);
    for at in [from, from + 200, from + size(part.len) - 70] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let pack = Pack::from(ultracompress::Container::open(damaged).expect("only payload"));
        let report = VerifyOptions::new().verify_pack(&pack).expect("readable");
        assert!(!report.is_ok() && report.structure == Check::Mismatch, "byte {at}");
        let decoded = pack.effective_tensor(LAYERS[0], 1).err();
        assert!(decoded.is_none_or(|e| *e.kind() == ErrorKind::Integrity));
    }
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let desk = Desk::new();
    let (_, base) = packed(&desk);
    let output = desk.path("x.uc");
    let refused = |change: &dyn Fn(&mut NewOverlay)| {
        let mut own = overlay("o", 1, &LAYERS[..1], 4);
        change(&mut own);
        options().add(&open(&base), &[own], &output, &NoProgress).expect_err("refused")
    };
    let rule = |e: ultracompress::Error| match e.kind() {
        ErrorKind::Malformed(rule) => rule.to_string(),
        other => format!("{other:?}"),
    };
    assert_eq!(rule(refused(&|o| o.blocks[0].tensor = "other".into())), "UC-OVL-4");
    assert_eq!(
        rule(refused(&|o| {
            let NewFactors::Int8 { row_scales, .. } = &mut o.blocks[0].factors else { return };
            row_scales[3] = 0xbb00;
        })),
        "UC-OVL-5"
    );
    assert_eq!(rule(refused(&|o| o.blocks[0].rank = 5)), "InvalidArgument");
    assert_eq!(
        rule(refused(&|o| {
            o.info.insert("x".into(), json!(0.5));
        })),
        "UC-OVL-1"
    );
    assert!(!output.exists());
}

/// A folder as PEFT saves it.
fn lora(folder: &Path, config: &serde_json::Value, tensors: &[(&str, Vec<u64>, Vec<f32>)]) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("writes");
    let path = folder.join("adapter_model.safetensors");
    write(&path, Dtype::F32, tensors);
}

#[test]
fn adapters_become_overlays() {
    let desk = Desk::new();
    let (_, base) = packed(&desk);
    let mut rng = Rng(4);
    let rank = 3;
    // Values that binary16 holds.
    let mut factors = |n: usize| -> Vec<f32> {
        numbers(&mut rng, n, 0.02).iter().map(|v| half::f16::from_f32(*v).to_f32()).collect()
    };
    let (a, b) = (factors(rank * COLS), factors(ROWS * rank));
    let (ea, eb) = (factors(rank * 16), factors(64 * rank));
    let config = json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none", "use_rslora": false,
        "alpha_pattern": { "embed_tokens": 12 }, "target_modules": ["a", "embed_tokens"],
    });
    let prefix = "base_model.model.model";
    let names = [
        format!("{prefix}.layers.0.a.lora_A.weight"),
        format!("{prefix}.layers.0.a.lora_B.weight"),
        format!("{prefix}.embed_tokens.lora_embedding_A"),
        format!("{prefix}.embed_tokens.lora_embedding_B"),
    ];
    let copy = format!("{prefix}.embed_tokens.base_layer.weight");
    let [rows, cols, r] = [ROWS, COLS, rank].map(|n| n as u64);
    let tensors = [
        (copy.as_str(), vec![16, 64], vec![0.5; 1024]),
        (names[0].as_str(), vec![r, cols], a.clone()),
        (names[1].as_str(), vec![rows, r], b.clone()),
        (names[2].as_str(), vec![r, 16], ea.clone()),
        (names[3].as_str(), vec![64, r], eb.clone()),
    ];
    let adapter = desk.path("adapter");
    lora(&adapter, &config, &tensors);
    let pack = open(&base);
    let found = read_lora(&adapter, "adapter", &pack).expect("an adapter");
    assert_eq!((found.rounded, found.overlay.blocks.len()), (0, 2));
    assert_eq!(found.left_out, [copy.as_str()]);
    let with = desk.path("o.uc");
    add(&base, &[found.overlay], &with);
    assert_eq!(verified(&with), 2);
    let with = open(&with);
    let options = DecodeOptions::new().with_dtype(Dtype::F32);
    let check = |name: &str, cols: usize, product: &dyn Fn(usize, usize) -> f64| {
        let plain = f32s(&options.decode(&pack.tensor(name).expect("there")).expect("decodes"));
        let tensor = with.effective_tensor(name, 1).expect("there");
        let found = f32s(&tensor.decode(&options).expect("decodes"));
        for (i, (found, plain)) in found.iter().zip(&plain).enumerate() {
            let expected = f64::from(*plain) + product(i / cols, i % cols);
            assert!((f64::from(*found) - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{i}");
        }
    };
    let sum = |left: &dyn Fn(usize) -> f32, right: &dyn Fn(usize) -> f32| -> f64 {
        (0..rank).map(|k| f64::from(left(k)) * f64::from(right(k))).sum()
    };
    // alpha / r is 2, that of the embedding 4.
    check(LAYERS[0], COLS, &|r, c| 2.0 * sum(&|k| b[r * rank + k], &|k| a[k * COLS + c]));
    check("model.embed_tokens.weight", 64, &|r, c| {
        4.0 * sum(&|k| ea[k * 16 + r], &|k| eb[c * rank + k])
    });

    let refused = |change: &dyn Fn(&mut serde_json::Value), tensors: &[_]| {
        let mut config = config.clone();
        change(&mut config);
        let adapter = desk.path("refused");
        lora(&adapter, &config, tensors);
        read_lora(&adapter, "x", &pack).expect_err("refused").to_string()
    };
    assert!(refused(&|c| c["peft_type"] = json!("IA3"), &tensors).contains("only LORA"));
    assert!(refused(&|c| c["use_dora"] = json!(true), &tensors).contains("DoRA"));
    assert!(refused(&|c| c["bias"] = json!("all"), &tensors).contains("biases"));
    assert!(refused(&|c| c["r"] = json!(4), &tensors).contains("rank 3"));
    assert!(refused(&|_| (), &tensors[1..2]).contains("second factor"));
    let other = [(("base_model.model.lm_head.weight"), vec![2, 2], vec![0.0; 4])];
    assert!(refused(&|_| (), &other).contains("no factor"));
    let unknown = [
        ("base_model.model.x.lora_A.weight", vec![r, 4], vec![0.0; rank * 4]),
        ("base_model.model.x.lora_B.weight", vec![4, r], vec![0.0; rank * 4]),
    ];
    assert!(refused(&|_| (), &unknown).contains("no such tensor"));
    let bad = [(names[0].as_str(), vec![r, cols], vec![f32::NAN; rank * COLS])];
    assert!(refused(&|_| (), &bad).contains("NaN"));
    let transposed = [
        (names[0].as_str(), vec![r, rows], vec![0.5; rank * ROWS]),
        (names[1].as_str(), vec![cols, r], vec![0.5; COLS * rank]),
    ];
    let adapter = desk.path("fan");
    let mut fan = config.clone();
    fan["fan_in_fan_out"] = json!(true);
    lora(&adapter, &fan, &transposed);
    let found = read_lora(&adapter, "fan", &pack).expect("an adapter").overlay;
    assert_eq!((found.blocks[0].rows, found.blocks[0].cols), (ROWS, COLS));
}
