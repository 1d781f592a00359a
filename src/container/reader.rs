//! Opening a container and reading its parts, every byte checked against its checksum.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::check::check_index;
use super::exact::ExactTables;
use super::read_at::{ReadAt, read_section};
use super::view::TensorView;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Attachment, CHUNK_BYTES, Digest, FileEntry, Index, PREAMBLE_BYTES, Part, Preamble, Rule,
    Storage, parse_attachments, reserve_more, to_usize,
};
use crate::limits::{Limit, Limits};

/// An open container: preamble and index are read and checked, payload is read on demand.
///
/// Opening costs two reads, whatever the size of the payload. Every part that is read later is
/// checked against its chunk checksums; digests and roots are compared by [`VerifyOptions`](crate::VerifyOptions).
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

    /// Calls `emit` with consecutive pieces of a carried file, which is compared with its SHA-256 at the
    /// end: what was emitted counts only when no error follows.
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
            return Err(self.place(e.in_tensor(&file.path)));
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
        read().map_err(|e: Error| self.place(e.in_tensor(&file.path)))
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
        read().map_err(|e: Error| self.place(e.in_part("manifest").at(p.manifest_offset)))
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
        read().map_err(|e| self.place(e))
    }

    /// Names the file in errors, and in what [`VerifyOptions`](crate::VerifyOptions) reports.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Decoding tables of the exact rung, kept from one tensor to the next.
    pub(super) fn exact_tables(&self) -> &ExactTables {
        &self.exact_tables
    }

    /// The name given by [`Container::with_name`] or [`Container::open_path`].
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Adds the file's name to an error.
    pub(crate) fn place(&self, e: Error) -> Error {
        match &self.name {
            Some(name) => e.in_file(name),
            None => e,
        }
    }
}

impl Part {
    /// Checks the stored bytes of chunks against their checksums. Gives the content where it isn't
    /// stored as it is.
    ///
    /// # Errors
    /// `Integrity`, `Malformed` (UC-PRT-7, UC-PRT-23, UC-PRT-25), `UnsupportedFeature`.
    pub(super) fn check_chunks(
        &self,
        chunks: Range<usize>,
        stored: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let mut content = (self.storage == Storage::Zstd).then(Vec::new);
        let mut rest = stored;
        for i in chunks {
            let (bytes, tail) = rest.split_at(self.chunks[i].stored_len as usize);
            self.check_chunk_crc(i, crc32fast::hash(bytes))?;
            if let Some(content) = &mut content {
                if self.is_compressed(i) {
                    let len = to_usize(self.chunk_len(i))?;
                    reserve_more(content, len)?;
                    content.extend(inflate(bytes, len).map_err(|e| self.in_chunk(i, e))?);
                } else {
                    content.extend_from_slice(bytes);
                }
            }
            rest = tail;
        }
        Ok(content)
    }

    /// Compares the checksum of a chunk's stored bytes.
    ///
    /// # Errors
    /// `Integrity`.
    pub(super) fn check_chunk_crc(&self, chunk: usize, found: u32) -> Result<()> {
        compare_crc(found, self.chunks[chunk].crc32, Rule::PRT_6)
            .map_err(|e| self.in_chunk(chunk, e))
    }

    /// Whether a chunk is a zstd frame: one that doesn't shrink is stored as it is.
    pub(crate) fn is_compressed(&self, chunk: usize) -> bool {
        let stored_len = u64::from(self.chunks[chunk].stored_len);
        self.storage == Storage::Zstd && stored_len != self.chunk_len(chunk)
    }

    fn in_chunk(&self, chunk: usize, e: Error) -> Error {
        Error::new(e.kind().clone(), format!("chunk {chunk}: {}", e.message()))
            .at(self.offset + self.chunks[chunk].start)
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

fn check_crc(bytes: &[u8], expected: u32, rule: Rule) -> Result<()> {
    compare_crc(crc32fast::hash(bytes), expected, rule)
}

fn compare_crc(found: u32, expected: u32, rule: Rule) -> Result<()> {
    if found != expected {
        return Err(Error::integrity(format!(
            "checksum is {found:08x}, the file says {expected:08x} ({rule})"
        )));
    }
    Ok(())
}

#[cfg(feature = "zstd")]
fn inflate(frame: &[u8], len: usize) -> Result<Vec<u8>> {
    check_frame_header(frame)?;
    // The library would also take several frames, and frames that are skipped.
    if zstd::zstd_safe::find_frame_compressed_size(frame).ok() != Some(frame.len()) {
        return Err(Error::malformed(Rule::PRT_7, "chunk is not one zstd frame"));
    }
    // The capacity bounds what a hostile frame can produce: at most 1 MiB.
    match zstd::bulk::decompress(frame, len) {
        Ok(bytes) if bytes.len() == len => Ok(bytes),
        Ok(bytes) => Err(Error::malformed(
            Rule::PRT_23,
            format!("zstd frame holds {} bytes, expected {len}", bytes.len()),
        )),
        Err(e) => Err(Error::malformed(Rule::PRT_23, format!("zstd frame: {e}")).with_source(e)),
    }
}

/// What the library is less strict about than UC-PRT-7 and UC-PRT-25.
#[cfg(feature = "zstd")]
fn check_frame_header(frame: &[u8]) -> Result<()> {
    // 8 MiB, which RFC 8878 asks every decoder for.
    const MAX_WINDOW: u64 = 8 << 20;
    let Some(([magic @ .., descriptor], rest)) = frame.split_first_chunk::<5>() else {
        return Err(Error::malformed(Rule::PRT_7, "chunk is shorter than a frame header"));
    };
    if *magic != [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(Error::malformed(Rule::PRT_7, "chunk is not one zstd frame"));
    }
    // A frame of a single segment has its content as window.
    let single_segment = descriptor & 0x20 != 0;
    if let Some(&window) = rest.first().filter(|_| !single_segment) {
        let base = 1u64 << (10 + (window >> 3));
        let size = base + base / 8 * u64::from(window & 7);
        if size > MAX_WINDOW {
            return Err(Error::malformed(Rule::PRT_25, format!("zstd frame needs {size} bytes")));
        }
    }
    Ok(())
}

#[cfg(not(feature = "zstd"))]
fn inflate(_: &[u8], _: usize) -> Result<Vec<u8>> {
    Err(Error::new(
        ErrorKind::UnsupportedFeature,
        "part is stored as zstd and this build lacks the `zstd` feature",
    ))
}
