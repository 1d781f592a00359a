//! The calibrated encoder: from a matrix, and what its inputs and the gradients at its outputs are
//! like, to planes.
//!
//! ```text
//! survey    groups, and the loss of each row at 3 to 8 planes     (search, factor)
//! allocate  planes of each row under a budget                     (allocate)
//! fit       level tables of the whole file                        (tables)
//! encode    scales, steps, codes                                  (search, round, descend)
//! grid      the values that a row can take, for round and descend
//! metric    the cost of an error, for the training of overlays in lm
//! id        names of the encoders, for manifests
//! ```
//!
//! All arithmetic is binary32 or binary64 in a fixed order, so that the bytes depend on weights,
//! statistics and settings alone.

mod allocate;
mod descend;
mod factor;
mod grid;
mod id;
#[cfg(feature = "lm")]
mod metric;
mod round;
mod search;
mod tables;

pub(crate) use allocate::{Candidate, Unit, allocate, bytes_of, fewest_bytes};
pub use id::{CALIBRATED_ENCODER_ID, ENCODER_ID};
#[cfg(feature = "lm")]
pub(crate) use metric::{Lower, Metric};
pub(crate) use tables::{Histograms, with_fitted};

use descend::{Panels, Refined};
use factor::{Factor, Moments};
use grid::Grid;
use round::{Matrix, RowBlock, Searches};
use search::Search;

use crate::codec::{Levels, PlaneCounts, PlaneLayout, ScaleGrid};
use crate::error::{Error, Result};
use crate::format::{Dtype, PLANE_COUNTS};
use crate::kernels::{Kernel, TILE};
use crate::memory::to_usize;
use crate::par;

/// Damping of the moments of inputs, over the mean of their diagonal.
const INPUT_DAMPING: f64 = 0.01;
/// The same of outputs.
const OUTPUT_DAMPING: f64 = 0.03;
/// Rows without outputs that are rounded at a time.
const CHUNK_ROWS: usize = 2048;
/// Rows that decide on the group of a tensor.
const SAMPLE_ROWS: usize = 48;
/// Planes at which groups are compared.
const SAMPLE_PLANES: u8 = 5;
/// The groups that a tensor can have, coarse ones first.
const GROUPS: [u32; 6] = [0, 256, 128, 64, 32, 16];

/// What the encoder does to each matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Make up for the errors of earlier columns.
    pub input_feedback: bool,
    /// Make up for the errors of earlier rows.
    pub output_feedback: bool,
    /// Passes of coordinate descent at most.
    pub descent_passes: usize,
    /// Columns that share a step; nothing lets the survey choose.
    pub group: Option<u32>,
}

/// What calibration found out about a layer.
#[derive(Debug)]
pub(crate) struct Statistics {
    /// Packed second moments of the inputs.
    pub inputs: Vec<f32>,
    /// The same of gradients at the outputs, by block of rows; nothing where all rows count alike
    /// and for themselves.
    pub outputs: Option<Vec<Vec<f32>>>,
    /// Tokens that the layer saw, and all there were.
    pub tokens: u64,
    pub all_tokens: u64,
}

/// A matrix and what is known of it.
pub(crate) struct MatrixEncoder<'a> {
    kernel: Kernel,
    rows: usize,
    cols: usize,
    weights: &'a [f32],
    dtype: Dtype,
    inputs: Moments<'a>,
    outputs: Option<Vec<Moments<'a>>>,
    /// What part of the correlations between outputs is believed: tokens over tokens and outputs.
    believed: f32,
    token_share: f64,
    settings: Settings,
    points: ScaleGrid,
}

/// What a survey found out.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The group of the tensor.
    pub group: u32,
    /// For each row, the expected loss at 3, 4, .., 8 planes.
    pub losses: Vec<[f64; PLANE_COUNTS]>,
}

/// A matrix as it is stored.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub scales: Vec<u8>,
    pub steps: Vec<u8>,
    pub planes: Vec<Vec<u8>>,
}

