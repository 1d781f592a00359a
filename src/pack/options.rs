//! Options for packing a checkpoint, and the steps in their order.

use std::path::{Path, PathBuf};

use super::assemble::Assembly;
use super::plan::{CalibratedRecipe, Plan, Recipe};
use super::report::PackReport;
use super::reuse::{OldPack, Reused};
use super::sizes;
use super::work::{Exact, Scanned, Work};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::format::{Digest, MAX_PLANES, MIN_PLANES};
use crate::memory::DEFAULT_MAX_RAM;
use crate::output::{NewPack, PackState, bytes_there, check_shard_size};
use crate::progress::{NoProgress, Progress};
use crate::setters::setters;
use crate::source::Source;

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
    /// A calibration file of the source (`uc calibrate`): linear layers are encoded by it.
    /// Default: none.
    pub calibration: Option<PathBuf>,
    /// Whether the source's own bits are in the pack. Default: no.
    pub exact: Exact,
    /// Rungs, 3 to 7: numbers of planes that some readers stop at. Level tables are fitted for
    /// them where that pays, and the manifest records what the pack decodes to at each.
    /// Default: none.
    pub rungs: Vec<u8>,
    /// Go on where an earlier run of the same source and recipe was interrupted, and leave what is
    /// done when this one is. Default false.
    pub resume: bool,
    /// An older pack: tensors that would be encoded to what they are there are copied. The bytes
    /// of the pack never depend on it, if this program made the older pack. Default: none.
    pub reuse: Option<PathBuf>,
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

