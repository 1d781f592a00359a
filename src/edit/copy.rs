//! Copying a pack tensor by tensor, parts as they are stored, with what is left out or put in their
//! place.

use std::collections::{BTreeMap, HashMap};

use super::stack::PlannedOverlay;
use crate::codec::{Levels, TableSet};
use crate::container::{Container, TensorView};
use crate::error::{Error, Result};
use crate::format::{CHUNK_BYTES, Encoding, MIN_PLANES, PLANE_COUNTS, Part, PartKind, TensorEntry};
use crate::manifest::{Pack, has_residual};
use crate::output::{NewPack, ShardWriter, Unnamed};
use crate::progress::{Progress, step};
use crate::storage::ReadAt;

/// What changes while a pack is copied.
#[derive(Debug, Default)]
pub(crate) struct CopyOptions {
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
pub(crate) fn copy_pack<R: ReadAt>(
    pack: &Pack<R>,
    shards: &[usize],
    new: &mut NewPack,
    manifest: &[u8],
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Pack<Unnamed>> {
    for shard in 0..new.count() {
        let mut writer = new.start()?;
        let mut copy = PackCopy::new(&mut writer, progress, options);
        let own = || pack.tensors().zip(shards).filter(|(_, s)| **s == shard).map(|(view, _)| view);
        for view in own() {
            let entry = copy.tensor(&view);
            let entry = entry.map_err(|e| view.container().locate(e.in_tensor(view.name())))?;
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

/// One file of a pack that is copied.
pub(crate) struct PackCopy<'a> {
    writer: &'a mut ShardWriter,
    progress: &'a dyn Progress,
    options: &'a CopyOptions,
    /// Level tables that the new file has, by content.
    tables: HashMap<TableSet, u16>,
}

impl<'a> PackCopy<'a> {
    pub(crate) fn new(
        writer: &'a mut ShardWriter,
        progress: &'a dyn Progress,
        options: &'a CopyOptions,
    ) -> Self {
        Self { writer, progress, options, tables: HashMap::new() }
    }

    pub(crate) fn writer(&mut self) -> &mut ShardWriter {
        self.writer
    }

    /// Copies the parts of a tensor; nothing for an alias, whose target may not be there yet.
    pub(crate) fn tensor<R: ReadAt>(
        &mut self,
        view: &TensorView<'_, R>,
    ) -> Result<Option<TensorEntry>> {
        let mut entry = view.entry().clone();
        if entry.encoding.alias_target().is_some() {
            return Ok(None);
        }
        if let Encoding::Planes { level_ids, .. } = &mut entry.encoding {
            self.levels(view, level_ids)?;
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

    /// Numbers the level tables of a tensor as the new file does; refitted ones take their place.
    fn levels<R: ReadAt>(
        &mut self,
        view: &TensorView<'_, R>,
        level_ids: &mut [u16; PLANE_COUNTS],
    ) -> Result<()> {
        let old = Levels::resolve(level_ids, &view.container().index().levels)?;
        let natives = match self.options.refitted.is_empty() {
            true => vec![],
            false => view.native_counts()?,
        };
        for (native, id) in (MIN_PLANES..).zip(level_ids.iter_mut()) {
            let set = (native, old.set(native).all().to_vec());
            let new = self.options.refitted.get(&set).filter(|_| natives.contains(&native));
            match new {
                Some(new) => *id = self.share_levels((native, new.clone()))?,
                None if *id != 0 => *id = self.share_levels(set)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Adds those tensors that are aliases.
    pub(crate) fn aliases<'v, R: ReadAt + 'v>(
        &mut self,
        tensors: impl Iterator<Item = TensorView<'v, R>>,
    ) -> Result<()> {
        for view in tensors {
            if let Some(target) = view.entry().encoding.alias_target() {
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
    pub(crate) fn what_goes_first<R: ReadAt>(&mut self, pack: &Pack<R>) -> Result<()> {
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
