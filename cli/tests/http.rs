//! Packs behind a web server: what reading them costs, and what becomes of servers that misbehave.
//!
//! In a binary of its own, for the allocator remembers the largest piece that any thread asks for:
//! none of these tests may ask for as much as a server claims. Each has servers of its own, so they
//! run beside one another.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;

use ultracompress::codec::{PlaneCounts, PlaneLayout};
use ultracompress::format::{CHUNK_BYTES, PREAMBLE_BYTES, Part};
use ultracompress::pack::{Exact, PackOptions, Recipe};
use ultracompress::source::Source;
use ultracompress::storage::HttpFile;
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodedTensor, Encoding, Error, ErrorKind, Input, Limit, Pack,
    PlaneParts, ReadAt, Role, Rule, TensorEntry, VerifyOptions,
};

use support::allocator::{Counting, largest};
use support::checkpoint::{Tensor, write_weights};
use support::damage::seal_preamble;
use support::folder::{Desk, tiny_llama};
use support::pack::NewPack;
use support::planes::steps_and_planes;
use support::random::{Rng, size};
use support::range_server::{Count, Fault, RangeServer};
use support::uc::{Ran, tiny_pack as tiny};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// ---- Packs ------------------------------------------------------------------------------------

fn numbers(n: usize) -> Vec<u8> {
    Rng(1).bytes(n)
}

/// A pack with parts of several chunks: `raw` of 1024 columns, `planes` of 4096.
fn chunked() -> &'static [u8] {
    static PACK: OnceLock<Vec<u8>> = OnceLock::new();
    PACK.get_or_init(write_chunked)
}

fn write_chunked() -> Vec<u8> {
    const ROWS: usize = 2080;
    let mut pack = NewPack::new();
    pack.add_raw("raw", Dtype::I16, &[1600, 1024], &numbers(1600 * 1024 * 2));
    let shape = [ROWS as u64, 4096];
    let layout = PlaneLayout::new(&shape, 1, 0).expect("valid");
    let counts = PlaneCounts::Uniform(3);
    let (steps, planes) = steps_and_planes(&mut Rng(1), &layout, &counts);
    let scales = [0x80, 0x3f].repeat(ROWS);
    let parts =
        PlaneParts { row_dims: 1, group: 0, counts, level_ids: [0; 6], scales, steps, planes };
    let planes = EncodedTensor::from_planes("planes", Dtype::Bf16, &shape, Role::Body, parts, &[]);
    pack.add("planes", planes.expect("valid"), b"");
    pack.bytes()
}

/// Bytes of each large tensor of the sharded pack.
const SHARD_TENSOR: usize = 384 * 1024 * 2;

/// The files of a pack of three shards, whose names need care in addresses: one with `a.*` and
/// `norm`, one with `b.*`, one with `c.*`.
fn shards() -> &'static HashMap<String, Vec<u8>> {
    static FILES: OnceLock<HashMap<String, Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let desk = Desk::new();
        let large = numbers(SHARD_TENSOR + 2);
        // Others bytes each, as equal tensors are stored once.
        let of = |name, skip: usize| {
            let bytes = large[skip..skip + SHARD_TENSOR].to_vec();
            Tensor::new(name, Dtype::Bf16, &[384, 1024], bytes)
        };
        let norm = Tensor::new("a.norm", Dtype::Bf16, &[512], numbers(1024));
        let weights = desk.path("model.safetensors");
        write_weights(&weights, &[of("a.1", 0), of("b.1", 1), of("c.1", 2), norm]);
        let mut recipe = Recipe::default();
        (recipe.raw_all, recipe.zstd_level) = (true, 0);
        let options = PackOptions::new().with_recipe(recipe).with_shard_size(Some(1 << 20));
        let source = Source::open(&weights).expect("valid");
        let report = options.pack(&source, &desk.path("my model?.uc")).expect("valid");
        assert_eq!(report.files.len(), 4, "three shards and the index file");
        let read = |(path, _): &(PathBuf, u64)| {
            let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
            (name, fs::read(path).expect("packed"))
        };
        report.files.iter().map(read).collect()
    })
}