impl PackOptions {
    /// The default rule; never overwrites.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_recipe: recipe = Recipe,
        with_force: force = bool,
        with_max_ram: max_ram = u64,
        with_shard_size: shard_size = Option<u64>,
        with_calibration: calibration = Option<PathBuf>,
        with_exact: exact = Exact,
        with_rungs: rungs = Vec<u8>,
        with_resume: resume = bool,
        with_reuse: reuse = Option<PathBuf>,
    }

    /// How much [`PackOptions::pack_with`] reports to its progress, about: bytes of tensors, once
    /// hashed, once encoded, and those of the body once more under a budget.
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
            (Some(_), None) => recipe.calibrated = Some(CalibratedRecipe::default()),
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
        let (work, plan) = self.work_on(source, &recipe, calibration.as_ref())?;
        let scanned = work.scan(plan, false, progress)?;
        Ok(work.allocate(scanned, None, progress)?.plan)
    }

    /// What the steps work with, and the plan as far as names and shapes decide it.
    fn work_on<'a>(
        &self,
        source: &'a Source,
        recipe: &'a Recipe,
        calibration: Option<&'a Calibration>,
    ) -> Result<(Work<'a>, Plan)> {
        let plan = Plan::new(source, recipe)?;
        let (exact, shard_size) = (self.exact, self.shard_size);
        let mut work =
            Work { source, recipe, calibration, exact, shard_size, scanning: 0, encoding: 0 };
        (work.scanning, work.encoding) = sizes::budget(&work, &plan, self.max_ram)?;
        Ok((work, plan))
    }

    /// An upper estimate of the pack's length in bytes, for a look at the free disk.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn estimate(&self, source: &Source) -> Result<u64> {
        let (recipe, exact, shard_size) = (&self.recipe, self.exact, self.shard_size);
        let calibration = None;
        let work =
            Work { source, recipe, calibration, exact, shard_size, scanning: 0, encoding: 0 };
        // Copies wait beside the pack until the next one is made.
        let copies = if self.rungs.is_empty() { 1 } else { 3 };
        Ok(sizes::estimate(&work, &Plan::new(source, recipe)?)?.saturating_mul(copies))
    }

    /// Bytes that an interrupted run of `output` left, and that [`PackOptions::resume`] goes on
    /// with.
    pub fn bytes_there(&self, output: &Path) -> u64 {
        if self.resume { bytes_there(output) } else { 0 }
    }

    /// Packs a source into the file `output`, which appears only when it is complete. With
    /// [`PackOptions::shard_size`], and where that makes more than one file, into shards that are
    /// called after it, and their index file.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use ultracompress::pack::PackOptions;
    /// use ultracompress::source::Source;
    ///
    /// let source = Source::open(Path::new("SmolLM-135M"))?;
    /// let report = PackOptions::new().pack(&source, Path::new("model.uc"))?;
    /// println!("{}", report.decoded_root);
    /// # Ok::<(), ultracompress::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Source` for a damaged or already quantized checkpoint, or one that changes meanwhile;
    /// `Integrity` when what an interrupted run left is damaged; `InvalidArgument` for an
    /// impossible recipe or too little memory; `Io`.
    pub fn pack(&self, source: &Source, output: &Path) -> Result<PackReport> {
        self.pack_with(source, output, &NoProgress)
    }

    /// As [`PackOptions::pack`], with progress: every byte of a tensor is reported twice, once
    /// hashed and once encoded.
    ///
    /// # Errors
    /// As [`PackOptions::pack`]; `Cancelled`.
    pub fn pack_with(
        &self,
        source: &Source,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<PackReport> {
        self.check(source, output)?;
        let (calibration, recipe) = self.resolved()?;
        let (work, plan) = self.work_on(source, &recipe, calibration.as_ref())?;
        let mut state = self.open_state(&work, &plan, output)?;
        let old = self.reuse.as_deref().map(OldPack::open).transpose()?;

        let scanned = work.scan(plan, true, progress)?;
        state.start(self.run(&work, &scanned)?)?;
        let allocated = work.allocate(scanned, Some(&mut state), progress)?;
        let assembly = Assembly {
            work: &work,
            allocated: &allocated,
            output,
            rungs: &self.rungs,
            force: self.force,
            resume: self.resume,
            max_ram: self.max_ram,
        };
        if let Some(report) = assembly.roll_forward(&mut state)? {
            state.end();
            return Ok(report);
        }
        let mut base = assembly.create_base(&mut state)?;
        let reused = match old {
            None => Reused::none(source),
            Some(old) => {
                base.refuse_inputs(old.names())?;
                Reused::choose(old, &work, &allocated)
            }
        };
        let manifest = work.manifest(&allocated.plan, &allocated.scans)?;
        let bytes = manifest.to_bytes()?;
        let restored = work.encode(&allocated, &reused, &mut base, &bytes, &mut state, progress)?;
        let pack = assembly.add_rungs_and_exact(base, manifest, progress)?;
        let report = assembly.finish(pack, restored, &mut state)?;
        state.end();
        Ok(PackReport { reused: reused.count(), ..report })
    }

    /// What can be said before anything is read.
    fn check(&self, source: &Source, output: &Path) -> Result<()> {
        source.refuse_as_output(output)?;
        check_shard_size(self.shard_size)?;
        let rungs = MIN_PLANES..MAX_PLANES;
        if let Some(rung) = self.rungs.iter().find(|r| !rungs.contains(*r)) {
            return Err(Error::argument(format!("rung {rung}: 3 to 7 are possible")));
        }
        self.check_zstd()
    }

    /// The state of this run, or of the one that it goes on with. Whether the output can be written
    /// shows before hours of reading; equal tensors, which the scan finds, may make fewer
    /// shards of it.
    fn open_state(&self, work: &Work<'_>, plan: &Plan, output: &Path) -> Result<PackState> {
        let count = sizes::shards(work, plan, None)?.1;
        let check = || NewPack::check(output, self.force, count);
        let interrupted = self.resume && PackState::is_there(output);
        if !interrupted {
            check()?;
        }
        let state = PackState::open(output, self.resume)?;
        if interrupted && !state.was_naming() {
            check()?;
        }
        Ok(state)
    }

    /// A digest of everything that decides the bytes of the pack: the manifest as far as it is
    /// known before encoding has the digests of the source, the recipe, the encoder and the
    /// calibration.
    fn run(&self, work: &Work<'_>, scanned: &Scanned) -> Result<Digest> {
        let (version, Self { shard_size, exact, rungs, .. }) = (env!("CARGO_PKG_VERSION"), self);
        let rest = format!("{version} {shard_size:?} {exact:?} {rungs:?}\n");
        let mut bytes = rest.into_bytes();
        bytes.extend(work.manifest(&scanned.plan, &scanned.scans)?.to_bytes()?);
        Ok(Digest::of(&bytes))
    }

    /// A build may have been linked with another zstd library than the one that it names.
    fn check_zstd(&self) -> Result<()> {
        #[cfg(feature = "zstd")]
        if self.recipe.zstd_level().is_some() {
            let linked = zstd::zstd_safe::version_string();
            use crate::encoder::ENCODER_ID;
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
}
