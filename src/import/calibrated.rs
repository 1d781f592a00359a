//! Packing with a calibration: which matrices are encoded by it, with which groups, planes and levels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{Allocation, CalibratedRecipe, Decision, Plan, Recipe};
use super::scan::Scan;
use super::source::{Source, SourceTensor};
use crate::calibration::Calibration;
use crate::codec::{OwnedLevels, PlaneCounts, PlaneLayout, read_f32};
use crate::container::{EncodedTensor, PlaneParts};
use crate::encoder::{
    Candidate, Histograms, Layer, Settings, Survey, Unit, allocate, bytes_of, fewest_bytes,
    with_fitted,
};
use crate::error::{Error, Result};
use crate::format::{Role, TreeHasher, elements, tensor_leaf, to_usize};
use crate::kernels::Kernel;
use crate::par::{self, Until};
use crate::progress::{Progress, step};

/// Names the encoder of calibrated packs. It changes whenever the bytes that it makes could change.
pub const CALIBRATED_ENCODER_ID: &str = "uc-yaqa-1+zstd-1.5.7";

/// Least weights that level tables are fitted to: below, their bytes cost more than they may gain.
const FIT_WEIGHTS: u64 = 1 << 21;

/// How the matrices of a pack are encoded by a calibration.
pub(super) struct Calibrated<'a> {
    calibration: &'a Calibration,
    kernel: Kernel,
    settings: Settings,
    /// By tensor of the source.
    placements: BTreeMap<usize, Placement>,
    levels: OwnedLevels,
    /// Tables of `levels` that aren't the defaults, by native planes less 3.
    fitted: [Option<Vec<i8>>; 6],
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
    fitted: [Option<Vec<i8>>; 6],
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPlacement {
    group: u32,
    /// One for all rows, or one for each.
    counts: Vec<u8>,
}

/// Refuses a calibration of another model.
pub(super) fn check_root(source: &Source, scans: &[Scan], calibration: &Calibration) -> Result<()> {
    let mut tree = TreeHasher::new();
    for (t, scan) in source.tensors().iter().zip(scans) {
        tree.push(tensor_leaf(&t.name, t.dtype, &t.shape, scan.sha256));
    }
    let (found, expected) = (tree.root().to_string(), &calibration.record().model_root);
    if found != *expected {
        return Err(calibration.place(Error::source_file(format!(
            "is the calibration of another model: its decoded root is {expected}, the source's {found}"
        ))));
    }
    Ok(())
}

/// Memory that a tensor needs while it is encoded by a calibration, or nothing if it isn't.
pub(super) fn memory(
    t: &SourceTensor,
    decision: &Decision,
    calibration: &Calibration,
) -> Option<u64> {
    let Decision::Planes { row_dims: 1, .. } = decision else { return None };
    calibration.layer_of(&t.name)?;
    let (rows, cols) = (*t.shape.first()?, elements(&t.shape[1..])?);
    Some(Layer::memory(rows, cols, calibration.record().output_block).saturating_add(2 * t.len))
}