/// Bytes from the first part to the end of the last.
fn span(parts: &[Part]) -> u64 {
    let (first, last) = (&parts[0], &parts[parts.len() - 1]);
    last.offset + last.stored_len - first.offset
}

/// Requests and bytes that open a file.
fn opening(file: &[u8]) -> Count {
    let index = Container::open(file).expect("valid").preamble().index_len;
    Count { requests: 2, bytes: PREAMBLE_BYTES as u64 + index }
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { requests: self.requests + other.requests, bytes: self.bytes + other.bytes }
    }
}

fn one(bytes: u64) -> Count {
    Count { requests: 1, bytes }
}

fn manifest(file: &[u8]) -> Count {
    one(Container::open(file).expect("valid").preamble().manifest_len)
}

fn server(files: &[(&str, &[u8])]) -> RangeServer {
    let server = RangeServer::start().expect("a free port");
    for (path, bytes) in files {
        server.serve(path, Cursor::new(bytes.to_vec())).expect("memory");
    }
    server
}

/// A server with `bytes` as `model.uc`, and its address there.
fn serve(bytes: &[u8]) -> (RangeServer, String) {
    let server = server(&[("model.uc", bytes)]);
    let url = server.url("model.uc");
    (server, url)
}

/// The error of what must not succeed. Packs are too long to be printed where they do.
#[track_caller]
fn error<T>(result: Result<T, Error>) -> Error {
    result.err().expect("an error")
}

fn open(url: &str) -> Pack<Input> {
    Pack::open_path(url).expect("valid")
}

// ---- The binary -------------------------------------------------------------------------------

/// A run in a folder of its own, which is gone afterwards, and the names that it left there.
struct Alone {
    ran: Ran,
    left: Vec<String>,
}

impl Alone {
    #[track_caller]
    fn expect(self, code: i32) -> Ran {
        self.ran.expect(code)
    }

    /// Exit code, the one line of error with these texts, and nothing left on disk.
    #[track_caller]
    fn fails(self, code: i32, texts: &[&str]) {
        let ran = self.ran.expect(code);
        let line = ran.stderr.lines().last().unwrap_or_default();
        assert!(line.starts_with("error: "), "{}", ran.stderr);
        for text in texts {
            assert!(line.contains(text), "{text:?} is not in {line}");
        }
        assert_eq!(self.left, [""; 0], "nothing half-written");
    }
}

fn uc(args: &[&str]) -> Alone {
    let desk = Desk::new();
    let ran = desk.run(args);
    Alone { ran, left: desk.names() }
}

// ---- What reading costs -----------------------------------------------------------------------

#[test]
fn opening_costs_two_requests_and_each_tensor_one_more() {
    let (server, url) = serve(tiny());
    let (local, pack) = (Container::open(tiny()).expect("valid"), open(&url));
    assert_eq!(server.take_count("model.uc"), opening(tiny()));
    let Input::Http(file) = pack.containers()[0].reader() else { panic!("not over HTTP") };
    assert_eq!((file.url(), file.requests()), (&*url, 2));
    let mut kinds = [0; 3];
    for view in pack.tensors() {
        let read = file.bytes_read();
        assert!(
            view.decode().expect("valid") == local.tensor(view.name()).unwrap().decode().unwrap()
        );
        let (kind, stored) = match &view.entry().encoding {
            Encoding::Planes { .. } => (0, view.entry()),
            Encoding::Raw | Encoding::Coded { .. } => (1, view.entry()),
            Encoding::Alias { target } => (2, local.index().tensor(target).expect("there")),
        };
        kinds[kind] += 1;
        assert_eq!(server.take_count("model.uc"), one(span(&stored.parts)), "{}", view.name());
        assert_eq!(file.bytes_read() - read, span(&stored.parts));
    }
    assert!(kinds.iter().all(|&n| n > 0), "planes, raw, alias: {kinds:?}");
}

