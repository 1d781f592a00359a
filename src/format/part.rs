//! Parts: contiguous byte ranges that belong to a record, and their headers (spec/container.md,
//! "Parts").

use std::io::Cursor;

use binrw::{BinRead, BinWrite};

use super::CHUNK_BYTES;
use super::fields::{put, put_fixed, take};
use crate::error::{Error, ErrorKind, Result};
use crate::rule::Rule;

const FLAG_OPTIONAL: u8 = 1;
const HEADER_BYTES: usize = 32;

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
    pub(super) fn code(self) -> (u8, u8) {
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
    /// A way of a later version, or any way but plain of a part that is skipped; only such parts
    /// have it.
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

/// Reads a part header and its chunk table at `*at`. `known_record`: parts of skipped records may
/// be of any kind.
///
/// # Errors
/// `Malformed` (UC-IDX-6, UC-IDX-7, UC-PRT), `UnsupportedFeature`.
pub(super) fn parse_part(bytes: &[u8], at: &mut usize, known_record: bool) -> Result<Part> {
    let header = take(bytes, at, HEADER_BYTES)?;
    let h = PartHeader::read(&mut Cursor::new(header))
        .expect("32 bytes hold the fixed-size part header");
    let kind = PartKind::from_code(h.kind, h.plane);
    check_flags(&h, kind, known_record)?;
    let skipped = !known_record || matches!(kind, PartKind::Unknown(..));
    let part = Part {
        kind,
        storage: parse_storage(&h, kind, skipped)?,
        optional: h.flags & FLAG_OPTIONAL != 0,
        offset: h.offset,
        stored_len: h.stored_len,
        len: h.len,
        chunks: vec![],
    };
    parse_chunks(part, h.n_chunks, bytes, at)
}

fn malformed<T>(rule: Rule, kind: PartKind, text: impl Into<String>) -> Result<T> {
    Err(Error::malformed(rule, text).in_part(kind.name()))
}

/// Which kinds and flags there may be.
fn check_flags(h: &PartHeader, kind: PartKind, known_record: bool) -> Result<()> {
    let optional = h.flags & FLAG_OPTIONAL != 0;
    // It would come before the data, where readers look for that.
    if h.kind == 0 {
        return malformed(Rule::PRT_9, kind, "no part is of kind 0");
    }
    if h.flags & !FLAG_OPTIONAL != 0 {
        return malformed(Rule::PRT_8, kind, format!("unknown part flags {:#04x}", h.flags));
    }
    match (kind, optional) {
        _ if !known_record => Ok(()),
        (PartKind::Unknown(1..=5 | 16, plane), _) => {
            let text = format!("a part of this kind can't be plane {plane}");
            malformed(Rule::PRT_14, kind, text)
        }
        (PartKind::Unknown(..), false) => Err(Error::new(
            ErrorKind::UnsupportedFeature,
            format!("{} is not known and not optional ({})", kind.name(), Rule::PRT_10),
        )),
        // Which of both it must be depends on the tensor.
        (PartKind::Residual, _) | (PartKind::Unknown(..), true) | (_, false) => Ok(()),
        (_, true) => malformed(Rule::PRT_12, kind, "a part of this kind can't be optional"),
    }
}

fn parse_storage(h: &PartHeader, kind: PartKind, skipped: bool) -> Result<Storage> {
    match h.storage {
        0 => Ok(Storage::Plain),
        // Of what is skipped the checksums are all that is known: 1 need not be frames there
        // (UC-PRT-16).
        other if skipped => Ok(Storage::Unknown(other)),
        1 => Ok(Storage::Zstd),
        other => Err(Error::new(
            ErrorKind::UnsupportedFeature,
            format!("storage method {other} is not known ({})", Rule::PRT_1),
        )
        .in_part(kind.name())),
    }
}

/// Fills `part` with its chunks, from the table at `*at`.
fn parse_chunks(mut part: Part, n_chunks: u32, bytes: &[u8], at: &mut usize) -> Result<Part> {
    let kind = part.kind;
    if part.len == 0 || u64::from(n_chunks) != part.len.div_ceil(CHUNK_BYTES) {
        let text = format!(
            "{n_chunks} chunks for {} bytes, expected one for each {CHUNK_BYTES}",
            part.len
        );
        let rule = if part.len == 0 { Rule::PRT_19 } else { Rule::PRT_2 };
        return malformed(rule, kind, text);
    }
    // At most 1 MiB a chunk, so the count claimed is checked against the bytes of the record before
    // anything is reserved for it.
    let n = n_chunks as usize;
    let table_len = n
        .checked_mul(if part.storage == Storage::Plain { 4 } else { 8 })
        .ok_or_else(|| Error::malformed(Rule::IDX_7, "chunk table is too long"))?;
    let words = take(bytes, at, table_len)?.as_chunks::<4>().0;
    let word = |i: usize| u32::from_le_bytes(words[i]);
    part.chunks = Vec::with_capacity(n);
    let mut sum = 0u64;
    for i in 0..n {
        let content = part.chunk_len(i);
        let stored_len = match part.storage {
            Storage::Plain => u32::try_from(content).expect("a chunk has at most 1 MiB"),
            Storage::Zstd | Storage::Unknown(_) => word(n + i),
        };
        // A frame that isn't shorter than its chunk gives way to the chunk itself.
        if stored_len == 0 || u64::from(stored_len) > content {
            let text = format!("chunk {i} stores {content} bytes in {stored_len}");
            return malformed(Rule::PRT_17, kind, text);
        }
        part.chunks.push(Chunk { crc32: word(i), stored_len, start: sum });
        sum += u64::from(stored_len);
    }
    if sum != part.stored_len {
        let text = format!("chunks take {sum} bytes, the part says {}", part.stored_len);
        return malformed(Rule::PRT_18, kind, text);
    }
    Ok(part)
}

/// Appends a part header and its chunk table.
///
/// # Errors
/// When there are more chunks than a header can count.
pub(super) fn put_part(out: &mut Vec<u8>, part: &Part) -> Result<(), std::num::TryFromIntError> {
    let (kind, plane) = part.kind.code();
    let storage = match part.storage {
        Storage::Plain => 0,
        Storage::Zstd => 1,
        Storage::Unknown(code) => code,
    };
    let header = PartHeader {
        kind,
        plane,
        storage,
        flags: if part.optional { FLAG_OPTIONAL } else { 0 },
        n_chunks: u32::try_from(part.chunks.len())?,
        offset: part.offset,
        stored_len: part.stored_len,
        len: part.len,
    };
    put_fixed(out, &header);
    let mut table: Vec<u8> = part.chunks.iter().flat_map(|c| c.crc32.to_le_bytes()).collect();
    if part.storage != Storage::Plain {
        table.extend(part.chunks.iter().flat_map(|c| c.stored_len.to_le_bytes()));
    }
    put(out, &table);
    Ok(())
}
