//! Scale and steps of a row, when the columns matter differently.

use super::round::Searches;
use crate::codec::{POINTS, ScaleGrid, scale_bits, scale_f32};
use crate::format::Dtype;
use crate::kernels::{Nearest, STEPS, TRIES};

/// Scales that are tried for a row without groups: from a little above the one that puts the
/// largest weight on the largest level down to four tenths of it.
const ROW_TRIES: usize = 24;

/// Scales between two points of the grid, `4^(i/120)`: one of them suits the steps of all groups of
/// a row best.
const PHASES: [f32; 8] =
    [1.0, 1.011_619, 1.023_374, 1.035_264_9, 1.047_294_1, 1.059_463_1, 1.071_773_5, 1.084_226_8];

/// How a matrix is searched.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub searches: &'a Searches,
    /// What an error in each column costs.
    pub importance: &'a [f32],
    /// Consecutive columns that share a step, or 0.
    pub group: u32,
    /// The tensor's own dtype, which bounds the scales (UC-VAL-1).
    pub dtype: Dtype,
    pub points: &'a ScaleGrid,
}

/// What was found for a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// bfloat16 bits.
    pub scale: u16,
    /// One for each group, or one of 15 for the whole row.
    pub steps: Vec<u8>,
    /// The weighted squared error of rounding each weight by itself.
    pub error: f64,
}

