//! Receipts of audits: what they say of sound and damaged packs, that they are the same for
//! everybody, and signatures.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ultracompress::audit::AuditOptions;
use ultracompress::pack::{Exact, PackOptions};
use ultracompress::receipt::AuditReceipt;
use ultracompress::source::Source;
use ultracompress::{Container, Dtype, ErrorKind, Manifest};

use support::checkpoint::{Tensor, write_weights};
use support::damage::patched;
use support::folder::{Desk, repository};
use support::pack::NewPack;
use support::random::size;

/// A desk with a source of three tensors and two files.
fn desk() -> Desk {
    let desk = Desk::new();
    source(&desk, "source", 1);
    desk
}

fn source(desk: &Desk, name: &str, seed: u64) {
    let folder = desk.folder(name);
    let mut place = 0;
    let shapes = [("a.weight", &[64, 256][..]), ("b.weight", &[96, 128]), ("n", &[64])];
    let tensors = shapes.map(|(name, shape)| {
        let seed = if name == "n" { 7 } else { seed + place };
        place += 2 * shape.iter().product::<u64>();
        Tensor::floats(name, Dtype::Bf16, shape, seed)
    });
    write_weights(&folder.join("model.safetensors"), &tensors);
    fs::write(folder.join("config.json"), "{\"a\":1}").expect("can write");
}

fn pack(desk: &Desk, name: &str, options: &PackOptions) -> PathBuf {
    let source = Source::open(&desk.path("source")).expect("valid");
    let report = options.pack(&source, &desk.path(name)).expect("packs");
    report.files.last().expect("a file").0.clone()
}

fn with_source(desk: &Desk) -> AuditOptions {
    AuditOptions::new().with_source(Some(desk.path("source")))
}

/// Against the schema, and canonical.
fn check_form(receipt: &AuditReceipt) -> Value {
    let path = repository().join("spec/schema/audit.json");
    let schema = serde_json::from_str(&fs::read_to_string(path).expect("there")).expect("JSON");
    let schema = jsonschema::validator_for(&schema).expect("a schema");
    let bytes = receipt.to_bytes().expect("canonical");
    let json: Value = serde_json::from_slice(&bytes).expect("JSON");
    let errors: Vec<_> = schema.iter_errors(&json).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(serde_json_canonicalizer::to_vec(&json).expect("canonical"), bytes);
    json
}

#[test]
fn a_sound_pack_of_each_kind_is_made_again() {
    let desk = desk();
    for (i, options) in [
        PackOptions::new(),
        PackOptions::new().with_exact(Exact::Residual),
        PackOptions::new().with_exact(Exact::Only),
        PackOptions::new().with_rungs(vec![3, 4]),
        PackOptions::new().with_rungs(vec![3]).with_exact(Exact::Residual),
    ]
    .into_iter()
    .enumerate()
    {
        let file = pack(&desk, &format!("{i}.uc"), &options);
        let receipt = with_source(&desk).audit(&file).expect("audits");
        let json = check_form(&receipt);
        assert!(receipt.is_ok(), "{i}: {json:#}");
        let core = Container::open_path(&file).expect("valid").preamble().core_len;
        let rederived = receipt.rederived.expect("made again");
        assert_eq!((rederived.bytes_compared, rederived.tensors_equal), (core - 256, 3), "{i}");
        assert_eq!(json["checks"]["rederived"], "ok");
        let exact = if options.exact == Exact::No { "not_checked" } else { "ok" };
        let rungs = if options.rungs.is_empty() { "not_checked" } else { "ok" };
        assert_eq!(
            (&json["checks"]["exact"], &json["checks"]["rungs"]),
            (&json!(exact), &json!(rungs))
        );
    }
}

