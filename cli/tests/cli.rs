//! The command line as scripts see it: exit codes, JSON keys, messages, and what is left on disk.
//! Help and usage errors are snapshots under `tests/cmd/`; everything with digests is asserted here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

#[test]
fn help_usage_errors_and_messages_are_as_recorded() {
    trycmd::TestCases::new().env("COLUMNS", "100").env("NO_COLOR", "1").case("tests/cmd/*.toml");
}

fn fixture() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join("examples/data/tiny-llama")
}

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

    /// The one JSON object on stdout.
    #[track_caller]
    fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e} in stdout: {}", self.stdout));
        assert!(value.is_object(), "{value}");
        value
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

/// A folder of the test's own, with the fixture's pack in it as `model.uc`.
struct Desk(tempfile::TempDir);

impl Desk {
    fn empty() -> Self {
        Self(tempfile::tempdir().expect("can write"))
    }

    fn with_pack() -> Self {
        static PACK: OnceLock<Vec<u8>> = OnceLock::new();
        let pack = PACK.get_or_init(|| {
            let desk = Self::empty();
            desk.run(&["pack", &source(), "-o", "model.uc", "-q"]).expect(0);
            fs::read(desk.path("model.uc")).expect("packed")
        });
        let desk = Self::empty();
        fs::write(desk.path("model.uc"), pack).expect("can write");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uc"));
        command.args(args).current_dir(self.0.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        let out = self.command(args).output().expect("the binary starts");
        Ran {
            code: out.status.code(),
            stdout: String::from_utf8(out.stdout).expect("UTF-8"),
            stderr: String::from_utf8(out.stderr).expect("UTF-8"),
        }
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

    /// Flips one bit of `model.uc` at `share` of its length.
    fn damage(&self, share: f64) {
        let mut bytes = fs::read(self.path("model.uc")).expect("there");
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "any place near there will do"
        )]
        let at = (bytes.len() as f64 * share) as usize;
        bytes[at] ^= 4;
        fs::write(self.path("model.uc"), bytes).expect("can write");
    }
}

fn source() -> String {
    fixture().to_str().expect("UTF-8").to_owned()
}

#[track_caller]
fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no {key} in {value:#}");
    }
}

