//! Sources that are linked, damaged, quantized by other tools, or changed while they are packed.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;
use ultracompress::pack::PackOptions;
use ultracompress::source::Source;
use ultracompress::{Error, ErrorKind, Pack, Progress};

use crate::support::checkpoint::{safetensors, write_weights};
use crate::support::folder::{Desk, files};
use crate::{raw_all, says, tied, write_tied};

// ---- Sources ------------------------------------------------------------------------------------

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

// ---- Sources that change ------------------------------------------------------------------------

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
    let planes = &*tied()[5].name;
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
    says(&e, &ErrorKind::Source, &[&tied()[2].name, "changed while it was packed"]);
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
