//! Writing a container: parts stream out, index and manifest follow, the preamble is patched last.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};

use super::raw::StoredFile;
use super::root_hasher::RootHasher;
use super::tensor::EncodedTensor;
use crate::codec::exact::{ExactModel, exact_model_name};
use crate::container::read::check_index;
use crate::error::{Error, Result};
use crate::format::{
    ALIGN_BYTES, Attachment, Digest, Encoding, ExactModelEntry, Index, LevelsEntry, PREAMBLE_BYTES,
    Part, PartKind, Preamble, Role, TensorEntry, align_up, decoded_root, write_attachments,
    write_index,
};
use crate::memory::to_usize;
use crate::rule::Rule;

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
/// Data is laid out in the order of the calls; the index is sorted at the end. The manifest is
/// given to [`PackWriter::finish`]; [`crate::manifest::Manifest`] makes it.
#[derive(Debug)]
pub struct PackWriter<W> {
    out: W,
    name: Option<String>,
    start: u64,
    /// Where `out` stands, from `start`.
    position: u64,
    /// End of what is laid out so far.
    pub(crate) end: u64,
    hasher: RootHasher,
    pub(crate) index: Index,
    positions: HashMap<String, usize>,
    attachments: Vec<Attachment>,
    shard: (u32, u32),
    optional_features: u64,
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
            name: None,
            start,
            position: 0,
            end: PREAMBLE_BYTES as u64,
            hasher: RootHasher::default(),
            index: Index::default(),
            positions: HashMap::new(),
            attachments: vec![],
            shard: (1, 1),
            optional_features: 0,
        };
        // Its place; its bytes are known last.
        writer.emit(0, &[0; PREAMBLE_BYTES])?;
        Ok(writer)
    }

    /// Makes the file shard `number` of a pack of `count` files. Only the first one holds a
    /// manifest, carried files and attachments.
    #[must_use]
    pub fn with_shard(mut self, number: u32, count: u32) -> Self {
        self.shard = (number, count);
        self
    }

    /// Names the file in errors of writing: what is packed or copied may come from another.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    fn io(&self, e: std::io::Error) -> Error {
        let e = Error::io("can't write", e);
        match &self.name {
            Some(name) => e.in_file(name),
            None => e,
        }
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

    /// Adds an exact model, unless it is there.
    ///
    /// # Errors
    /// `Malformed` for one that a reader would refuse.
    pub fn add_exact_model(&mut self, model: &ExactModel) -> Result<()> {
        let name = exact_model_name(model.name()?);
        let model = ExactModelEntry { name, body: model.to_bytes()? };
        if !self.index.exact_models.contains(&model) {
            self.index.exact_models.push(model);
        }
        Ok(())
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
        self.list(entry);
        Ok(())
    }

    pub(crate) fn list(&mut self, entry: TensorEntry) {
        self.positions.insert(entry.name.clone(), self.index.tensors.len());
        self.index.tensors.push(entry);
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
        let entry = self.positions.get(target).map(|&i| &self.index.tensors[i]);
        let entry =
            entry.ok_or_else(|| Error::argument("no such tensor to alias").in_tensor(target))?;
        let mut alias = EncodedTensor::alias_of(name, entry)?;
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

    /// Sets bits of features that readers may ignore.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn add_optional_features(&mut self, bits: u64) {
        self.optional_features |= bits;
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
        self.index.overlays.sort_by(|a, b| a.name.cmp(&b.name));
        self.index.exact_models.sort_by(|a, b| a.name.cmp(&b.name));
        self.index.heads.sort_by(|a, b| a.path.cmp(&b.path));
        self.index.others.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        let (index, n_records) = write_index(&self.index)?;
        let attachments = write_attachments(&self.attachments)?;

        let mut p = Preamble::new();
        p.set_shard(self.shard.0, self.shard.1);
        p.optional_features = self.optional_features;
        let encodings = || self.index.tensors.iter().map(|t| &t.encoding);
        let coded = encodings().any(|e| matches!(e, Encoding::Coded { .. }));
        let parts = self.index.tensors.iter().flat_map(|t| &t.parts);
        p.set_exact(coded, parts.into_iter().any(|p| p.kind == PartKind::Residual && p.optional));
        let overlays = !self.index.overlays.is_empty();
        p.set_overlays(overlays, overlays && self.index.tensors.is_empty() && self.shard.1 == 1);
        p.n_records = n_records;
        p.decoded_root = decoded_root;
        p.index_crc32 = crc32fast::hash(&index);
        p.manifest_crc32 = crc32fast::hash(manifest);
        (p.index_offset, p.index_len) = (self.append(&index)?, index.len() as u64);
        (p.manifest_offset, p.manifest_len) = (self.append(manifest)?, manifest.len() as u64);
        p.core_len = self.allot(0)?;
        p.file_len = p.core_len + attachments.len() as u64;
        if !attachments.is_empty() {
            p.attachments_crc32 = crc32fast::hash(&attachments);
        }
        // The writer refuses what a reader refuses.
        let parsed = Index::parse(&index, p.index_offset, n_records)?;
        check_index(&parsed, &p)?;

        p.check(p.file_len)?;

        p.stored_root = std::mem::take(&mut self.hasher).finish(&p)?;
        self.emit(p.core_len, &attachments)?;
        self.emit(0, &p.to_bytes())?;
        let end = SeekFrom::Start(self.start + p.file_len);
        self.out.seek(end).and_then(|_| self.out.flush()).map_err(|e| self.io(e))?;
        let summary =
            WriteSummary { file_len: p.file_len, stored_root: p.stored_root, decoded_root };
        Ok((summary, self.out))
    }

    fn put_parts(&mut self, parts: &mut [Part], payload: &[Vec<u8>]) -> Result<()> {
        for (part, bytes) in parts.iter_mut().zip(payload) {
            part.offset = self.append(bytes)?;
        }
        Ok(())
    }

    /// Writes bytes behind everything that is laid out; returns where they are.
    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let offset = self.allot(bytes.len() as u64)?;
        self.write(offset, bytes)?;
        Ok(offset)
    }

    /// Lays out `len` bytes at the next multiple of 64; returns where.
    pub(crate) fn allot(&mut self, len: u64) -> Result<u64> {
        let too_long = || Error::malformed(Rule::PRT_3, "file is too long");
        let offset = align_up(self.end, ALIGN_BYTES).ok_or_else(too_long)?;
        let padding = [0; 64];
        self.write(self.end, &padding[..to_usize(offset - self.end)?])?;
        self.end = offset.checked_add(len).ok_or_else(too_long)?;
        Ok(offset)
    }

    /// Writes bytes of the core and hashes them.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.emit(at, bytes)?;
        self.hasher.update(at, bytes);
        Ok(())
    }

    /// Hashes bytes of the core that are written already.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn take_over(&mut self, at: u64, bytes: &[u8]) {
        self.hasher.update(at, bytes);
    }

    /// Passes what is written on to where it is kept.
    ///
    /// # Errors
    /// `Io`.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| self.io(e))
    }

    /// Where the next part goes, unless it is aligned further.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The tensor and the carried file that were listed last.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn last_listed(&self) -> (Option<&TensorEntry>, Option<&crate::format::FileEntry>) {
        (self.index.tensors.last(), self.index.files.last())
    }

    /// Writes bytes that the stored root doesn't cover, or not yet.
    fn emit(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.position != at {
            let to = SeekFrom::Start(self.start + at);
            self.out.seek(to).map_err(|e| self.io(e).at(at))?;
        }
        self.out.write_all(bytes).map_err(|e| self.io(e).at(at))?;
        self.position = at + bytes.len() as u64;
        Ok(())
    }
}
