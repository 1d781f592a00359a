//! Writing a container: parts stream out, index and manifest follow, the preamble is patched last.

use std::io::{Seek, SeekFrom, Write};

use super::check::check_index;
use super::encode::{EncodedTensor, StoredFile};
use crate::error::{Error, Result};
use crate::format::{
    ALIGN_BYTES, Attachment, CHUNK_BYTES, Digest, Index, LevelsEntry, PREAMBLE_BYTES, Part,
    Preamble, Role, TreeHasher, align_up, decoded_root, to_usize, write_attachments, write_index,
};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteSummary {
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Root over the stored bytes.
    pub stored_root: Digest,
    /// Root over the decoded tensors.
    pub decoded_root: Digest,
}

/// Writes one container to anything that can write and seek.
///
/// Data is laid out in the order of the calls; the index is sorted at the end. The manifest is given
/// to [`PackWriter::finish`]; [`crate::manifest::Manifest`] makes it.
#[derive(Debug)]
pub struct PackWriter<W> {
    out: W,
    start: u64,
    at: u64,
    hasher: ChunkHasher,
    index: Index,
    attachments: Vec<Attachment>,
}

impl<W: Write + Seek> PackWriter<W> {
    /// Starts a container at the current position of `out`.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(mut out: W) -> Result<Self> {
        let start = out.stream_position().map_err(|e| Error::io("can't write", e))?;
        let mut writer = Self {
            out,
            start,
            at: 0,
            hasher: ChunkHasher::default(),
            index: Index::default(),
            attachments: vec![],
        };
        writer.put(&[0; PREAMBLE_BYTES])?;
        Ok(writer)
    }

    /// Adds a set of level tables (2^native, ..., 8 levels) and returns its number, which tensor
    /// records use. Tables must be added before tensors that use them.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 65,535 tables.
    pub fn add_levels(&mut self, native: u8, levels: Vec<i8>) -> Result<u16> {
        let id = u16::try_from(self.index.levels.len() + 1)
            .map_err(|_| Error::argument("more than 65,535 level tables"))?;
        // The name only has to sort in the order of the numbers.
        self.index.levels.push(LevelsEntry { name: format!("levels-{id:05}"), native, levels });
        Ok(id)
    }

    /// The level tables added so far.
    pub fn levels(&self) -> &[LevelsEntry] {
        &self.index.levels
    }

    /// The tensors added so far.
    pub fn tensors(&self) -> &[crate::format::TensorEntry] {
        &self.index.tensors
    }

    /// Appends a tensor.
    ///
    /// # Errors
    /// `Io`; `Malformed` when the file grows beyond 2^64 bytes.
    pub fn add_tensor(&mut self, tensor: EncodedTensor) -> Result<()> {
        let mut entry = tensor.entry;
        self.put_parts(&mut entry.parts, &tensor.payload).map_err(|e| e.in_tensor(&entry.name))?;
        self.index.tensors.push(entry);
        Ok(())
    }

    /// Gives the tensor `target`, which was added before, a second name.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such tensor; `Malformed` for a bad name.
    pub fn add_alias(&mut self, name: &str, target: &str) -> Result<()> {
        self.add_alias_as(name, target, None)
    }

    /// As [`PackWriter::add_alias`], for another purpose than the target's.
    pub(crate) fn add_alias_as(
        &mut self,
        name: &str,
        target: &str,
        role: Option<Role>,
    ) -> Result<()> {
        let entry = self.index.tensors.iter().find(|t| t.name == target);
        let entry =
            entry.ok_or_else(|| Error::argument("no such tensor to alias").in_tensor(target))?;
        let target = EncodedTensor { entry: entry.clone(), payload: vec![] };
        let mut alias = EncodedTensor::alias(name, &target)?;
        alias.entry.role = role.unwrap_or(alias.entry.role);
        self.add_tensor(alias)
    }

    /// Appends a carried file.
    ///
    /// # Errors
    /// As [`PackWriter::add_tensor`].
    pub fn add_file(&mut self, file: StoredFile) -> Result<()> {
        let mut entry = file.entry;
        self.put_parts(&mut entry.parts, &file.payload).map_err(|e| e.in_tensor(&entry.path))?;
        self.index.files.push(entry);
        Ok(())
    }

    /// Adds a receipt or signature, which is written behind the core.
    pub fn add_attachment(&mut self, attachment: Attachment) {
        self.attachments.push(attachment);
    }

    /// The decoded root of the tensors added so far.
    pub fn decoded_root(&self) -> Digest {
        let mut tensors: Vec<_> = self.index.tensors.iter().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        decoded_root(tensors)
    }

    /// Writes index, manifest, attachments and, last, the preamble.
    ///
    /// `manifest` is canonical JSON.
    ///
    /// # Errors
    /// `Malformed` where a reader would refuse the records (the same rules are checked), `Io`.
    pub fn finish(mut self, manifest: &[u8]) -> Result<(WriteSummary, W)> {
        let decoded_root = self.decoded_root();
        self.index.levels.sort_by(|a, b| a.name.cmp(&b.name));
        self.index.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        self.index.files.sort_by(|a, b| a.path.cmp(&b.path));
        let (index, n_records) = write_index(&self.index)?;
        let attachments = write_attachments(&self.attachments)?;

        let mut p = Preamble::new();
        p.n_records = n_records;
        p.decoded_root = decoded_root;
        p.index_crc32 = crc32fast::hash(&index);
        p.manifest_crc32 = crc32fast::hash(manifest);
        self.pad()?;
        (p.index_offset, p.index_len) = (self.at, index.len() as u64);
        self.put(&index)?;
        self.pad()?;
        (p.manifest_offset, p.manifest_len) = (self.at, manifest.len() as u64);
        self.put(manifest)?;
        self.pad()?;
        p.core_len = self.at;
        p.file_len = p.core_len + attachments.len() as u64;
        if !attachments.is_empty() {
            p.attachments_crc32 = crc32fast::hash(&attachments);
        }
        // The writer refuses what a reader refuses.
        let parsed = Index::parse(&index, p.index_offset, n_records)?;
        check_index(&parsed, &p)?;

        p.stored_root = std::mem::take(&mut self.hasher).finish(&p)?;
        let io = |e| Error::io("can't write", e);
        self.out.write_all(&attachments).map_err(io)?;
        self.out.seek(SeekFrom::Start(self.start)).map_err(io)?;
        self.out.write_all(&p.to_bytes()).map_err(io)?;
        self.out.seek(SeekFrom::Start(self.start + p.file_len)).map_err(io)?;
        self.out.flush().map_err(io)?;
        let summary =
            WriteSummary { file_len: p.file_len, stored_root: p.stored_root, decoded_root };
        Ok((summary, self.out))
    }

    fn put_parts(&mut self, parts: &mut [Part], payload: &[Vec<u8>]) -> Result<()> {
        for (part, bytes) in parts.iter_mut().zip(payload) {
            self.pad()?;
            part.offset = self.at;
            self.put(bytes)?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("can't write", e).at(self.at))?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> Result<()> {
        let to = align_up(self.at, ALIGN_BYTES).unwrap_or(self.at);
        self.put(&vec![0; to_usize(to - self.at)?])
    }
}

