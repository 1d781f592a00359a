//! Opening a container and reading its parts, every byte checked against its checksum.

use std::fs::File;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::check::check_index;
use super::chunks::check_crc;
use crate::codec::exact::ExactTables;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Attachment, CHUNK_BYTES, Digest, Dtype, FileEntry, Index, PREAMBLE_BYTES, Part, PartKind,
    Preamble, TensorEntry, parse_attachments,
};
use crate::limits::{INDEX_FACTOR, Limit, Limits, MANIFEST_FACTOR};
use crate::memory::to_usize;
use crate::rule::Rule;
use crate::storage::{ReadAt, read_section};

/// An open container: preamble and index are read and checked, payload is read on demand.
///
/// Opening costs two reads, whatever the size of the payload. Every part that is read later is
/// checked against its chunk checksums; digests and roots are compared by
/// [`VerifyOptions`](crate::VerifyOptions).
///
/// ```no_run
/// use ultracompress::Container;
///
/// let pack = Container::open_path("model.uc")?;
/// let view = pack.tensor("lm_head.weight").expect("the model has a head");
/// let bf16: Vec<u8> = view.decode()?;
/// # Ok::<(), ultracompress::Error>(())
/// ```
#[derive(Debug)]
pub struct Container<R> {
    reader: R,
    preamble: Preamble,
    index: Index,
    limits: Limits,
    name: Option<String>,
    exact_tables: ExactTables,
}

impl Container<File> {
    /// Opens a file with default [`Limits`].
    ///
    /// # Errors
    /// As [`Container::open`]; errors name the file.
    pub fn open_path(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let open = || {
            let file = File::open(path).map_err(|e| Error::io("can't open", e))?;
            let meta = file.metadata().map_err(|e| Error::io("can't open", e))?;
            if meta.is_dir() {
                return Err(Error::new(ErrorKind::Io, "is a folder, not a .uc file"));
            }
            Self::open(file)
        };
        let name = path.display().to_string();
        match open() {
            Ok(pack) => Ok(pack.with_name(name)),
            Err(e) => Err(e.in_file(name)),
        }
    }
}

impl<R: ReadAt> Container<R> {
    /// Opens a container with default [`Limits`].
    ///
    /// # Errors
    /// `Malformed` with the broken rule, `UnsupportedVersion`, `UnsupportedFeature`, `Truncated`,
    /// `Integrity` where preamble or index disagree with their checksums, `LimitExceeded`, `Io`.
    ///
    /// # Spec
    /// container.md, "Opening a file".
    pub fn open(reader: R) -> Result<Self> {
        Self::open_with(reader, Limits::default())
    }

    /// Opens a container with limits of the caller.
    ///
    /// # Errors
    /// As [`Container::open`].
    pub fn open_with(reader: R, limits: Limits) -> Result<Self> {
        let file_len = reader.len_bytes()?;
        let mut first = vec![0; to_usize(file_len.min(PREAMBLE_BYTES as u64))?];
        reader.read_exact_at(0, &mut first)?;
        let preamble = Preamble::parse(&first, file_len)?;
        check_limit(preamble.index_len, limits.max_index_bytes, Limit::IndexBytes)?;
        check_limit(preamble.manifest_len, limits.max_manifest_bytes, Limit::ManifestBytes)?;
        check_limit(
            preamble.attachments_len(),
            limits.max_attachment_bytes,
            Limit::AttachmentBytes,
        )?;
        let bytes = read_section(&reader, preamble.index_offset, preamble.index_len)?;
        check_crc(&bytes, preamble.index_crc32, Rule::IDX_1)
            .map_err(|e| e.in_part("index").at(preamble.index_offset))?;
        let index = Index::parse(&bytes, preamble.index_offset, preamble.n_records)?;
        check_index(&index, &preamble)?;
        Ok(Self {
            reader,
            preamble,
            index,
            limits,
            name: None,
            exact_tables: ExactTables::default(),
        })
    }

