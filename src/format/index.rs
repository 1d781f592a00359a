//! The index: one record for each level table, tensor and carried file (spec/container.md, "Index").
//!
//! This module checks what can be said from the index bytes alone; geometry that needs the codec is
//! checked by `container::check`.

use std::io::Cursor;

use binrw::{BinRead, BinWrite};

use super::overlay::{OverlayEntry, parse_overlay};
use super::{CHUNK_BYTES, Digest, Dtype, MAX_RANK, Rule, check_file_path, check_name};
use crate::error::{Error, ErrorKind, Result};

const KIND_LEVELS: u16 = 1;
const KIND_TENSOR: u16 = 2;
const KIND_FILE: u16 = 3;
const KIND_OVERLAY: u16 = 4;
const KIND_EXACT_MODEL: u16 = 5;
const KIND_HEAD: u16 = 6;
const FLAG_OPTIONAL: u16 = 1;
const PART_FLAG_OPTIONAL: u8 = 1;
const RECORD_HEADER_BYTES: usize = 16;
const PART_HEADER_BYTES: usize = 32;

#[derive(Debug, BinRead, BinWrite)]
#[brw(little)]
struct RecordHeader {
    record_len: u32,
    kind: u16,
    flags: u16,
    name_len: u16,
    n_parts: u16,
    body_len: u32,
}

#[derive(Debug, BinRead, BinWrite)]
#[brw(little)]
struct PartHeader {
    kind: u8,
    plane: u8,
    storage: u8,
    flags: u8,
    n_chunks: u32,
    offset: u64,
    stored_len: u64,
    len: u64,
}

#[derive(Debug, BinRead, BinWrite)]
#[brw(little)]
struct TensorHeader {
    dtype: u8,
    encoding: u8,
    role: u8,
    rank: u8,
    row_dims: u8,
    group_log2: u8,
    planes: u8,
    reserved: u8,
}

/// What a tensor is for, as far as rates are counted (spec/container.md, "Roles").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Norms, biases, routers, tables: everything that isn't one of the others.
    Other,
    /// A linear layer of a block: what body bpw counts.
    Body,
    /// An embedding table.
    Embedding,
    /// The output head.
    Head,
}

impl Role {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Body => "body",
            Self::Embedding => "embedding",
            Self::Head => "head",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::Body => 1,
            Self::Embedding => 2,
            Self::Head => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Other, Self::Body, Self::Embedding, Self::Head].get(usize::from(code)).copied()
    }
}

/// What a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartKind {
    /// The bytes of a raw tensor or a carried file.
    Data,
    /// Planes per row, four bits each.
    Counts,
    /// bfloat16 row scales.
    Scales,
    /// Step indices, four bits a group.
    Steps,
    /// One bit plane; 0 is the most significant.
    Plane(u8),
    /// What leads from planes to the source's bits, or what a coded tensor consists of.
    Residual,
    /// An optional part of a later minor version: kind and ordinal.
    Unknown(u8, u8),
}

impl PartKind {
    fn code(self) -> (u8, u8) {
        match self {
            Self::Data => (1, 0),
            Self::Counts => (2, 0),
            Self::Scales => (3, 0),
            Self::Steps => (4, 0),
            Self::Plane(p) => (5, p),
            Self::Residual => (16, 0),
            Self::Unknown(kind, ordinal) => (kind, ordinal),
        }
    }

    fn from_code(kind: u8, ordinal: u8) -> Self {
        match (kind, ordinal) {
            (1, 0) => Self::Data,
            (2, 0) => Self::Counts,
            (3, 0) => Self::Scales,
            (4, 0) => Self::Steps,
            (5, p) if p < 8 => Self::Plane(p),
            (16, 0) => Self::Residual,
            other => Self::Unknown(other.0, other.1),
        }
    }

    /// The part's name in messages and JSON, such as `scales` or `plane 3`.
    pub fn name(self) -> String {
        match self {
            Self::Data => "data".into(),
            Self::Counts => "counts".into(),
            Self::Scales => "scales".into(),
            Self::Steps => "steps".into(),
            Self::Plane(p) => format!("plane {p}"),
            Self::Residual => "residual".into(),
            Self::Unknown(kind, ordinal) => format!("part kind {kind}.{ordinal}"),
        }
    }
}

