//! The exact rung: any bits of any float type and shape come back, whatever the planes are.
#![cfg(feature = "checkpoints")]

mod support;

use std::collections::HashMap;
use std::path::Path;

use proptest::prelude::*;
use ultracompress::codec::{PlaneCounts, PlaneLayout};
use ultracompress::edit::{ExactOptions, ReshardOptions, StripOptions};
use ultracompress::pack::{Exact, PackOptions, Recipe};
use ultracompress::source::Source;
use ultracompress::unpack::UnpackOptions;
use ultracompress::{
    Check, Container, DecodeOptions, Dtype, EncodedTensor, ErrorKind, Kernel, Pack, PlaneParts,
    Role, VerifyOptions,
};

use support::checkpoint::{Tensor, f32s, number};
use support::folder::Desk;
use support::pack::NewPack;
use support::planes::{FLOATS, steps_and_planes};
use support::random::{Rng, size};

/// Elements of one type: near one another, or anything.
fn elements(rng: &mut Rng, dtype: Dtype, n: usize, wild: u64) -> Vec<u8> {
    let mut all = vec![];
    for _ in 0..n {
        let value = rng.bell() * (0.02 + 0.001 * rng.bell() * rng.bell());
        let mut bytes = number(value.into(), dtype);
        if wild > 0 && rng.below(wild) == 0 {
            let n = bytes.len();
            bytes = rng.bytes(n);
        }
        all.extend(bytes);
    }
    all
}

fn write(path: &Path, tensors: &[Tensor]) {
    let metadata = HashMap::from([("made by".to_owned(), "a test".to_owned())]);
    let views = tensors.iter().map(Tensor::view);
    safetensors::serialize_to_file(views, Some(metadata), path).expect("writes");
}

fn exact() -> DecodeOptions {
    DecodeOptions::new().with_exact(true)
}

