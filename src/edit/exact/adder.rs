//! Fits models to a pack and its source, codes, writes, and compares what was written.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rows::{SourceRows, shape_of};
use super::spool::Spool;
use crate::codec::exact::fit::Counts;
use crate::codec::exact::{
    Block, BlockBase, BlockEncoder, EncoderTables, ExactModel, NO_BASE, best_reference,
    reference_hint,
};
use crate::container::{BlockRows, ExactBase, TensorView, store_chunk};
use crate::edit::copy::{CopyOptions, PackCopy};
use crate::error::{Error, Result};
use crate::format::{CHUNK_LEN, Digest, Dtype, Encoding, FileEntry, PartKind, elements};
use crate::kernels::Kernel;
use crate::manifest::{FileRole, Manifest, Pack, exact_checks, has_residual};
use crate::memory;
use crate::output::{NewPack, ShardWriter};
use crate::par;
use crate::progress::{NoProgress, Progress, step};
use crate::source::Source;
use crate::storage::ReadAt;

/// Weights of each type and plane count that a model is fitted to, about.
pub(crate) const SAMPLE_WEIGHTS: u64 = 1 << 22;
/// Memory of one job: blocks as read and as coded, codes, and a chunk of each part.
const JOB_BYTES: u64 = 48 << 20;
/// Blocks that one job encodes: enough that chunks of planes are seldom read twice.
const JOB_BLOCKS: usize = 64;
/// Tensors with fewer weights are not coded without a base.
const LEAST_WEIGHTS: u64 = 4096;

/// What a tensor gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// It is copied.
    Copy,
    /// A residual on its planes.
    Residual,
    /// To be coded as a matrix of so many row dimensions.
    Code(u8),
}

/// Which model a tensor's rows share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ModelKey {
    dtype: u8,
    native: u8,
    levels: Vec<i8>,
}

/// How much was added.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Added {
    pub residuals: u64,
    pub coded: u64,
    pub bytes: u64,
}

/// Adds the exact rung to a pack.
/// A model with what blocks are coded with.
struct Fitted {
    model: ExactModel,
    name: [u8; 8],
    tables: Arc<EncoderTables>,
}

pub(crate) struct Adder<'a, R> {
    pack: &'a Pack<R>,
    source: &'a Source,
    manifest: &'a Manifest,
    tasks: Vec<Task>,
    models: BTreeMap<ModelKey, Fitted>,
    budget: u64,
    kernel: Kernel,
    /// Where temporary files go.
    folder: PathBuf,
    progress: &'a dyn Progress,
}