impl<'a> Calibrated<'a> {
    /// Surveys the matrices, allocates their planes and fits levels. Changes the reasons of `plan`.
    ///
    /// # Errors
    /// `Source` for layers that the calibration lacks or has in another shape, moments that make no sense, and a
    /// budget that can't be kept; as reading both.
    pub(super) fn new(
        source: &Source,
        plan: &mut Plan,
        recipe: &Recipe,
        calibration: &'a Calibration,
        saved: Option<&Value>,
        budget: u64,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let calibrated = recipe.calibrated.clone().unwrap_or_default();
        let chosen = choose(source, plan, calibration)?;
        let settings = Settings {
            input_feedback: calibrated.input_feedback,
            output_feedback: calibrated.output_feedback && calibrated.input_feedback,
            descent_passes: usize::from(calibrated.descent_passes),
            group: (!calibrated.choose_group || calibrated.bpw.is_none()).then_some(recipe.group),
        };
        let mut this = Self {
            calibration,
            kernel: Kernel::selected()?,
            settings,
            placements: BTreeMap::new(),
            levels: with_fitted(&Default::default()),
            fitted: Default::default(),
        };
        match saved {
            Some(saved) => this.restore(source, &chosen, saved)?,
            None => {
                this.place(source, plan, recipe, &calibrated, &chosen, budget, progress)?;
                let body: u64 =
                    chosen.iter().map(|&i| elements(&source.tensors()[i].shape).unwrap_or(0)).sum();
                if calibrated.fit_levels && body >= FIT_WEIGHTS {
                    this.fit(source, budget)?;
                }
            }
        }
        for (&i, placement) in &this.placements {
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
        Ok(this)
    }

    /// What surveying and fitting came to, for [`Calibrated::new`] of the same run.
    ///
    /// # Errors
    /// Never, for what this program makes.
    pub(super) fn save(&self, source: &Source) -> Result<Value> {
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

    fn restore(&mut self, source: &Source, chosen: &[usize], saved: &Value) -> Result<()> {
        let wrong = || {
            Error::source_file(
                "the state of the earlier run is damaged; start again without --resume",
            )
        };
        let saved = Saved::deserialize(saved).map_err(|e| wrong().with_source(e))?;
        for &i in chosen {
            let t = &source.tensors()[i];
            let SavedPlacement { group, counts } =
                saved.placements.get(&t.name).ok_or_else(wrong)?.clone();
            let rows = to_usize(t.shape[0])?;
            let counts = match &counts[..] {
                _ if !counts.iter().all(|n| (3..=8).contains(n)) => return Err(wrong()),
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
        if saved.placements.len() != chosen.len() || !tables {
            return Err(wrong());
        }
        self.fitted = saved.fitted;
        self.levels = with_fitted(&self.fitted);
        Ok(())
    }

    /// Whether a tensor is encoded by the calibration.
    pub(super) fn has(&self, i: usize) -> bool {
        self.placements.contains_key(&i)
    }

    /// Tables that are not the defaults, by native planes less 3.
    pub(super) fn fitted(&self) -> &[Option<Vec<i8>>; 6] {
        &self.fitted
    }

    fn cost(&self, source: &Source, plan: &Plan, i: usize) -> u64 {
        memory(&source.tensors()[i], &plan.tensors[i].decision, self.calibration).unwrap_or(0)
    }

    /// Calls `work` with each of the tensors `chosen`, as a layer. Results come in the order of `chosen`.
    fn each<T: Send>(
        &self,
        source: &Source,
        chosen: &[usize],
        budget: u64,
        cost: impl Fn(usize) -> u64 + Sync,
        work: impl Fn(usize, &Layer<'_>) -> Result<T> + Sync,
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
        work: impl FnOnce(&Layer<'_>) -> Result<T>,
    ) -> Result<T> {
        let t = &source.tensors()[i];
        let place = |e: Error| self.calibration.place(e).in_tensor(&t.name);
        let statistics = self.calibration.statistics(&t.name).map_err(place)?;
        let mut weights = Vec::with_capacity(bytes.len() / 2);
        read_f32(bytes, t.dtype, &mut weights);
        let rows = to_usize(t.shape[0])?;
        let shape = [rows, weights.len() / rows.max(1)];
        let layer = Layer::new(self.kernel, shape, &weights, t.dtype, &statistics, self.settings);
        work(&layer.map_err(place)?).map_err(place)
    }

    #[allow(clippy::too_many_arguments, reason = "one step of `new`")]
    fn place(
        &mut self,
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        calibrated: &CalibratedRecipe,
        chosen: &[usize],
        budget: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        let planes_of = |i: usize| match plan.tensors[i].decision {
            Decision::Planes { planes, .. } => planes,
            _ => recipe.bits,
        };
        let uniform = |i: usize| Placement {
            group: recipe.group_of(plan.tensors[i].role),
            counts: PlaneCounts::Uniform(planes_of(i)),
        };
        let Some(bpw) = calibrated.bpw else {
            for &i in chosen {
                self.placements.insert(i, uniform(i));
            }
            return Ok(());
        };
        // Others are encoded by the calibration, but at the planes of the recipe.
        let is_body = |i: &&usize| plan.tensors[**i].role == Role::Body;
        for &i in chosen.iter().filter(|i| !is_body(i)) {
            self.placements.insert(i, uniform(i));
        }
        let chosen: Vec<usize> = chosen.iter().filter(is_body).copied().collect();
        let mut surveys: Vec<Survey> = vec![];
        self.each(
            source,
            &chosen,
            budget,
            |i| self.cost(source, plan, i),
            |_, layer| layer.survey(),
            |at, survey| {
                surveys.push(survey);
                step(progress, source.tensors()[chosen[at]].len)
            },
        )?;
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
            let survey = chosen.binary_search(&i).ok().map(|at| &surveys[at]);
            match (&planned.decision, survey) {
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
                _ => fixed += t.len.next_multiple_of(64),
            }
        }
        if calibrated.fit_levels && body_weights >= FIT_WEIGHTS {
            // Tables of 3 to 7 planes, all of them or fewer.
            fixed += (3..8u64).map(|n| (2 << n) - 8).sum::<u64>();
        }
        let unit = match calibrated.allocation {
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
        for (&i, survey) in chosen.iter().zip(&surveys) {
            let counts = match free.binary_search(&i) {
                Ok(at) => {
                    let counts = &counts[at];
                    if counts.windows(2).all(|w| w[0] == w[1]) {
                        PlaneCounts::Uniform(counts[0])
                    } else {
                        PlaneCounts::PerRow(counts.clone())
                    }
                }
                Err(_) => PlaneCounts::Uniform(planes_of(i)),
            };
            self.placements.insert(i, Placement { group: survey.group, counts });
        }
        Ok(())
    }

    /// Fits level tables to all matrices.
    fn fit(&mut self, source: &Source, budget: u64) -> Result<()> {
        let chosen: Vec<usize> = self.placements.keys().copied().collect();
        let mut all = Histograms::new();
        let block = self.calibration.record().output_block;
        let cost = |i: usize| {
            let t = &source.tensors()[i];
            Layer::memory(t.shape[0], elements(&t.shape[1..]).unwrap_or(0), block) + 2 * t.len
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
    pub(super) fn encode(
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
            level_ids: [0; 6],
            scales: encoded.scales,
            steps: encoded.steps,
            planes: encoded.planes,
        };
        let role = plan.tensors[i].role;
        EncodedTensor::with_levels(&t.name, t.dtype, &t.shape, role, parts, &levels)
    }

    /// Bytes of the parts of a tensor, without padding.
    pub(super) fn content_bytes(&self, source: &Source, i: usize) -> Result<u64> {
        let placement = &self.placements[&i];
        let layout = PlaneLayout::new(&source.tensors()[i].shape, 1, placement.group)?;
        let counts = placement.counts.to_part().map_or(0, |part| part.len() as u64);
        let planes: u64 = placement.counts.rows_with(layout.rows).iter().sum();
        let per_row = layout.rows * (2 + layout.steps_row_bytes());
        Ok(counts + per_row + planes * layout.row_bytes())
    }

    /// Which native counts a tensor uses.
    pub(super) fn counts(&self, i: usize) -> [bool; 6] {
        let mut used = [false; 6];
        match &self.placements[&i].counts {
            PlaneCounts::Uniform(n) => used[usize::from(*n) - 3] = true,
            PlaneCounts::PerRow(counts) => {
                counts.iter().for_each(|n| used[usize::from(*n) - 3] = true);
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
                    return Err(calibration.place(Error::source_file(what)).in_tensor(&t.name));
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
        return Err(calibration.place(Error::source_file(what)).in_tensor(first));
    }
    Ok(chosen)
}
