//! Packing with a calibration: which matrices are encoded by it, with which groups, planes and
//! levels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{Allocation, Bpw, CalibratedRecipe, Decision, Plan, Recipe};
use crate::calibration::Calibration;
use crate::codec::{OwnedLevels, PlaneCounts, PlaneLayout, read_f32};
use crate::container::{EncodedTensor, PlaneParts};
use crate::encoder::{
    Candidate, Histograms, MatrixEncoder, Settings, Survey, Unit, allocate, bytes_of, fewest_bytes,
    with_fitted,
};
use crate::error::{Error, Result};
use crate::format::{
    ALIGN_BYTES, MAX_PLANES, MIN_PLANES, PLANE_COUNTS, Role, TreeHasher, elements, plane_index,
    tensor_leaf,
};
use crate::kernels::Kernel;
use crate::memory::to_usize;
use crate::par::{self, Until};
use crate::progress::{Progress, step};
use crate::source::Scan;
use crate::source::{Source, SourceTensor};

/// Least weights that level tables are fitted to: below, their bytes cost more than they may gain.
const FIT_WEIGHTS: u64 = 1 << 21;

/// How the matrices of a pack are encoded by a calibration.
pub(crate) struct Calibrated<'a> {
    calibration: &'a Calibration,
    /// The tensors that it encodes.
    chosen: Vec<usize>,
    kernel: Kernel,
    settings: Settings,
    recipe: CalibratedRecipe,
    /// By tensor of the source.
    placements: BTreeMap<usize, Placement>,
    levels: OwnedLevels,
    /// Tables of `levels` that aren't the defaults, by native planes less 3.
    fitted: [Option<Vec<i8>>; PLANE_COUNTS],
}

struct Placement {
    group: u32,
    counts: PlaneCounts,
}

/// What surveying and fitting came to, by name of the tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    placements: BTreeMap<String, SavedPlacement>,
    fitted: [Option<Vec<i8>>; PLANE_COUNTS],
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPlacement {
    group: u32,
    /// One for all rows, or one for each.
    counts: Vec<u8>,
}

/// Refuses a calibration of another model.
pub(crate) fn check_root(source: &Source, scans: &[Scan], calibration: &Calibration) -> Result<()> {
    let mut tree = TreeHasher::new();
    for (t, scan) in source.tensors().iter().zip(scans) {
        tree.push(tensor_leaf(&t.name, t.dtype, &t.shape, scan.sha256));
    }
    let (found, expected) = (tree.root().to_string(), &calibration.record().model_root);
    if found != *expected {
        return Err(calibration.locate(Error::source_file(format!(
            "is the calibration of another model: its decoded root is {expected}, the source's {found}"
        ))));
    }
    Ok(())
}

/// Memory that a tensor needs while it is encoded by a calibration, or nothing if it isn't.
pub(crate) fn memory(
    t: &SourceTensor,
    decision: &Decision,
    calibration: &Calibration,
) -> Option<u64> {
    let Decision::Planes { row_dims: 1, .. } = decision else { return None };
    calibration.layer_of(&t.name)?;
    let (rows, cols) = (*t.shape.first()?, elements(&t.shape[1..])?);
    Some(
        MatrixEncoder::memory(rows, cols, calibration.record().output_block)
            .saturating_add(2 * t.len),
    )
}

impl<'a> Calibrated<'a> {
    /// Chooses the matrices. Their planes are still to be settled: by [`Calibrated::survey`] and
    /// what follows it, or by [`Calibrated::restore`].
    ///
    /// # Errors
    /// `Source` for layers that the calibration lacks or has in another shape.
    pub(crate) fn new(
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        calibration: &'a Calibration,
    ) -> Result<Self> {
        let calibrated = recipe.calibrated.clone().unwrap_or_default();
        let settings = Settings {
            input_feedback: calibrated.input_feedback,
            output_feedback: calibrated.output_feedback && calibrated.input_feedback,
            descent_passes: usize::from(calibrated.descent_passes),
            group: (!calibrated.choose_group || calibrated.bpw.is_none()).then_some(recipe.group),
        };
        Ok(Self {
            calibration,
            chosen: choose(source, plan, calibration)?,
            kernel: Kernel::selected()?,
            settings,
            recipe: calibrated,
            placements: BTreeMap::new(),
            levels: with_fitted(&Default::default()),
            fitted: Default::default(),
        })
    }

    /// Says in the plan how each of the matrices is encoded.
    ///
    /// # Errors
    /// `LimitExceeded` for more rows than memory has addresses.
    pub(crate) fn explain(&self, source: &Source, plan: &mut Plan) -> Result<()> {
        for (&i, placement) in &self.placements {
            let t = &source.tensors()[i];
            let planes: u64 =
                (0..to_usize(t.shape[0])?).map(|r| u64::from(placement.counts.of(r))).sum();
            #[allow(clippy::cast_precision_loss, reason = "for display")]
            let mean = planes as f64 / t.shape[0] as f64;
            let group = match placement.group {
                0 => "whole rows".to_owned(),
                n => format!("groups of {n}"),
            };
            plan.tensors[i].reason = format!("calibrated: {mean:.2} planes, {group}");
        }
        Ok(())
    }

