//! Options for adding the exact rung to a pack that is there, and the report of it.

use std::path::{Path, PathBuf};

use super::adder::Adder;
use crate::error::{Error, Result};
use crate::format::{Digest, Dtype};
use crate::manifest::{FileRole, Manifest, Pack};
use crate::memory::{self, DEFAULT_MAX_RAM};
use crate::output::NewPack;
use crate::par;
use crate::progress::{NoProgress, Progress};
use crate::setters::setters;
use crate::source::Source;
use crate::source::{Scan, scan};
use crate::storage::ReadAt;

/// How to add the exact rung to a pack.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExactOptions {
    /// Replace existing files. Default false.
    pub force: bool,
    /// Bytes of memory to stay within; at least [`MIN_MAX_RAM`](crate::MIN_MAX_RAM). Default
    /// [`DEFAULT_MAX_RAM`](crate::DEFAULT_MAX_RAM).
    pub max_ram: u64,
}

impl Default for ExactOptions {
    fn default() -> Self {
        Self { force: false, max_ram: DEFAULT_MAX_RAM }
    }
}

/// What was added.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExactReport {
    /// The files, with their lengths.
    pub files: Vec<(PathBuf, u64)>,
    /// Tensors with planes that have a residual.
    pub residuals: u64,
    /// Tensors that are coded without a base.
    pub coded: u64,
    /// Bytes of residuals and coded tensors.
    pub bytes: u64,
    /// Root over the stored bytes.
    pub stored_root: Digest,
    /// Root over the decoded tensors: that of the pack that was read.
    pub decoded_root: Digest,
}

impl ExactOptions {
    /// Never overwrites.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_force: force = bool,
        with_max_ram: max_ram = u64,
    }

    /// Writes `pack` again as `output`, with residuals that lead to the exact bits of `source`,
    /// which must be the checkpoint that it was made from.
    ///
    /// # Errors
    /// `Integrity` when it was made from another source; `InvalidArgument` when it has residuals
    /// already; `Io`.
    pub fn add<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        source: &Source,
        output: &Path,
    ) -> Result<ExactReport> {
        self.add_with(pack, source, output, &NoProgress)
    }

    /// As [`ExactOptions::add`], with progress in bytes of source tensors: hashed, encoded, decoded
    /// again.
    ///
    /// # Errors
    /// As [`ExactOptions::add`]; `Cancelled`.
    pub fn add_with<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        source: &Source,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<ExactReport> {
        pack.require_complete()?;
        source.refuse_as_output(output)?;
        let manifest = pack.manifest()?;
        let mut new = NewPack::create(output, self.force, pack.containers().len())?;
        new.refuse_inputs(pack.names())?;
        check_source(pack, &manifest, source, self.max_ram, progress)?;
        let shards: Vec<usize> = pack.shards_of_tensors().collect();
        let adder = Adder::new(pack, source, &manifest, false, self.max_ram, output, progress)?;
        // As it is: it may have members that this version doesn't know.
        let bytes = pack.containers()[0].manifest_bytes()?;
        let added = adder.write(&shards, &mut new, &bytes)?;
        let written = new.open()?;
        let (stored_root, decoded_root) = (written.stored_root(), written.decoded_root());
        let files = new.commit(&written)?;
        Ok(ExactReport {
            files,
            residuals: added.residuals,
            coded: added.coded,
            bytes: added.bytes,
            stored_root,
            decoded_root,
        })
    }
}

impl ExactOptions {
    /// Seconds that fitting models to a pack and coding its tensors by them takes, and the bytes
    /// that come out: for benchmarks.
    ///
    /// # Errors
    /// As [`ExactOptions::add`].
    #[doc(hidden)]
    pub fn time<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        source: &Source,
    ) -> Result<(f64, f64, u64)> {
        let manifest = pack.manifest()?;
        let output = std::env::temp_dir().join("unused");
        let start = std::time::Instant::now();
        let adder = Adder::new(pack, source, &manifest, false, self.max_ram, &output, &NoProgress)?;
        let fitted = start.elapsed();
        let mut bytes = 0;
        for (view, task) in adder.todo() {
            bytes += adder.encode(view, task)?.len();
        }
        Ok((fitted.as_secs_f64(), (start.elapsed() - fitted).as_secs_f64(), bytes))
    }
}

/// Compares the source with what the manifest says of it, bit for bit.
fn check_source<R: ReadAt>(
    pack: &Pack<R>,
    manifest: &Manifest,
    source: &Source,
    max_ram: u64,
    progress: &dyn Progress,
) -> Result<()> {
    let differs = |name: &str, text: &str| {
        Err(Error::integrity(format!("the pack was made from another source: {text}"))
            .in_tensor(name))
    };
    if let Some(t) = pack.tensors().find(|t| source.tensor(t.name()).is_none()) {
        return differs(t.name(), "it has no such tensor");
    }
    let budget = memory::for_work(max_ram, pack.tables_bytes(), 1 << 24)?;
    let scans = scan(source, true, budget.min(par::threads() * (64 << 20)), progress)?;
    for (t, scan) in source.tensors().iter().zip(&scans.tensors) {
        let Some(listed) = manifest.tensors.get(&t.name) else {
            return differs(&t.name, "the pack has no such tensor");
        };
        if listed.sha256 != scan.sha256.to_string() {
            return differs(&t.name, "its SHA-256 differs");
        }
    }
    for (file, scan) in source.files.iter().zip(&scans.files) {
        let listed = manifest.files.iter().find(|f| f.path == file.path);
        let same = |scan: &Scan| {
            listed.is_none_or(|l| l.sha256.as_ref() == Some(&scan.sha256.to_string()))
        };
        if file.role == FileRole::Weights && !scan.as_ref().is_none_or(same) {
            return differs(&file.path, "the file's SHA-256 differs");
        }
    }
    Ok(())
}

/// Estimated bytes of a residual, for cutting a pack into shards: never less than what noise takes.
pub(crate) fn estimate(bytes: u64, dtype: Dtype, planes: u8) -> u64 {
    let bits = dtype.bits();
    bytes / bits * (bits + 2 - u64::from(planes))
}