/// Every tensor's exact bytes, whole and by rows, from every kernel.
fn check_decoded(pack: &Path, tensors: &[Tensor]) {
    let pack = Pack::open_path(pack).expect("valid");
    let report = VerifyOptions::new().verify_pack(&pack).expect("readable");
    assert!(report.is_ok(), "{:?}", report.failures);
    for Tensor { name, dtype, shape, bytes: source } in tensors {
        let view = pack.tensor(name).expect("packed");
        for kernel in Kernel::available() {
            let found = exact().with_kernel(kernel).decode(&view).expect("valid");
            assert!(found == *source, "{name} {dtype} {shape:?} {kernel}");
        }
        let mut tiles = vec![];
        exact()
            .decode_tiles(&view, |tile| {
                tiles.extend_from_slice(tile);
                Ok(())
            })
            .expect("valid");
        assert!(tiles == *source, "{name} {dtype} {shape:?} by tiles");
        // Rows of the first dimension, as long as rows are that.
        let n = shape.first().copied().unwrap_or(1);
        let row = source.len() / size(n.max(1));
        if shape.len() > 1 {
            let rows = n / 3..n - n / 4;
            let options = exact().with_rows(rows.clone());
            if options.output_bytes(&view).ok() == Some(size(rows.end - rows.start) * row) {
                let found = options.decode(&view).expect("valid");
                assert!(found == source[size(rows.start) * row..size(rows.end) * row], "{name}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// From a checkpoint, with and without planes, in one file and in shards.
    #[test]
    fn any_checkpoint_comes_back(
        seed in any::<u64>(),
        bits in 3u8..=8,
        group in prop::sample::select(vec![0u32, 16, 32, 256]),
        shapes in prop::collection::vec(
            (0usize..4, prop::collection::vec(1u64..90, 1..4), prop::sample::select(vec![0u64, 3, 50])), 1..5),
    ) {
        let mut rng = Rng(seed);
        let mut tensors = vec![];
        for (i, (dtype, shape, wild)) in shapes.into_iter().enumerate() {
            let n = size(shape.iter().product());
            let dtype = FLOATS[dtype];
            let bytes = elements(&mut rng, dtype, n, wild);
            tensors.push(Tensor::new(format!("layers.{i}.weight"), dtype, &shape, bytes));
        }
        let big = elements(&mut rng, Dtype::Bf16, 130 * 96, 0);
        tensors.push(Tensor::new("layers.9.weight", Dtype::Bf16, &[130, 96], big));
        let desk = Desk::new();
        let path = desk.path("model.safetensors");
        write(&path, &tensors);
        let source = Source::open(&path).expect("valid");
        let mut recipe = Recipe::default();
        (recipe.bits, recipe.group) = (bits, group);
        for mode in [Exact::Residual, Exact::Only] {
            let file = desk.path(format!("{mode:?}.uc"));
            let options = PackOptions::new().with_recipe(recipe.clone()).with_exact(mode);
            options.pack(&source, &file).expect("packs");
            check_decoded(&file, &tensors);
            let out = desk.path(format!("{mode:?}"));
            let pack = Pack::open_path(&file).expect("valid");
            let report = UnpackOptions::new().with_exact(true).unpack(&pack, &out).expect("unpacks");
            prop_assert_eq!(report.files_recreated, 1);
            let found = std::fs::read(out.join("model.safetensors")).expect("written");
            prop_assert!(found == std::fs::read(&path).expect("written before"));
        }
    }

    /// Planes that have nothing to do with the source, in rows of any number of planes.
    #[test]
    fn any_planes_lead_to_any_source(
        seed in any::<u64>(),
        dtype in prop::sample::select(FLOATS.to_vec()),
        rows in 1usize..40,
        cols in 1usize..140,
        group in prop::sample::select(vec![0u32, 16, 64]),
        uniform in any::<bool>(),
        wild in prop::sample::select(vec![0u64, 1, 20]),
    ) {
        let mut rng = Rng(seed);
        let shape = [rows as u64, cols as u64];
        let source = elements(&mut rng, dtype, rows * cols, wild);
        let layout = PlaneLayout::new(&shape, 1, group).expect("valid");
        let count = |rng: &mut Rng| 3 + rng.byte() % 6;
        let mut counts: Vec<u8> = (0..rows).map(|_| count(&mut rng)).collect();
        if uniform {
            let first = counts[0];
            counts.fill(first);
        }
        let counts = match counts.windows(2).all(|w| w[0] == w[1]) {
            true => PlaneCounts::Uniform(counts[0]),
            false => PlaneCounts::PerRow(counts),
        };
        let (steps, planes) = steps_and_planes(&mut rng, &layout, &counts);
        let scales = (0..rows).flat_map(|_| {
            let exponent = 100 + u16::from(rng.byte() % 25);
            (exponent << 7 | u16::from(rng.byte() & 127)).to_le_bytes()
        });
        let parts = PlaneParts {
            row_dims: 1,
            group,
            counts,
            level_ids: [0; 6],
            scales: scales.collect(),
            steps,
            planes,
        };
        let tensor = EncodedTensor::from_planes("w", dtype, &shape, Role::Body, parts, &[]);
        let mut pack = NewPack::new();
        pack.add("w", tensor.expect("valid"), &source);
        let (summary, file) = pack.finish();

        let desk = Desk::new();
        let path = desk.path("model.safetensors");
        let tensors = [Tensor::new("w", dtype, &shape, source)];
        write(&path, &tensors);
        let base = Pack::from(Container::open(file).expect("valid"));
        let output = desk.path("exact.uc");
        let options = ExactOptions::new();
        let report = options.add(&base, &Source::open(&path).expect("valid"), &output);
        prop_assert_eq!(report.expect("adds").decoded_root, summary.decoded_root);
        check_decoded(&output, &tensors);
    }
}

/// A checkpoint whose rows are longer than a block, and longer than a tile.
#[test]
fn long_rows_are_cut() {
    let mut rng = Rng(5);
    let tensors: Vec<_> = [(Dtype::Bf16, 70_001), (Dtype::F32, 140_000), (Dtype::F16, 65_536)]
        .into_iter()
        .enumerate()
        .map(|(i, (dtype, cols))| {
            let bytes = elements(&mut rng, dtype, 2 * cols, 5000);
            // Finite, so that they are stored as planes.
            let one = elements(&mut rng, dtype, 1, 0);
            let size = one.len();
            let mut bytes = bytes;
            for e in bytes.chunks_mut(size) {
                if e[size - 1] & 0x7c == 0x7c {
                    e.copy_from_slice(&one);
                }
            }
            Tensor::new(format!("layers.{i}.weight"), dtype, &[2, cols as u64], bytes)
        })
        .collect();
    let desk = Desk::new();
    let path = desk.path("model.safetensors");
    write(&path, &tensors);
    let source = Source::open(&path).expect("valid");
    for mode in [Exact::Residual, Exact::Only] {
        let file = desk.path(format!("{mode:?}.uc"));
        PackOptions::new().with_exact(mode).pack(&source, &file).expect("packs");
        let pack = Pack::open_path(&file).expect("valid");
        for t in pack.tensors() {
            let bytes: u64 = t.entry().parts.iter().map(|p| p.stored_len).sum();
            let (name, encoding) = (t.name(), t.entry().encoding.name());
            assert!(encoding != "raw", "{mode:?} {name} {} takes {bytes}", t.dtype());
        }
        check_decoded(&file, &tensors);
    }
}

/// A small checkpoint, and its pack with residuals.
fn desk() -> (Desk, Source) {
    let mut rng = Rng(11);
    let tensors: Vec<_> = (0..4)
        .map(|i| {
            let bytes = elements(&mut rng, Dtype::Bf16, 200 * 256, 0);
            let name = format!("model.layers.{i}.mlp.up_proj.weight");
            Tensor::new(name, Dtype::Bf16, &[200, 256], bytes)
        })
        .collect();
    let desk = Desk::new();
    let path = desk.path("model.safetensors");
    write(&path, &tensors);
    let source = Source::open(&path).expect("valid");
    (desk, source)
}

#[test]
fn residuals_come_and_go_without_a_trace() {
    let (desk, source) = desk();
    let at = |name: &str| desk.path(name);
    let read = |name: &str| desk.read(name);
    PackOptions::new().pack(&source, &at("plain.uc")).expect("packs");
    let with = PackOptions::new().with_exact(Exact::Residual);
    with.pack(&source, &at("exact.uc")).expect("packs");
    let plain = Pack::open_path(at("plain.uc")).expect("valid");
    let exact = Pack::open_path(at("exact.uc")).expect("valid");
    assert_eq!(plain.decoded_root(), exact.decoded_root());
    ExactOptions::new().add(&plain, &source, &at("onto.uc")).expect("adds");
    assert!(read("onto.uc") == read("exact.uc"), "from a pack that is there");
    StripOptions::new().strip(&exact, &at("stripped.uc")).expect("strips");
    assert!(read("stripped.uc") == read("plain.uc"), "and back");

    // Twice, or from nothing, is a mistake.
    let twice = ExactOptions::new().add(&exact, &source, &at("twice.uc"));
    assert_eq!(*twice.expect_err("it has residuals").kind(), ErrorKind::InvalidArgument);
    let nothing = StripOptions::new().strip(&plain, &at("nothing.uc"));
    assert_eq!(*nothing.expect_err("it has none").kind(), ErrorKind::InvalidArgument);
    let unpacked = UnpackOptions::new().with_exact(true).unpack(&plain, &at("out"));
    assert_eq!(*unpacked.expect_err("it has none").kind(), ErrorKind::InvalidArgument);
    assert!(!at("twice.uc").exists() && !at("nothing.uc").exists() && !at("out").exists());

    // Through shards and back.
    let reshard = ReshardOptions::new().with_shard_size(Some(1 << 20));
    let many = PackOptions::new().with_exact(Exact::Residual).with_shard_size(Some(1 << 20));
    many.pack(&source, &at("cut.uc")).expect("packs");
    reshard.reshard(&exact, &at("again.uc")).expect("cuts");
    let cut = Pack::open_path(at("cut.uc")).or_else(|_| Pack::open_path(at("cut.uc.index.json")));
    let cut = cut.expect("one file or several");
    let report = VerifyOptions::new().verify_pack(&cut).expect("readable");
    assert!(report.is_ok() && report.exact == Check::Ok && report.exact_checked == 4);
    ReshardOptions::new().reshard(&cut, &at("joined.uc")).expect("joins");
    assert!(read("joined.uc") == read("exact.uc"), "joined again");
}

#[test]
fn another_source_is_refused() {
    let (desk, source) = desk();
    let at = |name: &str| desk.path(name);
    PackOptions::new().pack(&source, &at("plain.uc")).expect("packs");
    let pack = Pack::open_path(at("plain.uc")).expect("valid");
    let mut bytes = desk.read("model.safetensors");
    *bytes.last_mut().expect("not empty") ^= 1;
    desk.folder("other");
    desk.write("other/model.safetensors", bytes);
    let other = Source::open(&at("other/model.safetensors")).expect("valid");
    let e = ExactOptions::new().add(&pack, &other, &at("exact.uc")).expect_err("another source");
    assert_eq!(*e.kind(), ErrorKind::Integrity);
    assert!(e.to_string().contains("layers.3"), "{e}");
    assert!(!at("exact.uc").exists());
}

#[test]
fn a_damaged_residual_costs_only_the_exact_rung() {
    let (desk, source) = desk();
    let path = desk.path("exact.uc");
    PackOptions::new().with_exact(Exact::Residual).pack(&source, &path).expect("packs");
    let mut bytes = desk.read("exact.uc");
    let whole = Container::open(bytes.clone()).expect("valid");
    let name = "model.layers.2.mlp.up_proj.weight";
    let view = whole.tensor(name).expect("there");
    let part = view.entry().parts.last().expect("the residual");
    bytes[size(part.offset + part.stored_len / 2)] ^= 4;
    let expected = view.decode().expect("valid");
    let damaged = Container::open(bytes).expect("the index is whole");
    let view = damaged.tensor(name).expect("there");
    assert!(view.decode().expect("planes are whole") == expected);
    let e = exact().decode(&view).expect_err("a checksum");
    assert_eq!((e.kind(), e.part()), (&ErrorKind::Integrity, Some("residual")));
    let report = VerifyOptions::new().verify(&damaged).expect("readable");
    assert_eq!((report.decoded, report.exact), (Check::Ok, Check::Mismatch));
    // The chunk and the stored root; the exact rung doesn't say it again.
    assert_eq!((report.exact_checked, report.failures.len()), (3, 2), "{:?}", report.failures);
}

#[test]
fn rungs_have_tables_and_roots_of_their_own() {
    // A distribution that the default tables don't fit: few values, far apart.
    let mut rng = Rng(3);
    let bytes: Vec<u8> = (0..300 * 128)
        .flat_map(|_| {
            let value = [-1.0f32, -0.9, 0.8, 1.0, 0.05][size(rng.below(5))] + 0.01 * rng.bell();
            half::bf16::from_f32(value).to_le_bytes()
        })
        .collect();
    let name = "model.layers.0.mlp.up_proj.weight";
    let tensors = [Tensor::new(name, Dtype::Bf16, &[300, 128], bytes)];
    let desk = Desk::new();
    let path = desk.path("model.safetensors");
    write(&path, &tensors);
    let source = Source::open(&path).expect("valid");
    let at = |name: &str| desk.path(name);
    PackOptions::new().pack(&source, &at("plain.uc")).expect("packs");
    PackOptions::new().with_rungs(vec![3, 4]).pack(&source, &at("rungs.uc")).expect("packs");
    let both = PackOptions::new().with_rungs(vec![4, 3]).with_exact(Exact::Residual);
    both.pack(&source, &at("both.uc")).expect("packs");
    let plain = Pack::open_path(at("plain.uc")).expect("valid");
    let rungs = Pack::open_path(at("rungs.uc")).expect("valid");
    assert_eq!(plain.decoded_root(), rungs.decoded_root(), "the top rung is the same");
    let error = |pack: &Pack<_>, planes: u8| -> f64 {
        let view = pack.tensor(name).expect("there");
        let options = DecodeOptions::new().with_planes(planes).with_dtype(Dtype::F32);
        let found = f32s(&options.decode(&view).expect("valid"));
        let wanted =
            tensors[0].bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
        wanted.zip(found).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    for planes in [3, 4] {
        assert!(error(&rungs, planes) < 0.9 * error(&plain, planes), "rung {planes}");
    }
    let manifest = rungs.manifest().expect("valid");
    assert_eq!(manifest.rungs.keys().collect::<Vec<_>>(), ["3", "4"]);
    for rung in [3, 4] {
        let out = at(&format!("out{rung}"));
        let options = UnpackOptions::new().with_planes(Some(rung));
        let report = options.unpack(&rungs, &out).expect("unpacks");
        assert_eq!(report.decoded_root.to_string(), manifest.rungs[&rung.to_string()]);
    }
    for name in ["rungs.uc", "both.uc"] {
        let pack = Pack::open_path(at(name)).expect("valid");
        let report = VerifyOptions::new().verify_pack(&pack).expect("readable");
        assert!(report.is_ok() && report.rungs_checked == 2, "{:?}", report.failures);
    }
    check_decoded(&at("both.uc"), &tensors);
    for rung in [2, 8] {
        let e = PackOptions::new().with_rungs(vec![rung]).pack(&source, &at("x.uc"));
        assert_eq!(*e.expect_err("no such rung").kind(), ErrorKind::InvalidArgument);
    }
}