    /// What surveying and fitting came to, for [`Calibrated::restore`] in the same run.
    ///
    /// # Errors
    /// Never, for what this program makes.
    pub(crate) fn save(&self, source: &Source) -> Result<Value> {
        let placement = |(&i, p): (&usize, &Placement)| {
            let counts = match &p.counts {
                PlaneCounts::Uniform(n) => vec![*n],
                PlaneCounts::PerRow(counts) => counts.clone(),
            };
            (source.tensors()[i].name.clone(), SavedPlacement { group: p.group, counts })
        };
        let placements = self.placements.iter().map(placement).collect();
        serde_json::to_value(Saved { placements, fitted: self.fitted.clone() })
            .map_err(|e| Error::argument(format!("state: {e}")).with_source(e))
    }

    /// Takes over what [`Calibrated::save`] gave.
    ///
    /// # Errors
    /// `Source` where it makes no sense.
    pub(crate) fn restore(&mut self, source: &Source, saved: &Value) -> Result<()> {
        let wrong = || {
            Error::source_file(
                "the state of the earlier run is damaged; start again without --resume",
            )
        };
        let saved = Saved::deserialize(saved).map_err(|e| wrong().with_source(e))?;
        for &i in &self.chosen {
            let t = &source.tensors()[i];
            let SavedPlacement { group, counts } =
                saved.placements.get(&t.name).ok_or_else(wrong)?.clone();
            let rows = to_usize(t.shape[0])?;
            let counts = match &counts[..] {
                _ if !counts.iter().all(|n| (MIN_PLANES..=MAX_PLANES).contains(n)) => {
                    return Err(wrong());
                }
                [n] => PlaneCounts::Uniform(*n),
                _ if counts.len() == rows => PlaneCounts::PerRow(counts),
                _ => return Err(wrong()),
            };
            PlaneLayout::new(&t.shape, 1, group).map_err(|_| wrong())?;
            self.placements.insert(i, Placement { group, counts });
        }
        let tables = saved
            .fitted
            .iter()
            .zip(3..)
            .all(|(t, n)| t.as_ref().is_none_or(|t| t.len() == (2 << n) - 8));
        if saved.placements.len() != self.chosen.len() || !tables {
            return Err(wrong());
        }
        self.fitted = saved.fitted;
        self.levels = with_fitted(&self.fitted);
        Ok(())
    }

    /// Whether a tensor is encoded by the calibration.
    pub(crate) fn has(&self, i: usize) -> bool {
        self.placements.contains_key(&i)
    }

    /// Tables that are not the defaults, by native planes less 3.
    pub(crate) fn fitted(&self) -> &[Option<Vec<i8>>; PLANE_COUNTS] {
        &self.fitted
    }

    fn cost(&self, source: &Source, plan: &Plan, i: usize) -> u64 {
        memory(&source.tensors()[i], &plan.tensors[i].decision, self.calibration).unwrap_or(0)
    }

