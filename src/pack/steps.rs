//! The steps of packing: scan, survey and allocate, encode. Each is a function of the source, the
//! recipe and what the steps before it found.

use super::calibrated::{self, Calibrated};
use super::jobs::{Item, Jobs, Task, encode, read};
use super::plan::Plan;
use super::reuse::Reused;
use super::sizes;
use super::work::{Allocated, Scanned, Work};
use super::write::Output;
use crate::error::Result;
use crate::output::{NewPack, PackState};
use crate::par::{self, Until};
use crate::progress::{Progress, step};
use crate::source::scan;

impl<'a> Work<'a> {
    /// Scans the source and settles what becomes of each tensor.
    ///
    /// # Errors
    /// `Io`, `Source` for a calibration of another model, `Cancelled`.
    pub(super) fn scan(
        &self,
        mut plan: Plan,
        with_files: bool,
        progress: &dyn Progress,
    ) -> Result<Scanned> {
        let scans = scan(self.source, with_files, self.scanning, progress)?;
        plan.refine(&scans.tensors);
        if let Some(calibration) = self.calibration {
            calibrated::check_root(self.source, &scans.tensors, calibration)?;
        }
        Ok(Scanned { plan, scans })
    }

    /// Surveys what the calibration encodes, allocates planes to its rows, and cuts the pack into
    /// shards. `state` has what an earlier run of the same found out, and takes what this one
    /// finds.
    ///
    /// # Errors
    /// As [`Calibrated::new`], and of `state`.
    pub(super) fn allocate(
        &self,
        scanned: Scanned,
        state: Option<&mut PackState>,
        progress: &dyn Progress,
    ) -> Result<Allocated<'a>> {
        let Scanned { mut plan, scans } = scanned;
        let mut allocated = None;
        if let Some(calibration) = self.calibration {
            debug_assert_eq!(scans.tensors.len(), plan.tensors.len());
            let (source, recipe) = (self.source, self.recipe);
            let mut calibrated = Calibrated::new(source, &plan, recipe, calibration)?;
            match state.as_ref().and_then(|state| state.calibrated()) {
                Some(saved) => calibrated.restore(source, saved)?,
                None => {
                    let surveys = calibrated.survey(source, &plan, self.encoding, progress)?;
                    calibrated.allocate(source, &plan, recipe, &surveys)?;
                    calibrated.fit(source, self.encoding)?;
                    if let Some(state) = state {
                        state.add_calibrated(calibrated.save(source)?)?;
                    }
                }
            }
            calibrated.explain(source, &mut plan)?;
            allocated = Some(calibrated);
        }
        let (shards, count) = sizes::shards(self, &plan, allocated.as_ref())?;
        Ok(Allocated { plan, scans, calibrated: allocated, shards, count })
    }

    /// Reads, encodes and writes everything, one job after the other. Gives the number of tensors
    /// and files that an earlier run had written.
    ///
    /// # Errors
    /// As for reading, encoding and writing; `Cancelled`.
    pub(super) fn encode(
        &self,
        allocated: &Allocated<'_>,
        reused: &Reused,
        pack: &mut NewPack,
        manifest: &[u8],
        state: &mut PackState,
        progress: &dyn Progress,
    ) -> Result<usize> {
        let Allocated { plan, scans, calibrated, shards, .. } = allocated;
        let source = self.source;
        let (recipe, calibrated) = (self.recipe, calibrated.as_ref());
        let task = Task { source, plan, scans, shards, recipe, calibrated, reused };
        let mut whole = sizes::whole(source, plan, self.calibration);
        for (i, whole) in whole.iter_mut().enumerate() {
            *whole = reused.cost(i).or(*whole);
        }
        let jobs = Jobs::new(source, plan, self.recipe, shards, whole)?;
        let done = state.take_done();
        let output = Output::new(task, pack, manifest, state, !done.is_empty())?;
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