/// How the bytes of a part are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// As they are.
    Plain,
    /// Each chunk is a zstd frame of its own, or as it is where a frame would not be shorter.
    Zstd,
    /// A way of a later version, or any way but plain of a part that is skipped; only such parts have it.
    Unknown(u8),
}

/// One chunk of a part: where it is stored and what its bytes must sum to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// CRC-32 of the stored bytes.
    pub crc32: u32,
    /// Stored length in bytes.
    pub stored_len: u32,
    /// Where its stored bytes start, from the start of the part.
    pub start: u64,
}

/// One contiguous byte range of the file that belongs to a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it holds.
    pub kind: PartKind,
    /// How it is stored.
    pub storage: Storage,
    /// Whether readers that don't know its kind may skip it.
    pub optional: bool,
    /// Offset in the file, in bytes; a multiple of 64.
    pub offset: u64,
    /// Length in the file, in bytes.
    pub stored_len: u64,
    /// Length of the content, in bytes; equals `stored_len` for plain parts.
    pub len: u64,
    /// One chunk for each 1 MiB of content.
    pub chunks: Vec<Chunk>,
}

impl Part {
    /// Content length of chunk `i`, in bytes.
    pub(crate) fn chunk_len(&self, i: usize) -> u64 {
        (self.len - i as u64 * CHUNK_BYTES).min(CHUNK_BYTES)
    }

    /// An empty part that chunks are appended to.
    pub(crate) fn empty(kind: PartKind, offset: u64) -> Self {
        let storage = Storage::Plain;
        Self { kind, storage, optional: false, offset, stored_len: 0, len: 0, chunks: vec![] }
    }

    /// Appends a chunk with `len` bytes of content: stored as they are, or as a shorter zstd frame.
    pub(crate) fn push_chunk(&mut self, len: usize, stored: &[u8]) {
        let stored_len = u32::try_from(stored.len()).expect("a chunk has at most 1 MiB");
        let crc32 = crc32fast::hash(stored);
        self.chunks.push(Chunk { crc32, stored_len, start: self.stored_len });
        self.stored_len += u64::from(stored_len);
        self.len += len as u64;
        if stored.len() < len {
            self.storage = Storage::Zstd;
        }
    }
}

/// How a tensor is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// Source bytes as they are.
    Raw,
    /// Codes in bit planes, with scales, steps and levels.
    Planes {
        /// How many leading dimensions make up the rows; the rest fold into columns.
        row_dims: u8,
        /// Consecutive columns that share a step, or 0 when whole rows do.
        group: u32,
        /// Planes of every row, or `None` when a counts part gives them row by row.
        planes: Option<u8>,
        /// Level tables for native counts 3..=8: 0 is the default table, n the n-th levels record.
        level_ids: [u16; 6],
    },
    /// Source bytes, entropy-coded without a base.
    Coded {
        /// How many leading dimensions make up the rows; with 0 all is one row.
        row_dims: u8,
    },
    /// The same bytes as another tensor of the pack.
    Alias {
        /// The name of that tensor.
        target: String,
    },
}

impl Encoding {
    /// The name used in JSON: `raw`, `planes`, `coded_raw` or `alias`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Planes { .. } => "planes",
            Self::Coded { .. } => "coded_raw",
            Self::Alias { .. } => "alias",
        }
    }
}

/// The index record of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its element type in the source.
    pub dtype: Dtype,
    /// What it is for.
    pub role: Role,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// SHA-256 of its decoded little-endian bytes at the source dtype.
    pub decoded_sha256: Digest,
    /// How it is stored.
    pub encoding: Encoding,
    /// Its parts, in file order.
    pub parts: Vec<Part>,
}

/// The index record of a carried file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its normalised relative path.
    pub path: String,
    /// Its length in bytes.
    pub len: u64,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Its data part; none when the file is empty.
    pub parts: Vec<Part>,
}

