//! The uncalibrated encoder: for each row the scale, steps and codes of least squared error.
//!
//! Every float operation here is a single IEEE 754 binary32 add, subtract, multiply, divide or
//! comparison in a fixed order, so codes don't depend on the CPU or on threads.

use super::scale_grid::{POINTS, ScaleGrid, scale_bits};
use super::value::scale_f32;
use crate::codec::{LevelSet, PlaneLayout};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::kernels::{Kernel, Nearest, STEPS, TRIES};
use crate::memory::to_usize;

/// Grid point of the largest step in ordinary rows: room for a largest group that wants a scale
/// above the one that puts its peak on the largest level.
const ANCHOR: i32 = 2;
/// Highest points that a row gives up for the sake of its smallest groups.
const MAX_ANCHORS: i32 = 12;

/// Encodes rows of one tensor: for each row the scale, steps and codes of about the least squared
/// error (the uncalibrated encoder).
///
/// ```
/// use ultracompress::Dtype;
/// use ultracompress::codec::{LevelSet, PlaneLayout, RowEncoder};
///
/// let layout = PlaneLayout::new(&[2, 64], 1, 32)?;
/// let weights: Vec<f32> = (0..128).map(|i| (i as f32).sin()).collect();
/// let rows = RowEncoder::new(&layout, LevelSet::default_for(5), Dtype::F32)?.encode(&weights)?;
/// assert_eq!((rows.scales.len(), rows.steps.len()), (2 * 2, 2 * 1));
/// assert!(rows.planes.iter().all(|plane| plane.len() == 2 * 8));
/// # Ok::<(), ultracompress::Error>(())
/// ```
#[derive(Debug)]
pub struct RowEncoder {
    cols: usize,
    group: usize,
    n_groups: usize,
    grouped: bool,
    planes: u8,
    dtype: Dtype,
    nearest: Nearest,
    grid: ScaleGrid,
}

/// Encoded rows, in the layout of the parts.
#[derive(Debug, Default)]
pub struct EncodedRows {
    /// Two bytes a row.
    pub scales: Vec<u8>,
    /// `steps_row_bytes` a row.
    pub steps: Vec<u8>,
    /// One buffer for each plane, most significant first, of `row_bytes` a row.
    pub planes: Vec<Vec<u8>>,
}

impl RowEncoder {
    /// An encoder for rows of `layout` with the native planes of `levels`, with
    /// [`Kernel::selected`]. `source` is the tensor's own dtype, which bounds the row scales
    /// (UC-VAL-1).
    ///
    /// # Errors
    /// `InvalidArgument` for a kernel that can't run; `Malformed` for an empty matrix or a group
    /// size that doesn't exist.
    pub fn new(layout: &PlaneLayout, levels: LevelSet<'_>, source: Dtype) -> Result<Self> {
        layout.check()?;
        let cols = to_usize(layout.cols)?;
        let planes = levels.native();
        let table = levels.table(planes);
        Ok(Self {
            cols,
            group: if layout.group == 0 { cols } else { layout.group as usize },
            n_groups: to_usize(layout.n_groups())?,
            grouped: layout.group != 0,
            planes,
            dtype: source,
            nearest: Nearest::new(Kernel::selected()?, table),
            grid: ScaleGrid::new(),
        })
    }

    /// Encodes with this kernel, to the same bytes.
    ///
    /// # Errors
    /// `InvalidArgument` when the CPU can't run it.
    pub fn with_kernel(mut self, kernel: Kernel) -> Result<Self> {
        self.nearest = self.nearest.with_kernel(kernel.require()?);
        Ok(self)
    }

    /// Encodes whole rows.
    ///
    /// # Errors
    /// `InvalidArgument` when `weights` are not whole rows of finite numbers.
    pub fn encode(&self, weights: &[f32]) -> Result<EncodedRows> {
        if !weights.len().is_multiple_of(self.cols) {
            return Err(Error::argument(format!("rows have {} columns", self.cols)));
        }
        if let Some(at) = not_finite(weights) {
            return Err(Error::argument(format!("element {at} is not a finite binary32 number")));
        }
        Ok(self.encode_finite(weights))
    }

