//! Second moments and their factors `U D U^T`.

use crate::error::{Error, Result};
use crate::kernels::{Kernel, TILE, TILE_LEN, subtract_product};
use crate::par;

/// A symmetric matrix of second moments as it is stored: the rows of the lower triangle one after
/// the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments<'a> {
    n: usize,
    packed: &'a [f32],
}

/// How many numbers a lower triangle of `n` rows has.
pub(crate) fn triangle(n: usize) -> usize {
    n * (n + 1) / 2
}

impl<'a> Moments<'a> {
    /// # Errors
    /// `Source` for a triangle of another size, numbers that are not finite, and a diagonal that is
    /// negative or zero throughout.
    pub(crate) fn new(n: usize, packed: &'a [f32]) -> Result<Self> {
        if n == 0 || packed.len() != triangle(n) {
            return Err(Error::source_file(format!(
                "{} numbers, moments of {n} have {}",
                packed.len(),
                triangle(n)
            )));
        }
        if let Some(i) = packed.iter().position(|x| !x.is_finite()) {
            return Err(Error::source_file(format!("number {i} is {}", packed[i])));
        }
        let moments = Self { n, packed };
        if let Some(i) = (0..n).find(|&i| moments.at(i, i) < 0.0) {
            return Err(Error::source_file(format!("the second moment {i} is negative")));
        }
        if (0..n).all(|i| moments.at(i, i) == 0.0) {
            return Err(Error::source_file("all second moments are zero"));
        }
        Ok(moments)
    }

    pub(crate) fn at(&self, i: usize, j: usize) -> f32 {
        let (i, j) = if i < j { (j, i) } else { (i, j) };
        self.packed[triangle(i) + j]
    }

    pub(crate) fn len(&self) -> usize {
        self.n
    }

    pub(crate) fn mean_of_diagonal(&self) -> f64 {
        let sum = self.diagonal().iter().fold(0.0, |sum, &x| sum + f64::from(x));
        #[allow(clippy::cast_precision_loss, reason = "a count of columns")]
        let mean = sum / self.n as f64;
        mean
    }

    /// An entry of the matrix with off-diagonal moments times `share` and `damp` more on the
    /// diagonal.
    pub(crate) fn damped(&self, i: usize, j: usize, share: f32, damp: f64) -> f32 {
        #[allow(clippy::cast_possible_truncation, reason = "moments are binary32")]
        if i == j { (f64::from(self.at(i, i)) + damp) as f32 } else { self.at(i, j) * share }
    }

    pub(crate) fn diagonal(&self) -> Vec<f32> {
        (0..self.n).map(|i| self.at(i, i)).collect()
    }

    /// Indices by falling second moment, equal ones as they come ("act-order").
    fn order(&self) -> Vec<usize> {
        let diagonal = self.diagonal();
        let mut order: Vec<usize> = (0..self.n).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        order
    }
}

/// Moments `H`, damped and ordered, as `U D U^T` with a unit upper triangular `U`.
///
/// When weights are rounded in this order, the error of each is best made up for by adding the
/// errors before it, weighted by its column of `U` (LDLQ: Chee et al., "QuIP", 2023, theorem 1;
/// equal to GPTQ of Frantar et al., 2022).
#[derive(Debug)]
pub(crate) struct Factor {
    /// The index at each position.
    pub order: Vec<usize>,
    /// `U` without its diagonal: panel `J` holds columns `64 J` to `64 J + 63` of all rows, with
    /// zeros below the diagonal and in the padding.
    panels: Vec<f32>,
    /// Rows of a panel: positions, padded to whole tiles.
    padded: usize,
    /// The entry of `D` of each index: what is left of its second moment when the positions before
    /// it are known.
    pub variance: Vec<f32>,
}