/// The index record of a level table set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelsEntry {
    /// Its name.
    pub name: String,
    /// The native plane count it is for.
    pub native: u8,
    /// Tables for native, native - 1, ..., 3 planes read: 2^n levels each.
    pub levels: Vec<i8>,
}

/// The index record of an exact model: what residuals are coded by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactModelEntry {
    /// Its name.
    pub name: String,
    /// The model ([`ExactModel::parse`](crate::codec::exact::ExactModel::parse)).
    pub body: Vec<u8>,
}

/// A record of a kind that this reader doesn't know and may skip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherEntry {
    pub kind: u16,
    pub name: String,
    pub body: Vec<u8>,
    pub parts: Vec<Part>,
}

/// The parsed index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    /// Level tables, by name.
    pub levels: Vec<LevelsEntry>,
    /// Tensors, by name.
    pub tensors: Vec<TensorEntry>,
    /// Carried files, by path.
    pub files: Vec<FileEntry>,
    /// Overlays, by name.
    pub overlays: Vec<OverlayEntry>,
    /// Models that residuals are coded by, by name.
    pub exact_models: Vec<ExactModelEntry>,
    /// What stands in front of the tensors in the source's weights files, by the file's path.
    pub heads: Vec<FileEntry>,
    pub(crate) others: Vec<OtherEntry>,
}

impl Index {
    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    /// Every part of the file with the name of the record it belongs to.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&str, &Part)> {
        let tensors = self.tensors.iter().map(|t| (t.name.as_str(), &t.parts));
        let files = self.files.iter().map(|f| (f.path.as_str(), &f.parts));
        let heads = self.heads.iter().map(|f| (f.path.as_str(), &f.parts));
        let overlays = self.overlays.iter().map(|o| (o.name.as_str(), &o.parts));
        let others = self.others.iter().map(|o| (o.name.as_str(), &o.parts));
        tensors
            .chain(files)
            .chain(overlays)
            .chain(heads)
            .chain(others)
            .flat_map(|(name, parts)| parts.iter().map(move |p| (name, p)))
    }

    /// Parses an index that starts at `base` in the file and claims `n_records` records.
    ///
    /// # Errors
    /// `Malformed` (UC-IDX-2 to UC-IDX-11, UC-NAM, UC-TEN, UC-FIL, UC-PRT, UC-LVL) or
    /// `UnsupportedFeature`.
    pub(crate) fn parse(bytes: &[u8], base: u64, n_records: u32) -> Result<Self> {
        let mut index = Self::default();
        let mut at = 0usize;
        let mut seen = 0u32;
        let mut previous: Option<(u16, &str)> = None;
        while at < bytes.len() {
            let place = base.saturating_add(at as u64);
            let (record, name) = Record::parse(&bytes[at..]).map_err(|e| e.at(place))?;
            let key = (record.kind, name);
            if previous.is_some_and(|p| p >= key) {
                return Err(Error::malformed(
                    Rule::IDX_4,
                    "record is not greater than the one before it (kind, then name)",
                )
                .in_tensor(name)
                .at(place));
            }
            previous = Some(key);
            at += record.len;
            seen = seen.saturating_add(1);
            index.add(record, name).map_err(|e| e.in_tensor(name).at(place))?;
        }
        if seen != n_records {
            return Err(Error::malformed(
                Rule::IDX_3,
                format!("index holds {seen} records, the preamble says {n_records}"),
            )
            .in_part("index")
            .at(base));
        }
        Ok(index)
    }

    fn add(&mut self, record: Record<'_>, name: &str) -> Result<()> {
        if record.kind == 0 {
            return Err(Error::malformed(Rule::IDX_10, "no record is of kind 0"));
        }
        let required = matches!(record.kind, KIND_LEVELS | KIND_TENSOR | KIND_FILE);
        let optional = matches!(record.kind, KIND_OVERLAY..=KIND_HEAD);
        if (required && record.optional) || (optional && !record.optional) {
            let text = if required { "can't" } else { "must" };
            let text = format!("a record of this kind {text} be optional");
            return Err(Error::malformed(Rule::IDX_9, text));
        }
        match record.kind {
            KIND_LEVELS => self.levels.push(parse_levels(&record, name)?),
            KIND_TENSOR => self.tensors.push(parse_tensor(record, name)?),
            KIND_FILE => self.files.push(parse_file(record, name)?),
            KIND_OVERLAY => self.overlays.push(parse_overlay(record.body, record.parts, name)?),
            KIND_EXACT_MODEL => self.exact_models.push(parse_exact_model(&record, name)?),
            KIND_HEAD => self.heads.push(parse_file(record, name).map_err(|e| match e.kind() {
                ErrorKind::Malformed(Rule::FIL_1 | Rule::FIL_2) => {
                    Error::malformed(Rule::EXA_31, e.message())
                }
                _ => e,
            })?),
            kind if record.optional => self.others.push(OtherEntry {
                kind,
                name: name.to_owned(),
                body: record.body.to_vec(),
                parts: record.parts,
            }),
            kind => {
                return Err(Error::new(
                    ErrorKind::UnsupportedFeature,
                    format!("record kind {kind} is not known and not optional ({})", Rule::IDX_5),
                ));
            }
        }
        Ok(())
    }
}

