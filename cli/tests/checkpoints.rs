//! Checkpoints as they are met: larger than memory, cut into shards, damaged, changing, hostile; and
//! disks that are full. What the library and `uc` make of them, and what they leave behind.

#[path = "../../tests/support/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use ultracompress::codec::PlaneCounts;
use ultracompress::edit::ReshardOptions;
use ultracompress::format::{Attachment, AttachmentKind, Index, PartKind, TensorEntry};
use ultracompress::pack::{Decision, PackOptions, PackReport, Recipe};
use ultracompress::source::Source;
use ultracompress::unpack::UnpackOptions;
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodeOptions, EncodedTensor, Encoding, Error, ErrorKind,
    Limit, Limits, MIN_MAX_RAM, Manifest, Pack, PackWriter, PlaneParts, Progress, ReadAt, Role,
    Rule, StoredFile, VerifyOptions,
};

use random::{Rng, size};

// ---- Checkpoints ------------------------------------------------------------------------------

#[derive(Clone)]
struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(name: &'static str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Self {
        assert_eq!(dtype.tensor_bytes(shape), Some(bytes.len() as u64), "{name}");
        Self { name, dtype, shape: shape.to_vec(), bytes }
    }

    /// Finite values of few magnitudes.
    fn floats(name: &'static str, dtype: Dtype, shape: &[u64], seed: u64) -> Self {
        let (keep, set) = match dtype {
            Dtype::Bf16 => (0x83ff_83ff_83ff_83ff, 0x3c00_3c00_3c00_3c00),
            Dtype::F32 => (0x83ff_ffff_83ff_ffff, 0x3c00_0000_3c00_0000),
            _ => (0x803f_ffff_ffff_ffff, 0x3f80_0000_0000_0000),
        };
        let n = size(dtype.tensor_bytes(shape).expect("whole bytes"));
        Self::new(name, dtype, shape, Rng(seed).words(n, keep, set))
    }
}

/// A safetensors file with this header and this data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn write_weights<'a>(path: &Path, tensors: impl IntoIterator<Item = &'a Tensor>) {
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for t in tensors {
        let from = data.len();
        data.extend_from_slice(&t.bytes);
        let offsets = [from, data.len()];
        let entry = json!({"dtype": t.dtype.name(), "shape": t.shape, "data_offsets": offsets});
        header.insert(t.name.to_owned(), entry);
    }
    fs::write(path, safetensors(&Value::Object(header).to_string(), &data)).expect("can write");
}

/// Tensor `i` goes to safetensors shard `i % shards`.
fn write_shards(folder: &Path, tensors: &[Tensor], shards: usize) {
    let mut weight_map = serde_json::Map::new();
    for shard in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let own = || tensors.iter().skip(shard).step_by(shards);
        write_weights(&folder.join(&file), own());
        weight_map.extend(own().map(|t| (t.name.to_owned(), file.clone().into())));
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map }).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).expect("can write");
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(work)
}

fn raw_all() -> Recipe {
    let mut recipe = Recipe::default();
    recipe.raw_all = true;
    recipe
}

/// All files below a folder, temporary ones included, with their bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below it").to_owned();
                found.insert(name, fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

/// Everything that an error says, for a look at whether it says enough.
#[track_caller]
fn says(e: &Error, kind: &ErrorKind, parts: &[&str]) {
    assert_eq!(e.kind(), kind, "{e}");
    for part in parts {
        assert!(e.to_string().contains(part), "{part:?} is not in: {e}");
    }
}

// ---- The binary -------------------------------------------------------------------------------

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in: {}", self.stdout))
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is not in stderr: {}", self.stderr);
        self
    }

    #[track_caller]
    fn prints(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "{text:?} is not in stdout: {}", self.stdout);
        self
    }
}