fn is_digest(value: &Value) -> bool {
    value.as_str().is_some_and(|s| {
        s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// All files below a folder, with their bytes.
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

// ---- pack -------------------------------------------------------------------------------------

#[test]
fn pack_reports_rates_and_roots() {
    let desk = Desk::empty();
    let ran = desk.run(&["pack", &source(), "-o", "out.uc", "--json"]).expect(0);
    let json = ran.json();
    has_keys(
        &json,
        &[
            "output",
            "files",
            "tensors",
            "weights",
            "body_bpw",
            "file_bpw",
            "stored_root",
            "decoded_root",
        ],
    );
    assert_eq!(json["output"], "out.uc");
    let len = fs::metadata(desk.path("out.uc")).expect("packed").len();
    assert_eq!(json["files"], serde_json::json!([{ "path": "out.uc", "bytes": len }]));
    assert!(is_digest(&json["stored_root"]) && is_digest(&json["decoded_root"]));
    let body = json["body_bpw"].as_f64().expect("a number");
    let file = json["file_bpw"].as_f64().expect("a number");
    // Five planes, four bits a group of 32, two bytes a row, padding.
    assert!((5.125..5.6).contains(&body), "{body}");
    let weights = json["weights"].as_f64().expect("a number");
    #[allow(clippy::cast_precision_loss, reason = "a small file")]
    let expected = len as f64 * 8.0 / weights;
    assert!((file - expected).abs() < 1e-9, "{file} is not {expected}");
    assert_eq!(desk.names(), ["out.uc"]);

    // The same bytes again, whatever the number of threads, and roots in the human output too.
    let again = desk.run(&["pack", &source(), "-o", "again.uc", "-j", "1"]).expect(0);
    assert!(fs::read(desk.path("again.uc")).unwrap() == fs::read(desk.path("out.uc")).unwrap());
    again
        .prints(json["stored_root"].as_str().expect("a digest"))
        .prints(json["decoded_root"].as_str().expect("a digest"))
        .prints("again.uc: ");
}

#[test]
fn pack_never_overwrites_without_force() {
    let desk = Desk::empty();
    fs::write(desk.path("out.uc"), b"precious").expect("can write");
    desk.run(&["pack", &source(), "-o", "out.uc"]).expect(1).says("out.uc: already exists");
    assert_eq!(fs::read(desk.path("out.uc")).expect("kept"), b"precious");
    assert_eq!(desk.names(), ["out.uc"]);
    desk.run(&["pack", &source(), "-o", "out.uc", "--force"]).expect(0);
    desk.run(&["verify", "out.uc", "--fast"]).expect(0);
    assert_eq!(desk.names(), ["out.uc"]);
}

#[test]
fn pack_refuses_to_replace_its_own_source() {
    let desk = Desk::empty();
    let weights = fixture().join("model.safetensors");
    fs::copy(&weights, desk.path("m.safetensors")).expect("can copy");
    let args = ["pack", "m.safetensors", "-o", "./m.safetensors", "--force"];
    desk.run(&args).expect(1).says("output is the input");
    assert!(fs::read(desk.path("m.safetensors")).unwrap() == fs::read(weights).unwrap());
}

#[test]
fn dry_run_shows_every_decision_and_writes_nothing() {
    let desk = Desk::empty();
    let ran = desk.run(&["pack", &source(), "--dry-run", "--json"]).expect(0);
    let json = ran.json();
    has_keys(&json, &["tensors", "carried", "left_out"]);
    let tensors = json["tensors"].as_array().expect("a list");
    for t in tensors {
        has_keys(t, &["name", "dtype", "shape", "role", "encoding", "planes", "reason"]);
        assert_ne!(t["reason"], "", "{t}");
    }
    let find = |name: &str| {
        tensors.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("{name} is there"))
    };
    assert_eq!(find("model.layers.0.mlp.up_proj.weight")["planes"], 5);
    assert_eq!(find("model.norm.weight")["encoding"], "raw");
    assert_eq!(find("model.embed_tokens.weight")["encoding"], "alias");
    assert!(json["carried"].as_array().expect("a list").contains(&"config.json".into()));
    assert_eq!(desk.names(), [""; 0]);

    let ran = desk.run(&["pack", &source(), "-o", "out.uc", "--dry-run"]).expect(0);
    ran.prints("default: body").prints("same bytes as lm_head.weight").prints("carried: ");
    assert_eq!(desk.names(), [""; 0], "--dry-run writes nothing even with -o");

    // What was announced is what happens.
    let desk = Desk::with_pack();
    let info = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    let packed = info["tensors"].as_array().expect("a list");
    assert_eq!(packed.len(), tensors.len());
    for (plan, found) in tensors.iter().zip(packed) {
        for key in ["name", "dtype", "shape", "role", "encoding", "planes", "reason"] {
            assert_eq!(plan[key], found[key], "{key} of {}", plan["name"]);
        }
    }
}

#[test]
fn pack_flags_and_recipes_steer_the_encoder() {
    let desk = Desk::empty();
    fs::write(
        desk.path("recipe.toml"),
        "bits = 4\ngroup = 64\n[[tensor]]\nmatch = 'k_proj'\nbits = 'raw'\n",
    )
    .expect("can write");
    let plan = |args: &[&str]| {
        let source = source();
        let all: Vec<&str> = ["pack", &source, "--dry-run", "--json"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let json = desk.run(&all).expect(0).json();
        let tensors = json["tensors"].as_array().expect("a list").clone();
        move |part: &str| {
            let t = tensors.iter().find(|t| t["name"].as_str().is_some_and(|n| n.contains(part)));
            t.expect("there")["planes"].clone()
        }
    };
    let planes =
        plan(&["--bits", "6", "--tensor", "v_proj=8", "--tensor", r"layers\.0\.self.*=raw"]);
    assert_eq!(planes("up_proj"), 6);
    assert_eq!(planes("layers.1.self_attn.v_proj"), 8);
    assert_eq!(planes("layers.0.self_attn.v_proj"), Value::Null);
    let planes = plan(&["--recipe", "recipe.toml"]);
    assert_eq!(planes("up_proj"), 4);
    assert_eq!(planes("k_proj"), Value::Null);
    let planes = plan(&["--recipe", "recipe.toml", "--bits", "7", "--tensor", "k_proj=3"]);
    assert_eq!((planes("up_proj"), planes("k_proj")), (7.into(), 3.into()));
    let planes = plan(&["--raw-all"]);
    assert_eq!((planes("up_proj"), planes("lm_head")), (Value::Null, Value::Null));
}

#[test]
fn impossible_settings_are_usage_errors() {
    let desk = Desk::empty();
    let recipe = |text: &str| {
        fs::write(desk.path("recipe.toml"), text).expect("can write");
        ["--recipe", "recipe.toml"].map(str::to_owned).to_vec()
    };
    for (args, says) in [
        (vec!["--bits".into(), "9".into()], "9 bits"),
        (vec!["--bits".into(), "2".into()], "2 bits"),
        (vec!["--tensor".into(), "(=5".into()], "pattern \"(\""),
        (vec!["--tensor".into(), "v_proj=9".into()], "9 bits"),
        (vec!["--tensor".into(), "v_proj".into()], "is not REGEX=BITS or REGEX=raw"),
        (vec!["--tensor".into(), "v_proj=five".into()], "is not REGEX=BITS or REGEX=raw"),
        (recipe("bits = 'many'"), "recipe.toml: not a recipe"),
    ] {
        let source = source();
        let mut all = vec!["pack", &source, "-o", "out.uc"];
        all.extend(args.iter().map(String::as_str));
        desk.run(&all).expect(2).says(says);
        assert!(!desk.path("out.uc").exists());
    }
    for text in ["bit = 5", "group = 33", "zstd_level = 40", "[[tensor]]\nmatch = 'a'", "bits ="] {
        let args = recipe(text);
        let source = source();
        desk.run(&["pack", &source, "-o", "out.uc", &args[0], &args[1]]).expect(2).says("error: ");
    }
    desk.run(&["pack", &source(), "-o", "out.uc", "--recipe", "none.toml"]).expect(1);
    assert_eq!(desk.names(), ["recipe.toml"]);
}

#[test]
fn unusable_sources_exit_with_one() {
    let desk = Desk::empty();
    desk.run(&["pack", "nothing", "-o", "out.uc"]).expect(1).says("nothing: can't open");
    fs::create_dir(desk.path("empty")).expect("can write");
    desk.run(&["pack", "empty", "-o", "out.uc"]).expect(1).says("no .safetensors file");
    fs::write(desk.path("bad.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\xff{")
        .expect("can write");
    desk.run(&["pack", "bad.safetensors", "-o", "out.uc"]).expect(1).says("not a safetensors file");
    desk.run(&["pack", &source(), "-o", "no/such/folder/out.uc"]).expect(1);
    desk.run(&["pack", &source(), "-o", "empty"]).expect(1).says("is a folder");
    assert_eq!(desk.names(), ["bad.safetensors", "empty"]);
}

#[test]
fn quantized_checkpoints_are_refused_unless_kept_raw() {
    let desk = Desk::empty();
    fs::create_dir(desk.path("gptq")).expect("can write");
    fs::copy(fixture().join("model.safetensors"), desk.path("gptq/model.safetensors"))
        .expect("copy");
    let config = r#"{"quantization_config": {"quant_method": "gptq"}}"#;
    fs::write(desk.path("gptq/config.json"), config).expect("can write");
    desk.run(&["pack", "gptq", "-o", "out.uc"])
        .expect(1)
        .says("already quantized")
        .says("--raw-all");
    desk.run(&["pack", "gptq", "-o", "out.uc", "--raw-all", "-q"]).expect(0);
    desk.run(&["same", "gptq", "out.uc", "-q"]).expect(0);
}

// ---- info -------------------------------------------------------------------------------------

#[test]
fn info_lists_what_the_pack_holds() {
    let desk = Desk::with_pack();
    let json = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    let keys = ["format_version", "weights", "body_bpw", "file_bpw", "stored_root", "decoded_root"];
    has_keys(&json, &keys);
    assert_eq!(json["format_version"], "1.0");
    for t in json["tensors"].as_array().expect("a list") {
        has_keys(
            t,
            &[
                "name",
                "dtype",
                "shape",
                "encoding",
                "planes",
                "group",
                "stored_bytes",
                "decoded_sha256",
                "exact",
            ],
        );
        assert!(is_digest(&t["decoded_sha256"]), "{t}");
        let alias_of_planes = t["alias_of"] == "lm_head.weight";
        assert_eq!(t["exact"], t["encoding"] == "raw" && !alias_of_planes, "{t}");
        assert_eq!(t["stored_bytes"] == 0, t["encoding"] == "alias", "{t}");
    }
    let human = desk.run(&["info", "model.uc"]).expect(0);
    let human = human.prints("model.uc: UltraCompress format 1.0").prints("planes 5, group 32");
    let human = human.prints("alias of lm_head.weight").prints("carries config.json");
    human.prints(json["decoded_root"].as_str().expect("a digest"));

    desk.run(&["info", "none.uc"]).expect(1).says("none.uc: can't open");
    desk.run(&["info", &source()]).expect(1).says("is a folder");
    let weights = fixture().join("model.safetensors");
    desk.run(&["info", weights.to_str().expect("UTF-8")]).expect(1).says("`uc pack` makes a .uc");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let desk = Desk::with_pack();
    let mut child = desk
        .command(&["info", "model.uc", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}

// ---- verify -----------------------------------------------------------------------------------

fn verdicts(json: &Value) -> [&str; 4] {
    ["structure", "stored", "decoded", "compared_with"]
        .map(|key| json[key].as_str().unwrap_or_else(|| panic!("no {key} in {json:#}")))
}

#[test]
fn verify_says_what_was_compared_and_what_was_not() {
    let desk = Desk::with_pack();
    let info = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    let n = info["tensors"].as_array().expect("a list").len();
    let verify = |args: &[&str]| {
        let all: Vec<&str> =
            ["verify", "model.uc", "--json"].into_iter().chain(args.iter().copied()).collect();
        desk.run(&all)
    };
    let json = verify(&[]).expect(0).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "ok", "not_checked"]);
    assert_eq!((&json["tensors_checked"], &json["failures"]), (&n.into(), &Value::Array(vec![])));
    let json = verify(&["--fast"]).expect(0).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "not_checked", "not_checked"]);
    assert_eq!(json["tensors_checked"], 0);

    let stored = info["stored_root"].as_str().expect("a digest");
    let decoded = info["decoded_root"].as_str().expect("a digest");
    for root in [stored, decoded, &stored.to_uppercase()] {
        let json = verify(&["--root", root]).expect(0).json();
        assert_eq!(verdicts(&json), ["ok", "ok", "ok", "ok"]);
    }
    let json = verify(&["--fast", "--root", stored]).expect(0).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "not_checked", "ok"]);
    // Nothing was decoded, so a decoded root can't be confirmed.
    let json = verify(&["--fast", "--root", decoded]).expect(3).json();
    assert_eq!(json["compared_with"], "mismatch");
    let json = verify(&["--root", &"0".repeat(64)]).expect(3).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "ok", "mismatch"]);
    let failure = &json["failures"][0];
    has_keys(failure, &["tensor", "part", "offset", "reason"]);

    desk.run(&["verify", "model.uc"]).expect(0).prints("consistent, not authenticated");
    let ran = desk.run(&["verify", "model.uc", "--root", stored]).expect(0);
    ran.prints("consistent, and in agreement with what was given");
    desk.run(&["verify", "model.uc", "--root", &"0".repeat(64)]).expect(3).prints("NOT OK");
}