struct Record<'a> {
    kind: u16,
    optional: bool,
    body: &'a [u8],
    parts: Vec<Part>,
    len: usize,
}

/// Reads `n` bytes at `*at` and the zero padding up to the next multiple of 8.
fn take<'a>(bytes: &'a [u8], at: &mut usize, n: usize) -> Result<&'a [u8]> {
    let end = at.checked_add(n);
    let padded = end.and_then(|e| e.checked_next_multiple_of(8)).filter(|&e| e <= bytes.len());
    let (Some(end), Some(padded)) = (end, padded) else {
        return Err(Error::malformed(Rule::IDX_7, "a field reaches beyond the record"));
    };
    if bytes[end..padded].iter().any(|&b| b != 0) {
        return Err(Error::malformed(Rule::IDX_6, "padding inside the record is not zero"));
    }
    let field = &bytes[*at..end];
    *at = padded;
    Ok(field)
}

impl<'a> Record<'a> {
    fn parse(bytes: &'a [u8]) -> Result<(Self, &'a str)> {
        let mut at = 0;
        let header = take(bytes, &mut at, RECORD_HEADER_BYTES)
            .map_err(|_| Error::malformed(Rule::IDX_2, "record header is cut off"))?;
        let h = RecordHeader::read(&mut Cursor::new(header))
            .expect("16 bytes hold the fixed-size record header");
        let len = h.record_len as usize;
        let Some(bytes) = bytes.get(..len).filter(|b| b.len() % 8 == 0) else {
            return Err(Error::malformed(
                Rule::IDX_2,
                format!(
                    "record says {len} bytes, not a multiple of 8 within the {} left",
                    bytes.len()
                ),
            ));
        };
        let name = take(bytes, &mut at, usize::from(h.name_len))?;
        let name = std::str::from_utf8(name)
            .map_err(|e| Error::malformed(Rule::NAM_1, "name is not UTF-8").with_source(e))?;
        check_name(name)?;
        if h.flags & !FLAG_OPTIONAL != 0 {
            return Err(Error::malformed(
                Rule::IDX_11,
                format!("unknown record flags {:#06x}", h.flags),
            )
            .in_tensor(name));
        }
        let body = take(bytes, &mut at, h.body_len as usize).map_err(|e| e.in_tensor(name))?;
        let mut parts = Vec::new();
        let known = matches!(h.kind, KIND_LEVELS..=KIND_HEAD);
        for _ in 0..h.n_parts {
            parts.push(parse_part(bytes, &mut at, known).map_err(|e| e.in_tensor(name))?);
        }
        if at != len {
            return Err(Error::malformed(
                Rule::IDX_7,
                format!("record says {len} bytes, its fields take {at}"),
            )
            .in_tensor(name));
        }
        let order = parts.windows(2).all(|w| w[0].kind.code() < w[1].kind.code());
        if !order {
            return Err(Error::malformed(Rule::PRT_4, "parts are not in order of kind and plane")
                .in_tensor(name));
        }
        let optional = h.flags & FLAG_OPTIONAL != 0;
        Ok((Self { kind: h.kind, optional, body, parts, len }, name))
    }
}

