//! Level tables that are fitted to a model.

use crate::codec::{LevelSet, OwnedLevels};
use crate::format::{PLANE_COUNTS, plane_index};

/// Cells of a level's width in the histograms.
const FINE: f32 = 16.0;
/// Half as many cells as a histogram has: up to 160 levels on either side.
const HALF: usize = 160 * 16;
/// Rounds of Lloyd's algorithm.
const ROUNDS: usize = 30;
/// Fewest samples for each level of a table that is fitted.
const SAMPLES: u64 = 64;

/// Part of the error that a fitted table must save.
const GAIN: f64 = 0.01;

/// How the values to be rounded are spread, by plane count of their rows: in units of a level, by
/// magnitude.
#[derive(Debug, Clone)]
pub(crate) struct Histograms(Vec<Histogram>);

#[derive(Debug, Clone)]
struct Histogram {
    /// What an error costs there, summed up.
    weights: Vec<f64>,
    samples: u64,
}

impl Histograms {
    pub(crate) fn new() -> Self {
        Self(vec![Histogram { weights: vec![0.0; HALF], samples: 0 }; PLANE_COUNTS])
    }

    /// Adds a value of a row of `planes` planes.
    pub(crate) fn add(&mut self, planes: u8, value: f32, weight: f64) {
        let histogram = &mut self.0[plane_index(planes)];
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let cell = ((value.abs() * FINE) as usize).min(HALF - 1);
        if weight.is_finite() {
            histogram.weights[cell] += weight;
            histogram.samples += 1;
        }
    }

    /// Adds those of another tensor.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            own.weights.iter_mut().zip(&other.weights).for_each(|(a, b)| *a += b);
            own.samples += other.samples;
        }
    }

    /// Tables for 3 to 7 planes, where there are enough samples and the error is less by [`GAIN`]
    /// than with the default ones; nothing elsewhere. 8 planes have no choice.
    pub(crate) fn fit(&self) -> [Option<Vec<i8>>; PLANE_COUNTS] {
        std::array::from_fn(|i| {
            let planes = u8::try_from(i + 3).expect("3 to 8");
            let histogram = &self.0[i];
            let enough = histogram.samples >= SAMPLES << planes;
            if planes == 8 || !enough {
                return None;
            }
            let table = fit(planes, &histogram.weights);
            let default = error(&histogram.weights, LevelSet::default_for(planes).table(planes));
            let fitted = error(&histogram.weights, &table[..1 << planes]);
            (fitted < (1.0 - GAIN) * default).then_some(table)
        })
    }
}

/// The default tables with those that were fitted in place of them.
pub(crate) fn with_fitted(fitted: &[Option<Vec<i8>>; PLANE_COUNTS]) -> OwnedLevels {
    let mut levels = OwnedLevels::from(crate::codec::Levels::default());
    for (i, table) in fitted.iter().enumerate() {
        if let Some(table) = table {
            levels.set(i, table.clone());
        }
    }
    levels
}

/// The middle of a cell.
#[allow(clippy::cast_precision_loss, reason = "below 2560")]
fn middle(cell: usize) -> f64 {
    (cell as f64 + 0.5) / f64::from(FINE)
}

/// Levels for `planes` planes and, behind them, those for fewer planes read.
fn fit(planes: u8, weights: &[f64]) -> Vec<i8> {
    let half = 1usize << (planes - 1);
    let default = LevelSet::default_for(planes);
    let start = &default.table(planes)[half..];
    let mut positive: Vec<f64> = start.iter().map(|l| f64::from(*l)).collect();
    for _ in 0..ROUNDS {
        let means = centroids(weights, &positive);
        for (level, mean) in positive.iter_mut().zip(means) {
            *level = mean.unwrap_or(*level);
        }
        // The largest level stays where the scale puts the peak.
        positive[half - 1] = 127.0;
    }
    let positive = whole(&positive, 1);
    let mut all: Vec<i8> = mirrored(&positive);
    let exact: Vec<f64> = positive.iter().map(|l| f64::from(*l)).collect();
    let masses = masses(weights, &exact);
    for read in (3..planes).rev() {
        // Codes that share their first bits are read as one: their common centroid.
        let merged = 1usize << (planes - read);
        let coarse: Vec<f64> = exact
            .chunks(merged)
            .zip(masses.chunks(merged))
            .map(|(levels, masses)| {
                let mass: f64 = masses.iter().sum();
                let sum: f64 = levels.iter().zip(masses).map(|(l, m)| l * m).sum();
                #[allow(clippy::cast_precision_loss, reason = "at most 16 levels")]
                let plain = levels.iter().sum::<f64>() / levels.len() as f64;
                if mass > 0.0 { sum / mass } else { plain }
            })
            .collect();
        all.extend(mirrored(&whole(&coarse, 1)));
    }
    all
}