#[test]
fn equal_packs_have_equal_receipts_wherever_they_are() {
    let (desk, other) = (desk(), desk());
    let file = pack(&desk, "a.uc", &PackOptions::new());
    let copy = other.path("an other name.bin");
    fs::copy(&file, &copy).expect("can copy");
    let a = with_source(&desk).audit(&file).expect("audits").to_bytes().expect("canonical");
    let b = with_source(&other).audit(&copy).expect("audits").to_bytes().expect("canonical");
    assert!(a == b);
    let text = String::from_utf8(a).expect("UTF-8");
    for secret in [desk.root(), other.root()] {
        assert!(!text.contains(&secret.display().to_string()) && !text.contains("a.uc"), "{text}");
    }
    // Damaged ones too: no name of a file in them.
    let mut bytes = fs::read(&file).expect("there");
    bytes[4000] ^= 1;
    let mut receipts = vec![];
    for path in [&file, &copy] {
        fs::write(path, &bytes).expect("can write");
        let receipt = AuditOptions::new().audit(path).expect("audits");
        check_form(&receipt);
        assert!(!receipt.is_ok() && receipt.checks["stored"] == "mismatch");
        receipts.push(receipt.to_bytes().expect("canonical"));
    }
    assert!(receipts[0] == receipts[1]);
}

#[test]
fn what_does_not_open_has_a_receipt() {
    let desk = desk();
    let file = pack(&desk, "a.uc", &PackOptions::new());
    let bytes = fs::read(&file).expect("there");
    let version = patched(&bytes, 8, &[9]);
    for (bytes, kind) in [
        (b"GGUF".to_vec(), "malformed"),
        (bytes[..bytes.len() / 2].to_vec(), "truncated"),
        (version, "unsupported_version"),
        (vec![], "malformed"),
    ] {
        fs::write(&file, &bytes).expect("can write");
        let receipt = with_source(&desk).audit(&file).expect("audits");
        let json = check_form(&receipt);
        assert_eq!(json["verdict"], "failed");
        assert_eq!(json["failures"][0]["kind"], kind, "{json:#}");
        assert_eq!(json["files"][0]["bytes"], bytes.len());
    }
    let e = AuditOptions::new().audit(&desk.path("nothing.uc")).expect_err("not there");
    assert_eq!(*e.kind(), ErrorKind::Io);
}

#[test]
fn another_source_and_another_root_are_told() {
    let desk = desk();
    let file = pack(&desk, "a.uc", &PackOptions::new());
    source(&desk, "other", 99);
    let options = AuditOptions::new().with_source(Some(desk.path("other")));
    let receipt = options.audit(&file).expect("audits");
    check_form(&receipt);
    assert_eq!(
        (&*receipt.checks["source"], &*receipt.checks["rederived"]),
        ("mismatch", "not_checked")
    );
    assert_eq!(receipt.verdict, "failed");
    let known = receipt.roots["decoded"].parse_root();
    let receipt = AuditOptions::new().with_root(Some(known)).audit(&file).expect("audits");
    assert!(receipt.is_ok() && receipt.checks["root"] == "ok");
    let unknown = ultracompress::Digest::of(b"another");
    let receipt = AuditOptions::new().with_root(Some(unknown)).audit(&file).expect("audits");
    check_form(&receipt);
    assert!(!receipt.is_ok() && receipt.checks["root"] == "mismatch");
}

trait ParseRoot {
    fn parse_root(&self) -> ultracompress::Digest;
}

impl ParseRoot for String {
    fn parse_root(&self) -> ultracompress::Digest {
        ultracompress::Digest::from_hex(self).expect("a digest")
    }
}

/// The pack with another manifest, everything else as it was.
fn with_manifest(file: &Path, change: impl Fn(&mut Manifest)) {
    use ultracompress::{EncodedTensor, PlaneParts, StoredFile};
    let pack = Container::open_path(file).expect("valid");
    let mut new = NewPack::new();
    new.manifest = Manifest::read(&pack).expect("valid");
    change(&mut new.manifest);
    // Tensors as they are stored, read part by part.
    let bytes = fs::read(file).expect("there");
    let stored = |p: &ultracompress::format::Part| {
        bytes[size(p.offset)..size(p.offset + p.stored_len)].to_vec()
    };
    for t in pack.tensors() {
        use ultracompress::codec::PlaneCounts;
        use ultracompress::format::PartKind;
        use ultracompress::{EncodeOptions, Encoding};
        let e = t.entry();
        let of = |kind| e.parts.iter().filter(move |p| p.kind == kind).map(stored).next();
        let tensor = match &e.encoding {
            Encoding::Planes { row_dims, group, planes, level_ids } => {
                let parts = PlaneParts {
                    row_dims: *row_dims,
                    group: *group,
                    counts: PlaneCounts::Uniform(planes.expect("uniform")),
                    level_ids: *level_ids,
                    scales: of(PartKind::Scales).expect("scales"),
                    steps: of(PartKind::Steps).expect("steps"),
                    planes: (0..8).filter_map(|p| of(PartKind::Plane(p))).collect(),
                };
                EncodedTensor::from_planes(t.name(), t.dtype(), t.shape(), e.role, parts, &[])
            }
            _ => EncodedTensor::raw(
                t.name(),
                t.dtype(),
                t.shape(),
                &t.decode().expect("raw"),
                &EncodeOptions::new(),
            ),
        };
        new.writer.add_tensor(tensor.expect("valid")).expect("memory");
    }
    for f in &pack.index().files {
        let file = StoredFile::new(&f.path, &pack.read_file(f).expect("there"), None);
        new.writer.add_file(file.expect("valid")).expect("memory");
    }
    fs::write(file, new.bytes()).expect("can write");
}