/// `known_record`: parts of skipped records may be of any kind.
fn parse_part(bytes: &[u8], at: &mut usize, known_record: bool) -> Result<Part> {
    let header = take(bytes, at, PART_HEADER_BYTES)?;
    let h = PartHeader::read(&mut Cursor::new(header))
        .expect("32 bytes hold the fixed-size part header");
    let kind = PartKind::from_code(h.kind, h.plane);
    let fail = |rule, text: String| Err(Error::malformed(rule, text).in_part(kind.name()));
    let optional = h.flags & PART_FLAG_OPTIONAL != 0;
    // It would come before the data, where readers look for that.
    if h.kind == 0 {
        return fail(Rule::PRT_9, "no part is of kind 0".into());
    }
    if h.flags & !PART_FLAG_OPTIONAL != 0 {
        return fail(Rule::PRT_8, format!("unknown part flags {:#04x}", h.flags));
    }
    match (kind, optional) {
        _ if !known_record => {}
        (PartKind::Unknown(1..=5 | 16, plane), _) => {
            return fail(Rule::PRT_14, format!("a part of this kind can't be plane {plane}"));
        }
        (PartKind::Unknown(..), false) => {
            return Err(Error::new(
                ErrorKind::UnsupportedFeature,
                format!("{} is not known and not optional ({})", kind.name(), Rule::PRT_10),
            ));
        }
        // Which of both it must be depends on the tensor.
        (PartKind::Residual, _) | (PartKind::Unknown(..), true) | (_, false) => {}
        (_, true) => return fail(Rule::PRT_12, "a part of this kind can't be optional".into()),
    }
    let skipped = !known_record || matches!(kind, PartKind::Unknown(..));
    let storage = match h.storage {
        0 => Storage::Plain,
        // Of what is skipped the checksums are all that is known: 1 need not be frames there (UC-PRT-16).
        other if skipped => Storage::Unknown(other),
        1 => Storage::Zstd,
        other => {
            return Err(Error::new(
                ErrorKind::UnsupportedFeature,
                format!("storage method {other} is not known ({})", Rule::PRT_1),
            )
            .in_part(kind.name()));
        }
    };
    if h.len == 0 || u64::from(h.n_chunks) != h.len.div_ceil(CHUNK_BYTES) {
        return fail(
            if h.len == 0 { Rule::PRT_19 } else { Rule::PRT_2 },
            format!(
                "{} chunks for {} bytes, expected one for each {CHUNK_BYTES}",
                h.n_chunks, h.len
            ),
        );
    }
    // At most 1 MiB a chunk, so the count claimed is checked against the bytes of the record before
    // anything is reserved for it.
    let table_len = (h.n_chunks as usize)
        .checked_mul(if storage == Storage::Plain { 4 } else { 8 })
        .ok_or_else(|| Error::malformed(Rule::IDX_7, "chunk table is too long"))?;
    let table = take(bytes, at, table_len)?;
    let word = |i: usize| {
        u32::from_le_bytes([table[4 * i], table[4 * i + 1], table[4 * i + 2], table[4 * i + 3]])
    };
    let n = h.n_chunks as usize;
    let mut part = Part {
        kind,
        storage,
        optional,
        offset: h.offset,
        stored_len: h.stored_len,
        len: h.len,
        chunks: Vec::with_capacity(n),
    };
    let mut sum = 0u64;
    for i in 0..n {
        let content = part.chunk_len(i);
        let stored_len = match storage {
            Storage::Plain => u32::try_from(content).expect("a chunk has at most 1 MiB"),
            Storage::Zstd | Storage::Unknown(_) => word(n + i),
        };
        // A frame that isn't shorter than its chunk gives way to the chunk itself.
        if stored_len == 0 || u64::from(stored_len) > content {
            return fail(Rule::PRT_17, format!("chunk {i} stores {content} bytes in {stored_len}"));
        }
        part.chunks.push(Chunk { crc32: word(i), stored_len, start: sum });
        sum += u64::from(stored_len);
    }
    if sum != h.stored_len {
        return fail(
            Rule::PRT_18,
            format!("chunks take {sum} bytes, the part says {}", h.stored_len),
        );
    }
    Ok(part)
}

