//! Tensors larger than a tile and larger than the memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::json;
use ultracompress::codec::{PlaneCounts, PlaneLayout};
use ultracompress::pack::{Decision, PackOptions, PackReport};
use ultracompress::source::Source;
use ultracompress::unpack::UnpackOptions;
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodeOptions, EncodedTensor, Encoding, ErrorKind,
    MIN_MAX_RAM, Pack, PlaneParts, Role, StoredFile, VerifyOptions,
};

use crate::support::checkpoint::{Tensor, safetensors, write_shards, write_weights};
use crate::support::folder::{Desk, files};
use crate::support::in_pool;
use crate::support::pack::{pack_of_one, writer};
use crate::support::planes::steps_and_planes;
use crate::support::progress::After;
use crate::support::random::{Rng, size};
use crate::{config, says};

// ---- Tensors larger than a tile -----------------------------------------------------------------

/// Tensors of several tiles and chunks, a row longer than a decoder's tile, and odd small ones.
fn large() -> &'static [Tensor] {
    static ALL: OnceLock<Vec<Tensor>> = OnceLock::new();
    ALL.get_or_init(|| {
        // Chunks that shrink, chunks that don't, and a short one behind them.
        let mut ids = vec![0; 5 << 20];
        ids[1 << 20..3 << 20].copy_from_slice(&Rng(1).bytes(2 << 20));
        ids.extend_from_slice(&[7; 12]);
        let twin = Tensor::floats("", Dtype::Bf16, &[16, 128], 2).bytes;
        vec![
            Tensor::new("a.twin.weight", Dtype::Bf16, &[16, 128], twin.clone()),
            Tensor::new("b.twin.weight", Dtype::Bf16, &[16, 128], twin),
            Tensor::new("model.empty", Dtype::F32, &[0, 64], vec![]),
            Tensor::new("model.ids", Dtype::I32, &[(5 << 18) + 3], ids),
            Tensor::floats("model.layers.0.down_proj.weight", Dtype::F32, &[260, 2048], 3),
            Tensor::floats("model.layers.0.up_proj.weight", Dtype::Bf16, &[600, 1024], 4),
            Tensor::new("model.none", Dtype::I64, &[3, 0], vec![]),
            Tensor::floats("model.norm.weight", Dtype::Bf16, &[1024], 5),
            Tensor::floats("model.scalar", Dtype::F32, &[], 6),
            Tensor::floats("model.wide.weight", Dtype::F32, &[1, 1_050_003], 7),
            Tensor::floats("model.wider.weight", Dtype::F64, &[20, 200], 8),
        ]
    })
}

fn pack_folder(folder: &Path, out: &Path, max_ram: u64, threads: usize) -> PackReport {
    let source = Source::open(folder).expect("valid");
    let options = PackOptions::new().with_max_ram(max_ram);
    in_pool(threads, || options.pack(&source, out)).expect("packs")
}

/// The pack of [`large`] in one weights file, made within the least memory by one thread.
fn large_pack() -> &'static (Vec<u8>, PackReport) {
    static PACK: OnceLock<(Vec<u8>, PackReport)> = OnceLock::new();
    PACK.get_or_init(|| {
        let desk = Desk::new();
        let folder = desk.folder("source");
        write_weights(&folder.join("model.safetensors"), large());
        fs::write(folder.join("config.json"), config()).expect("can write");
        let report = pack_folder(&folder, &desk.path("large.uc"), MIN_MAX_RAM, 1);
        (desk.read("large.uc"), report)
    })
}

#[test]
fn packs_depend_neither_on_memory_nor_on_threads() {
    let desk = Desk::new();
    let folder = desk.folder("source");
    write_weights(&folder.join("model.safetensors"), large());
    fs::write(folder.join("config.json"), config()).expect("can write");
    for (max_ram, threads) in [(4 << 30, 2), (MIN_MAX_RAM, 4)] {
        let out = desk.path(format!("{threads}.uc"));
        pack_folder(&folder, &out, max_ram, threads);
        let same = fs::read(out).expect("written") == large_pack().0;
        assert!(same, "{max_ram} bytes of memory, {threads} threads");
    }
}

