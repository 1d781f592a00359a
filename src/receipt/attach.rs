//! Receipts on packs: adding one to a file, and checking those that are there.

use std::io::{Seek, SeekFrom, Write};

use super::record::EvalRecord;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::format::{Attachment, AttachmentKind, CHUNK_BYTES, Digest, write_attachments};
use crate::progress::{Progress, step};
use crate::storage::ReadAt;

/// A receipt of a pack that was checked.
#[derive(Debug, Clone)]
pub struct CheckedReceipt {
    /// Its name in the pack.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// What it says, when nothing is wrong with it.
    pub record: Result<EvalRecord, String>,
}

/// Whether a record speaks of this pack.
fn check_roots(record: &EvalRecord, stored: Digest, decoded: Digest) -> Result<()> {
    let m = &record.model;
    for (what, found, expected) in [
        ("stored", m.stored_root.as_deref().unwrap_or("none"), stored),
        ("decoded", &m.decoded_root, decoded),
    ] {
        if found != expected.to_string() {
            return Err(Error::integrity(format!(
                "the record is of another pack: its {what} root is {found}, this pack's is {expected}"
            )));
        }
    }
    Ok(())
}

/// Checks every receipt: that it is a record of this pack, and that its headlines follow from its
/// rows. Roots of the pack itself are taken as it claims them.
///
/// # Errors
/// As [`Container::attachments`].
pub fn check(attachments: &[Attachment], stored: Digest, decoded: Digest) -> Vec<CheckedReceipt> {
    let receipts = attachments.iter().filter(|a| a.kind == AttachmentKind::Receipt);
    let check = |a: &Attachment| {
        let record = EvalRecord::parse(&a.data)
            .and_then(|record| check_roots(&record, stored, decoded).map(|()| record))
            .map_err(|e| e.to_string());
        CheckedReceipt { name: a.name.clone(), sha256: Digest::of(&a.data), record }
    };
    receipts.map(check).collect()
}

/// Writes `pack` with one receipt more to `out`. The core is copied as it is, so that both roots
/// stay.
///
/// # Errors
/// As [`EvalRecord::parse`]; `Integrity` for a record of another pack; `InvalidArgument` when the
/// pack has it already, or for a shard that isn't the first; as reading the pack; `Io`.
pub fn attach<R: ReadAt>(
    pack: &Container<R>,
    roots: (Digest, Digest),
    record: &[u8],
    out: &mut (impl Write + Seek),
    progress: &dyn Progress,
) -> Result<String> {
    let parsed = EvalRecord::parse(record)?;
    check_roots(&parsed, roots.0, roots.1)?;
    let effective = pack.overlays().last().map(|o| o.effective_root.to_string());
    let said = &parsed.model.effective_root;
    if said.is_some() && *said != effective {
        let expected = effective.as_deref().unwrap_or("none");
        let found = said.as_deref().unwrap_or("none");
        return Err(Error::integrity(format!(
            "the record is of another pack: its effective root is {found}, this pack's is {expected}"
        )));
    }
    let name = format!("eval-{}", &Digest::of(record).to_string()[..16]);
    let mut attachments = pack.attachments()?;
    if attachments.iter().any(|a| a.kind == AttachmentKind::Receipt && a.name == name) {
        return Err(Error::argument(format!("the pack has this receipt already ({name})")));
    }
    attachments.push(Attachment {
        kind: AttachmentKind::Receipt,
        name: name.clone(),
        data: record.to_vec(),
    });
    let section = write_attachments(&attachments)?;
    let mut preamble = pack.preamble().clone();
    if preamble.shard_number != 1 {
        return Err(Error::argument("receipts are in the first shard of a pack"));
    }
    let io = |e| Error::io("can't write", e);
    let mut at = 0;
    while at < preamble.core_len {
        let len = CHUNK_BYTES.min(preamble.core_len - at);
        let mut piece = vec![0; crate::memory::to_usize(len)?];
        pack.reader().read_exact_at(at, &mut piece).map_err(|e| pack.locate(e))?;
        out.write_all(&piece).map_err(io)?;
        at += len;
        step(progress, len)?;
    }
    out.write_all(&section).map_err(io)?;
    preamble.file_len = preamble.core_len + section.len() as u64;
    preamble.attachments_crc32 = crc32fast::hash(&section);
    out.seek(SeekFrom::Start(0)).map_err(io)?;
    out.write_all(&preamble.to_bytes()).map_err(io)?;
    Ok(name)
}