#[test]
fn a_rung_costs_its_planes() {
    let (server, url) = serve(tiny());
    let (local, pack) = (Container::open(tiny()).expect("valid"), open(&url));
    server.take_count("model.uc");
    let planes = |t: &TensorEntry| matches!(t.encoding, Encoding::Planes { planes: Some(5..), .. });
    let views: Vec<_> = pack.tensors().filter(|v| planes(v.entry())).collect();
    assert!(views.iter().any(|v| v.entry().parts.len() == 10), "one with eight planes");
    for view in views {
        let rung = DecodeOptions::new().with_planes(4);
        let expected = rung.decode(&local.tensor(view.name()).expect("there")).expect("valid");
        assert!(rung.decode(&view).expect("valid") == expected);
        // Scales, steps, planes 0 to 3.
        let read = &view.entry().parts[..6];
        assert_eq!(read[5].kind.name(), "plane 3");
        assert_eq!(server.take_count("model.uc"), one(span(read)), "{}", view.name());
        // Tile by tile, as the tool does it.
        let mut tiles = vec![];
        let collect = |tile: &[u8]| {
            tiles.extend_from_slice(tile);
            Ok(())
        };
        rung.decode_tiles(&view, collect).expect("valid");
        assert!(tiles == expected);
        assert_eq!(server.take_count("model.uc"), one(span(read)), "{}", view.name());
    }
}

#[test]
fn exact_tensors_cost_three_requests() {
    let desk = Desk::new();
    let source = Source::open(&tiny_llama()).expect("ours");
    let exact = PackOptions::new().with_exact(Exact::Residual);
    exact.pack(&source, &desk.path("exact.uc")).expect("packs");
    let bytes = &*desk.read("exact.uc").leak();
    let (server, url) = serve(bytes);
    let (local, pack) = (Container::open(bytes).expect("valid"), open(&url));
    server.take_count("model.uc");
    for view in pack.tensors().filter(|v| v.entry().encoding.name() == "planes") {
        let exact = DecodeOptions::new().with_exact(true);
        let expected = exact.decode(&local.tensor(view.name()).expect("there")).expect("valid");
        assert!(exact.decode(&view).expect("valid") == expected);
        // The residual's table of blocks, the planes, the residual.
        assert_eq!(server.take_count("model.uc").requests, 3, "{}", view.name());
        // The planes by themselves cost no more than before.
        view.decode().expect("valid");
        let planes = &view.entry().parts[..view.entry().parts.len() - 1];
        assert_eq!(server.take_count("model.uc"), one(span(planes)), "{}", view.name());
    }
}

#[test]
fn rows_cost_the_chunks_that_hold_them() {
    let (server, url) = serve(chunked());
    let (local, pack) = (Container::open(chunked()).expect("valid"), open(&url));
    server.take_count("model.uc");
    let cost = |name: &str, rows: Range<u64>| {
        let options = DecodeOptions::new().with_rows(rows);
        let [found, expected] = [
            options.decode(&pack.tensor(name).expect("there")),
            options.decode(&local.tensor(name).expect("there")),
        ];
        assert!(found.expect("valid") == expected.expect("valid"));
        server.take_count("model.uc")
    };
    // 512 rows a chunk: one in the middle, two neighbours, the rest.
    assert_eq!(cost("raw", 600..700), one(CHUNK_BYTES));
    assert_eq!(cost("raw", 500..520), one(2 * CHUNK_BYTES));
    assert_eq!(cost("raw", 1599..1600), one(64 * 2048));
    assert_eq!(cost("raw", 0..1600), one(1600 * 2048));
    assert_eq!(cost("raw", 7..7), Count::default());

    // 2048 rows a chunk: the first chunks of three planes lie apart, but the first near the scales;
    // the last rows begin where a chunk does.
    let scales = 2080 * 2;
    let first = Count { requests: 3, bytes: scales + 3 * CHUNK_BYTES };
    assert_eq!(cost("planes", 0..1), first);
    let last = Count { requests: 4, bytes: scales + 3 * 32 * 512 };
    assert_eq!(cost("planes", 2048..2080), last);
}

