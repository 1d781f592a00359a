//! Runs that end early: killed at any moment, cancelled, without their folder. No file has its
//! final name before it is complete, and a run that goes on ends in the bytes of one that was never
//! interrupted.
//!
//! `UC_KILLS=50 cargo test --release --test crash` kills fifty times; the default is a few.
//! `UC_KILLS_REPORT=FILE` writes what was counted.
//!
//! Processes of `uc` are killed and interrupted, not this one, so these tests run beside others;
//! what they check doesn't depend on how far a run had come. Where they wait for one that has come
//! far enough, they try again if it was faster.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ultracompress::pack::{Exact, PackOptions, PackReport, Recipe};
use ultracompress::source::Source;
use ultracompress::{Dtype, Error, ErrorKind};

use support::checkpoint::{Tensor, header_of, safetensors, write_weights};
use support::folder::{Desk, files, repository, tiny_llama};
use support::progress::After;
use support::random::Rng;
use support::uc::{Ran, source};

/// A safetensors file of `n` matrices; `seed` decides their values, that of the first one alone if
/// `one` is given.
fn weights(path: &Path, n: usize, one: Option<u64>) {
    let tensor = |i: usize| {
        // Tensors of rank 1 are kept as they are.
        let (name, shape) = match i % 8 {
            7 => (format!("model.layers.{i}.norm.weight"), &[64 * 2048][..]),
            _ => (format!("model.layers.{i}.mlp.up_proj.weight"), &[64, 2048][..]),
        };
        let seed = one.filter(|_| i == 0).unwrap_or(i as u64 + 1);
        Tensor::floats(name, Dtype::Bf16, shape, seed)
    };
    let tensors: Vec<_> = (0..n).map(tensor).collect();
    write_weights(path, &tensors);
}

/// A desk with a checkpoint on it.
fn folder() -> (Desk, PathBuf) {
    let desk = Desk::new();
    let source = desk.folder("source");
    weights(&source.join("model.safetensors"), 24, None);
    desk.write("source/config.json", "{}");
    (desk, source)
}

fn names(desk: &Desk) -> BTreeSet<String> {
    desk.names().into_iter().collect()
}

fn contents(desk: &Desk, names: &BTreeSet<String>) -> Vec<Vec<u8>> {
    names.iter().map(|name| desk.read(name)).collect()
}

/// Packs without interruption, then with kills, until `kills` of them have happened. Gives how
/// often items were taken over.
fn kill_loop(args: &[&str], kills: u64, rng: &mut Rng) -> (u64, u64) {
    let (desk, _) = folder();
    let before = names(&desk);
    let all: Vec<&str> =
        ["--json", "-q", "pack", "source", "-o", "m.uc"].iter().chain(args).copied().collect();
    let started = Instant::now();
    desk.run(&all).expect(0).json();
    let whole = started.elapsed();
    let written: BTreeSet<String> = names(&desk).difference(&before).cloned().collect();
    assert!(!written.is_empty());
    let expected = contents(&desk, &written);
    let resume: Vec<&str> = all.iter().copied().chain(["--resume"]).collect();
    let (mut killed, mut resumed) = (0, 0);
    while killed < kills {
        written.iter().for_each(|name| fs::remove_file(desk.path(name)).expect("there"));
        loop {
            let mut command = desk.command(&resume);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut run = command.spawn().expect("runs");
            // Anywhere in a run, every third time near its end, and sometimes behind it.
            let from = if killed % 3 == 2 { 800 } else { 0 };
            let share = u32::try_from(from + rng.below(1000 - from)).expect("at most 1000");
            std::thread::sleep(whole * share / 900);
            let ended = run.try_wait().expect("can wait").is_some();
            // Nothing is cleaned up: this is SIGKILL.
            run.kill().expect("can be killed");
            let output = run.wait_with_output().expect("ends");
            if ended || output.status.success() {
                let json = Ran::from(output).expect(0).json();
                resumed += json["resumed"].as_u64().expect("a count");
                break;
            }
            killed += 1;
            let there = names(&desk);
            let finished: Vec<_> = written.iter().filter(|name| there.contains(*name)).collect();
            // Files get their names when all of them are complete, one after the other.
            for name in finished {
                let at = written.iter().position(|w| w == name).expect("listed");
                assert!(desk.read(name) == expected[at], "{name}");
            }
            // It was over, and had only to end.
            if there.is_superset(&written) && !there.contains("m.uc.pack-state") {
                break;
            }
        }
        assert!(
            contents(&desk, &written) == expected,
            "{args:?}: other bytes after {killed} kills"
        );
        let left = names(&desk);
        let left: Vec<_> = left.difference(&before).filter(|n| !written.contains(*n)).collect();
        assert!(left.is_empty(), "{left:?} is left");
    }
    (killed, resumed)
}

