//! The uncalibrated encoder: for each row the scale, steps and codes of least squared error.
//!
//! Every float operation here is a single IEEE 754 binary32 add, subtract, multiply, divide or
//! comparison in a fixed order, so codes don't depend on the CPU or on threads.

use super::kernels::scalar::scatter_codes;
use super::value::{STEPS, max_scale_exponent, scale_f32};
use super::{LevelSet, PlaneLayout};
use crate::error::Result;
use crate::format::{Dtype, to_usize};

/// `4^(i/15)`, i = 0..15: the ratios of the steps, as binary32 literals so that no library computes them.
const RATIO: [f32; 15] = [
    1.0, 1.096825, 1.203025, 1.319508, 1.4472692, 1.587401, 1.7411011, 1.9096832, 2.0945883,
    2.2973967, 2.5198421, 2.7638257, 3.031433, 3.3249516, 3.64689,
];

/// Grid point of the largest step in ordinary rows: room for a largest group that wants a scale above
/// the one that puts its peak on the largest level.
const ANCHOR: i32 = 2;
/// Highest points that a row gives up for the sake of its smallest groups.
const MAX_ANCHORS: i32 = 12;

/// Lowest and highest grid point that is ever asked for.
const GRID: std::ops::RangeInclusive<i32> = -64..=16;

/// `4^(t/15)` for every `t` of [`GRID`].
#[derive(Debug, Clone)]
struct Grid([f32; 81]);

impl Grid {
    fn new() -> Self {
        let mut grid = [0f32; 81];
        for (t, ratio) in GRID.zip(&mut grid) {
            let part = RATIO[usize::try_from(t.rem_euclid(15)).expect("0 to 14")];
            // Multiplying by a power of four is exact.
            let exponent = 127 + 2 * t.div_euclid(15);
            *ratio = part * f32::from_bits(u32::try_from(exponent).expect("117 to 129") << 23);
        }
        Self(grid)
    }

    fn ratio(&self, t: i32) -> f32 {
        self.0[usize::try_from(t - GRID.start()).expect("within the grid")]
    }

    /// The highest point `t` up to 0 with `amax * 4^(t/15)` at most `peak`; groups that are smaller
    /// by far share point -45.
    fn index(&self, peak: f32, amax: f32) -> i32 {
        let mut t = 0;
        while t > -45 && amax * self.ratio(t) > peak {
            t -= 1;
        }
        t
    }
}

/// Nearest-level search for one table.
///
/// Levels are integers, so the midpoints between neighbours are multiples of one half: the nearest
/// level is constant on each interval `[i/2, (i+1)/2)`, and one table look-up finds it.
#[derive(Debug, Clone)]
struct Nearest {
    level: [f32; 512],
    code: [u8; 512],
}

impl Nearest {
    fn new(table: &[i8]) -> Self {
        let mut nearest = Self { level: [0.0; 512], code: [0; 512] };
        let mut code = 0usize;
        for cell in 0..512usize {
            // Twice the lower end of the cell, against twice the midpoint to the next level.
            let low = i32::try_from(cell).expect("below 512") - 256;
            while table
                .get(code + 1)
                .is_some_and(|&next| i32::from(table[code]) + i32::from(next) <= low)
            {
                code += 1;
            }
            nearest.level[cell] = f32::from(table[code]);
            nearest.code[cell] = u8::try_from(code).expect("at most 256 levels");
        }
        nearest
    }

    /// The cell of `y` = weight / (scale x step).
    fn cell(y: f32) -> u32 {
        // Adding 2^23 rounds to the nearest integer and leaves it in the low bits; the half below
        // makes that a floor for everything but exact cell borders, which are ties either way. Both
        // clamps keep the sum within [2^23, 2^23 + 511], where binary32 has unit steps.
        let t = (y + y).clamp(-255.0, 255.0) - 0.5 + 8_388_864.0;
        t.to_bits() & 511
    }

    /// Values and cells of up to 32 weights. Arithmetic and look-ups have loops of their own: this one
    /// compiles to vector code.
    fn cells(x: &[f32; 32], inv: f32) -> ([f32; 32], [u32; 32]) {
        let (mut y, mut cells) = ([0f32; 32], [0u32; 32]);
        for i in 0..32 {
            y[i] = x[i] * inv;
            cells[i] = Self::cell(y[i]);
        }
        (y, cells)
    }