fn parse_levels(record: &Record<'_>, name: &str) -> Result<LevelsEntry> {
    let native = record.body.first().copied().unwrap_or(0);
    let size = if (3..=8).contains(&native) { (2usize << native) - 8 } else { 0 };
    if size == 0 || record.body.len() != 8 + size || record.body[1..8] != [0; 7] {
        return Err(Error::malformed(
            Rule::LVL_1,
            format!("level record of {} bytes for {native} planes", record.body.len()),
        ));
    }
    if !record.parts.is_empty() {
        return Err(Error::malformed(Rule::PRT_22, "a level record has no parts"));
    }
    let levels: Vec<i8> = record.body[8..].iter().map(|b| b.cast_signed()).collect();
    let mut rest = &levels[..];
    for read in (3..=native).rev() {
        let (table, tail) = rest.split_at(1 << read);
        if table.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::malformed(
                Rule::LVL_2,
                format!("levels of {native} planes read as {read} don't increase"),
            ));
        }
        rest = tail;
    }
    Ok(LevelsEntry { name: name.to_owned(), native, levels })
}

fn parse_exact_model(record: &Record<'_>, name: &str) -> Result<ExactModelEntry> {
    if !record.parts.is_empty() {
        return Err(Error::malformed(Rule::PRT_22, "a model record has no parts"));
    }
    Ok(ExactModelEntry { name: name.to_owned(), body: record.body.to_vec() })
}

fn parse_tensor(record: Record<'_>, name: &str) -> Result<TensorEntry> {
    let fail = |rule, text: &str| Err(Error::malformed(rule, text));
    let Some(fixed) = record.body.get(..8) else {
        return fail(Rule::TEN_1, "tensor body is cut off");
    };
    let h = TensorHeader::read(&mut Cursor::new(fixed)).expect("8 bytes hold the tensor header");
    let dtype = Dtype::require_code(h.dtype)?;
    let rank = usize::from(h.rank);
    let Some((shape, rest)) = record.body.get(8..).and_then(|b| b.split_at_checked(8 * rank))
    else {
        return fail(Rule::TEN_1, "tensor shape is cut off");
    };
    let Some((digest, rest)) = rest.split_first_chunk::<32>() else {
        return fail(Rule::TEN_1, "decoded digest is cut off");
    };
    let Some(role) = Role::from_code(h.role).filter(|_| h.reserved == 0 && rank <= MAX_RANK) else {
        return fail(Rule::TEN_1, "role, rank or reserved byte is out of range");
    };
    let shape: Vec<u64> = shape
        .chunks_exact(8)
        .map(|b| u64::from_le_bytes(b.try_into().expect("chunks of 8")))
        .collect();
    if dtype.tensor_bytes(&shape).is_none() {
        return Err(Error::malformed(
            Rule::TEN_2,
            format!("{dtype} {shape:?} is too large or not a whole number of bytes"),
        ));
    }
    let unused = (h.row_dims, h.group_log2, h.planes) == (0, 0, 0);
    let encoding = match h.encoding {
        1 | 3 if !unused => {
            return fail(Rule::TEN_3, "row_dims, group_log2 and planes belong to encoding planes");
        }
        1 if !rest.is_empty() => return fail(Rule::TEN_1, "raw tensor body is too long"),
        1 => Encoding::Raw,
        2 => {
            let Ok(rest) = <&[u8; 16]>::try_from(rest) else {
                return fail(Rule::TEN_1, "planes tensor body has the wrong length");
            };
            let ids: Vec<u16> =
                rest.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
            if ids[6..] != [0, 0] {
                return fail(Rule::TEN_1, "reserved bytes are not zero");
            }
            let group = match h.group_log2 {
                0 => 0,
                n @ 4..=8 => 1u32 << n,
                n => {
                    return Err(Error::malformed(
                        Rule::PLN_4,
                        format!("group_log2 is {n}, 0 or 4 to 8 expected"),
                    ));
                }
            };
            let planes = match h.planes {
                0 => None,
                n @ 3..=8 => Some(n),
                n => {
                    return Err(Error::malformed(
                        Rule::PLN_3,
                        format!("{n} planes, 3 to 8 expected"),
                    ));
                }
            };
            Encoding::Planes {
                row_dims: h.row_dims,
                group,
                planes,
                level_ids: ids[..6].try_into().expect("six of eight ids"),
            }
        }
        3 => {
            let target = std::str::from_utf8(rest).map_err(|e| {
                Error::malformed(Rule::NAM_1, "alias target is not UTF-8").with_source(e)
            })?;
            check_name(target)?;
            Encoding::Alias { target: target.to_owned() }
        }
        4 if (h.group_log2, h.planes) != (0, 0) => {
            return fail(Rule::TEN_3, "group_log2 and planes belong to encoding planes");
        }
        4 if !rest.is_empty() => return fail(Rule::TEN_1, "coded tensor body is too long"),
        4 => Encoding::Coded { row_dims: h.row_dims },
        other => {
            return Err(Error::new(
                ErrorKind::UnsupportedFeature,
                format!("encoding {other} is not known ({})", Rule::TEN_6),
            ));
        }
    };
    Ok(TensorEntry {
        name: name.to_owned(),
        dtype,
        role,
        shape,
        decoded_sha256: Digest(*digest),
        encoding,
        parts: record.parts,
    })
}

