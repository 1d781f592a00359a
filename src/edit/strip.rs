//! A pack without what its values don't need.

use std::path::{Path, PathBuf};

use super::copy::{CopyOptions, copy_pack};
use crate::error::{Error, Result};
use crate::format::{Digest, Encoding};
use crate::manifest::{Pack, has_residual};
use crate::output::NewPack;
use crate::progress::{NoProgress, Progress};
use crate::setters::setters;
use crate::storage::ReadAt;

/// How to strip a pack of its exact rung: residuals, their models, and the heads of the source's
/// files.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StripOptions {
    /// Replace existing files. Default false.
    pub force: bool,
}

/// What was written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StripReport {
    /// The files, with their lengths.
    pub files: Vec<(PathBuf, u64)>,
    /// Tensors that had a residual.
    pub residuals: u64,
    /// Root over the stored bytes.
    pub stored_root: Digest,
    /// Root over the decoded tensors: that of the pack that was read.
    pub decoded_root: Digest,
}

impl StripOptions {
    /// Never overwrites.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_force: force = bool,
    }

    /// Writes the pack again as `output`, without its exact rung, with as many files. Attachments
    /// are copied; what they say of stored roots speaks of the pack that was read.
    ///
    /// # Errors
    /// `InvalidArgument` when there is nothing to strip, or tensors are coded without planes;
    /// `Integrity` where a checksum disagrees; `Io`.
    pub fn strip<R: ReadAt>(&self, pack: &Pack<R>, output: &Path) -> Result<StripReport> {
        self.strip_with(pack, output, &NoProgress)
    }

    /// As [`StripOptions::strip`], with progress in stored bytes of tensors.
    ///
    /// # Errors
    /// As [`StripOptions::strip`]; `Cancelled`.
    pub fn strip_with<R: ReadAt>(
        &self,
        pack: &Pack<R>,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<StripReport> {
        pack.require_complete()?;
        let coded = pack.tensors().find(|t| matches!(t.entry().encoding, Encoding::Coded { .. }));
        if let Some(t) = coded {
            let text = "is coded without planes: there would be nothing left of it";
            return Err(Error::argument(text).in_tensor(t.name()));
        }
        let residuals = pack.tensors().filter(has_residual).count() as u64;
        if residuals == 0 {
            return Err(Error::argument("has no exact rung to strip"));
        }
        pack.manifest()?;
        let manifest = pack.containers()[0].manifest_bytes()?;
        let mut new = NewPack::create(output, self.force, pack.containers().len())?;
        new.refuse_inputs(pack.names())?;
        let shards: Vec<usize> = pack.shards_of_tensors().collect();
        let options = CopyOptions { without_exact: true, ..CopyOptions::default() };
        let written = copy_pack(pack, &shards, &mut new, &manifest, &options, progress)?;
        let (stored_root, decoded_root) = (written.stored_root(), written.decoded_root());
        Ok(StripReport { files: new.commit(&written)?, residuals, stored_root, decoded_root })
    }
}
