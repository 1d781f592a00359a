//! A container, field by field: whatever a field should be, it can be something else.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use ultracompress::format::{TreeHasher, tensor_leaf};
use ultracompress::{Digest, Dtype};

use super::set::VectorSet;

pub const CHUNK: usize = 1 << 20;

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub decoded: Vec<u8>,
    /// The source's bytes, when a residual leads to them.
    pub exact: Option<Vec<u8>>,
    /// What fewer planes decode to.
    pub rungs: BTreeMap<u8, Vec<u8>>,
    /// What it is at other types.
    pub targets: BTreeMap<&'static str, Vec<u8>>,
}

#[derive(Clone, Default)]
pub struct Part {
    pub kind: u8,
    pub plane: u8,
    pub storage: u8,
    pub flags: u8,
    /// Stored chunks.
    pub chunks: Vec<Vec<u8>>,
    pub len: u64,
    /// Zero bytes in front of it, beyond alignment.
    pub gap: usize,
    pub n_chunks: Option<u32>,
    pub crc: Option<u32>,
    pub offset: Option<u64>,
    pub stored_len: Option<u64>,
    pub chunk_lens: Option<Vec<u32>>,
    /// What the padding behind it is made of.
    pub padding: u8,
}

#[derive(Clone, Default)]
pub struct Record {
    pub kind: u16,
    pub flags: u16,
    pub name: Vec<u8>,
    pub body: Vec<u8>,
    pub parts: Vec<Part>,
    pub tensor: Option<Tensor>,
    /// Added to `record_len`.
    pub extra_len: i32,
    /// What the padding inside is made of.
    pub padding: u8,
    /// Bytes behind the last field.
    pub tail: Vec<u8>,
}

impl Record {
    /// Says that a tensor decodes to something else.
    pub fn decodes_to(&mut self, bytes: &[u8]) {
        let t = self.tensor.as_mut().expect("a tensor");
        put(&mut self.body, 8 + 8 * t.shape.len(), &Digest::of(bytes).0);
        t.decoded = bytes.to_vec();
    }
}

#[derive(Clone, Default)]
pub struct File {
    pub records: Vec<Record>,
    pub manifest: Option<Vec<u8>>,
    pub attachments: Vec<u8>,
    pub n_records: Option<u32>,
    /// Written in the place of the next part: zeros that belong to nothing.
    pub stray: usize,
    /// Number and count, and with them the feature bit.
    pub shard: Option<(u32, u32)>,
    /// Required feature bits other than those that the records need.
    pub required: Option<u8>,
    /// Optional feature bits other than those that the records set.
    pub optional: Option<u8>,
}

pub fn plain(kind: u8, plane: u8, content: &[u8]) -> Part {
    Part {
        kind,
        plane,
        chunks: content.chunks(CHUNK).map(<[u8]>::to_vec).collect(),
        len: content.len() as u64,
        ..Part::default()
    }
}

pub fn raw(name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Record {
    let parts = if bytes.is_empty() { vec![] } else { vec![plain(1, 0, bytes)] };
    tensor(name, dtype, shape, bytes, [1, 0, 0, 0, 0], &[], parts)
}

/// `fields`: encoding, role, row_dims, group_log2, planes.
pub fn tensor(
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
        targets: BTreeMap::new(),
    };
    Record { kind: 2, name: name.into(), body, parts, tensor: Some(tensor), ..Record::default() }
}

pub fn alias(name: &str, target: &str, of: &Record) -> Record {
    let t = of.tensor.as_ref().expect("a tensor");
    tensor(name, t.dtype, &t.shape, &t.decoded, [3, 0, 0, 0, 0], target.as_bytes(), vec![])
}

pub fn carried(path: &str, content: &[u8]) -> Record {
    let mut body = (content.len() as u64).to_le_bytes().to_vec();
    body.extend_from_slice(&Digest::of(content).0);
    let parts = if content.is_empty() { vec![] } else { vec![plain(1, 0, content)] };
    Record { kind: 3, name: path.into(), body, parts, ..Record::default() }
}

pub fn level_record(name: &str, native: u8, levels: &[i8]) -> Record {
    let mut body = vec![native, 0, 0, 0, 0, 0, 0, 0];
    body.extend(levels.iter().map(|l| l.cast_unsigned()));
    Record { kind: 1, name: name.into(), body, ..Record::default() }
}

/// A `planes` tensor to be stored: deterministic codes, scales and steps.
pub fn pad(bytes: &mut Vec<u8>, to: usize, with: u8) {
    bytes.resize(bytes.len().next_multiple_of(to), with);
}

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl File {
    pub fn of(records: Vec<Record>) -> Self {
        Self { records, ..Self::default() }
    }

    /// A manifest that agrees with the records.
    pub fn default_manifest(&self) -> Value {
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

    pub fn bytes(&self) -> Vec<u8> {
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

    pub fn put_record(r: &Record, out: &mut Vec<u8>, index: &mut Vec<u8>) {
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
pub fn seal(mut file: Vec<u8>) -> Vec<u8> {
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

pub fn attachment(kind: u16, name: &[u8], data: &[u8]) -> Vec<u8> {
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
pub fn zstd_rle(byte: u8, len: usize) -> Vec<u8> {
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

/// The same for `len` zeros with another descriptor and what follows it, and without blocks' limit
/// on types: a frame of one block.
pub fn zstd_frame(descriptor: u8, fields: &[u8], block_type: u32, len: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, descriptor];
    frame.extend(fields);
    frame.extend(&(len << 3 | block_type << 1 | 1).to_le_bytes()[..3]);
    frame.push(0);
    frame
}

/// An optional part of a kind that isn't known, in a way of storing it that isn't known either.
pub fn unknown_part(kind: u8, plane: u8) -> Part {
    Part { flags: 1, storage: 1, len: 1000, ..plain(kind, plane, b"of a later version") }
}

/// Two raw tensors.
pub fn base() -> File {
    File::of(vec![raw("a", Dtype::U8, &[3], &[1, 2, 3]), raw("b", Dtype::U8, &[4], &[4, 5, 6, 7])])
}

/// What breaks a file.
type Change<'a> = &'a dyn Fn(&mut File);

/// Adds vectors that must be refused, by id, rule, comment and kind of error: [`base`] with a
/// change.
pub fn changes(set: &mut VectorSet) -> impl FnMut(&str, &str, &str, &str, Change<'_>) {
    let base = base();
    move |id, rule, comment, expect, change| {
        let mut file = base.clone();
        change(&mut file);
        set.invalid(id, &[rule], comment, expect, &file.bytes());
    }
}