#[test]
fn long_reads_are_cut_into_requests() {
    let bytes = numbers(33 << 20);
    let (server, url) = serve(&bytes);
    let file = HttpFile::open(&url).expect("there");
    assert_eq!(file.len_bytes().expect("known"), bytes.len() as u64);
    assert_eq!(server.take_count("model.uc"), one(256));
    let mut found = vec![0; bytes.len() - 5];
    file.read_exact_at(5, &mut found).expect("there");
    assert!(found == bytes[5..]);
    let expected = Count { requests: 2, bytes: found.len() as u64 };
    assert_eq!(server.take_count("model.uc"), expected);
    let e = error(file.read_exact_at(bytes.len() as u64 - 4, &mut [0; 5]));
    assert!(matches!(e.kind(), ErrorKind::Truncated { .. }), "{e}");
    assert_eq!(server.take_count("model.uc").requests, 0);
}

#[test]
fn short_files_are_read_to_their_end() {
    for n in [1, 255, 256] {
        let (_server, url) = serve(&numbers(n));
        let file = HttpFile::open(&url).expect("there");
        assert_eq!(file.len_bytes().expect("known"), n as u64);
        let mut found = vec![0; n];
        file.read_exact_at(0, &mut found).expect("there");
        assert_eq!(found, numbers(n));
    }
    let (_server, url) = serve(b"");
    assert_eq!(HttpFile::open(&url).expect("there").len_bytes().expect("known"), 0);
    let e = error(Pack::open_path(&url));
    assert_eq!((e.kind(), e.file()), (&ErrorKind::Malformed(Rule::HDR_1), Some(&*url)));
    assert!(e.message().contains("the file is empty"), "{e}");
}

// ---- The tool ---------------------------------------------------------------------------------

/// What the tensors cost whose name contains `part`.
fn tensors(file: &[u8], part: &str) -> Count {
    let pack = Container::open(file).expect("valid");
    let wanted = pack.index().tensors.iter().filter(|t| t.name.contains(part));
    wanted.map(|t| one(span(&t.parts))).fold(Count::default(), std::ops::Add::add)
}

#[test]
fn info_verify_and_same_take_addresses() {
    let (server, url) = serve(tiny());
    let root = Container::open(tiny()).expect("valid").preamble().decoded_root.to_string();
    uc(&["info", &url]).expect(0).prints(&root).prints("carries config.json");
    assert_eq!(server.take_count("model.uc"), opening(tiny()) + manifest(tiny()));
    uc(&["verify", &url, "--root", &root]).expect(0).prints("in agreement with what was given");

    let desk = Desk::with_pack();
    let file = desk.path("model.uc");
    let file = file.to_str().expect("UTF-8");
    uc(&["same", &url, file]).expect(0).prints("same\n");
    uc(&["same", file, &url]).expect(0).prints("same\n");
    let pack = open(&url);
    assert!(VerifyOptions::new().verify_pack(&pack).expect("readable").is_ok());

    // An address is never taken for a checkpoint on disk.
    let weights = server.url("model.safetensors");
    server.serve("model.safetensors", Cursor::new(b"\x02\0\0\0\0\0\0\0{}")).expect("memory");
    uc(&["same", &weights, file]).fails(1, &[&weights, "looks like a safetensors file"]);
}

#[test]
fn unpack_fetches_the_tensors_that_match() {
    let (server, url) = serve(tiny());
    uc(&["unpack", &url, "-o", "out", "--tensor", "q_proj"]).expect(0).prints("out: ");
    let expected = opening(tiny()) + manifest(tiny()) + tensors(tiny(), "q_proj");
    assert!(expected.requests > 4, "several match");
    assert_eq!(server.take_count("model.uc"), expected);
    uc(&["unpack", &url, "-o", "out", "--tensor", "no such"]).fails(2, &["no tensor matches"]);
    uc(&["unpack", &url, "-o", "out"]).expect(0);
}

/// The shards on a server, with a query, and what each is called there.
fn shard_server() -> (RangeServer, String, [String; 3]) {
    let server = RangeServer::start().expect("a free port");
    let place = |name: &str| name.replace(' ', "%20").replace('?', "%3F") + "?download=true";
    for (name, bytes) in shards() {
        server.serve(&place(name), Cursor::new(bytes)).expect("memory");
    }
    let names = [1, 2, 3].map(|n| place(&format!("my model?-0000{n}-of-00003.uc")));
    let url = server.url(&place("my model?.uc.index.json"));
    (server, url, names)
}

