//! Regenerates the test vectors under `spec/vectors`, byte for byte.
//!
//! ```text
//! cargo run --example make_vectors            # writes spec/vectors
//! cargo run --example make_vectors -- DIR     # writes DIR
//! ```
//!
//! Files are put together field by field here, not by the crate's writer, so that each invalid one
//! can break one rule and keep all others, checksums and roots included. Decoded values come from the
//! literal reference decoder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ultracompress::codec::reference::{StoredPlanes, decode_weight};
use ultracompress::codec::{LevelSet, Levels, PlaneCounts, PlaneLayout, STEPS};
use ultracompress::format::{TreeHasher, tensor_leaf};
use ultracompress::{Digest, Dtype};

#[path = "support/exact_vectors.rs"]
mod exact_vectors;
#[path = "support/overlay_vectors.rs"]
mod overlay_vectors;

const CHUNK: usize = 1 << 20;

/// Every vector: path below `spec/vectors`, and the text of the file.
pub fn vectors() -> BTreeMap<PathBuf, String> {
    let mut set = VectorSet::default();
    container_valid(&mut set);
    container_invalid(&mut set);
    exact_vectors::valid(&mut set);
    exact_vectors::invalid(&mut set);
    overlay_vectors::valid(&mut set);
    overlay_vectors::invalid(&mut set);
    manifests(&mut set);
    receipts(&mut set);
    packs(&mut set);
    codec(&mut set);
    set.0
}

#[allow(dead_code, reason = "the test that compares the vectors includes this file as a module")]
fn main() -> std::io::Result<()> {
    let root = std::env::args().nth(1).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("spec").join("vectors"),
        PathBuf::from,
    );
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    for (path, text) in vectors() {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("vectors lie in folders"))?;
        std::fs::write(path, text)?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The level of conformance that a rule comes with (spec/conformance.md). `rule` has no `UC-`.
pub fn level_of(rule: &str) -> &'static str {
    let (page, number) = rule.rsplit_once('-').unwrap_or((rule, ""));
    match (page, number) {
        ("EXA", "11") | ("OVL", "9") | ("TEN", "5") | ("SHD", "6" | "7") => "verify",
        ("ROOT" | "MAN" | "ATT" | "RCP", _) => "verify",
        ("EXA", _) => "exact",
        ("OVL", _) => "overlay",
        _ => "read",
    }
}

/// Vectors that break a rule of one level where a reader of that level doesn't look.
const SEEN_AT: [(&str, &str); 14] = [
    // Nobody reads padding, or the checksums of what is skipped, but a verifier.
    ("padding-behind-index", "verify"),
    ("padding-behind-manifest", "verify"),
    ("part-padding", "verify"),
    ("skipped-record-crc", "verify"),
    ("skipped-part-crc", "verify"),
    // No value depends on what an overlay says of itself.
    ("overlay-info-spaces", "verify"),
    ("overlay-info-array", "verify"),
    ("overlay-info-fraction", "verify"),
    // Records that a reader of fewer levels skips.
    ("model-parts", "exact"),
    ("residual-plane", "exact"),
    ("overlay-zstd", "overlay"),
    // The preamble shows it.
    ("attachments-unaligned", "read"),
    // The manifest shows it, which only a verifier needs.
    ("head-unlisted", "verify"),
    ("head-left-out", "verify"),
];

/// The levels at which a vector must pass, each with all that it takes in.
fn levels(
    folder: &str,
    id: &str,
    rules: &[String],
    expect: &str,
    input: &Value,
) -> Vec<&'static str> {
    let required = input.as_str().and_then(|hex| hex.get(32..34)).unwrap_or("00");
    let by_rules = rules.iter().map(|r| level_of(r.trim_start_matches("UC-")));
    let mut own: Vec<&str> = match (folder, required) {
        ("manifest" | "receipt", _) => vec!["verify"],
        // Readers that don't know these features refuse the file.
        ("container/valid" | "container/invalid", "01") => vec!["exact"],
        ("container/valid" | "container/invalid", "04") => vec!["overlay"],
        _ => vec!["read"],
    };
    if expect != "ok" {
        match SEEN_AT.iter().find(|(vector, _)| *vector == id) {
            Some((_, level)) => own = vec![level],
            None => own.extend(by_rules),
        }
    }
    let has = |level| own.contains(&level);
    let verify = has("verify") || has("exact") && has("overlay");
    let mut all = match (verify, has("exact"), has("overlay")) {
        (true, ..) => vec!["verify"],
        (_, true, _) => vec!["exact", "verify"],
        (.., true) => vec!["overlay", "verify"],
        _ => vec!["read", "exact", "overlay", "verify"],
    };
    // A writer makes canonical JSON.
    if folder == "manifest" && expect == "ok" {
        all.push("write");
    }
    all
}

#[derive(Default)]
struct VectorSet(BTreeMap<PathBuf, String>);

impl VectorSet {
    #[allow(clippy::too_many_arguments, reason = "the members of a vector")]
    fn add(
        &mut self,
        folder: &str,
        id: &str,
        rules: &[&str],
        comment: &str,
        flags: &[&str],
        input: Value,
        expect: &str,
        output: Option<Value>,
    ) {
        let rules = rules.iter().flat_map(|r| r.split(' '));
        let rules: Vec<String> = rules.map(|r| format!("UC-{r}")).collect();
        let levels = levels(folder, id, &rules, expect, &input);
        let mut vector = json!({
            "id": id, "rule": rules, "comment": comment, "flags": flags, "input": input,
            "expect": expect, "levels": levels,
        });
        if let Some(output) = output {
            vector["output"] = output;
        }
        let text = format!("{vector:#}\n");
        let old = self.0.insert(Path::new(folder).join(format!("{id}.json")), text);
        assert!(old.is_none(), "two vectors are called {id}");
    }

    fn valid(&mut self, id: &str, rules: &[&str], comment: &str, file: &File) {
        self.valid_with(id, rules, comment, file, None);
    }

    /// As [`VectorSet::valid`], with what overlays lead to.
    fn valid_with(
        &mut self,
        id: &str,
        rules: &[&str],
        comment: &str,
        file: &File,
        overlays: Option<Value>,
    ) {
        let bytes = file.bytes();
        let tensors: serde_json::Map<String, Value> = file
            .records
            .iter()
            .filter_map(|r| {
                let t = r.tensor.as_ref()?;
                let mut entry = json!({
                    "dtype": t.dtype.name(), "shape": t.shape, "sha256": Digest::of(&t.decoded).to_string(),
                });
                if t.decoded.len() <= 4096 {
                    entry["bytes"] = hex(&t.decoded).into();
                }
                if let Some(exact) = t.exact.as_ref().filter(|e| e.len() <= 4096) {
                    entry["exact"] = hex(exact).into();
                }
                for (rung, bytes) in &t.rungs {
                    entry["rungs"][rung.to_string()] = hex(bytes).into();
                }
                Some((String::from_utf8(r.name.clone()).expect("valid name"), entry))
            })
            .collect();
        let mut output = json!({
            "stored_root": hex(&bytes[128..160]),
            "decoded_root": hex(&bytes[96..128]),
            "tensors": tensors,
        });
        if let Some(overlays) = overlays {
            output["overlays"] = overlays;
        }
        // What is skipped is not decompressed.
        let known = file.records.iter().filter(|r| r.kind <= 6).flat_map(|r| &r.parts);
        let zstd = known.filter(|p| p.kind == 1).any(|p| p.storage == 1);
        let flags: &[&str] = if zstd { &["zstd"] } else { &[] };
        self.add(
            "container/valid",
            id,
            rules,
            comment,
            flags,
            hex(&bytes).into(),
            "ok",
            Some(output),
        );
    }

    fn invalid(&mut self, id: &str, rules: &[&str], comment: &str, expect: &str, bytes: &[u8]) {
        self.add("container/invalid", id, rules, comment, &[], hex(bytes).into(), expect, None);
    }
}

/// What a tensor decodes to.
#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<u64>,
    decoded: Vec<u8>,
    /// The source's bytes, when a residual leads to them.
    exact: Option<Vec<u8>>,
    /// What fewer planes decode to.
    rungs: BTreeMap<u8, Vec<u8>>,
}

#[derive(Clone, Default)]
struct Part {
    kind: u8,
    plane: u8,
    storage: u8,
    flags: u8,
    /// Stored chunks.
    chunks: Vec<Vec<u8>>,
    len: u64,
    /// Zero bytes in front of it, beyond alignment.
    gap: usize,
    n_chunks: Option<u32>,
    crc: Option<u32>,
    offset: Option<u64>,
    stored_len: Option<u64>,
    chunk_lens: Option<Vec<u32>>,
    /// What the padding behind it is made of.
    padding: u8,
}

#[derive(Clone, Default)]
struct Record {
    kind: u16,
    flags: u16,
    name: Vec<u8>,
    body: Vec<u8>,
    parts: Vec<Part>,
    tensor: Option<Tensor>,
    /// Added to `record_len`.
    extra_len: i32,
    /// What the padding inside is made of.
    padding: u8,
    /// Bytes behind the last field.
    tail: Vec<u8>,
}

impl Record {
    /// Says that a tensor decodes to something else.
    fn decodes_to(&mut self, bytes: &[u8]) {
        let t = self.tensor.as_mut().expect("a tensor");
        put(&mut self.body, 8 + 8 * t.shape.len(), &Digest::of(bytes).0);
        t.decoded = bytes.to_vec();
    }
}

#[derive(Clone, Default)]
struct File {
    records: Vec<Record>,
    manifest: Option<Vec<u8>>,
    attachments: Vec<u8>,
    n_records: Option<u32>,
    /// Written in the place of the next part: zeros that belong to nothing.
    stray: usize,
    /// Number and count, and with them the feature bit.
    shard: Option<(u32, u32)>,
    /// Required feature bits other than those that the records need.
    required: Option<u8>,
    /// Optional feature bits other than those that the records set.
    optional: Option<u8>,
}

fn plain(kind: u8, plane: u8, content: &[u8]) -> Part {
    Part {
        kind,
        plane,
        chunks: content.chunks(CHUNK).map(<[u8]>::to_vec).collect(),
        len: content.len() as u64,
        ..Part::default()
    }
}

