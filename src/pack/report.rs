//! The report of a complete pack.

use std::path::{Path, PathBuf};

use super::plan::Plan;
use super::work::Allocated;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::manifest::{FileRole, Pack, PackStats};
use crate::source::Source;
use crate::storage::ReadAt;

/// What was packed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PackReport {
    /// The files that were written, with their lengths: the pack, or its shards and their index
    /// file.
    pub files: Vec<(PathBuf, u64)>,
    /// Root over the stored bytes.
    pub stored_root: Digest,
    /// Root over the decoded tensors.
    pub decoded_root: Digest,
    /// Counts and rates.
    pub stats: PackStats,
    /// What became of every tensor.
    pub plan: Plan,
    /// Files of the source folder that are not in the pack.
    pub left_out: Vec<String>,
    /// Tensors that were kept raw because they hold NaN, infinities or values beyond binary32.
    pub odd: Vec<String>,
    /// Tensors and carried files that an interrupted run had written.
    pub resumed: usize,
    /// Tensors that were copied from an older pack.
    pub reused: usize,
}

impl PackReport {
    pub(super) fn of<R: ReadAt>(
        source: &Source,
        allocated: &Allocated<'_>,
        written: &Pack<R>,
        files: Vec<(PathBuf, u64)>,
    ) -> Self {
        let Allocated { plan, scans, .. } = allocated;
        let odd = plan.tensors.iter().zip(&scans.tensors).filter(|(_, s)| s.odd.is_some());
        Self {
            files,
            stored_root: written.stored_root(),
            decoded_root: written.decoded_root(),
            stats: PackStats::of(written),
            odd: odd.map(|(t, _)| t.name.clone()).collect(),
            plan: plan.clone(),
            left_out: source.left_out().into_iter().map(str::to_owned).collect(),
            resumed: 0,
            reused: 0,
        }
    }
}

/// Files with their lengths.
///
/// # Errors
/// `Io`.
pub(super) fn lengths(paths: Vec<PathBuf>) -> Result<Vec<(PathBuf, u64)>> {
    let io = |e, path: &Path| Error::io("can't read", e).in_file(path.display().to_string());
    let len = |path: PathBuf| match path.metadata() {
        Ok(meta) => Ok((path, meta.len())),
        Err(e) => Err(io(e, &path)),
    };
    paths.into_iter().map(len).collect()
}

/// Tensors and carried files of a source.
pub(super) fn items(source: &Source) -> usize {
    let carried = source.files.iter().filter(|f| f.role == FileRole::Carried);
    source.tensors().len() + carried.count()
}