#[test]
fn a_pack_that_its_source_does_not_give_is_told() {
    let desk = desk();
    let file = pack(&desk, "a.uc", &PackOptions::new());
    // Another encoder: the bytes are not compared, the values are counted.
    with_manifest(&file, |m| m.encoder = "another-1".into());
    let receipt = with_source(&desk).audit(&file).expect("audits");
    let json = check_form(&receipt);
    assert!(!receipt.is_ok(), "{json:#}");
    assert_eq!((&json["verdict"], &json["failures"]), (&json!("incomplete"), &json!([])));
    assert_eq!(json["checks"]["rederived"], "not_checked");
    assert_eq!(json["rederived"]["same_encoder"], false);
    let ran = desk.run(&["-q", "audit", "a.uc", "--source", "source"]);
    assert_eq!(ran.code, Some(3), "what isn't told is no success");
    let ran = desk.run(&["-q", "audit", "a.uc"]);
    assert_eq!(ran.code, Some(0), "nothing else was asked for");
    assert_eq!(
        (&json["rederived"]["tensors_equal"], &json["rederived"]["bytes_compared"]),
        (&json!(3), &json!(0))
    );
    // Values that this encoder doesn't make of the source, under its name: an honest manifest,
    // another model inside.
    source(&desk, "source", 5);
    let theirs = pack(&desk, "theirs.uc", &PackOptions::new());
    let manifest = Manifest::read(&Container::open_path(&theirs).expect("valid")).expect("valid");
    source(&desk, "source", 1);
    let forged = pack(&desk, "forged.uc", &PackOptions::new());
    with_manifest(&forged, |m| {
        m.tensors = manifest.tensors.clone();
        m.files = manifest.files.clone();
    });
    source(&desk, "source", 5);
    let receipt = with_source(&desk).audit(&forged).expect("audits");
    let json = check_form(&receipt);
    // Every digest in the file is right, and what it claims of its source is so; making it again
    // shows the lie.
    for check in ["structure", "stored", "decoded", "source"] {
        assert_eq!(json["checks"][check], "ok", "{json:#}");
    }
    assert_eq!(
        (&json["checks"]["rederived"], &json["verdict"]),
        (&json!("mismatch"), &json!("failed"))
    );
    assert_eq!(json["rederived"]["tensors_different"], 2);
}

#[test]
fn a_wrong_recipe_in_the_manifest_is_told_by_the_bytes() {
    let desk = desk();
    let file = pack(&desk, "a.uc", &PackOptions::new());
    with_manifest(&file, |m| m.recipe["bits"] = json!(6));
    let receipt = with_source(&desk).audit(&file).expect("audits");
    let json = check_form(&receipt);
    assert_eq!(
        (&json["checks"]["source"], &json["checks"]["rederived"]),
        (&json!("ok"), &json!("mismatch"))
    );
    assert!(json["failures"].as_array().is_some_and(|f| !f.is_empty()), "{json:#}");
    for recipe in
        [json!({ "unknown": 1 }), json!({ "bits": 99 }), json!({ "calibrated": { "bpw": "5.0" } })]
    {
        with_manifest(&file, |m| m.recipe = recipe.clone());
        let json = check_form(&with_source(&desk).audit(&file).expect("audits"));
        assert_eq!(json["checks"]["rederived"], "mismatch", "{recipe}");
        assert_eq!(
            (&json["failures"][0]["kind"], &json["verdict"]),
            (&json!("malformed"), &json!("failed"))
        );
    }
    with_manifest(&file, |m| m.calibration = Some("0".repeat(64)));
    let e = with_source(&desk).audit(&file).expect_err("the calibration is missing");
    assert_eq!(*e.kind(), ErrorKind::InvalidArgument, "{e}");
}