#[test]
fn killed_runs_end_in_the_same_bytes() {
    let kills: u64 = std::env::var("UC_KILLS").map_or(8, |n| n.parse().expect("a number"));
    let started = Instant::now();
    let mut rng = Rng(20_261_129);
    let variants: [&[&str]; 4] =
        [&[], &["--shard-size", "1M"], &["--exact"], &["--rungs", "3,4", "-j", "1"]];
    let mut all = (0, 0);
    for args in variants {
        let (killed, resumed) = kill_loop(args, kills.div_ceil(4), &mut rng);
        all = (all.0 + killed, all.1 + resumed);
    }
    assert!(all.0 >= kills);
    if let Ok(path) = std::env::var("UC_KILLS_REPORT") {
        let report = json!({
            "kills": all.0, "items_taken_over": all.1, "variants": variants,
            "seconds": started.elapsed().as_secs(),
        });
        fs::write(path, format!("{report:#}\n")).expect("can be written");
    }
}

fn pack(source: &Path, output: &Path, options: &PackOptions) -> Result<PackReport, Error> {
    options.pack(&Source::open(source)?, output)
}

/// Leaves on the desk what a run to `m.uc` leaves that is cancelled when it has encoded about half
/// of the checkpoint. It is made once for the same options.
fn interrupted(desk: &Desk, options: &PackOptions) {
    static MADE: Mutex<BTreeMap<String, BTreeMap<PathBuf, Vec<u8>>>> = Mutex::new(BTreeMap::new());
    let key = format!("{options:?}");
    let made = MADE.lock().expect("no panic").get(&key).cloned();
    let left = made.unwrap_or_else(|| {
        let (desk, source) = folder();
        let source = Source::open(&source).expect("valid");
        let after = After::stop(source.bytes() * 3 / 2);
        let e = options.pack_with(&source, &desk.path("m.uc"), &after).expect_err("cancelled");
        assert_eq!(*e.kind(), ErrorKind::Cancelled, "{e}");
        let mut left = files(desk.root());
        left.retain(|name, _| !name.starts_with("source"));
        MADE.lock().expect("no panic").insert(key, left.clone());
        left
    });
    left.iter().for_each(|(name, bytes)| desk.write(name, bytes));
}

#[test]
fn resuming_does_only_what_is_missing() {
    let (desk, source) = folder();
    let out = desk.path("m.uc");
    let resume = PackOptions::new().with_resume(true);
    for options in [PackOptions::new(), PackOptions::new().with_shard_size(Some(1 << 20))] {
        let whole = pack(&source, &desk.path("whole.uc"), &options).expect("packs");
        let options = options.with_resume(true);
        interrupted(&desk, &options);
        let state = desk.path("m.uc.pack-state");
        let lines = fs::read_to_string(&state).expect("kept").lines().count();
        assert!(lines > 5 && !out.exists(), "{lines} lines");
        let report = pack(&source, &out, &options).expect("goes on");
        assert_eq!(report.resumed, lines - 2, "a head, the files, and a line for each item");
        for ((a, _), (b, _)) in report.files.iter().zip(&whole.files) {
            if !a.to_string_lossy().ends_with(".json") {
                assert!(
                    fs::read(a).expect("there") == fs::read(b).expect("there"),
                    "{}",
                    a.display()
                );
            }
        }
        for (file, _) in report.files.iter().chain(&whole.files) {
            fs::remove_file(file).expect("there");
        }
        assert_eq!(names(&desk).len(), 1, "{:?}", names(&desk));
    }
    // With nothing to go on with it starts at the beginning.
    assert_eq!(pack(&source, &out, &resume).expect("packs").resumed, 0);
}