impl Factor {
    /// Factors `moments` with the off-diagonal ones times `share`, plus `damping` times the mean of
    /// their diagonal.
    ///
    /// # Errors
    /// `Source` when the damped moments aren't positive definite.
    pub(crate) fn new(
        kernel: Kernel,
        moments: Moments<'_>,
        share: f32,
        damping: f64,
    ) -> Result<Self> {
        let n = moments.n;
        let order = moments.order();
        let damp = moments.mean_of_diagonal() * damping;
        // `U D U^T` from the last position to the first is `L D L^T` of the reversed matrix.
        // Padding comes first there, with ones on the diagonal.
        let padded = n.next_multiple_of(TILE);
        let position = |reversed: usize| padded - 1 - reversed;
        let entry = |i: usize, j: usize| match (order.get(position(i)), order.get(position(j))) {
            (Some(&a), Some(&b)) => f64::from(moments.damped(a, b, share, damp)),
            _ if i == j => 1.0,
            _ => 0.0,
        };
        let (lower, diagonal) = ldl(kernel, padded, entry)?;
        let mut panels = vec![0f32; padded * padded];
        let mut variance = vec![0f32; n];
        #[allow(clippy::cast_possible_truncation, reason = "feedback is applied in binary32")]
        par::for_each_chunk(&mut panels, padded * TILE, |panel, columns| {
            for (row, line) in columns.chunks_exact_mut(TILE).enumerate() {
                for (c, value) in line.iter_mut().enumerate() {
                    let column = panel * TILE + c;
                    if row < column && column < n {
                        // Row `i` of `L` at column `j`: panel `i / 64`, row `j` of the panel.
                        let (i, j) = (position(row), position(column));
                        *value = lower[(i / TILE) * TILE * padded + j * TILE + i % TILE] as f32;
                    }
                }
            }
        });
        for (at, &index) in order.iter().enumerate() {
            #[allow(clippy::cast_possible_truncation, reason = "a weight of errors")]
            let value = diagonal[position(at)] as f32;
            variance[index] = value;
        }
        Ok(Self { order, panels, padded, variance })
    }

    /// Columns `64 panel` to `64 panel + 63` of `U` in rows `from` to `to`.
    pub(crate) fn columns(&self, panel: usize, from: usize, to: usize) -> &[f32] {
        &self.panels[panel * TILE * self.padded..][from * TILE..to * TILE]
    }

    /// How many panels there are.
    pub(crate) fn n_panels(&self) -> usize {
        self.padded / TILE
    }
}

/// `L D L^T` of the symmetric matrix with these entries, `n` a multiple of [`TILE`]: panel `I` of
/// the first result holds rows `64 I` to `64 I + 63` of the unit lower triangular `L` by column,
/// the second is `D`. Each entry of `L` takes its products in the order of their columns.
fn ldl(
    kernel: Kernel,
    n: usize,
    entry: impl Fn(usize, usize) -> f64 + Sync + Send,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let panel_len = n * TILE;
    let mut lower = vec![0f64; n * n];
    par::for_each_chunk(&mut lower, panel_len, |panel, columns| {
        for (j, line) in columns.chunks_exact_mut(TILE).enumerate() {
            for (r, value) in line.iter_mut().enumerate() {
                let i = panel * TILE + r;
                if j <= i {
                    *value = entry(i, j);
                }
            }
        }
    });
    let mut diagonal = vec![0f64; n];
    for block in 0..n / TILE {
        let from = block * TILE;
        let (own, later) = lower[block * panel_len..].split_at_mut(panel_len);
        // L D of the rows of this block.
        let mut scaled = own[..from * TILE].to_vec();
        for (line, d) in scaled.chunks_exact_mut(TILE).zip(&diagonal) {
            line.iter_mut().for_each(|x| *x *= d);
        }
        let (known, tile) = own.split_at_mut(from * TILE);
        let tile = &mut tile[..TILE_LEN];
        subtract_product(kernel, tile, &scaled, known);
        let pivots = factor_tile(tile, from)?;
        diagonal[from..from + TILE].copy_from_slice(&pivots);
        let (tile, pivots) = (&*tile, &pivots);
        par::for_each_chunk(later, panel_len, |_, columns| {
            let (known, rest) = columns.split_at_mut(from * TILE);
            let rest = &mut rest[..TILE_LEN];
            subtract_product(kernel, rest, &scaled, known);
            solve_tile(rest, tile, pivots);
        });
    }
    Ok((lower, diagonal))
}