#[test]
fn unpack_opens_the_first_shard_and_those_with_tensors_that_match() {
    let (server, url, names) = shard_server();
    let shard = |n: usize| &*shards()[&format!("my model?-0000{n}-of-00003.uc")];
    let costs = |pattern: &str| {
        uc(&["unpack", &url, "-o", "out", "--tensor", pattern]).expect(0).prints("1 tensors");
        names.each_ref().map(|name| server.take_count(name))
    };
    let first = opening(shard(1)) + manifest(shard(1));
    let none = Count::default();
    assert_eq!(costs("b.1"), [first, opening(shard(2)) + tensors(shard(2), "b.1"), none]);
    assert_eq!(costs("c.1"), [first, none, opening(shard(3)) + tensors(shard(3), "c.1")]);
    assert_eq!(costs("a.norm"), [first + tensors(shard(1), "a.norm"), none, none]);
}

#[test]
fn whole_sharded_packs_are_read_from_addresses() {
    let (server, url, names) = shard_server();
    uc(&["verify", &url]).expect(0).prints("consistent");
    let pack = open(&url);
    pack.require_complete().expect("all shards are open");
    for name in &names {
        server.take_count(name);
    }
    let bytes = pack.tensor("b.1").expect("there").decode().expect("valid");
    assert!(bytes == numbers(SHARD_TENSOR + 1)[1..]);
    let counts = names.each_ref().map(|name| server.take_count(name));
    assert_eq!(counts, [Count::default(), one(SHARD_TENSOR as u64), Count::default()]);

    // A shard that isn't there is named.
    server.misbehave(&names[2], Fault::Status(404), ..);
    uc(&["info", &url]).fails(1, &[&server.url(&names[2]), "404"]);
    uc(&["unpack", &url, "-o", "out", "--tensor", "b.1"]).expect(0);
}

// ---- Servers that misbehave -------------------------------------------------------------------

/// A fault from the first request on, and what is said of it; and what is said when it begins only
/// after the pack was opened.
type Case = (Fault, ErrorKind, &'static str, &'static str);

fn lasting_faults() -> Vec<Case> {
    let len = tiny().len() as u64;
    let io = |fault, at_open, later| (fault, ErrorKind::Io, at_open, later);
    vec![
        io(Fault::IgnoresRanges, "ignores range requests", "ignores range requests"),
        (
            Fault::Total(len + 64),
            ErrorKind::Malformed(Rule::HDR_6),
            "the preamble says",
            "answered with content-range",
        ),
        (
            Fault::Total(len - 64),
            ErrorKind::Truncated { needed: len - 64..len },
            "the preamble says",
            "answered with content-range",
        ),
        io(Fault::OtherRange, "no usable content-range", "answered with content-range"),
        io(Fault::NoContentRange, "no usable content-range", "content-range \"none\""),
        io(Fault::CutOff, "broke off after 128 of 256 bytes", "broke off after"),
        io(Fault::SendsMore(64), "announces 320 bytes", "announces"),
        // Waiting for the byte that never comes would take half a minute.
        io(Fault::AnnouncesMore, "announces 257 bytes", "announces"),
        io(Fault::Chunked(64), "more than the 256 bytes asked for", "more than the"),
        io(Fault::Status(500), "500 Internal Server Error (tried 3 times)", "500"),
        io(Fault::Status(404), "404 Not Found", "404 Not Found"),
        io(Fault::Status(403), "403 Forbidden", "403 Forbidden"),
        io(Fault::Gzip, "encoded as gzip", "encoded as gzip"),
        io(Fault::Redirect("model.uc"), "too many redirects", "too many redirects"),
        io(Fault::Redirect("nothing"), "404 Not Found", "404 Not Found"),
        io(Fault::Garbage, "not proper HTTP", "not proper HTTP"),
        io(Fault::NoAnswer, "(tried 3 times)", "(tried 3 times)"),
    ]
}