impl<'a, R: ReadAt + Sync> Adder<'a, R> {
    /// Fits models. With `coded` raw tensors are coded where that pays.
    ///
    /// # Errors
    /// `InvalidArgument` for a pack that has residuals, or too little memory; `Io`.
    pub(crate) fn new(
        pack: &'a Pack<R>,
        source: &'a Source,
        manifest: &'a Manifest,
        coded: bool,
        max_ram: u64,
        output: &Path,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let task = |view: TensorView<'_, R>| {
            let entry = view.entry();
            if entry.parts.iter().any(|p| p.kind == PartKind::Residual) {
                return Err(Error::argument("has a residual already").in_tensor(view.name()));
            }
            let many = elements(view.shape()).unwrap_or(0) >= LEAST_WEIGHTS;
            Ok(match entry.encoding {
                Encoding::Planes { .. } => Task::Residual,
                Encoding::Raw if coded && many && view.dtype().has_planes() => {
                    Task::Code(row_dims(view.shape()))
                }
                _ => Task::Copy,
            })
        };
        let tasks = pack.tensors().map(task).collect::<Result<Vec<_>>>()?;
        // Blocks with what they are made from, and a chunk of each plane.
        let budget = memory::for_work(max_ram, pack.tables_bytes(), JOB_BYTES)?;
        let parent = output.parent().filter(|p| !p.as_os_str().is_empty());
        let mut adder = Self {
            pack,
            source,
            manifest,
            tasks,
            models: BTreeMap::new(),
            budget: budget.min(par::threads() * 2 * JOB_BYTES),
            kernel: Kernel::selected()?,
            folder: parent.unwrap_or(Path::new(".")).to_owned(),
            progress,
        };
        adder.fit()?;
        Ok(adder)
    }

    pub(crate) fn todo(&self) -> impl Iterator<Item = (TensorView<'a, R>, Task)> + '_ {
        self.pack.tensors().zip(self.tasks.iter().copied()).filter(|(_, t)| *t != Task::Copy)
    }

    fn base(&self, view: TensorView<'a, R>, task: Task) -> Result<ExactBase<'a, R>> {
        let row_dims = match task {
            Task::Code(row_dims) => Some(row_dims),
            _ => None,
        };
        ExactBase::new(view, row_dims, self.kernel)
    }

    fn key(base: &ExactBase<'_, R>, dtype: Dtype, native: u8) -> ModelKey {
        let levels = base.levels(native).map(<[i8]>::to_vec).unwrap_or_default();
        ModelKey { dtype: dtype.code(), native, levels }
    }

    /// Makes the models, from some of the blocks of every tensor.
    fn fit(&mut self) -> Result<()> {
        // How many weights there are of each kind.
        let mut totals: BTreeMap<ModelKey, u64> = BTreeMap::new();
        for (view, task) in self.todo() {
            let base = self.base(view, task)?;
            for (native, rows) in base.layout.runs() {
                let weights = (rows.end - rows.start).saturating_mul(base.layout.cols());
                let key = Self::key(&base, view.dtype(), *native);
                let total = totals.entry(key).or_default();
                *total = total.saturating_add(weights);
            }
        }
        let mut counts: BTreeMap<ModelKey, (Counts, u64)> = BTreeMap::new();
        for (view, task) in self.todo() {
            step(self.progress, 0)?;
            let in_tensor = |e: Error| e.in_tensor(view.name());
            let mut base = self.base(view, task).map_err(in_tensor)?;
            let rows =
                SourceRows::new(self.source, view.name(), base.layout.cols(), &base.counts())?;
            for (native, run) in base.layout.runs().to_vec() {
                let key = Self::key(&base, view.dtype(), native);
                let stride = totals[&key].div_ceil(SAMPLE_WEIGHTS).max(1);
                let (counts, seen) = match counts.entry(key.clone()) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(slot) => {
                        let levels = (native != NO_BASE).then_some(&key.levels[..]);
                        slot.insert((Counts::new(view.dtype(), levels)?, 0))
                    }
                };
                for block in base.layout.blocks(run)? {
                    *seen += 1;
                    if (*seen - 1).is_multiple_of(stride) {
                        step(self.progress, 0)?;
                        count(counts, &mut base, &rows, &block, self.kernel).map_err(in_tensor)?;
                    }
                }
            }
        }
        for (key, (counts, _)) in counts {
            if let Some(model) = counts.fit()? {
                let levels = (key.native != NO_BASE).then_some(&key.levels[..]);
                let tables = EncoderTables::new(&model, levels, self.kernel)?.into();
                let name = model.name()?;
                self.models.insert(key, Fitted { model, name, tables });
            }
        }
        Ok(())
    }

    /// Writes the pack, its tensors in the given shards, and compares every exact tensor with its
    /// digest.
    ///
    /// # Errors
    /// `Integrity` when the source changed meanwhile; `Io`.
    pub(crate) fn write(
        &self,
        shards: &[usize],
        new: &mut NewPack,
        manifest: &[u8],
    ) -> Result<Added> {
        let count = new.count();
        let mut added = Added::default();
        for shard in 0..count {
            let mut writer = new.start()?;
            let options = CopyOptions::default();
            let mut copy = PackCopy::new(&mut writer, &NoProgress, &options);
            let own =
                || self.pack.tensors().zip(&self.tasks).zip(shards).filter(|(_, s)| **s == shard);
            let before = added.bytes;
            for ((view, task), _) in own() {
                let locate = |e: Error| view.container().locate(e.in_tensor(view.name()));
                self.tensor(&mut copy, view, *task, &mut added).map_err(locate)?;
            }
            if added.bytes > before {
                for fitted in self.models.values() {
                    copy.writer().add_exact_model(&fitted.model)?;
                }
            }
            copy.aliases(own().map(|((view, _), _)| view))?;
            if shard == 0 {
                // The pack has no heads yet.
                copy.what_goes_first(self.pack)?;
                self.heads(&mut writer)?;
            }
            new.end(writer, manifest)?;
        }
        let written = new.open()?;
        written.manifest()?;
        if written.decoded_root() != self.pack.decoded_root() {
            return Err(Error::integrity("the new pack has another decoded root"));
        }
        self.compare(&written)?;
        Ok(added)
    }

    fn tensor(
        &self,
        copy: &mut PackCopy<'_>,
        view: TensorView<'a, R>,
        task: Task,
        added: &mut Added,
    ) -> Result<()> {
        if let Task::Code(row_dims) = task {
            let mut spool = self.encode(view, task)?;
            let raw: u64 = view.entry().parts.iter().map(|p| p.stored_len).sum();
            if spool.len() < raw {
                let mut entry = view.entry().clone();
                entry.encoding = Encoding::Coded { row_dims };
                entry.parts.clear();
                added.coded += 1;
                added.bytes += spool.len();
                let data = spool.write(copy.writer(), false)?;
                copy.writer().end_residual(entry, data);
                return Ok(());
            }
        }
        let Some(entry) = copy.tensor(&view)? else { return Ok(()) };
        if task == Task::Residual {
            let mut spool = self.encode(view, task)?;
            added.residuals += 1;
            added.bytes += spool.len();
            let data = spool.write(copy.writer(), true)?;
            copy.writer().end_residual(entry, data);
        } else {
            copy.writer().list(entry);
        }
        Ok(())
    }

    /// The residual of a tensor.
    pub(crate) fn encode(&self, view: TensorView<'a, R>, task: Task) -> Result<Spool> {
        let base = self.base(view, task)?;
        let counts = base.counts();
        let rows = SourceRows::new(self.source, view.name(), base.layout.cols(), &counts)?;
        let layout = base.layout.clone();
        let stored: u64 = layout.runs().last().map_or(0, |(_, rows)| rows.end);
        let blocks = layout.blocks(0..stored)?;
        let mut names = [[0; 8]; 6];
        for native in layout.natives() {
            let fitted = self.fitted(&base, view.dtype(), native)?;
            names[usize::from(native).saturating_sub(3)] = fitted.name;
        }
        drop(base);
        let mut spool = Spool::new(&self.folder, names, blocks.len())?;
        let jobs: Vec<&[Block]> = blocks.chunks(JOB_BLOCKS).collect();
        let mut failed = None;
        par::each_within(
            jobs.len(),
            self.budget,
            |_| JOB_BYTES,
            |j| self.encode_blocks(view, task, &rows, jobs[j]),
            |encoded: Vec<Vec<u8>>| {
                for block in encoded {
                    failed = failed.take().or_else(|| spool.push(&block).err());
                }
            },
        )?;
        failed.map_or(Ok(spool), Err)
    }

    fn fitted(&self, base: &ExactBase<'_, R>, dtype: Dtype, native: u8) -> Result<&Fitted> {
        let fitted = self.models.get(&Self::key(base, dtype, native));
        fitted.ok_or_else(|| Error::argument("no model was fitted for it"))
    }

    fn encode_blocks(
        &self,
        view: TensorView<'a, R>,
        task: Task,
        rows: &SourceRows<'_>,
        blocks: &[Block],
    ) -> Result<Vec<Vec<u8>>> {
        let mut base = self.base(view, task)?;
        let mut encoders: BTreeMap<u8, BlockEncoder> = BTreeMap::new();
        let mut all = Vec::with_capacity(blocks.len());
        for block in blocks {
            let encoder = match encoders.entry(block.native) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(slot) => {
                    let fitted = self.fitted(&base, view.dtype(), block.native)?;
                    slot.insert(BlockEncoder::new(Arc::clone(&fitted.tables)))
                }
            };
            let source = rows.read(block)?;
            let shape = shape_of(block)?;
            let references = references(task, view.dtype(), shape, &source);
            let loaded = base.load(block)?;
            let with = loaded.map_or(BlockBase::None, BlockRows::base);
            all.push(encoder.encode(&with, &references, shape, &source));
            step(self.progress, source.len() as u64)?;
        }
        Ok(all)
    }

    /// What stands in front of the tensors in each weights file.
    fn heads(&self, writer: &mut ShardWriter) -> Result<()> {
        for (path, head) in self.source.heads()? {
            let listed = self.manifest.files.iter();
            let known = listed.filter(|f| f.role == FileRole::Weights).any(|f| f.path == path);
            if !known {
                continue;
            }
            let mut data = writer.begin_data()?;
            for chunk in head.chunks(CHUNK_LEN) {
                let level = cfg!(feature = "zstd").then_some(HEAD_ZSTD_LEVEL);
                let stored = store_chunk(chunk, level)?;
                writer.put_chunk(&mut data, chunk.len(), &stored)?;
            }
            let (len, sha256) = (head.len() as u64, Digest::of(&head));
            writer.end_head(FileEntry { path, len, sha256, parts: vec![] }, data);
        }
        Ok(())
    }

    /// Decodes what was written and compares it with the source's digests.
    fn compare<S: ReadAt + Sync>(&self, written: &Pack<S>) -> Result<()> {
        let views: Vec<_> = written.tensors().filter(has_residual).collect();
        let checks = exact_checks(&views, self.manifest, self.budget, self.progress)?;
        checks.into_iter().collect()
    }
}

