//! `unpack`, `same`, `diff`, and the exact rung there and back.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::checkpoint::header_of;
use crate::support::folder::{Desk, files, tiny_llama};
use crate::support::random::size;
use crate::support::uc::source;
use crate::{has_keys, verdicts};

#[test]
fn unpack_gives_a_folder_that_is_the_same_model() {
    let desk = Desk::with_pack();
    let json = desk.run(&["unpack", "model.uc", "-o", "out", "--json"]).expect(0).json();
    has_keys(&json, &["output", "tensors", "bytes", "decoded_root"]);
    let info = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    assert_eq!(json["decoded_root"], info["decoded_root"]);
    assert_eq!(json["tensors_compared"], json["tensors"]);
    let (before, after) = (files(&tiny_llama()), files(&desk.path("out")));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let total: usize = after.values().map(Vec::len).sum();
    assert_eq!(json["bytes"], total);
    for (path, bytes) in &after {
        let weights = path == Path::new("model.safetensors");
        assert_eq!(bytes == &before[path], !weights, "{}", path.display());
    }

    let json = desk.run(&["same", "model.uc", "out", "--json"]).expect(0).json();
    has_keys(&json, &["same", "a", "b", "first_difference"]);
    assert_eq!((&json["same"], &json["first_difference"]), (&true.into(), &Value::Null));
    assert_eq!((&json["a"], &json["b"]), (&info["decoded_root"], &info["decoded_root"]));
    desk.run(&["same", "model.uc", "out/model.safetensors"]).expect(0).prints("same\n");
    let json = desk.run(&["same", "model.uc", &source(), "--json"]).expect(3).json();
    assert_eq!(json["same"], false);
    assert!(json["first_difference"].as_str().is_some_and(|d| d.contains("values differ")));
    desk.run(&["same", "model.uc", &source()]).expect(3).prints("different\n");
    desk.run(&["same", "model.uc", "nothing"]).expect(1);
}