#[test]
fn what_an_interrupted_run_left_is_not_trusted() {
    let (desk, source) = folder();
    let out = desk.path("m.uc");
    let (state, partial) = (desk.path("m.uc.pack-state"), desk.path("m.uc.partial"));
    let resume = PackOptions::new().with_resume(true);
    let whole = desk.path("whole.uc");
    pack(&source, &whole, &PackOptions::new()).expect("packs");
    let whole = fs::read(whole).expect("there");
    let damage: [(&str, &dyn Fn()); 6] = [
        ("a byte of the first part", &|| {
            desk.flip("m.uc.partial", 300, 1);
        }),
        ("the end is missing", &|| {
            let len = fs::metadata(&partial).expect("kept").len();
            File::options()
                .write(true)
                .open(&partial)
                .expect("kept")
                .set_len(len / 3)
                .expect("cut");
        }),
        ("no partial file", &|| fs::remove_file(&partial).expect("kept")),
        ("half a line", &|| {
            let text = fs::read_to_string(&state).expect("kept");
            fs::write(&state, &text[..text.len() - 40]).expect("can write");
        }),
        ("another digest", &|| {
            let text = fs::read_to_string(&state).expect("kept");
            let at = text.find("\"done\":\"").expect("a record") + 200;
            let digit = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
            fs::write(&state, format!("{}{digit}{}", &text[..at], &text[at + 1..]))
                .expect("can write");
        }),
        ("lines in another order", &|| {
            let text = fs::read_to_string(&state).expect("kept");
            let mut lines: Vec<&str> = text.lines().collect();
            lines.swap(3, 5);
            fs::write(&state, lines.join("\n") + "\n").expect("can write");
        }),
    ];
    for (what, damage) in damage {
        interrupted(&desk, &resume);
        let lines = fs::read_to_string(&state).expect("kept").lines().count();
        damage();
        let report = pack(&source, &out, &resume).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(report.resumed < lines - 2, "{what}: {} of {lines}", report.resumed);
        assert!(fs::read(&out).expect("there") == whole, "{what}");
        fs::remove_file(&out).expect("there");
    }
}

#[test]
fn records_that_lie_behind_right_checksums_are_noticed_by_decoding() {
    let (desk, source) = folder();
    let out = desk.path("m.uc");
    let resume = PackOptions::new().with_resume(true);
    let whole = desk.path("whole.uc");
    pack(&source, &whole, &PackOptions::new()).expect("packs");
    let whole = ultracompress::Container::open(fs::read(whole).expect("there")).expect("valid");
    let digest = |t: &ultracompress::TensorEntry| t.decoded_sha256.to_string();
    let tensors = &whole.index().tensors;
    let planes = tensors.iter().find(|t| t.shape.len() == 2).map(digest).expect("planes");
    let raw = tensors.iter().find(|t| t.shape.len() == 1).map(digest).expect("raw");
    let state = desk.path("m.uc.pack-state");
    for digest in [planes, raw.clone()] {
        interrupted(&desk, &resume);
        let text = fs::read_to_string(&state).expect("kept");
        assert!(text.contains(&digest));
        let other = text.replace(&digest, &"0".repeat(64));
        let fixed = |l: &str| line(&serde_json::from_str(&l[9..]).expect("JSON"));
        fs::write(&state, other.lines().map(fixed).collect::<String>()).expect("can write");
        let found = pack(&source, &out, &resume);
        if digest == raw {
            // The source's digest is known: that tensor and those behind it are encoded again.
            assert!(found.expect("packs").resumed > 0);
            assert!(fs::read(&out).expect("there") == *whole.reader());
        } else {
            let e = found.expect_err("the record lies");
            assert_eq!(*e.kind(), ErrorKind::Integrity, "{e}");
            assert!(e.to_string().contains("start again without --resume"), "{e}");
            assert!(!out.exists());
        }
        let _ = fs::remove_file(&out);
        pack(&source, &out, &PackOptions::new()).expect("starts again");
        fs::remove_file(&out).expect("there");
    }
}

