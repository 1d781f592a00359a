//! Cutting a pack into other files, or joining them, without touching what is stored.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::ladder::TableSet;
use super::overlay::PlannedOverlay;
use super::shards::{NewPack, Placed, ShardWriter, Unnamed, assign, check_shard_size};
use crate::codec::Levels;
use crate::container::{Container, ReadAt, TensorView};
use crate::error::{Error, Result};
use crate::format::{CHUNK_BYTES, Digest, Encoding, Part, PartKind, TensorEntry};
use crate::manifest::{Pack, has_residual};
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
    /// `shard_size` would have made; with an exact rung, whose size is only estimated while packing, the cuts may differ.
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
        let written =
            copy_pack(pack, &shards, &mut new, &manifest, &CopyOptions::default(), progress)?;
        let (stored_root, decoded_root) = (written.stored_root(), written.decoded_root());
        Ok(ReshardReport { files: new.commit(&written)?, stored_root, decoded_root })
    }
}

/// What changes while a pack is copied.
#[derive(Debug, Default)]
pub(super) struct CopyOptions {
    /// Leave residuals, models and heads out.
    pub without_exact: bool,
    /// Level tables that take the place of others; the table for all planes is the same.
    pub refitted: BTreeMap<TableSet, Vec<i8>>,
    /// Overlays in place of those that the pack has.
    pub overlays: Option<Vec<PlannedOverlay>>,
}

/// Writes a pack again, each tensor in its shard of `shards`.
///
/// # Errors
/// `Integrity` where a checksum disagrees, or when the copy would have another decoded root; `Io`.
pub(super) fn copy_pack<R: ReadAt>(
    pack: &Pack<R>,
    shards: &[usize],
    new: &mut NewPack,
    manifest: &[u8],
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Pack<Unnamed>> {
    for shard in 0..new.count() {
        let mut writer = new.start()?;
        let mut copy = Copy::new(&mut writer, progress, options);
        let own = || pack.tensors().zip(shards).filter(|(_, s)| **s == shard).map(|(view, _)| view);
        for view in own() {
            let entry = copy.tensor(&view);
            let entry = entry.map_err(|e| view.container().place(e.in_tensor(view.name())))?;
            if let Some(entry) = entry {
                copy.writer.list(entry);
            }
        }
        copy.aliases(own())?;
        if shard == 0 {
            copy.what_goes_first(pack)?;
        }
        new.end(writer, manifest)?;
    }
    let written = new.open()?;
    written.manifest()?;
    if written.decoded_root() != pack.decoded_root() {
        return Err(Error::integrity("the new pack has another decoded root"));
    }
    Ok(written)
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

pub(super) struct Copy<'a> {
    writer: &'a mut ShardWriter,
    progress: &'a dyn Progress,
    options: &'a CopyOptions,
    /// Level tables that the new file has, by content.
    tables: HashMap<TableSet, u16>,
}

impl<'a> Copy<'a> {
    pub(super) fn new(
        writer: &'a mut ShardWriter,
        progress: &'a dyn Progress,
        options: &'a CopyOptions,
    ) -> Self {
        Self { writer, progress, options, tables: HashMap::new() }
    }

    pub(super) fn writer(&mut self) -> &mut ShardWriter {
        self.writer
    }

    /// Copies the parts of a tensor; nothing for an alias, whose target may not be there yet.
    pub(super) fn tensor<R: ReadAt>(
        &mut self,
        view: &TensorView<'_, R>,
    ) -> Result<Option<TensorEntry>> {
        let mut entry = view.entry().clone();
        match &mut entry.encoding {
            Encoding::Alias { .. } => return Ok(None),
            Encoding::Raw | Encoding::Coded { .. } => {}
            Encoding::Planes { level_ids, .. } => {
                let old = Levels::resolve(level_ids, &view.container().index().levels)?;
                let natives = match self.options.refitted.is_empty() {
                    true => vec![],
                    false => view.native_counts()?,
                };
                for (native, id) in (3u8..).zip(level_ids.iter_mut()) {
                    let set = (native, old.set(native).all().to_vec());
                    let new = self.options.refitted.get(&set).filter(|_| natives.contains(&native));
                    // Tables are numbered file by file.
                    match new {
                        Some(new) => *id = self.share_levels((native, new.clone()))?,
                        None if *id != 0 => *id = self.share_levels(set)?,
                        None => {}
                    }
                }
            }
        }
        if self.options.without_exact {
            entry.parts.retain(|p| p.kind != PartKind::Residual);
        } else if has_residual(view) {
            for model in &view.container().index().exact_models {
                self.writer.copy_exact_model(model);
            }
        }
        self.parts(view.container(), &mut entry.parts)?;
        Ok(Some(entry))
    }

    /// Adds those tensors that are aliases.
    pub(super) fn aliases<'v, R: ReadAt + 'v>(
        &mut self,
        tensors: impl Iterator<Item = TensorView<'v, R>>,
    ) -> Result<()> {
        for view in tensors {
            if let Encoding::Alias { target } = &view.entry().encoding {
                self.writer.add_alias_as(view.name(), target, Some(view.entry().role))?;
            }
        }
        Ok(())
    }

    /// Copies the heads of the source's weights files.
    fn heads<R: ReadAt>(&mut self, pack: &Pack<R>) -> Result<()> {
        let first = &pack.containers()[0];
        for head in &first.index().heads {
            let mut head = head.clone();
            self.parts(first, &mut head.parts).map_err(|e| e.in_tensor(&head.path))?;
            self.writer.list_head(head);
        }
        Ok(())
    }

    /// The number of tables like these in the new file.
    fn share_levels(&mut self, set: TableSet) -> Result<u16> {
        if let Some(id) = self.tables.get(&set) {
            return Ok(*id);
        }
        let id = self.writer.add_levels(set.0, set.1.clone())?;
        self.tables.insert(set, id);
        Ok(id)
    }

    /// Carried files, optional records that this reader skips, receipts.
    pub(super) fn what_goes_first<R: ReadAt>(&mut self, pack: &Pack<R>) -> Result<()> {
        let first = &pack.containers()[0];
        for file in pack.files() {
            let mut file = file.clone();
            self.parts(first, &mut file.parts).map_err(|e| e.in_tensor(&file.path))?;
            self.writer.list_file(file);
        }
        match &self.options.overlays {
            Some(overlays) => {
                for overlay in overlays {
                    overlay.write(pack, self.writer, self.progress)?;
                }
            }
            None => {
                for overlay in pack.overlays() {
                    let mut overlay = overlay.clone();
                    let name = overlay.name.clone();
                    self.parts(first, &mut overlay.parts).map_err(|e| e.in_tensor(&name))?;
                    self.writer.list_overlay(overlay);
                }
            }
        }
        if !self.options.without_exact {
            self.heads(pack)?;
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
