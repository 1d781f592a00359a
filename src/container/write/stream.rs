//! Writing tensors and files piece by piece, so that none has to fit in memory.

use std::io::{Seek, Write};

use super::writer::PackWriter;
#[cfg(feature = "checkpoints")]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
#[cfg(feature = "checkpoints")]
use crate::format::{ALIGN_BYTES, align_up};
use crate::format::{
    CHUNK_BYTES, Chunk, Digest, ExactModelEntry, FileEntry, OtherEntry, OverlayEntry, Part,
    PartKind, TensorEntry,
};
#[cfg(feature = "checkpoints")]
use crate::memory::to_usize;
#[cfg(feature = "checkpoints")]
use crate::storage::ReadAt;

/// A `planes` tensor whose rows arrive piece by piece.
#[derive(Debug)]
pub(crate) struct OpenPlanes {
    entry: TensorEntry,
    parts: Vec<OpenPart>,
}

/// How far a part is written.
#[derive(Debug, Default)]
struct OpenPart {
    written: u64,
    crc: crc32fast::Hasher,
}

/// A data part whose chunks arrive one by one.
#[derive(Debug)]
pub(crate) struct OpenData {
    part: Part,
}

impl<W: Write + Seek> PackWriter<W> {
    /// Starts a `planes` tensor with parts of known length, whose rows will be given in storage
    /// order.
    ///
    /// # Errors
    /// `Io`; `Malformed` when the file grows beyond 2^64 bytes.
    pub(crate) fn begin_planes(&mut self, mut entry: TensorEntry) -> Result<OpenPlanes> {
        for part in &mut entry.parts {
            part.offset = self.allot(part.len).map_err(|e| e.in_tensor(&entry.name))?;
        }
        let parts = entry.parts.iter().map(|_| OpenPart::default()).collect();
        Ok(OpenPlanes { entry, parts })
    }

