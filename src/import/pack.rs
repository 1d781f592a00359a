//! From a source to a pack.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::calibrated::{self, CALIBRATED_ENCODER_ID, Calibrated};
use super::encode::{Item, Jobs, Output, Task, encode, read};
use super::exact::{Adder, estimate};
use super::ladder;
use super::plan::{Decision, Plan, PlannedTensor, Recipe};
use super::reshard::{CopyOptions, copy_pack};
use super::resume::{BASE, EXACT, NewName, PackState, ROOTS, RUNGS, bytes_there};
use super::reuse::{OldPack, Reused};
use super::scan::{Scans, scan};
use super::shards::{NewPack, Placed, assign, check_shard_size};
use super::source::{Source, SourceTensor};
use crate::calibration::Calibration;
use crate::codec::PlaneLayout;
use crate::container::ReadAt;
use crate::error::{Error, Result};
use crate::format::{Digest, Encoding, Index, OverlayBlock, PartKind, Role, elements};
use crate::manifest::{
    FileRole, Manifest, Pack, SourceFile, TensorSource, VerifyOptions, rung_root,
};
use crate::memory::{self, DEFAULT_MAX_RAM};
use crate::par::{self, Until};
use crate::progress::{NoProgress, Progress, step};

/// Names the encoder. It changes whenever the bytes that it makes could change.
pub const ENCODER_ID: &str = "uc-rtn-3+zstd-1.5.7";

/// Most memory that is kept busy for each thread: more would not make it faster.
const BUSY_BYTES: u64 = 64 << 20;

/// How to pack a source.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PackOptions {
    /// What steers the encoder. Default: the default rule.
    pub recipe: Recipe,
    /// Replace existing files. Default false.
    pub force: bool,
    /// Bytes of memory to stay within, whatever the size of the source; at least
    /// [`MIN_MAX_RAM`](crate::MIN_MAX_RAM). The bytes of the pack never depend on it. Default
    /// [`DEFAULT_MAX_RAM`](crate::DEFAULT_MAX_RAM).
    pub max_ram: u64,
    /// Cut the pack into files of at most this many bytes of tensors, unless one tensor is larger.
    /// Default: one file.
    pub shard_size: Option<u64>,
    /// A calibration file of the source (`uc calibrate`): linear layers are encoded by it. Default: none.
    pub calibration: Option<PathBuf>,
    /// Whether the source's own bits are in the pack. Default: no.
    pub exact: Exact,
    /// Rungs, 3 to 7: numbers of planes that some readers stop at. Level tables are fitted for them where that pays, and the
    /// manifest records what the pack decodes to at each. Default: none.
    pub rungs: Vec<u8>,
    /// Go on where an earlier run of the same source and recipe was interrupted, and leave what is done when this one is. Default false.
    pub resume: bool,
    /// An older pack: tensors that would be encoded to what they are there are copied. The bytes of the pack never depend on it,
    /// if this program made the older pack. Default: none.
    pub reuse: Option<PathBuf>,
}

/// Whether a pack holds the source's own bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Exact {
    /// Only of tensors that are raw.
    #[default]
    No,
    /// All: planes have residuals.
    Residual,
    /// All, and no planes: tensors are coded without a base where that pays.
    Only,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            recipe: Recipe::default(),
            force: false,
            max_ram: DEFAULT_MAX_RAM,
            shard_size: None,
            calibration: None,
            exact: Exact::No,
            rungs: vec![],
            resume: false,
            reuse: None,
        }
    }
}

/// Sizes of a pack.
///
/// # Spec
/// container.md, "Roles".
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PackStats {
    /// Tensors, aliases included.
    pub tensors: u64,
    /// Distinct weights: elements of all tensors but aliases.
    pub weights: u64,
    /// Weights of the body.
    pub body_weights: u64,
    /// Stored bits of the body, overlays on it included, over its weights; nothing without a body.
    pub body_bpw: Option<f64>,
    /// The part of it that overlays take.
    pub overlay_bpw: Option<f64>,
    /// All bits of the file over its distinct weights; nothing without weights.
    pub file_bpw: Option<f64>,
}