#[test]
fn packs_of_sharded_sources_decode_to_the_same_tensors() {
    let desk = Desk::new();
    let folder = desk.folder("source");
    write_shards(&folder, large(), 3);
    let report = pack_folder(&folder, &desk.path("out.uc"), MIN_MAX_RAM, 2);
    assert_eq!(report.decoded_root, large_pack().1.decoded_root);
    assert_eq!(Pack::open_path(desk.path("out.uc")).expect("valid").tensors().len(), large().len());
}

#[test]
fn the_streamed_pack_is_the_one_that_is_written_from_memory() {
    let (file, report) = large_pack();
    let streamed = Container::open(&file[..]).expect("valid");
    let mut writer = writer();
    let mut kinds = [0; 3];
    for (t, planned) in large().iter().zip(&report.plan.tensors) {
        assert_eq!(t.name, planned.name);
        let options = EncodeOptions::new().with_role(planned.role).with_zstd_level(Some(3));
        let tensor = match &planned.decision {
            Decision::Raw => {
                kinds[0] += 1;
                EncodedTensor::raw(&t.name, t.dtype, &t.shape, &t.bytes, &options)
            }
            Decision::Planes { planes, row_dims } => {
                kinds[1] += 1;
                let options = options.with_planes(*planes).with_row_dims(*row_dims).with_group(32);
                EncodedTensor::planes(&t.name, t.dtype, &t.shape, &t.bytes, &options)
            }
            Decision::Alias(_) => continue,
        };
        writer.add_tensor(tensor.expect("valid")).expect("memory");
    }
    for planned in &report.plan.tensors {
        if let Decision::Alias(target) = &planned.decision {
            kinds[2] += 1;
            writer.add_alias(&planned.name, target).expect("written before");
        }
    }
    assert_eq!(kinds, [5, 5, 1], "raw, planes, aliases");
    let config = StoredFile::new("config.json", &config(), Some(3)).expect("valid");
    writer.add_file(config).expect("memory");
    let manifest = streamed.manifest_bytes().expect("valid");
    let whole = writer.finish(&manifest).expect("valid").1.into_inner();
    assert!(whole == *file);
}

#[test]
fn verify_and_unpack_agree_at_every_memory_and_thread_count() {
    let (file, report) = large_pack();
    let desk = Desk::new();
    desk.write("large.uc", file);
    let pack = Pack::open_path(desk.path("large.uc")).expect("valid");
    let mut unpacked: Option<BTreeMap<PathBuf, Vec<u8>>> = None;
    for (max_ram, threads) in [(MIN_MAX_RAM, 1), (MIN_MAX_RAM, 2), (4 << 30, 4)] {
        let verify = VerifyOptions::new().with_max_ram(max_ram);
        let found = in_pool(threads, || verify.verify_pack(&pack)).expect("readable");
        assert!(found.is_ok(), "{:?}", found.failures);
        assert_eq!(found.stored_root, report.stored_root);
        assert_eq!(found.decoded_root, report.decoded_root);
        if threads == 2 {
            continue;
        }
        let folder = desk.path(format!("out-{threads}"));
        let options = UnpackOptions::new().with_max_ram(max_ram);
        let found = in_pool(threads, || options.unpack(&pack, &folder)).expect("valid");
        assert_eq!(found.decoded_root, report.decoded_root);
        assert_eq!(found.compared, large().len() as u64);
        let files = files(&folder);
        assert!(unpacked.get_or_insert_with(|| files.clone()) == &files, "{threads} threads");
    }
}