    /// Calls `work` with each of the tensors `chosen`, as a layer. Results come in the order of
    /// `chosen`.
    fn each<T: Send>(
        &self,
        source: &Source,
        chosen: &[usize],
        budget: u64,
        cost: impl Fn(usize) -> u64 + Sync,
        work: impl Fn(usize, &MatrixEncoder<'_>) -> Result<T> + Sync,
        take: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<()> {
        par::pipeline(
            chosen.len(),
            budget,
            Until::Worked,
            |at| cost(chosen[at]),
            |at| source.read(&source.tensors()[chosen[at]], 0, source.tensors()[chosen[at]].len),
            |at, bytes| self.with_layer(source, chosen[at], &bytes, |layer| work(at, layer)),
            take,
        )
    }

    /// Calls `work` with a tensor as a layer.
    fn with_layer<T>(
        &self,
        source: &Source,
        i: usize,
        bytes: &[u8],
        work: impl FnOnce(&MatrixEncoder<'_>) -> Result<T>,
    ) -> Result<T> {
        let t = &source.tensors()[i];
        let locate = |e: Error| self.calibration.locate(e).in_tensor(&t.name);
        let statistics = self.calibration.statistics(&t.name).map_err(locate)?;
        let mut weights = Vec::with_capacity(bytes.len() / 2);
        read_f32(bytes, t.dtype, &mut weights);
        let rows = to_usize(t.shape[0])?;
        let shape = [rows, weights.len() / rows.max(1)];
        let layer =
            MatrixEncoder::new(self.kernel, shape, &weights, t.dtype, &statistics, self.settings);
        work(&layer.map_err(locate)?).map_err(locate)
    }

    /// Finds the group of each matrix of the body, and the loss of its rows at each number of
    /// planes. Nothing is surveyed without a budget of bits: then the recipe says it all.
    ///
    /// # Errors
    /// `Source` for moments that make no sense; as reading; `Cancelled`.
    pub(crate) fn survey(
        &self,
        source: &Source,
        plan: &Plan,
        budget: u64,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<usize, Survey>> {
        let is_body = |i: &&usize| plan.tensors[**i].role == Role::Body;
        let body: Vec<usize> = match self.recipe.bpw {
            Some(_) => self.chosen.iter().filter(is_body).copied().collect(),
            None => vec![],
        };
        let mut surveys = BTreeMap::new();
        self.each(
            source,
            &body,
            budget,
            |i| self.cost(source, plan, i),
            |_, layer| layer.survey(),
            |at, survey| {
                surveys.insert(body[at], survey);
                step(progress, source.tensors()[body[at]].len)
            },
        )?;
        Ok(surveys)
    }

    /// Gives each matrix its group and its planes, those of the body within the budget of bits.
    ///
    /// # Errors
    /// `Source` for a budget that can't be kept.
    pub(crate) fn allocate(
        &mut self,
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        surveys: &BTreeMap<usize, Survey>,
    ) -> Result<()> {
        let planes_of = |i: usize| match plan.tensors[i].decision {
            Decision::Planes { planes, .. } => planes,
            _ => recipe.bits,
        };
        // Those without a survey are encoded by the calibration too, but at the planes of the
        // recipe.
        for &i in &self.chosen {
            let group = match surveys.get(&i) {
                Some(survey) => survey.group,
                None => recipe.group_of(plan.tensors[i].role),
            };
            let counts = PlaneCounts::Uniform(planes_of(i));
            self.placements.insert(i, Placement { group, counts });
        }
        let Some(bpw) = self.recipe.bpw else { return Ok(()) };
        for (i, counts) in self.within_budget(source, plan, recipe, surveys, bpw)? {
            let uniform = counts.windows(2).all(|w| w[0] == w[1]);
            let placement = self.placements.get_mut(&i).expect("one of those chosen");
            placement.counts = match uniform {
                true => PlaneCounts::Uniform(counts[0]),
                false => PlaneCounts::PerRow(counts),
            };
        }
        Ok(())
    }

    /// Planes of the rows of the tensors that are free to have any, so that the body stays within
    /// `bpw`.
    fn within_budget(
        &self,
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        surveys: &BTreeMap<usize, Survey>,
        bpw: Bpw,
    ) -> Result<Vec<(usize, Vec<u8>)>> {
        // What the budget has to bear besides: tensors that are not chosen freely.
        let mut body_weights = 0u64;
        let mut fixed = 0u64;
        let mut candidates = vec![];
        let mut free = vec![];
        for (i, (t, planned)) in source.tensors().iter().zip(&plan.tensors).enumerate() {
            if planned.role != Role::Body || matches!(planned.decision, Decision::Alias(_)) {
                continue;
            }
            body_weights += elements(&t.shape).unwrap_or(0);
            match (&planned.decision, surveys.get(&i)) {
                (Decision::Planes { row_dims, .. }, Some(survey)) if !planned.forced => {
                    let layout = PlaneLayout::new(&t.shape, *row_dims, survey.group)?;
                    candidates.push(Candidate { layout, losses: survey.losses.clone() });
                    free.push(i);
                }
                (Decision::Planes { planes, row_dims }, survey) => {
                    let group = survey.map_or(recipe.group, |s| s.group);
                    let layout = PlaneLayout::new(&t.shape, *row_dims, group)?;
                    fixed += bytes_of(&layout, &PlaneCounts::Uniform(*planes));
                }
                _ => fixed += t.len.next_multiple_of(ALIGN_BYTES),
            }
        }
        if self.recipe.fit_levels && body_weights >= FIT_WEIGHTS {
            // Tables of 3 to 7 planes, all of them or fewer.
            fixed += (MIN_PLANES..MAX_PLANES).map(|n| (2 << n) - 8).sum::<u64>();
        }
        let unit = match self.recipe.allocation {
            Allocation::Row => Unit::Row,
            Allocation::Tensor => Unit::Tensor,
        };
        let bytes = bpw.bytes(body_weights);
        let counts = bytes.checked_sub(fixed).and_then(|left| allocate(&candidates, left, unit));
        let counts = counts.ok_or_else(|| {
            #[allow(clippy::cast_precision_loss, reason = "for display")]
            let least = ((fixed + fewest_bytes(&candidates)) * 8) as f64 / body_weights.max(1) as f64;
            Error::source_file(format!(
                "a budget of {bpw} bpw can't be kept: with 3 planes for every row that may have so few, the body takes {least:.4}"
            ))
        })?;
        Ok(free.into_iter().zip(counts).collect())
    }

    /// Fits level tables to all matrices, where there are enough weights for that.
    ///
    /// # Errors
    /// As reading.
    pub(crate) fn fit(&mut self, source: &Source, budget: u64) -> Result<()> {
        let weights = |&i: &usize| elements(&source.tensors()[i].shape).unwrap_or(0);
        let body: u64 = self.chosen.iter().map(weights).sum();
        if !self.recipe.fit_levels || body < FIT_WEIGHTS {
            return Ok(());
        }
        let chosen: Vec<usize> = self.placements.keys().copied().collect();
        let mut all = Histograms::new();
        let block = self.calibration.record().output_block;
        let cost = |i: usize| {
            let t = &source.tensors()[i];
            MatrixEncoder::memory(t.shape[0], elements(&t.shape[1..]).unwrap_or(0), block)
                + 2 * t.len
        };
        self.each(
            source,
            &chosen,
            budget,
            cost,
            |at, layer| {
                let placement = &self.placements[&chosen[at]];
                layer.histograms(&placement.counts, placement.group)
            },
            |_, histograms| {
                all.merge(&histograms);
                Ok(())
            },
        )?;
        self.fitted = all.fit();
        self.levels = with_fitted(&self.fitted);
        Ok(())
    }

    /// Encodes a tensor from its source bytes.
    ///
    /// # Errors
    /// As [`Calibrated::new`].
    pub(crate) fn encode(
        &self,
        source: &Source,
        plan: &Plan,
        i: usize,
        bytes: &[u8],
    ) -> Result<EncodedTensor> {
        let (t, placement) = (&source.tensors()[i], &self.placements[&i]);
        let levels = self.levels.borrow();
        let encoded = self.with_layer(source, i, bytes, |layer| {
            layer.encode(&placement.counts, placement.group, levels)
        })?;
        let parts = PlaneParts {
            row_dims: 1,
            group: placement.group,
            counts: placement.counts.clone(),
            level_ids: [0; PLANE_COUNTS],
            scales: encoded.scales,
            steps: encoded.steps,
            planes: encoded.planes,
        };
        let role = plan.tensors[i].role;
        EncodedTensor::with_levels(&t.name, t.dtype, &t.shape, role, parts, &levels)
    }

    /// Bytes of the parts of a tensor, without padding.
    pub(crate) fn content_bytes(&self, source: &Source, i: usize) -> Result<u64> {
        let placement = &self.placements[&i];
        let layout = PlaneLayout::new(&source.tensors()[i].shape, 1, placement.group)?;
        let counts = placement.counts.to_part().map_or(0, |part| part.len() as u64);
        let planes: u64 = placement.counts.rows_with(layout.rows).iter().sum();
        let per_row = layout.rows * (2 + layout.steps_row_bytes());
        Ok(counts + per_row + planes * layout.row_bytes())
    }

    /// Which native counts a tensor uses.
    pub(crate) fn counts(&self, i: usize) -> [bool; PLANE_COUNTS] {
        let mut used = [false; PLANE_COUNTS];
        match &self.placements[&i].counts {
            PlaneCounts::Uniform(n) => used[plane_index(*n)] = true,
            PlaneCounts::PerRow(counts) => {
                counts.iter().for_each(|n| used[plane_index(*n)] = true);
            }
        }
        used
    }
}

/// The tensors that are encoded by the calibration, and whether it has all that it should have.
fn choose(source: &Source, plan: &Plan, calibration: &Calibration) -> Result<Vec<usize>> {
    let (mut chosen, mut missing) = (vec![], vec![]);
    for (i, (t, planned)) in source.tensors().iter().zip(&plan.tensors).enumerate() {
        let Decision::Planes { row_dims, .. } = planned.decision else { continue };
        match calibration.layer_of(&t.name) {
            Some(layer) if row_dims == 1 => {
                let cols = elements(&t.shape[1..]).unwrap_or(0);
                if (t.shape[0], cols) != (layer.rows, layer.cols) {
                    let what = format!(
                        "is {:?}, the calibration is of {} x {}",
                        t.shape, layer.rows, layer.cols
                    );
                    return Err(calibration.locate(Error::source_file(what)).in_tensor(&t.name));
                }
                chosen.push(i);
            }
            _ if planned.role == Role::Body && !planned.forced => missing.push(t.name.as_str()),
            _ => {}
        }
    }
    if let Some(first) = missing.first() {
        let what = format!(
            "the calibration lacks {} of the layers that are to be quantized, such as this",
            missing.len()
        );
        return Err(calibration.locate(Error::source_file(what)).in_tensor(first));
    }
    Ok(chosen)
}
