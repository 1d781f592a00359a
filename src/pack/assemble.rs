//! The last steps of packing: rungs and the exact rung on top of what was encoded, then the names.

use std::path::{Path, PathBuf};

use super::report::{PackReport, items, lengths};
use super::rungs;
use super::work::{Allocated, Exact, Work};
use crate::edit::{Adder, CopyOptions, copy_pack};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Pack, PackStats, VerifyOptions, rung_root};
use crate::output::{BASE, EXACT, NewName, NewPack, PackState, ROOTS, RUNGS};
use crate::progress::{NoProgress, Progress};
use crate::storage::ReadAt;

/// What the files of a pack are made from, once every tensor has its shard.
pub(super) struct Assembly<'a> {
    pub work: &'a Work<'a>,
    pub allocated: &'a Allocated<'a>,
    pub output: &'a Path,
    pub rungs: &'a [u8],
    pub force: bool,
    pub resume: bool,
    pub max_ram: u64,
}

impl Assembly<'_> {
    /// Ends an earlier run that was killed while its files got their names; nothing where there was
    /// none.
    ///
    /// # Errors
    /// `Io`, `Integrity`.
    pub(super) fn roll_forward(&self, state: &mut PackState) -> Result<Option<PackReport>> {
        let source = self.work.source;
        let targets = NewPack::targets_of(self.output, self.allocated.count)?;
        if !state.roll_forward(&targets, self.force)? {
            return Ok(None);
        }
        let written = Pack::open_path(targets.last().map_or(self.output, PathBuf::as_path))?;
        let report = PackReport::of(source, self.allocated, &written, lengths(targets)?);
        Ok(Some(PackReport { resumed: items(source), ..report }))
    }

    /// The files that tensors are encoded to, under names that another run finds.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn create_base(&self, state: &mut PackState) -> Result<NewPack> {
        let pack = NewPack::create(self.output, self.force, self.allocated.count)?
            .with_partial_files(BASE, self.resume);
        if state.is_new() {
            let stages = self.stages();
            let partial = stages.iter().flat_map(|stage| pack.partial_paths(stage));
            state.add_partial(&partial.collect::<Vec<_>>())?;
        }
        Ok(pack)
    }

    /// The files that the pack is made of, one after the other.
    fn stages(&self) -> Vec<&'static str> {
        let mut stages = vec![BASE];
        if !self.rungs.is_empty() {
            stages.push(RUNGS);
            // With the exact rung the manifest is written once more anyway.
            stages.extend((self.work.exact == Exact::No).then_some(ROOTS));
        }
        stages.extend((self.work.exact != Exact::No).then_some(EXACT));
        stages
    }

    /// The pack after one step more. What is left of it by a run that is killed is of no use to the
    /// next.
    fn next(&self, stage: &'static str) -> Result<NewPack> {
        let pack = NewPack::create(self.output, self.force, self.allocated.count)?;
        Ok(pack.with_partial_files(stage, false))
    }

    /// Puts on top of the encoded tensors what was asked for.
    ///
    /// # Errors
    /// As for decoding and writing; `Cancelled`.
    pub(super) fn add_rungs_and_exact(
        &self,
        mut pack: NewPack,
        mut manifest: Manifest,
        progress: &dyn Progress,
    ) -> Result<NewPack> {
        if !self.rungs.is_empty() {
            pack = self.fit_rungs(&pack, &mut manifest, progress)?;
        }
        if self.work.exact != Exact::No {
            return self.add_exact(&pack, &manifest, progress);
        }
        if !self.rungs.is_empty() {
            // The manifest speaks of the tables, so it comes last.
            let (base, bytes) = (pack.open()?, manifest.to_bytes()?);
            let (shards, options) = (&self.allocated.shards, CopyOptions::default());
            let mut last = self.next(ROOTS)?;
            copy_pack(&base, shards, &mut last, &bytes, &options, &NoProgress)?;
            pack = last;
        }
        Ok(pack)
    }

    /// Fits level tables for the rungs, where the budget has the bits for them, and notes in the
    /// manifest what each decodes to.
    fn fit_rungs(
        &self,
        pack: &NewPack,
        manifest: &mut Manifest,
        progress: &dyn Progress,
    ) -> Result<NewPack> {
        let Work { source, recipe, encoding, .. } = *self.work;
        let (base, bytes) = (pack.open()?, manifest.to_bytes()?);
        let budget = recipe.calibrated.as_ref().and_then(|c| c.bpw);
        let mut refitted = rungs::fit(&base, source, self.rungs, progress)?;
        loop {
            let tables = !refitted.is_empty();
            let refitted = std::mem::take(&mut refitted);
            let options = CopyOptions { refitted, ..CopyOptions::default() };
            let mut other = self.next(RUNGS)?;
            let shards = &self.allocated.shards;
            let with = copy_pack(&base, shards, &mut other, &bytes, &options, &NoProgress)?;
            // Tables take some bytes, which a budget may not have.
            let bpw = PackStats::of(&with).body_bpw;
            if tables && budget.is_some_and(|b| bpw.is_some_and(|bits| bits > b.bits())) {
                continue;
            }
            let views: Vec<_> = with.tensors().collect();
            for rung in self.rungs {
                let root = rung_root(&views, *rung, encoding, progress)?;
                manifest.rungs.insert(rung.to_string(), root.to_string());
            }
            return Ok(other);
        }
    }

    fn add_exact(
        &self,
        pack: &NewPack,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<NewPack> {
        let (base, coded) = (pack.open()?, self.work.exact == Exact::Only);
        let mut exact = self.next(EXACT)?;
        let (source, max_ram, output) = (self.work.source, self.max_ram, self.output);
        let adder = Adder::new(&base, source, manifest, coded, max_ram, output, progress)?;
        adder.write(&self.allocated.shards, &mut exact, &manifest.to_bytes()?)?;
        Ok(exact)
    }

    /// Looks at the complete pack once more and gives its files their names. `restored` counts what
    /// an earlier run wrote.
    ///
    /// # Errors
    /// `Io`, `Integrity`.
    pub(super) fn finish(
        &self,
        pack: NewPack,
        restored: usize,
        state: &mut PackState,
    ) -> Result<PackReport> {
        let written = pack.open()?;
        written.manifest()?;
        if restored > 0 {
            self.check_resumed(&written)?;
        }
        let files = pack.commit_after(&written, |names| {
            let name = |(from, to): &(&Path, &Path)| NewName::new(from, to);
            state.add_named(names.iter().map(name).collect::<Result<_>>()?)
        })?;
        let report = PackReport::of(self.work.source, self.allocated, &written, files);
        Ok(PackReport { resumed: restored, ..report })
    }

    /// Decodes a pack of which an earlier run wrote a part: its checksums were right, this shows
    /// that its records are.
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
}