    /// Writes the next rows of a tensor: for each part the bytes that follow.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn put_rows(&mut self, tensor: &mut OpenPlanes, pieces: &[Vec<u8>]) -> Result<()> {
        debug_assert_eq!(pieces.len(), tensor.parts.len());
        for ((part, open), bytes) in
            tensor.entry.parts.iter_mut().zip(&mut tensor.parts).zip(pieces)
        {
            self.write(part.offset + open.written, bytes)
                .map_err(|e| e.in_tensor(&tensor.entry.name))?;
            open.checksum(part, bytes);
        }
        Ok(())
    }

    /// Ends a tensor whose rows are all written.
    ///
    /// # Errors
    /// `InvalidArgument` when rows are missing.
    pub(crate) fn end_planes(&mut self, tensor: OpenPlanes, decoded_sha256: Digest) -> Result<()> {
        let mut entry = tensor.entry;
        if entry.parts.iter().zip(&tensor.parts).any(|(p, open)| p.len != open.written) {
            return Err(Error::argument("rows are missing").in_tensor(&entry.name));
        }
        entry.decoded_sha256 = decoded_sha256;
        self.list(entry);
        Ok(())
    }

    /// Starts the data part of a raw tensor or a carried file.
    ///
    /// # Errors
    /// `Io`; `Malformed` when the file grows beyond 2^64 bytes.
    pub(crate) fn begin_data(&mut self) -> Result<OpenData> {
        Ok(OpenData { part: Part::empty(PartKind::Data, self.allot(0)?) })
    }

    /// Starts a residual behind the parts that a tensor has, `optional` when it has planes.
    ///
    /// # Errors
    /// `Io`; `Malformed` when the file grows beyond 2^64 bytes.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn begin_residual(&mut self, optional: bool) -> Result<OpenData> {
        let part = Part { optional, ..Part::empty(PartKind::Residual, self.allot(0)?) };
        Ok(OpenData { part })
    }

    /// Lists a tensor with the part that was written last behind its others.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn end_residual(&mut self, mut entry: TensorEntry, data: OpenData) {
        entry.parts.push(data.part);
        self.list(entry);
    }

    /// Adds an exact model of another file, unless it is there.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn copy_exact_model(&mut self, model: &ExactModelEntry) {
        if !self.index.exact_models.contains(model) {
            self.index.exact_models.push(model.clone());
        }
    }

    /// Lists an overlay whose part is written.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn list_overlay(&mut self, entry: OverlayEntry) {
        self.index.overlays.push(entry);
    }

    /// Ends an overlay whose factors are written.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn end_overlay(&mut self, mut entry: OverlayEntry, data: OpenData) {
        entry.parts = vec![data.part];
        self.list_overlay(entry);
    }

    /// Lists the head of a weights file that is written.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn list_head(&mut self, entry: FileEntry) {
        self.index.heads.push(entry);
    }

    /// Ends the head of a weights file of the source.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn end_head(&mut self, mut entry: FileEntry, data: OpenData) {
        entry.parts.extend((data.part.len > 0).then_some(data.part));
        self.index.heads.push(entry);
    }

    /// Writes the next chunk: `len` bytes of content, as they are or as a shorter frame.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn put_chunk(
        &mut self,
        data: &mut OpenData,
        len: usize,
        stored: &[u8],
    ) -> Result<()> {
        let part = &mut data.part;
        self.write(part.offset + part.stored_len, stored)?;
        self.end += stored.len() as u64;
        part.push_chunk(len, stored);
        Ok(())
    }

    /// Ends a raw tensor.
    pub(crate) fn end_raw(&mut self, mut entry: TensorEntry, data: OpenData) {
        entry.parts.extend((data.part.len > 0).then_some(data.part));
        self.list(entry);
    }

    /// Writes `len` bytes of a part as they are stored elsewhere: `next` gives them piece by piece.
    /// Returns where they are.
    ///
    /// # Errors
    /// `Io`, and whatever `next` returns.
    pub(crate) fn copy_part(
        &mut self,
        len: u64,
        mut next: impl FnMut() -> Result<Vec<u8>>,
    ) -> Result<u64> {
        let offset = self.allot(len)?;
        let mut at = offset;
        while at < offset + len {
            let bytes = next()?;
            self.write(at, &bytes)?;
            at += bytes.len() as u64;
        }
        Ok(offset)
    }

    /// Takes over parts that an interrupted run wrote to the same place: `there` has its bytes.
    /// Says no, and leaves the writer as it is, when they aren't what the run recorded.
    ///
    /// # Errors
    /// `Io`.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn restore(&mut self, parts: &[Part], there: &impl ReadAt) -> Result<bool> {
        let mut end = self.end;
        for part in parts {
            if Some(part.offset) != align_up(end, ALIGN_BYTES) {
                return Ok(false);
            }
            for chunk in &part.chunks {
                let mut bytes = vec![0; chunk.stored_len as usize];
                match there.read_exact_at(part.offset + chunk.start, &mut bytes) {
                    Ok(()) if crc32fast::hash(&bytes) == chunk.crc32 => {}
                    Err(e) if *e.kind() == ErrorKind::Io => return Err(e),
                    _ => return Ok(false),
                }
            }
            end = part.offset + part.stored_len;
        }
        for part in parts {
            self.copy_there(part, there)?;
        }
        Ok(true)
    }

    /// Hashes a part that is there, with the padding in front of it, which may not have been
    /// written yet.
    #[cfg(feature = "checkpoints")]
    fn copy_there(&mut self, part: &Part, there: &impl ReadAt) -> Result<()> {
        self.allot(0)?;
        self.end += part.stored_len;
        let mut at = part.offset;
        while at < self.end {
            let mut bytes = vec![0; to_usize((self.end - at).min(CHUNK_BYTES))?];
            there.read_exact_at(at, &mut bytes)?;
            self.take_over(at, &bytes);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Lists a carried file that is written.
    pub(crate) fn list_file(&mut self, entry: FileEntry) {
        self.index.files.push(entry);
    }

    /// Lists a record of a kind that this writer doesn't know.
    pub(crate) fn list_other(&mut self, entry: OtherEntry) {
        self.index.others.push(entry);
    }

    /// Ends a carried file.
    pub(crate) fn end_file(&mut self, mut entry: FileEntry, data: OpenData) {
        entry.parts.extend((data.part.len > 0).then_some(data.part));
        self.list_file(entry);
    }
}

impl OpenPart {
    /// Closes a chunk of `part` each 1 MiB and at its end.
    fn checksum(&mut self, part: &mut Part, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let chunk_end = part.len.min((part.chunks.len() as u64 + 1) * CHUNK_BYTES);
            let left = usize::try_from(chunk_end - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(left));
            self.crc.update(now);
            self.written += now.len() as u64;
            if self.written == chunk_end {
                let start = part.chunks.len() as u64 * CHUNK_BYTES;
                part.chunks.push(Chunk {
                    crc32: std::mem::take(&mut self.crc).finalize(),
                    stored_len: u32::try_from(chunk_end - start).expect("at most 1 MiB"),
                    start,
                });
            }
            bytes = later;
        }
    }
}
