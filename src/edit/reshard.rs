//! Cutting a pack into other files, or joining them, without touching what is stored.

use std::path::{Path, PathBuf};

use super::copy::{CopyOptions, copy_pack};
use crate::container::TensorView;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::manifest::Pack;
use crate::output::{NewPack, Placed, assign, check_shard_size};
use crate::progress::{NoProgress, Progress};
use crate::setters::setters;
use crate::storage::ReadAt;

/// How to cut a pack.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ReshardOptions {
    /// Files of at most this many bytes of tensors, unless one tensor is larger. Default: one
    /// file.
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

    setters! {
        with_shard_size: shard_size = Option<u64>,
        with_force: force = bool,
    }

    /// Writes the pack again as `output`. Stored bytes are copied as they are, each compared with
    /// its checksum. Attachments are copied too; what they say of stored roots speaks of the
    /// files that were read. The files are those that [`PackOptions`](crate::pack::PackOptions)
    /// with the same `shard_size` would have made; with an exact rung, whose size is only
    /// estimated while packing, the cuts may differ.
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

fn placed<R: ReadAt>(pack: &Pack<R>) -> Result<Vec<Placed>> {
    let names: Vec<&str> = pack.tensors().map(|t| t.name()).collect();
    let placed = |view: TensorView<'_, R>| match view.entry().encoding.alias_target() {
        Some(target) => {
            let target = names.binary_search(&target);
            let missing = |_| Error::argument("alias of nothing").in_tensor(view.name());
            Ok(Placed::With(target.map_err(missing)?))
        }
        None => Ok(Placed::Bytes(view.entry().parts.iter().map(|p| p.len).sum())),
    };
    pack.tensors().map(placed).collect()
}