#[test]
fn tiles_of_long_rows_and_tensors_join_to_the_whole() {
    let pack = Container::open(&large_pack().0[..]).expect("valid");
    for t in large() {
        let view = pack.tensor(&t.name).expect("packed");
        let whole = view.decode().expect("valid");
        if matches!(view.entry().encoding, Encoding::Raw) {
            assert!(whole == t.bytes, "{}", t.name);
        }
        let (mut joined, mut largest) = (vec![], 0);
        let collect = |tile: &[u8]| {
            largest = largest.max(tile.len());
            joined.extend_from_slice(tile);
            Ok(())
        };
        DecodeOptions::new().decode_tiles(&view, collect).expect("valid");
        assert!(joined == whole, "{}", t.name);
        assert!(largest <= 8 << 20, "{}: a tile of {largest} bytes", t.name);
    }
    // Columns of a long row at another type and fewer planes.
    let view = pack.tensor("model.wide.weight").expect("packed");
    let options = DecodeOptions::new().with_dtype(Dtype::Bf16).with_planes(3);
    let mut joined = vec![];
    let collect = |tile: &[u8]| {
        joined.extend_from_slice(tile);
        Ok(())
    };
    options.decode_tiles(&view, collect).expect("valid");
    assert!(joined == options.decode(&view).expect("valid"));
}

/// A pack of one tensor whose rows have 3 to 8 planes, of which the first ones are longer than a
/// chunk, with rows that lie across the border of two chunks.
fn per_row_pack() -> Vec<u8> {
    let (rows, cols) = (1050u64, 8200u64);
    let mut rng = Rng(9);
    let counts: Vec<u8> = (0..rows).map(|_| 3 + rng.bytes(1)[0] % 6).collect();
    let counts = PlaneCounts::PerRow(counts);
    let layout = PlaneLayout::new(&[rows, cols], 1, 0).expect("valid");
    let (steps, planes) = steps_and_planes(&mut rng, &layout, &counts);
    assert!(planes[0].len() > 1 << 20 && !(1u64 << 20).is_multiple_of(layout.row_bytes()));
    let parts = PlaneParts {
        row_dims: 1,
        group: 0,
        counts,
        level_ids: [0; 6],
        scales: rng.words(size(rows) * 2, 0x007f_007f_007f_007f, 0x3c00_3c00_3c00_3c00),
        steps,
        planes,
    };
    let shape = [rows, cols];
    let tensor = EncodedTensor::from_planes("w", Dtype::Bf16, &shape, Role::Body, parts, &[]);
    pack_of_one(tensor.expect("valid"))
}

#[test]
fn rows_of_many_plane_counts_are_read_chunk_by_chunk() {
    let file = per_row_pack();
    // With so many threads none may keep a whole tensor within the least memory.
    let options = VerifyOptions::new().with_max_ram(MIN_MAX_RAM);
    let verify = |file: &[u8]| {
        let pack = Container::open(file).expect("valid");
        in_pool(64, || options.verify(&pack)).expect("readable")
    };
    let report = verify(&file);
    assert!(report.is_ok(), "{:?}", report.failures);
    assert_eq!(report.tensors_checked, 1);

    // Damage in the second chunk of a plane is found there too.
    let pack = Container::open(&file[..]).expect("valid");
    let parts = &pack.tensor("w").expect("written").entry().parts;
    let plane = parts.iter().find(|p| p.chunks.len() > 1).expect("a long plane");
    let mut damaged = file.clone();
    damaged[size(plane.offset) + (1 << 20) + 5] ^= 1;
    let failures = verify(&damaged).failures;
    let found = failures.iter().find(|f| f.part.is_some() && f.tensor.as_deref() == Some("w"));
    assert!(found.is_some_and(|f| f.kind == ErrorKind::Integrity), "{failures:?}");
}

// ---- Bounds of memory ---------------------------------------------------------------------------