/// The library and the tool, with a fault from the beginning and with one that begins later.
fn meet((fault, kind, at_open, later): &Case) {
    let (server, url) = serve(tiny());
    server.misbehave("model.uc", fault.clone(), ..);
    let e = error(Pack::open_path(&url));
    assert_eq!((e.kind(), e.file()), (kind, Some(&*url)), "{fault:?}: {e}");
    assert!(e.to_string().starts_with(&url) && e.message().contains(at_open), "{fault:?}: {e}");
    uc(&["info", &url]).fails(1, &[&url, at_open]);

    server.misbehave("model.uc", fault.clone(), 2..);
    let pack = open(&url);
    let e = error(pack.tensor("lm_head.weight").expect("there").decode());
    assert_eq!((e.kind(), e.file()), (&ErrorKind::Io, Some(&*url)), "{fault:?}: {e}");
    assert!(e.message().contains(later), "{fault:?}: {e}");
    assert_eq!(e.tensor(), Some("lm_head.weight"));

    // Preamble, index and manifest are there, the tensors are not.
    server.misbehave("model.uc", fault.clone(), 3..);
    uc(&["unpack", &url, "-o", "out"]).fails(1, &[&url, later]);
}

#[test]
fn lasting_faults_are_named_and_leave_nothing_behind() {
    tiny();
    thread::scope(|scope| {
        for case in lasting_faults() {
            scope.spawn(move || meet(&case));
        }
    });
}

#[test]
fn a_server_that_is_gone_ends_the_run() {
    let desk = Desk::with_pack();
    let file = desk.path("model.uc");
    let file = file.to_str().expect("UTF-8");
    // With one thread, so that it is known which request fails.
    let end = |pack: &[u8], before: u64, args: &[&str]| {
        let (server, url) = serve(pack);
        server.misbehave("model.uc", Fault::Status(503), before..);
        let mut all = vec![args[0], &*url, "-j", "1"];
        all.extend(&args[1..]);
        uc(&all).fails(1, &[&url, "503"]);
        assert_eq!(server.take_count("model.uc").requests, before + 3, "{args:?}");
    };
    thread::scope(|scope| {
        scope.spawn(|| end(tiny(), 5, &["unpack", "-o", "out"]));
        scope.spawn(|| end(tiny(), 5, &["same", file]));
        scope.spawn(|| end(tiny(), 5, &["diff", file]));
        scope.spawn(|| end(chunked(), 4, &["verify"]));
    });
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let (server, url) = serve(tiny());
    server.misbehave("model.uc", Fault::Etag("\"second\""), 1..);
    let e = error(Pack::open_path(&url));
    assert_eq!((e.kind(), e.file()), (&ErrorKind::Io, Some(&*url)));
    assert!(e.message().contains("changed on the server"), "{e}");
    server.misbehave("model.uc", Fault::Etag("\"second\""), 5..);
    uc(&["unpack", &url, "-o", "out"]).fails(1, &[&url, "changed on the server"]);
    // Always the second is as good as always the first.
    server.misbehave("model.uc", Fault::Etag("\"second\""), ..);
    open(&url);
}

/// The values of `lm_head.weight`, read from memory.
fn lm_head() -> Vec<u8> {
    let pack = Container::open(tiny()).expect("valid");
    pack.tensor("lm_head.weight").expect("there").decode().expect("valid")
}

#[test]
fn passing_faults_pass() {
    let expected = &lm_head();
    thread::scope(|scope| {
        let breaks = [Fault::NoAnswer, Fault::HalfHead, Fault::CutOff];
        for fault in [503, 429].map(Fault::Status).into_iter().chain(breaks) {
            scope.spawn(move || {
                let (server, url) = serve(tiny());
                for at in 0..3 {
                    server.misbehave("model.uc", fault.clone(), at..=at);
                    let pack = open(&url);
                    let found = pack.tensor("lm_head.weight").expect("there").decode();
                    assert!(found.expect("valid") == *expected, "{fault:?} at {at}");
                    assert_eq!(server.take_count("model.uc").requests, 4, "{fault:?} at {at}");
                }
            });
        }
    });
}

