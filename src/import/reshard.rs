//! Cutting a pack into other files, or joining them, without touching what is stored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::shards::{NewPack, Placed, ShardWriter, assign, check_shard_size};
use crate::container::{Container, ReadAt, TensorView};
use crate::error::{Error, Result};
use crate::format::{CHUNK_BYTES, Digest, Encoding, LevelsEntry, Part};
use crate::manifest::Pack;
use crate::progress::{NoProgress, Progress, step};

/// How to cut a pack.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ReshardOptions {
    /// Files of at most this many bytes of tensors, unless one tensor is larger. Default: one file.
    pub shard_size: Option<u64>,
    /// Replace existing files. Default false.
    pub force: bool,
}

/// What was written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReshardReport {
    /// The files, with their lengths: the pack, or its shards and their index file.
    pub files: Vec<(PathBuf, u64)>,
    /// Root over the stored bytes.
    pub stored_root: Digest,
    /// Root over the decoded tensors: that of the pack that was read.
    pub decoded_root: Digest,
}

impl ReshardOptions {
    /// One file; never overwrites.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`ReshardOptions::shard_size`].
    #[must_use]
    pub fn with_shard_size(mut self, bytes: Option<u64>) -> Self {
        self.shard_size = bytes;
        self
    }

    /// Sets [`ReshardOptions::force`].
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Writes the pack again as `output`. Stored bytes are copied as they are, each compared with its
    /// checksum. Attachments are copied too; what they say of stored roots speaks of the files that were
    /// read. The files are those that [`PackOptions`](super::PackOptions) with the same
    /// `shard_size` would have made.
    ///
    /// # Errors
    /// `Integrity` where a checksum disagrees, `InvalidArgument` for a single shard, `Io`.
    pub fn reshard<R: ReadAt>(&self, pack: &Pack<R>, output: &Path) -> Result<ReshardReport> {
        self.reshard_with(pack, output, &NoProgress)
    }

    /// As [`ReshardOptions::reshard`], with progress in stored bytes of tensors.
    ///
    /// # Errors
    /// As [`ReshardOptions::reshard`]; `Cancelled`.
    pub fn reshard_with<R: ReadAt>(
        &self,
        pack: &Pack<R>,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<ReshardReport> {
        pack.require_complete()?;
        check_shard_size(self.shard_size)?;
        // Compares the manifest with the indices.
        pack.manifest()?;
        let manifest = pack.containers()[0].manifest_bytes()?;
        let shards = assign(&placed(pack)?, self.shard_size);
        let count = shards.iter().max().map_or(1, |last| last + 1);
        let mut new = NewPack::create(output, self.force, count)?;
        new.refuse_inputs(pack.names())?;
        for shard in 0..count {
            let mut writer = new.start()?;
            let mut copy = Copy { writer: &mut writer, progress, tables: HashMap::new() };
            let tensors = || pack.tensors().zip(&shards).filter(|(_, s)| **s == shard);
            for (view, _) in tensors() {
                copy.tensor(&view).map_err(|e| view.container().place(e.in_tensor(view.name())))?;
            }
            for (view, _) in tensors() {
                if let Encoding::Alias { target } = &view.entry().encoding {
                    writer.add_alias_as(view.name(), target, Some(view.entry().role))?;
                }
            }
            if shard == 0 {
                let tables = HashMap::new();
                Copy { writer: &mut writer, progress, tables }.what_goes_first(pack)?;
            }
            new.end(writer, &manifest)?;
        }
        let written = new.open()?;
        written.manifest()?;
        if written.decoded_root() != pack.decoded_root() {
            return Err(Error::integrity("the new pack has another decoded root"));
        }
        let (stored_root, decoded_root) = (written.stored_root(), written.decoded_root());
        Ok(ReshardReport { files: new.commit(&written)?, stored_root, decoded_root })
    }
}

fn placed<R: ReadAt>(pack: &Pack<R>) -> Result<Vec<Placed>> {
    let names: Vec<&str> = pack.tensors().map(|t| t.name()).collect();
    let place = |view: TensorView<'_, R>| match &view.entry().encoding {
        Encoding::Alias { target } => {
            let target = names.binary_search(&target.as_str());
            let missing = |_| Error::argument("alias of nothing").in_tensor(view.name());
            Ok(Placed::With(target.map_err(missing)?))
        }
        _ => Ok(Placed::Bytes(view.entry().parts.iter().map(|p| p.len).sum())),
    };
    pack.tensors().map(place).collect()
}

struct Copy<'a> {
    writer: &'a mut ShardWriter,
    progress: &'a dyn Progress,
    /// Level tables that the new file has, by content.
    tables: HashMap<(u8, Vec<i8>), u16>,
}

impl Copy<'_> {
    /// Copies a tensor; nothing for an alias, whose target may not be there yet.
    fn tensor<R: ReadAt>(&mut self, view: &TensorView<'_, R>) -> Result<()> {
        let mut entry = view.entry().clone();
        match &mut entry.encoding {
            Encoding::Alias { .. } => return Ok(()),
            Encoding::Raw => {}
            Encoding::Planes { level_ids, .. } => {
                // Tables are numbered file by file.
                for id in level_ids.iter_mut().filter(|id| **id != 0) {
                    let table = &view.container().index().levels[usize::from(*id) - 1];
                    *id = self.share_levels(table)?;
                }
            }
        }
        self.parts(view.container(), &mut entry.parts)?;
        self.writer.list(entry);
        Ok(())
    }

    /// The number of a table like this in the new file.
    fn share_levels(&mut self, table: &LevelsEntry) -> Result<u16> {
        let key = (table.native, table.levels.clone());
        if let Some(id) = self.tables.get(&key) {
            return Ok(*id);
        }
        let id = self.writer.add_levels(table.native, table.levels.clone())?;
        self.tables.insert(key, id);
        Ok(id)
    }

    /// Carried files, optional records that this reader skips, receipts.
    fn what_goes_first<R: ReadAt>(&mut self, pack: &Pack<R>) -> Result<()> {
        let first = &pack.containers()[0];
        for file in pack.files() {
            let mut file = file.clone();
            self.parts(first, &mut file.parts).map_err(|e| e.in_tensor(&file.path))?;
            self.writer.list_file(file);
        }
        for container in pack.containers() {
            for record in &container.index().others {
                let mut record = record.clone();
                self.parts(container, &mut record.parts).map_err(|e| e.in_tensor(&record.name))?;
                self.writer.list_other(record);
            }
            self.writer.add_optional_features(container.preamble().optional_features);
        }
        pack.attachments()?.into_iter().for_each(|a| self.writer.add_attachment(a));
        Ok(())
    }

    fn parts<R: ReadAt>(&mut self, from: &Container<R>, parts: &mut [Part]) -> Result<()> {
        for part in parts {
            let old = part.clone();
            let mut chunk = 0;
            part.offset = self.writer.copy_part(old.stored_len, || {
                let bytes = from.read_stored(&old, chunk)?;
                chunk += 1;
                step(self.progress, CHUNK_BYTES.min(bytes.len() as u64))?;
                Ok(bytes)
            })?;
        }
        Ok(())
    }
}
