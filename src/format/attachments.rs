//! The attachment section behind the core: receipts and signatures (spec/container.md,
//! "Attachments"). It lies outside the stored root, so that what cites the root can be added later.

use std::collections::HashSet;
use std::io::Cursor;

use binrw::{BinRead, BinWrite};

use super::{ALIGN_BYTES, align_up, check_name};
use crate::error::{Error, Result};
use crate::rule::Rule;

const HEADER_BYTES: usize = 16;

#[derive(Debug, BinRead, BinWrite)]
#[brw(little)]
struct Header {
    kind: u16,
    name_len: u16,
    reserved: u32,
    data_len: u64,
}

/// What an attachment is. Readers skip kinds that they don't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachmentKind {
    /// A JSON record of a measurement or check.
    Receipt,
    /// A detached signature.
    Signature,
    /// A kind of a later minor version.
    Unknown(u16),
}

impl AttachmentKind {
    fn code(self) -> u16 {
        match self {
            Self::Receipt => 1,
            Self::Signature => 2,
            Self::Unknown(code) => code,
        }
    }

    fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Receipt,
            2 => Self::Signature,
            other => Self::Unknown(other),
        }
    }
}

/// One attachment: a receipt, a signature, or something newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// What it is.
    pub kind: AttachmentKind,
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// Parses an attachment section that starts at `base` in the file.
///
/// # Errors
/// `Malformed` (UC-ATT-1 to UC-ATT-4).
pub(crate) fn parse_attachments(section: &[u8], base: u64) -> Result<Vec<Attachment>> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut at = 0usize;
    while at < section.len() {
        let bad = |rule, what: &str| {
            Err(Error::malformed(rule, what)
                .in_part("attachments")
                .at(base.saturating_add(at as u64)))
        };
        let rest = &section[at..];
        let Some(mut header) = rest.get(..HEADER_BYTES).map(Cursor::new) else {
            return bad(Rule::ATT_2, "attachment header is cut off");
        };
        let h = Header::read(&mut header).expect("16 bytes hold the fixed-size header");
        if h.reserved != 0 {
            return bad(Rule::ATT_3, "reserved bytes are not zero");
        }
        let name_end = HEADER_BYTES + usize::from(h.name_len);
        let end = usize::try_from(h.data_len).ok().and_then(|n| name_end.checked_add(n));
        let padded = end
            .and_then(|e| align_up(e as u64, ALIGN_BYTES))
            .and_then(|e| usize::try_from(e).ok())
            .filter(|&e| e <= rest.len());
        let (Some(end), Some(padded)) = (end, padded) else {
            return bad(Rule::ATT_2, "attachment reaches beyond its section");
        };
        if rest[end..padded].iter().any(|&b| b != 0) {
            return bad(Rule::ATT_3, "padding is not zero");
        }
        let Ok(name) = std::str::from_utf8(&rest[HEADER_BYTES..name_end]) else {
            return bad(Rule::ATT_4, "attachment name is not UTF-8");
        };
        if check_name(name).is_err() {
            return bad(Rule::ATT_4, "attachment name breaks UC-NAM-1");
        }
        let kind = AttachmentKind::from_code(h.kind);
        if !seen.insert((h.kind, name)) {
            return bad(Rule::ATT_1, "two attachments have one kind and name");
        }
        found.push(Attachment { kind, name: name.to_owned(), data: rest[name_end..end].to_vec() });
        at += padded;
    }
    Ok(found)
}

/// The bytes of an attachment section.
///
/// # Errors
/// `Malformed` where a reader would refuse what is asked for.
pub(crate) fn write_attachments(attachments: &[Attachment]) -> Result<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    for a in attachments {
        check_name(&a.name)?;
        let header = Header {
            kind: a.kind.code(),
            name_len: u16::try_from(a.name.len()).expect("check_name bounds the name"),
            reserved: 0,
            data_len: a.data.len() as u64,
        };
        out.set_position(out.get_ref().len() as u64);
        header.write(&mut out).expect("writing to memory can't fail");
        let bytes = out.get_mut();
        bytes.extend_from_slice(a.name.as_bytes());
        bytes.extend_from_slice(&a.data);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
    }
    let section = out.into_inner();
    parse_attachments(&section, 0)?;
    Ok(section)
}