fn raw(name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Record {
    let parts = if bytes.is_empty() { vec![] } else { vec![plain(1, 0, bytes)] };
    tensor(name, dtype, shape, bytes, [1, 0, 0, 0, 0], &[], parts)
}

/// `fields`: encoding, role, row_dims, group_log2, planes.
fn tensor(
    name: &str,
    dtype: Dtype,
    shape: &[u64],
    decoded: &[u8],
    fields: [u8; 5],
    tail: &[u8],
    parts: Vec<Part>,
) -> Record {
    let [encoding, role, row_dims, group_log2, planes] = fields;
    let rank = u8::try_from(shape.len()).expect("few dimensions");
    let mut body = vec![dtype.code(), encoding, role, rank, row_dims, group_log2, planes, 0];
    body.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
    body.extend_from_slice(&Digest::of(decoded).0);
    body.extend_from_slice(tail);
    let tensor = Tensor {
        dtype,
        shape: shape.to_vec(),
        decoded: decoded.to_vec(),
        exact: None,
        rungs: BTreeMap::new(),
    };
    Record { kind: 2, name: name.into(), body, parts, tensor: Some(tensor), ..Record::default() }
}

fn alias(name: &str, target: &str, of: &Record) -> Record {
    let t = of.tensor.as_ref().expect("a tensor");
    tensor(name, t.dtype, &t.shape, &t.decoded, [3, 0, 0, 0, 0], target.as_bytes(), vec![])
}

fn carried(path: &str, content: &[u8]) -> Record {
    let mut body = (content.len() as u64).to_le_bytes().to_vec();
    body.extend_from_slice(&Digest::of(content).0);
    let parts = if content.is_empty() { vec![] } else { vec![plain(1, 0, content)] };
    Record { kind: 3, name: path.into(), body, parts, ..Record::default() }
}

fn level_record(name: &str, native: u8, levels: &[i8]) -> Record {
    let mut body = vec![native, 0, 0, 0, 0, 0, 0, 0];
    body.extend(levels.iter().map(|l| l.cast_unsigned()));
    Record { kind: 1, name: name.into(), body, ..Record::default() }
}

/// A `planes` tensor to be stored: deterministic codes, scales and steps.
#[derive(Clone)]
struct Planes {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<u64>,
    row_dims: u8,
    group: u32,
    counts: Vec<u8>,
    level_ids: [u16; 6],
    custom: Option<(u8, Vec<i8>)>,
    /// bfloat16 bits of every row scale.
    scale: u16,
}

struct Stored {
    layout: PlaneLayout,
    counts: PlaneCounts,
    scales: Vec<u8>,
    steps: Vec<u8>,
    planes: Vec<Vec<u8>>,
}

impl Planes {
    fn new(name: &'static str, dtype: Dtype, shape: &[u64], group: u32, counts: &[u8]) -> Self {
        Self {
            name,
            dtype,
            shape: shape.to_vec(),
            row_dims: 1,
            group,
            counts: counts.to_vec(),
            level_ids: [0; 6],
            custom: None,
            scale: 0x3a12,
        }
    }

    /// Code of a weight: every code occurs when the row is long enough.
    fn code(count: u8, row: usize, col: usize) -> u8 {
        let all = 1usize << count;
        u8::try_from((col * 37 + row * 11 + col / all) % all).expect("below 2^8")
    }

    fn stored(&self) -> Stored {
        let layout = PlaneLayout::new(&self.shape, self.row_dims, self.group).expect("valid");
        let cols = usize::try_from(layout.cols).expect("small");
        let uniform = self.counts.windows(2).all(|w| w[0] == w[1]);
        let counts = if uniform {
            PlaneCounts::Uniform(self.counts[0])
        } else {
            PlaneCounts::PerRow(self.counts.clone())
        };
        let mut order: Vec<usize> = (0..self.counts.len()).collect();
        order.sort_by_key(|&r| std::cmp::Reverse(self.counts[r]));
        let n_groups = if self.group == 0 { 0 } else { cols.div_ceil(self.group as usize) };
        let highest = *self.counts.iter().max().expect("a row");
        let mut stored = Stored {
            layout,
            counts,
            scales: vec![],
            steps: vec![],
            planes: vec![vec![]; usize::from(highest)],
        };
        for &row in &order {
            let scale = self.scale + u16::try_from(row % 64).expect("small");
            stored.scales.extend(scale.to_le_bytes());
            let mut steps = vec![0u8; n_groups.div_ceil(2)];
            for g in 0..n_groups {
                steps[g / 2] |=
                    u8::try_from((g * 7 + row * 3) % 16).expect("a nibble") << (4 * (g % 2));
            }
            stored.steps.extend(steps);
            let count = self.counts[row];
            for (p, plane) in (0u8..count).zip(&mut stored.planes) {
                let mut bits = vec![0u8; cols.div_ceil(8)];
                for col in 0..cols {
                    bits[col / 8] |=
                        ((Self::code(count, row, col) >> (count - 1 - p)) & 1) << (col % 8);
                }
                plane.extend(bits);
            }
        }
        stored
    }

    /// What the first row's scale gives with groups of so many columns, one multiplication after the other: also for what no
    /// file may hold. Groups beyond those that are stored have the first step.
    fn multiplied(&self, scale: f32, group: u32) -> Vec<u8> {
        let cols = usize::try_from(self.shape[1]).expect("small");
        let stored = cols.div_ceil(self.group as usize);
        let mut out = vec![];
        for (row, &count) in self.counts.iter().enumerate() {
            let own =
                f32::from_bits(u32::from(self.scale + u16::try_from(row).expect("small")) << 16);
            let scale = if row == 0 { scale } else { own };
            for col in 0..cols {
                let g = col / group as usize;
                let step = STEPS[if g < stored { (g * 7 + row * 3) % 16 } else { 0 }];
                let code = usize::from(Self::code(count, row, col));
                let level = LevelSet::default_for(count).table(count)[code];
                let value = scale * f32::from(step) * f32::from(level);
                let value = if value == 0.0 { 0.0 } else { value };
                match self.dtype {
                    Dtype::F16 => out.extend(half::f16::from_f32(value).to_le_bytes()),
                    _ => out.extend(half::bf16::from_f32(value).to_le_bytes()),
                }
            }
        }
        out
    }

    fn decode(&self, stored: &Stored, rung: u8, target: Dtype) -> Vec<u8> {
        let records: Vec<_> = self
            .custom
            .iter()
            .map(|(native, levels)| ultracompress::format::LevelsEntry {
                name: "custom".into(),
                native: *native,
                levels: levels.clone(),
            })
            .collect();
        let whole = StoredPlanes {
            layout: stored.layout,
            counts: &stored.counts,
            levels: Levels::resolve(&self.level_ids, &records).expect("valid"),
            scales: &stored.scales,
            steps: &stored.steps,
            planes: &stored.planes,
        };
        let (rows, cols) = (self.counts.len(), usize::try_from(stored.layout.cols).expect("small"));
        let bytes = usize::try_from(target.bits() / 8).expect("small");
        let mut out = vec![];
        for row in 0..rows {
            for col in 0..cols {
                let bits = decode_weight(&whole, row, col, rung, target);
                out.extend_from_slice(&bits.to_le_bytes()[..bytes]);
            }
        }
        out
    }

    fn record(&self) -> Record {
        let stored = self.stored();
        let decoded = self.decode(&stored, 8, self.dtype);
        let mut parts = vec![];
        if let Some(counts) = stored.counts.to_part() {
            parts.push(plain(2, 0, &counts));
        }
        parts.push(plain(3, 0, &stored.scales));
        if !stored.steps.is_empty() {
            parts.push(plain(4, 0, &stored.steps));
        }
        parts.extend((0u8..).zip(&stored.planes).map(|(p, plane)| plain(5, p, plane)));
        let mut tail: Vec<u8> = self.level_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        tail.extend([0; 4]);
        let group_log2 =
            if self.group == 0 { 0 } else { u8::try_from(self.group.ilog2()).expect("small") };
        let planes = match stored.counts {
            PlaneCounts::Uniform(n) => n,
            PlaneCounts::PerRow(_) => 0,
        };
        let mut record = tensor(
            self.name,
            self.dtype,
            &self.shape,
            &decoded,
            [2, 1, self.row_dims, group_log2, planes],
            &tail,
            parts,
        );
        if decoded.len() <= 2048 {
            let rungs = (3..8u8).map(|n| (n, self.decode(&stored, n, self.dtype)));
            record.tensor.as_mut().expect("a tensor").rungs = rungs.collect();
        }
        record
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize, with: u8) {
    bytes.resize(bytes.len().next_multiple_of(to), with);
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl File {
    fn of(records: Vec<Record>) -> Self {
        Self { records, ..Self::default() }
    }

    /// A manifest that agrees with the records.
    fn default_manifest(&self) -> Value {
        let mut tensors = serde_json::Map::new();
        let mut files = vec![];
        for r in &self.records {
            let name = String::from_utf8_lossy(&r.name).into_owned();
            if let Some(t) = &r.tensor {
                let sha256 = Digest::of(t.exact.as_ref().unwrap_or(&t.decoded)).to_string();
                tensors.insert(name, json!({ "sha256": sha256, "reason": "vector" }));
            } else if r.kind == 3 && r.body.len() == 40 {
                files.push(json!({
                    "path": name, "role": "carried", "sha256": hex(&r.body[8..]),
                    "bytes": u64::from_le_bytes(r.body[..8].try_into().expect("8 bytes")),
                }));
            }
        }
        json!({
            "format": "ultracompress-manifest-1", "encoder": "vector", "recipe": {},
            "files": files, "tensors": tensors,
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0u8; 256];
        let mut index = vec![];
        for r in &self.records {
            Self::put_record(r, &mut out, &mut index);
        }
        out.extend(vec![0; self.stray]);
        pad(&mut out, 64, 0);
        let manifest = self.manifest.clone().unwrap_or_else(|| {
            serde_json_canonicalizer::to_vec(&self.default_manifest()).expect("plain JSON")
        });
        let index_offset = out.len();
        out.extend_from_slice(&index);
        pad(&mut out, 64, 0);
        let manifest_offset = out.len();
        out.extend_from_slice(&manifest);
        pad(&mut out, 64, 0);
        let core_len = out.len();
        let attachments_crc =
            if self.attachments.is_empty() { 0 } else { crc32fast::hash(&self.attachments) };
        let n = u32::try_from(self.records.len()).expect("few");
        put(&mut out, 0, b"\x89UCP\r\n\x1a\n");
        put(&mut out, 8, &[1, 0, 0, 0, 0, 1, 0, 0]);
        for (at, value) in [
            (32, core_len),
            (40, index_offset),
            (48, index.len()),
            (56, manifest_offset),
            (64, manifest.len()),
        ] {
            put(&mut out, at, &(value as u64).to_le_bytes());
        }
        put(&mut out, 72, &self.n_records.unwrap_or(n).to_le_bytes());
        put(&mut out, 76, &crc32fast::hash(&index).to_le_bytes());
        put(&mut out, 80, &crc32fast::hash(&manifest).to_le_bytes());
        let (number, count) = self.shard.unwrap_or((1, 1));
        let is_coded = |r: &Record| r.kind == 2 && r.body.get(1) == Some(&4);
        let coded = u8::from(self.records.iter().any(is_coded));
        let sharded = if self.shard.is_some() { 2 } else { 0 };
        let overlays = self.records.iter().any(|r| r.kind == 4);
        let only = u8::from(overlays && !self.records.iter().any(|r| r.kind == 2)) << 2;
        put(&mut out, 16, &[self.required.unwrap_or(coded | sharded | only)]);
        let residual =
            |r: &Record| r.kind == 2 && r.parts.iter().any(|p| (p.kind, p.flags) == (16, 1));
        let residuals = u8::from(self.records.iter().any(residual));
        put(&mut out, 24, &[self.optional.unwrap_or(residuals | u8::from(overlays) << 1)]);
        put(&mut out, 84, &number.to_le_bytes());
        put(&mut out, 88, &count.to_le_bytes());
        put(&mut out, 160, &((core_len + self.attachments.len()) as u64).to_le_bytes());
        put(&mut out, 168, &attachments_crc.to_le_bytes());
        let mut tensors: Vec<&Record> =
            self.records.iter().filter(|r| r.tensor.is_some()).collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut tree = TreeHasher::new();
        for r in tensors {
            let t = r.tensor.as_ref().expect("filtered");
            let name = String::from_utf8_lossy(&r.name);
            tree.push(tensor_leaf(&name, t.dtype, &t.shape, Digest::of(&t.decoded)));
        }
        put(&mut out, 96, &tree.root().0);
        out.extend_from_slice(&self.attachments);
        seal(out)
    }

    fn put_record(r: &Record, out: &mut Vec<u8>, index: &mut Vec<u8>) {
        let mut fields = r.name.clone();
        pad(&mut fields, 8, r.padding);
        fields.extend_from_slice(&r.body);
        pad(&mut fields, 8, r.padding);
        for p in &r.parts {
            pad(out, 64, 0);
            out.extend(vec![0; p.gap]);
            let offset = out.len() as u64;
            let stored: Vec<u8> = p.chunks.concat();
            out.extend_from_slice(&stored);
            if p.padding != 0 {
                pad(out, 64, p.padding);
            }
            let n_chunks = u32::try_from(p.chunks.len()).expect("few");
            fields.extend([p.kind, p.plane, p.storage, p.flags]);
            fields.extend(p.n_chunks.unwrap_or(n_chunks).to_le_bytes());
            fields.extend(p.offset.unwrap_or(offset).to_le_bytes());
            fields.extend(p.stored_len.unwrap_or(stored.len() as u64).to_le_bytes());
            fields.extend(p.len.to_le_bytes());
            for c in &p.chunks {
                fields.extend(p.crc.unwrap_or(crc32fast::hash(c)).to_le_bytes());
            }
            if p.storage != 0 {
                let lens = p.chunks.iter().map(|c| u32::try_from(c.len()).expect("small"));
                for len in p.chunk_lens.clone().unwrap_or_else(|| lens.collect()) {
                    fields.extend(len.to_le_bytes());
                }
            }
            pad(&mut fields, 8, 0);
        }
        fields.extend_from_slice(&r.tail);
        let len = i32::try_from(16 + fields.len()).expect("small") + r.extra_len;
        index.extend(len.to_le_bytes());
        index.extend(r.kind.to_le_bytes());
        index.extend(r.flags.to_le_bytes());
        index.extend(u16::try_from(r.name.len()).expect("vectors have short names").to_le_bytes());
        index.extend(u16::try_from(r.parts.len()).expect("few").to_le_bytes());
        index.extend(u32::try_from(r.body.len()).expect("small").to_le_bytes());
        index.extend(fields);
    }
}

/// Computes the stored root and the preamble's checksum again.
fn seal(mut file: Vec<u8>) -> Vec<u8> {
    let core_len = u64::from_le_bytes(file[32..40].try_into().expect("8 bytes"));
    let core_len = usize::try_from(core_len).unwrap_or(usize::MAX).min(file.len());
    let mut core = file[..core_len].to_vec();
    core[128..256].fill(0);
    let mut tree = TreeHasher::new();
    core.chunks(CHUNK).for_each(|c| tree.push(TreeHasher::leaf(c)));
    put(&mut file, 128, &tree.root().0);
    let crc = crc32fast::hash(&file[..252]);
    put(&mut file, 252, &crc.to_le_bytes());
    file
}

fn attachment(kind: u16, name: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend(u16::try_from(name.len()).expect("short").to_le_bytes());
    out.extend([0; 4]);
    out.extend((data.len() as u64).to_le_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(data);
    pad(&mut out, 64, 0);
    out
}

/// A zstd frame of run-length blocks (RFC 8878, sections 3.1.1): no compressor is needed, so the
/// vector doesn't depend on one.
fn zstd_rle(byte: u8, len: usize) -> Vec<u8> {
    // Frame header: single segment, 4-byte content size; then RLE blocks of up to 128 KiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend(u32::try_from(len).expect("small").to_le_bytes());
    let mut left = len;
    while left > 0 {
        let now = left.min(128 << 10);
        left -= now;
        let header = (u32::try_from(now).expect("small") << 3) | 2 | u32::from(left == 0);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(byte);
    }
    frame
}

/// The same for `len` zeros with another descriptor and what follows it, and without blocks' limit on types: a
/// frame of one block.
fn zstd_frame(descriptor: u8, fields: &[u8], block_type: u32, len: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, descriptor];
    frame.extend(fields);
    frame.extend(&(len << 3 | block_type << 1 | 1).to_le_bytes()[..3]);
    frame.push(0);
    frame
}

/// An optional part of a kind that isn't known, in a way of storing it that isn't known either.
fn unknown_part(kind: u8, plane: u8) -> Part {
    Part { flags: 1, storage: 1, len: 1000, ..plain(kind, plane, b"of a later version") }
}

/// The tables for 3 planes that the vectors of custom levels use.
fn custom3() -> Vec<i8> {
    vec![-128, -90, -40, -1, 0, 1, 60, 127]
}

/// Tables for 5 planes, read as 5, 4 and 3.
fn custom5() -> Vec<i8> {
    let table = |read: u32| {
        let n = 1i16 << read;
        (0..n).map(move |i| i8::try_from(-120 + i * (240 / n) + i % 2).expect("within -120 to 121"))
    };
    table(5).chain(table(4)).chain(table(3)).collect()
}

fn weights() -> Planes {
    Planes::new("w", Dtype::Bf16, &[2, 40], 16, &[5, 5])
}

fn mixed() -> Planes {
    Planes::new("w", Dtype::F32, &[7, 33], 32, &[4, 8, 3, 5, 7, 6, 3])
}

fn container_valid(set: &mut VectorSet) {
    set.valid(
        "example",
        &["PLN-6", "PLN-7", "VAL-3", "VAL-4"],
        "the file that spec/example.md takes apart",
        &File::of(vec![Planes::new("w", Dtype::Bf16, &[1, 10], 16, &[3]).record()]),
    );
    set.valid(
        "empty",
        &["HDR-1", "HDR-3", "HDR-4", "HDR-6", "HDR-7", "HDR-8", "IDX-3", "ROOT-1", "MAN-1"],
        "a pack without tensors and files",
        &File::of(vec![]),
    );
    let basics = vec![
        raw("bias", Dtype::F32, &[2], &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]),
        raw("empty", Dtype::F16, &[0, 3], &[]),
        raw("mask", Dtype::Bool, &[3], &[1, 0, 1]),
        raw("steps", Dtype::I64, &[], &7i64.to_le_bytes()),
    ];
    set.valid(
        "raw-basic",
        &[
            "TEN-1", "TEN-2", "TEN-5", "IDX-1", "IDX-2", "IDX-4", "PRT-1", "PRT-3", "PRT-4",
            "PRT-5", "PRT-6", "ROOT-2", "ROOT-3",
        ],
        "raw tensors: a vector, an empty tensor, three bytes, a scalar",
        &File::of(basics),
    );
    let dtypes: Vec<Record> = Dtype::ALL
        .iter()
        .map(|d| {
            let bytes = usize::try_from(d.bits()).expect("small");
            raw(&format!("t{:02}", d.code()), *d, &[2, 4], &vec![1; bytes])
        })
        .collect();
    set.valid("all-dtypes", &["DTY-1"], "one raw tensor of each type", &File::of(dtypes));
    let longer = vec![0u8; CHUNK + 500];
    let mut big = raw("zeros", Dtype::U8, &[CHUNK as u64 + 500], &longer);
    big.parts[0].storage = 1;
    big.parts[0].chunks = vec![zstd_rle(0, CHUNK), zstd_rle(0, 500)];
    set.valid(
        "raw-zstd",
        &["PRT-2", "PRT-7"],
        "a part of two chunks, each a zstd frame",
        &File::of(vec![big]),
    );
    let mixed_chunks = [vec![0u8; CHUNK], vec![1, 2, 3]].concat();
    let mut big = raw("zeros", Dtype::U8, &[CHUNK as u64 + 3], &mixed_chunks);
    big.parts[0].storage = 1;
    big.parts[0].chunks[0] = zstd_rle(0, CHUNK);
    set.valid(
        "raw-zstd-mixed",
        &["PRT-2", "PRT-7"],
        "a chunk as a zstd frame, and one that is as long as its content and so stored as it is",
        &File::of(vec![big]),
    );
    let shard = |number, manifest| File {
        shard: Some((number, 2)),
        manifest,
        ..File::of(vec![raw("a", Dtype::U8, &[1], &[1])])
    };
    set.valid("shard-first", &["HDR-8"], "shard 1 of 2 by itself", &shard(1, None));
    let second = shard(2, Some(vec![]));
    set.valid("shard-second", &["HDR-8", "SHD-1"], "shard 2 of 2 by itself", &second);

    set.valid(
        "planes-uniform",
        &["PLN-1", "PLN-2", "PLN-4", "PLN-6", "PLN-7", "VAL-1", "VAL-2", "VAL-3", "VAL-4", "LVL-4"],
        "five planes, groups of 16, the last one short",
        &File::of(vec![weights().record()]),
    );
    set.valid(
        "planes-per-row",
        &["PLN-3", "PLN-5", "PRT-5"],
        "3 to 8 planes by row, odd columns: rows are stored by falling count",
        &File::of(vec![mixed().record()]),
    );
    let mut folded = Planes::new("experts", Dtype::F16, &[2, 2, 24], 32, &[6; 4]);
    folded.row_dims = 2;
    set.valid(
        "planes-row-dims",
        &["PLN-2"],
        "two of three dimensions are rows",
        &File::of(vec![folded.record()]),
    );
    let whole = Planes::new("w", Dtype::F64, &[3, 9], 0, &[4, 4, 4]);
    set.valid(
        "planes-no-groups",
        &["PLN-4"],
        "no steps part: every step is 128",
        &File::of(vec![whole.record()]),
    );
    let mut custom = Planes::new("w", Dtype::Bf16, &[4, 16], 16, &[3, 5, 3, 5]);
    custom.level_ids = [0, 0, 1, 0, 0, 0];
    custom.custom = Some((5, custom5()));
    set.valid(
        "planes-custom-levels",
        &["LVL-1", "LVL-2", "LVL-3", "VAL-5"],
        "tables of the file's own for rows of 5 planes, read as 5, 4 and 3",
        &File::of(vec![level_record("custom", 5, &custom5()), custom.record()]),
    );
    let long: Vec<u8> =
        (0..CHUNK + 5).map(|i| u8::try_from(i * 7 % 251).expect("below 251")).collect();
    set.valid(
        "two-leaves",
        &["ROOT-1", "ROOT-3", "PRT-2", "PRT-6"],
        "a plain part of two chunks; the core has two leaves",
        &File::of(vec![raw("long", Dtype::U8, &[CHUNK as u64 + 5], &long)]),
    );
    set.valid(
        "name-longest",
        &["NAM-1"],
        "a name of 1024 bytes",
        &File::of(vec![raw(&"n".repeat(1024), Dtype::U8, &[1], &[1])]),
    );

    let head = weights().record();
    let tied = File::of(vec![alias("embed", "w", &head), head]);
    set.valid("alias", &["TEN-4"], "two names, one tensor", &tied);
    let files = File::of(vec![
        carried("1_Pooling/config.json", b"{}"),
        carried("config.json", b"{\"a\":1}"),
        carried("empty.txt", b""),
    ]);
    set.valid(
        "files",
        &["FIL-1", "NAM-1", "NAM-2", "NAM-3", "MAN-3"],
        "carried files, one in a folder, one empty",
        &files,
    );
    let mut attached = File::of(vec![]);
    attached.attachments = [
        attachment(1, b"eval", b"{}"),
        attachment(2, b"eval", &[7; 70]),
        attachment(900, b"new", b""),
    ]
    .concat();
    set.valid(
        "attachments",
        &["ATT-1"],
        "a receipt that is no record, a signature of the same name, and an unknown kind",
        &attached,
    );
    set.valid(
        "rank-sixteen",
        &["TEN-1"],
        "16 dimensions",
        &File::of(vec![raw("a", Dtype::U8, &[1; 16], &[1])]),
    );

    let mut unknown = File::of(vec![raw("a", Dtype::U8, &[1], &[1])]);
    unknown.records.push(Record {
        kind: 77,
        flags: 1,
        name: b"future".to_vec(),
        body: vec![1, 2, 3],
        parts: vec![plain(9, 1, b"payload")],
        ..Record::default()
    });
    set.valid(
        "unknown-optional-record",
        &["IDX-5"],
        "an optional record of an unknown kind with a part",
        &unknown,
    );
    let mut residual = weights().record();
    residual.parts.push(Part { flags: 1, ..plain(17, 0, b"a part of a later version") });
    set.valid(
        "unknown-optional-part",
        &["PRT-1", "PRT-4"],
        "an optional part of an unknown kind behind the planes",
        &File::of(vec![residual.clone()]),
    );
    let coded = residual.parts.last_mut().expect("the residual");
    (coded.storage, coded.len) = (7, 1000);
    set.valid(
        "unknown-optional-storage",
        &["PRT-1", "PRT-2"],
        "an optional part of an unknown kind in an unknown storage",
        &File::of(vec![residual]),
    );
    let around = File::of(vec![
        {
            let mut r = raw("a", Dtype::U8, &[1], &[1]);
            r.parts.push(unknown_part(6, 200));
            r
        },
        {
            let mut r = raw("b", Dtype::F16, &[0, 3], &[]);
            r.parts.push(unknown_part(255, 0));
            r
        },
        {
            let mut r = weights().record();
            r.parts.extend([unknown_part(6, 0), unknown_part(6, 1), unknown_part(15, 0)]);
            r
        },
        {
            let mut r = carried("x", b"1");
            r.parts.push(unknown_part(7, 0));
            r
        },
        {
            let mut r = carried("y", b"");
            r.parts.push(unknown_part(7, 0));
            r
        },
    ]);
    set.valid(
        "unknown-parts-around",
        &["PRT-1", "PRT-4"],
        "optional parts of unknown kinds in tensors and files, also in empty ones; their storage is unknown too, though its code is that of zstd",
        &around,
    );
    let mut skipped = File::of(vec![raw("a", Dtype::U8, &[1], &[1])]);
    skipped.records.push(Record {
        kind: 77,
        flags: 1,
        name: b"future".to_vec(),
        parts: vec![
            Part { flags: 1, ..plain(1, 3, b"data that may be skipped") },
            Part { storage: 1, len: 1000, ..plain(3, 0, b"no frame") },
            plain(5, 9, b"plane nine"),
            unknown_part(6, 0),
        ],
        ..Record::default()
    });
    set.valid(
        "skipped-record-parts",
        &["IDX-5", "PRT-1", "PRT-4", "PRT-7"],
        "a record that is skipped has parts as no known record may have them: optional data, scales as zstd which are no frame, a ninth plane",
        &skipped,
    );
    let mut unused = File::of(vec![raw("a", Dtype::U8, &[1], &[1])]);
    (unused.required, unused.optional) = (Some(1), Some(3));
    set.valid(
        "features-unused",
        &["HDR-5"],
        "feature bits for coded tensors, residuals and overlays, of which there are none",
        &unused,
    );
    let emoji = File::of(
        ["\u{fb33}", "\u{1f600}"].iter().map(|name| raw(name, Dtype::U8, &[1], &[1])).collect(),
    );
    set.valid(
        "names-by-bytes",
        &["IDX-4", "ROOT-2", "MAN-1"],
        "U+FB33 and U+1F600: records and leaves are in the order of bytes, members of the manifest in that of UTF-16",
        &emoji,
    );
    let mut window = raw("zeros", Dtype::U8, &[500], &[0; 500]);
    window.parts[0].storage = 1;
    window.parts[0].chunks = vec![zstd_frame(1, &[13 << 3, 0], 1, 500)];
    set.valid(
        "raw-zstd-window",
        &["PRT-7"],
        "a frame with a window of 8 MiB and the dictionary 0, which means none",
        &File::of(vec![window]),
    );
    for (id, rule, at, value, comment) in [
        ("minor-version", "HDR-2", 10usize, 7u8, "a later minor version"),
        ("optional-feature", "HDR-5", 24, 0x80, "an unknown optional feature bit"),
    ] {
        let mut bytes = File::of(vec![]).bytes();
        bytes[at] = value;
        let bytes = seal(bytes);
        let output = json!({ "stored_root": hex(&bytes[128..160]), "decoded_root": hex(&bytes[96..128]), "tensors": {} });
        set.add(
            "container/valid",
            id,
            &[rule],
            comment,
            &[],
            hex(&bytes).into(),
            "ok",
            Some(output),
        );
    }
}

#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn container_invalid(set: &mut VectorSet) {
    let base = File::of(vec![
        raw("a", Dtype::U8, &[3], &[1, 2, 3]),
        raw("b", Dtype::U8, &[4], &[4, 5, 6, 7]),
    ]);
    let good = base.bytes();
    // A change of the preamble that keeps its checksum and the stored root right.
    let mut patch = |id: &str, rule: &str, comment: &str, expect: &str, at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        set.invalid(id, &[rule], comment, expect, &seal(bytes));
    };
    patch("magic-text-mode", "HDR-1", "line ends were translated", "malformed", 4, b"\n\x1a\n\0");
    patch(
        "magic-safetensors",
        "HDR-1",
        "no magic at all",
        "malformed",
        0,
        &[0x40, 0, 0, 0, 0, 0, 0, 0, b'{'],
    );
    patch("major-version", "HDR-2", "major version 2", "unsupported_version", 8, &[2]);
    patch("preamble-len", "HDR-4", "preamble of 512 bytes", "malformed", 12, &[0, 2]);
    patch("preamble-reserved", "HDR-4", "a reserved byte is set", "malformed", 172, &[1]);
    patch("preamble-reserved-word", "HDR-4", "the reserved word is set", "malformed", 92, &[1]);
    patch(
        "required-feature-three",
        "HDR-5",
        "unknown required bit 3",
        "unsupported_feature",
        16,
        &[8],
    );
    patch(
        "required-feature-unknown",
        "HDR-5",
        "unknown required bit 63",
        "unsupported_feature",
        23,
        &[0x80],
    );
    patch("shard-two", "HDR-8", "shard 1 of 2 without the feature bit", "malformed", 88, &[2]);
    patch("shard-number", "HDR-8", "shard 2 of 1", "malformed", 84, &[2]);
    patch(
        "index-offset-huge",
        "HDR-7",
        "index at 2^62",
        "malformed",
        40,
        &(1u64 << 62).to_le_bytes(),
    );
    patch(
        "index-len-huge",
        "HDR-7",
        "index of 2^63 bytes",
        "malformed",
        48,
        &(1u64 << 63).to_le_bytes(),
    );
    patch("index-len-all-ones", "HDR-7", "index length wraps around", "malformed", 48, &[0xff; 8]);
    patch(
        "manifest-offset",
        "HDR-7",
        "manifest not right behind the index",
        "malformed",
        56,
        &(good.len() as u64).to_le_bytes(),
    );
    patch(
        "core-len",
        "HDR-7",
        "core ends inside the manifest",
        "malformed",
        32,
        &320u64.to_le_bytes(),
    );
    patch(
        "attachments-crc-without",
        "ATT-1",
        "a checksum of no attachments",
        "malformed",
        168,
        &[1],
    );
    patch("record-count", "IDX-3", "one record less than the index has", "malformed", 72, &[1]);
    patch(
        "record-count-more",
        "IDX-3",
        "one record more than the index has",
        "malformed",
        72,
        &[3],
    );
    patch("index-crc", "IDX-1", "the index's checksum is wrong", "integrity", 76, &[0, 0, 0, 0]);
    patch(
        "manifest-crc",
        "MAN-4",
        "the manifest's checksum is wrong",
        "integrity",
        80,
        &[0, 0, 0, 0],
    );
    patch("decoded-root", "ROOT-2", "the decoded root is wrong", "integrity", 96, &[0; 32]);

    let mut attached = base.clone();
    attached.attachments = attachment(1, b"a", b"x");
    let with_attachment = attached.bytes();
    let with_crc = |mut bytes: Vec<u8>| {
        let crc = crc32fast::hash(&bytes[..252]);
        put(&mut bytes, 252, &crc.to_le_bytes());
        bytes
    };
    // An index of no records: eight bytes of the preamble that are zero.
    let mut bytes = File::of(vec![]).bytes();
    put(&mut bytes, 40, &[192, 0]);
    put(&mut bytes, 48, &[8]);
    put(&mut bytes, 76, &crc32fast::hash(&[0; 8]).to_le_bytes());
    set.invalid(
        "index-offset-in-preamble",
        &["HDR-7"],
        "the index is at 192, inside the preamble",
        "malformed",
        &seal(bytes),
    );
    let mut bytes = File { stray: 64, ..File::default() }.bytes();
    assert_eq!((bytes[40..42].to_vec(), bytes[48]), (vec![64, 1], 0), "an empty index at 320");
    put(&mut bytes, 40, &[8, 1]);
    set.invalid(
        "index-offset-unaligned",
        &["HDR-7", "PRT-3"],
        "the index, which is empty, is at 264",
        "malformed",
        &seal(bytes),
    );
    let mut unaligned = base.clone();
    unaligned.attachments = attachment(1, b"a", b"x");
    unaligned.attachments.truncate(18);
    set.invalid(
        "attachments-unaligned",
        &["HDR-7", "ATT-1"],
        "a section of 18 bytes: an attachment without its padding",
        "malformed",
        &unaligned.bytes(),
    );
    let mut bytes = good.clone();
    bytes[130] ^= 1;
    set.invalid(
        "stored-root",
        &["ROOT-3"],
        "the stored root is wrong",
        "integrity",
        &with_crc(bytes),
    );
    let mut bytes = good.clone();
    bytes[252] ^= 64;
    set.invalid(
        "preamble-crc",
        &["HDR-3"],
        "the preamble's checksum is wrong",
        "integrity",
        &bytes,
    );
    set.invalid(
        "file-cut",
        &["HDR-6"],
        "the last 64 bytes are missing",
        "truncated",
        &good[..good.len() - 64],
    );
    set.invalid("file-cut-in-preamble", &["HDR-6"], "100 bytes", "truncated", &good[..100]);
    set.invalid("file-empty", &["HDR-1"], "no bytes", "malformed", &[]);
    let mut bytes = good.clone();
    bytes.push(0);
    set.invalid(
        "file-longer",
        &["HDR-6"],
        "one byte more than the preamble says",
        "malformed",
        &bytes,
    );
    let mut bytes = good.clone();
    let index_end = 384 + usize::from(good[48]) + 256 * usize::from(good[49]);
    assert!(index_end % 64 != 0, "the base file has padding behind its index");
    bytes[index_end] = 1;
    set.invalid(
        "padding-behind-index",
        &["HDR-7"],
        "padding is not zero",
        "malformed",
        &seal(bytes),
    );
    let mut bytes = with_attachment.clone();
    put(&mut bytes, 168, &[0; 4]);
    set.invalid(
        "attachments-crc",
        &["ATT-1"],
        "the attachments' checksum is wrong",
        "integrity",
        &seal(bytes),
    );
    let mut bytes = good.clone();
    let manifest_end = usize::try_from(
        u64::from_le_bytes(good[56..64].try_into().expect("8"))
            + u64::from_le_bytes(good[64..72].try_into().expect("8")),
    )
    .expect("small");
    assert!(manifest_end % 64 != 0, "the base file has padding behind its manifest");
    bytes[manifest_end] = 1;
    set.invalid(
        "padding-behind-manifest",
        &["HDR-7"],
        "padding is not zero",
        "malformed",
        &seal(bytes),
    );

    // Changes of records.
    let mut file =
        |id: &str, rule: &str, comment: &str, expect: &str, change: &dyn Fn(&mut File)| {
            let mut file = base.clone();
            change(&mut file);
            set.invalid(id, &[rule], comment, expect, &file.bytes());
        };
    file("record-len-short", "IDX-2", "a record that ends inside its fields", "malformed", &|f| {
        f.records[1].extra_len = -8
    });
    file("record-len-long", "IDX-2", "a record that reaches beyond the index", "malformed", &|f| {
        f.records[1].extra_len = 8
    });
    file(
        "record-len-odd",
        "IDX-2",
        "a record length that is no multiple of 8",
        "malformed",
        &|f| f.records[1].extra_len = -4,
    );
    file("record-tail", "IDX-2", "bytes behind the last field of a record", "malformed", &|f| {
        f.records[1].tail = vec![0; 8]
    });
    file("record-padding", "IDX-2", "padding behind the name is not zero", "malformed", &|f| {
        f.records[1].padding = 1
    });
    file("record-unsorted", "IDX-4", "names in falling order", "malformed", &|f| {
        f.records.swap(0, 1)
    });
    file("record-twice", "IDX-4", "one name twice", "malformed", &|f| {
        f.records[1].name = b"a".to_vec()
    });
    file("record-kinds-unsorted", "IDX-4", "a file record before a tensor", "malformed", &|f| {
        f.records[0] = carried("a", b"x")
    });
    file(
        "record-kind-unknown",
        "IDX-5",
        "an unknown kind that is not optional",
        "unsupported_feature",
        &|f| f.records[1].kind = 9,
    );
    file("record-optional-tensor", "IDX-5", "a tensor marked optional", "malformed", &|f| {
        f.records[1].flags = 1
    });
    file("record-kind-zero", "IDX-5", "an optional record of kind 0", "malformed", &|f| {
        (f.records[0].kind, f.records[0].flags, f.records[0].tensor) = (0, 1, None);
    });
    file("record-names-utf16", "IDX-4", "names in the order of UTF-16", "malformed", &|f| {
        f.records[0].name = "\u{1f600}".into();
        f.records[1].name = "\u{fb33}".into();
    });
    let future =
        |parts| Record { kind: 77, flags: 1, name: b"future".to_vec(), parts, ..Record::default() };
    file(
        "skipped-part-order",
        "PRT-4",
        "parts of a skipped record in falling order",
        "malformed",
        &|f| {
            f.records.push(future(vec![plain(5, 0, b"x"), plain(1, 0, b"y")]));
        },
    );
    file(
        "skipped-record-crc",
        "PRT-6",
        "a checksum in a record that is skipped",
        "integrity",
        &|f| {
            f.records.push(future(vec![Part { crc: Some(1), ..plain(1, 0, b"x") }]));
        },
    );
    file("skipped-part-crc", "PRT-6", "a checksum of a part that is skipped", "integrity", &|f| {
        f.records[1].parts.push(Part { crc: Some(1), ..unknown_part(17, 0) });
    });
    file(
        "skipped-part-flags",
        "PRT-1",
        "unknown flags of a part that is skipped",
        "malformed",
        &|f| {
            f.records[1].parts.push(Part { flags: 3, ..unknown_part(17, 0) });
        },
    );
    file(
        "part-kind-zero",
        "PRT-1",
        "an optional part of kind 0 before a file's data",
        "malformed",
        &|f| {
            let mut r = carried("x", b"12");
            r.parts.insert(0, Part { flags: 1, ..plain(0, 0, b"1") });
            f.records.push(r);
        },
    );
    file("record-flags", "IDX-5", "unknown record flags", "malformed", &|f| f.records[1].flags = 2);
    file("name-empty", "NAM-1", "an empty name", "malformed", &|f| f.records[0].name = vec![]);
    file("name-control", "NAM-1", "a line feed in a name", "malformed", &|f| {
        f.records[1].name = b"b\n".to_vec()
    });
    file("name-nul", "NAM-1", "a NUL in a name", "malformed", &|f| {
        f.records[1].name = b"b\0".to_vec()
    });
    file("name-utf8", "NAM-1", "a name that is not UTF-8", "malformed", &|f| {
        f.records[1].name = b"b\xff".to_vec()
    });
    file("name-long", "NAM-1", "a name of 1025 bytes", "malformed", &|f| {
        f.records[1].name = vec![b'b'; 1025]
    });
    file("dtype-unknown", "DTY-1", "dtype 99", "unsupported_feature", &|f| {
        f.records[1].body[0] = 99
    });
    file("encoding-unknown", "TEN-1", "encoding 9", "unsupported_feature", &|f| {
        f.records[1].body[1] = 9
    });
    file("encoding-five", "TEN-1", "unknown encoding 5", "unsupported_feature", &|f| {
        f.records[1].body[1] = 5
    });
    file("role-unknown", "TEN-1", "role 4", "malformed", &|f| f.records[1].body[2] = 4);
    file("tensor-reserved", "TEN-1", "a reserved byte is set", "malformed", &|f| {
        f.records[1].body[7] = 1
    });
    file("tensor-body-short", "TEN-1", "the digest is cut off", "malformed", &|f| {
        f.records[1].body.pop();
    });
    file(
        "tensor-body-long",
        "TEN-1",
        "a byte behind the body of a raw tensor",
        "malformed",
        &|f| f.records[1].body.push(0),
    );
    file("rank-17", "TEN-1", "17 dimensions", "malformed", &|f| {
        f.records[1] = raw("b", Dtype::U8, &[1; 17], &[1]);
    });
    file(
        "shape-overflow",
        "TEN-2",
        "2^62 + 1 times 4 elements, which wraps around to 4",
        "malformed",
        &|f| {
            f.records[1].body[3] = 2;
            let mut shape = ((1u64 << 62) + 1).to_le_bytes().to_vec();
            shape.extend(4u64.to_le_bytes());
            f.records[1].body.splice(8..16, shape);
        },
    );
    file("shape-half-byte", "TEN-2", "three elements of four bits", "malformed", &|f| {
        f.records[1] = raw("b", Dtype::F4, &[3], &[0x21, 3]);
    });
    file(
        "raw-with-planes-field",
        "TEN-3",
        "a raw tensor that claims five planes",
        "malformed",
        &|f| f.records[1].body[6] = 5,
    );
    file("part-flags", "PRT-1", "unknown part flags", "malformed", &|f| {
        f.records[1].parts[0].flags = 2
    });
    file("part-optional-data", "PRT-1", "a data part marked optional", "malformed", &|f| {
        f.records[1].parts[0].flags = 1
    });
    file("part-storage", "PRT-1", "unknown storage", "unsupported_feature", &|f| {
        f.records[1].parts[0].storage = 2
    });
    file(
        "part-kind-unknown",
        "PRT-1",
        "an unknown kind that is not optional",
        "unsupported_feature",
        &|f| {
            f.records[1].parts.push(plain(17, 0, b"x"));
        },
    );
    file("part-empty", "PRT-2", "a part without content", "malformed", &|f| {
        f.records[1].parts[0].len = 0
    });
    file("part-chunk-count", "PRT-2", "two chunks for four bytes", "malformed", &|f| {
        f.records[1].parts[0].chunks = vec![vec![4, 5], vec![6, 7]];
    });
    file(
        "part-chunks-claimed",
        "LIM-1 IDX-2",
        "2^32 - 1 chunks and a length to match, in a file of a few hundred bytes",
        "malformed",
        &|f| {
            f.records[1].parts[0].n_chunks = Some(u32::MAX);
            f.records[1].parts[0].len = u64::from(u32::MAX) << 20;
        },
    );
    file("part-stored-len", "PRT-2", "stored length and chunks disagree", "malformed", &|f| {
        f.records[1].parts[0].stored_len = Some(5)
    });
    file("zstd-chunk-longer", "PRT-2", "a zstd chunk longer than its content", "malformed", &|f| {
        f.records[1] = raw("b", Dtype::U8, &[4], &[4; 4]);
        f.records[1].parts[0].storage = 1;
        f.records[1].parts[0].chunks = vec![zstd_rle(4, 4)];
    });
    file("part-overlap", "PRT-3", "two parts at one place", "malformed", &|f| {
        f.records[1].parts[0].offset = Some(256)
    });
    file("part-misaligned", "PRT-3", "a part that is not aligned", "malformed", &|f| {
        f.records[1].parts[0].offset = Some(321)
    });
    file("part-beyond-file", "PRT-3", "a part at 2^63", "malformed", &|f| {
        f.records[1].parts[0].offset = Some(1 << 63)
    });
    file(
        "part-hole",
        "PRT-3",
        "64 bytes that belong to nothing between parts",
        "malformed",
        &|f| f.records[1].parts[0].gap = 64,
    );
    file(
        "part-stray-end",
        "PRT-3",
        "64 bytes that belong to nothing behind the parts",
        "malformed",
        &|f| f.stray = 128,
    );
    file("part-padding", "PRT-3", "padding between parts is not zero", "malformed", &|f| {
        f.records[0].parts[0].padding = 1
    });
    file("raw-without-part", "PRT-4", "a raw tensor without its data", "malformed", &|f| {
        f.records[1].parts.clear()
    });
    file("raw-length", "PRT-5", "three bytes for four elements", "malformed", &|f| {
        f.records[1].parts = vec![plain(1, 0, &[4, 5, 6])];
        f.records[1].decodes_to(&[4, 5, 6]);
    });
    file("chunk-crc", "PRT-6", "a chunk's checksum is wrong", "integrity", &|f| {
        f.records[1].parts[0].crc = Some(1)
    });
    file("raw-digest", "TEN-5", "the digest of a raw tensor is wrong", "integrity", &|f| {
        let wrong = Digest::of(b"other");
        let t = f.records[1].tensor.as_mut().expect("a tensor");
        t.decoded = b"other".to_vec();
        put(&mut f.records[1].body, 16, &wrong.0);
    });
    file("level-body", "LVL-1", "a level table for 9 planes", "malformed", &|f| {
        f.records.insert(0, level_record("t", 9, &[0; 1016]));
    });
    file("level-length", "LVL-1", "a level table that lacks its last level", "malformed", &|f| {
        f.records.insert(0, level_record("t", 3, &custom3()[..7]));
    });
    file("level-reserved", "LVL-1", "a reserved byte is set", "malformed", &|f| {
        let mut r = level_record("t", 3, &custom3());
        r.body[7] = 1;
        f.records.insert(0, r);
    });
    file("level-order", "LVL-2", "two equal levels", "malformed", &|f| {
        f.records.insert(0, level_record("t", 3, &[-4, -3, -2, -1, 0, 1, 1, 2]));
    });
    file("file-dotdot", "NAM-2", "a path that leaves the folder", "malformed", &|f| {
        f.records.push(carried("../x", b"x"))
    });
    file("file-absolute", "NAM-2", "an absolute path", "malformed", &|f| {
        f.records.push(carried("/etc/x", b"x"))
    });
    file("file-drive", "NAM-2", "a drive letter", "malformed", &|f| {
        f.records.push(carried("C:x", b"x"))
    });
    file("file-backslash", "NAM-2", "a backslash", "malformed", &|f| {
        f.records.push(carried("a\\x", b"x"))
    });
    file("file-is-folder", "NAM-3", "a path that is file and folder", "malformed", &|f| {
        f.records.extend([carried("x", b"1"), carried("x/y", b"2")])
    });
    file("file-length", "FIL-1", "a length that the part doesn't have", "malformed", &|f| {
        let mut r = carried("x", b"12");
        r.body[0] = 3;
        f.records.push(r);
    });
    file("file-digest", "FIL-1", "the digest of a file is wrong", "integrity", &|f| {
        let mut r = carried("x", b"12");
        r.body[8] ^= 1;
        f.records.push(r);
    });
    file("alias-missing", "TEN-4", "an alias of nothing", "malformed", &|f| {
        let other = alias("c", "z", &f.records[1]);
        f.records.push(other);
    });
    file("alias-of-alias", "TEN-4", "an alias of an alias", "malformed", &|f| {
        let (c, d) = (alias("c", "b", &f.records[1]), alias("d", "c", &f.records[1]));
        f.records.extend([c, d]);
    });
    file("alias-shape", "TEN-4", "an alias with another shape", "malformed", &|f| {
        let mut c = alias("c", "b", &f.records[1]);
        c.body[3] = 2;
        let mut shape = 2u64.to_le_bytes().to_vec();
        shape.extend(2u64.to_le_bytes());
        c.body.splice(8..16, shape);
        c.tensor.as_mut().expect("a tensor").shape = vec![2, 2];
        f.records.push(c);
    });
    file("alias-with-part", "TEN-4", "an alias with bytes of its own", "malformed", &|f| {
        let mut c = alias("c", "b", &f.records[1]);
        c.parts.push(plain(1, 0, &[4, 5, 6, 7]));
        f.records.push(c);
    });
    file(
        "manifest-tensor-missing",
        "MAN-3",
        "a tensor that the manifest doesn't name",
        "malformed",
        &|f| {
            let mut m = f.default_manifest();
            m["tensors"].as_object_mut().expect("an object").remove("b");
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-raw-digest",
        "MAN-3",
        "a raw tensor with another source digest",
        "malformed",
        &|f| {
            let mut m = f.default_manifest();
            m["tensors"]["b"]["sha256"] = Digest::of(b"").to_string().into();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-carried",
        "MAN-3",
        "a carried file that the manifest doesn't list",
        "malformed",
        &|f| {
            f.manifest =
                Some(serde_json_canonicalizer::to_vec(&f.default_manifest()).expect("plain JSON"));
            f.records.push(carried("x", b"12"));
        },
    );
    file(
        "attachment-cut",
        "ATT-1",
        "an attachment that reaches beyond the section",
        "malformed",
        &|f| {
            f.attachments = attachment(1, b"a", b"x");
            f.attachments[8] = 200;
        },
    );
    file("attachment-padding", "ATT-1", "padding is not zero", "malformed", &|f| {
        f.attachments = attachment(1, b"a", b"x");
        f.attachments[63] = 1;
    });
    file("attachment-twice", "ATT-1", "one kind and name twice", "malformed", &|f| {
        f.attachments = [attachment(1, b"a", b"x"), attachment(1, b"a", b"y")].concat();
    });
    file("attachment-reserved", "ATT-1", "the reserved word is set", "malformed", &|f| {
        f.attachments = attachment(1, b"a", b"x");
        f.attachments[4] = 1;
    });
    file("alias-dtype", "TEN-4", "an alias of another type", "malformed", &|f| {
        let mut c = alias("c", "b", &f.records[1]);
        c.body[0] = Dtype::I8.code();
        c.tensor.as_mut().expect("a tensor").dtype = Dtype::I8;
        f.records.push(c);
    });
    file("alias-digest", "TEN-4", "an alias with another digest", "malformed", &|f| {
        // Of planes, whose source digest in the manifest is free.
        let w = weights().record();
        let mut alias = alias("v", "w", &w);
        alias.decodes_to(b"other");
        f.records = vec![alias, w];
    });
    file(
        "manifest-tensor-extra",
        "MAN-3",
        "a tensor that isn't there is in the manifest",
        "malformed",
        &|f| {
            let mut m = f.default_manifest();
            m["tensors"]["c"] = m["tensors"]["b"].clone();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-carried-extra",
        "MAN-3",
        "a file that isn't there is carried by the manifest",
        "malformed",
        &|f| {
            let more = File::of(vec![carried("x", b"12")]).default_manifest();
            let mut m = f.default_manifest();
            m["files"] = more["files"].clone();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-alias-digest",
        "MAN-3",
        "an alias of a raw tensor with another source digest",
        "malformed",
        &|f| {
            let c = alias("c", "b", &f.records[1]);
            f.records.push(c);
            let mut m = f.default_manifest();
            m["tensors"]["c"]["sha256"] = Digest::of(b"").to_string().into();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "level-order-fewer",
        "LVL-2",
        "two equal levels in the table for 4 of 5 planes",
        "malformed",
        &|f| {
            let mut levels = custom5();
            levels[33] = levels[32];
            f.records.insert(0, level_record("t", 5, &levels));
        },
    );
    file(
        "manifest-carried-digest",
        "MAN-3",
        "a carried file with another digest",
        "malformed",
        &|f| {
            f.records.push(carried("x", b"12"));
            let mut m = f.default_manifest();
            m["files"][0]["sha256"] = Digest::of(b"34").to_string().into();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file("file-component", "NAM-2", "an empty component", "malformed", &|f| {
        f.records.push(carried("a//x", b"x"));
    });
    file("file-dot", "NAM-2", "a component that is a dot", "malformed", &|f| {
        f.records.push(carried("a/./x", b"x"));
    });
    file("file-body", "FIL-1", "a body of 39 bytes", "malformed", &|f| {
        let mut r = carried("x", b"12");
        r.body.pop();
        f.records.push(r);
    });
    file("name-c1-control", "NAM-1", "the control character U+0085", "malformed", &|f| {
        f.records[1].name = "b\u{85}".into();
    });
    file("part-plane", "PRT-1", "a data part of plane 5", "malformed", &|f| {
        f.records[1].parts[0].plane = 5;
    });

    // Planes.
    let mut planes = |id: &str,
                      rule: &str,
                      comment: &str,
                      expect: &str,
                      p: &Planes,
                      change: &dyn Fn(&mut Record)| {
        let mut r = p.record();
        change(&mut r);
        let mut file = File::of(vec![r]);
        if let Some((native, levels)) = &p.custom {
            file.records.insert(0, level_record("custom", *native, levels));
        }
        set.invalid(id, &[rule], comment, expect, &file.bytes());
    };
    // Changes stored bytes of part `i`, which keeps all checksums right.
    let at = |i: usize, byte: usize, change: fn(u8) -> u8| {
        move |r: &mut Record| {
            let b = &mut r.parts[i].chunks[0][byte];
            *b = change(*b);
        }
    };
    let w = weights();
    let m = mixed();
    planes("planes-of-integers", "PLN-1", "an I16 tensor as planes", "malformed", &w, &|r| {
        r.body[0] = Dtype::I16.code()
    });
    let one_row = Planes::new("w", Dtype::Bf16, &[1, 80], 16, &[5]);
    planes("planes-row-dims-zero", "PLN-2", "no row dimension", "malformed", &one_row, &|r| {
        r.body[4] = 0;
        (r.body[8], r.body[16]) = (2, 40);
        r.tensor.as_mut().expect("a tensor").shape = vec![2, 40];
    });
    let columns_of_one =
        Planes { row_dims: 2, ..Planes::new("w", Dtype::Bf16, &[2, 40], 16, &[5; 80]) };
    planes(
        "planes-row-dims-three",
        "PLN-2",
        "more row dimensions than dimensions",
        "malformed",
        &columns_of_one,
        &|r| r.body[4] = 3,
    );
    let sixteen = Planes::new("w", Dtype::Bf16, &[2, 16], 16, &[5, 5]);
    planes("planes-group-8", "PLN-4", "groups of 8", "malformed", &sixteen, &|r| {
        // The second group's step has half a byte that a group of 16 leaves zero.
        r.body[5] = 3;
        r.decodes_to(&sixteen.multiplied(f32::from_bits(u32::from(sixteen.scale) << 16), 8));
    });
    planes("planes-two", "PLN-3", "two planes", "malformed", &w, &|r| r.body[6] = 2);
    planes("planes-nine", "PLN-3", "nine planes", "malformed", &w, &|r| r.body[6] = 9);
    planes("planes-part-missing", "PRT-4", "the last plane is missing", "malformed", &w, &|r| {
        r.parts.pop();
    });
    planes("planes-part-extra", "PRT-4", "a sixth plane for five", "malformed", &w, &|r| {
        let extra = Part { plane: 5, ..r.parts[6].clone() };
        r.parts.push(extra);
    });
    planes("planes-part-order", "PRT-4", "planes in falling order", "malformed", &w, &|r| {
        r.parts.swap(5, 6)
    });
    planes("planes-part-length", "PRT-5", "a plane that is too short", "malformed", &w, &|r| {
        r.parts[4].chunks[0].pop();
        r.parts[4].len -= 1;
    });
    planes("planes-scales-length", "PRT-5", "a scale too many", "malformed", &w, &|r| {
        r.parts[0] = plain(3, 0, &[&r.parts[0].chunks[0][..], &[0x12, 0x3a]].concat());
    });
    planes("planes-steps-length", "PRT-5", "steps of three rows for two", "malformed", &w, &|r| {
        r.parts[1] = plain(4, 0, &[&r.parts[1].chunks[0][..], &[0, 0]].concat());
    });
    planes(
        "planes-counts-length",
        "PRT-5",
        "a fourth plane longer than the counts allow",
        "malformed",
        &m,
        &|r| {
            let plane3 = r.parts[6].chunks[0].clone();
            r.parts[6] = plain(5, 3, &[plane3, vec![0; 5]].concat());
        },
    );
    planes(
        "planes-zstd",
        "PRT-7",
        "a plane stored as zstd",
        "malformed",
        &Planes::new("w", Dtype::Bf16, &[16, 40], 16, &[5; 16]),
        &|r| {
            r.parts[2].storage = 1;
            r.parts[2].chunks = vec![zstd_rle(0, 80)];
            let zeros = Planes::new("w", Dtype::Bf16, &[16, 40], 16, &[5; 16]);
            let mut stored = zeros.stored();
            stored.planes[0].fill(0);
            r.decodes_to(&zeros.decode(&stored, 8, Dtype::Bf16));
        },
    );
    planes(
        "planes-tail-bits",
        "PLN-6",
        "a bit behind the last column",
        "malformed",
        &m,
        &at(3, 4, |b| b | 0x80),
    );
    planes(
        "planes-steps-padding",
        "PLN-7",
        "half a byte behind the last group",
        "malformed",
        &w,
        &at(1, 1, |b| b | 0x10),
    );
    planes(
        "planes-count-value",
        "PLN-3",
        "a row of 9 planes",
        "malformed",
        &m,
        &at(0, 0, |b| (b & 0xf0) | 6),
    );
    planes(
        "planes-count-padding",
        "PLN-3",
        "half a byte behind the last row",
        "malformed",
        &m,
        &at(0, 3, |b| b | 0x10),
    );
    planes(
        "planes-counts-uniform",
        "PLN-3",
        "a counts part of equal counts",
        "malformed",
        &Planes::new("w", Dtype::F32, &[2, 16], 16, &[5, 5]),
        &|r| {
            r.body[6] = 0;
            r.parts.insert(0, plain(2, 0, &[0x22]));
        },
    );
    planes(
        "planes-counts-short",
        "PRT-5",
        "a counts part that is too short",
        "malformed",
        &m,
        &|r| {
            r.parts[0] = plain(2, 0, &r.parts[0].chunks[0][..3]);
        },
    );
    let five = Planes::new("w", Dtype::F32, &[3, 16], 16, &[5, 4, 3]);
    planes(
        "planes-beyond-counts",
        "PRT-4",
        "a sixth plane, rows have five at most",
        "malformed",
        &five,
        &|r| {
            r.parts.push(plain(5, 5, &[0, 0]));
        },
    );
    planes(
        "planes-below-counts",
        "PRT-4",
        "four planes, a row has five",
        "malformed",
        &five,
        &|r| {
            r.parts.pop();
        },
    );
    planes(
        "planes-counts-swapped",
        "PLN-5 TEN-5",
        "the counts of two rows are exchanged: the digest is of other rows",
        "integrity",
        &m,
        &at(0, 0, |b| b.rotate_left(4)),
    );
    // Digests are those of a reader that multiplies whatever it finds.
    let mut scale = |id: &str, comment: &str, p: &Planes, bits: u16| {
        planes(id, "VAL-1", comment, "malformed", p, &|r| {
            put(&mut r.parts[0].chunks[0], 0, &bits.to_le_bytes());
            r.decodes_to(&p.multiplied(f32::from_bits(u32::from(bits) << 16), p.group));
        });
    };
    scale("scale-zero", "a row scale of zero", &w, 0);
    scale("scale-subnormal", "a subnormal row scale", &w, 0x7f);
    scale("scale-negative", "a negative row scale", &w, 0xba12);
    scale("scale-infinite", "an infinite row scale", &w, 0x7f80);
    scale("scale-nan", "a row scale that is not a number", &w, 0x7fc0);
    scale("scale-too-large", "exponent 241: products could overflow", &w, 241 << 7);
    scale(
        "scale-too-large-f16",
        "exponent 129 in an F16 tensor",
        &Planes::new("w", Dtype::F16, &[1, 16], 16, &[5]),
        129 << 7,
    );
    planes(
        "code-changed",
        "TEN-5",
        "one bit of one code differs from what the digest covers",
        "integrity",
        &w,
        &at(6, 0, |b| b ^ 1),
    );
    planes("level-missing", "LVL-3", "a level table that doesn't exist", "malformed", &w, &|r| {
        r.body[8 + 16 + 32 + 4] = 1
    });
    planes(
        "planes-body-reserved",
        "TEN-1",
        "reserved bytes behind the level ids are set",
        "malformed",
        &w,
        &|r| {
            let last = r.body.len() - 1;
            r.body[last] = 1;
        },
    );
    let mut unused = Planes::new("w", Dtype::Bf16, &[2, 16], 16, &[5, 5]);
    unused.custom = Some((3, custom3()));
    planes(
        "level-unused",
        "LVL-3",
        "a table for a count that no row has",
        "malformed",
        &unused,
        &|r| r.body[8 + 16 + 32] = 1,
    );

    // A set for 5 planes holds tables for 4 and 3: the digests are those of a reader that takes them.
    let mut of_five = Planes::new("w", Dtype::Bf16, &[2, 16], 16, &[4, 4]);
    of_five.level_ids = [0, 1, 0, 0, 0, 0];
    of_five.custom = Some((4, custom5()[32..].to_vec()));
    set.invalid(
        "level-other-count",
        &["LVL-3"],
        "a table for 5 planes used for 4",
        "malformed",
        &File::of(vec![level_record("custom", 5, &custom5()), of_five.record()]).bytes(),
    );

    let mut zstd = raw("zeros", Dtype::U8, &[500], &[0; 500]);
    zstd.parts[0].storage = 1;
    for (id, chunk, comment) in [
        ("zstd-garbage", b"no zstd frame".to_vec(), "a chunk that is no frame"),
        ("zstd-short", zstd_rle(0, 499), "a frame of 499 bytes for 500"),
        (
            "zstd-two-frames",
            [zstd_rle(0, 250), zstd_rle(0, 250)].concat(),
            "two frames that add up",
        ),
        ("zstd-trailing", [zstd_rle(0, 500), vec![0]].concat(), "a byte behind the frame"),
        ("zstd-bomb", zstd_rle(0, 1 << 23), "a frame of 8 MiB for 500 bytes"),
        (
            "zstd-dictionary",
            zstd_frame(1, &[13 << 3, 1], 1, 500),
            "a frame that needs dictionary 1",
        ),
        ("zstd-window", zstd_frame(0, &[13 << 3 | 1], 1, 500), "a window of 9 MiB"),
        ("zstd-block-type", zstd_frame(0, &[13 << 3], 3, 500), "a block of the reserved type"),
        ("zstd-reserved-bit", zstd_frame(8, &[13 << 3], 1, 500), "the reserved bit of the header"),
        (
            "zstd-content-size",
            zstd_frame(0x60, &243u16.to_le_bytes(), 1, 500),
            "a frame that says it holds 499 bytes and holds 500",
        ),
        (
            "zstd-checksum",
            [zstd_frame(4, &[13 << 3], 1, 500), vec![1, 2, 3, 4]].concat(),
            "another checksum than the content's",
        ),
        (
            "zstd-skippable",
            [vec![0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0], zstd_rle(0, 500)].concat(),
            "a skippable frame in front",
        ),
    ] {
        let mut r = zstd.clone();
        r.parts[0].chunks = vec![chunk];
        let bytes = File::of(vec![r]).bytes();
        set.add(
            "container/invalid",
            id,
            &["PRT-7"],
            comment,
            &["zstd"],
            hex(&bytes).into(),
            "malformed",
            None,
        );
    }
    let mut lacking = overlay_vectors::shards().remove(0);
    lacking.shard = Some((1, 2));
    lacking.manifest = Some(
        serde_json_canonicalizer::to_vec(&File::of(vec![]).default_manifest()).expect("plain JSON"),
    );
    set.invalid(
        "shard-manifest-lacks",
        &["SHD-7", "MAN-3"],
        "the first shard of two: its manifest names none of its own tensors",
        "malformed",
        &lacking.bytes(),
    );
    for (id, comment, number, count) in [
        ("shard-zero", "shard 0 of 2", 0, 2),
        ("shard-beyond", "shard 3 of 2", 3, 2),
        ("shard-alone", "the feature bit in shard 1 of 1", 1, 1),
        ("shard-too-many", "shard 1 of 100000", 1, 100_000),
        ("shard-all-ones", "shard 1 of 2^32 - 1", 1, u32::MAX),
    ] {
        let file = File { shard: Some((number, count)), ..File::of(vec![]) };
        set.invalid(id, &["HDR-8"], comment, "malformed", &file.bytes());
    }
    let later = File { shard: Some((2, 2)), manifest: Some(vec![]), ..File::default() };
    let manifest = File { manifest: None, ..later.clone() };
    set.invalid(
        "shard-manifest",
        &["SHD-1"],
        "the second shard has a manifest",
        "malformed",
        &manifest.bytes(),
    );
    let mut bytes = later.bytes();
    put(&mut bytes, 80, &[1]);
    set.invalid(
        "shard-manifest-crc",
        &["SHD-1"],
        "the second shard has a checksum of no manifest",
        "malformed",
        &seal(bytes),
    );
    let mut head = carried("x", b"1");
    (head.kind, head.flags) = (6, 1);
    let head = File { records: vec![head], ..later.clone() };
    set.invalid(
        "shard-head",
        &["SHD-1"],
        "the second shard has a head",
        "malformed",
        &head.bytes(),
    );
    let receipt = File { attachments: attachment(1, b"r", b"{}"), ..later.clone() };
    set.invalid(
        "shard-attachment",
        &["SHD-1"],
        "the second shard has an attachment",
        "malformed",
        &receipt.bytes(),
    );
    let file = File { records: vec![carried("x", b"1")], ..later };
    set.invalid(
        "shard-file",
        &["SHD-1"],
        "the second shard carries a file",
        "malformed",
        &file.bytes(),
    );
    // The parts of one record must follow one another: here those of two records alternate.
    let first = Planes::new("v", Dtype::Bf16, &[2, 512], 0, &[3, 3]).record();
    let mut second = Planes::new("w", Dtype::Bf16, &[2, 512], 0, &[3, 3]).record();
    let mut first_swapped = first.clone();
    // Both records have parts of equal lengths in equal order; exchange the offsets of the last ones.
    let image = File::of(vec![first.clone(), second.clone()]);
    let (a, b) = (256 + 64 + 2 * 128, 256 + 64 + 3 * 128 + 64 + 2 * 128);
    first_swapped.parts[3].offset = Some(b);
    second.parts[3].offset = Some(a);
    let mut swapped = image;
    swapped.records = vec![first_swapped, second];
    set.invalid(
        "part-interleaved",
        &["PRT-3"],
        "the parts of one record don't follow one another",
        "malformed",
        &swapped.bytes(),
    );
}

/// Files by name.
type Shards = Vec<(String, Vec<u8>)>;

/// A pack of several files: the shards, and the index file.
#[derive(Clone)]
struct Sharded {
    shards: Shards,
    index: Value,
}

impl Sharded {
    /// The manifest of the first shard names what is in all of them.
    fn new(mut files: Vec<File>) -> Self {
        let count = u32::try_from(files.len()).expect("few");
        let all = File::of(files.iter().flat_map(|f| f.records.clone()).collect());
        for (number, file) in (1..).zip(&mut files) {
            file.shard = Some((number, count));
            file.manifest.get_or_insert_with(|| {
                if number == 1 {
                    serde_json_canonicalizer::to_vec(&all.default_manifest()).expect("plain JSON")
                } else {
                    vec![]
                }
            });
        }
        let shards: Vec<_> = (1..)
            .zip(&files)
            .map(|(n, f)| (format!("m-{n:05}-of-{count:05}.uc"), f.bytes()))
            .collect();
        let mut weight_map = serde_json::Map::new();
        for ((name, _), file) in shards.iter().zip(&files) {
            for r in file.records.iter().filter(|r| r.tensor.is_some()) {
                let tensor = String::from_utf8(r.name.clone()).expect("valid name");
                weight_map.insert(tensor, name.clone().into());
            }
        }
        let listed: Vec<_> = shards.iter().map(|(name, bytes)| Self::listed(name, bytes)).collect();
        // Roots are those of one file with all records.
        let index = json!({
            "format": "ultracompress-index-1",
            "stored_root": Self::stored_root(&shards),
            "decoded_root": hex(&all.bytes()[96..128]),
            "shards": listed,
            "weight_map": weight_map,
        });
        Self { shards, index }
    }

    fn listed(name: &str, bytes: &[u8]) -> Value {
        let core_len = u64::from_le_bytes(bytes[32..40].try_into().expect("8 bytes"));
        json!({
            "file": name, "core_len": core_len,
            "stored_root": hex(&bytes[128..160]), "decoded_root": hex(&bytes[96..128]),
        })
    }

    fn stored_root(shards: &[(String, Vec<u8>)]) -> String {
        let mut tree = TreeHasher::new();
        shards.iter().for_each(|(_, bytes)| tree.push(TreeHasher::leaf(&bytes[128..160])));
        tree.root().to_string()
    }

    /// Lists the shards again, after one was exchanged.
    fn relist(&mut self) {
        let listed: Vec<_> = self.shards.iter().map(|(n, b)| Self::listed(n, b)).collect();
        self.index["shards"] = listed.into();
        self.index["stored_root"] = Self::stored_root(&self.shards).into();
    }

    fn index_bytes(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(&self.index).expect("plain JSON")
    }

    fn input(&self, index: &[u8]) -> Value {
        let shards: serde_json::Map<String, Value> =
            self.shards.iter().map(|(name, bytes)| (name.clone(), hex(bytes).into())).collect();
        json!({ "index": hex(index), "shards": shards })
    }
}

/// A record of two sequences, with figures that can be followed by hand.
fn receipt() -> Value {
    // e to the power of 2, 1.5 and 0.5: written out, so that no mathematical library matters.
    const E2: f64 = 7.389_056_098_930_65;
    const E1_5: f64 = 4.481_689_070_338_065;
    const E0_5: f64 = 1.648_721_270_700_128_2;
    let digest = |text: &str| Digest::of(text.as_bytes()).to_string();
    json!({
        "format": "ultracompress-eval-1", "tool": "vectors", "metric": "kld",
        "architecture": "LlamaForCausalLM", "reference_root": digest("reference"),
        "tokenizer_sha256": digest("tokenizer"),
        "model": {
            "decoded_root": digest("decoded"), "stored_root": digest("stored"), "encoder": "vectors",
            "rung": null, "body_bpw": 5.25, "file_bpw": 6.5,
        },
        "text": { "sha256": digest("text"), "bytes": 4096, "tokens": 1025 },
        "protocol": { "seq_len": 128, "max_tokens": 256, "sequences": 2, "tokens": 254 },
        "rows": {
            "nll": [1.0, 3.0], "nll_reference": [1.0, 2.0], "kld": [0.25, 0.75], "top1": [1.0, 0.5],
        },
        "kld_largest": [2.0, 1.5, 1.25],
        // Differences of nll are 0 and 1: mean 1/2, standard error 1/2.
        "headline": {
            "ppl": E2, "ppl_reference": E1_5, "ppl_ratio": E0_5, "ppl_ratio_se": E0_5 / 2.0, "kld_mean": 0.5, "kld_se": 0.25, "kld_p99": 1.25,
            "top1_agreement": 0.75,
        },
        "baselines": [{
            "name": "q8_0", "body_bpw": 8.5,
            "rows": { "nll": [1.0, 2.0], "kld": [0.125, 0.125], "top1": [1.0, 1.0] },
            "headline": {
                "ppl": E1_5, "ppl_reference": E1_5, "ppl_ratio": 1.0,
                "ppl_ratio_se": 0.0, "kld_mean": 0.125, "kld_se": 0.0, "top1_agreement": 1.0,
            },
        }],
    })
}

fn receipts(set: &mut VectorSet) {
    let canonical = |v: &Value| serde_json_canonicalizer::to_vec(v).expect("finite numbers");
    let mut add = |id: &str, rule: &str, comment: &str, bytes: &[u8], expect: &str| {
        set.add("receipt", id, &[rule], comment, &[], json!(hex(bytes)), expect, None);
    };
    let all = "RCP-1 RCP-2 RCP-3";
    add("valid", all, "a record of two sequences", &canonical(&receipt()), "ok");
    let changed = |pointer: &str, to: Value| {
        let mut v = receipt();
        *v.pointer_mut(pointer).expect("the record has it") = to;
        canonical(&v)
    };
    let cosine = {
        let mut v = receipt();
        v["metric"] = json!("cosine");
        v["architecture"] = json!("BertModel");
        v["kld_largest"] = json!([]);
        v["baselines"] = json!([]);
        v["protocol"] = json!({ "seq_len": 64, "max_tokens": null, "sequences": 1, "tokens": 62 });
        v["rows"] = json!({ "cosine_pooled": [0.5], "cosine_hidden": [0.75] });
        v["headline"] = json!({
            "cosine_pooled_mean": 0.5, "cosine_pooled_se": null, "cosine_pooled_min": 0.5,
            "cosine_hidden_mean": 0.75, "cosine_hidden_se": null, "cosine_hidden_min": 0.75,
        });
        v
    };
    add("cosine", all, "an encoder, one sequence: no standard errors", &canonical(&cosine), "ok");
    let mut largest = cosine.clone();
    largest["kld_largest"] = json!([0.5]);
    add("cosine-largest", "RCP-2", "divergences of an encoder", &canonical(&largest), "malformed");
    let mut fewer = receipt();
    fewer["protocol"]["max_tokens"] = Value::Null;
    add(
        "fewer-sequences",
        "RCP-2",
        "two sequences of eight that the text has",
        &canonical(&fewer),
        "ok",
    );
    // The mean of three equal numbers is another number in binary64, unless sums are taken with more bits.
    let equal = |se: f64, mean: f64| {
        let mut v = receipt();
        v["protocol"] = json!({ "seq_len": 128, "max_tokens": 384, "sequences": 3, "tokens": 381 });
        v["baselines"] = json!([]);
        v["rows"] = json!({ "nll": [0, 0, 0], "nll_reference": [0, 0, 0], "kld": [0.1, 0.1, 0.1], "top1": [1, 1, 1] });
        v["kld_largest"] = json!([2.0, 1.5, 1.25, 1.0]);
        v["headline"] = json!({
            "ppl": 1, "ppl_reference": 1, "ppl_ratio": 1, "ppl_ratio_se": 0, "kld_mean": mean, "kld_se": se, "kld_p99": 1,
            "top1_agreement": 1,
        });
        canonical(&v)
    };
    add(
        "error-zero",
        "RCP-3",
        "a standard error of 0, where binary64 may leave 10^-17",
        &equal(0.0, 0.1),
        "ok",
    );
    add("error-floor", "RCP-3", "the same as 9 x 10^-13: it counts as 0", &equal(9e-13, 0.1), "ok");
    add("error-beyond", "RCP-3", "the same as 2 x 10^-12", &equal(2e-12, 0.1), "integrity");
    add(
        "mean-precision",
        "RCP-3",
        "a mean that is off by 5 x 10^-10",
        &equal(0.0, 0.1 + 5e-10),
        "integrity",
    );

    let one = canonical(&receipt());
    add("not-json", "RCP-1", "cut off", &one[..one.len() - 1], "malformed");
    let spaced = [&one[..], b"\n"].concat();
    add("trailing", "RCP-1", "a line feed behind it", &spaced, "malformed");
    let text = String::from_utf8(one.clone()).expect("JSON");
    let plus = text.replace("\"body_bpw\":5.25", "\"body_bpw\":5.250");
    add("number", "RCP-1", "a number with a zero too many", plus.as_bytes(), "malformed");
    let twice = text.replace("\"tool\":", "\"text\":{},\"tool\":");
    add("twice", "RCP-1 RCP-2", "a member twice", twice.as_bytes(), "malformed");

    for (id, comment, pointer, to) in [
        ("format", "an unknown format", "/format", json!("ultracompress-eval-2")),
        ("metric", "an unknown metric", "/metric", json!("accuracy")),
        ("digest", "a digest in capitals", "/text/sha256", json!("A".repeat(64))),
        ("rung", "a rung of nine planes", "/model/rung", json!(9)),
        ("no-sequences", "no sequences", "/protocol/sequences", json!(0)),
        ("largest-few", "two of three largest divergences", "/kld_largest", json!([2.0, 1.25])),
        (
            "largest-too-large",
            "more divergence in three tokens than in all",
            "/kld_largest/0",
            json!(1000.0),
        ),
        ("largest-null", "a divergence that is no number", "/kld_largest/1", Value::Null),
        (
            "few-tokens",
            "not all tokens of the sequences are scored",
            "/protocol/tokens",
            json!(227),
        ),
        ("text-short", "more tokens than the text has", "/text/tokens", json!(255)),
        ("too-many-tokens", "more tokens than the sequences have", "/protocol/tokens", json!(257)),
    ] {
        add(id, "RCP-2", comment, &changed(pointer, to), "malformed");
    }
    // Their headlines follow.
    for (id, comment, pointer, to, figures) in [
        (
            "column-short",
            "a column of one number",
            "/rows/kld",
            json!([0.5]),
            json!({ "kld_mean": 0.5, "kld_se": null }),
        ),
        (
            "top1-above-one",
            "a share above 1",
            "/rows/top1",
            json!([2.0, 0.5]),
            json!({ "top1_agreement": 1.25 }),
        ),
        (
            "kld-negative",
            "a divergence below zero by more than rounding",
            "/rows/kld",
            json!([-0.25, 1.25]),
            json!({ "kld_se": 0.75 }),
        ),
        (
            "largest-rising",
            "divergences that rise",
            "/kld_largest",
            json!([1.25, 1.5, 2.0]),
            json!({ "kld_p99": 2.0 }),
        ),
        (
            "largest-negative",
            "the last of the largest is below zero by more than rounding",
            "/kld_largest/2",
            json!(-0.01),
            json!({ "kld_p99": -0.01 }),
        ),
    ] {
        let mut v = receipt();
        *v.pointer_mut(pointer).expect("the record has it") = to;
        for (name, figure) in figures.as_object().expect("an object") {
            v["headline"][name] = figure.clone();
        }
        add(id, "RCP-2", comment, &canonical(&v), "malformed");
    }
    for (id, pointer) in [
        ("extra-model", "/model"),
        ("extra-text", "/text"),
        ("extra-protocol", "/protocol"),
        ("extra-baseline", "/baselines/0"),
        ("extra-column", "/rows"),
        ("extra-baseline-column", "/baselines/0/rows"),
    ] {
        let mut v = receipt();
        let place = v.pointer_mut(pointer).expect("the record has it");
        // A column has numbers in range.
        place["nll_reference_"] = json!([0.5, 0.5]);
        let comment = format!("{pointer} has a member that is not defined");
        add(id, "RCP-2", &comment, &canonical(&v), "malformed");
    }
    let mut figure = receipt();
    figure["headline"]["kld_median"] = json!(0.5);
    add("extra-figure", "RCP-3", "a figure that is not defined", &canonical(&figure), "integrity");
    let mut wide = cosine.clone();
    wide["rows"]["cosine_pooled"] = json!([1.5]);
    (wide["headline"]["cosine_pooled_mean"], wide["headline"]["cosine_pooled_min"]) =
        (json!(1.5), json!(1.5));
    add("cosine-range", "RCP-2", "a cosine of 1.5", &canonical(&wide), "malformed");
    let mut exact = cosine.clone();
    exact["text"]["tokens"] = json!(62);
    add(
        "cosine-tokens",
        "RCP-2",
        "a text of just the tokens between the ends",
        &canonical(&exact),
        "ok",
    );
    let most = changed("/protocol/max_tokens", json!(255));
    add("max-tokens", "RCP-2", "a token more than max_tokens", &most, "malformed");
    for (id, rung, expect) in [("rung-eight", 8, "ok"), ("rung-two", 2, "malformed")] {
        let comment = format!("a rung of {rung} planes");
        add(id, "RCP-2", &comment, &changed("/model/rung", json!(rung)), expect);
    }
    for (id, integer, expect) in
        [("integer-most", (1u64 << 53) - 1, "ok"), ("integer-beyond", 1u64 << 53, "malformed")]
    {
        let comment = format!("a text of {integer} bytes");
        add(id, "RCP-2", &comment, &changed("/text/bytes", json!(integer)), expect);
    }
    let close = changed("/headline/kld_mean", json!(0.5 * (1.0 + 5e-10)));
    add("mean-close", "RCP-3", "a mean that is off by half of what is allowed", &close, "ok");
    let mut slack = receipt();
    slack["rows"]["kld"] = json!([-1e-7, 1e-7]);
    slack["kld_largest"] = json!([1e-6, 1e-6, 1e-6]);
    for (name, figure) in [("kld_mean", 0.0), ("kld_se", 1e-7), ("kld_p99", 1e-6)] {
        slack["headline"][name] = json!(figure);
    }
    let comment =
        "divergences of zero but for rounding: one is below, the largest are more than all";
    add("rounding", "RCP-2", comment, &canonical(&slack), "ok");
    let mut nulls = receipt();
    for member in ["stored_root", "encoder", "body_bpw", "file_bpw"] {
        nulls["model"][member] = Value::Null;
    }
    nulls["baselines"][0]["body_bpw"] = Value::Null;
    add("nulls", "RCP-2", "a model that is no pack", &canonical(&nulls), "ok");
    for (id, number, written) in [
        ("number-1e20", 1e20, "100000000000000000000"),
        ("number-1e21", 1e21, "1e+21"),
        ("number-1e-6", 1e-6, "0.000001"),
        ("number-1e-7", 1e-7, "1e-7"),
    ] {
        let bytes = changed("/model/file_bpw", json!(number));
        let member = format!("\"file_bpw\":{written}");
        assert!(String::from_utf8_lossy(&bytes).contains(&member), "{written}");
        let comment = format!("a number that is written as {written}");
        add(id, "RCP-1", &comment, &bytes, "ok");
    }
    let huge = text.replace("\"body_bpw\":5.25", "\"body_bpw\":1e999");
    add("infinite", "RCP-1", "a number beyond binary64", huge.as_bytes(), "malformed");
    let mut both = receipt();
    both["model"]["rung"] = json!(4);
    both["model"]["effective_root"] = both["model"]["decoded_root"].clone();
    add("rung-with-overlays", "RCP-2", "a rung with overlays", &canonical(&both), "malformed");
    let mut overlays = receipt();
    overlays["model"]["effective_root"] = json!("5".repeat(64));
    add("overlays", "RCP-2", "the root of a model with overlays", &canonical(&overlays), "ok");
    let mut extra = receipt();
    extra["host"] = json!("a");
    add("extra", "RCP-2", "a member that is not defined", &canonical(&extra), "malformed");
    let mut missing = receipt();
    missing.as_object_mut().expect("an object").remove("tool");
    add("missing", "RCP-2", "a member is missing", &canonical(&missing), "malformed");
    let mut named = receipt();
    named["baselines"] = json!([named["baselines"][0], named["baselines"][0]]);
    add("baseline-twice", "RCP-2", "two baselines of one name", &canonical(&named), "malformed");

    for (id, comment, pointer, to) in [
        ("headline-kld", "a better mean than the rows give", "/headline/kld_mean", json!(0.4)),
        (
            "headline-overflow",
            "rows whose mean overflows: nothing follows",
            "/rows/kld",
            json!([1e308, 1e308]),
        ),
        (
            "headline-null",
            "no standard error where the rows give one",
            "/headline/kld_se",
            Value::Null,
        ),
        (
            "headline-p99",
            "a percentile that isn't the last of the largest",
            "/headline/kld_p99",
            json!(1.5),
        ),
        (
            "baseline-ppl",
            "a worse baseline than its rows give",
            "/baselines/0/headline/ppl_ratio",
            json!(1.01),
        ),
    ] {
        add(id, "RCP-3", comment, &changed(pointer, to), "integrity");
    }
    let mut lacks = receipt();
    lacks["headline"].as_object_mut().expect("an object").remove("ppl");
    add(
        "headline-lacks",
        "RCP-3",
        "a headline without perplexity",
        &canonical(&lacks),
        "integrity",
    );
}

fn packs(set: &mut VectorSet) {
    let first = || {
        let head = weights().record();
        let tied = alias("tied", "w", &head);
        File::of(vec![tied, head, carried("config.json", b"{}")])
    };
    let second = || File::of(vec![raw("bias", Dtype::U8, &[3], &[1, 2, 3])]);
    let good = || Sharded::new(vec![first(), second()]);
    let three = Sharded::new(vec![
        File::of(vec![]),
        second(),
        File::of(vec![level_record("t", 3, &custom3()), {
            let mut planes = Planes::new("w", Dtype::F16, &[2, 40], 16, &[3, 3]);
            planes.level_ids[0] = 1;
            planes.custom = Some((3, custom3()));
            planes.record()
        }]),
    ]);
    let again = |name, native, levels: Vec<i8>| {
        let mut custom = Planes::new("t", Dtype::F16, &[2, 40], 16, &[native, native]);
        custom.name = if name == "v" { "t1" } else { "t2" };
        custom.level_ids[usize::from(native) - 3] = 1;
        custom.custom = Some((native, levels.clone()));
        let exact = exact_vectors::with_residual(name);
        let records = vec![level_record("t", native, &levels), custom.record()];
        File::of([records, exact].concat())
    };
    for (id, rules, comment, pack) in [
        (
            "two-shards",
            ["HDR-8", "SHD-1 SHD-2 SHD-3 SHD-4 SHD-5"],
            "planes, alias and file; raw",
            good(),
        ),
        (
            "three-shards",
            ["SHD-6", "ROOT-2"],
            "an empty first shard; a level table in the third",
            three,
        ),
        (
            "records-again",
            ["SHD-5", "EXA-4"],
            "level tables of one name and one exact model in both shards, each for its own",
            Sharded::new(vec![again("v", 3, custom3()), again("w", 5, custom5())]),
        ),
        (
            "overlays-over-shards",
            ["OVL-3", "OVL-4"],
            "an overlay in the first shard, for tensors of both",
            Sharded::new(overlay_vectors::shards()),
        ),
    ] {
        let output = json!({
            "stored_root": pack.index["stored_root"], "decoded_root": pack.index["decoded_root"],
        });
        let input = pack.input(&pack.index_bytes());
        set.add("pack/valid", id, &rules, comment, &[], input, "ok", Some(output));
    }

    let mut add =
        |id: &str, rule: &str, comment: &str, expect: &str, pack: &Sharded, index: &[u8]| {
            set.add("pack/invalid", id, &[rule], comment, &[], pack.input(index), expect, None);
        };
    let mut index = |id: &str, rule: &str, comment: &str, edit: &dyn Fn(&mut Value)| {
        let mut pack = good();
        edit(&mut pack.index);
        let kind = if id.ends_with("-root") { "integrity" } else { "malformed" };
        add(id, rule, comment, kind, &pack, &pack.index_bytes());
    };
    index("index-format", "SHD-3", "another format", &|v| {
        v["format"] = "ultracompress-index-2".into()
    });
    index("index-one-shard", "SHD-3", "one shard", &|v| {
        v["shards"].as_array_mut().expect("a list").truncate(1);
    });
    index("index-root-case", "SHD-3", "upper-case digits", &|v| {
        let upper = v["decoded_root"].as_str().expect("text").to_uppercase();
        v["decoded_root"] = upper.into();
    });
    index("index-no-map", "SHD-3", "no weight_map", &|v| {
        v.as_object_mut().expect("an object").remove("weight_map");
    });
    index("index-fraction", "SHD-3", "a length that isn't an integer", &|v| {
        v["shards"][0]["core_len"] = json!(1.5);
    });
    index("name-number", "SHD-2", "the second shard is named as the first", &|v| {
        v["shards"][1]["file"] = v["shards"][0]["file"].clone();
    });
    index("stored-root", "SHD-6", "another stored root", &|v| {
        v["stored_root"] = v["decoded_root"].clone();
    });
    index("decoded-root", "SHD-6", "another decoded root", &|v| {
        v["decoded_root"] = v["stored_root"].clone();
    });
    index("core-len", "SHD-4", "another length", &|v| v["shards"][1]["core_len"] = 64.into());
    index("map-unlisted", "SHD-5", "a tensor in a file that isn't listed", &|v| {
        v["weight_map"]["bias"] = "m.uc".into();
    });
    index("map-other-shard", "SHD-5", "a tensor is said to be in the other shard", &|v| {
        v["weight_map"]["bias"] = v["weight_map"]["w"].clone();
    });
    index("map-lacks", "SHD-5", "a tensor that the map lacks", &|v| {
        v["weight_map"].as_object_mut().expect("an object").remove("bias");
    });
    index("map-extra", "SHD-5", "a tensor that no shard has", &|v| {
        v["weight_map"]["more"] = v["weight_map"]["w"].clone();
    });
    index("map-name", "NAM-1", "a tensor name with a control character", &|v| {
        v["weight_map"]["a\u{7}"] = v["weight_map"]["w"].clone();
    });
    // The files are there under the names that are listed.
    for (id, comment, names) in [
        ("name-folder", "a shard in a folder", ["m-00001-of-00002.uc", "a/m-00002-of-00002.uc"]),
        ("name-folders", "shards in a folder", ["a/m-00001-of-00002.uc", "a/m-00002-of-00002.uc"]),
        (
            "name-up",
            "shards in the folder above",
            ["../m-00001-of-00002.uc", "../m-00002-of-00002.uc"],
        ),
        (
            "name-stem",
            "names differ in more than the number",
            ["m-00001-of-00002.uc", "n-00002-of-00002.uc"],
        ),
        (
            "name-no-stem",
            "nothing in front of the number",
            ["-00001-of-00002.uc", "-00002-of-00002.uc"],
        ),
        ("name-digits", "four digits", ["m-0001-of-0002.uc", "m-0002-of-0002.uc"]),
    ] {
        let mut pack = good();
        for (shard, name) in pack.shards.iter_mut().zip(names) {
            shard.0 = name.into();
        }
        pack.relist();
        for (tensor, i) in [("bias", 1), ("tied", 0), ("w", 0)] {
            pack.index["weight_map"][tensor] = names[i].into();
        }
        add(id, "SHD-2", comment, "malformed", &pack, &pack.index_bytes());
    }
    let pack = good();
    let mut text = pack.index_bytes();
    text.push(b'\n');
    add("index-trailing", "SHD-3", "a line feed behind the object", "malformed", &pack, &text);
    add("index-empty", "SHD-3", "an empty index file", "malformed", &pack, b"");
    let text = String::from_utf8(pack.index_bytes()).expect("JSON is UTF-8");
    let twice = text.replacen("\"format\":", "\"format\":\"x\",\"format\":", 1);
    add("index-duplicate", "SHD-3", "a member twice", "malformed", &pack, twice.as_bytes());
    let deep = text.replacen("{", &format!("{{\"a\":{}{},", "[".repeat(200), "]".repeat(200)), 1);
    add("index-deep", "SHD-3", "deeply nested JSON", "malformed", &pack, deep.as_bytes());

    let mut missing = good();
    missing.shards.pop();
    add(
        "shard-missing",
        "SHD-4",
        "the second shard isn't there",
        "missing",
        &missing,
        &pack.index_bytes(),
    );
    let mut change = |id: &str,
                      rule: &str,
                      comment: &str,
                      expect: &str,
                      relist: bool,
                      edit: &dyn Fn(&mut Shards)| {
        let mut pack = good();
        edit(&mut pack.shards);
        if relist {
            pack.relist();
        }
        add(id, rule, comment, expect, &pack, &pack.index_bytes());
    };
    change(
        "shards-swapped",
        "SHD-4",
        "the shards have each other's names",
        "malformed",
        true,
        &|s| {
            let (one, two) = (s[0].1.clone(), s[1].1.clone());
            (s[0].1, s[1].1) = (two, one);
        },
    );
    change("shard-twice", "SHD-4", "the first shard is there twice", "malformed", true, &|s| {
        s[1].1 = s[0].1.clone();
    });
    change("shard-count", "SHD-4", "the second shard is one of three", "malformed", true, &|s| {
        put(&mut s[1].1, 88, &[3]);
        s[1].1 = seal(s[1].1.clone());
    });
    change(
        "shard-of-none",
        "SHD-4",
        "the second file is a pack of its own",
        "malformed",
        true,
        &|s| {
            s[1].1 = second().bytes();
        },
    );
    change("shard-other", "SHD-4", "a shard of another pack", "integrity", false, &|s| {
        let other = File::of(vec![raw("bias", Dtype::U8, &[3], &[3, 2, 1])]);
        s[1].1 = Sharded::new(vec![first(), other]).shards[1].1.clone();
    });
    change("shard-short", "HDR-6", "the second shard is cut off", "truncated", false, &|s| {
        let len = s[1].1.len();
        s[1].1.truncate(len - 64);
    });
    let both =
        Sharded::new(vec![File::of(vec![raw("bias", Dtype::U8, &[3], &[1, 2, 3])]), second()]);
    add("tensor-twice", "SHD-5", "a tensor in two shards", "malformed", &both, &both.index_bytes());
    let later = |n: u8| Record {
        kind: 9,
        flags: 1,
        name: b"later".to_vec(),
        body: vec![n],
        ..Record::default()
    };
    let mut twice = [first(), second()];
    (0u8..).zip(&mut twice).for_each(|(n, file)| file.records.push(later(n)));
    let twice = Sharded::new(twice.to_vec());
    add(
        "record-twice",
        "SHD-5",
        "an optional record in two shards",
        "malformed",
        &twice,
        &twice.index_bytes(),
    );
    let mut lacking = first();
    lacking.manifest =
        Some(serde_json_canonicalizer::to_vec(&first().default_manifest()).expect("plain JSON"));
    let lacking = Sharded::new(vec![lacking, second()]);
    let text = lacking.index_bytes();
    add(
        "manifest-lacks",
        "MAN-3",
        "the manifest lacks a tensor of the second shard",
        "malformed",
        &lacking,
        &text,
    );
}

fn manifests(set: &mut VectorSet) {
    let base =
        File::of(vec![raw("a", Dtype::U8, &[1], &[1]), carried("x", b"1")]).default_manifest();
    let canonical = |v: &Value| serde_json_canonicalizer::to_string(v).expect("plain JSON");
    let mut add = |id: &str, rule: &str, comment: &str, expect: &str, text: &str| {
        let output = (expect == "ok").then(|| json!({}));
        set.add("manifest", id, &[rule], comment, &[], hex(text.as_bytes()).into(), expect, output);
    };
    add("valid", "MAN-2", "a tensor and a carried file", "ok", &canonical(&base));
    let mut more = base.clone();
    more["later"] = json!({ "a": [1, true, null, "\u{20ac}"] });
    more["licence"] = "MIT".into();
    let mut calibrated = base.clone();
    calibrated["calibration"] = "5".repeat(64).into();
    add("calibration", "MAN-2", "the digest of a calibration", "ok", &canonical(&calibrated));
    calibrated["calibration"] = "none".into();
    add(
        "no-calibration",
        "MAN-2",
        "a calibration that is no digest",
        "malformed",
        &canonical(&calibrated),
    );
    add("unknown-member", "MAN-2", "members that a reader doesn't know", "ok", &canonical(&more));
    let text = canonical(&base);
    add("not-json", "MAN-1", "cut off", "malformed", &text[..text.len() - 1]);
    let cut = text.find("vector\"").expect("the encoder") + 3;
    add("cut-in-string", "MAN-1", "cut off inside a string", "malformed", &text[..cut]);
    add(
        "space",
        "MAN-1",
        "a space that canonical JSON doesn't have",
        "malformed",
        &text.replacen(':', ": ", 1),
    );
    add(
        "unsorted",
        "MAN-1",
        "members out of order",
        "malformed",
        &format!("{{\"zzz\":1,{}", &text[1..]),
    );
    add(
        "duplicate",
        "MAN-1",
        "a member that stands there twice",
        "malformed",
        &text.replacen(
            "{\"encoder\":\"vector\"",
            "{\"encoder\":\"vector\",\"encoder\":\"vector\"",
            1,
        ),
    );
    add("trailing", "MAN-1", "a line feed behind the object", "malformed", &format!("{text}\n"));
    let (smile, dagesh) = ("\"\u{1f600}\":1", "\"\u{fb33}\":2");
    for (id, expect, first, second, order) in [
        ("keys-utf16", "ok", smile, dagesh, "UTF-16"),
        ("keys-code-points", "malformed", dagesh, smile, "code points"),
    ] {
        let comment = format!("members U+1F600 and U+FB33 in the order of {order}");
        let recipe = format!("\"recipe\":{{{first},{second}");
        add(id, "MAN-1", &comment, expect, &text.replacen("\"recipe\":{", &recipe, 1));
    }
    add(
        "deep",
        "MAN-1",
        "100 arrays in one another",
        "malformed",
        &text.replacen(
            "\"recipe\":{",
            &format!("\"recipe\":{{\"a\":{}{}", "[".repeat(100), "]".repeat(100)),
            1,
        ),
    );
    // The recipe is one level below the outermost object, its member `a` adds the others.
    for (id, expect, arrays) in [("deep-most", "ok", 63), ("deep-one-more", "malformed", 64)] {
        let nested = format!("\"recipe\":{{\"a\":{}1{}", "[".repeat(arrays), "]".repeat(arrays));
        let comment = format!("{} levels of arrays and objects below the outermost", arrays + 1);
        add(id, "MAN-1", &comment, expect, &text.replacen("\"recipe\":{", &nested, 1));
    }
    let with = |key: &str, value: Value| {
        let mut m = base.clone();
        m[key] = value;
        canonical(&m)
    };
    add(
        "float",
        "MAN-1",
        "a number that is not an integer",
        "malformed",
        &with("later", json!(1.5)),
    );
    add(
        "huge-integer",
        "MAN-1",
        "2^53",
        "malformed",
        &text.replacen("{\"encoder\"", "{\"aaa\":9007199254740992,\"encoder\"", 1),
    );
    for (id, expect, number) in [
        ("integers", "ok", "[-9007199254740991,9007199254740991]"),
        ("huge-negative", "malformed", "-9007199254740992"),
        ("negative-zero", "malformed", "-0"),
    ] {
        let member = format!("{{\"aaa\":{number},\"encoder\"");
        add(id, "MAN-1", number, expect, &text.replacen("{\"encoder\"", &member, 1));
    }
    let digest = Digest::of(b"").to_string();
    for (id, expect, planes, root) in [
        ("rungs", "ok", "7", digest.as_str()),
        ("rung-eight", "malformed", "8", &digest),
        ("rung-two", "malformed", "2", &digest),
        ("rung-digest", "malformed", "3", "12"),
    ] {
        let comment = format!("a root of rung {planes} with {} digits", root.len());
        add(id, "MAN-5", &comment, expect, &with("rungs", json!({ planes: root })));
    }
    let mut nulls = base.clone();
    nulls["files"] = json!([{ "path": "w", "role": "left_out", "bytes": 1 }]);
    for (id, member, place) in [
        ("null-calibration", "calibration", ""),
        ("null-licence", "licence", ""),
        ("null-rungs", "rungs", ""),
        ("null-digest", "sha256", "/files/0"),
        ("null-metadata", "metadata", "/files/0"),
        ("null-file", "file", "/tensors/a"),
    ] {
        let mut m = nulls.clone();
        m.pointer_mut(place).expect("it is there")[member] = Value::Null;
        let comment = format!("the optional member {member} is null");
        add(id, "MAN-2", &comment, "malformed", &canonical(&m));
    }
    let mut m = base.clone();
    m["files"][0]["bytes"] = true.into();
    add("bytes-true", "MAN-2", "a length that is true", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["tensors"]["a"]["file"] = "x".into();
    add(
        "file-carried",
        "MAN-2",
        "a tensor from a file that is carried",
        "malformed",
        &canonical(&m),
    );
    add("format", "MAN-2", "another format", "malformed", &with("format", "other".into()));
    add(
        "recipe-array",
        "MAN-2",
        "a recipe that is no object",
        "malformed",
        &with("recipe", json!([])),
    );
    add(
        "no-encoder",
        "MAN-2",
        "a member is missing",
        "malformed",
        &text.replacen("\"encoder\":\"vector\",", "", 1),
    );
    add("array", "MAN-2", "not an object", "malformed", "[]");
    let mut m = base.clone();
    m["files"][0]["path"] = "../x".into();
    add("path", "NAM-2", "a path that leaves the folder", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["files"][0].as_object_mut().expect("an object").remove("sha256");
    add(
        "carried-without-digest",
        "MAN-2",
        "a carried file without a digest",
        "malformed",
        &canonical(&m),
    );
    let mut m = base.clone();
    m["tensors"]["a"]["sha256"] = Digest::of(&[1]).to_string().to_uppercase().into();
    add("digest", "MAN-2", "a digest in upper case", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["tensors"]["a"]["file"] = "y".into();
    add(
        "file-not-listed",
        "MAN-2",
        "a tensor from a file that isn't listed",
        "malformed",
        &canonical(&m),
    );
    let mut m = base.clone();
    let second = json!({ "path": "a", "bytes": 1, "role": "left_out" });
    m["files"].as_array_mut().expect("an array").push(second.clone());
    add("files-unsorted", "MAN-2", "paths in falling order", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["files"].as_array_mut().expect("an array").insert(0, second);
    add("left-out", "MAN-2", "a file that was left out needs no digest", "ok", &canonical(&m));
    let mut m = base.clone();
    m["files"][0]["role"] = "other".into();
    add("role", "MAN-2", "an unknown role", "malformed", &canonical(&m));
    let mut m = base.clone();
    let twice = [m["files"][0].clone(), m["files"][0].clone()];
    m["files"] = json!(twice);
    add("files-twice", "MAN-2", "one path twice", "malformed", &canonical(&m));
}

fn codec(set: &mut VectorSet) {
    let mut add = |id: &str, rules: &[&str], comment: &str, p: &Planes, rung: u8, target: Dtype| {
        let stored = p.stored();
        let decoded = p.decode(&stored, rung, target);
        let input = json!({
            "dtype": p.dtype.name(), "rows": p.counts.len(), "cols": stored.layout.cols, "group": p.group,
            "counts": p.counts, "scales": hex(&stored.scales), "steps": hex(&stored.steps),
            "planes": stored.planes.iter().map(|b| hex(b)).collect::<Vec<_>>(),
            "rung": rung, "target": target.name(),
        });
        set.add(
            "codec",
            id,
            rules,
            comment,
            &[],
            input,
            "ok",
            Some(json!({ "bytes": hex(&decoded) })),
        );
    };
    for rung in 3..=8u8 {
        // Scale 1 and a step of 32 show the tables themselves: value = 32 * level.
        let mut all = Planes::new("w", Dtype::F32, &[6, 256], 0, &[3, 4, 5, 6, 7, 8]);
        all.scale = 0x3f80;
        add(
            &format!("default-levels-rung-{rung}"),
            &["LVL-4", "VAL-5", "VAL-3"],
            "every code of 3 to 8 planes, scales from 1 up, step 128",
            &all,
            rung,
            Dtype::F32,
        );
    }
    for target in [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64] {
        let steps = Planes::new("w", Dtype::Bf16, &[3, 528], 16, &[5, 5, 5]);
        add(
            &format!("steps-to-{}", target.name().to_lowercase()),
            &["VAL-2", "VAL-4"],
            "every step and code, rounded to each type",
            &steps,
            8,
            target,
        );
        let mut tiny = Planes::new("w", Dtype::F32, &[2, 64], 16, &[8, 8]);
        tiny.scale = 0x0080;
        add(
            &format!("smallest-scale-to-{}", target.name().to_lowercase()),
            &["VAL-1", "VAL-4"],
            "the smallest scales: level 0, signed zeros in F16",
            &tiny,
            8,
            target,
        );
    }
    let mut large = Planes::new("w", Dtype::F32, &[1, 256], 16, &[8]);
    large.scale = (240 << 7) | 0x7f;
    add(
        "largest-scale",
        &["VAL-1"],
        "the largest scale: every product is finite",
        &large,
        8,
        Dtype::Bf16,
    );
    let mut large = Planes::new("w", Dtype::F16, &[1, 256], 16, &[8]);
    large.scale = (128 << 7) | 0x7f;
    add(
        "largest-scale-f16",
        &["VAL-1"],
        "the largest scale of an F16 tensor",
        &large,
        8,
        Dtype::F16,
    );
    // 4.03125 * 128 * 127 = 65532: above 65520, half way between the largest F16 and the next that there would be.
    let mut beyond = Planes::new("w", Dtype::F32, &[1, 256], 0, &[8]);
    beyond.scale = 0x4081;
    add(
        "overflow-to-f16",
        &["VAL-4"],
        "values that round to infinity in a smaller type, and some that don't",
        &beyond,
        8,
        Dtype::F16,
    );
    let mut subnormal = Planes::new("w", Dtype::F16, &[2, 64], 32, &[6, 6]);
    subnormal.scale = 97 << 7;
    add("subnormal-f16", &["VAL-4"], "subnormals of F16", &subnormal, 8, Dtype::F16);
    for cols in [1u64, 7, 8, 9, 31, 33, 255, 257] {
        let tail = Planes::new("w", Dtype::Bf16, &[2, cols], 32, &[5, 7]);
        add(
            &format!("columns-{cols}"),
            &["PLN-6", "PLN-7", "PLN-5"],
            "rows that end inside a byte or a group",
            &tail,
            8,
            Dtype::Bf16,
        );
    }
}