impl<'a> MatrixEncoder<'a> {
    /// # Errors
    /// `Source` for statistics that don't fit the matrix or make no sense.
    pub(crate) fn new(
        kernel: Kernel,
        [rows, cols]: [usize; 2],
        weights: &'a [f32],
        dtype: Dtype,
        statistics: &'a Statistics,
        settings: Settings,
    ) -> Result<Self> {
        let named = |what: &str, e: Error| {
            Error::source_file(format!("calibration, {what}: {}", e.message()))
        };
        let inputs = Moments::new(cols, &statistics.inputs).map_err(|e| named("inputs", e))?;
        let shape = || Error::source_file("the calibration is of a matrix of another shape");
        let mut left = rows;
        let mut block = |packed: &'a Vec<f32>| {
            // The side of the triangle.
            let n = (1..=left).rev().find(|&n| factor::triangle(n) == packed.len());
            let n = n.ok_or_else(shape)?;
            left -= n;
            Moments::new(n, packed).map_err(|e| named("outputs", e))
        };
        let blocks = statistics.outputs.as_ref();
        let outputs = blocks.map(|all| all.iter().map(&mut block).collect::<Result<Vec<_>>>());
        let outputs = outputs.transpose()?;
        if (outputs.is_some() && left != 0) || weights.len() != rows * cols {
            return Err(shape());
        }
        #[allow(clippy::cast_precision_loss, reason = "counts of tokens")]
        let (tokens, all) = (statistics.tokens as f64, statistics.all_tokens as f64);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a share")]
        let believed = (tokens / (tokens + rows as f64)) as f32;
        Ok(Self {
            kernel,
            rows,
            cols,
            weights,
            dtype,
            inputs,
            outputs,
            believed,
            token_share: (tokens + 1.0) / (all + 1.0),
            settings,
            points: ScaleGrid::new(),
        })
    }

    /// Bytes of memory that a matrix takes while it is encoded, about: its weights, codes, values
    /// and errors, and moments with their factors.
    pub(crate) fn memory(rows: u64, cols: u64, output_block: u64) -> u64 {
        let square = |n: u64| n.next_multiple_of(64).saturating_mul(n.next_multiple_of(64));
        let moments = square(cols).saturating_add(square(rows.min(output_block)));
        let weights = rows.saturating_mul(cols).saturating_mul(8);
        let at_once = rows.min(output_block.max(CHUNK_ROWS as u64)).saturating_mul(cols);
        weights
            .saturating_add(at_once.saturating_mul(20))
            .saturating_add(moments.saturating_mul(16))
    }

    fn factor_inputs(&self) -> Result<Factor> {
        Factor::new(self.kernel, self.inputs, 1.0, INPUT_DAMPING)
            .map_err(|e| Error::source_file(format!("calibration, inputs: {}", e.message())))
    }

    fn factor_outputs(&self, block: Moments<'_>) -> Result<Factor> {
        let damping = OUTPUT_DAMPING;
        Factor::new(self.kernel, block, self.believed, damping)
            .map_err(|e| Error::source_file(format!("calibration, outputs: {}", e.message())))
    }

    /// What an error in each column costs a row that is rounded by itself, as far as the order
    /// leaves it to itself.
    fn column_costs(&self, inputs: &Factor) -> Vec<f32> {
        if self.settings.input_feedback { inputs.variance.clone() } else { self.inputs.diagonal() }
    }

    /// What an error in each row costs.
    fn row_costs(&self) -> Result<Vec<f32>> {
        let Some(blocks) = &self.outputs else { return Ok(vec![1.0; self.rows]) };
        let mut costs = Vec::with_capacity(self.rows);
        for block in blocks {
            if self.settings.output_feedback && self.settings.input_feedback {
                costs.extend(self.factor_outputs(*block)?.variance);
            } else {
                costs.extend(block.diagonal());
            }
        }
        Ok(costs)
    }

    fn search<'b>(&'b self, searches: &'b Searches, roots: &'b [f32], group: u32) -> Search<'b> {
        Search { searches, importance: roots, group, dtype: self.dtype, points: &self.points }
    }

    fn row(&self, r: usize) -> &[f32] {
        &self.weights[r * self.cols..][..self.cols]
    }

    /// Chooses the group and finds the loss of each row at each count of planes, with the default
    /// levels.
    ///
    /// # Errors
    /// `Source` for moments that can't be factored.
    pub(crate) fn survey(&self) -> Result<Survey> {
        let searches = Searches::new(self.kernel, Levels::default());
        let inputs = self.factor_inputs()?;
        let columns = self.column_costs(&inputs);
        drop(inputs);
        let roots = square_roots(&columns);
        let rows = self.row_costs()?;
        let group = match self.settings.group {
            Some(group) => group,
            None => self.choose_group(&searches, &roots, &columns, &rows),
        };
        let search = self.search(&searches, &roots, group);
        let losses = par::map(self.rows, |r| {
            let cost = f64::from(rows[r]) * self.token_share;
            std::array::from_fn(|i| {
                let planes = u8::try_from(i + 3).expect("3 to 8");
                let found = search.row(self.row(r), planes);
                cost * search.cost(self.row(r), planes, &found, &columns)
            })
        });
        Ok(Survey { group, losses })
    }

    /// The group of the least loss at equal bits: one bit more makes losses four times smaller.
    fn choose_group(
        &self,
        searches: &Searches,
        roots: &[f32],
        columns: &[f32],
        rows: &[f32],
    ) -> u32 {
        let every = self.rows.div_ceil(SAMPLE_ROWS);
        let sample: Vec<usize> = (0..self.rows).step_by(every).collect();
        let mut best = (f64::INFINITY, 0);
        for group in GROUPS {
            if group as usize >= self.cols {
                continue;
            }
            let search = self.search(searches, roots, group);
            let losses = par::map(sample.len(), |i| {
                let row = self.row(sample[i]);
                let found = search.row(row, SAMPLE_PLANES);
                f64::from(rows[sample[i]]) * search.cost(row, SAMPLE_PLANES, &found, columns)
            });
            let loss = losses.iter().fold(0.0, |sum, loss| sum + loss);
            let steps = if group == 0 { 0 } else { self.cols.div_ceil(group as usize).div_ceil(2) };
            #[allow(clippy::cast_precision_loss, reason = "sizes of a row")]
            let bits = (8 * steps) as f64 / self.cols as f64;
            // 4^bits by its series: no library computes it, and bits are at most a half.
            let x = bits * (2.0 * std::f64::consts::LN_2);
            let cost = loss * (1.0 + x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0))));
            if cost < best.0 {
                best = (cost, group);
            }
        }
        best.1
    }

    /// How the weights are spread in units of a level, each weighted by what an error there costs,
    /// when they are rounded at these planes with the default levels.
    ///
    /// # Errors
    /// As [`MatrixEncoder::survey`].
    pub(crate) fn histograms(&self, counts: &PlaneCounts, group: u32) -> Result<Histograms> {
        let searches = Searches::new(self.kernel, Levels::default());
        let columns = self.column_costs(&self.factor_inputs()?);
        let roots = square_roots(&columns);
        let rows = self.row_costs()?;
        let search = self.search(&searches, &roots, group);
        let mut histograms = Histograms::new();
        for (r, row_cost) in rows.iter().enumerate() {
            let found = search.row(self.row(r), counts.of(r));
            let row_cost = f64::from(*row_cost) * self.token_share;
            for (c, (w, column)) in self.row(r).iter().zip(&columns).enumerate() {
                let effective = search.effective(&found, c);
                let cost = f64::from(effective) * f64::from(effective) * f64::from(*column);
                histograms.add(counts.of(r), w / effective, row_cost * cost);
            }
        }
        Ok(histograms)
    }

    /// Encodes the matrix.
    ///
    /// # Errors
    /// As [`MatrixEncoder::survey`].
    pub(crate) fn encode(
        &self,
        counts: &PlaneCounts,
        group: u32,
        levels: Levels<'_>,
    ) -> Result<Encoded> {
        let searches = Searches::new(self.kernel, levels);
        let inputs = self.factor_inputs()?;
        let roots = square_roots(&self.column_costs(&inputs));
        let search = self.search(&searches, &roots, group);
        let grid = self.grid(&search, counts);
        let mut codes = self.round(&grid, &searches, &inputs)?;
        drop(inputs);
        if self.settings.descent_passes > 0 {
            self.descend(&grid, &searches, &mut codes);
        }
        self.store(counts, group, &grid, &searches, &codes)
    }

    /// Scales and steps of all rows.
    fn grid(&self, search: &Search<'_>, counts: &PlaneCounts) -> Grid {
        let found = par::map(self.rows, |r| search.row(self.row(r), counts.of(r)));
        let group = if search.group == 0 { self.cols } else { search.group as usize };
        Grid {
            group,
            groups: self.cols.div_ceil(group),
            planes: (0..self.rows).map(|r| counts.of(r)).collect(),
            scales: found.iter().map(|f| f.scale).collect(),
            steps: found.into_iter().flat_map(|f| f.steps).collect(),
        }
    }

    /// Codes of all rows.
    fn round(&self, grid: &Grid, searches: &Searches, inputs: &Factor) -> Result<Vec<u8>> {
        let mut codes = vec![0u8; self.rows * self.cols];
        if !self.settings.input_feedback {
            par::for_each_chunk(&mut codes, self.cols, |r, codes| {
                let search = searches.of(grid.planes[r]);
                for (c, (code, w)) in codes.iter_mut().zip(self.row(r)).enumerate() {
                    *code = search.code(w * (2.0 / grid.effective(r, c / grid.group)));
                }
            });
            return Ok(codes);
        }
        let matrix = Matrix {
            kernel: self.kernel,
            cols: self.cols,
            weights: self.weights,
            grid,
            searches,
            inputs,
        };
        let mut put = |rows: Vec<usize>, outputs: Option<&Factor>| {
            let block = RowBlock { rows, outputs };
            let found = matrix.round(&block);
            for (found, &row) in found.chunks_exact(self.cols).zip(&block.rows) {
                codes[row * self.cols..][..self.cols].copy_from_slice(found);
            }
        };
        match &self.outputs {
            Some(blocks) if self.settings.output_feedback => {
                let mut first = 0;
                for block in blocks {
                    let outputs = self.factor_outputs(*block)?;
                    put(outputs.order.iter().map(|r| first + r).collect(), Some(&outputs));
                    first += block.len();
                }
            }
            // Some rows at a time, which bounds memory.
            _ => (0..self.rows).step_by(CHUNK_ROWS).for_each(|first| {
                put((first..self.rows.min(first + CHUNK_ROWS)).collect(), None);
            }),
        }
        Ok(codes)
    }

    fn descend(&self, grid: &Grid, searches: &Searches, codes: &mut [u8]) {
        let inputs = Panels::new(self.inputs, 1.0, INPUT_DAMPING);
        let refined =
            |first_row: usize, rows: usize, outputs: Option<&Panels>, codes: &mut [u8]| {
                let weights = &self.weights[first_row * self.cols..][..rows * self.cols];
                let refined = Refined {
                    kernel: self.kernel,
                    cols: self.cols,
                    weights,
                    grid,
                    first_row,
                    searches,
                    inputs: &inputs,
                    outputs,
                };
                refined.descend(codes, self.settings.descent_passes);
            };
        match &self.outputs {
            Some(blocks) if self.settings.output_feedback => {
                let mut first = 0;
                for block in blocks {
                    let outputs = Panels::new(*block, self.believed, OUTPUT_DAMPING);
                    let codes = &mut codes[first * self.cols..][..block.len() * self.cols];
                    refined(first, block.len(), Some(&outputs), codes);
                    first += block.len();
                }
            }
            _ => par::for_each_chunk(codes, TILE * self.cols, |strip, codes| {
                refined(strip * TILE, codes.len() / self.cols, None, codes);
            }),
        }
    }

    /// The parts of the matrix, rows in the order of UC-PLN-5.
    fn store(
        &self,
        counts: &PlaneCounts,
        group: u32,
        grid: &Grid,
        searches: &Searches,
        codes: &[u8],
    ) -> Result<Encoded> {
        let layout = PlaneLayout::new(&[self.rows as u64, self.cols as u64], 1, group)?;
        let row_bytes = to_usize(layout.row_bytes())?;
        let steps_row = to_usize(layout.steps_row_bytes())?;
        let most = usize::from(grid.planes.iter().copied().max().unwrap_or(3));
        let mut out = Encoded {
            scales: Vec::with_capacity(2 * self.rows),
            steps: Vec::with_capacity(steps_row * self.rows),
            planes: vec![vec![]; most],
        };
        let mut order: Vec<usize> = (0..self.rows).collect();
        order.sort_by_key(|&r| std::cmp::Reverse(counts.of(r)));
        let mut lines = vec![vec![0u8; row_bytes]; most];
        for r in order {
            let planes = usize::from(grid.planes[r]);
            out.scales.extend(grid.scales[r].to_le_bytes());
            if group != 0 {
                let steps = &grid.steps[r * grid.groups..][..grid.groups];
                out.steps.extend(steps.chunks(2).map(|s| s[0] | s.get(1).map_or(0, |s| s << 4)));
            }
            let mut slices: Vec<&mut [u8]> =
                lines[..planes].iter_mut().map(Vec::as_mut_slice).collect();
            searches.of(grid.planes[r]).scatter(&codes[r * self.cols..][..self.cols], &mut slices);
            for (plane, line) in out.planes.iter_mut().zip(&lines[..planes]) {
                plane.extend_from_slice(line);
            }
        }
        Ok(out)
    }
}