#[test]
fn too_little_memory_is_a_usage_error_before_anything_is_written() {
    let desk = Desk::new();
    write_weights(&desk.path("m.safetensors"), &large()[..2]);
    desk.run(&["pack", "m.safetensors", "-o", "m.uc", "-q"]).expect(0);
    for args in [
        &["pack", "m.safetensors", "-o", "out.uc"][..],
        &["pack", "m.safetensors", "-o", "out.uc", "--shard-size", "1M"],
        &["verify", "m.uc"],
        &["unpack", "m.uc", "-o", "out"],
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--max-ram", "64M"]).collect();
        desk.run(&args).expect(2).says("max-ram of 64 MiB is too little").says("128 MiB");
    }
    for bad in ["64X", "", "1.5G", "99999999999G"] {
        let args = ["pack", "m.safetensors", "-o", "out.uc", "--max-ram", bad];
        desk.run(&args).expect(2).says("--max-ram");
    }
    assert_eq!(desk.names(), ["m.safetensors", "m.uc"]);
}

/// A safetensors file with one tensor of zeros that takes no room on disk.
fn sparse(path: &Path, name: &str, dtype: Dtype, shape: &[u64]) {
    let len = dtype.tensor_bytes(shape).expect("whole bytes");
    let header = json!({name: {"dtype": dtype.name(), "shape": shape, "data_offsets": [0, len]}});
    let head = safetensors(&header.to_string(), &[]);
    fs::write(path, &head).expect("can write");
    let file = File::options().append(true).open(path).expect("written");
    file.set_len(head.len() as u64 + len).expect("can set the length");
}

#[test]
fn a_row_too_long_for_the_memory_is_named_with_what_it_needs() {
    let desk = Desk::new();
    let pack = |cols: u64| {
        sparse(&desk.path("m.safetensors"), "model.long.weight", Dtype::Bf16, &[2, cols]);
        let source = Source::open(&desk.path("m.safetensors")).expect("valid");
        let stop = After::stop(0);
        PackOptions::new()
            .with_max_ram(MIN_MAX_RAM)
            .pack_with(&source, &desk.path("out.uc"), &stop)
            .expect_err("too long, or stopped")
    };
    let e = pack(40_000_000);
    says(&e, &ErrorKind::InvalidArgument, &["model.long.weight", "max-ram of 128 MiB", "MiB"]);
    // What it asks for is enough, and what fits begins: the least row that doesn't fit is near.
    let needed: u64 = e.message().rsplit(' ').nth(1).and_then(|n| n.parse().ok()).expect("a size");
    assert!((129..1024).contains(&needed), "{e}");
    let (mut fits, mut beyond) = (1 << 20, 40_000_000);
    while beyond - fits > 1 << 16 {
        let middle = u64::midpoint(fits, beyond);
        match pack(middle).kind() {
            ErrorKind::InvalidArgument => beyond = middle,
            ErrorKind::Cancelled => fits = middle,
            other => panic!("{other:?} at {middle} columns"),
        }
    }
    // 96 MiB over the base, in which a row is held as source, values and result.
    assert!((4 << 20..24 << 20).contains(&beyond), "{beyond}");
    assert_eq!(desk.names(), ["m.safetensors"]);
}

/// The limit is half as much again as the work was measured to need, and too little for the whole
/// tensor beside the program's code and stacks.
#[cfg(target_os = "linux")]
#[test]
fn a_tensor_larger_than_the_memory_is_packed_verified_and_unpacked() {
    let desk = Desk::new();
    let mib = 96;
    sparse(&desk.path("m.safetensors"), "model.large", Dtype::I32, &[mib << 8, 1 << 10]);
    let limit = format!("ulimit -v {}", 116 << 10);
    let run = |args: &[&str]| {
        let all = args.iter().copied().chain(["--max-ram", "128M", "-j", "2", "-q"]);
        desk.run_within(&limit, &all.collect::<Vec<_>>())
    };
    run(&["pack", "m.safetensors", "-o", "m.uc", "--raw-all"]).expect(0);
    run(&["verify", "m.uc", "--fast"]).expect(0);
    // Unpacking decodes, hashes and compares.
    run(&["unpack", "m.uc", "-o", "out"]).expect(0);
    let source = Source::open(&desk.path("m.safetensors")).expect("valid");
    let again = Source::open(&desk.path("out/m.safetensors")).expect("unpacked");
    assert_eq!(again.bytes(), source.bytes());
}