fn parse_file(record: Record<'_>, path: &str) -> Result<FileEntry> {
    check_file_path(path)?;
    let body = <&[u8; 40]>::try_from(record.body)
        .map_err(|_| Error::malformed(Rule::FIL_1, "file body doesn't have 40 bytes"))?;
    let (len, sha256) = body.split_first_chunk::<8>().expect("8 of 40 bytes");
    let len = u64::from_le_bytes(*len);
    let known: Vec<_> =
        record.parts.iter().filter(|p| !matches!(p.kind, PartKind::Unknown(..))).collect();
    let right = match known[..] {
        [] => len == 0,
        [part] => part.kind == PartKind::Data && part.len == len,
        _ => false,
    };
    if !right {
        return Err(Error::malformed(
            Rule::FIL_2,
            format!("parts don't add up to the {len} bytes of the file"),
        ));
    }
    Ok(FileEntry {
        path: path.to_owned(),
        len,
        sha256: Digest(sha256.try_into().expect("32 of 40 bytes")),
        parts: record.parts,
    })
}

/// Appends `bytes` and zeros up to a multiple of 8.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn put_fixed<T>(out: &mut Vec<u8>, value: &T)
where
    T: for<'a> BinWrite<Args<'a> = ()> + binrw::meta::WriteEndian,
{
    let mut cursor = Cursor::new(Vec::new());
    value.write(&mut cursor).expect("writing fixed-size fields to memory can't fail");
    out.extend_from_slice(cursor.get_ref());
}

fn put_record(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    name: &str,
    body: &[u8],
    parts: &[Part],
) -> Result<()> {
    let too_long = |_| Error::malformed(Rule::IDX_2, "record is too long").in_tensor(name);
    let mut tail = Vec::new();
    put(&mut tail, name.as_bytes());
    put(&mut tail, body);
    for part in parts {
        let (kind, plane) = part.kind.code();
        put_fixed(
            &mut tail,
            &PartHeader {
                kind,
                plane,
                storage: match part.storage {
                    Storage::Plain => 0,
                    Storage::Zstd => 1,
                    Storage::Unknown(code) => code,
                },
                flags: if part.optional { PART_FLAG_OPTIONAL } else { 0 },
                n_chunks: u32::try_from(part.chunks.len()).map_err(too_long)?,
                offset: part.offset,
                stored_len: part.stored_len,
                len: part.len,
            },
        );
        let mut table: Vec<u8> = part.chunks.iter().flat_map(|c| c.crc32.to_le_bytes()).collect();
        if part.storage != Storage::Plain {
            table.extend(part.chunks.iter().flat_map(|c| c.stored_len.to_le_bytes()));
        }
        put(&mut tail, &table);
    }
    put_fixed(
        out,
        &RecordHeader {
            record_len: u32::try_from(RECORD_HEADER_BYTES + tail.len()).map_err(too_long)?,
            kind,
            flags,
            name_len: u16::try_from(name.len()).map_err(too_long)?,
            n_parts: u16::try_from(parts.len()).map_err(too_long)?,
            body_len: u32::try_from(body.len()).map_err(too_long)?,
        },
    );
    out.extend_from_slice(&tail);
    Ok(())
}