/// A folder of the test's own.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("can write"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("can write");
        path
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("can write");
    }

    fn output(&self, mut command: Command) -> Ran {
        command.current_dir(self.0.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        let out = command.output().expect("it starts");
        Ran {
            code: out.status.code(),
            stdout: String::from_utf8(out.stdout).expect("UTF-8"),
            stderr: String::from_utf8(out.stderr).expect("UTF-8"),
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uc"));
        command.args(args);
        self.output(command)
    }

    /// Runs `uc` in a shell that said `limits` before.
    #[cfg(target_os = "linux")]
    fn run_within(&self, limits: &str, args: &[&str]) -> Ran {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")]);
        command.arg(env!("CARGO_BIN_EXE_uc")).args(args);
        // Address space that the allocator sets aside for each thread isn't memory in use.
        command.env("MALLOC_ARENA_MAX", "1");
        self.output(command)
    }

    /// Names in the folder, temporary ones included.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("a folder");
        let name = |e: std::io::Result<fs::DirEntry>| {
            e.expect("readable").file_name().into_string().expect("UTF-8")
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

// ---- Tensors larger than a tile ---------------------------------------------------------------

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

fn config() -> Vec<u8> {
    format!("{{\"note\": \"{}\"}}", "x".repeat(5000)).into_bytes()
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
        let out = desk.path(&format!("{threads}.uc"));
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
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    let mut kinds = [0; 3];
    for (t, planned) in large().iter().zip(&report.plan.tensors) {
        assert_eq!(t.name, planned.name);
        let options = EncodeOptions::new().with_role(planned.role).with_zstd_level(Some(3));
        let tensor = match &planned.decision {
            Decision::Raw => {
                kinds[0] += 1;
                EncodedTensor::raw(t.name, t.dtype, &t.shape, &t.bytes, &options)
            }
            Decision::Planes { planes, row_dims } => {
                kinds[1] += 1;
                let options = options.with_planes(*planes).with_row_dims(*row_dims).with_group(32);
                EncodedTensor::planes(t.name, t.dtype, &t.shape, &t.bytes, &options)
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
        let folder = desk.path(&format!("out-{threads}"));
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
        let view = pack.tensor(t.name).expect("packed");
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

/// A pack of one tensor whose rows have 3 to 8 planes, of which the first ones are longer than a chunk,
/// with rows that lie across the border of two chunks.
fn per_row_pack() -> Vec<u8> {
    let (rows, cols) = (1050u64, 8200u64);
    let mut rng = Rng(9);
    let counts: Vec<u8> = (0..rows).map(|_| 3 + rng.bytes(1)[0] % 6).collect();
    let counts = PlaneCounts::PerRow(counts);
    let row_bytes = size(cols / 8);
    let planes: Vec<Vec<u8>> = counts
        .rows_with(rows)
        .into_iter()
        .filter(|&n| n > 0)
        .map(|n| rng.bytes(size(n) * row_bytes))
        .collect();
    assert!(planes[0].len() > 1 << 20 && !(1usize << 20).is_multiple_of(row_bytes));
    let parts = PlaneParts {
        row_dims: 1,
        group: 0,
        counts,
        level_ids: [0; 6],
        scales: rng.words(size(rows) * 2, 0x007f_007f_007f_007f, 0x3c00_3c00_3c00_3c00),
        steps: vec![],
        planes,
    };
    let tensor =
        EncodedTensor::from_planes("w", Dtype::Bf16, &[rows, cols], Role::Body, parts, &[])
            .expect("valid");
    let mut manifest = Manifest::new("test");
    manifest.add_tensor("w", b"", "test");
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    writer.add_tensor(tensor).expect("memory");
    writer.finish(&manifest.to_bytes().expect("canonical")).expect("valid").1.into_inner()
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

// ---- Bounds of memory -------------------------------------------------------------------------

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
        let stop = Stop(AtomicU64::new(0));
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

/// Stops at once.
struct Stop(AtomicU64);

impl Progress for Stop {
    fn advance(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        true
    }
}

/// The limit is half as much again as the work was measured to need, and too little for the whole tensor
/// beside the program's code and stacks.
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

// ---- Shards -----------------------------------------------------------------------------------

/// Six tensors of some hundred KiB, two of them equal, in two safetensors shards that part the equal
/// ones; carried files.
fn tied() -> &'static [Tensor] {
    static ALL: OnceLock<Vec<Tensor>> = OnceLock::new();
    ALL.get_or_init(|| {
        let embedding = Tensor::floats("", Dtype::Bf16, &[300, 512], 20).bytes;
        let ids = |seed| Rng(seed).bytes(700 << 10);
        vec![
            Tensor::new("lm_head.weight", Dtype::Bf16, &[300, 512], embedding.clone()),
            Tensor::new("model.embed_tokens.weight", Dtype::Bf16, &[300, 512], embedding),
            Tensor::new("model.ids.a", Dtype::I32, &[175 << 10], ids(21)),
            Tensor::new("model.ids.b", Dtype::I32, &[175 << 10], ids(22)),
            Tensor::new("model.ids.c", Dtype::I32, &[175 << 10], ids(24)),
            Tensor::floats("model.layers.0.q_proj.weight", Dtype::Bf16, &[64, 64], 23),
        ]
    })
}

fn write_tied(folder: &Path) {
    write_shards(folder, tied(), 2);
    fs::write(folder.join("config.json"), config()).expect("can write");
    fs::create_dir_all(folder.join("1_Pooling")).expect("can write");
    fs::write(folder.join("1_Pooling/config.json"), b"{}").expect("can write");
}

const SHARDS: [&str; 4] =
    ["m-00001-of-00003.uc", "m-00002-of-00003.uc", "m-00003-of-00003.uc", "m.uc.index.json"];

/// A desk with the tied checkpoint in three shards, `m.uc.index.json`.
fn sharded() -> Desk {
    static FILES: OnceLock<BTreeMap<PathBuf, Vec<u8>>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let desk = Desk::new();
        write_tied(&desk.folder("source"));
        desk.folder("out");
        desk.run(&["pack", "source", "-o", "out/m.uc", "--shard-size", "1M", "-q"]).expect(0);
        files(&desk.path("out"))
    });
    assert!(files.keys().map(|p| p.to_str().expect("ASCII")).eq(SHARDS), "{:?}", files.keys());
    let desk = Desk::new();
    files.iter().for_each(|(name, bytes)| fs::write(desk.0.path().join(name), bytes).expect("can"));
    desk
}

#[test]
fn packing_into_shards_and_cutting_a_pack_give_the_same_files() {
    let desk = sharded();
    write_tied(&desk.folder("source"));
    desk.run(&["pack", "source", "-o", "one.uc", "-q"]).expect(0);
    let before = desk.read("one.uc");
    desk.folder("cut");
    let args = ["reshard", "one.uc", "-o", "cut/m.uc", "--shard-size", "1M", "--json"];
    let json = desk.run(&args).expect(0).json();
    assert_eq!(json["output"], "cut/m.uc.index.json");
    for (name, bytes) in files(&desk.path("cut")) {
        assert!(bytes == desk.read(name.to_str().expect("ASCII")), "{}", name.display());
    }
    assert_eq!(files(&desk.path("cut")).len(), 4);

    // And back: in one file, and by way of other shards.
    desk.run(&["reshard", "m.uc.index.json", "-o", "joined.uc", "-q"]).expect(0);
    assert!(desk.read("joined.uc") == before);
    desk.folder("other");
    let args = ["reshard", "m.uc.index.json", "-o", "other/n.uc", "--shard-size", "1500K", "-q"];
    desk.run(&args).expect(0);
    assert!(files(&desk.path("other")).len() == 3, "{:?}", files(&desk.path("other")).keys());
    desk.run(&["reshard", "other/n.uc.index.json", "-o", "again.uc", "-q"]).expect(0);
    assert!(desk.read("again.uc") == before);
    // Shards large enough for all make no shards.
    desk.run(&["reshard", "m.uc.index.json", "-o", "big.uc", "--shard-size", "1G", "-q"]).expect(0);
    assert!(desk.read("big.uc") == before);

    let same = desk.run(&["same", "m.uc.index.json", "one.uc", "--json"]).expect(0).json();
    assert_eq!(same["same"], true);
    desk.run(&["same", "other/n.uc.index.json", "m.uc.index.json"]).expect(0).prints("same\n");
    let roots: BTreeSet<String> = ["m.uc.index.json", "one.uc", "other/n.uc.index.json"]
        .map(|f| desk.run(&["info", f, "--json"]).expect(0).json()["decoded_root"].to_string())
        .into();
    assert_eq!(roots.len(), 1);
}

#[test]
fn a_sharded_pack_is_shown_verified_and_unpacked_as_one() {
    let desk = sharded();
    let info = desk.run(&["info", "m.uc.index.json", "--json"]).expect(0).json();
    let shards = info["shards"].as_array().expect("a list");
    assert_eq!(shards.len(), 3);
    for (shard, name) in shards.iter().zip(SHARDS) {
        assert_eq!(shard["file"], name);
        assert_eq!(shard["bytes"], desk.read(name).len());
    }
    let counted: u64 = shards.iter().filter_map(|s| s["tensors"].as_u64()).sum();
    assert_eq!(counted, 6);
    desk.run(&["info", "m.uc.index.json"]).expect(0).prints(" in 3 shards").prints("carries ");
    let json = desk.run(&["verify", "m.uc.index.json", "--json"]).expect(0).json();
    assert_eq!((&json["tensors_checked"], &json["decoded"]), (&6.into(), &"ok".into()));
    assert_eq!(json["stored_root"], info["stored_root"]);
    for root in ["stored_root", "decoded_root"] {
        let root = info[root].as_str().expect("a digest");
        desk.run(&["verify", "m.uc.index.json", "--root", root, "-q"]).expect(0);
    }
    let json = desk.run(&["unpack", "m.uc.index.json", "-o", "out", "--json"]).expect(0).json();
    assert_eq!(json["decoded_root"], info["decoded_root"]);
    let unpacked = files(&desk.path("out"));
    let names: Vec<_> = unpacked.keys().map(|p| p.to_str().expect("ASCII")).collect();
    let expected = [
        "1_Pooling/config.json",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names, expected);
    let source = Source::open(&desk.path("out")).expect("the index fits the shards");
    assert_eq!(source.tensors().len(), 6);
    // One tensor needs its shard and the first.
    fs::remove_file(desk.path(SHARDS[1])).expect("there");
    let args = ["unpack", "m.uc.index.json", "-o", "some", "--tensor", "embed_tokens", "-q"];
    desk.run(&args).expect(0);
    desk.run(&["unpack", "m.uc.index.json", "-o", "all"]).expect(1).says(SHARDS[1]);
    assert!(!desk.path("all").exists());
}

#[test]
fn tied_weights_stay_together_however_a_pack_is_cut() {
    let desk = sharded();
    for limit in [1 << 20, 1500 << 10, 2 << 20] {
        let folder = desk.folder(&limit.to_string());
        let pack = Pack::open_path(desk.path("m.uc.index.json")).expect("valid");
        let options = ReshardOptions::new().with_shard_size(Some(limit));
        let report = options.reshard(&pack, &folder.join("t.uc")).expect("valid");
        assert_eq!(report.decoded_root, pack.decoded_root());
        let cut = Pack::open_path(folder.join("t.uc.index.json")).expect("valid");
        let index = cut.shard_index().expect("more than one shard");
        let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
        assert_eq!(index.weight_map[head], index.weight_map[embedding], "{limit}");
        let view = cut.tensor(embedding).expect("there");
        assert!(
            matches!(&view.entry().encoding, Encoding::Alias { target } if target == head),
            "{:?}",
            view.entry()
        );
        assert_eq!(view.entry().role, Role::Embedding);
        assert!(
            view.decode().expect("valid")
                == cut.tensor(head).expect("there").decode().expect("valid")
        );
    }
}

#[test]
fn one_shard_alone_is_examined_but_not_taken_for_the_pack() {
    let desk = sharded();
    for (i, name) in SHARDS[..3].iter().enumerate() {
        let lone = Desk::new();
        lone.write(name, desk.read(name));
        lone.run(&["info", name]).expect(0).prints(&format!(", shard {} of 3", i + 1));
        lone.run(&["info", name, "--json"]).expect(0);
        lone.run(&["verify", name]).expect(0).prints("consistent, not authenticated");
        for args in [
            &["unpack", name, "-o", "out"][..],
            &["unpack", name, "-o", "out", "--tensor", "weight|ids"],
            &["same", name, name],
            &["diff", name, name],
            &["reshard", name, "-o", "out.uc"],
        ] {
            let ran = lone.run(args).expect(2).says(&format!("is shard {} of 3", i + 1));
            ran.says("name the index file of the pack (*.uc.index.json)").says(name);
        }
        assert_eq!(lone.names(), [*name], "nothing is left");
    }
}

#[test]
fn damage_to_a_sharded_pack_names_the_file() {
    let desk = sharded();
    let [first, second, third, index] = SHARDS;
    let whole: BTreeMap<&str, Vec<u8>> = SHARDS.iter().map(|n| (*n, desk.read(n))).collect();
    let restore = || whole.iter().for_each(|(name, bytes)| desk.write(name, bytes));

    for name in [first, second, third] {
        fs::remove_file(desk.path(name)).expect("there");
        desk.run(&["verify", index]).expect(1).says(name).says("can't open");
        desk.run(&["info", index]).expect(1).says(name);
        restore();
    }
    fs::rename(desk.path(second), desk.path("m-00002-of-00004.uc")).expect("can rename");
    desk.run(&["verify", index]).expect(1).says(second);
    fs::remove_file(desk.path("m-00002-of-00004.uc")).expect("there");
    restore();

    desk.write(second, &whole[third]);
    desk.write(third, &whole[second]);
    let ran = desk.run(&["verify", index]).expect(1).says(second);
    ran.says("says that it is shard 3 of 3, the index lists it as 2 of 3");
    restore();

    // The shard of another pack in this one's place.
    desk.folder("other");
    write_tied(&desk.folder("source"));
    let args = ["pack", "source", "-o", "other/m.uc", "--shard-size", "1M", "--raw-all", "-q"];
    desk.run(&args).expect(0);
    desk.write(first, fs::read(desk.path("other").join(first)).expect("a pack of 3 shards"));
    desk.run(&["verify", index]).expect(3).says(first).says("another shard");
    restore();

    // One bit of each shard's data.
    for name in [first, second, third] {
        let mut bytes = whole[name].clone();
        bytes[1000] ^= 16;
        desk.write(name, bytes);
        let ran = desk.run(&["verify", index, "--json"]).expect(3);
        let failures = ran.json()["failures"].as_array().expect("a list").clone();
        let located = failures.iter().filter(|f| f["part"].is_string() && f["tensor"].is_string());
        assert!(located.clone().count() >= 1, "{failures:?}");
        assert!(located.clone().all(|f| f["file"] == *name), "{failures:?}");
        desk.run(&["verify", index]).expect(3).prints(&format!("{name}: "));
        desk.run(&["unpack", index, "-o", "out"]).expect(3).says(name);
        desk.run(&["reshard", index, "-o", "joined.uc"]).expect(3).says(name);
        assert!(!desk.path("out").exists() && !desk.path("joined.uc").exists());
        restore();
    }
    let cut = &whole[third];
    desk.write(third, &cut[..cut.len() - 64]);
    desk.run(&["verify", index]).expect(1).says(third).says("the preamble says");
    restore();

    for text in [&b""[..], b"not JSON", b"{}", b"[]", "[".repeat(100_000).as_bytes()] {
        desk.write(index, text);
        desk.run(&["verify", index]).expect(1).says(index);
        desk.run(&["unpack", index, "-o", "out"]).expect(1).says(index);
    }
    fs::remove_file(desk.path(index)).expect("there");
    desk.folder(index);
    desk.run(&["info", index]).expect(1).says(index).says("is a folder");
}

#[test]
fn shards_too_small_are_a_usage_error() {
    let desk = sharded();
    write_weights(&desk.path("m.safetensors"), &tied()[..1]);
    let before = desk.names();
    for size in ["1048575", "512K", "0"] {
        let pack = ["pack", "m.safetensors", "-o", "o.uc", "--shard-size", size];
        desk.run(&pack).expect(2).says("at least 1048576");
        let reshard = ["reshard", "m.uc.index.json", "-o", "o.uc", "--shard-size", size];
        desk.run(&reshard).expect(2).says("at least 1048576");
    }
    desk.run(&["pack", "m.safetensors", "-o", "o.uc", "--shard-size", "5X"]).expect(2);
    assert_eq!(desk.names(), before);
}

#[test]
fn shards_and_index_are_replaced_only_by_force() {
    let made = sharded();
    write_tied(&made.folder("source"));
    made.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    let made = |name: &str| made.path(name).to_str().expect("UTF-8").to_owned();
    for taken in [SHARDS[0], SHARDS[2], SHARDS[3]] {
        let desk = Desk::new();
        desk.write(taken, b"precious");
        let source = made("source");
        let pack = ["pack", &source, "-o", "m.uc", "--shard-size", "1M", "-q"];
        let one = made("one.uc");
        let reshard = ["reshard", &one, "-o", "m.uc", "--shard-size", "1M", "-q"];
        for args in [pack, reshard] {
            desk.run(&args).expect(1).says(taken).says("already exists");
            assert_eq!(desk.names(), [taken], "nothing else is left");
            assert_eq!(desk.read(taken), b"precious");
        }
        for args in [pack, reshard] {
            desk.write(taken, b"precious");
            desk.run(&args.iter().copied().chain(["--force"]).collect::<Vec<_>>()).expect(0);
            assert_eq!(desk.names(), SHARDS);
            for name in SHARDS {
                assert!(desk.read(name) == fs::read(made(name)).expect("there"), "{name}");
            }
        }
    }
}

#[test]
fn a_sharded_pack_in_its_source_folder_can_be_made_again_with_equal_bytes() {
    let desk = Desk::new();
    write_tied(&desk.folder("source"));
    let args = ["pack", "source", "-o", "source/m.uc", "--shard-size", "1M", "--raw-all", "-q"];
    desk.run(&args).expect(0);
    let first = files(&desk.path("source"));
    let args: Vec<&str> = args.iter().copied().chain(["--force"]).collect();
    desk.run(&args).expect(0);
    let again = files(&desk.path("source"));
    assert_eq!(first.keys().collect::<Vec<_>>(), again.keys().collect::<Vec<_>>());
    for (name, bytes) in &first {
        assert!(*bytes == again[name], "{} changed", name.display());
    }
}

#[test]
fn files_that_only_resemble_shards_are_no_obstacle() {
    let desk = Desk::new();
    write_tied(&desk.folder("source"));
    desk.write("m.probe", b"mine");
    let args = ["pack", "source", "-o", "m.uc", "--shard-size", "1M", "--raw-all", "-q"];
    desk.run(&args).expect(0);
    assert_eq!(desk.read("m.probe"), b"mine");
}

#[cfg(unix)]
#[test]
fn shards_get_only_names_that_an_index_can_list() {
    let desk = sharded();
    let before = desk.names();
    for name in [".uc", "a:b.uc", "a\\b.uc", "a\nb.uc"] {
        let args = ["reshard", "m.uc.index.json", "-o", name, "--shard-size", "1M"];
        desk.run(&args).expect(2).says("shards can't be called after");
        assert_eq!(desk.names(), before, "{name:?}");
    }
    // One file may be called as the file system likes.
    desk.run(&["reshard", "m.uc.index.json", "-o", "a:b.uc", "-q"]).expect(0);
    desk.run(&["verify", "a:b.uc", "--fast", "-q"]).expect(0);
}

#[test]
fn shards_never_replace_the_pack_that_they_are_cut_from() {
    let desk = sharded();
    let before = files(desk.0.path());
    for size in ["1M", "1500K"] {
        let args = ["reshard", "m.uc.index.json", "-o", "m.uc", "--shard-size", size, "--force"];
        desk.run(&args).expect(1).says("output is the input");
        assert!(files(desk.0.path()) == before, "{size}");
    }
}

// ---- What travels through a reshard -----------------------------------------------------------

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.bytes().map(|b| char::from(b).to_digit(16).expect("hex")).collect();
    digits.chunks(2).map(|d| u8::try_from(d[0] * 16 + d[1]).expect("a byte")).collect()
}

#[test]
fn every_valid_container_keeps_all_it_holds_when_it_is_written_again() {
    let folder =
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join("spec/vectors/container/valid");
    let mut seen = BTreeSet::new();
    for (name, text) in files(&folder) {
        let vector: Value = serde_json::from_slice(&text).expect("JSON");
        let bytes = unhex(vector["input"].as_str().expect("hexadecimal"));
        let before = Container::open(bytes).expect("valid");
        if before.preamble().is_sharded() {
            continue;
        }
        let index = before.index().clone();
        // A vector may set the two optional bits for what isn't there; a writer sets those of what is (UC-HDR-5).
        let residual =
            |t: &TensorEntry| t.parts.iter().any(|p| p.kind == PartKind::Residual && p.optional);
        let residuals = u64::from(index.tensors.iter().any(residual));
        let known = residuals | u64::from(!index.overlays.is_empty()) << 1;
        let features = before.preamble().optional_features & !3 | known;
        let attachments = before.attachments().expect("valid");
        let manifest = before.manifest_bytes().expect("valid");
        let pack = Pack::from(before);
        let desk = Desk::new();
        ReshardOptions::new().reshard(&pack, &desk.path("out.uc")).expect("valid");
        let after = Container::open(desk.read("out.uc")).expect("valid");
        let report = VerifyOptions::new().verify(&after).expect("readable");
        assert!(report.is_ok(), "{}: {:?}", name.display(), report.failures);
        assert_eq!(after.preamble().decoded_root, pack.decoded_root(), "{}", name.display());
        assert_eq!(after.preamble().optional_features, features, "{}", name.display());
        assert_eq!(after.attachments().expect("valid"), attachments, "{}", name.display());
        assert_eq!(after.manifest_bytes().expect("valid"), manifest, "{}", name.display());
        // Parts may lie elsewhere; their kinds and checksums stay.
        let moved = |index: &Index| {
            let mut index = index.clone();
            let tensors = index.tensors.iter_mut().flat_map(|t| &mut t.parts);
            let parts = tensors.chain(index.files.iter_mut().flat_map(|f| &mut f.parts));
            let overlays = index.overlays.iter_mut().flat_map(|o| &mut o.parts);
            parts.chain(overlays).for_each(|part| part.offset = 0);
            // The names of tables only put them in order.
            index.levels.iter_mut().for_each(|table| table.name.clear());
            index
        };
        assert_eq!(moved(after.index()), moved(&index), "{}", name.display());
        seen.insert(name.display().to_string());
    }
    for name in ["unknown-optional-record", "unknown-optional-part", "attachments", "files"] {
        assert!(seen.contains(&format!("{name}.json")), "{name} is not in {seen:?}");
    }
}

/// The container with the optional record of a vector added, its part behind the others. The stored root
/// stays that of before.
fn with_future_record(file: &[u8]) -> Vec<u8> {
    let vector = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .join("spec/vectors/container/valid/unknown-optional-record.json");
    let vector: Value = serde_json::from_slice(&fs::read(vector).expect("there")).expect("JSON");
    let vector = unhex(vector["input"].as_str().expect("hexadecimal"));
    let words = |file: &[u8]| {
        [32, 40, 48, 56, 64]
            .map(|at| size(u64::from_le_bytes(file[at..at + 8].try_into().unwrap())))
    };
    let [_, offset, len, ..] = words(&vector);
    let mut record = vector[offset + len - 72..offset + len].to_vec();
    let part = size(u64::from_le_bytes(record[40..48].try_into().expect("8 bytes")));
    let payload = vector[part..part + 64].to_vec();

    let [core, offset, len, manifest, manifest_len] = words(file);
    record[40..48].copy_from_slice(&(offset as u64).to_le_bytes());
    let padded = |mut out: Vec<u8>| {
        out.resize(out.len().next_multiple_of(64), 0);
        out
    };
    let mut out = [&file[..offset], &payload[..], &file[offset..offset + len], &record].concat();
    out = padded(out);
    let new_manifest = out.len();
    out.extend_from_slice(&file[manifest..manifest + manifest_len]);
    out = padded(out);
    let new_core = out.len();
    out.extend_from_slice(&file[core..]);
    let records = u32::from_le_bytes(file[72..76].try_into().expect("4 bytes"));
    out[72..76].copy_from_slice(&(records + 1).to_le_bytes());
    for (at, value) in
        [(32, new_core), (40, offset + 64), (48, len + 72), (56, new_manifest), (160, out.len())]
    {
        out[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
    }
    patched(&out, 0, &file[..8])
}

#[test]
fn attachments_and_records_of_the_future_stay_with_the_first_shard() {
    let mut manifest = Manifest::new("test");
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        let bytes = Rng(seed).bytes(600 << 10);
        manifest.add_tensor(name, &bytes, "test");
        let n = bytes.len() as u64;
        let tensor = EncodedTensor::raw(name, Dtype::U8, &[n], &bytes, &EncodeOptions::new());
        writer.add_tensor(tensor.expect("valid")).expect("memory");
    }
    let attachments: Vec<Attachment> = [
        (AttachmentKind::Receipt, "r"),
        (AttachmentKind::Signature, "s"),
        (AttachmentKind::Unknown(77), "u"),
    ]
    .map(|(kind, name)| Attachment { kind, name: name.into(), data: name.repeat(99).into() })
    .into();
    attachments.iter().for_each(|a| writer.add_attachment(a.clone()));
    let file = writer.finish(&manifest.to_bytes().expect("canonical")).expect("valid").1;

    let desk = Desk::new();
    let future = with_future_record(file.get_ref());
    desk.write("one.uc", &future);
    desk.run(&["reshard", "one.uc", "-o", "m.uc", "--shard-size", "1M", "-q"]).expect(0);
    let cut = Pack::open_path(desk.path("m.uc.index.json")).expect("valid");
    assert_eq!(cut.containers().len(), 3);
    assert_eq!(cut.attachments().expect("valid"), attachments);
    assert_eq!(cut.containers()[1].attachments().expect("none"), []);
    let report = VerifyOptions::new().verify_pack(&cut).expect("readable");
    assert!(report.is_ok(), "{:?}", report.failures);
    desk.run(&["info", "m.uc.index.json"]).expect(0).prints("attached Receipt r (99 bytes)");
    let record = b"\x06\0\x01\0\x03\0\0\0future\0\0\x01\x02\x03";
    for (name, holds) in [("m-00001-of-00003.uc", true), ("m-00002-of-00003.uc", false)] {
        let found = desk.read(name).windows(record.len()).any(|w| w == record);
        assert_eq!(found, holds, "{name}");
    }
    // Joined again it is the file of before, with the stored root that this one lacks.
    desk.run(&["reshard", "m.uc.index.json", "-o", "back.uc", "-q"]).expect(0);
    let mut back = desk.read("back.uc");
    back[128..160].copy_from_slice(&future[128..160]);
    assert!(patched(&back, 0, &future[..8]) == future);
    desk.run(&["verify", "back.uc", "-q"]).expect(0);
}

// ---- Sources ----------------------------------------------------------------------------------

#[cfg(unix)]
#[test]
fn a_cache_of_links_packs_to_the_bytes_of_a_plain_folder() {
    use std::os::unix::fs::symlink;
    let desk = Desk::new();
    let plain = desk.folder("plain");
    write_tied(&plain);
    let blobs = desk.folder("models--a--b/blobs");
    let snapshot = desk.folder("models--a--b/snapshots/0123abcd");
    for (i, (path, bytes)) in files(&plain).into_iter().enumerate() {
        let blob = format!("{i:064x}");
        fs::write(blobs.join(&blob), bytes).expect("can write");
        let link = snapshot.join(&path);
        fs::create_dir_all(link.parent().expect("below")).expect("can write");
        let up = "../".repeat(path.components().count() + 1);
        symlink(format!("{up}blobs/{blob}"), link).expect("can link");
    }
    let pack = |folder: &Path, name: &str| {
        let source = Source::open(folder).expect("valid");
        let options = PackOptions::new().with_recipe(raw_all());
        let report = options.pack(&source, &desk.path(name)).expect("packs");
        assert_eq!(report.left_out, [""; 0]);
        desk.read(name)
    };
    assert!(pack(&plain, "a.uc") == pack(&snapshot, "b.uc"));
    // The shard index inside the snapshot is found through its link too.
    let source = Source::open(&snapshot.join("model.safetensors.index.json")).expect("valid");
    assert_eq!(source.tensors().len(), tied().len());
}

#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_errors_and_linked_folders_stay_behind() {
    use std::os::unix::fs::symlink;
    let desk = Desk::new();
    let folder = desk.folder("model");
    write_weights(&folder.join("model.safetensors"), &tied()[5..]);
    symlink(&folder, folder.join("loop")).expect("can link");
    symlink("..", folder.join("up")).expect("can link");
    let source = Source::open(&folder).expect("links to folders are no content");
    assert_eq!(source.left_out(), ["loop", "up"]);
    // Through a loop the same folder is reached under a long name.
    Source::open(&folder.join("loop/loop/up/model")).expect("the same folder");

    for (name, target) in [("tokenizer.json", "../gone"), ("self", "self")] {
        symlink(target, folder.join(name)).expect("can link");
        let e = Source::open(&folder).expect_err("a link to nothing");
        says(&e, &ErrorKind::Io, &[name, "can't read"]);
        fs::remove_file(folder.join(name)).expect("there");
    }
    fs::remove_file(folder.join("model.safetensors")).expect("there");
    symlink("../gone", folder.join("model.safetensors")).expect("can link");
    desk.run(&["pack", "model", "-o", "out.uc"]).expect(1).says("model/model.safetensors");
    assert_eq!(desk.names(), ["model"]);
}

const A: &str = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;

/// The source is refused, by its folder and by its index file, with all of `parts` in the message.
#[track_caller]
fn refused_index(index: &str, parts: &[&str]) {
    let desk = Desk::new();
    let folder = desk.folder("model");
    let b = A.replace("\"a\"", "\"b\"");
    for (number, tensor) in [(1, A), (2, &b)] {
        let path = folder.join(format!("model-{number:05}-of-00002.safetensors"));
        fs::write(path, safetensors(&format!("{{{tensor}}}"), &[0; 4])).expect("can write");
    }
    let path = folder.join("model.safetensors.index.json");
    fs::write(&path, index).expect("can write");
    for path in [&folder, &path] {
        let e = Source::open(path).expect_err(index);
        says(&e, &ErrorKind::Source, parts);
        assert!(e.file().is_some_and(|f| !f.is_empty()), "{e}");
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    refused_index(
        &format!(r#"{{"weight_map":{{"a":"{two}","b":"{one}"}}}}"#),
        &["\"a\"", &format!("the index puts it in \"{two}\", it is in \"{one}\"")],
    );
    let missing = one.replace("00001", "00003");
    refused_index(&format!(r#"{{"weight_map":{{"a":"{one}","b":"{missing}"}}}}"#), &[&missing]);
    refused_index(
        &format!(r#"{{"weight_map":{{"a":"{two}","a":"{one}"}}}}"#),
        &["\"a\" stands there twice", "model.safetensors.index.json"],
    );
    refused_index(
        &format!(r#"{{"weight_map":{{"a":"{one}"}},"weight_map":{{"b":"{two}"}}}}"#),
        &["\"weight_map\" stands there twice"],
    );
    let deep = format!(r#"{{"weight_map":{{"a":"{one}"}},"metadata":{}"#, "[".repeat(100_000));
    refused_index(&deep, &["recursion limit", "model.safetensors.index.json"]);
    refused_index(r#"{"weight_map":{}}"#, &["names no tensors"]);
}

#[test]
fn metadata_that_stands_twice_is_refused() {
    let desk = Desk::new();
    for (header, hint) in [
        (format!(r#"{{"__metadata__":{{"k":"1","k":"2"}},{A}}}"#), "\"k\" stands there twice"),
        (
            format!(r#"{{"__metadata__":{{"k":"1"}},"__metadata__":{{"k":"1"}},{A}}}"#),
            "\"__metadata__\" stands there twice",
        ),
        (format!(r#"{{"__metadata__":{{"k":1}},{A}}}"#), "header"),
    ] {
        desk.write("m.safetensors", safetensors(&header, &[0; 4]));
        let e = Source::open(&desk.path("m.safetensors")).expect_err(hint);
        says(&e, &ErrorKind::Source, &["m.safetensors", hint]);
    }
}

#[test]
fn damaged_headers_say_where_and_what() {
    let desk = Desk::new();
    let b = |from, to| {
        format!(r#"{{{A},"b":{{"dtype":"U8","shape":[4],"data_offsets":[{from},{to}]}}}}"#)
    };
    let claim = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    for (bytes, parts) in [
        (safetensors(&b(5, 9), &[0; 9]), &["`b`", "invalid offset"][..]),
        (safetensors(&b(3, 7), &[0; 7]), &["`b`", "invalid offset"]),
        (safetensors(&b(4, 8), &[0; 7]), &["cut off", "at byte"]),
        (safetensors(&b(4, 8), &[0; 9]), &["bytes are left over", "at byte"]),
        (claim(1 << 63), &["header of 9223372036854775808 bytes", "the file has 10"]),
        (claim(u64::MAX), &["header of 18446744073709551615 bytes"]),
        (vec![], &["it has 0 bytes"]),
    ] {
        desk.write("m.safetensors", &bytes);
        let e = Source::open(&desk.path("m.safetensors")).expect_err(parts[0]);
        says(&e, &ErrorKind::Source, parts);
        says(&e, &ErrorKind::Source, &["m.safetensors"]);
        desk.run(&["pack", "m.safetensors", "-o", "m.uc"]).expect(1).says("m.safetensors: ");
    }
    assert_eq!(desk.names(), ["m.safetensors"]);
}

#[test]
fn weights_of_other_tools_are_refused_unless_kept_raw() {
    let desk = Desk::new();
    let folder = desk.folder("model");
    for sign in [
        "qzeros",
        "weight_scale_inv",
        "absmax",
        "SCB",
        "g_idx",
        "weight_packed",
        "weight.quant_state.bitsandbytes__nf4",
    ] {
        let name = format!("model.layers.0.q_proj.{sign}");
        let header = format!("{{{}}}", A.replace("\"a\"", &format!("\"{name}\"")));
        let weights = safetensors(&header, &[1; 4]);
        fs::write(folder.join("model.safetensors"), weights).expect("can write");
        let source = Source::open(&folder).expect("sound");
        let out = desk.path("out.uc");
        let e = PackOptions::new().pack(&source, &out).expect_err(sign);
        says(&e, &ErrorKind::Source, &["already quantized", &name, "--raw-all"]);
        assert_eq!(desk.names(), ["model"]);
        PackOptions::new().with_recipe(raw_all()).pack(&source, &out).expect("kept as it is");
        fs::remove_file(out).expect("packed");
    }
    let header = format!("{{{A}}}");
    fs::write(folder.join("model.safetensors"), safetensors(&header, &[1; 4])).expect("can write");
    // The config counts where only the weights are named.
    let config = r#"{"quantization_config":{"quant_method":"awq"}}"#;
    fs::write(folder.join("config.json"), config).expect("can write");
    for source in ["model", "model/model.safetensors"] {
        desk.run(&["pack", source, "-o", "out.uc"]).expect(1).says("already quantized").says("awq");
    }
    for (config, hint) in [
        ("[".repeat(100_000), "recursion limit"),
        ("not JSON".into(), "config.json"),
        // Of two keys neither wins.
        (
            r#"{"quantization_config":{"quant_method":"awq"},"quantization_config":null}"#.into(),
            "twice",
        ),
    ] {
        fs::write(folder.join("config.json"), &config).expect("can write");
        desk.run(&["pack", "model", "-o", "out.uc"]).expect(1).says("config.json").says(hint);
        assert_eq!(desk.names(), ["model"]);
    }
    fs::write(folder.join("config.json"), r#"{"quantization_config":null}"#).expect("can write");
    desk.run(&["pack", "model", "-o", "out.uc", "-q"]).expect(0);
}

#[test]
fn other_formats_of_the_weights_are_listed_and_stay_behind() {
    let desk = Desk::new();
    let folder = desk.folder("model");
    write_weights(&folder.join("model.safetensors"), &tied()[5..]);
    fs::create_dir_all(folder.join("onnx")).expect("can write");
    let left = [
        "consolidated.PTH",
        "flax_model.msgpack",
        "m-00001-of-00002.uc",
        "m.uc.index.json",
        "model.gguf",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
    ];
    for name in left {
        fs::write(folder.join(name), b"another format").expect("can write");
    }
    fs::write(folder.join("vocab.txt"), b"a\n").expect("can write");
    let ran = desk.run(&["pack", "model", "-o", "out.uc", "--json"]).expect(0);
    assert_eq!(ran.json()["left_out"], json!(left));
    let ran = ran.says("left out: ");
    left.iter().fold(ran, |ran, name| ran.says(name));
    let pack = Pack::open_path(desk.path("out.uc")).expect("valid");
    let carried: Vec<_> = pack.files().iter().map(|f| f.path.as_str()).collect();
    assert_eq!(carried, ["vocab.txt"]);
    let listed: Vec<_> =
        pack.manifest().expect("valid").files.into_iter().map(|f| f.path).collect();
    assert_eq!(listed, ["model.safetensors", "vocab.txt"]);
}

// ---- Sources that change ----------------------------------------------------------------------

/// Changes a file at the moment the scan has read everything, or has read a carried file.
struct Meddler<'a> {
    source_bytes: u64,
    scanned: AtomicU64,
    idle: AtomicU64,
    carried: bool,
    change: &'a (dyn Fn() + Sync),
}

impl Progress for Meddler<'_> {
    fn advance(&self, bytes: u64) {
        let scanned = self.scanned.fetch_add(bytes, Ordering::SeqCst) + bytes;
        // A carried file is asked about before it is read and again before its end is seen.
        let idle = u64::from(bytes == 0);
        let idle = self.idle.fetch_add(idle, Ordering::SeqCst) + idle;
        let now = match self.carried {
            true => bytes == 0 && idle == 2,
            false => bytes > 0 && scanned == self.source_bytes,
        };
        if now {
            (self.change)();
        }
    }
}

#[track_caller]
fn meddled(carried: bool, change: impl Fn(&Path) + Sync) -> Error {
    let desk = Desk::new();
    let folder = desk.folder("model");
    let mut tensors = tied()[2..3].to_vec();
    tensors.push(tied()[5].clone());
    write_weights(&folder.join("model.safetensors"), &tensors);
    fs::write(folder.join("vocab.txt"), vec![b'a'; 3000]).expect("can write");
    let source = Source::open(&folder).expect("valid");
    let meddler = Meddler {
        source_bytes: source.bytes(),
        scanned: AtomicU64::new(0),
        idle: AtomicU64::new(0),
        carried,
        change: &|| change(&folder),
    };
    let packed = PackOptions::new().pack_with(&source, &desk.path("out.uc"), &meddler);
    assert_eq!(desk.names(), ["model"], "no output is left");
    packed.expect_err("the source changed")
}

/// Writes over bytes of a file, `from_end` before its end.
fn overwrite(path: &Path, from_end: u64, bytes: &[u8]) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = File::options().write(true).open(path).expect("there");
    let len = file.metadata().expect("there").len();
    file.seek(SeekFrom::Start(len - from_end)).expect("within it");
    file.write_all(bytes).expect("can write");
}

fn shorten(path: &Path, by: u64) {
    let file = File::options().write(true).open(path).expect("there");
    let len = file.metadata().expect("there").len();
    file.set_len(len - by).expect("can shorten");
}

#[test]
fn a_source_that_changes_meanwhile_is_noticed() {
    let weights = |folder: &Path| folder.join("model.safetensors");
    let planes = tied()[5].name;
    let end = tied()[5].bytes.len() as u64;
    // Of a quantized tensor, to another number and to none; of one kept as it is.
    let e = meddled(false, |f| overwrite(&weights(f), 1, &[0x3b]));
    says(&e, &ErrorKind::Source, &[planes, "changed while it was packed"]);
    let e = meddled(false, |f| overwrite(&weights(f), 2, &[0xff, 0x7f]));
    says(&e, &ErrorKind::Source, &[planes, "changed while it was packed", "element 4095"]);
    let e = meddled(false, |f| {
        let byte = tied()[2].bytes.last().expect("not empty") ^ 1;
        overwrite(&weights(f), end + 1, &[byte]);
    });
    says(&e, &ErrorKind::Source, &[tied()[2].name, "changed while it was packed"]);
    let e = meddled(false, |f| shorten(&weights(f), 1));
    says(&e, &ErrorKind::Source, &["model.safetensors", "changed while it was read"]);
}

#[test]
fn a_header_that_changes_between_opening_and_reading_is_noticed() {
    let desk = Desk::new();
    let file = desk.path("model.safetensors");
    write_weights(&file, &tied()[2..4]);
    let bytes = fs::read(&file).expect("written");
    // The first digit of a shape or an offset: what stands where changes, the length doesn't.
    let digit = bytes.iter().position(u8::is_ascii_digit).expect("a shape");
    let at = digit.max(8 + bytes[8..].iter().position(u8::is_ascii_digit).expect("a shape"));
    for change in [&b"7"[..], b" "] {
        let source = Source::open(&file).expect("valid");
        let mut changed = bytes.clone();
        changed[at..at + 1].copy_from_slice(change);
        fs::write(&file, &changed).expect("can write");
        let e = PackOptions::new().pack(&source, &desk.path("out.uc")).expect_err("changed");
        says(&e, &ErrorKind::Source, &["model.safetensors", "changed while it was read"]);
        fs::write(&file, &bytes).expect("can write");
    }
    assert_eq!(desk.names(), ["model.safetensors"]);
}

#[test]
fn a_pack_is_not_called_like_an_index_file() {
    let desk = Desk::new();
    write_weights(&desk.path("model.safetensors"), &tied()[2..4]);
    for size in [&[][..], &["--shard-size", "1M"]] {
        let mut args = vec!["pack", "model.safetensors", "-o", "m.uc.index.json"];
        args.extend(size);
        desk.run(&args).expect(2).says("m.uc.index.json").says("index file");
    }
    assert_eq!(desk.names(), ["model.safetensors"]);
}

#[test]
fn a_carried_file_that_changes_meanwhile_is_noticed() {
    let e = meddled(true, |f| overwrite(&f.join("vocab.txt"), 7, b"b"));
    says(&e, &ErrorKind::Source, &["vocab.txt", "changed while it was packed"]);
    let e = meddled(true, |f| shorten(&f.join("vocab.txt"), 1));
    assert!(matches!(e.kind(), ErrorKind::Truncated { .. }), "{e}");
    assert_eq!(e.file(), Some("vocab.txt"), "{e}");
    let e = meddled(true, |f| fs::remove_file(f.join("vocab.txt")).expect("there"));
    says(&e, &ErrorKind::Io, &["vocab.txt", "can't read"]);
}

// ---- Outputs ----------------------------------------------------------------------------------

#[cfg(unix)]
#[test]
fn outputs_that_are_inputs_under_another_name_are_refused() {
    use std::os::unix::fs::symlink;
    let desk = sharded();
    let folder = desk.folder("model");
    write_weights(&folder.join("model.safetensors"), &tied()[5..]);
    fs::write(folder.join("config.json"), b"{}").expect("can write");
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    symlink("model/model.safetensors", desk.path("weights")).expect("can link");
    symlink("model/config.json", desk.path("config")).expect("can link");
    symlink("one.uc", desk.path("link.uc")).expect("can link");
    let before = files(desk.0.path());
    for (args, says) in [
        (&["pack", "model/model.safetensors", "-o", "weights"][..], "output is the input"),
        (&["pack", "weights", "-o", "./model/./model.safetensors"], ""),
        (&["pack", "model", "-o", "weights"], "output is a file of the source"),
        (&["pack", "model", "-o", "config"], "output is a file of the source"),
        (&["pack", "model", "-o", "model/."], "output is the input"),
        (&["reshard", "one.uc", "-o", "link.uc"], "output is the input"),
        (&["reshard", "link.uc", "-o", "./one.uc"], "output is the input"),
        (&["unpack", "one.uc", "-o", "link.uc"], "output is the input"),
        (&["unpack", "one.uc", "-o", "./one.uc"], "output is the input"),
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--force"]).collect();
        desk.run(&args).expect(1).says(says);
        assert!(files(desk.0.path()) == before, "{args:?} changed something");
    }
}

#[test]
fn outputs_in_no_folder_or_over_a_folder_are_refused() {
    let desk = sharded();
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    write_weights(&desk.path("m.safetensors"), &tied()[5..]);
    desk.folder("taken");
    let before = desk.names();
    for (args, says) in [
        (&["pack", "m.safetensors", "-o", "no/such/out.uc"][..], "no/such: can't write here"),
        (&["pack", "m.safetensors", "-o", "no/out.uc", "--shard-size", "1M"], "can't write here"),
        (&["reshard", "one.uc", "-o", "no/out.uc"], "no: can't write here"),
        (&["unpack", "one.uc", "-o", "no/out"], "no: can't write here"),
        (&["pack", "m.safetensors", "-o", "taken", "--force"], "taken: is a folder"),
        (&["reshard", "one.uc", "-o", "taken", "--force"], "taken: is a folder"),
        (&["unpack", "one.uc", "-o", "m.safetensors"], "m.safetensors: exists and is no folder"),
    ] {
        desk.run(args).expect(1).says(says);
        assert_eq!(desk.names(), before, "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let desk = sharded();
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    write_weights(&desk.path("m.safetensors"), &tied()[5..]);
    let folder = desk.folder("locked");
    let mode = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("mine");
    mode(0o555);
    // Permissions don't bind everyone.
    if File::create(folder.join("probe")).is_err() {
        for args in [
            &["pack", "m.safetensors", "-o", "locked/out.uc"][..],
            &["reshard", "one.uc", "-o", "locked/out.uc"],
            &["unpack", "one.uc", "-o", "locked/out"],
        ] {
            desk.run(args).expect(1).says("locked: can't write here");
        }
    }
    mode(0o755);
}

/// A file may grow to `512 * blocks` bytes: behind that a write fails as on a full disk.
#[cfg(target_os = "linux")]
fn full_after(blocks: u64) -> String {
    format!("trap '' XFSZ && ulimit -f {blocks}")
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_names_the_output_and_leaves_nothing() {
    let desk = sharded();
    write_tied(&desk.folder("source"));
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    let before = desk.names();
    for (args, output) in [
        (&["pack", "source", "-o", "out.uc", "--raw-all"][..], "out.uc"),
        (
            &["pack", "source", "-o", "out.uc", "--raw-all", "--shard-size", "1M"],
            "out-00001-of-00003.uc",
        ),
        (&["reshard", "one.uc", "-o", "out.uc"], "out.uc"),
        (&["reshard", "one.uc", "-o", "out.uc", "--shard-size", "1M"], "out-00001-of-00003.uc"),
        (&["unpack", "one.uc", "-o", "out"], "model-00001-of-00002.safetensors"),
    ] {
        // At the first write, in the middle, and in what is written last.
        for blocks in [0, 300, 1200] {
            let ran = desk.run_within(&full_after(blocks), args).expect(1);
            assert!(ran.stderr.contains("File too large"), "{args:?}: {}", ran.stderr);
            let named = format!("{output}: ");
            // Or the list of what is done.
            let named = ran.stderr.contains(&named) || ran.stderr.contains("out.uc.pack-state: ");
            assert!(named, "{args:?}, {blocks}: {}", ran.stderr);
            assert!(!ran.stderr.contains("one.uc: "), "the input is sound: {}", ran.stderr);
            assert_eq!(desk.names(), before, "{args:?}, {blocks}");
        }
    }
}

// ---- Claims -----------------------------------------------------------------------------------

#[cfg(target_os = "linux")]
const CLAIMS: [u64; 6] = [1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, u64::MAX, u64::MAX - 63];

/// Sets bytes of a container and makes the checksums of preamble and index right again.
fn patched(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    let word =
        |file: &[u8], at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"));
    let (start, len) = (word(&file, 40), word(&file, 48));
    let index = usize::try_from(start).ok().zip(usize::try_from(len).ok());
    let index = index.and_then(|(start, len)| file.get(start..start.checked_add(len)?));
    if let Some(crc) = index.map(crc32fast::hash) {
        file[76..80].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&file[..252]);
    file[252..256].copy_from_slice(&crc.to_le_bytes());
    file
}

#[cfg(target_os = "linux")]
#[test]
fn claimed_lengths_are_refused_without_their_memory() {
    let desk = Desk::new();
    let mut manifest = Manifest::new("test");
    manifest.add_tensor("w", &[1, 2, 3], "test");
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    let tensor = EncodedTensor::raw("w", Dtype::U8, &[3], &[1, 2, 3], &EncodeOptions::new());
    writer.add_tensor(tensor.expect("valid")).expect("memory");
    let file = writer.finish(&manifest.to_bytes().expect("canonical")).expect("valid").1;
    let file = file.into_inner();
    let pack = Container::open(&file[..]).expect("valid");
    // The part header and its chunk table end the index.
    let header = size(pack.preamble().index_offset + pack.preamble().index_len) - 40;
    let part = &pack.tensor("w").expect("written").entry().parts[0];
    assert_eq!(file[header + 8..header + 16], part.offset.to_le_bytes());
    assert!(patched(&file, 40, &file[40..48]) == file);
    let run = |bytes: &[u8]| {
        desk.write("m.uc", bytes);
        for args in
            [&["verify", "m.uc", "-j", "2"][..], &["unpack", "m.uc", "-o", "out", "-j", "2"]]
        {
            let ran = desk.run_within("ulimit -v 262144", args);
            let ran = ran.expect(1).says("m.uc: ");
            assert!(!ran.stderr.contains("allocat"), "{}", ran.stderr);
        }
        assert_eq!(desk.names(), ["m.uc"]);
    };
    for claim in CLAIMS {
        // Of the core, the index, the manifest, the file.
        for at in [32, 40, 48, 64, 160] {
            run(&patched(&file, at, &claim.to_le_bytes()));
        }
        // Where a part is, how long it is stored, how long its content is.
        for at in [8, 16, 24] {
            run(&patched(&file, header + at, &claim.to_le_bytes()));
        }
    }
    // Chunks of a part, records of the index.
    run(&patched(&file, header + 4, &u32::MAX.to_le_bytes()));
    run(&patched(&file, 72, &u32::MAX.to_le_bytes()));
}

/// A file that says it is longer than any disk: what a web server may claim.
#[derive(Debug)]
struct Endless(Vec<u8>, u64);

impl ReadAt for Endless {
    fn len_bytes(&self) -> Result<u64, Error> {
        Ok(self.1)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = usize::try_from(at).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0);
        }
        Ok(())
    }
}

#[test]
fn an_endless_manifest_is_refused_by_its_length() {
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    let tensor = EncodedTensor::raw("w", Dtype::U8, &[3], &[1, 2, 3], &EncodeOptions::new());
    writer.add_tensor(tensor.expect("valid")).expect("memory");
    let file = writer.finish(b"{}").expect("not looked at").1.into_inner();
    let manifest_offset = u64::from_le_bytes(file[56..64].try_into().expect("8 bytes"));
    for len in [1 << 40, 1 << 62, (1 << 63) - (1 << 20)] {
        let end = manifest_offset + len;
        let mut bytes = patched(&file, 64, &len.to_le_bytes());
        bytes = patched(&bytes, 32, &end.to_le_bytes());
        bytes = patched(&bytes, 160, &end.to_le_bytes());
        let e = Container::open(Endless(bytes.clone(), end)).expect_err("too long");
        says(&e, &ErrorKind::LimitExceeded(Limit::ManifestBytes), &[&len.to_string()]);
        // Whoever lifts the limit is told what it would take.
        let limits = Limits::default().with_max_manifest_bytes(u64::MAX);
        let pack = Container::open_with(Endless(bytes, end), limits).expect("allowed");
        let e = VerifyOptions::new().verify(&pack).expect_err("too long");
        says(&e, &ErrorKind::InvalidArgument, &["max-ram", "needs at least"]);
    }
}

// ---- Content that grows -----------------------------------------------------------------------

/// 48 MiB of zeros are a few KiB of zstd.
#[cfg(target_os = "linux")]
#[test]
fn a_file_far_larger_than_its_pack_goes_by_in_pieces() {
    let desk = Desk::new();
    let zeros = vec![0; 48 << 20];
    let carried = StoredFile::new("zeros.bin", &zeros, Some(3)).expect("valid");
    drop(zeros);
    let mut manifest = Manifest::new("test");
    manifest.add_file(&carried);
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    writer.add_file(carried).expect("memory");
    let file = writer.finish(&manifest.to_bytes().expect("canonical")).expect("valid").1;
    assert!(file.get_ref().len() < 16 << 10, "{} bytes", file.get_ref().len());
    desk.write("m.uc", file.get_ref());

    let pack =
        Container::open_with(file.into_inner(), Limits::default().with_max_file_bytes(1 << 20));
    let pack = pack.expect("its files are not looked at");
    let entry = &pack.index().files[0];
    let e = pack.read_file(entry).expect_err("beyond the limit");
    says(&e, &ErrorKind::LimitExceeded(Limit::FileBytes), &["zeros.bin", "50331648", "1048576"]);

    // Too little for the content beside the program itself.
    let limit = format!("ulimit -v {}", 72 << 10);
    desk.run_within(&limit, &["verify", "m.uc", "-j", "2", "-q"]).expect(0);
    let unpack = ["unpack", "m.uc", "-o", "out", "-j", "2", "-q", "--max-ram", "128M"];
    desk.run_within(&limit, &unpack).expect(0);
    assert_eq!(fs::metadata(desk.path("out/zeros.bin")).expect("unpacked").len(), 48 << 20);
}

#[test]
fn content_that_breaks_its_own_digest_is_told_apart_from_a_limit() {
    let text = b"a".repeat(5000);
    let carried = StoredFile::new("a.txt", &text, None).expect("valid");
    let mut manifest = Manifest::new("test");
    manifest.add_file(&carried);
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    writer.add_file(carried).expect("memory");
    let file = writer.finish(&manifest.to_bytes().expect("canonical")).expect("valid").1;
    let limits = Limits::default().with_max_file_bytes(5000);
    let pack = Container::open_with(file.into_inner(), limits).expect("valid");
    assert!(pack.read_file(&pack.index().files[0]).expect("at the limit") == text);
    let mut entry = pack.index().files[0].clone();
    entry.sha256 = ultracompress::Digest([0; 32]);
    let e = pack.read_file(&entry).expect_err("another digest");
    says(&e, &ErrorKind::Integrity, &["a.txt", &Rule::FIL_1.to_string()]);
}