#[test]
fn dimensions_beyond_what_json_holds_are_digits() {
    let desk = desk();
    let mut pack = NewPack::new();
    for (name, n) in [("a", (1u64 << 53) - 1), ("b", 1 << 53), ("c", 1 << 60)] {
        pack.add_raw(name, Dtype::U8, &[0, n], b"");
    }
    desk.write("a.uc", pack.bytes());
    let receipt = AuditOptions::new().audit(&desk.path("a.uc")).expect("audits");
    let json = check_form(&receipt);
    assert!(receipt.is_ok(), "{json:#}");
    let shapes: Vec<&Value> =
        json["tensors"].as_array().expect("tensors").iter().map(|t| &t["shape"][1]).collect();
    let digits =
        [json!(9_007_199_254_740_991u64), json!("9007199254740992"), json!("1152921504606846976")];
    assert_eq!(shapes, digits.iter().collect::<Vec<_>>());
    let again: AuditReceipt =
        serde_json::from_slice(&receipt.to_bytes().expect("canonical")).expect("a receipt");
    assert_eq!(again, receipt);
}

#[test]
fn sharded_packs_are_joined_and_their_files_named() {
    let desk = desk();
    // Larger, so that there are shards.
    let tensor = |(name, seed)| Tensor::floats(name, Dtype::Bf16, &[1024, 1024], seed);
    let tensors = [("w", 3), ("v", 4), ("u", 5)].map(tensor);
    write_weights(&desk.path("source/model.safetensors"), &tensors);
    let index = pack(&desk, "m.uc", &PackOptions::new().with_shard_size(Some(1 << 20)));
    assert!(index.to_string_lossy().ends_with(".json"), "{}", index.display());
    let receipt = with_source(&desk).audit(&index).expect("audits");
    let json = check_form(&receipt);
    assert!(receipt.is_ok(), "{json:#}");
    assert_eq!(json["files"].as_array().expect("files").len(), 4);
    assert_eq!(json["files"][1]["name"], "m-00001-of-00003.uc");
    let shard = desk.path("m-00002-of-00003.uc");
    let alone = AuditOptions::new().audit(&shard).expect("audits");
    check_form(&alone);
    assert_eq!((alone.verdict.as_str(), alone.made.is_none()), ("incomplete", true));
    assert_eq!(alone.shard.as_ref().map(|s| (s.number, s.count)), Some((2, 3)));
    let e = with_source(&desk).audit(&shard).expect_err("one shard has no source");
    assert_eq!(*e.kind(), ErrorKind::InvalidArgument, "{e}");
    desk.flip("m-00002-of-00003.uc", 5000, 4);
    for options in [AuditOptions::new(), with_source(&desk)] {
        let json = check_form(&options.audit(&index).expect("audits"));
        assert_eq!(json["failures"][0]["file"], "m-00002-of-00003.uc", "{json:#}");
        assert_eq!(
            (&json["checks"]["rederived"], &json["rederived"]),
            (&json!("not_checked"), &Value::Null)
        );
    }
}

