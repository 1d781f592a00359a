//! Runs every file under `spec/vectors`, and checks that the program that makes them still does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use ultracompress::codec::{Levels, PlaneCounts, PlaneLayout, RunBytes, RunDecoder, reference};
use ultracompress::format::PartKind;
use ultracompress::{
    Container, DecodeOptions, Dtype, Error, ErrorKind, EvalRecord, Failure, Kernel, Manifest, Pack,
    ShardIndex, VerifyOptions,
};

#[path = "../examples/make_vectors/main.rs"]
mod make_vectors;

struct Vector {
    path: String,
    json: Value,
}

impl Vector {
    fn text(&self, member: &str) -> &str {
        self.json[member].as_str().unwrap_or_else(|| panic!("{}: no {member}", self.path))
    }

    fn rules(&self) -> Vec<&str> {
        self.json["rule"].as_array().expect("rule").iter().filter_map(Value::as_str).collect()
    }

    /// Whether a text cites one of the rules.
    fn is_named_in(&self, text: &str) -> bool {
        let cited = cited(text);
        self.rules().into_iter().any(|rule| cited.contains(rule))
    }

    fn levels(&self) -> Vec<&str> {
        self.json["levels"].as_array().expect("levels").iter().filter_map(Value::as_str).collect()
    }

    fn needs_zstd(&self) -> bool {
        self.json["flags"].as_array().is_some_and(|f| f.contains(&"zstd".into()))
    }

    fn name(&self) -> String {
        format!("{} ({}): {}", self.path, self.rules().join(", "), self.text("comment"))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("spec/vectors")
}

fn files(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(folder).expect("spec/vectors is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files(&path, found);
        } else {
            let text = std::fs::read_to_string(&path).expect("readable");
            found.insert(path.strip_prefix(root()).expect("below the root").to_owned(), text);
        }
    }
}

fn vectors(folder: &str) -> Vec<Vector> {
    let mut found = BTreeMap::new();
    files(&root().join(folder), &mut found);
    let parse = |(path, text): (PathBuf, String)| Vector {
        path: path.display().to_string(),
        json: serde_json::from_str(&text).expect("vectors are JSON"),
    };
    let all: Vec<_> = found.into_iter().map(parse).collect();
    assert!(!all.is_empty(), "{folder} has vectors");
    all.into_iter().filter(|v| cfg!(feature = "zstd") || !v.needs_zstd()).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let digit = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn kind_name(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Malformed(_) => "malformed",
        ErrorKind::Integrity => "integrity",
        ErrorKind::Truncated { .. } => "truncated",
        ErrorKind::UnsupportedVersion => "unsupported_version",
        ErrorKind::UnsupportedFeature => "unsupported_feature",
        _ => "other",
    }
}

/// What a complete check finds first.
fn verdict(bytes: &[u8]) -> Result<(), Box<Failure>> {
    let fail = |e: Error| Box::new(Failure::from(&e));
    let pack = Container::open(bytes).map_err(fail)?;
    let report = VerifyOptions::new().verify(&pack).map_err(fail)?;
    report.failures.into_iter().next().map_or(Ok(()), |f| Err(f.into()))
}

#[test]
fn checked_in_vectors_are_up_to_date() {
    let mut found = BTreeMap::new();
    files(&root(), &mut found);
    let made = make_vectors::vectors();
    assert_eq!(found.keys().collect::<Vec<_>>(), made.keys().collect::<Vec<_>>());
    for (path, text) in &made {
        assert!(
            found[path] == *text,
            "{} differs: run `cargo run --example make_vectors`",
            path.display()
        );
    }
}