fn tensor_body(t: &TensorEntry) -> Result<Vec<u8>> {
    let (encoding, row_dims, group, planes) = match &t.encoding {
        Encoding::Raw => (1, 0, 0, 0),
        Encoding::Planes { row_dims, group, planes, .. } => {
            (2, *row_dims, *group, planes.unwrap_or(0))
        }
        Encoding::Alias { .. } => (3, 0, 0, 0),
        Encoding::Coded { row_dims } => (4, *row_dims, 0, 0),
    };
    let group_log2 = if group == 0 { 0 } else { group.trailing_zeros() };
    let mut body = Vec::new();
    put_fixed(
        &mut body,
        &TensorHeader {
            dtype: t.dtype.code(),
            encoding,
            role: t.role.code(),
            rank: u8::try_from(t.shape.len())
                .map_err(|_| Error::malformed(Rule::TEN_1, "too many dimensions"))?,
            row_dims,
            group_log2: u8::try_from(group_log2).expect("at most 31"),
            planes,
            reserved: 0,
        },
    );
    body.extend(t.shape.iter().flat_map(|d| d.to_le_bytes()));
    body.extend_from_slice(&t.decoded_sha256.0);
    match &t.encoding {
        Encoding::Raw | Encoding::Coded { .. } => {}
        Encoding::Planes { level_ids, .. } => {
            body.extend(level_ids.iter().flat_map(|id| id.to_le_bytes()));
            body.extend_from_slice(&[0; 4]);
        }
        Encoding::Alias { target } => body.extend_from_slice(target.as_bytes()),
    }
    Ok(body)
}

/// Serialises an index whose records are already sorted; returns its bytes and record count.
///
/// # Errors
/// `Malformed` for records that don't fit their fields.
pub(crate) fn write_index(index: &Index) -> Result<(Vec<u8>, u32)> {
    let mut out = Vec::new();
    let mut n = 0usize;
    for l in &index.levels {
        let mut body = vec![l.native, 0, 0, 0, 0, 0, 0, 0];
        body.extend(l.levels.iter().map(|v| v.cast_unsigned()));
        put_record(&mut out, KIND_LEVELS, 0, &l.name, &body, &[])?;
        n += 1;
    }
    for t in &index.tensors {
        put_record(&mut out, KIND_TENSOR, 0, &t.name, &tensor_body(t)?, &t.parts)?;
        n += 1;
    }
    let file_body = |f: &FileEntry| {
        let mut body = f.len.to_le_bytes().to_vec();
        body.extend_from_slice(&f.sha256.0);
        body
    };
    for f in &index.files {
        put_record(&mut out, KIND_FILE, 0, &f.path, &file_body(f), &f.parts)?;
        n += 1;
    }
    for o in &index.overlays {
        put_record(&mut out, KIND_OVERLAY, FLAG_OPTIONAL, &o.name, &o.body()?, &o.parts)?;
    }
    for m in &index.exact_models {
        put_record(&mut out, KIND_EXACT_MODEL, FLAG_OPTIONAL, &m.name, &m.body, &[])?;
    }
    for f in &index.heads {
        put_record(&mut out, KIND_HEAD, FLAG_OPTIONAL, &f.path, &file_body(f), &f.parts)?;
    }
    for o in &index.others {
        put_record(&mut out, o.kind, FLAG_OPTIONAL, &o.name, &o.body, &o.parts)?;
    }
    n += index.overlays.len() + index.exact_models.len() + index.heads.len() + index.others.len();
    let n = u32::try_from(n).map_err(|_| Error::malformed(Rule::IDX_3, "too many records"))?;
    Ok((out, n))
}