#[test]
fn the_command_writes_receipts_and_statements() {
    let desk = desk();
    pack(&desk, "a.uc", &PackOptions::new());
    let ran = desk.run(&["audit", "a.uc", "--source", "source", "-o", "a.json"]).expect(0);
    assert!(ran.stdout.is_empty(), "{}", ran.stderr);
    let receipt = desk.read("a.json");
    let printed = desk.run(&["-q", "audit", "a.uc", "--source", "source"]);
    assert!(
        printed.stdout.as_bytes() == [&receipt[..], b"\n"].concat() && printed.stderr.is_empty()
    );
    let ran = desk.run(&["audit", "a.uc", "-o", "a.json"]);
    assert_eq!(ran.code, Some(1), "it is there");
    let ran = desk.run(&["--json", "-q", "audit", "a.uc", "--source", "source", "-o", "b.json"]);
    let json = ran.json();
    assert_eq!(json["verdict"], "ok");
    assert_eq!(json["sha256"], ultracompress::Digest::of(&receipt).to_string());
    let statement = desk.run(&["-q", "audit", "a.uc", "--source", "source", "--format", "in-toto"]);
    let json = statement.json();
    let own: Value = serde_json::from_slice(&receipt).expect("JSON");
    assert_eq!(json["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(json["predicate"], own);
    assert_eq!(json["subject"][0]["digest"]["sha256"], own["files"][0]["sha256"]);
    assert_eq!(json["subject"][1]["digest"]["uc_decoded_root"], own["roots"]["decoded"]);
    // A failure: a receipt all the same, and the exit code of a mismatch.
    desk.flip("a.uc", 4000, 1);
    let ran = desk.run(&["-q", "audit", "a.uc"]);
    assert_eq!(ran.code, Some(3));
    let json = ran.json();
    assert_eq!(json["verdict"], "failed");
    desk.write("a.uc", "no pack");
    assert_eq!(desk.run(&["-q", "audit", "a.uc"]).code, Some(1));
    assert_eq!(desk.run(&["audit", "a.uc", "--calibration", "x"]).code, Some(2));
}

#[test]
fn signatures_are_made_and_compared() {
    let desk = desk();
    pack(&desk, "a.uc", &PackOptions::new());
    let ok = |args: &[&str]| desk.run(args).expect(0);
    ok(&["sign", "--new-key", "k", "--no-password"]);
    ok(&["sign", "--new-key", "other", "--no-password"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(desk.path("k.key")).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    ok(&["sign", "a.uc", "--secret-key", "k.key"]);
    let ran = ok(&["--json", "verify", "a.uc", "--key", "k.pub"]);
    let json = ran.json();
    assert_eq!((&json["signature"], &json["compared_with"]), (&json!("ok"), &json!("ok")));
    let root = json["decoded_root"].as_str().expect("a root");
    assert!(json["signature_comment"].as_str().is_some_and(|c| c.contains(root)));
    let line = fs::read_to_string(desk.path("k.pub")).expect("written");
    ok(&["verify", "a.uc", "--key", line.lines().nth(1).expect("a key")]);
    // It is there; another key; no signature.
    assert_eq!(desk.run(&["sign", "a.uc", "--secret-key", "k.key"]).code, Some(1));
    let ran = desk.run(&["--json", "verify", "a.uc", "--key", "other.pub"]);
    assert_eq!(ran.code, Some(3));
    let json = ran.json();
    assert_eq!(
        (&json["signature"], &json["compared_with"]),
        (&json!("mismatch"), &json!("mismatch"))
    );
    assert_eq!(desk.run(&["verify", "a.uc", "--key", "k.pub", "--signature", "no"]).code, Some(1));
    assert_eq!(desk.run(&["verify", "a.uc", "--key", "no key"]).code, Some(2));
    let ran = ok(&["-q", "audit", "a.uc", "--key", "k.pub"]);
    let json = ran.json();
    assert_eq!(json["checks"]["signature"], "ok");
    assert_eq!(json["against"]["signature_key"].as_str().map(str::len), Some(16));
    // The receipt of a signature that isn't one says by which key.
    let id = json["against"]["signature_key"].clone();
    desk.write("bad.minisig", [0xff, 0xfe]);
    for signature in ["bad.minisig", "other.pub"] {
        let ran = desk.run(&["-q", "audit", "a.uc", "--key", "k.pub", "--signature", signature]);
        assert_eq!(ran.code, Some(3), "{signature}");
        let json = ran.json();
        assert_eq!(
            (&json["checks"]["signature"], &json["against"]["signature_key"]),
            (&json!("mismatch"), &id)
        );
    }
    // One bit that no rule of the format speaks of would do: here one that all checks notice.
    desk.flip("a.uc", 4000, 1);
    let ran = desk.run(&["--json", "verify", "a.uc", "--key", "k.pub", "--fast"]);
    assert_eq!(ran.code, Some(3));
    let json = ran.json();
    assert_eq!(json["signature"], "mismatch");
    // A damaged pack isn't signed.
    let ran = desk.run(&["sign", "a.uc", "--secret-key", "k.key", "-o", "new.minisig"]);
    assert_eq!(ran.code, Some(3));
    assert!(!desk.path("new.minisig").exists());
}