#[test]
fn another_run_is_not_gone_on_with() {
    let (desk, source) = folder();
    let out = desk.path("m.uc");
    let resume = PackOptions::new().with_resume(true);
    let mut six = Recipe::default();
    six.bits = 6;
    interrupted(&desk, &resume);
    let left = names(&desk);
    // Another recipe, another exact rung, other rungs, another cut.
    for options in [
        resume.clone().with_rungs(vec![4]),
        resume.clone().with_recipe(six),
        resume.clone().with_exact(Exact::Residual),
        resume.clone().with_shard_size(Some(1 << 20)),
    ] {
        let e = pack(&source, &out, &options).expect_err("another run");
        assert!(e.to_string().contains("state of another run"), "{e}");
        assert_eq!(names(&desk), left, "all stays as it was");
    }
    // Another source.
    weights(&source.join("model.safetensors"), 24, Some(77));
    let e = pack(&source, &out, &resume).expect_err("another source");
    assert!(e.to_string().contains("state of another run"), "{e}");
    // Without the flag a run starts anew, and clears up.
    pack(&source, &out, &PackOptions::new()).expect("packs");
    assert_eq!(names(&desk), BTreeSet::from(["m.uc".into(), "source".into()]));
}

/// A line of the state.
fn line(value: &Value) -> String {
    let text = value.to_string();
    format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()))
}

/// How a state names a file: by its stored root, or the SHA-256 of an index file.
fn id(bytes: &[u8]) -> String {
    match ultracompress::Container::open(bytes) {
        Ok(pack) => pack.preamble().stored_root.to_string(),
        Err(_) => ultracompress::Digest::of(bytes).to_string(),
    }
}