    /// Sum of squared errors of `x * inv` against the nearest levels, in four fixed lanes.
    fn error(&self, x: &[f32], inv: f32) -> f32 {
        let mut lanes = [0f32; 4];
        let (whole, rest) = x.as_chunks::<32>();
        for x in whole {
            let (y, cells) = Self::cells(x, inv);
            let mut level = [0f32; 32];
            for i in 0..32 {
                level[i] = self.level[(cells[i] & 511) as usize];
            }
            let mut squares = [0f32; 32];
            for i in 0..32 {
                let e = y[i] - level[i];
                squares[i] = e * e;
            }
            for quad in squares.as_chunks::<4>().0 {
                for (lane, square) in lanes.iter_mut().zip(quad) {
                    *lane += square;
                }
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let y = x * inv;
            let e = y - self.level[(Self::cell(y) & 511) as usize];
            lanes[i % 4] += e * e;
        }
        (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
    }

    /// The codes of `x * inv`.
    fn codes(&self, x: &[f32], inv: f32, codes: &mut [u8]) {
        let (whole, rest) = x.as_chunks::<32>();
        let (codes, codes_rest) = codes.as_chunks_mut::<32>();
        for (codes, x) in codes.iter_mut().zip(whole) {
            let (_, cells) = Self::cells(x, inv);
            for (code, cell) in codes.iter_mut().zip(cells) {
                *code = self.code[(cell & 511) as usize];
            }
        }
        for (code, x) in codes_rest.iter_mut().zip(rest) {
            *code = self.code[(Self::cell(x * inv) & 511) as usize];
        }
    }
}

/// Encodes rows of one tensor.
#[derive(Debug)]
pub(crate) struct RowEncoder {
    cols: usize,
    group: usize,
    n_groups: usize,
    grouped: bool,
    planes: u8,
    dtype: Dtype,
    top_level: f32,
    nearest: Nearest,
    grid: Grid,
}

/// Encoded rows, in the layout of the parts.
#[derive(Debug, Default)]
pub(crate) struct EncodedRows {
    pub scales: Vec<u8>,
    pub steps: Vec<u8>,
    /// One buffer for each plane.
    pub planes: Vec<Vec<u8>>,
}

impl RowEncoder {
    /// An encoder for rows of `layout` with `planes` planes and the tables of `set`.
    pub(crate) fn new(
        layout: &PlaneLayout,
        planes: u8,
        set: LevelSet<'_>,
        dtype: Dtype,
    ) -> Result<Self> {
        let cols = to_usize(layout.cols)?;
        let table = set.table(planes);
        let widest = table.iter().map(|l| l.unsigned_abs()).max().unwrap_or(127);
        Ok(Self {
            cols,
            group: if layout.group == 0 { cols } else { layout.group as usize },
            n_groups: to_usize(layout.n_groups())?,
            grouped: layout.group != 0,
            planes,
            dtype,
            top_level: f32::from(widest.min(127)),
            nearest: Nearest::new(table),
            grid: Grid::new(),
        })
    }

    /// Encodes whole rows.
    pub(crate) fn encode(&self, weights: &[f32]) -> EncodedRows {
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
            scatter_codes(&codes, &mut planes);
        }
        out
    }

    /// Encodes one row; returns the bits of its scale.
    fn row(&self, row: &[f32], codes: &mut [u8], steps: &mut [u8]) -> u16 {
        let peaks: Vec<f32> = row.chunks(self.group).map(peak).collect();
        let amax = peak(&peaks);
        // 2^-112: all that the smallest scale, the largest step and the largest level reach, so that
        // scale is as good as any. Above it the grid arithmetic stays clear of subnormals.
        if amax < f32::from_bits(15 << 23) {
            self.finish(row, 1 << 7, None, codes, steps);
            return 1 << 7;
        }
        // Grid of effective scales (row scale x step), finest ratio of the steps, anchored at the
        // one that puts the row's largest weight on the largest level.
        let unit = amax / self.top_level;
        let start: Vec<i32> = peaks.iter().map(|&p| self.grid.index(p, amax)).collect();
        // The row scale fixes which 16 neighbouring grid points the groups can use. Ordinary rows
        // find what they look for among the 16 from `ANCHOR` down.
        let low = start.iter().copied().min().unwrap_or(0);
        let (anchor, from) = if self.grouped && low > ANCHOR - 15 {
            (ANCHOR, start)
        } else {
            self.anchor(row, unit, &start)
        };
        let scale = self.scale_bits(unit * self.grid.ratio(anchor) / 128.0);
        // From just below the peak (a little clipping) upwards.
        let wanted: Vec<i32> = from.iter().map(|t| 15 - (anchor - t) - 1).collect();
        self.finish(row, scale, Some(&wanted), codes, steps);
        scale
    }

    /// For rows with groups of very different size: the best grid point of each group, and the highest
    /// point that the row scale should reach. Where they don't all fit below it, it may pay that the
    /// largest groups clip for the sake of the smallest.
    fn anchor(&self, row: &[f32], unit: f32, start: &[i32]) -> (i32, Vec<i32>) {
        let groups: Vec<&[f32]> = row.chunks(self.group).collect();
        // Errors relative to `unit`, so that no weight range over- or underflows.
        let error_at = |g: &[f32], t: i32| {
            let effective = self.grid.ratio(t);
            self.nearest.error(g, 1.0 / (unit * effective)) * effective * effective
        };
        let best: Vec<i32> = groups
            .iter()
            .zip(start)
            .map(|(g, &t)| least(t - 1, &GRID, |t| error_at(g, t)))
            .collect();
        let high = best.iter().copied().max().unwrap_or(0);
        let low = best.iter().copied().min().unwrap_or(0);
        let mut anchor = high;
        if self.grouped && high - low > 15 {
            let mut least = f32::INFINITY;
            for top in ((low + 15).max(high - MAX_ANCHORS)..=high).rev() {
                let total = groups
                    .iter()
                    .zip(&best)
                    .fold(0f32, |sum, (g, &t)| sum + error_at(g, t.clamp(top - 15, top)));
                if total < least {
                    (least, anchor) = (total, top);
                }
            }
        }
        (anchor, best)
    }

    /// The nearest allowed row scale.
    fn scale_bits(&self, scale: f32) -> u16 {
        let bits = half::bf16::from_f32(scale).to_bits();
        bits.clamp(1 << 7, (max_scale_exponent(self.dtype) << 7) | 0x7f)
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
            let error = |k: i32| {
                let step = f32::from(STEPS[usize::try_from(k).expect("0 to 15")]);
                self.nearest.error(x, 1.0 / (scale * step)) * step * step
            };
            let k = match wanted {
                _ if !self.grouped => 15,
                Some(wanted) => least(wanted[g], &(0..=15), error),
                None => {
                    (0..=15)
                        .map(|k| (error(k), k))
                        .fold((f32::INFINITY, 0), |a, b| if b.0 < a.0 { b } else { a })
                        .1
                }
            };
            let k = usize::try_from(k).expect("0 to 15");
            let inv = 1.0 / (scale * f32::from(STEPS[k]));
            self.nearest.codes(x, inv, codes);
            if self.grouped {
                steps[g / 2] |= u8::try_from(k).expect("0 to 15") << (4 * (g % 2));
            }
        }
    }
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

/// The point of least error among `from` and the three above it that lie in `range`.
fn least(
    from: i32,
    range: &std::ops::RangeInclusive<i32>,
    mut error: impl FnMut(i32) -> f32,
) -> i32 {
    let from = from.clamp(*range.start(), *range.end());
    let mut best = (f32::INFINITY, from);
    for t in from..=(from + 3).min(*range.end()) {
        let e = error(t);
        if e < best.0 {
            best = (e, t);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights with heavy tails, so that groups of a row spread over more than the ratio of the steps.
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
    fn nearest_level_holds_far_beyond_the_table() {
        for planes in 3..=8 {
            let table = LevelSet::default_for(planes).table(planes);
            let nearest = Nearest::new(table);
            for i in -32_000i16..=32_000 {
                let y = f32::from(i) / 128.0;
                let found = nearest.level[Nearest::cell(y) as usize];
                let least =
                    table.iter().map(|&l| (y - f32::from(l)).abs()).fold(f32::INFINITY, f32::min);
                assert!((y - found).abs() <= least, "{planes} planes: {y} became {found}");
            }
        }
    }

    #[test]
    fn search_is_close_to_trying_every_scale_and_step() {
        let layout = PlaneLayout::new(&[1, 1536], 1, 32).expect("valid");
        let set = LevelSet::default_for(5);
        let encoder = RowEncoder::new(&layout, 5, set, Dtype::F32).expect("valid");
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
                            .iter()
                            .map(|&s| {
                                let e = scale * f32::from(s);
                                encoder.nearest.error(x, 1.0 / e) * e * e
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
                    encoder.nearest.error(x, 1.0 / e) * e * e
                })
                .sum();
            let best = (scale.saturating_sub(256)..scale + 256)
                .map(error_of)
                .fold(f32::INFINITY, f32::min);
            assert!(found <= 1.1 * best, "seed {seed}: {found} against {best}");
        }
    }
}