#[test]
fn valid_containers_verify_and_decode() {
    for v in vectors("container/valid") {
        let bytes = unhex(v.text("input"));
        if let Err(f) = verdict(&bytes) {
            panic!("{}: {f:?}", v.name());
        }
        let pack = Container::open(bytes.as_slice()).expect("it just verified");
        let output = &v.json["output"];
        assert_eq!(pack.preamble().stored_root.to_string(), output["stored_root"], "{}", v.name());
        assert_eq!(
            pack.preamble().decoded_root.to_string(),
            output["decoded_root"],
            "{}",
            v.name()
        );
        check_overlays(&v, bytes.clone());
        let tensors = output["tensors"].as_object().expect("tensors");
        assert_eq!(pack.tensors().len(), tensors.len(), "{}", v.name());
        for t in pack.tensors() {
            let expected = &tensors[t.name()];
            assert_eq!(t.dtype().name(), expected["dtype"], "{}", v.name());
            assert_eq!(serde_json::json!(t.shape()), expected["shape"], "{}", v.name());
            assert_eq!(t.entry().decoded_sha256.to_string(), expected["sha256"], "{}", v.name());
            let decoded = t.decode().expect("it just verified");
            if let Some(hex) = expected["bytes"].as_str() {
                assert_eq!(decoded, unhex(hex), "{} {}", v.name(), t.name());
            }
            if let Some(hex) = expected["exact"].as_str() {
                for kernel in Kernel::available() {
                    let options = DecodeOptions::new().with_exact(true).with_kernel(kernel);
                    let exact = options.decode(&t).expect("it just verified");
                    assert_eq!(exact, unhex(hex), "{} {} exact, {kernel}", v.name(), t.name());
                }
            }
            for (dtype, hex) in expected["targets"].as_object().into_iter().flatten() {
                let options =
                    DecodeOptions::new().with_dtype(Dtype::from_name(dtype).expect("known"));
                let found = options.decode(&t).expect("valid");
                let hex = hex.as_str().expect("hexadecimal");
                assert_eq!(found, unhex(hex), "{} {} as {dtype}", v.name(), t.name());
            }
            for (rung, hex) in expected["rungs"].as_object().into_iter().flatten() {
                let planes = rung.parse().expect("a number of planes");
                let found = DecodeOptions::new().with_planes(planes).decode(&t).expect("valid");
                let hex = hex.as_str().expect("hexadecimal");
                assert_eq!(found, unhex(hex), "{} {} rung {rung}", v.name(), t.name());
            }
        }
    }
}

/// What each overlay of a vector leads to, with those before it, by every kernel.
fn check_overlays(v: &Vector, bytes: Vec<u8>) {
    let pack = Pack::from(Container::open(bytes).expect("it just verified"));
    let Some(expected) = v.json["output"]["overlays"].as_array() else { return };
    assert_eq!(pack.overlays().len(), expected.len(), "{}", v.name());
    for (i, (overlay, expected)) in pack.overlays().into_iter().zip(expected).enumerate() {
        assert_eq!(overlay.name, expected["name"].as_str().expect("a name"), "{}", v.name());
        assert_eq!(overlay.effective_root.to_string(), expected["effective_root"], "{}", v.name());
        let tensors = expected["tensors"].as_object().expect("tensors");
        assert_eq!(tensors.len(), overlay.blocks.len(), "{}", v.name());
        for (name, hex) in tensors {
            let expected = unhex(hex.as_str().expect("hexadecimal"));
            let tensor = pack.effective_tensor(name, i + 1).expect("valid");
            for kernel in Kernel::available() {
                let options = DecodeOptions::new().with_kernel(kernel);
                let found = tensor.decode(&options).expect("valid");
                assert_eq!(found, expected, "{} {name}, {kernel}", v.name());
            }
            // Some rows alone.
            let rows = tensor.base().shape()[0];
            let row = expected.len() / usize::try_from(rows).expect("small");
            let whole_rows = tensor.base().shape().len() == 2 && rows > 1;
            if whole_rows {
                let options = DecodeOptions::new().with_rows(1..2);
                assert_eq!(tensor.decode(&options).expect("valid"), expected[row..2 * row]);
            }
        }
    }
}