/// As if a run had been killed before, between and after the renames: with the first `n` files
/// under their names and the others where they were written.
#[test]
fn a_run_that_was_killed_while_files_got_their_names_is_ended() {
    let (desk, source) = folder();
    let path = |name: &str| desk.path(name);
    let plain = PackOptions::new;
    for (options, stage) in [
        (plain(), ".partial"),
        (plain().with_shard_size(Some(1 << 20)), ".partial"),
        (plain().with_exact(Exact::Residual), ".partial-exact"),
        (plain().with_exact(Exact::Residual).with_shard_size(Some(1 << 20)), ".partial-exact"),
        (plain().with_rungs(vec![3]), ".partial-roots"),
    ] {
        let whole = pack(&source, &path("m.uc"), &options).expect("packs");
        let files: Vec<_> = whole.files.iter().map(|(f, _)| f.clone()).collect();
        let expected: Vec<_> = files.iter().map(|f| fs::read(f).expect("there")).collect();
        files.iter().for_each(|f| fs::remove_file(f).expect("there"));
        let name = |f: &PathBuf| f.file_name().expect("a name").to_string_lossy().into_owned();
        let from = |f: &PathBuf| path(&format!("{}{stage}", name(f)));
        let named: Vec<Value> = files
            .iter()
            .zip(&expected)
            .map(|(f, bytes)| json!({ "from": name(&from(f)), "to": name(f), "id": id(bytes) }))
            .collect();
        let resume = options.clone().with_resume(true);
        for n in 0..=files.len() {
            interrupted(&desk, &resume);
            let mut state = fs::read_to_string(path("m.uc.pack-state")).expect("kept");
            state.push_str(&line(&json!({ "named": named })));
            fs::write(path("m.uc.pack-state"), &state).expect("can write");
            for (i, (f, bytes)) in files.iter().zip(&expected).enumerate() {
                if stage == ".partial" {
                    let _ = fs::remove_file(from(f));
                }
                fs::write(if i < n { f.clone() } else { from(f) }, bytes).expect("can write");
            }
            let left = names(&desk);
            // Another source, or a run without the flag, changes nothing of what has its name.
            if n == 1 {
                weights(&source.join("model.safetensors"), 24, Some(77));
                let e = pack(&source, &path("m.uc"), &resume).expect_err("another source");
                assert!(e.to_string().contains("state of another run"), "{e}");
                assert_eq!(names(&desk), left, "{n} named");
                weights(&source.join("model.safetensors"), 24, None);
                let e = pack(&source, &path("m.uc"), &options).expect_err("is there");
                assert!(e.to_string().contains("already exists"), "{e}");
                assert_eq!(names(&desk), left, "{n} named");
            }
            let report = pack(&source, &path("m.uc"), &resume).expect("goes on");
            assert_eq!((report.resumed, report.stored_root), (25, whole.stored_root), "{n} named");
            for (f, bytes) in files.iter().zip(&expected) {
                assert!(fs::read(f).expect("there") == *bytes, "{}, {n} named", f.display());
                fs::remove_file(f).expect("there");
            }
            assert_eq!(names(&desk), BTreeSet::from(["source".into()]), "{n} named");
        }
        // A file of somebody else's under one of the names stays, and stands in the way.
        interrupted(&desk, &resume);
        let mut state = fs::read_to_string(path("m.uc.pack-state")).expect("kept");
        state.push_str(&line(&json!({ "named": named })));
        fs::write(path("m.uc.pack-state"), &state).expect("can write");
        for (f, bytes) in files.iter().zip(&expected) {
            fs::write(from(f), bytes).expect("can write");
        }
        fs::write(&files[0], "precious").expect("can write");
        let e = pack(&source, &path("m.uc"), &resume).expect_err("is there");
        assert!(e.to_string().contains("already exists"), "{e}");
        assert_eq!(fs::read(&files[0]).expect("there"), b"precious");
        fs::remove_file(&files[0]).expect("there");
        pack(&source, &path("m.uc"), &resume).expect("goes on");
        files.iter().for_each(|f| fs::remove_file(f).expect("there"));
    }
}

#[test]
fn files_of_others_are_not_removed() {
    let (desk, source) = folder();
    let out = desk.path("m.uc");
    let path = |name: &str| desk.path(name);
    let resume = PackOptions::new().with_resume(true);
    let exact = PackOptions::new().with_exact(Exact::Residual);
    for (name, options) in [
        ("m.uc.partial", &PackOptions::new()),
        ("m.uc.partial", &resume),
        ("m.uc.partial-exact", &exact),
        ("m.uc.pack-state", &PackOptions::new()),
        ("m.uc.pack-state", &resume),
    ] {
        fs::write(path(name), "precious").expect("can write");
        let e = pack(&source, &out, options).expect_err("in the way");
        assert!(e.to_string().contains("is in the way"), "{name}: {e}");
        assert_eq!(fs::read_to_string(path(name)).expect("there"), "precious");
        fs::remove_file(path(name)).expect("there");
        assert_eq!(names(&desk), BTreeSet::from(["source".into()]), "{name}");
    }
    // What a state names outside of its folder, or that isn't called after a stage, isn't touched.
    fs::write(path("precious"), "precious").expect("can write");
    fs::create_dir(path("folder")).expect("a folder");
    fs::write(path("folder/a.partial"), "precious").expect("can write");
    let head = line(&json!({ "head": { "format": "ultracompress-pack-state-1", "run": "x" } }));
    let named = line(&json!({ "partial": ["precious", "folder/a.partial", "../x.partial"] }));
    fs::write(path("m.uc.pack-state"), head + &named).expect("can write");
    pack(&source, &out, &PackOptions::new()).expect("packs");
    assert!(path("precious").exists() && path("folder/a.partial").exists());
    // A run that fails before it writes anything leaves an interrupted one as it is.
    fs::remove_file(&out).expect("there");
    interrupted(&desk, &resume);
    let left = names(&desk);
    fs::write(path("folder/no.cal"), "no calibration").expect("can write");
    for options in [PackOptions::new(), resume.clone()] {
        let options = options.with_calibration(Some(path("folder/no.cal")));
        pack(&source, &out, &options).expect_err("no calibration");
        assert_eq!(names(&desk), left);
    }
    assert!(pack(&source, &out, &resume).expect("goes on").resumed > 0);
}