impl Search<'_> {
    /// Scale times step at a column.
    pub(crate) fn effective(&self, found: &Found, column: usize) -> f32 {
        let step = if self.group == 0 {
            128
        } else {
            STEPS[usize::from(found.steps[column / self.group as usize])]
        };
        scale_f32(found.scale) * f32::from(step)
    }

    /// The squared errors of a row that is rounded at what was found, each times what it costs.
    pub(crate) fn cost(&self, row: &[f32], planes: u8, found: &Found, costs: &[f32]) -> f64 {
        let nearest = self.searches.of(planes);
        let group = if self.group == 0 { row.len() } else { self.group as usize };
        let mut sum = 0f64;
        for (g, (x, costs)) in row.chunks(group).zip(costs.chunks(group)).enumerate() {
            let effective = self.effective(found, g * group);
            let [error, ..] = self.errors(nearest, x, costs, [effective; TRIES]);
            sum += error;
        }
        sum
    }

    /// Finds scale and steps of a row of weights at `planes` planes.
    pub(crate) fn row(&self, row: &[f32], planes: u8) -> Found {
        let nearest = self.searches.of(planes);
        let peak = row.iter().fold(0f32, |m, x| m.max(x.abs()));
        // As the uncalibrated encoder does.
        if peak < f32::from_bits(15 << 23) {
            return self.finish(nearest, row, 1 << 7, None);
        }
        let unit = peak / nearest.top();
        if self.group == 0 {
            return self.whole_row(nearest, row, unit);
        }
        let group = self.group as usize;
        let best: Vec<i32> = row
            .chunks(group)
            .zip(self.importance.chunks(group))
            .map(|(x, weights)| self.best_point(nearest, x, weights, peak, unit))
            .collect();
        let high = best.iter().copied().max().unwrap_or(0);
        let low = best.iter().copied().min().unwrap_or(0);
        // Where the groups need more than 16 points, the largest may have to clip.
        let mut anchors = vec![high];
        if high - low > 15 {
            anchors.extend((low + 15..high).rev().step_by(3));
        }
        let anchors = anchors.into_iter().flat_map(|anchor| PHASES.map(|phase| (anchor, phase)));
        let tried = anchors.map(|(anchor, phase)| {
            let scale = unit * self.points.ratio(anchor) * phase / 128.0;
            let scale = scale_bits(scale, self.dtype);
            let wanted: Vec<i32> = best.iter().map(|t| 15 - (anchor - t)).collect();
            self.finish(nearest, row, scale, Some(&wanted))
        });
        tried.reduce(|a, b| if b.error < a.error { b } else { a }).expect("one anchor at least")
    }

    fn whole_row(&self, nearest: &Nearest, row: &[f32], unit: f32) -> Found {
        let mut found = Found { scale: 0, steps: vec![15], error: f64::INFINITY };
        for i in 0..ROW_TRIES / TRIES {
            let scales: [u16; TRIES] = std::array::from_fn(|j| {
                #[allow(clippy::cast_precision_loss, reason = "below 24")]
                let part = 1.08 - 0.03 * (i * TRIES + j) as f32;
                scale_bits(unit * part / 128.0, self.dtype)
            });
            let errors = self.errors(nearest, row, self.importance, scales.map(effective_of_row));
            for (scale, error) in scales.into_iter().zip(errors) {
                if error < found.error {
                    (found.scale, found.error) = (scale, error);
                }
            }
        }
        // Between the best and its neighbours.
        let near: [u16; TRIES] = [0.985, 0.9925, 1.0075, 1.015]
            .map(|part: f32| scale_bits(scale_f32(found.scale) * part, self.dtype));
        let errors = self.errors(nearest, row, self.importance, near.map(effective_of_row));
        for (scale, error) in near.into_iter().zip(errors) {
            if error < found.error {
                (found.scale, found.error) = (scale, error);
            }
        }
        if found.scale == 0 {
            // No error is a number: weights near the end of binary32.
            found.scale = scale_bits(unit / 128.0, self.dtype);
        }
        found
    }

    /// The point `t` of the least error among those that put the peak of the group from a bit above
    /// the largest level to twice beyond it; the scale there is `unit * 4^(t/15)`.
    fn best_point(
        &self,
        nearest: &Nearest,
        x: &[f32],
        weights: &[f32],
        amax: f32,
        unit: f32,
    ) -> i32 {
        let peak = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let start = self.points.indices(&[peak], amax)[0];
        let mut best = (f64::INFINITY, start);
        for from in [start - 6, start - 2] {
            let points: [i32; TRIES] = std::array::from_fn(|i| {
                let t = from + i32::try_from(i).expect("below 4");
                t.clamp(*POINTS.start(), *POINTS.end())
            });
            let errors =
                self.errors(nearest, x, weights, points.map(|t| unit * self.points.ratio(t)));
            for (t, error) in points.into_iter().zip(errors) {
                // Of equal ones the highest, which groups without weight should not leave.
                if error <= best.0 {
                    best = (error, t);
                }
            }
        }
        best.1
    }

    /// Weighted squared errors at four products of scale and step.
    fn errors(
        &self,
        nearest: &Nearest,
        x: &[f32],
        weights: &[f32],
        effective: [f32; TRIES],
    ) -> [f64; TRIES] {
        let errors = nearest.weighted_errors(x, weights, &effective.map(|e| 2.0 / e));
        std::array::from_fn(|i| {
            let half = f64::from(effective[i]) / 2.0;
            f64::from(errors[i]) * (half * half)
        })
    }

    /// With the scale of the row settled, the best step of each group: around `wanted`, or any.
    fn finish(&self, nearest: &Nearest, row: &[f32], scale: u16, wanted: Option<&[i32]>) -> Found {
        if self.group == 0 {
            let [error, ..] =
                self.errors(nearest, row, self.importance, [effective_of_row(scale); TRIES]);
            return Found { scale, steps: vec![15], error };
        }
        let group = self.group as usize;
        let mut found = Found { scale, steps: vec![], error: 0.0 };
        let groups = row.chunks(group).zip(self.importance.chunks(group));
        for (g, (x, weights)) in groups.enumerate() {
            let mut best = (f64::INFINITY, 15u8);
            let froms: &[i32] = match wanted {
                Some(wanted) => &[wanted[g] - 2],
                None => &[0, 4, 8, 12],
            };
            for from in froms {
                let steps: [u8; TRIES] = std::array::from_fn(|i| {
                    let k = (from + i32::try_from(i).expect("below 4")).clamp(0, 15);
                    u8::try_from(k).expect("0 to 15")
                });
                let effective = steps.map(|k| scale_f32(scale) * f32::from(STEPS[usize::from(k)]));
                let errors = self.errors(nearest, x, weights, effective);
                for (k, error) in steps.into_iter().zip(errors) {
                    if error < best.0 {
                        best = (error, k);
                    }
                }
            }
            found.steps.push(best.1);
            found.error += if best.0.is_finite() { best.0 } else { 0.0 };
        }
        found
    }
}

/// Scale times the step of a row without groups.
fn effective_of_row(scale: u16) -> f32 {
    scale_f32(scale) * 128.0
}