/// Heads are JSON.
const HEAD_ZSTD_LEVEL: i32 = 19;

/// Dimensions that are rows of a tensor that is coded: all but the last, unless that is short.
fn row_dims(shape: &[u64]) -> u8 {
    let dims = match shape {
        [] | [_] => 0,
        [.., last] if *last >= 64 => shape.len() - 1,
        _ => 1,
    };
    u8::try_from(dims).expect("at most 16")
}

/// The reference of each row of a block without a base.
fn references(task: Task, dtype: Dtype, (rows, cols): (usize, usize), source: &[u8]) -> Vec<u8> {
    match task {
        Task::Code(_) => {
            let row = source.len() / rows.max(1);
            debug_assert_eq!(row % cols.max(1), 0);
            source.chunks_exact(row).map(|row| best_reference(dtype, row)).collect()
        }
        _ => vec![],
    }
}

/// Counts the weights of a block.
fn count<R: ReadAt>(
    counts: &mut Counts,
    base: &mut ExactBase<'_, R>,
    rows: &SourceRows<'_>,
    block: &Block,
    kernel: Kernel,
) -> Result<()> {
    let source = rows.read(block)?;
    let (n, cols) = shape_of(block)?;
    let size = source.len() / (n * cols);
    let mut hints = vec![0; cols];
    let loaded = base.load(block)?;
    for (i, row) in source.chunks_exact(cols * size).enumerate() {
        match loaded {
            Some(BlockRows { codes, group, factors }) => {
                let groups = cols.div_ceil(*group);
                let (codes, factors) =
                    (&codes[i * cols..][..cols], &factors[i * groups..][..groups]);
                counts.contexts().hints(kernel, codes, *group, factors, &mut hints);
            }
            None => {
                let dtype = counts.dtype();
                hints.fill(reference_hint(dtype, best_reference(dtype, row)));
            }
        }
        for (element, hint) in row.chunks_exact(size).zip(&hints) {
            counts.add(*hint, u16::from_le_bytes([element[size - 2], element[size - 1]]));
        }
    }
    Ok(())
}