#[test]
fn a_calibrated_run_goes_on_with_what_it_found_out() {
    let desk = Desk::new();
    let model = tiny_llama();
    let text = repository().join("spec/codec.md");
    let text = text.to_str().expect("UTF-8");
    let calibrate = ["-q", "calibrate", &source(), "--text", text, "--seq-len", "64"];
    desk.run(&[&calibrate[..], &["--max-tokens", "512", "-o", "m.cal"]].concat()).expect(0);
    let recipe: Recipe =
        serde_json::from_value(json!({ "calibrated": { "bpw": "5.2" } })).expect("a recipe");
    let options = PackOptions::new().with_recipe(recipe).with_calibration(Some(desk.path("m.cal")));
    let (whole, out) = (desk.path("whole.uc"), desk.path("m.uc"));
    pack(&model, &whole, &options).expect("packs");
    let whole = fs::read(whole).expect("there");
    let options = options.with_resume(true);
    let state = desk.path("m.uc.pack-state");
    let stopped = Source::open(&model).expect("valid");
    // Scanned, surveyed, and half encoded.
    let after = After::stop(stopped.bytes() * 2);
    options.pack_with(&stopped, &out, &after).expect_err("cancelled");
    let left = ["m.uc.pack-state", "m.uc.partial"].map(|name| (name, desk.read(name)));
    let text = fs::read_to_string(&state).expect("kept");
    assert!(text.contains("\"calibrated\"") && text.contains("\"done\""), "{}", text.len());
    let report = pack(&model, &out, &options).expect("goes on");
    assert!(report.resumed > 0 && fs::read(&out).expect("there") == whole);
    fs::remove_file(&out).expect("there");
    // One digit of it changed.
    left.iter().for_each(|(name, bytes)| desk.write(name, bytes));
    let at = text.find("\"counts\":[").expect("counts") + 10;
    let digit = if text.as_bytes()[at] == b'5' { "7" } else { "5" };
    fs::write(&state, format!("{}{digit}{}", &text[..at], &text[at + 1..])).expect("can write");
    let e = pack(&model, &out, &options).expect_err("nobody knows whose it is");
    assert!(e.to_string().contains("m.uc.partial: is in the way"), "{e}");
    fs::remove_file(desk.path("m.uc.partial")).expect("there");
    let report = pack(&model, &out, &options).expect("goes on");
    assert!(report.resumed == 0 && fs::read(&out).expect("there") == whole);
}

#[test]
fn two_runs_do_not_write_one_pack() {
    let (desk, source) = folder();
    let out = desk.path("m.uc");
    let state = File::create_new(desk.path("m.uc.pack-state")).expect("new");
    state.lock().expect("can lock");
    for resume in [false, true] {
        let e = pack(&source, &out, &PackOptions::new().with_resume(resume)).expect_err("locked");
        assert!(e.to_string().contains("another run is writing this pack"), "{e}");
    }
    drop(state);
    pack(&source, &out, &PackOptions::new()).expect("packs");
}