#[test]
fn verify_compares_with_the_source() {
    let desk = Desk::with_pack();
    let json = desk.run(&["verify", "model.uc", "--against", &source(), "--json"]).expect(0).json();
    assert_eq!(json["compared_with"], "ok");
    // What was unpacked is not the source: its quantized tensors differ, and each is named.
    desk.run(&["unpack", "model.uc", "-o", "out", "-q"]).expect(0);
    let json = desk.run(&["verify", "model.uc", "--against", "out", "--json"]).expect(3).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "ok", "mismatch"]);
    let failed: BTreeSet<&str> = json["failures"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|f| f["tensor"].as_str())
        .collect();
    assert!(failed.contains("lm_head.weight") && !failed.contains("model.norm.weight"));
    desk.run(&["verify", "model.uc", "--against", "nothing"]).expect(1);
}

#[test]
fn verify_tells_damage_from_malformed_input() {
    // A flipped bit in the data: a checksum that doesn't match.
    let desk = Desk::with_pack();
    desk.damage(0.5);
    let json = desk.run(&["verify", "model.uc", "--json"]).expect(3).json();
    assert_eq!(verdicts(&json)[..2], ["mismatch", "mismatch"]);
    let located = json["failures"].as_array().expect("a list").iter();
    assert!(located.clone().any(|f| f["tensor"].is_string() && f["part"].is_string()));
    assert!(located.clone().all(|f| f["reason"].as_str().is_some_and(|r| !r.is_empty())));
    desk.run(&["verify", "model.uc", "--fast"]).expect(3).prints("NOT OK");
    desk.run(&["unpack", "model.uc", "-o", "out"]).expect(3).says("error: model.uc: ");
    assert_eq!(desk.names(), ["model.uc"], "nothing half-written");

    // A flipped bit in the preamble: it doesn't open.
    let desk = Desk::with_pack();
    desk.damage(0.0006);
    let json = desk.run(&["verify", "model.uc", "--json"]).expect(3).says("error: ").json();
    assert_eq!(verdicts(&json), ["mismatch", "not_checked", "not_checked", "not_checked"]);
    desk.run(&["info", "model.uc"]).expect(3);

    // Cut off, something else, not there: malformed input or I/O.
    let desk = Desk::with_pack();
    let bytes = fs::read(desk.path("model.uc")).expect("there");
    fs::write(desk.path("model.uc"), &bytes[..bytes.len() - 1]).expect("can write");
    let json =
        desk.run(&["verify", "model.uc", "--json"]).expect(1).says("the preamble says").json();
    assert_eq!(json["failures"].as_array().map(Vec::len), Some(1));
    fs::write(desk.path("model.uc"), b"").expect("can write");
    desk.run(&["verify", "model.uc"]).expect(1).says("the file is empty");
    desk.run(&["verify", "none.uc"]).expect(1).says("none.uc: can't open");
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
    assert!(files(&desk.path("out")) == files(&fixture()), "every byte of every file");
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
    let read = |name: &str| fs::read(desk.path(name)).expect("written");
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
    assert!(files(&desk.path("out2")) == files(&fixture()));
    desk.run(&["strip", "only.uc", "-o", "x.uc"]).expect(2).says("coded without planes");
    desk.run(&["pack", &source(), "--exact", "--exact-only", "-o", "x.uc"]).expect(2);

    // Damage in a residual: the model is whole, the source can't be given back.
    let mut bytes = read("exact.uc");
    let at = usize::try_from(damage_place(&desk, "exact.uc")).expect("small");
    bytes[at] ^= 1;
    fs::write(desk.path("exact.uc"), bytes).expect("can write");
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

// ---- unpack, same, diff -----------------------------------------------------------------------

#[test]
fn unpack_gives_a_folder_that_is_the_same_model() {
    let desk = Desk::with_pack();
    let json = desk.run(&["unpack", "model.uc", "-o", "out", "--json"]).expect(0).json();
    has_keys(&json, &["output", "tensors", "bytes", "decoded_root"]);
    let info = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    assert_eq!(json["decoded_root"], info["decoded_root"]);
    assert_eq!(json["tensors_compared"], json["tensors"]);
    let (before, after) = (files(&fixture()), files(&desk.path("out")));
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
    let header = |folder: &str| {
        let bytes = fs::read(desk.path(folder).join("model.safetensors")).expect("unpacked");
        let n = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let n = usize::try_from(n).expect("small");
        let value: Value = serde_json::from_slice(&bytes[8..8 + n]).expect("JSON");
        value
    };
    for (flag, name) in [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("source", "BF16")] {
        let json = run(&[flag, "--dtype", flag], 0).json();
        let header = header(flag);
        assert_eq!(header["lm_head.weight"]["dtype"], name);
        let compared = json["tensors_compared"].as_u64().expect("a number") > 0;
        assert_eq!(compared, name == "BF16", "{flag}");
    }
    let full = fs::read(desk.path("source/model.safetensors")).expect("unpacked");
    assert!(full == fs::read(desk.path("bf16/model.safetensors")).expect("unpacked"));
    run(&["rung8", "--rung", "8"], 0);
    assert!(full == fs::read(desk.path("rung8/model.safetensors")).expect("unpacked"));
    run(&["rung3", "--rung", "3"], 0);
    assert!(full != fs::read(desk.path("rung3/model.safetensors")).expect("unpacked"));

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
    fs::create_dir(desk.path("out")).expect("can write");
    desk.run(&["unpack", "model.uc", "-o", "out", "-q"]).expect(0);
    fs::write(desk.path("out/config.json"), b"mine").expect("can write");
    fs::write(desk.path("out/notes"), b"mine").expect("can write");
    desk.run(&["unpack", "model.uc", "-o", "out"]).expect(1).says("out: already exists");
    assert_eq!(fs::read(desk.path("out/config.json")).expect("kept"), b"mine");
    desk.run(&["unpack", "model.uc", "-o", "out", "--force"]).expect(0);
    assert_eq!(fs::read(desk.path("out/notes")).expect("stays"), b"mine");
    let config = fs::read(fixture().join("config.json")).expect("there");
    assert_eq!(fs::read(desk.path("out/config.json")).expect("replaced"), config);
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

// ---- The rest ---------------------------------------------------------------------------------

#[test]
fn json_alone_is_on_stdout_and_quiet_is_quiet() {
    let desk = Desk::with_pack();
    fs::create_dir(desk.path("src")).expect("can write");
    fs::copy(fixture().join("model.safetensors"), desk.path("src/model.safetensors"))
        .expect("copy");
    fs::write(desk.path("src/model.onnx"), b"x").expect("can write");
    let ran = desk.run(&["pack", "src", "-o", "a.uc", "--json"]).expect(0);
    assert_eq!(ran.json()["left_out"], serde_json::json!(["model.onnx"]));
    ran.says("left out: model.onnx");
    let ran = desk.run(&["pack", "src", "-o", "b.uc", "--json", "-q"]).expect(0);
    assert_eq!(ran.stderr, "");
    for args in [&["verify", "a.uc", "-q"][..], &["same", "-q", "a.uc", "b.uc"]] {
        assert_eq!(desk.run(args).expect(0).stderr, "");
    }
}

#[test]
fn completions_know_every_command() {
    let desk = Desk::empty();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = desk.run(&["completions", shell]).expect(0);
        for command in ["pack", "info", "verify", "unpack", "same", "diff"] {
            assert!(ran.stdout.contains(command), "{shell} completions lack {command}");
        }
        assert!(ran.stdout.contains("dry-run"), "{shell} completions lack flags");
    }
}

#[test]
fn eval_records_and_receipts_by_the_contract() {
    let desk = Desk::with_pack();
    let line = "The people came to hear the law, and it was good. A single man must be in want of a wife.\n";
    fs::write(desk.path("text.txt"), line.repeat(40)).expect("can write");
    let source = source();
    let eval = |more: &[&str]| {
        let all =
            ["eval", "model.uc", "--against", &source, "--text", "text.txt", "--seq-len", "64"];
        desk.run(&[&all[..], more].concat())
    };
    let record = ["--record", "eval.json", "--baseline", "q8_0,q5_0", "--json", "-q"];
    let found = eval(&record).expect(0).json();
    let keys: Vec<&str> =
        "tokens sequences seq_len ppl ppl_reference ppl_ratio ppl_ratio_se kld_mean kld_se \
                           kld_p99 top1_agreement body_bpw file_bpw"
            .split_whitespace()
            .collect();
    for key in keys {
        assert!(found[key].is_number(), "{key}: {found}");
    }
    let baselines = found["baselines"].as_array().expect("an array");
    assert_eq!(baselines.len(), 2);
    for key in ["body_bpw", "ppl_ratio", "ppl_ratio_se", "kld_mean", "kld_se"] {
        assert!(baselines[1][key].is_number(), "{key}: {}", baselines[1]);
    }
    assert_eq!(baselines[1]["name"], "q5_0");
    // Once more: nothing is replaced, and nothing is computed before that is known.
    eval(&record).expect(1).says("--force");
    eval(&["--record", "eval.json", "-q", "--force", "--max-tokens", "200"]).expect(0).prints("KL");
    eval(&["--rung", "4", "-q"]).expect(0).prints("model, rung 4");
    eval(&["--seq-len", "4000"]).expect(2);
    eval(&["--max-tokens", "10"]).expect(1).says("too short");
    eval(&["--baseline", "q5_0,q5_0"]).expect(2).says("twice");

    desk.run(&["receipt", "check", "model.uc"]).expect(1).says("no receipt");
    desk.run(&["receipt", "add", "model.uc", "eval.json", "-o", "with.uc"])
        .expect(0)
        .prints("eval-");
    desk.run(&["receipt", "add", "model.uc", "eval.json", "-o", "with.uc"])
        .expect(1)
        .says("--force");
    desk.run(&["receipt", "add", "with.uc", "eval.json", "-o", "twice.uc"]).expect(2);
    desk.run(&["receipt", "add", "model.uc", "text.txt", "-o", "not.uc"])
        .expect(1)
        .says("UC-RCP-1");
    desk.run(&["same", "model.uc", "with.uc"]).expect(0);
    desk.run(&["verify", "with.uc", "-q"]).expect(0);
    let checked = desk.run(&["receipt", "check", "with.uc", "--json"]).expect(0).json();
    assert_eq!(checked["receipts"][0]["headline"], "ok");
    let info = desk.run(&["info", "with.uc", "--json"]).expect(0).json();
    assert!(info["receipts"][0]["headline"]["kld_mean"].is_number(), "{info}");
    let before = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    assert_eq!(before["stored_root"], info["stored_root"]);
    desk.run(&["info", "with.uc"]).expect(0).prints("kld_mean");

    // A headline that the rows don't give, or of another pack, is a mismatch.
    let text = fs::read_to_string(desk.path("eval.json")).expect("written");
    let better = text.replacen("\"kld_mean\":", "\"kld_mean\":1", 1);
    fs::write(desk.path("better.json"), better).expect("can write");
    desk.run(&["receipt", "add", "model.uc", "better.json", "-o", "b.uc"])
        .expect(3)
        .says("kld_mean");
    desk.run(&["pack", &source, "-o", "six.uc", "--bits", "6", "-q"]).expect(0);
    desk.run(&["receipt", "add", "six.uc", "eval.json", "-o", "b.uc"])
        .expect(3)
        .says("another pack");
    assert!(desk.names().iter().all(|n| !n.starts_with('.') && n != "b.uc" && n != "twice.uc"));
}

/// A text that gives the fixture enough to see.
fn text() -> String {
    let lines = [
        "The people came to hear the law, and it was good. A single man must be in want of a wife.\n",
        "And the Lord spake unto Moses, saying, Speak unto the children of Israel.\n",
        "The whale rose slowly from the sea; call me what you will, he said, and went below.\n",
        "Fellow citizens of the Senate and House of Representatives, the state of the Union is strong.\n",
    ];
    (0..56).map(|i| lines[(i * i + i / 3) % 4]).collect()
}

/// A folder with a calibration of the fixture as `model.cal`.
fn with_calibration() -> Desk {
    static STATS: OnceLock<Vec<u8>> = OnceLock::new();
    let desk = Desk::empty();
    fs::write(desk.path("text.txt"), text()).expect("can write");
    let stats = STATS.get_or_init(|| {
        let args =
            ["calibrate", &source(), "--text", "text.txt", "-o", "model.cal", "--seq-len", "64"];
        let found = desk.run(&[&args[..], &["--json", "-q"]].concat()).expect(0).json();
        assert_eq!(found["layers"], 2 * 7 + 1, "{found}");
        assert!(found["tokens"].as_u64().is_some_and(|n| n > 1000) && is_digest(&found["sha256"]));
        desk.run(&args).expect(1).says("--force");
        let again = desk.run(&[&args[..], &["--force", "--json", "-q", "-j1"]].concat());
        assert_eq!(again.expect(0).json(), found, "threads make no difference");
        fs::read(desk.path("model.cal")).expect("written")
    });
    fs::write(desk.path("model.cal"), stats).expect("can write");
    desk
}

#[test]
fn calibrated_packs_keep_their_budget_and_are_better() {
    let desk = with_calibration();
    let source = source();
    let pack = |out: &str, more: &[&str]| {
        let args = ["pack", &source, "--calibration", "model.cal", "-o", out, "--json", "-q"];
        desk.run(&[&args[..], more].concat())
    };
    let kld = |pack: &str| {
        let args = ["eval", pack, "--against", &source, "--text", "text.txt", "--seq-len", "64"];
        let found = desk.run(&[&args[..], &["--json", "-q"]].concat()).expect(0).json();
        found["kld_mean"].as_f64().expect("a number")
    };
    let found = pack("a.uc", &["--bpw", "5.3"]).expect(0).json();
    let bpw = found["body_bpw"].as_f64().expect("a number");
    assert!(bpw <= 5.3 && bpw > 5.25, "{bpw}");
    desk.run(&["verify", "a.uc", "-q"]).expect(0);
    desk.run(&["pack", &source, "-o", "plain.uc", "-q"]).expect(0);
    let plain = desk.run(&["info", "plain.uc", "--json"]).expect(0).json();
    // A tenth of a bit is worth 13 percent.
    assert!(
        plain["body_bpw"].as_f64().is_some_and(|plain| plain > bpw - 0.1),
        "about as many bits"
    );
    assert!(kld("a.uc") < 0.5 * kld("plain.uc"), "worse by far");

    // The same bytes from one thread and from scalar code.
    let args = ["pack", &source, "--calibration", "model.cal", "-o", "c.uc", "--bpw", "5.3", "-q"];
    let args = [&args[..], &["-j1"]].concat();
    let scalar = desk.command(&args).env("UC_KERNEL", "scalar").status().expect("starts");
    assert!(scalar.success());
    let bytes = |name: &str| fs::read(desk.path(name)).expect("packed");
    assert!(bytes("a.uc") == bytes("c.uc"));

    // Every switch the other way, and a tensor that is forced.
    let lines = "[calibrated]\nbpw = 5.3\noutput_feedback = false\ndescent_passes = 1\n\
                 allocation = \"tensor\"\nchoose_group = false\ntable_group = 64\nfit_levels = false\n";
    fs::write(desk.path("r.toml"), lines).expect("can write");
    let other = ["--recipe", "r.toml", "--tensor", "v_proj=8", "--shard-size", "1M"];
    let other = pack("o.uc", &other).expect(0).json();
    assert!(other["body_bpw"].as_f64().is_some_and(|b| b <= 5.3 && b > 4.5), "{other}");
    let info = desk.run(&["info", "o.uc", "--json"]).expect(0).json();
    let tensors = info["tensors"].as_array().expect("an array");
    let all_named = |part: &str, check: &dyn Fn(&Value) -> bool| {
        let mut named =
            tensors.iter().filter(|t| t["name"].as_str().is_some_and(|n| n.contains(part)));
        assert!(named.all(check), "{part}: {info}");
    };
    all_named("v_proj", &|t| t["planes"] == 8);
    all_named("_proj", &|t| t["group"] == 32);
    all_named("head", &|t| t["group"] == 64);
    // Without a budget: so many planes everywhere.
    let recipe = "[calibrated]\ninput_feedback = false\ndescent_passes = 0\n";
    fs::write(desk.path("r.toml"), recipe).expect("can write");
    let uniform = pack("u.uc", &["--bits", "4", "--recipe", "r.toml"]).expect(0).json();
    assert!(uniform["body_bpw"].as_f64().is_some_and(|b| b > 4.0 && b < 4.5), "{uniform}");
    let plan = desk.run(&[
        "pack",
        &source,
        "--calibration",
        "model.cal",
        "--bpw",
        "5",
        "-o",
        "n.uc",
        "--dry-run",
    ]);
    plan.expect(0).prints("calibrated: ");
    assert!(!desk.names().contains(&"n.uc".to_owned()));
}

#[test]
fn unusable_calibrations_exit_with_one_and_leave_nothing() {
    use std::collections::HashMap;

    use safetensors::SafeTensors;
    use safetensors::tensor::TensorView;

    let desk = with_calibration();
    let source = source();
    let names = desk.names();
    let refuse = |calibration: &str, bpw: &str, says: &str| {
        let args =
            ["pack", &source, "--calibration", calibration, "--bpw", bpw, "-o", "x.uc", "-q"];
        desk.run(&args).expect(1).says(says);
        assert!(desk.names().iter().all(|n| n != "x.uc" && !n.starts_with('.')), "{says}");
    };
    refuse("none.cal", "5", "none.cal");
    refuse("text.txt", "5", "safetensors");
    refuse(&format!("{source}/model.safetensors"), "5", "not a calibration");
    refuse("model.cal", "3", "can't be kept");
    desk.run(&["pack", &source, "--bpw", "5", "-o", "x.uc"]).expect(2);
    let args = ["pack", &source, "--calibration", "model.cal", "-o", "x.uc"];
    for wrong in ["0x5", "-1", "nan", "5.00001", ""] {
        desk.run(&[&args[..], &["--bpw", wrong]].concat()).expect(2);
    }
    desk.run(&[&args[..], &["--bpw", "5", "--bits", "5"]].concat()).expect(2);
    fs::write(desk.path("r.toml"), "[calibrated]\nbpw = 5\n").expect("can write");
    desk.run(&["pack", &source, "--recipe", "r.toml", "-o", "x.uc"]).expect(2).says("calibration");
    fs::write(desk.path("r.toml"), "[calibrated]\nfeedback = 5\n").expect("can write");
    desk.run(&[&args[..], &["--recipe", "r.toml"]].concat()).expect(2).says("feedback");
    fs::remove_file(desk.path("r.toml")).expect("was there");
    let other = fixture().join("../../../tests/models/llama3");
    let other = other.to_str().expect("UTF-8");
    desk.run(&["pack", other, "--calibration", "model.cal", "--bpw", "6", "-o", "x.uc"])
        .expect(1)
        .says("another model");

    // Damage, one piece at a time.
    let bytes = fs::read(desk.path("model.cal")).expect("there");
    fs::write(desk.path("cut.cal"), &bytes[..bytes.len() - 5]).expect("can write");
    refuse("cut.cal", "5", "cut off");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
    let metadata = header.metadata().clone().expect("has a record");
    let record: Value = serde_json::from_str(&metadata["ultracompress_calibration"]).expect("JSON");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    type Tensors = BTreeMap<String, Vec<f32>>;
    let tensors: Tensors = tensors
        .tensors()
        .into_iter()
        .map(|(name, t)| {
            let values = t.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (name, values)
        })
        .collect();
    let write = |name: &str, change: &dyn Fn(&mut Value, &mut Tensors)| {
        let (mut record, mut tensors) = (record.clone(), tensors.clone());
        change(&mut record, &mut tensors);
        let bytes: BTreeMap<String, Vec<u8>> = tensors
            .into_iter()
            .map(|(name, v)| (name, v.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = bytes.iter().map(|(name, b)| {
            let shape = vec![b.len() / 4];
            (name.clone(), TensorView::new(safetensors::Dtype::F32, shape, b).expect("fits"))
        });
        let metadata =
            HashMap::from([("ultracompress_calibration".to_owned(), record.to_string())]);
        let path = desk.path(name);
        safetensors::serialize_to_file(views, Some(metadata), &path).expect("writes");
    };
    const DOWN: &str = "model.layers.1.mlp.down_proj";
    write("root.cal", &|r, _| r["model_root"] = "0".repeat(64).into());
    refuse("root.cal", "5", "another model");
    write("missing.cal", &|r, t| {
        r["layers"].as_object_mut().expect("an object").remove(DOWN);
        t.remove(&format!("{DOWN}.input"));
        t.remove(&format!("{DOWN}.output"));
    });
    refuse("missing.cal", "5", "lacks");
    write("no-tensor.cal", &|_, t| drop(t.remove(&format!("{DOWN}.output"))));
    refuse("no-tensor.cal", "5", "lacks");
    write("extra.cal", &|_, t| drop(t.insert("x".into(), vec![1.0])));
    refuse("extra.cal", "5", "doesn't speak of");
    write("nan.cal", &|_, t| t.get_mut(&format!("{DOWN}.input")).expect("there")[7] = f32::NAN);
    refuse("nan.cal", "5", "NaN");
    write("zero.cal", &|_, t| t.get_mut(&format!("{DOWN}.output")).expect("there").fill(0.0));
    refuse("zero.cal", "5", "zero");
    write("indefinite.cal", &|_, t| t.get_mut(&format!("{DOWN}.input")).expect("there")[1] = 1e9);
    refuse("indefinite.cal", "5", "positive definite");
    write("shape.cal", &|r, t| {
        r["layers"][DOWN]["rows"] = 64.into();
        t.get_mut(&format!("{DOWN}.output")).expect("there").truncate(64 * 65 / 2);
    });
    refuse("shape.cal", "5", "64 x 256");
    for (name, member, value) in [
        ("v.cal", "format_version", Value::from(2)),
        ("b.cal", "output_block", 65.into()),
        ("l.cal", "layers", Value::Null),
        ("m.cal", "more", 1.into()),
    ] {
        write(name, &|r, _| r[member] = value.clone());
        refuse(name, "5", "calibration");
    }
    write("cycle.cal", &|r, _| r["layers"][DOWN]["input"] = "nowhere".into());
    refuse("cycle.cal", "5", "inputs");
    write("wide.cal", &|r, _| r["layers"][DOWN]["cols"] = u64::MAX.into());
    refuse("wide.cal", "5", "columns");
    assert!(names.iter().all(|n| desk.names().contains(n)));

    // The text and the model it is made from.
    let calibrate = |model: &str, more: &[&str]| {
        let args = ["calibrate", model, "--text", "text.txt", "-o", "z.cal"];
        desk.run(&[&args[..], more].concat())
    };
    calibrate(&source, &["--seq-len", "64", "--max-tokens", "10"]).expect(1).says("too short");
    calibrate(&source, &["--seq-len", "64", "--output-block", "65"]).expect(2).says("64");
    calibrate(&source, &["--seq-len", "1"]).expect(2);
    let bert = fixture().join("../../../tests/models/bert");
    calibrate(bert.to_str().expect("UTF-8"), &[]).expect(2).says("encoder");
    let inside = format!("{source}/config.json");
    desk.run(&["calibrate", &source, "--text", "text.txt", "-o", &inside, "--force"])
        .expect(1)
        .says("source");
    assert!(!desk.names().contains(&"z.cal".to_owned()));
}

#[test]
fn overlays_are_trained_listed_removed_and_refused_by_the_contract() {
    let desk = Desk::with_pack();
    let line = "The people came to hear the law, and it was good. A single man must be in want of a wife.\n";
    fs::write(desk.path("text.txt"), line.repeat(60)).expect("can write");
    let source = source();
    let train = |more: &[&str]| {
        let all =
            ["train", "model.uc", "--model", &source, "--text", "text.txt", "--seq-len", "64"];
        desk.run(&[&all[..], more].concat())
    };
    let svd = ["--method", "svd", "--frozen-base", "--keep", "-o", "o.uc", "--json", "-q"];
    let found = train(&svd).expect(0).json();
    for key in ["rank", "bpw_before", "bpw_after", "kld_before", "kld_after"] {
        assert!(found[key].is_number(), "{key}: {found}");
    }
    assert_eq!((&found["kept"], &found["stopped"]), (&true.into(), &"closed_form".into()));
    assert_eq!(found["table"].as_array().map(Vec::len), Some(2));
    train(&svd).expect(1).says("--force");
    train(&["--bpw", "3", "--frozen-base", "-o", "x.uc"]).expect(2).says("leaves nothing");
    train(&["-o", "model.uc", "--force"]).expect(1).says("output is the input");
    assert!(!desk.path("x.uc").exists());

    let listed = desk.run(&["overlay", "list", "o.uc", "--json"]).expect(0).json();
    let overlay = &listed["overlays"][0];
    assert_eq!(overlay["name"], "trained");
    assert_eq!(overlay["info"]["recipe"]["method"], "svd");
    assert_eq!(overlay["effective_root"], found["effective_root"]);
    assert_eq!(overlay["info"]["factors_sha256"], found["factors_sha256"]);
    let info = desk.run(&["info", "o.uc", "--json"]).expect(0).json();
    assert_eq!(info["effective_root"], found["effective_root"]);
    assert!(info["overlay_bpw"].as_f64().is_some_and(|b| b > 0.3), "{}", info["overlay_bpw"]);
    desk.run(&["overlay", "list", "model.uc"]).expect(0).prints("no overlays");
    let verified = desk.run(&["verify", "o.uc", "--json"]).expect(0).json();
    assert_eq!(verified["effective"], "ok");
    let root = found["effective_root"].as_str().expect("a root");
    desk.run(&["verify", "o.uc", "--root", root]).expect(0).prints("in agreement");
    desk.run(&["same", "o.uc", "model.uc"]).expect(0);

    let unpacked = desk.run(&["unpack", "o.uc", "-o", "with", "--json"]).expect(0).json();
    assert_eq!(
        (&unpacked["decoded_root"], &unpacked["overlays"]),
        (&found["effective_root"], &1.into())
    );
    let base =
        desk.run(&["unpack", "o.uc", "-o", "base", "--no-overlays", "--json"]).expect(0).json();
    assert_eq!(base["decoded_root"], info["decoded_root"]);

    let eval = |more: &[&str]| {
        let all = [
            "eval",
            "o.uc",
            "--against",
            &source,
            "--text",
            "text.txt",
            "--seq-len",
            "64",
            "-q",
            "--json",
        ];
        desk.run(&[&all[..], more].concat()).expect(0).json()
    };
    let with = eval(&["--record", "eval.json"]);
    let without = eval(&["--no-overlays"]);
    assert_eq!(with["effective_root"], found["effective_root"]);
    assert_eq!(without["effective_root"], Value::Null);
    assert!(with["body_bpw"].as_f64() > without["body_bpw"].as_f64());
    assert!(with["kld_mean"] != without["kld_mean"]);
    desk.run(&["receipt", "add", "o.uc", "eval.json", "-o", "receipt.uc"]).expect(0);
    desk.run(&["info", "receipt.uc"]).expect(0).prints("with overlays, ");
    desk.run(&["receipt", "add", "model.uc", "eval.json", "-o", "x.uc"]).expect(3);

    desk.run(&["overlay", "export", "o.uc", "trained", "-o", "file.uc"]).expect(0);
    desk.run(&["overlay", "add", "model.uc", "file.uc", "-o", "again.uc", "-q"]).expect(0);
    assert!(
        fs::read(desk.path("again.uc")).expect("there")
            == fs::read(desk.path("o.uc")).expect("there")
    );
    desk.run(&["overlay", "remove", "o.uc", "trained", "-o", "plain.uc", "-q"]).expect(0);
    assert!(
        fs::read(desk.path("plain.uc")).expect("there")
            == fs::read(desk.path("model.uc")).expect("there")
    );
    desk.run(&["overlay", "remove", "model.uc", "trained", "-o", "x.uc"]).expect(2);
    desk.run(&["pack", &source, "--bits", "6", "-o", "six.uc", "-q"]).expect(0);
    desk.run(&["overlay", "add", "six.uc", "file.uc", "-o", "x.uc"]).expect(3).says("is for");
    desk.run(&["overlay", "add", "model.uc", "-o", "x.uc"]).expect(2);
    desk.run(&["overlay", "add", "model.uc", "--lora", "with", "-o", "x.uc"]).expect(1);
    assert!(!desk.path("x.uc").exists());
}