    /// Encodes whole rows of finite numbers.
    pub(crate) fn encode_finite(&self, weights: &[f32]) -> EncodedRows {
        let n_planes = usize::from(self.planes);
        let row_bytes = self.cols.div_ceil(8);
        let steps_row = self.n_groups.div_ceil(2);
        let rows = weights.len() / self.cols;
        let mut out = EncodedRows {
            scales: Vec::with_capacity(2 * rows),
            steps: vec![0; steps_row * rows],
            planes: vec![vec![0; row_bytes * rows]; n_planes],
        };
        let mut codes = vec![0u8; self.cols];
        for (r, row) in weights.chunks_exact(self.cols).enumerate() {
            let scale = self.row(row, &mut codes, &mut out.steps[r * steps_row..][..steps_row]);
            out.scales.extend(scale.to_le_bytes());
            let mut planes: Vec<&mut [u8]> =
                out.planes.iter_mut().map(|p| &mut p[r * row_bytes..][..row_bytes]).collect();
            self.nearest.scatter(&codes, &mut planes);
        }
        out
    }

    /// Encodes one row; returns the bits of its scale.
    fn row(&self, row: &[f32], codes: &mut [u8], steps: &mut [u8]) -> u16 {
        let peaks: Vec<f32> = row.chunks(self.group).map(peak).collect();
        let amax = peak(&peaks);
        // 2^-112: all that the smallest scale, the largest step and the largest level reach, so
        // that scale is as good as any. Above it the grid arithmetic stays clear of
        // subnormals.
        if amax < f32::from_bits(15 << 23) {
            self.finish(row, 1 << 7, None, codes, steps);
            return 1 << 7;
        }
        // Grid of effective scales (row scale x step), finest ratio of the steps, anchored at the
        // one that puts the row's largest weight on the largest level.
        let unit = amax / self.nearest.top();
        let start = self.grid.indices(&peaks, amax);
        // The row scale fixes which 16 neighbouring grid points the groups can use. Ordinary rows
        // find what they look for among the 16 from `ANCHOR` down.
        let low = start.iter().copied().min().unwrap_or(0);
        let (anchor, from) = if self.grouped && low > ANCHOR - 15 {
            (ANCHOR, start)
        } else {
            self.anchor(row, unit, &start)
        };
        let scale = scale_bits(unit * self.grid.ratio(anchor) / 128.0, self.dtype);
        // From just below the peak (a little clipping) upwards.
        let wanted: Vec<i32> = from.iter().map(|t| 15 - (anchor - t) - 1).collect();
        self.finish(row, scale, Some(&wanted), codes, steps);
        scale
    }

    /// For rows with groups of very different size: the best grid point of each group, and the
    /// highest point that the row scale should reach. Where they don't all fit below it, it may
    /// pay that the largest groups clip for the sake of the smallest.
    fn anchor(&self, row: &[f32], unit: f32, start: &[i32]) -> (i32, Vec<i32>) {
        let groups: Vec<&[f32]> = row.chunks(self.group).collect();
        // Errors relative to `unit`, so that no weight range over- or underflows.
        let errors_at = |g: &[f32], points: [i32; TRIES]| {
            let effective = points.map(|t| self.grid.ratio(t));
            let errors = self.nearest.errors(g, &effective.map(|e| 2.0 / (unit * e)));
            std::array::from_fn(|i| errors[i] * effective[i] * effective[i])
        };
        let best: Vec<i32> = groups
            .iter()
            .zip(start)
            .map(|(g, &t)| least(t - 1, &POINTS, |points| errors_at(g, points)))
            .collect();
        let high = best.iter().copied().max().unwrap_or(0);
        let low = best.iter().copied().min().unwrap_or(0);
        let mut anchor = high;
        if self.grouped && high - low > 15 {
            let mut least = f32::INFINITY;
            for top in ((low + 15).max(high - MAX_ANCHORS)..=high).rev() {
                let total = groups.iter().zip(&best).fold(0f32, |sum, (g, &t)| {
                    let [error, ..] = errors_at(g, [t.clamp(top - 15, top); TRIES]);
                    sum + error
                });
                if total < least {
                    (least, anchor) = (total, top);
                }
            }
        }
        (anchor, best)
    }

