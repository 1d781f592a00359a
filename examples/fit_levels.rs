//! Fits the default level tables (UC-LVL-4) and prints `src/codec/planes/default_levels.rs`.
//!
//! Samples are Gaussian, in groups of 32 that each choose the best of a logarithmic grid of scales,
//! as the encoder does. Native tables come from Lloyd iterations over that choice, then
//! whole-number coordinate descent; tables for fewer planes read are the centroids of the codes
//! they merge.
//!
//! ```text
//! cargo run --release --example fit_levels > src/codec/planes/default_levels.rs
//! ```
//!
//! The tables are part of the format: this program documents where they come from, and a change of
//! its output would be a new format version, not an improvement.

use std::fmt::Write as _;

const GROUP: usize = 32;
const GROUPS: usize = 6_000;
const ROUNDS: usize = 40;

/// splitmix64: a documented generator, so that the samples are the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Box-Muller.
    fn gauss(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.next()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.next()).cos()
    }
}

fn nearest(levels: &[f64], y: f64) -> usize {
    let above = levels.partition_point(|&l| l < y);
    if above == 0 {
        0
    } else if above == levels.len() || y - levels[above - 1] <= levels[above] - y {
        above - 1
    } else {
        above
    }
}

/// The best scale of a group on the grid `phase + k * ratio`, and its squared error.
fn best_scale(group: &[f64], phase: f64, levels: &[f64]) -> (f64, f64) {
    let peak = group.iter().fold(0f64, |m, v| m.max(v.abs()));
    let ratio = 4f64.powf(1.0 / 15.0);
    let start = (peak / 127.0).ln() / ratio.ln();
    let start = (start - phase).floor() + phase;
    (-4..=2)
        .map(|k| {
            let scale = ratio.powf(start + f64::from(k));
            let error: f64 = group
                .iter()
                .map(|x| {
                    let y = x / scale;
                    (y - levels[nearest(levels, y)]).powi(2)
                })
                .sum();
            (scale, error * scale * scale)
        })
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .expect("seven candidates")
}

fn total_error(samples: &[Vec<f64>], phases: &[f64], levels: &[f64]) -> f64 {
    samples.iter().zip(phases).map(|(g, &p)| best_scale(g, p, levels).1).sum()
}

/// Symmetric levels from their positive half.
fn mirrored(positive: &[f64]) -> Vec<f64> {
    positive.iter().rev().map(|v| -v).chain(positive.iter().copied()).collect()
}

/// Rounds to strictly increasing whole numbers that end at 127.
fn whole(positive: &[f64]) -> Vec<f64> {
    let mut out: Vec<f64> = positive.iter().map(|v| v.round().max(1.0)).collect();
    for i in 1..out.len() {
        out[i] = out[i].max(out[i - 1] + 1.0);
    }
    let mut ceiling = 127.0;
    for v in out.iter_mut().rev() {
        *v = v.min(ceiling);
        ceiling = *v - 1.0;
    }
    out
}