#[cfg(unix)]
#[test]
fn links_in_the_way_are_not_followed() {
    let (desk, source) = folder();
    let out = desk.path("m.uc");
    let precious = desk.path("precious");
    fs::write(&precious, "precious").expect("can write");
    let link = |name: &str| {
        std::os::unix::fs::symlink(&precious, desk.path(name)).expect("a link");
    };
    for name in ["m.uc.partial", "m.uc.pack-state"] {
        link(name);
        for resume in [false, true] {
            let e =
                pack(&source, &out, &PackOptions::new().with_resume(resume)).expect_err("a link");
            assert!(e.to_string().contains("is in the way"), "{e}");
        }
        fs::remove_file(desk.path(name)).expect("the link");
    }
    pack(&source, &out, &PackOptions::new()).expect("packs");
    assert_eq!(fs::read_to_string(&precious).expect("there"), "precious");
}

#[test]
fn a_folder_that_vanishes_is_an_error() {
    let (desk, source) = folder();
    let folder = desk.path("out");
    fs::create_dir(&folder).expect("a folder");
    let source = Source::open(&source).expect("valid");
    let remove = || fs::remove_dir_all(&folder).expect("can be removed");
    let after = After::act(source.bytes() * 3 / 2, &remove);
    let e = PackOptions::new().pack_with(&source, &folder.join("m.uc"), &after);
    let e = e.expect_err("there is no folder");
    assert_eq!(*e.kind(), ErrorKind::Io, "{e}");
    assert!(e.to_string().contains("m.uc"), "{e}");
    assert_eq!(names(&desk), BTreeSet::from(["source".into()]));
}

#[test]
fn tensors_that_did_not_change_are_copied_from_an_older_pack() {
    let (desk, source) = folder();
    let path = |name: &str| desk.path(name);
    let old = pack(&source, &path("old.uc"), &PackOptions::new()).expect("packs");
    let reuse = |name: &str| PackOptions::new().with_reuse(Some(path(name)));
    let same = |name: &str, fresh: &str| assert!(desk.read(name) == desk.read(fresh), "{name}");
    // Nothing changed; one tensor changed.
    let report = pack(&source, &path("a.uc"), &reuse("old.uc")).expect("packs");
    assert_eq!((report.reused, report.stored_root), (24, old.stored_root));
    same("a.uc", "old.uc");
    weights(&source.join("model.safetensors"), 24, Some(77));
    pack(&source, &path("fresh.uc"), &PackOptions::new()).expect("packs");
    assert_eq!(pack(&source, &path("b.uc"), &reuse("old.uc")).expect("packs").reused, 23);
    same("b.uc", "fresh.uc");
    // An old pack of another kind: shards, the exact rung, tables for rungs.
    let exact = PackOptions::new().with_exact(Exact::Residual).with_rungs(vec![3, 4]);
    pack(&source, &path("exact.uc"), &exact).expect("packs");
    assert_eq!(pack(&source, &path("c.uc"), &reuse("exact.uc")).expect("packs").reused, 24);
    same("c.uc", "fresh.uc");
    let shards = PackOptions::new().with_shard_size(Some(1 << 20));
    pack(&source, &path("shards.uc"), &shards).expect("packs");
    let report = pack(&source, &path("d.uc"), &reuse("shards.uc.index.json"));
    assert_eq!(report.expect("packs").reused, 24);
    same("d.uc", "fresh.uc");
    // Into another kind.
    let e = exact.with_reuse(Some(path("old.uc")));
    assert_eq!(pack(&source, &path("e.uc"), &e).expect("packs").reused, 23);
    same("e.uc", "exact.uc");
    // Other planes are encoded, raw tensors are the same.
    let mut six = Recipe::default();
    six.bits = 6;
    let other = PackOptions::new().with_recipe(six);
    pack(&source, &path("six.uc"), &other).expect("packs");
    let other = other.with_reuse(Some(path("old.uc")));
    assert_eq!(pack(&source, &path("f.uc"), &other).expect("packs").reused, 3);
    same("f.uc", "six.uc");
    // The same bytes as other elements, and in another shape.
    let reshaped = desk.folder("reshaped");
    desk.write("reshaped/config.json", "{}");
    let bytes = desk.read("source/model.safetensors");
    let (header, data) = header_of(&bytes);
    let header = header.to_string();
    let header = header.replace("[64,2048]", "[128,1024]").replace("[131072]", "[2,65536]");
    let header = header.replacen("BF16", "F16", 3);
    desk.write("reshaped/model.safetensors", safetensors(&header, &bytes[data..]));
    pack(&reshaped, &path("reshaped.uc"), &PackOptions::new()).expect("packs");
    assert_eq!(pack(&reshaped, &path("h.uc"), &reuse("fresh.uc")).expect("packs").reused, 0);
    same("h.uc", "reshaped.uc");
    // Raw tensors of many pieces.
    let mut raw = Recipe::default();
    raw.raw_all = true;
    let large = path("large.safetensors");
    write_weights(&large, [&Tensor::floats("w", Dtype::Bf16, &[3000, 1024], 9)]);
    let options = PackOptions::new().with_recipe(raw);
    pack(&large, &path("large.uc"), &options).expect("packs");
    let options = options.with_reuse(Some(path("large.uc")));
    assert_eq!(pack(&large, &path("i.uc"), &options).expect("packs").reused, 1);
    same("i.uc", "large.uc");
    // A damaged one is refused, and nothing is left.
    desk.flip("old.uc", 1_000_000, 1);
    let before = names(&desk);
    let e = pack(&source, &path("g.uc"), &reuse("old.uc")).expect_err("damaged");
    assert_eq!(*e.kind(), ErrorKind::Integrity, "{e}");
    assert_eq!(names(&desk), before);
    // An old pack isn't written over while it is read.
    let e = pack(&source, &path("a.uc"), &reuse("a.uc").with_force(true)).expect_err("the input");
    assert!(e.to_string().contains("output is the input"), "{e}");
}