/// The cells that are nearest to each level, as bounds between levels.
fn bounds(levels: &[f64]) -> Vec<f64> {
    levels.windows(2).map(|w| f64::midpoint(w[0], w[1])).collect()
}

/// The squared error of rounding to levels, a mirrored table.
fn error(weights: &[f64], levels: &[i8]) -> f64 {
    let positive: Vec<f64> = levels[levels.len() / 2..].iter().map(|l| f64::from(*l)).collect();
    let bounds = bounds(&positive);
    weights.iter().enumerate().fold(0.0, |sum, (cell, weight)| {
        let at = middle(cell);
        let distance = at - positive[bounds.partition_point(|b| *b < at)];
        sum + weight * (distance * distance)
    })
}

fn masses(weights: &[f64], levels: &[f64]) -> Vec<f64> {
    let bounds = bounds(levels);
    let mut masses = vec![0f64; levels.len()];
    for (cell, weight) in weights.iter().enumerate() {
        masses[bounds.partition_point(|b| *b < middle(cell))] += weight;
    }
    masses
}

fn centroids(weights: &[f64], levels: &[f64]) -> Vec<Option<f64>> {
    let bounds = bounds(levels);
    let mut sums = vec![(0f64, 0f64); levels.len()];
    for (cell, weight) in weights.iter().enumerate() {
        let at = middle(cell);
        let (mass, sum) = &mut sums[bounds.partition_point(|b| *b < at)];
        *mass += weight;
        *sum += weight * at;
    }
    sums.into_iter().map(|(mass, sum)| (mass > 0.0).then(|| sum / mass)).collect()
}

/// Strictly increasing whole numbers from `least` to 127.
fn whole(levels: &[f64], least: i16) -> Vec<i8> {
    #[allow(clippy::cast_possible_truncation, reason = "within 0 to 160")]
    let mut out: Vec<i16> = levels.iter().map(|l| (l.round() as i16).max(least)).collect();
    for i in 1..out.len() {
        out[i] = out[i].max(out[i - 1] + 1);
    }
    let mut ceiling = 127;
    for level in out.iter_mut().rev() {
        *level = (*level).min(ceiling);
        ceiling = *level - 1;
    }
    out.into_iter().map(|l| i8::try_from(l).expect("1 to 127")).collect()
}

fn mirrored(positive: &[i8]) -> Vec<i8> {
    positive.iter().rev().map(|l| -l).chain(positive.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_follow_the_samples_and_keep_the_rules() {
        let mut histograms = Histograms::new();
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            (state >> 40) as f32 / 16_777_216.0
        };
        for planes in 3..=8 {
            for _ in 0..100_000 {
                // Most values are small.
                let value = next() * next() * next() * 127.0;
                histograms.add(planes, if next() < 0.5 { -value } else { value }, 1.0);
            }
        }
        let fitted = histograms.fit();
        assert!(fitted[5].is_none(), "8 planes have no choice");
        // At 7 planes neighbours are whole numbers apart already.
        for planes in 3..=6u8 {
            let table = fitted[usize::from(planes) - 3].as_ref().expect("enough samples");
            assert_eq!(table.len(), (2 << planes) - 8);
            let mut from = 0;
            for read in (3..=planes).rev() {
                let levels = &table[from..from + (1 << read)];
                assert!(levels.windows(2).all(|w| w[0] < w[1]), "{planes} read as {read}");
                from += 1 << read;
            }
            let default = LevelSet::default_for(planes).table(planes);
            let sum = |levels: &[i8]| levels.iter().map(|l| i32::from(*l).abs()).sum::<i32>();
            assert!(
                sum(&table[..1 << planes]) < sum(default),
                "{planes}: denser where samples are"
            );
        }
        assert!(Histograms::new().fit().iter().all(Option::is_none));
        let levels = with_fitted(&fitted);
        assert_eq!(levels.borrow().set(4).table(3).len(), 8);
    }
}
