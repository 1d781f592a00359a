//! Packs of several files, and what travels through a reshard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use ultracompress::edit::ReshardOptions;
use ultracompress::format::{Attachment, AttachmentKind, Index, PartKind, TensorEntry};
use ultracompress::source::Source;
use ultracompress::{Container, Dtype, Encoding, Pack, Role, VerifyOptions};

use crate::support::checkpoint::write_weights;
use crate::support::damage::{patched_anywhere, word};
use crate::support::folder::{Desk, files};
use crate::support::pack::NewPack;
use crate::support::random::{Rng, size};
use crate::support::vectors::valid_containers;
use crate::{SHARDS, sharded, tied, write_tied};

// ---- Shards -------------------------------------------------------------------------------------

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
    let before = files(desk.root());
    for size in ["1M", "1500K"] {
        let args = ["reshard", "m.uc.index.json", "-o", "m.uc", "--shard-size", size, "--force"];
        desk.run(&args).expect(1).says("output is the input");
        assert!(files(desk.root()) == before, "{size}");
    }
}

// ---- What travels through a reshard -------------------------------------------------------------

#[test]
fn every_valid_container_keeps_all_it_holds_when_it_is_written_again() {
    let mut seen = BTreeSet::new();
    for (name, bytes) in valid_containers() {
        let before = Container::open(bytes).expect("valid");
        if before.preamble().is_sharded() {
            continue;
        }
        let index = before.index().clone();
        // A vector may set the two optional bits for what isn't there; a writer sets those of what
        // is (UC-HDR-10).
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
        assert!(report.is_ok(), "{name}: {:?}", report.failures);
        assert_eq!(after.preamble().decoded_root, pack.decoded_root(), "{name}");
        assert_eq!(after.preamble().optional_features, features, "{name}");
        assert_eq!(after.attachments().expect("valid"), attachments, "{name}");
        assert_eq!(after.manifest_bytes().expect("valid"), manifest, "{name}");
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
        assert_eq!(moved(after.index()), moved(&index), "{name}");
        seen.insert(name);
    }
    for name in ["unknown-optional-record", "unknown-optional-part", "attachments", "files"] {
        assert!(seen.contains(name), "{name} is not in {seen:?}");
    }
}

/// The container with the optional record of a vector added, its part behind the others. The stored
/// root stays that of before.
fn with_future_record(file: &[u8]) -> Vec<u8> {
    let vector = valid_containers().remove("unknown-optional-record").expect("there");
    let words = |file: &[u8]| [32, 40, 48, 56, 64].map(|at| size(word(file, at)));
    let [_, offset, len, ..] = words(&vector);
    let mut record = vector[offset + len - 72..offset + len].to_vec();
    let part = size(word(&record, 40));
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
    patched_anywhere(&out, 0, &file[..8])
}

#[test]
fn attachments_and_records_of_the_future_stay_with_the_first_shard() {
    let mut pack = NewPack::new();
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        pack.add_raw(name, Dtype::U8, &[600 << 10], &Rng(seed).bytes(600 << 10));
    }
    let attachments: Vec<Attachment> = [
        (AttachmentKind::Receipt, "r"),
        (AttachmentKind::Signature, "s"),
        (AttachmentKind::Unknown(77), "u"),
    ]
    .map(|(kind, name)| Attachment { kind, name: name.into(), data: name.repeat(99).into() })
    .into();
    attachments.iter().for_each(|a| pack.writer.add_attachment(a.clone()));

    let desk = Desk::new();
    let future = with_future_record(&pack.bytes());
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
    assert!(patched_anywhere(&back, 0, &future[..8]) == future);
    desk.run(&["verify", "back.uc", "-q"]).expect(0);
}