    /// With the row scale settled, picks each group's step (around `wanted`, or any) and codes.
    fn finish(
        &self,
        row: &[f32],
        scale: u16,
        wanted: Option<&[i32]>,
        codes: &mut [u8],
        steps: &mut [u8],
    ) {
        let scale = scale_f32(scale);
        for (g, (x, codes)) in row.chunks(self.group).zip(codes.chunks_mut(self.group)).enumerate()
        {
            // Relative to the row scale: only the comparison matters.
            let errors = |steps: [i32; TRIES]| {
                let steps = steps.map(|k| f32::from(STEPS[usize::try_from(k).expect("0 to 15")]));
                let errors = self.nearest.errors(x, &steps.map(|s| 2.0 / (scale * s)));
                std::array::from_fn(|i| errors[i] * steps[i] * steps[i])
            };
            let k = match wanted {
                _ if !self.grouped => 15,
                Some(wanted) => least(wanted[g], &(0..=15), errors),
                None => {
                    let all = [0, 4, 8, 12].map(|k| [k, k + 1, k + 2, k + 3]);
                    let all = all.iter().flat_map(|&steps| errors(steps).into_iter().zip(steps));
                    all.fold((f32::INFINITY, 0), |a, b| if b.0 < a.0 { b } else { a }).1
                }
            };
            let k = usize::try_from(k).expect("0 to 15");
            self.nearest.codes(x, 2.0 / (scale * f32::from(STEPS[k])), codes);
            if self.grouped {
                steps[g / 2] |= u8::try_from(k).expect("0 to 15") << (4 * (g % 2));
            }
        }
    }
}

/// The first weight that is not finite. Ordinary weights go by in a loop that compiles to vector
/// code.
pub(crate) fn not_finite(weights: &[f32]) -> Option<usize> {
    let exponents = |w: &[f32]| w.iter().fold(false, |any, w| any | !w.is_finite());
    let at = weights.chunks(64).position(exponents)? * 64;
    weights[at..].iter().position(|w| !w.is_finite()).map(|i| at + i)
}

/// The largest magnitude.
fn peak(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (whole, rest) = x.as_chunks::<8>();
    for x in whole {
        for (lane, v) in lanes.iter_mut().zip(x) {
            *lane = if v.abs() > *lane { v.abs() } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(0f32, |m, v| m.max(v.abs()))
}

/// The point of least error among `from` and the three above it that lie in `range`, the lowest of
/// equals.
fn least(
    from: i32,
    range: &std::ops::RangeInclusive<i32>,
    errors: impl FnOnce([i32; TRIES]) -> [f32; TRIES],
) -> i32 {
    let from = from.clamp(*range.start(), *range.end());
    let points = [0, 1, 2, 3].map(|i| (from + i).min(*range.end()));
    let all = errors(points).into_iter().zip(points);
    all.fold((f32::INFINITY, from), |a, b| if b.0 < a.0 { b } else { a }).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights with heavy tails, so that groups of a row spread over more than the ratio of the
    /// steps.
    fn heavy_row(cols: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f32::from(u16::try_from(state >> 48).expect("16 bits")) / 32_768.0 - 1.0
        };
        (0..cols)
            .map(|_| {
                let (a, b) = (next(), next());
                a * a * a / (b.abs() + 0.05)
            })
            .collect()
    }

    #[test]
    fn search_is_close_to_trying_every_scale_and_step() {
        let layout = PlaneLayout::new(&[1, 1536], 1, 32).expect("valid");
        let set = LevelSet::default_for(5);
        let encoder = RowEncoder::new(&layout, set, Dtype::F32).expect("valid");
        for seed in 0..8 {
            let row = heavy_row(1536, seed);
            let mut codes = vec![0; 1536];
            let mut steps = vec![0; 24];
            let scale = encoder.row(&row, &mut codes, &mut steps);
            let error_of = |bits: u16| -> f32 {
                let scale = scale_f32(bits);
                row.chunks(32)
                    .map(|x| {
                        STEPS
                            .as_chunks::<TRIES>()
                            .0
                            .iter()
                            .flat_map(|steps| {
                                let e = steps.map(|s| scale * f32::from(s));
                                let errors = encoder.nearest.errors(x, &e.map(|e| 2.0 / e));
                                std::array::from_fn::<_, TRIES, _>(|i| errors[i] * e[i] * e[i])
                            })
                            .fold(f32::INFINITY, f32::min)
                    })
                    .sum()
            };
            let found: f32 = row
                .chunks(32)
                .enumerate()
                .map(|(g, x)| {
                    let k = usize::from((steps[g / 2] >> (4 * (g % 2))) & 15);
                    let e = scale_f32(scale) * f32::from(STEPS[k]);
                    encoder.nearest.errors(x, &[2.0 / e; TRIES])[0] * e * e
                })
                .sum();
            let best = (scale.saturating_sub(256)..scale + 256)
                .map(error_of)
                .fold(f32::INFINITY, f32::min);
            assert!(found <= 1.1 * best, "seed {seed}: {found} against {best}");
        }
    }
}