/// Opens a file and decodes what a reader of a level decodes, without comparing digests.
fn read_at(level: &str, bytes: Vec<u8>) -> Result<(), Error> {
    let pack = Pack::from(Container::open(bytes)?);
    let file = &pack.containers()[0];
    for path in &file.index().files {
        file.read_file(path)?;
    }
    for tensor in pack.tensors() {
        tensor.decode()?;
        let has_residual = tensor.entry().parts.iter().any(|p| p.kind == PartKind::Residual);
        if level != "overlay" && level != "read" && has_residual {
            DecodeOptions::new().with_exact(true).decode(&tensor)?;
        }
    }
    if level == "overlay" || level == "verify" {
        for (i, overlay) in pack.overlays().into_iter().enumerate() {
            for block in &overlay.blocks {
                if pack.tensor(&block.tensor).is_some() {
                    pack.effective_tensor(&block.tensor, i + 1)?.decode(&DecodeOptions::new())?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn levels_say_who_must_refuse_a_vector() {
    let mut wrong = vec![];
    for v in vectors("container/invalid") {
        let levels = v.levels();
        let bytes = unhex(v.text("input"));
        for level in ["read", "exact", "overlay"].into_iter().filter(|l| levels.contains(l)) {
            if read_at(level, bytes.clone()).is_ok() {
                wrong.push(format!("{}: a reader ({level}) accepts it", v.name()));
            }
        }
        // What any reader sees is not left to verifiers.
        // (The reference knows that a checksum of no attachments is wrong before anybody asks for
        // them. And there is no level of those who know coded tensors and overlays, but not
        // the rest.)
        let early = matches!(v.text("id"), "attachments-crc-without" | "overlay-on-coded");
        if levels == ["verify"] && !early && read_at("verify", bytes).is_err() {
            wrong.push(format!("{}: readers refuse it", v.name()));
        }
    }
    for v in vectors("pack/invalid") {
        if v.text("expect") == "missing" {
            continue;
        }
        let opened = open_shards(&v.json["input"]).is_ok();
        if opened && v.levels().contains(&"read") {
            wrong.push(format!("{}: a reader accepts it", v.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn invalid_containers_are_refused_for_the_stated_rule() {
    let mut wrong = vec![];
    for v in vectors("container/invalid") {
        match verdict(&unhex(v.text("input"))) {
            Ok(()) => wrong.push(format!("{}: accepted", v.name())),
            Err(f) => {
                // The rule stands in the text, whatever the kind.
                let named = v.is_named_in(&f.reason);
                if !named || kind_name(&f.kind) != v.text("expect") {
                    wrong.push(format!("{}: {f:?}", v.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a complete check of a pack of several files finds first.
fn pack_verdict(input: &Value) -> Result<(String, String), Box<Failure>> {
    let fail = |e: Error| Box::new(Failure::from(&e));
    let pack = open_shards(input)?;
    let report = VerifyOptions::new().verify_pack(&pack).map_err(fail)?;
    match report.failures.into_iter().next() {
        Some(failure) => Err(failure.into()),
        None => Ok((report.stored_root.to_string(), report.decoded_root.to_string())),
    }
}

fn open_shards(input: &Value) -> Result<Pack<Vec<u8>>, Box<Failure>> {
    let fail = |e: Error| Box::new(Failure::from(&e));
    let index = ShardIndex::parse(&unhex(input["index"].as_str().expect("hex"))).map_err(fail)?;
    let mut shards = vec![];
    for shard in &index.shards {
        let Some(bytes) = input["shards"][&shard.file].as_str() else {
            // What opening the file would say.
            let e = Pack::open_path(Path::new("no folder").join(&shard.file)).expect_err("missing");
            return Err(fail(e));
        };
        shards.push(Some(Container::open(unhex(bytes)).map_err(fail)?));
    }
    Pack::from_shards(index, shards).map_err(fail)
}

#[test]
fn sharded_packs_verify_or_are_refused_for_the_stated_rule() {
    for v in vectors("pack/valid") {
        let found = pack_verdict(&v.json["input"]);
        let (stored, decoded) = found.unwrap_or_else(|f| panic!("{}: {f:?}", v.name()));
        assert_eq!(v.json["output"]["stored_root"], stored, "{}", v.name());
        assert_eq!(v.json["output"]["decoded_root"], decoded, "{}", v.name());
    }
    let mut wrong = vec![];
    for v in vectors("pack/invalid") {
        match pack_verdict(&v.json["input"]) {
            Ok(_) => wrong.push(format!("{}: accepted", v.name())),
            Err(f) if v.text("expect") == "missing" && f.kind == ErrorKind::Io => {}
            Err(f) => {
                let named = v.is_named_in(&f.reason);
                if !named || kind_name(&f.kind) != v.text("expect") {
                    wrong.push(format!("{}: {f:?}", v.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn receipts_parse_or_are_refused() {
    for v in vectors("receipt") {
        let bytes = unhex(v.text("input"));
        match (EvalRecord::parse(&bytes), v.text("expect")) {
            (Ok(record), "ok") => {
                assert_eq!(record.to_bytes().expect("it was parsed"), bytes, "{}", v.name());
            }
            (Err(e), expect) => {
                assert_eq!(kind_name(e.kind()), expect, "{}: {e}", v.name());
                assert!(v.is_named_in(&e.to_string()), "{}: {e}", v.name());
            }
            (Ok(_), _) => panic!("{}: accepted", v.name()),
        }
    }
}

#[test]
fn manifests_parse_or_are_refused() {
    for v in vectors("manifest") {
        let result = Manifest::parse(&unhex(v.text("input")));
        match (v.text("expect"), result) {
            ("ok", Ok(_)) => {}
            (expect, Err(e)) => {
                assert_eq!(kind_name(e.kind()), expect, "{}: {e}", v.name());
                assert!(v.is_named_in(&e.to_string()), "{}: {e}", v.name());
            }
            (_, Ok(_)) => panic!("{}: accepted", v.name()),
        }
    }
}

/// A vector of this would have megabytes.
#[test]
fn a_recipe_has_at_most_a_mebibyte_of_canonical_json() {
    let with = |length: usize| {
        // Braces, the name, a colon and quotation marks: eight bytes.
        let recipe = serde_json::json!({ "a": "x".repeat(length - 8) });
        let manifest = serde_json::json!({
            "encoder": "e", "files": [], "format": "ultracompress-manifest-1", "recipe": recipe, "tensors": {},
        });
        Manifest::parse(&serde_json_canonicalizer::to_vec(&manifest).expect("plain JSON"))
    };
    assert!(with(1 << 20).is_ok());
    let e = with((1 << 20) + 1).expect_err("too long");
    assert!(e.to_string().contains("UC-MAN-2"), "{e}");
}

/// The stored parts of a codec vector.
struct Parts {
    layout: PlaneLayout,
    counts: PlaneCounts,
    scales: Vec<u8>,
    steps: Vec<u8>,
    planes: Vec<Vec<u8>>,
    source: Dtype,
    target: Dtype,
    rung: u8,
}

impl Parts {
    fn of(v: &Vector) -> Self {
        let input = &v.json["input"];
        let number = |key: &str| input[key].as_u64().expect("a number");
        let small = |value: &Value| u8::try_from(value.as_u64().expect("a number")).expect("small");
        let counts: Vec<u8> =
            input["counts"].as_array().expect("counts").iter().map(small).collect();
        let uniform = counts.windows(2).all(|w| w[0] == w[1]);
        let dtype =
            |key: &str| Dtype::from_name(input[key].as_str().expect("a dtype")).expect("known");
        let group = u32::try_from(number("group")).expect("small");
        Self {
            layout: PlaneLayout::new(&[number("rows"), number("cols")], 1, group).expect("valid"),
            counts: if uniform {
                PlaneCounts::Uniform(counts[0])
            } else {
                PlaneCounts::PerRow(counts)
            },
            scales: unhex(input["scales"].as_str().expect("scales")),
            steps: unhex(input["steps"].as_str().expect("steps")),
            planes: input["planes"]
                .as_array()
                .expect("planes")
                .iter()
                .map(|p| unhex(p.as_str().expect("hex")))
                .collect(),
            source: dtype("dtype"),
            target: dtype("target"),
            rung: small(&input["rung"]),
        }
    }

    fn by_reference(&self) -> Vec<u8> {
        let stored = reference::StoredPlanes {
            layout: self.layout,
            counts: &self.counts,
            levels: Levels::default(),
            scales: &self.scales,
            steps: &self.steps,
            planes: &self.planes,
        };
        let size = usize::try_from(self.target.bits() / 8).expect("small");
        let (rows, cols) = (self.layout.rows, self.layout.cols);
        let at = |n: u64| usize::try_from(n).expect("small");
        (0..at(rows))
            .flat_map(|r| (0..at(cols)).map(move |c| (r, c)))
            .flat_map(|(r, c)| {
                let bits = reference::decode_weight(&stored, r, c, self.rung, self.target);
                bits.to_le_bytes()[..size].to_vec()
            })
            .collect()
    }

    fn by_kernel(&self, kernel: Kernel) -> Result<Vec<u8>, Error> {
        let at = |n: u64| usize::try_from(n).expect("small");
        let row_out = at(self.layout.cols * self.target.bits() / 8);
        let mut out = vec![0xa5; row_out * at(self.layout.rows)];
        for run in self.counts.runs(0..self.layout.rows) {
            let slice = |bytes: &'_ [u8], per_row: u64| {
                bytes[at(run.stored.start * per_row)..at(run.stored.end * per_row)].to_vec()
            };
            let read = usize::from(run.native.min(self.rung));
            let planes: Vec<_> =
                self.planes[..read].iter().map(|p| slice(p, self.layout.row_bytes())).collect();
            let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
            let bytes = RunBytes {
                native: run.native,
                scales: &slice(&self.scales, 2),
                steps: &slice(&self.steps, self.layout.steps_row_bytes()),
                planes: &planes,
            };
            let rows: Vec<usize> =
                (0..at(self.layout.rows)).filter(|&r| self.counts.of(r) == run.native).collect();
            let levels = Levels::default();
            RunDecoder::new(self.layout, levels, self.source, self.target)?
                .with_kernel(kernel)?
                .decode(&bytes, &mut out, |i| rows[i])?;
        }
        Ok(out)
    }
}

#[test]
fn codec_vectors_decode_to_the_stated_bits() {
    for v in vectors("codec") {
        let parts = Parts::of(&v);
        let expected = unhex(v.json["output"]["bytes"].as_str().expect("bytes"));
        assert_eq!(parts.by_reference(), expected, "reference, {}", v.name());
        for kernel in Kernel::available() {
            let found =
                parts.by_kernel(kernel).unwrap_or_else(|e| panic!("{kernel}, {}: {e}", v.name()));
            assert_eq!(found, expected, "{kernel}, {}", v.name());
        }
    }
}

#[test]
fn rungs_of_containers_equal_the_reference() {
    // The codec vectors cover values; this covers the way from a file to them.
    let path = root().join("container/valid/planes-per-row.json");
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("there")).expect("JSON");
    let pack = Container::open(unhex(json["input"].as_str().expect("hex"))).expect("valid");
    let view = pack.tensor("w").expect("it has w");
    let full = view.decode().expect("valid");
    for rung in 3..=8u8 {
        let coarse = DecodeOptions::new().with_planes(rung).decode(&view).expect("valid");
        assert_eq!(coarse == full, rung == 8, "rung {rung}");
    }
    let rows = DecodeOptions::new().with_rows(2..5).decode(&view).expect("valid");
    assert_eq!(rows, full[2 * 33 * 4..5 * 33 * 4]);
}

#[test]
fn vectors_follow_their_schema_and_cover_every_rule() {
    let schema = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("spec/schema").join(name);
        let text = std::fs::read_to_string(path).expect("the schema is there");
        let json: Value = serde_json::from_str(&text).expect("schemas are JSON");
        jsonschema::validator_for(&json).expect("a valid schema")
    };
    let (vector, manifest) = (schema("vector.json"), schema("manifest.json"));
    let (index, eval) = (schema("index.json"), schema("eval.json"));
    let mut covered = BTreeSet::new();
    let mut found = BTreeMap::new();
    files(&root(), &mut found);
    for (path, text) in &found {
        let json: Value = serde_json::from_str(text).expect("vectors are JSON");
        let errors: Vec<_> = vector.iter_errors(&json).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        assert_eq!(path.file_stem().and_then(|s| s.to_str()), json["id"].as_str());
        covered.extend(
            json["rule"]
                .as_array()
                .expect("rule")
                .iter()
                .map(|r| r.as_str().expect("text").to_owned()),
        );
        if path.starts_with("pack/valid") {
            let text = unhex(json["input"]["index"].as_str().expect("hex"));
            let value = serde_json::from_slice(&text).expect("JSON");
            assert!(index.is_valid(&value), "{}", path.display());
        }
        if path.starts_with("receipt") && json["expect"] == "ok" {
            let text = unhex(json["input"].as_str().expect("hex"));
            let value = serde_json::from_slice(&text).expect("JSON");
            let errors: Vec<_> = eval.iter_errors(&value).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        }
        if path.starts_with("manifest") && json["expect"] == "ok" {
            let text = unhex(json["input"].as_str().expect("hex"));
            let value = serde_json::from_slice(&text).expect("JSON");
            assert!(manifest.is_valid(&value), "{}", path.display());
        }
    }
    let spec = spec_rules();
    let known: BTreeSet<String> =
        ultracompress::Rule::ALL.iter().map(|r| r.id().to_owned()).collect();
    assert_eq!(spec, known, "rules of the spec and of the code");
    assert_eq!(spec, covered, "rules of the spec and of the vectors");
}

#[test]
fn the_worked_example_is_the_vector() {
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("spec");
    let page = std::fs::read_to_string(spec.join("example.md")).expect("the page is there");
    let mut bytes = vec![];
    for line in page.lines() {
        let Some((offset, dump)) = line.split_once("  ") else { continue };
        if offset.len() == 8 && usize::from_str_radix(offset, 16).is_ok() {
            assert_eq!(usize::from_str_radix(offset, 16), Ok(bytes.len()), "{line}");
            bytes.extend(unhex(&dump.replace(' ', "")));
        }
    }
    let path = root().join("container/valid/example.json");
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("there")).expect("JSON");
    assert_eq!(bytes, unhex(json["input"].as_str().expect("hex")));
}

/// Every vector there is, whatever this build can run.
fn all_vectors() -> Vec<Vector> {
    let mut found = BTreeMap::new();
    files(&root(), &mut found);
    let parse = |(path, text): (PathBuf, String)| Vector {
        path: path.display().to_string(),
        json: serde_json::from_str(&text).expect("vectors are JSON"),
    };
    found.into_iter().map(parse).collect()
}

/// Rules that no file can break by itself, each with the reason. All others have a vector that must
/// be refused.
const NOT_BROKEN_ALONE: [(&str, &str); 40] = [
    ("UC-HDR-9", "asks readers to accept what they don't know"),
    ("UC-HDR-10", "is for writers: readers go by the records"),
    ("UC-HDR-11", "asks readers to accept"),
    ("UC-HDR-12", "asks readers to accept"),
    ("UC-HDR-13", "asks readers to accept later minor versions"),
    ("UC-IDX-8", "asks readers to accept what they skip"),
    ("UC-PRT-11", "asks readers to accept what they skip"),
    ("UC-PRT-16", "asks readers to accept what they skip"),
    ("UC-LVL-4", "gives the default tables, which no file holds"),
    ("UC-VAL-2", "gives the steps, which no file holds"),
    (
        "UC-VAL-3",
        "says what a weight is; a file made otherwise has a digest that is wrong (UC-TEN-5)",
    ),
    ("UC-VAL-4", "the same of rounding"),
    ("UC-VAL-6", "the same of a product of zero"),
    ("UC-VAL-7", "the same of subnormals"),
    ("UC-VAL-8", "the same of what rounds to zero"),
    ("UC-VAL-9", "the same of overflow, which only another type has: no digest is of that"),
    ("UC-VAL-10", "says what an element is at another type: no digest is of that"),
    ("UC-VAL-11", "the same of infinities"),
    ("UC-VAL-12", "the same of NaNs"),
    (
        "UC-VAL-5",
        "says what a rung is; a file made otherwise has a root of it that is wrong (UC-MAN-9)",
    ),
    (
        "UC-EXA-5",
        "says where weights are expected; a residual made otherwise leads elsewhere (UC-EXA-11)",
    ),
    (
        "UC-EXA-6",
        "says how words are decoded; a residual made otherwise leads elsewhere (UC-EXA-11)",
    ),
    ("UC-EXA-26", "is for writers, and only recommended"),
    (
        "UC-EXA-29",
        "says where weights are expected; a residual made otherwise leads elsewhere (UC-EXA-11)",
    ),
    (
        "UC-EXA-32",
        "says what readers compare before they call a file the source's: the pack is as it should be",
    ),
    (
        "UC-OVL-6",
        "says what a product is; an overlay made otherwise has a digest that is wrong (UC-OVL-9)",
    ),
    ("UC-OVL-7", "the same of binary16 factors"),
    ("UC-OVL-8", "the same of the value before the sum"),
    ("UC-OVL-23", "the same of the sum"),
    ("UC-OVL-24", "the same of rounding"),
    ("UC-OVL-25", "the same of elements that are not finite"),
    ("UC-OVL-22", "asks readers to refuse a pair of files, each of which is as it should be"),
    (
        "UC-ROOT-1",
        "says what a root is; a file with another has a root that is wrong (UC-ROOT-2, UC-ROOT-3)",
    ),
    ("UC-SHD-11", "asks readers to accept what they don't know"),
    ("UC-SHD-18", "asks verifiers to accept"),
    ("UC-SHD-19", "says what verifiers call a pack, and refuses none"),
    ("UC-MAN-6", "asks readers to accept what they don't know"),
    ("UC-ATT-6", "asks verifiers to accept"),
    ("UC-ATT-7", "says what verifiers report, and refuses nothing"),
    ("UC-LIM-1", "asks readers to accept"),
];

#[test]
fn every_rule_that_a_file_can_break_has_a_vector_that_is_refused() {
    let refused: BTreeSet<String> = all_vectors()
        .iter()
        .filter(|v| v.text("expect") != "ok")
        .flat_map(|v| v.rules().into_iter().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let not_alone: BTreeSet<String> =
        NOT_BROKEN_ALONE.iter().map(|(rule, _)| (*rule).to_owned()).collect();
    let known = spec_rules();
    assert!(not_alone.is_subset(&known), "rules that are listed and not in the spec");
    let expected: BTreeSet<String> = known.difference(&not_alone).cloned().collect();
    assert_eq!(expected, refused, "rules that files can break, and rules that vectors break");
}

/// What each level takes in, itself included.
const LEVELS: [(&str, &[&str]); 5] = [
    ("read", &["read"]),
    ("exact", &["read", "exact"]),
    ("overlay", &["read", "overlay"]),
    ("verify", &["read", "exact", "overlay", "verify"]),
    ("write", &["read", "exact", "overlay", "verify", "write"]),
];

#[test]
fn the_page_on_conformance_lists_rules_and_counts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("spec/conformance.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let listed = |level: &str| {
        let row = page.lines().find(|l| l.starts_with(&format!("| `{level}` | UC-")));
        let mut rules = BTreeSet::new();
        for range in row.unwrap_or_default().split('|').nth(2).unwrap_or_default().split(", ") {
            let range = range.trim();
            let (first, last) = range.split_once(" to ").unwrap_or((range, range));
            let split = |id: &str| {
                let (page, number) = id.rsplit_once('-').expect("rules have numbers");
                (page.to_owned(), number.parse::<u32>().expect("a number"))
            };
            let ((page, from), (other, to)) = (split(first), split(last));
            assert_eq!(page, other, "{range}");
            rules.extend((from..=to).map(|n| format!("{page}-{n}")));
        }
        rules
    };
    let level_of = |rule: &String| make_vectors::level_of(rule.trim_start_matches("UC-"));
    let all = all_vectors();
    for (level, takes_in) in LEVELS {
        let known = || spec_rules().into_iter();
        let own: BTreeSet<String> = known().filter(|rule| level_of(rule) == level).collect();
        assert_eq!(listed(level), own, "rules of level {level}");
        let rules = known().filter(|rule| takes_in.contains(&level_of(rule))).count();
        let own: Vec<&Vector> = all.iter().filter(|v| v.levels().contains(&level)).collect();
        let ok = own.iter().filter(|v| v.text("expect") == "ok").count();
        let zstd = own.iter().filter(|v| v.needs_zstd()).count();
        let n = own.len();
        let row = format!("| `{level}` | {rules} | {n} | {ok} | {} | {zstd} |", n - ok);
        assert!(page.lines().any(|line| line == row), "conformance.md lacks the row: {row}");
        // Who takes in a level must pass its vectors too.
        for (inner, _) in LEVELS.iter().filter(|(l, _)| takes_in.contains(l) && level != "write") {
            for v in all.iter().filter(|v| v.levels().contains(inner)) {
                assert!(v.levels().contains(&level), "{}: {inner}, but not {level}", v.name());
            }
        }
    }
    let verified = all.iter().filter(|v| v.levels().contains(&"verify")).count();
    assert_eq!(verified, all.len(), "a verifier must pass all vectors");
}

#[test]
fn manifests_that_writers_make_are_canonical() {
    for v in vectors("manifest").into_iter().filter(|v| v.levels().contains(&"write")) {
        let bytes = unhex(v.text("input"));
        let value: Value = serde_json::from_slice(&bytes).expect("JSON");
        let again = serde_json_canonicalizer::to_vec(&value).expect("safe integers");
        assert_eq!(again, bytes, "{}", v.name());
    }
}

/// Numbers of rules in a text, such as `UC-IDX-4`.
fn cited(text: &str) -> BTreeSet<String> {
    let id = |rest: &str| {
        let page = rest.find(|c: char| !c.is_ascii_uppercase()).filter(|&n| n > 0)?;
        let number = rest[page..].strip_prefix('-')?;
        let digits = number.bytes().take_while(u8::is_ascii_digit).count();
        (digits > 0).then(|| format!("UC-{}-{}", &rest[..page], &number[..digits]))
    };
    text.split("UC-").skip(1).filter_map(id).collect()
}

#[test]
fn every_rule_that_is_cited_is_in_the_spec() {
    fn texts(path: &Path, all: &mut Vec<PathBuf>) {
        if path.is_dir() {
            for entry in std::fs::read_dir(path).expect("readable") {
                texts(&entry.expect("readable").path(), all);
            }
        } else if ["rs", "md", "py"].iter().any(|e| path.extension().is_some_and(|x| x == *e)) {
            all.push(path.to_owned());
        }
    }
    let mut all = vec![];
    for place in ["src", "cli", "tests", "examples", "spec"] {
        texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(place), &mut all);
    }
    let (known, mut dead, mut found) = (spec_rules(), vec![], BTreeSet::new());
    for path in all {
        let rules = cited(&std::fs::read_to_string(&path).expect("readable"));
        let unknown = rules.difference(&known);
        dead.extend(unknown.map(|rule| format!("{rule} in {}", path.display())));
        found.extend(rules);
    }
    assert!(dead.is_empty(), "rules that the spec doesn't have: {dead:?}");
    assert!(known.is_subset(&found), "the search finds nothing");
}

#[test]
fn every_requirement_of_the_spec_has_a_number() {
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("spec");
    let mut loose = vec![];
    for entry in std::fs::read_dir(spec).expect("the spec is there") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|e| e != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("readable");
        for paragraph in text.split("\n\n") {
            let binds = paragraph.contains("MUST") || paragraph.contains("SHOULD");
            // The pages on words and on rules speak of them.
            let names = ["The key words MUST", "Each requirement has a number"];
            let known = names.iter().any(|name| paragraph.starts_with(name));
            if binds && !known && !paragraph.trim_start().starts_with("**[UC-") {
                loose.push(format!("{}: {paragraph}", path.display()));
            }
        }
    }
    assert!(loose.is_empty(), "requirements without a number: {loose:#?}");
}

/// Rule numbers where the spec states them: in bold brackets.
fn spec_rules() -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    let mut pages = BTreeMap::new();
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("spec");
    for entry in std::fs::read_dir(spec).expect("the spec is there") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|e| e == "md") {
            let text = std::fs::read_to_string(&path).expect("readable");
            pages.insert(path, text);
        }
    }
    for text in pages.values() {
        for piece in text.split("**[").skip(1) {
            let id = piece.split(']').next().expect("split gives one");
            assert!(rules.insert(id.to_owned()), "{id} is stated twice");
        }
    }
    rules
}

/// Each `result: PATH TENSOR[INDEX] ... = BYTES` of the page is what the vector has there.
#[test]
fn vectors_worked_by_hand_have_these_results() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("spec/by-hand.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let mut compared = 0;
    for line in page.lines().map(|l| l.trim().trim_matches('`')) {
        let Some(text) = line.strip_prefix("result: ") else { continue };
        let (place, bytes) = text.split_once(" = ").unwrap_or_else(|| panic!("{line}"));
        let expected: Vec<u8> = bytes
            .split(' ')
            .map(|b| u8::from_str_radix(b, 16).unwrap_or_else(|_| panic!("{line}")))
            .collect();
        let mut words = place.split(' ');
        let (path, element) = (words.next().expect(line), words.next().expect(line));
        let (tensor, index) = element.trim_end_matches(']').split_once('[').expect(line);
        let index: usize = index.parse().expect(line);
        let json = std::fs::read_to_string(root().join(path).with_extension("json")).expect(line);
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let output = &json["output"];
        let of_tensor = &output["tensors"][tensor];
        let hex = match (words.next(), words.next()) {
            (None, None) if tensor == "-" => &output["bytes"],
            (None, None) => &of_tensor["bytes"],
            (Some("exact"), None) => &of_tensor["exact"],
            (Some("rung"), Some(planes)) => &of_tensor["rungs"][planes],
            (Some("overlays"), Some(n)) => {
                &output["overlays"][n.parse::<usize>().expect(line) - 1]["tensors"][tensor]
            }
            _ => panic!("{line}"),
        };
        let all = unhex(hex.as_str().unwrap_or_else(|| panic!("{line}: not in the vector")));
        let at = index * expected.len();
        assert_eq!(all.get(at..at + expected.len()), Some(&expected[..]), "{line}");
        compared += 1;
    }
    assert!(compared >= 6, "{compared} results");
}