#[test]
fn unpack_converts_reads_rungs_and_selects() {
    let desk = Desk::with_pack();
    let run = |args: &[&str], code| {
        let all: Vec<&str> = ["unpack", "model.uc", "--json", "-o"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        desk.run(&all).expect(code)
    };
    let header = |folder: &str| header_of(&desk.read(format!("{folder}/model.safetensors"))).0;
    for (flag, name) in [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("source", "BF16")] {
        let json = run(&[flag, "--dtype", flag], 0).json();
        let header = header(flag);
        assert_eq!(header["lm_head.weight"]["dtype"], name);
        let compared = json["tensors_compared"].as_u64().expect("a number") > 0;
        assert_eq!(compared, name == "BF16", "{flag}");
    }
    let full = desk.read("source/model.safetensors");
    assert!(full == desk.read("bf16/model.safetensors"));
    run(&["rung8", "--rung", "8"], 0);
    assert!(full == desk.read("rung8/model.safetensors"));
    run(&["rung3", "--rung", "3"], 0);
    assert!(full != desk.read("rung3/model.safetensors"));

    let json = run(&["some", "--tensor", "q_proj"], 0).json();
    let found = header("some");
    let tensors: Vec<_> =
        found.as_object().expect("a map").keys().filter(|k| *k != "__metadata__").collect();
    assert_eq!(json["tensors"], tensors.len());
    assert!(!tensors.is_empty() && tensors.iter().all(|name| name.contains("q_proj")));
    assert!(!desk.path("some/config.json").exists());
    run(&["none", "--tensor", "no such"], 2).says("no tensor matches");
    run(&["none", "--tensor", "("], 2).says("pattern");
    assert!(!desk.path("none").exists());
}

#[test]
fn unpack_never_overwrites_without_force() {
    let desk = Desk::with_pack();
    desk.folder("out");
    desk.run(&["unpack", "model.uc", "-o", "out", "-q"]).expect(0);
    desk.write("out/config.json", b"mine");
    desk.write("out/notes", b"mine");
    desk.run(&["unpack", "model.uc", "-o", "out"]).expect(1).says("out: already exists");
    assert_eq!(desk.read("out/config.json"), b"mine");
    desk.run(&["unpack", "model.uc", "-o", "out", "--force"]).expect(0);
    assert_eq!(desk.read("out/notes"), b"mine");
    let config = fs::read(tiny_llama().join("config.json")).expect("there");
    assert_eq!(desk.read("out/config.json"), config);
    desk.run(&["unpack", "model.uc", "-o", "model.uc", "--force"]).expect(1);
    desk.run(&["verify", "model.uc", "--fast"]).expect(0);
    assert_eq!(desk.names(), ["model.uc", "out"]);
}

#[test]
fn diff_measures_every_tensor() {
    let desk = Desk::with_pack();
    let json = desk.run(&["diff", &source(), "model.uc", "--json"]).expect(0).json();
    has_keys(&json, &["tensors", "worst", "total_sqnr_db"]);
    let tensors = json["tensors"].as_array().expect("a list");
    for t in tensors {
        has_keys(t, &["name", "shape", "max_abs", "rel_frobenius", "sqnr_db"]);
        let norm = t["name"].as_str().is_some_and(|n| n.contains("norm"));
        assert_eq!(t["equal"], norm, "{t}");
        assert_eq!(t["sqnr_db"].is_null(), norm, "{t}");
        let error = t["rel_frobenius"].as_f64().expect("a number");
        assert!(error < 0.06, "{t}");
    }
    let worst = json["worst"].as_str().expect("a name");
    assert!(tensors.iter().any(|t| t["name"] == worst));
    desk.run(&["diff", &source(), "model.uc"]).expect(0).prints(&format!("worst: {worst}"));
    desk.run(&["diff", "model.uc", "model.uc"]).expect(0).prints("all equal");
}

#[test]
fn exact_packs_give_the_source_back() {
    let desk = Desk::with_pack();
    let exact = ["pack", &source(), "--exact", "--rungs", "3,4", "-o", "exact.uc"];
    let json = desk.run(&[&exact[..], &["--json"]].concat()).expect(0).json();
    let info = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    assert_eq!(json["decoded_root"], info["decoded_root"], "the 5-bit model is the same");
    assert_eq!(json["body_bpw"], info["body_bpw"], "a residual isn't part of it");

    let json = desk.run(&["unpack", "exact.uc", "--exact", "-o", "out", "--json"]).expect(0).json();
    assert_eq!(
        (&json["files_recreated"], &json["tensors_compared"]),
        (&1.into(), &json["tensors"])
    );
    assert!(files(&desk.path("out")) == files(&tiny_llama()), "every byte of every file");
    let json = desk.run(&["verify", "exact.uc", "--against", &source(), "--json"]).expect(0).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "ok", "ok"]);
    assert_eq!(json["exact"], "ok");
    let ran = desk.run(&["verify", "exact.uc", "--against", &source()]).expect(0);
    ran.prints("exact ok").says("0 quantized tensors claim its digests");
    // Those who read the planes see nothing else.
    desk.run(&["same", "exact.uc", "model.uc"]).expect(0);

    let info = desk.run(&["info", "exact.uc", "--json"]).expect(0).json();
    assert!(info["tensors"].as_array().expect("a list").iter().all(|t| t["exact"] == true));
    let rungs = info["rungs"].as_array().expect("a list");
    let names: Vec<String> = rungs.iter().map(|r| r["rung"].to_string()).collect();
    assert_eq!(names, ["3", "4", "5", "6", "7", "8", "\"exact\""]);
    let bytes: Vec<u64> = rungs.iter().map(|r| r["bytes"].as_u64().expect("a number")).collect();
    assert!(bytes.is_sorted() && bytes[6] > bytes[5]);
    for (i, rung) in ["3", "4"].into_iter().enumerate() {
        let out = format!("rung{rung}");
        let json = desk
            .run(&["unpack", "exact.uc", "--rung", rung, "-o", &out, "--json"])
            .expect(0)
            .json();
        let recorded = &rungs[i];
        assert_eq!(json["decoded_root"], recorded["decoded_root"], "rung {rung}");
    }
    // The exact root is that of the source itself.
    let same = desk.run(&["same", &source(), &source(), "--json"]).expect(0).json();
    assert_eq!((&info["exact_root"], &rungs[6]["decoded_root"]), (&same["a"], &same["a"]));
    desk.run(&["info", "exact.uc"]).expect(0).prints("rung exact").prints("bit for bit");

    desk.run(&["strip", "exact.uc", "-o", "plain.uc"]).expect(0).prints("residuals left out");
    desk.run(&["same", "plain.uc", "exact.uc"]).expect(0);
    desk.run(&["pack", &source(), "--onto", "plain.uc", "-o", "again.uc"]).expect(0);
    let read = |name: &str| desk.read(name);
    assert!(read("again.uc") == read("exact.uc"));
    desk.run(&["strip", "plain.uc", "-o", "x.uc"]).expect(2).says("no exact rung");
    desk.run(&["unpack", "plain.uc", "--exact", "-o", "x"]).expect(2).says("has no residual");
    desk.run(&["unpack", "exact.uc", "--exact", "--rung", "4", "-o", "x"]).expect(2);
    desk.run(&["pack", &source(), "--onto", "exact.uc", "-o", "x.uc"]).expect(2).says("already");
    // The unpacked 5-bit model is another source.
    desk.run(&["unpack", "model.uc", "-o", "other", "-q"]).expect(0);
    desk.run(&["pack", "other", "--onto", "model.uc", "-o", "x.uc"])
        .expect(3)
        .says("another source");
    assert!(!desk.path("x.uc").exists() && !desk.path("x").exists());

    desk.run(&["pack", &source(), "--exact-only", "-o", "only.uc"]).expect(0);
    desk.run(&["same", "only.uc", &source()]).expect(0);
    desk.run(&["unpack", "only.uc", "--exact", "-o", "out2"]).expect(0);
    assert!(files(&desk.path("out2")) == files(&tiny_llama()));
    desk.run(&["strip", "only.uc", "-o", "x.uc"]).expect(2).says("coded without planes");
    desk.run(&["pack", &source(), "--exact", "--exact-only", "-o", "x.uc"]).expect(2);

    // Damage in a residual: the model is whole, the source can't be given back.
    desk.flip("exact.uc", size(damage_place(&desk, "exact.uc")), 1);
    let json = desk.run(&["verify", "exact.uc", "--json"]).expect(3).json();
    assert_eq!((&json["decoded"], &json["exact"]), (&"ok".into(), &"mismatch".into()));
    desk.run(&["unpack", "exact.uc", "-o", "planes"]).expect(0);
    desk.run(&["unpack", "exact.uc", "--exact", "-o", "x"]).expect(3).says("residual");
    assert!(!desk.path("x").exists());
}

/// An offset within a residual of a pack.
fn damage_place(desk: &Desk, name: &str) -> u64 {
    let pack = ultracompress::Container::open_path(desk.path(name)).expect("valid");
    let mut parts = pack.index().tensors.iter().flat_map(|t| &t.parts);
    let part = parts.find(|p| p.kind == ultracompress::format::PartKind::Residual);
    part.map(|p| p.offset + p.stored_len - 9).expect("a residual")
}