/// Leaves of the stored root, hashed while the core streams out. The first chunk is kept until the
/// preamble in it is known.
#[derive(Debug, Default)]
struct ChunkHasher {
    first: Option<Vec<u8>>,
    rest: Vec<Digest>,
    buffer: Vec<u8>,
}

impl ChunkHasher {
    fn update(&mut self, mut bytes: &[u8]) {
        let chunk = usize::try_from(CHUNK_BYTES).expect("1 MiB");
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(chunk - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == chunk {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if self.first.is_none() {
            self.first = Some(std::mem::take(&mut self.buffer));
        } else {
            self.rest.push(TreeHasher::leaf(&self.buffer));
            self.buffer.clear();
        }
    }

    fn finish(mut self, preamble: &Preamble) -> Result<Digest> {
        if !self.buffer.is_empty() {
            self.flush();
        }
        let mut first = self.first.unwrap_or_default();
        let head = preamble.rooted_bytes();
        first
            .get_mut(..head.len())
            .ok_or_else(|| Error::argument("nothing was written"))?
            .copy_from_slice(&head);
        let mut tree = TreeHasher::new();
        tree.push(TreeHasher::leaf(&first));
        self.rest.iter().for_each(|&leaf| tree.push(leaf));
        Ok(tree.root())
    }
}