fn fit(samples: &[Vec<f64>], phases: &[f64], planes: u32) -> Vec<f64> {
    let half = 1usize << (planes - 1);
    let mut positive: Vec<f64> =
        (0..half).map(|i| 127.0 * ((i as f64 + 0.5) / (half as f64 - 0.5)).powf(1.2)).collect();
    for _ in 0..ROUNDS {
        let levels = mirrored(&positive);
        let (mut sums, mut weights) = (vec![0f64; half], vec![0f64; half]);
        for (group, &phase) in samples.iter().zip(phases) {
            let (scale, _) = best_scale(group, phase, &levels);
            for x in group {
                let y = x / scale;
                let code = nearest(&levels, y);
                let i = if code >= half { code - half } else { half - 1 - code };
                sums[i] += y.abs() * scale * scale;
                weights[i] += scale * scale;
            }
        }
        for (p, (s, w)) in positive.iter_mut().zip(sums.iter().zip(&weights)) {
            if *w > 0.0 {
                *p = s / w;
            }
        }
        positive.sort_by(f64::total_cmp);
        let top = positive[half - 1];
        positive.iter_mut().for_each(|p| *p *= 127.0 / top);
    }
    let mut positive = whole(&positive);
    // Whole-number descent; the top stays at 127, which fixes the unit of the scales.
    let mut least = total_error(samples, phases, &mirrored(&positive));
    for _ in 0..3 {
        for i in 0..half - 1 {
            for step in [-1.0, 1.0] {
                let mut other = positive.clone();
                other[i] += step;
                let fits = other[i] >= 0.0
                    && (i == 0 || other[i - 1] < other[i])
                    && other[i] < other[i + 1]
                    && (i > 0 || other[0] > 0.0);
                if fits {
                    let error = total_error(samples, phases, &mirrored(&other));
                    if error < least {
                        (least, positive) = (error, other);
                    }
                }
            }
        }
    }
    let energy: f64 = samples.iter().flatten().map(|x| x * x).sum();
    eprintln!("{planes} planes: {:.3} dB", 10.0 * (energy / least).log10());
    mirrored(&positive)
}

/// Centroids of the codes that share their first `read` bits.
fn coarse(samples: &[Vec<f64>], phases: &[f64], levels: &[f64], drop: u32) -> Vec<f64> {
    let n = levels.len() >> drop;
    let (mut sums, mut weights) = (vec![0f64; n], vec![0f64; n]);
    for (group, &phase) in samples.iter().zip(phases) {
        let (scale, _) = best_scale(group, phase, levels);
        for x in group {
            let y = x / scale;
            let code = nearest(levels, y) >> drop;
            sums[code] += y * scale * scale;
            weights[code] += scale * scale;
        }
    }
    // Symmetric up to sampling noise: both halves are averaged, except where the native table
    // isn't.
    let mean: Vec<f64> =
        sums.iter().zip(&weights).map(|(s, w)| s / w.max(f64::MIN_POSITIVE)).collect();
    let mut out: Vec<f64> = (0..n)
        .map(|i| {
            let whole =
                if levels[0] == -128.0 { mean[i] } else { (mean[i] - mean[n - 1 - i]) / 2.0 };
            whole.round().clamp(-128.0, 127.0)
        })
        .collect();
    for i in 1..n {
        out[i] = out[i].max(out[i - 1] + 1.0);
    }
    out
}

fn main() {
    let mut random = Random(2026);
    let samples: Vec<Vec<f64>> =
        (0..GROUPS).map(|_| (0..GROUP).map(|_| random.gauss()).collect()).collect();
    let phases: Vec<f64> = (0..GROUPS).map(|_| random.next()).collect();
    let mut out = String::from(
        "// Made by `cargo run --release --example fit_levels`; part of the format (UC-LVL-4).\n\n\
         /// Default tables by native plane count 3 to 8, each followed by its tables for fewer planes\n\
         /// read, down to 3.\n#[rustfmt::skip]\nconst DEFAULT_LEVELS: [&[i8]; 6] = [\n",
    );
    for planes in 3..=8u32 {
        let native = if planes == 8 {
            // 256 different whole numbers from -128 to 127 leave no choice.
            (-128..=127).map(f64::from).collect()
        } else {
            fit(&samples, &phases, planes)
        };
        out.push_str("    &[\n");
        for read in (3..=planes).rev() {
            let table = if read == planes {
                native.clone()
            } else {
                coarse(&samples, &phases, &native, planes - read)
            };
            for line in table.chunks(16) {
                let numbers: Vec<String> = line.iter().map(|v| format!("{v:.0}")).collect();
                writeln!(out, "        {},", numbers.join(", ")).expect("writing to a string");
            }
        }
        out.push_str("    ],\n");
    }
    out.push_str("];\n");
    print!("{out}");
}