    /// The header.
    pub fn preamble(&self) -> &Preamble {
        &self.preamble
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The input.
    pub fn reader(&self) -> &R {
        &self.reader
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_, R>> {
        self.index.tensors.iter().map(|entry| TensorView::new(self, entry))
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_, R>> {
        self.index.tensor(name).map(|entry| TensorView::new(self, entry))
    }

    /// Calls `emit` with consecutive pieces of a carried file, which is compared with its SHA-256
    /// at the end: what was emitted counts only when no error follows.
    ///
    /// # Errors
    /// As [`Container::read_file`], and whatever `emit` returns.
    pub fn stream_file(
        &self,
        file: &FileEntry,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut sha = Sha256::new();
        let mut at = 0;
        while let Some(part) = file.parts.first().filter(|_| at < file.len) {
            let to = part.len.min(at + CHUNK_BYTES);
            let bytes = self.read_part(part, at..to).map_err(|e| e.in_tensor(&file.path))?;
            sha.update(&bytes);
            emit(&bytes)?;
            at = to;
        }
        let found = Digest(sha.finalize().into());
        if found != file.sha256 {
            let e = Error::integrity(format!(
                "SHA-256 is {found}, the index says {} ({})",
                file.sha256,
                Rule::FIL_1
            ));
            return Err(self.locate(e.in_tensor(&file.path)));
        }
        Ok(())
    }

    /// The bytes of a carried file, compared with its SHA-256.
    ///
    /// # Errors
    /// `Integrity` where a checksum or the digest disagrees, `LimitExceeded`, `Truncated`, `Io`.
    pub fn read_file(&self, file: &FileEntry) -> Result<Vec<u8>> {
        let read = || {
            check_limit(file.len, self.limits.max_file_bytes, Limit::FileBytes)?;
            let mut bytes = Vec::new();
            self.stream_file(file, |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            Ok(bytes)
        };
        read().map_err(|e: Error| self.locate(e.in_tensor(&file.path)))
    }

    /// The manifest's bytes, compared with their checksum.
    ///
    /// # Errors
    /// `Integrity`, `LimitExceeded`, `Io`.
    pub fn manifest_bytes(&self) -> Result<Vec<u8>> {
        let p = &self.preamble;
        let read = || {
            check_limit(p.manifest_len, self.limits.max_manifest_bytes, Limit::ManifestBytes)?;
            let bytes = read_section(&self.reader, p.manifest_offset, p.manifest_len)?;
            check_crc(&bytes, p.manifest_crc32, Rule::MAN_4)?;
            Ok(bytes)
        };
        read().map_err(|e: Error| self.locate(e.in_part("manifest").at(p.manifest_offset)))
    }

    /// Receipts and signatures behind the core.
    ///
    /// # Errors
    /// `Integrity`, `Malformed` (UC-ATT-1 to UC-ATT-4), `LimitExceeded`, `Io`.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let p = &self.preamble;
        let len = p.attachments_len();
        let read = || {
            check_limit(len, self.limits.max_attachment_bytes, Limit::AttachmentBytes)?;
            let bytes = read_section(&self.reader, p.core_len, len)?;
            if len > 0 {
                check_crc(&bytes, p.attachments_crc32, Rule::ATT_5)
                    .map_err(|e| e.in_part("attachments").at(p.core_len))?;
            }
            parse_attachments(&bytes, p.core_len)
        };
        read().map_err(|e| self.locate(e))
    }

    /// About how much memory the index and the manifest take.
    pub(crate) fn tables_bytes(&self) -> u64 {
        let index = self.preamble.index_len.saturating_mul(INDEX_FACTOR);
        index.saturating_add(self.preamble.manifest_len.saturating_mul(MANIFEST_FACTOR))
    }

    /// Names the file in errors, and in what [`VerifyOptions`](crate::VerifyOptions) reports.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Decoding tables of the exact rung, kept from one tensor to the next.
    pub(crate) fn exact_tables(&self) -> &ExactTables {
        &self.exact_tables
    }

    /// The name given by [`Container::with_name`] or [`Container::open_path`].
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Adds the file's name to an error.
    pub(crate) fn locate(&self, e: Error) -> Error {
        match &self.name {
            Some(name) => e.in_file(name),
            None => e,
        }
    }
}

/// A tensor of a [`Container`]: its record, and the way to its values.
#[derive(Debug)]
pub struct TensorView<'a, R> {
    container: &'a Container<R>,
    entry: &'a TensorEntry,
}

impl<R> Clone for TensorView<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for TensorView<'_, R> {}

impl<'a, R: ReadAt> TensorView<'a, R> {
    pub(crate) fn new(container: &'a Container<R>, entry: &'a TensorEntry) -> Self {
        Self { container, entry }
    }

    /// The file it is in.
    pub(crate) fn container(&self) -> &'a Container<R> {
        self.container
    }

    /// The tensor's name.
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// The element type of the source.
    pub fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &'a [u64] {
        &self.entry.shape
    }

    /// The index record.
    pub fn entry(&self) -> &'a TensorEntry {
        self.entry
    }

    pub(super) fn part(&self, kind: PartKind) -> Option<&'a Part> {
        self.entry.parts.iter().find(|p| p.kind == kind)
    }

    /// # Errors
    /// `Malformed(UC-PRT-22)` where there is no such part.
    pub(super) fn require(&self, kind: PartKind) -> Result<&'a Part> {
        self.part(kind)
            .ok_or_else(|| Error::malformed(Rule::PRT_22, format!("{} is missing", kind.name())))
    }

    /// Adds the names of tensor and file to an error.
    pub(super) fn locate(&self, e: Error) -> Error {
        self.container.locate(e.in_tensor(self.name()))
    }
}

fn check_limit(found: u64, allowed: u64, limit: Limit) -> Result<()> {
    if found > allowed {
        return Err(Error::new(
            ErrorKind::LimitExceeded(limit),
            format!("{found} bytes, {limit} allows {allowed} ({})", Rule::LIM_1),
        ));
    }
    Ok(())
}