/// Importance for the search of scales: between even and what errors cost, as measured.
fn square_roots(costs: &[f32]) -> Vec<f32> {
    costs.iter().map(|c| c.sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use super::factor::tests::random_moments;
    use super::*;

    const ALL: Settings = Settings {
        input_feedback: true,
        output_feedback: true,
        descent_passes: 4,
        group: Some(32),
    };

    fn weights(n: usize) -> Vec<f32> {
        let mut state = 3u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| (next() + next() + next()) * 0.05).collect()
    }

    fn statistics(rows: usize, cols: usize, blocks: &[usize]) -> Statistics {
        assert_eq!(blocks.iter().sum::<usize>(), rows);
        Statistics {
            inputs: random_moments(cols, 3 * cols, 1),
            outputs: Some(blocks.iter().map(|&n| random_moments(n, 2 * n, 2)).collect()),
            tokens: 100_000,
            all_tokens: 100_000,
        }
    }

    /// Codes of a matrix that is stored in the order of its rows.
    fn values(
        encoded: &Encoded,
        rows: usize,
        cols: usize,
        group: usize,
        levels: Levels<'_>,
    ) -> Vec<f64> {
        let planes = u8::try_from(encoded.planes.len()).expect("at most 8");
        let table = levels.set(planes).table(planes);
        let row_bytes = cols.div_ceil(8);
        let groups = cols.div_ceil(group);
        let mut all = vec![];
        for r in 0..rows {
            let scale = u16::from_le_bytes([encoded.scales[2 * r], encoded.scales[2 * r + 1]]);
            for c in 0..cols {
                let bit = |plane: &Vec<u8>| (plane[r * row_bytes + c / 8] >> (c % 8)) & 1;
                let code = encoded.planes.iter().fold(0usize, |n, p| 2 * n + usize::from(bit(p)));
                let g = c / group;
                let step = encoded.steps[r * groups.div_ceil(2) + g / 2] >> (4 * (g % 2)) & 15;
                let effective = crate::codec::scale_f32(scale)
                    * f32::from(crate::kernels::STEPS[usize::from(step)]);
                all.push(f64::from(table[code]) * f64::from(effective));
            }
        }
        all
    }

    /// `tr(G E H E^T)`.
    fn loss(
        values: &[f64],
        weights: &[f32],
        statistics: &Statistics,
        rows: usize,
        cols: usize,
    ) -> f64 {
        let inputs = Moments::new(cols, &statistics.inputs).expect("valid");
        let error = |r: usize, c: usize| values[r * cols + c] - f64::from(weights[r * cols + c]);
        let mut products = vec![0f64; rows * cols];
        for r in 0..rows {
            for c in 0..cols {
                products[r * cols + c] =
                    (0..cols).map(|k| error(r, k) * f64::from(inputs.at(k, c))).sum();
            }
        }
        let mut first = 0;
        let mut total = 0.0;
        for packed in statistics.outputs.as_ref().expect("given") {
            let n = (1..=rows).find(|&n| factor::triangle(n) == packed.len()).expect("a triangle");
            let outputs = Moments::new(n, packed).expect("valid");
            for a in 0..n {
                for b in 0..n {
                    let dot: f64 = (0..cols)
                        .map(|c| products[(first + a) * cols + c] * error(first + b, c))
                        .sum();
                    total += f64::from(outputs.at(a, b)) * dot;
                }
            }
            first += n;
        }
        total
    }

    #[test]
    fn every_step_lowers_the_loss() {
        let (rows, cols) = (100, 130);
        let (weights, statistics) = (weights(rows * cols), statistics(rows, cols, &[64, 36]));
        let counts = PlaneCounts::Uniform(5);
        let run = |settings: Settings| {
            let shape = [rows, cols];
            let layer = MatrixEncoder::new(
                Kernel::detect(),
                shape,
                &weights,
                Dtype::F32,
                &statistics,
                settings,
            );
            let encoded = layer.expect("fits").encode(&counts, 32, Levels::default());
            let values = values(&encoded.expect("encodes"), rows, cols, 32, Levels::default());
            loss(&values, &weights, &statistics, rows, cols)
        };
        let none = Settings {
            input_feedback: false,
            output_feedback: false,
            descent_passes: 0,
            group: Some(32),
        };
        let plain = run(none);
        let inputs = run(Settings { input_feedback: true, ..none });
        let both = run(Settings { input_feedback: true, output_feedback: true, ..none });
        let descended = run(ALL);
        assert!(inputs < 0.8 * plain, "{inputs} {plain}");
        assert!(both < 0.9 * inputs, "{both} {inputs}");
        assert!(descended < both, "{descended} {both}");
    }

    #[test]
    fn rounding_in_tiles_is_rounding_one_by_one() {
        let (rows, cols) = (70, 150);
        let (weights, statistics) = (weights(rows * cols), statistics(rows, cols, &[rows]));
        let settings = Settings { descent_passes: 0, ..ALL };
        let shape = [rows, cols];
        let layer = MatrixEncoder::new(
            Kernel::detect(),
            shape,
            &weights,
            Dtype::F32,
            &statistics,
            settings,
        );
        let layer = layer.expect("fits");
        let counts = PlaneCounts::Uniform(4);
        let levels = Levels::default();
        let encoded = layer.encode(&counts, 32, levels).expect("encodes");
        let found = values(&encoded, rows, cols, 32, levels);

        let inputs = layer.factor_inputs().expect("positive definite");
        let outputs = layer
            .factor_outputs(layer.outputs.as_ref().expect("given")[0])
            .expect("positive definite");
        let at =
            |f: &Factor, i: usize, j: usize| f64::from(f.columns(j / TILE, i, i + 1)[j % TILE]);
        let table = levels.set(4).table(4);
        // By position; errors of rounded weights, 0 elsewhere.
        let mut errors = vec![0f64; rows * cols];
        let mut different = 0;
        for a in 0..rows {
            for j in 0..cols {
                let cell = outputs.order[a] * cols + inputs.order[j];
                let mut target = f64::from(weights[cell]);
                for b in 0..=a {
                    let row = if b == a { 1.0 } else { at(&outputs, b, a) };
                    for i in 0..=j {
                        let column = if i == j { 1.0 } else { at(&inputs, i, j) };
                        target += row * column * errors[b * cols + i];
                    }
                }
                let value = found[cell];
                errors[a * cols + j] = f64::from(weights[cell]) - value;
                // The value must be the nearest level, or as near but for rounding.
                let group = inputs.order[j] / 32;
                let step =
                    encoded.steps[outputs.order[a] * 3 + group / 2] >> (4 * (group % 2)) & 15;
                let r = outputs.order[a];
                let scale = u16::from_le_bytes([encoded.scales[2 * r], encoded.scales[2 * r + 1]]);
                let effective = f64::from(crate::codec::scale_f32(scale))
                    * f64::from(crate::kernels::STEPS[usize::from(step)]);
                let nearest = table
                    .iter()
                    .map(|l| (f64::from(*l) * effective - target).abs())
                    .fold(f64::INFINITY, f64::min);
                if (value - target).abs() > nearest + 1e-4 * effective {
                    different += 1;
                }
            }
        }
        assert_eq!(different, 0, "weights that didn't take the nearest level");
    }

    #[test]
    fn kernels_and_threads_give_the_same_bytes() {
        let (rows, cols) = (68, 90);
        let (weights, statistics) = (weights(rows * cols), statistics(rows, cols, &[64, 4]));
        let counts: Vec<u8> = (0u8..68).map(|r| 3 + r % 6).collect();
        let counts = PlaneCounts::PerRow(counts);
        let run = |kernel: Kernel, group: u32| {
            let shape = [rows, cols];
            let settings = Settings { group: None, ..ALL };
            let layer =
                MatrixEncoder::new(kernel, shape, &weights, Dtype::Bf16, &statistics, settings);
            let layer = layer.expect("fits");
            let survey = layer.survey().expect("surveys");
            let bits: Vec<u64> = survey.losses.iter().flatten().map(|l| l.to_bits()).collect();
            let e = layer.encode(&counts, group, Levels::default()).expect("encodes");
            (survey.group, bits, e.scales, e.steps, e.planes)
        };
        for group in [0, 16] {
            let expected = run(Kernel::Scalar, group);
            for kernel in Kernel::available() {
                assert!(run(kernel, group) == expected, "{kernel}, group {group}");
            }
        }
    }
}