#[test]
fn the_flags_work_from_the_command_line() {
    let (desk, _) = folder();
    let json = desk.run(&["--json", "pack", "source", "-o", "a.uc", "--resume"]).expect(0).json();
    assert_eq!((&json["resumed"], &json["reused"]), (&json!(0), &json!(0)));
    let args = ["--json", "pack", "source", "-o", "b.uc", "--reuse", "a.uc"];
    let run = desk.run(&args).expect(0);
    assert_eq!(run.json()["reused"], 24);
    run.says("reused: 24 tensors");
    // Ctrl-C of a run that may be gone on with leaves its work.
    #[cfg(unix)]
    {
        let mut kept = 0;
        for i in 0..5 {
            let (name, state) = (format!("c{i}.uc"), desk.path(format!("c{i}.uc.pack-state")));
            let args = ["-q", "pack", "source", "-o", name.as_str(), "--resume", "-j", "1"];
            let mut command = desk.command(&args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("runs");
            let lines = || fs::read_to_string(&state).map_or(0, |text| text.lines().count());
            while lines() < 4 && child.try_wait().expect("can wait").is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let pid = child.id().to_string();
            Command::new("kill").args(["-INT", &pid]).status().expect("kill is there");
            let code = child.wait().expect("ends").code();
            // It may have been over already.
            if code == Some(0) {
                continue;
            }
            assert_eq!(code, Some(130));
            assert!(!desk.path(&name).exists() && lines() >= 4);
            let args = ["--json", "pack", "source", "-o", &name, "--resume"];
            let ended = desk.run(&args).expect(0).json();
            assert!(ended["resumed"].as_u64() > Some(0));
            assert!(desk.read(&name) == desk.read("a.uc"));
            kept += 1;
        }
        assert!(kept > 0, "five runs were over before they were interrupted");
    }
}
