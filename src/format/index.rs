//! The index: one record for each level table, tensor and carried file (spec/container.md,
//! "Index").
//!
//! This module checks what can be said from the index bytes alone; geometry that needs the codec is
//! checked by `container::check`.

use std::io::Cursor;

use binrw::{BinRead, BinWrite};

use super::fields::{put, put_fixed, take};
use super::overlay::{OverlayEntry, parse_overlay};
use super::part::{Part, PartKind, parse_part, put_part};
use super::tensor::{TensorEntry, parse_tensor, tensor_body};
use super::{Digest, MAX_PLANES, MIN_PLANES, check_file_path, check_name};
use crate::error::{Error, ErrorKind, Result};
use crate::rule::Rule;

const KIND_LEVELS: u16 = 1;
const KIND_TENSOR: u16 = 2;
const KIND_FILE: u16 = 3;
const KIND_OVERLAY: u16 = 4;
const KIND_EXACT_MODEL: u16 = 5;
const KIND_HEAD: u16 = 6;
const FLAG_OPTIONAL: u16 = 1;
const RECORD_HEADER_BYTES: usize = 16;

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
            let offset = base.saturating_add(at as u64);
            let (record, name) = Record::parse(&bytes[at..]).map_err(|e| e.at(offset))?;
            let key = (record.kind, name);
            if previous.is_some_and(|p| p >= key) {
                return Err(Error::malformed(
                    Rule::IDX_4,
                    "record is not greater than the one before it (kind, then name)",
                )
                .in_tensor(name)
                .at(offset));
            }
            previous = Some(key);
            at += record.len;
            seen = seen.saturating_add(1);
            index.add(record, name).map_err(|e| e.in_tensor(name).at(offset))?;
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
            KIND_TENSOR => self.tensors.push(parse_tensor(record.body, record.parts, name)?),
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

fn parse_levels(record: &Record<'_>, name: &str) -> Result<LevelsEntry> {
    let native = record.body.first().copied().unwrap_or(0);
    let size = if (MIN_PLANES..=MAX_PLANES).contains(&native) { (2usize << native) - 8 } else { 0 };
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
    for read in (MIN_PLANES..=native).rev() {
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

fn put_record(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    name: &str,
    body: &[u8],
    parts: &[Part],
) -> Result<()> {
    let too_long = |_: std::num::TryFromIntError| {
        Error::malformed(Rule::IDX_2, "record is too long").in_tensor(name)
    };
    let mut tail = Vec::new();
    put(&mut tail, name.as_bytes());
    put(&mut tail, body);
    for part in parts {
        put_part(&mut tail, part).map_err(too_long)?;
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