#[test]
fn unusual_servers_are_understood() {
    for (fault, place) in [
        (Fault::ClosesAfter, "model.uc"),
        (Fault::Chunked(0), "model.uc"),
        // The range goes along with a redirection.
        (Fault::Redirect("elsewhere"), "elsewhere"),
    ] {
        let server = server(&[("model.uc", tiny()), ("elsewhere", tiny())]);
        let url = server.url("model.uc");
        server.misbehave("model.uc", fault.clone(), ..);
        let pack = open(&url);
        let view = pack.tensor("lm_head.weight").expect("there");
        assert!(view.decode().expect("valid") == lm_head(), "{fault:?}");
        let expected = opening(tiny()) + one(span(&view.entry().parts));
        assert_eq!(server.take_count(place), expected, "{fault:?}");
        uc(&["verify", &url]).expect(0);
    }
}

#[test]
fn addresses_that_lead_nowhere_are_named() {
    let (server, url) = serve(tiny());
    for url in [server.url("a b.uc"), "http://".into(), "http:///model.uc".into()] {
        let e = error(Pack::open_path(&url));
        assert_eq!((e.kind(), e.file()), (&ErrorKind::Io, Some(&*url)));
        assert!(e.message().contains("not a usable address"), "{e}");
        assert!(!e.message().contains("tried"), "it stays what it is: {e}");
    }
    drop(server);
    uc(&["info", &url]).fails(1, &[&url, "refused"]);
}

// ---- Damage and claims ------------------------------------------------------------------------

#[test]
fn damage_on_the_server_is_an_integrity_error() {
    let head = Container::open(tiny()).expect("valid");
    let part = &head.index().tensor("lm_head.weight").expect("there").parts[3];
    let mut damaged = tiny().to_vec();
    damaged[size(part.offset + part.stored_len / 2)] ^= 4;
    let (_server, url) = serve(&damaged);
    let pack = open(&url);
    let e = error(pack.tensor("lm_head.weight").expect("there").decode());
    assert_eq!((e.kind(), e.file()), (&ErrorKind::Integrity, Some(&*url)));
    assert_eq!((e.tensor(), e.part()), (Some("lm_head.weight"), Some(&*part.kind.name())));
    uc(&["unpack", &url, "-o", "out"]).fails(3, &[&url, "lm_head.weight"]);
    uc(&["unpack", &url, "-o", "out", "--tensor", "q_proj"]).expect(0);
    uc(&["verify", &url]).expect(3).prints("NOT OK").prints(&url);

    let mut damaged = tiny().to_vec();
    damaged[size(head.preamble().index_offset) + 20] ^= 4;
    let (_server, url) = serve(&damaged);
    uc(&["info", &url]).fails(3, &[&url, "checksum"]);
}

/// A preamble that claims a file of 2^60 bytes with an index of `index_len`.
fn claim(index_len: u64) -> Vec<u8> {
    const END: u64 = 1 << 60;
    let mut bytes = tiny()[..PREAMBLE_BYTES].to_vec();
    let index = END - 64 - index_len;
    for (at, value) in
        [(32, END), (40, index), (48, index_len), (56, END - 64), (64, 64), (160, END)]
    {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    seal_preamble(&mut bytes);
    bytes
}

#[test]
fn claims_cost_no_memory() {
    let open_claim = |index_len| {
        let (server, url) = serve(&claim(index_len));
        server.misbehave("model.uc", Fault::Total(1 << 60), ..);
        let e = error(Pack::open_path(&url));
        assert_eq!(e.file(), Some(&*url));
        uc(&["info", &url]).fails(1, &[&url, e.message()]);
        e
    };
    let e = open_claim(1 << 59);
    assert_eq!(*e.kind(), ErrorKind::LimitExceeded(Limit::IndexBytes), "{e}");
    // As long as an index may be, but the server has none.
    let e = open_claim(1 << 30);
    assert_eq!(*e.kind(), ErrorKind::Io, "{e}");
    assert!(e.message().contains("broke off after 0 of"), "{e}");
    let largest = largest();
    assert!(largest <= 128 << 20, "{largest} bytes at once");
}