/// `L D L^T` of one tile by column, in place; returns `D`.
fn factor_tile(tile: &mut [f64], first: usize) -> Result<[f64; TILE]> {
    let mut pivots = [0f64; TILE];
    for j in 0..TILE {
        let (before, column) = tile.split_at_mut(j * TILE);
        let column = &mut column[..TILE];
        for (k, earlier) in before.chunks_exact(TILE).enumerate() {
            let scaled = earlier[j] * pivots[k];
            column.iter_mut().zip(earlier).for_each(|(x, l)| *x -= scaled * l);
        }
        let pivot = column[j];
        if pivot.is_nan() || pivot <= 0.0 {
            return Err(Error::source_file(format!(
                "the moments aren't positive definite: pivot {} is {pivot}",
                first + j
            )));
        }
        pivots[j] = pivot;
        for (i, x) in column.iter_mut().enumerate() {
            *x = match i.cmp(&j) {
                std::cmp::Ordering::Less => 0.0,
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => *x / pivot,
            };
        }
    }
    Ok(pivots)
}

/// The rows of `L` below a tile: `x` becomes `x (D L^T)^-1`, by column.
fn solve_tile(x: &mut [f64], tile: &[f64], pivots: &[f64; TILE]) {
    for j in 0..TILE {
        let (before, column) = x.split_at_mut(j * TILE);
        let column = &mut column[..TILE];
        for (k, earlier) in before.chunks_exact(TILE).enumerate() {
            let scaled = tile[k * TILE + j] * pivots[k];
            column.iter_mut().zip(earlier).for_each(|(x, l)| *x -= scaled * l);
        }
        column.iter_mut().for_each(|x| *x /= pivots[j]);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[allow(clippy::cast_possible_truncation, reason = "moments are binary32")]
    /// Packed second moments of `samples` random vectors whose elements lean on one another.
    pub(crate) fn random_moments(n: usize, samples: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / 8_388_608.0 - 1.0
        };
        let mut sums = vec![0f64; triangle(n)];
        for _ in 0..samples {
            let common = next();
            let x: Vec<f64> = (0..n).map(|i| (next() + common) * (1.0 + (i % 7) as f64)).collect();
            for i in 0..n {
                for j in 0..=i {
                    sums[triangle(i) + j] += x[i] * x[j] / samples as f64;
                }
            }
        }
        sums.into_iter().map(|x| x as f32).collect()
    }

    #[test]
    fn factors_multiply_to_the_moments() {
        for n in [1, 63, 64, 65, 200] {
            let packed = random_moments(n, 2 * n, 5);
            let moments = Moments::new(n, &packed).expect("valid");
            let factor =
                Factor::new(Kernel::detect(), moments, 1.0, 0.01).expect("positive definite");
            let mean = moments.diagonal().iter().sum::<f32>() / n as f32;
            let u = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Equal => 1.0,
                _ => f64::from(factor.columns(j / TILE, i, i + 1)[j % TILE]),
            };
            for i in 0..n {
                for j in 0..=i {
                    let found: f64 = (0..n)
                        .map(|k| u(i, k) * f64::from(factor.variance[factor.order[k]]) * u(j, k))
                        .sum();
                    let (a, b) = (factor.order[i], factor.order[j]);
                    let damp = if i == j { 0.01 * mean } else { 0.0 };
                    let expected = f64::from(moments.at(a, b) + damp);
                    assert!((found - expected).abs() < 1e-3 * f64::from(mean), "{n}: {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn bad_moments_are_refused() {
        assert!(Moments::new(2, &[1.0, 0.0]).is_err(), "too few");
        assert!(Moments::new(2, &[1.0, f32::NAN, 1.0]).is_err(), "not finite");
        assert!(Moments::new(2, &[1.0, 0.0, -1.0]).is_err(), "negative");
        assert!(Moments::new(2, &[0.0, 0.0, 0.0]).is_err(), "nothing");
        let indefinite = [1.0, 5.0, 1.0];
        let moments = Moments::new(2, &indefinite).expect("finite");
        assert!(Factor::new(Kernel::Scalar, moments, 1.0, 0.01).is_err());
    }
}