impl PackStats {
    /// Counts the sizes of a pack.
    pub fn of<R: ReadAt>(pack: &Pack<R>) -> Self {
        let of_body = |b: &&OverlayBlock| {
            pack.tensor(&b.tensor).is_some_and(|t| t.entry().role == Role::Body)
        };
        let overlays = pack.overlays();
        let blocks = overlays.iter().flat_map(|o| &o.blocks).filter(of_body);
        let bytes: u64 = blocks.map(|b| b.bytes().next_multiple_of(64)).sum();
        Self::counted(pack, 8, bytes)
    }

    /// As [`PackStats::of`], with only the first `planes` planes of the body counted, and no overlays: what a reader of that rung
    /// fetches.
    pub fn at_rung<R: ReadAt>(pack: &Pack<R>, planes: u8) -> Self {
        Self::counted(pack, planes, 0)
    }

    fn counted<R: ReadAt>(pack: &Pack<R>, planes: u8, overlay_bytes: u64) -> Self {
        let mut count = Count::default();
        pack.containers().iter().for_each(|c| count.add(c.index(), planes));
        #[allow(clippy::cast_precision_loss, reason = "rates for display")]
        let rate = |bytes: u64, n: u64| (n > 0).then(|| bytes as f64 * 8.0 / n as f64);
        Self {
            tensors: pack.tensors().len() as u64,
            weights: count.weights,
            body_weights: count.body_weights,
            body_bpw: rate(count.body_bytes + overlay_bytes, count.body_weights),
            overlay_bpw: rate(overlay_bytes, count.body_weights),
            file_bpw: rate(pack.bytes(), count.weights),
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    weights: u64,
    body_weights: u64,
    body_bytes: u64,
}

impl Count {
    fn add(&mut self, index: &Index, planes: u8) {
        let mut by_body = vec![false; index.levels.len() + 1];
        let mut by_others = by_body.clone();
        for t in &index.tensors {
            if matches!(t.encoding, Encoding::Alias { .. }) {
                continue;
            }
            let n = elements(&t.shape).unwrap_or(0);
            self.weights = self.weights.saturating_add(n);
            let users = if t.role == Role::Body { &mut by_body } else { &mut by_others };
            if let Encoding::Planes { level_ids, .. } = &t.encoding {
                level_ids.iter().for_each(|&id| users[usize::from(id)] = true);
            }
            if t.role == Role::Body {
                self.body_weights = self.body_weights.saturating_add(n);
                let read = t.parts.iter().filter(|p| match p.kind {
                    PartKind::Plane(plane) => plane < planes,
                    // What is not needed for the values.
                    PartKind::Residual => !p.optional,
                    PartKind::Unknown(..) => false,
                    _ => true,
                });
                self.body_bytes += read.map(|p| p.stored_len.next_multiple_of(64)).sum::<u64>();
            }
        }
        // Tables that only the body uses are charged to it.
        for (id, table) in (1..).zip(&index.levels) {
            if by_body[id] && !by_others[id] {
                self.body_bytes += table.levels.len() as u64;
            }
        }
    }
}

/// What was packed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PackReport {
    /// The files that were written, with their lengths: the pack, or its shards and their index file.
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

impl PackOptions {
    /// The default rule; never overwrites.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`PackOptions::recipe`].
    #[must_use]
    pub fn with_recipe(mut self, recipe: Recipe) -> Self {
        self.recipe = recipe;
        self
    }

    /// Sets [`PackOptions::force`].
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Sets [`PackOptions::max_ram`].
    #[must_use]
    pub fn with_max_ram(mut self, bytes: u64) -> Self {
        self.max_ram = bytes;
        self
    }

    /// Sets [`PackOptions::shard_size`].
    #[must_use]
    pub fn with_shard_size(mut self, bytes: Option<u64>) -> Self {
        self.shard_size = bytes;
        self
    }

    /// Sets [`PackOptions::calibration`].
    #[must_use]
    pub fn with_calibration(mut self, file: Option<PathBuf>) -> Self {
        self.calibration = file;
        self
    }

    /// Sets [`PackOptions::exact`].
    #[must_use]
    pub fn with_exact(mut self, exact: Exact) -> Self {
        self.exact = exact;
        self
    }

    /// Sets [`PackOptions::rungs`].
    #[must_use]
    pub fn with_rungs(mut self, rungs: Vec<u8>) -> Self {
        self.rungs = rungs;
        self
    }

    /// Sets [`PackOptions::resume`].
    #[must_use]
    pub fn with_resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Sets [`PackOptions::reuse`].
    #[must_use]
    pub fn with_reuse(mut self, pack: Option<PathBuf>) -> Self {
        self.reuse = pack;
        self
    }

    /// How much [`PackOptions::pack_with`] reports to its progress, about: bytes of tensors, once hashed, once
    /// encoded, and those of the body once more under a budget.
    pub fn work(&self, source: &Source) -> u64 {
        let surveyed = self.recipe.calibrated.as_ref().is_some_and(|c| c.bpw.is_some());
        let again = u64::from(surveyed)
            + if self.exact == Exact::No { 0 } else { 2 }
            + self.rungs.len() as u64;
        (2 + again) * source.bytes()
    }

    /// The calibration, and the recipe as it is with it.
    fn resolved(&self) -> Result<(Option<Calibration>, Recipe)> {
        let mut recipe = self.recipe.clone();
        recipe.raw_all |= self.exact == Exact::Only;
        let calibration = self.calibration.as_deref().map(Calibration::open).transpose()?;
        match (&calibration, &recipe.calibrated) {
            (None, Some(c)) if c.bpw.is_some() => {
                return Err(Error::argument("a budget of bits needs a calibration"));
            }
            (None, _) => recipe.calibrated = None,
            (Some(_), None) => recipe.calibrated = Some(super::plan::CalibratedRecipe::default()),
            (Some(_), Some(_)) => {}
        }
        Ok((calibration, recipe))
    }

    /// What becomes of each tensor: reads the whole source, writes nothing.
    ///
    /// # Errors
    /// As [`PackOptions::pack`].
    pub fn plan(&self, source: &Source, progress: &dyn Progress) -> Result<Plan> {
        let (calibration, recipe) = self.resolved()?;
        let plan = Plan::new(source, &recipe)?;
        let calibration = calibration.as_ref();
        let (scanning, encoding) = self.budget(source, &plan, &recipe, calibration)?;
        let work = Work { source, recipe: &recipe, calibration, scanning, encoding };
        let (mut plan, scans) = work.scan(plan, false, progress)?;
        work.calibrate(&mut plan, &scans, None, progress)?;
        Ok(plan)
    }

    /// An upper estimate of the pack's length in bytes, for a look at the free disk.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn estimate(&self, source: &Source) -> Result<u64> {
        let plan = Plan::new(source, &self.recipe)?;
        let carried = source.files.iter().filter(|f| f.role == FileRole::Carried).map(|f| f.bytes);
        // Copies wait beside the pack until the next one is made.
        let copies = if self.rungs.is_empty() { 1 } else { 3 };
        let exact = if self.exact == Exact::No { 0 } else { source.bytes() };
        let tensors =
            self.placed(source, &plan, &self.recipe, None)?.into_iter().map(
                |placed| match placed {
                    Placed::Bytes(n) => n,
                    Placed::With(_) => 0,
                },
            );
        // Padding, records and the manifest's entries on top.
        let all = carried
            .chain(tensors)
            .chain([exact])
            .fold(0u64, |sum, n| sum.saturating_add(n).saturating_add(4096));
        Ok(all.saturating_mul(copies))
    }

    /// Bytes that an interrupted run of `output` left, and that [`PackOptions::resume`] goes on with.
    pub fn bytes_there(&self, output: &Path) -> u64 {
        if self.resume { bytes_there(output) } else { 0 }
    }

    /// Packs a source into the file `output`, which appears only when it is complete. With
    /// [`PackOptions::shard_size`], and where that makes more than one file, into shards that are called
    /// after it, and their index file.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use ultracompress::import::{PackOptions, Source};
    ///
    /// let source = Source::open(Path::new("SmolLM-135M"))?;
    /// let report = PackOptions::new().pack(&source, Path::new("model.uc"))?;
    /// println!("{}", report.decoded_root);
    /// # Ok::<(), ultracompress::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Source` for a damaged or already quantized checkpoint, or one that changes meanwhile; `Integrity` when what an
    /// interrupted run left is damaged; `InvalidArgument` for an impossible recipe or too little memory; `Io`.
    pub fn pack(&self, source: &Source, output: &Path) -> Result<PackReport> {
        self.pack_with(source, output, &NoProgress)
    }

    /// As [`PackOptions::pack`], with progress: every byte of a tensor is reported twice, once hashed and
    /// once encoded.
    ///
    /// # Errors
    /// As [`PackOptions::pack`]; `Cancelled`.
    pub fn pack_with(
        &self,
        source: &Source,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<PackReport> {
        source.refuse_as_output(output)?;
        check_shard_size(self.shard_size)?;
        if let Some(rung) = self.rungs.iter().find(|r| !(3..=7).contains(*r)) {
            return Err(Error::argument(format!("rung {rung}: 3 to 7 are possible")));
        }
        self.check_zstd()?;
        let (calibration, recipe) = self.resolved()?;
        let calibration = calibration.as_ref();
        let plan = Plan::new(source, &recipe)?;
        let (scanning, encoding) = self.budget(source, &plan, &recipe, calibration)?;
        // Whether the output can be written shows before hours of reading; equal tensors, which the scan
        // finds, may make fewer shards of it.
        let count = self.shards(source, &plan, &recipe, None)?.1;
        let check = || NewPack::check(output, self.force, count);
        let interrupted = self.resume && PackState::is_there(output);
        if !interrupted {
            check()?;
        }
        let mut state = PackState::open(output, self.resume)?;
        if interrupted && !state.was_naming() {
            check()?;
        }
        let work = Work { source, recipe: &recipe, calibration, scanning, encoding };
        let old = self.reuse.as_deref().map(OldPack::open).transpose()?;
        let (mut plan, scans) = work.scan(plan, true, progress)?;
        let run = self.run(&work.manifest(&plan, &scans)?)?;
        state.start(run)?;
        let saved = state.calibrated().cloned();
        let calibrated = work.calibrate(&mut plan, &scans, saved.as_ref(), progress)?;
        if let (Some(calibrated), None) = (&calibrated, saved) {
            state.add_calibrated(calibrated.save(source)?)?;
        }
        let (shards, count) = self.shards(source, &plan, &recipe, calibrated.as_ref())?;
        let targets = NewPack::targets_of(output, count)?;
        if state.roll_forward(&targets, self.force)? {
            let last = targets.last().map_or(output, PathBuf::as_path);
            let written = Pack::open_path(last)?;
            state.end();
            let report = self.report(source, plan, &scans, &written, lengths(targets)?);
            return Ok(PackReport { resumed: items(source), ..report });
        }
        let mut pack =
            NewPack::create(output, self.force, count)?.with_partial_files(BASE, self.resume);
        if state.is_new() {
            let stages = self.stages();
            let partial = stages.iter().flat_map(|stage| pack.partial_paths(stage));
            state.add_partial(&partial.collect::<Vec<_>>())?;
        }
        let reused = match old {
            None => Reused::none(source),
            Some(old) => {
                pack.refuse_inputs(old.names())?;
                Reused::choose(old, source, &plan, &scans, &recipe, calibrated.as_ref(), encoding)
            }
        };
        let mut manifest = work.manifest(&plan, &scans)?;
        let bytes = manifest.to_bytes()?;
        let task = Task {
            source,
            plan: &plan,
            recipe: &recipe,
            calibrated: calibrated.as_ref(),
            reused: &reused,
        };
        let resumed = work.write(task, &scans, &shards, &mut pack, &bytes, &mut state, progress)?;

        if !self.rungs.is_empty() {
            let base = pack.open()?;
            let budget = recipe.calibrated.as_ref().and_then(|c| c.bpw);
            let mut refitted = ladder::fit(&base, source, &self.rungs, progress)?;
            loop {
                let tables = !refitted.is_empty();
                let refitted = std::mem::take(&mut refitted);
                let options = CopyOptions { refitted, ..CopyOptions::default() };
                let mut other = self.stage(output, count, RUNGS)?;
                let with = copy_pack(&base, &shards, &mut other, &bytes, &options, &NoProgress)?;
                // Tables take some bytes, which a budget may not have.
                let bpw = PackStats::of(&with).body_bpw;
                if tables && budget.is_some_and(|b| bpw.is_some_and(|bits| bits > b.bits())) {
                    continue;
                }
                let views: Vec<_> = with.tensors().collect();
                for rung in &self.rungs {
                    let root = rung_root(&views, *rung, encoding, progress)?;
                    manifest.rungs.insert(rung.to_string(), root.to_string());
                }
                pack = other;
                break;
            }
        }
        if !self.rungs.is_empty() && self.exact == Exact::No {
            // The manifest speaks of the tables, so it comes last.
            let (base, bytes) = (pack.open()?, manifest.to_bytes()?);
            let mut last = self.stage(output, count, ROOTS)?;
            copy_pack(&base, &shards, &mut last, &bytes, &CopyOptions::default(), &NoProgress)?;
            pack = last;
        }
        if self.exact != Exact::No {
            let (base, coded) = (pack.open()?, self.exact == Exact::Only);
            let mut exact = self.stage(output, count, EXACT)?;
            let adder =
                Adder::new(&base, source, &manifest, coded, self.max_ram, output, progress)?;
            adder.write(&shards, &mut exact, &manifest.to_bytes()?)?;
            pack = exact;
        }
        let written = pack.open()?;
        written.manifest()?;
        if resumed > 0 {
            self.check_resumed(&written)?;
        }
        let files = pack.commit_after(&written, |names| {
            let name = |(from, to): &(&Path, &Path)| NewName::new(from, to);
            state.add_named(names.iter().map(name).collect::<Result<_>>()?)
        })?;
        let (resumed, reused) = (resumed, reused.count());
        state.end();
        let report = self.report(source, plan, &scans, &written, files);
        Ok(PackReport { resumed, reused, ..report })
    }

    /// Decodes a pack of which an earlier run wrote a part: its checksums were right, this shows that its records are.
    fn check_resumed<R: ReadAt + Sync>(&self, pack: &Pack<R>) -> Result<()> {
        let report = VerifyOptions::new().with_max_ram(self.max_ram).verify_pack(pack)?;
        report.failures.first().map_or(Ok(()), |failure| {
            let what = failure.tensor.as_deref().unwrap_or("the pack");
            Err(Error::integrity(format!(
                "what the interrupted run left is damaged: {what}: {}; start again without --resume",
                failure.reason
            )))
        })
    }

    /// What is said of a pack that is complete.
    fn report<R: ReadAt>(
        &self,
        source: &Source,
        plan: Plan,
        scans: &Scans,
        written: &Pack<R>,
        files: Vec<(PathBuf, u64)>,
    ) -> PackReport {
        let odd = plan.tensors.iter().zip(&scans.tensors).filter(|(_, s)| s.odd.is_some());
        PackReport {
            files,
            stored_root: written.stored_root(),
            decoded_root: written.decoded_root(),
            stats: PackStats::of(written),
            odd: odd.map(|(t, _)| t.name.clone()).collect(),
            plan,
            left_out: source.left_out().into_iter().map(str::to_owned).collect(),
            resumed: 0,
            reused: 0,
        }
    }

    /// The steps that the pack is made in.
    fn stages(&self) -> Vec<&'static str> {
        let mut stages = vec![BASE];
        if !self.rungs.is_empty() {
            stages.push(RUNGS);
            // With the exact rung the manifest is written once more anyway.
            stages.extend((self.exact == Exact::No).then_some(ROOTS));
        }
        stages.extend((self.exact != Exact::No).then_some(EXACT));
        stages
    }

    /// The pack after one step more. What is left of it by a run that is killed is of no use to the next.
    fn stage(&self, output: &Path, count: usize, stage: &'static str) -> Result<NewPack> {
        Ok(NewPack::create(output, self.force, count)?.with_partial_files(stage, false))
    }

    /// A digest of everything that decides the bytes of the pack: the manifest as far as it is known before encoding has the
    /// digests of the source, the recipe, the encoder and the calibration.
    fn run(&self, manifest: &Manifest) -> Result<Digest> {
        let (version, Self { shard_size, exact, rungs, .. }) = (env!("CARGO_PKG_VERSION"), self);
        let rest = format!("{version} {shard_size:?} {exact:?} {rungs:?}\n");
        let mut bytes = rest.into_bytes();
        bytes.extend(manifest.to_bytes()?);
        Ok(Digest::of(&bytes))
    }

    /// A build may have been linked with another zstd library than the one that it names.
    fn check_zstd(&self) -> Result<()> {
        #[cfg(feature = "zstd")]
        if self.recipe.zstd_level().is_some() {
            let linked = zstd::zstd_safe::version_string();
            if !ENCODER_ID.ends_with(&format!("zstd-{linked}")) {
                return Err(Error::new(
                    crate::error::ErrorKind::UnsupportedFeature,
                    format!(
                        "this build has zstd {linked}, {ENCODER_ID} is another: use zstd_level = 0"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The shard of each tensor, and how many there are.
    fn shards(
        &self,
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        calibrated: Option<&Calibrated<'_>>,
    ) -> Result<(Vec<usize>, usize)> {
        let shards = assign(&self.placed(source, plan, recipe, calibrated)?, self.shard_size);
        let count = shards.iter().max().map_or(1, |last| last + 1);
        Ok((shards, count))
    }

    /// What decides in which shard each tensor is.
    fn placed(
        &self,
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        calibrated: Option<&Calibrated<'_>>,
    ) -> Result<Vec<Placed>> {
        let names: Vec<&str> = plan.tensors.iter().map(|t| t.name.as_str()).collect();
        plan.tensors
            .iter()
            .zip(source.tensors())
            .enumerate()
            .map(|(i, (p, t))| {
                Ok(match &p.decision {
                    Decision::Raw => Placed::Bytes(t.len),
                    Decision::Planes { .. } if calibrated.is_some_and(|c| c.has(i)) => {
                        Placed::Bytes(calibrated.map_or(Ok(0), |c| c.content_bytes(source, i))?)
                    }
                    Decision::Planes { planes, row_dims } => {
                        let layout =
                            PlaneLayout::new(&t.shape, *row_dims, recipe.group_of(p.role))?;
                        let residual = match self.exact {
                            Exact::Residual => estimate(t.len, t.dtype, *planes),
                            _ => 0,
                        };
                        Placed::Bytes(layout.uniform_bytes(*planes) + residual)
                    }
                    Decision::Alias(target) => {
                        Placed::With(names.binary_search(&target.as_str()).map_err(|_| {
                            Error::argument("no such tensor to alias").in_tensor(target)
                        })?)
                    }
                })
            })
            .collect()
    }

    /// Memory for reading the source, and for encoding.
    fn budget(
        &self,
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        calibration: Option<&Calibration>,
    ) -> Result<(u64, u64)> {
        // Names, shapes, records and the manifest's text and value, as measured on a checkpoint of
        // 100,000 tensors; and a chunk table.
        let tables = source.tensors().len() as u64 * 4608 + source.bytes() / (1 << 20) * 64;
        let whole = whole(source, plan, calibration);
        let shards = vec![0; plan.tensors.len()];
        let (largest, name) = Jobs::new(source, plan, recipe, &shards, whole)?.largest(source);
        let budget = memory::for_work(self.max_ram, tables, largest).map_err(|e| match name {
            Some(name) => e.in_tensor(&name),
            None => e,
        })?;
        let busy = budget.min(par::threads() * BUSY_BYTES).max(largest.min(budget));
        Ok((busy, if calibration.is_some() { budget } else { busy }))
    }
}

/// Memory of each tensor that is encoded by the calibration.
fn whole(source: &Source, plan: &Plan, calibration: Option<&Calibration>) -> Vec<Option<u64>> {
    let tensors = source.tensors().iter().zip(&plan.tensors);
    let memory =
        |(t, p): (&SourceTensor, &PlannedTensor)| calibrated::memory(t, &p.decision, calibration?);
    tensors.map(memory).collect()
}

/// What packing works with.
struct Work<'a> {
    source: &'a Source,
    recipe: &'a Recipe,
    calibration: Option<&'a Calibration>,
    /// Memory for reading, and for encoding.
    scanning: u64,
    encoding: u64,
}

impl<'a> Work<'a> {
    /// Scans the source and settles what becomes of each tensor.
    fn scan(
        &self,
        mut plan: Plan,
        with_files: bool,
        progress: &dyn Progress,
    ) -> Result<(Plan, Scans)> {
        let scans = scan(self.source, with_files, self.scanning, progress)?;
        plan.refine(&scans.tensors);
        if let Some(calibration) = self.calibration {
            calibrated::check_root(self.source, &scans.tensors, calibration)?;
        }
        Ok((plan, scans))
    }

    /// Finds out how the calibration encodes, or takes over what an earlier run of the same found out.
    fn calibrate(
        &self,
        plan: &mut Plan,
        scans: &Scans,
        saved: Option<&serde_json::Value>,
        progress: &dyn Progress,
    ) -> Result<Option<Calibrated<'a>>> {
        let Some(calibration) = self.calibration else { return Ok(None) };
        debug_assert_eq!(scans.tensors.len(), plan.tensors.len());
        let (source, recipe) = (self.source, self.recipe);
        Calibrated::new(source, plan, recipe, calibration, saved, self.encoding, progress).map(Some)
    }

    fn manifest(&self, plan: &Plan, scans: &Scans) -> Result<Manifest> {
        let source = self.source;
        let encoder = if self.calibration.is_some() { CALIBRATED_ENCODER_ID } else { ENCODER_ID };
        let mut manifest = Manifest::new(encoder);
        manifest.calibration = self.calibration.map(|c| c.sha256().to_string());
        manifest.recipe = self.recipe.to_json()?;
        for (file, scan) in source.files.iter().zip(&scans.files) {
            // What stays behind must not change the bytes of the pack; the report lists it.
            let Some(scan) = scan else { continue };
            if file.path == "README.md" {
                manifest.licence = declared_licence(&file.on_disk)
                    .map_err(|e| Error::io("can't read", e).in_file(&file.path))?;
            }
            manifest.files.push(SourceFile {
                path: file.path.clone(),
                bytes: file.bytes,
                role: file.role,
                sha256: Some(scan.sha256.to_string()),
                metadata: source.metadata.get(&file.path).cloned(),
            });
        }
        for ((t, planned), scan) in source.tensors().iter().zip(&plan.tensors).zip(&scans.tensors) {
            manifest.tensors.insert(
                t.name.clone(),
                TensorSource {
                    sha256: scan.sha256.to_string(),
                    file: Some(t.file.clone()),
                    reason: planned.reason.clone(),
                },
            );
        }
        Ok(manifest)
    }

    /// Reads, encodes and writes everything, one job after the other. Gives the number of tensors and files that an earlier run had
    /// written.
    #[allow(clippy::too_many_arguments, reason = "one step of `pack_with`")]
    fn write(
        &self,
        task: Task<'_>,
        scans: &Scans,
        shards: &[usize],
        pack: &mut NewPack,
        manifest: &[u8],
        state: &mut PackState,
        progress: &dyn Progress,
    ) -> Result<usize> {
        let source = self.source;
        let mut whole = whole(source, task.plan, self.calibration);
        for (i, whole) in whole.iter_mut().enumerate() {
            *whole = task.reused.cost(i).or(*whole);
        }
        let jobs = Jobs::new(source, task.plan, self.recipe, shards, whole)?;
        let done = state.take_done();
        let output = Output::new(task, scans, shards, pack, manifest, state, !done.is_empty())?;
        let (output, first) = output.restore(&jobs, done)?;
        let restored = output.restored();
        let of_tensor = |j: usize| match jobs.get(j).item {
            Item::Tensor(_) => jobs.get(j).len,
            Item::File(_) => 0,
        };
        step(progress, (0..first).map(of_tensor).sum())?;
        let mut output = Some(output);
        par::pipeline(
            jobs.len() - first,
            self.encoding,
            Until::Taken,
            |j| jobs.cost(source, first + j),
            |j| read(task, jobs.get(first + j)),
            |j, bytes| encode(task, jobs.get(first + j), bytes),
            |j, done| {
                output = output.take().map(|o| o.take(jobs.get(first + j), done)).transpose()?;
                step(progress, of_tensor(first + j))
            },
        )?;
        output.map_or(Ok(()), Output::end)?;
        Ok(restored)
    }
}

/// Files with their lengths.
fn lengths(paths: Vec<PathBuf>) -> Result<Vec<(PathBuf, u64)>> {
    let io = |e, path: &Path| Error::io("can't read", e).in_file(path.display().to_string());
    let len = |path: PathBuf| match path.metadata() {
        Ok(meta) => Ok((path, meta.len())),
        Err(e) => Err(io(e, &path)),
    };
    paths.into_iter().map(len).collect()
}

/// Tensors and carried files of a source.
fn items(source: &Source) -> usize {
    let carried = source.files.iter().filter(|f| f.role == FileRole::Carried);
    source.tensors().len() + carried.count()
}

/// The `license` of a model card's front matter.
fn declared_licence(readme: &Path) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    std::fs::File::open(readme)?.take(1 << 20).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let value = text
        .strip_prefix("---")
        .and_then(|t| t.split("\n---").next())
        .and_then(|front| front.lines().find_map(|l| l.strip_prefix("license:")))
        .map(|value| value.trim().trim_matches(['"', '\'']));
    Ok(value.filter(|v| !v.is_empty()).map(str::to_owned))
}
