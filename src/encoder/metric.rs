//! The cost of an error in a matrix, as a norm: `|R^T E L|` with `L L^T` the second moments of
//! inputs and `R R^T` those of gradients at the outputs.

use super::factor::{Moments, triangle};
use super::{INPUT_DAMPING, OUTPUT_DAMPING, Statistics};
use crate::error::{Error, Result};
use crate::par;

/// A lower triangular matrix, row by row.
#[derive(Debug, Clone)]
pub(crate) struct Lower {
    n: usize,
    values: Vec<f64>,
}

/// Cholesky factors of damped second moments.
#[derive(Debug, Clone)]
pub(crate) struct Metric {
    pub inputs: Lower,
    /// Of consecutive blocks of rows; one row each and all alike where nothing is known.
    pub outputs: Vec<Lower>,
    /// Tokens that the layer sees, over all.
    pub token_share: f64,
}

/// A sum in eight parts, which compiles to vector code.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a8, a1) = a.as_chunks::<8>();
    let (b8, b1) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += a * b);
    }
    sums.iter().sum::<f64>() + a1.iter().zip(b1).map(|(a, b)| a * b).sum::<f64>()
}

impl Lower {
    /// The Cholesky factor of the matrix with these entries.
    ///
    /// # Errors
    /// `Source` when it isn't positive definite.
    pub(crate) fn cholesky(n: usize, entry: impl Fn(usize, usize) -> f64 + Sync) -> Result<Self> {
        let mut values = vec![0f64; n * n];
        par::for_each_chunk(&mut values, n.max(1), |i, row| {
            row.iter_mut().take(i + 1).enumerate().for_each(|(j, v)| *v = entry(i, j));
        });
        for j in 0..n {
            let (above, below) = values.split_at_mut((j + 1) * n);
            let row = &mut above[j * n..];
            let pivot = row[j] - dot(&row[..j], &row[..j]);
            if pivot.is_nan() || pivot <= 0.0 {
                let text = format!("the moments aren't positive definite: pivot {j} is {pivot}");
                return Err(Error::source_file(text));
            }
            row[j] = pivot.sqrt();
            let row = &*row;
            par::for_each_chunk(below, n.max(1), |_, other| {
                other[j] = (other[j] - dot(&other[..j], &row[..j])) / row[j];
            });
        }
        Ok(Self { n, values })
    }

    /// Ones on the diagonal.
    pub(crate) fn identity(n: usize) -> Self {
        let at = |i: usize| if i.is_multiple_of(n + 1) { 1.0 } else { 0.0 };
        Self { n, values: (0..n * n).map(at).collect() }
    }

    /// Rows.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// All entries, row by row.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    /// `x` becomes what `L^T` times it was.
    pub(crate) fn solve_transposed(&self, x: &mut [f64]) {
        for i in (0..self.n).rev() {
            let row = &self.values[i * self.n..][..=i];
            x[i] /= row[i];
            let value = x[i];
            x[..i].iter_mut().zip(row).for_each(|(x, l)| *x -= value * l);
        }
    }
}

impl Metric {
    /// Of the errors themselves.
    pub(crate) fn plain(rows: usize, cols: usize) -> Self {
        let outputs = vec![Lower::identity(rows)];
        Self { inputs: Lower::identity(cols), outputs, token_share: 1.0 }
    }

    /// Of what errors do to the loss.
    ///
    /// # Errors
    /// `Source` for statistics that don't fit the matrix or make no sense.
    pub(crate) fn new(rows: usize, cols: usize, statistics: &Statistics) -> Result<Self> {
        let named = |what: &str, e: Error| {
            Error::source_file(format!("calibration, {what}: {}", e.message()))
        };
        let of = |moments: Moments<'_>, share: f32, damping: f64| {
            let damp = moments.mean_of_diagonal() * damping;
            let entry = |i: usize, j: usize| f64::from(moments.damped(i, j, share, damp));
            Lower::cholesky(moments.len(), entry)
        };
        let inputs = Moments::new(cols, &statistics.inputs);
        let inputs = inputs.and_then(|m| of(m, 1.0, INPUT_DAMPING));
        let inputs = inputs.map_err(|e| named("inputs", e))?;
        #[allow(clippy::cast_precision_loss, reason = "counts of tokens")]
        let (tokens, all) = (statistics.tokens as f64, statistics.all_tokens as f64);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a share")]
        let believed = (tokens / (tokens + rows as f64)) as f32;
        let mut outputs = vec![];
        let mut left = rows;
        for packed in statistics.outputs.iter().flatten() {
            let n = (1..=left).rev().find(|&n| triangle(n) == packed.len());
            let n = n.ok_or_else(|| {
                Error::source_file("the calibration is of a matrix of another shape")
            })?;
            let block = Moments::new(n, packed).and_then(|m| of(m, believed, OUTPUT_DAMPING));
            outputs.push(block.map_err(|e| named("outputs", e))?);
            left -= n;
        }
        if statistics.outputs.is_none() {
            outputs.push(Lower::identity(rows));
        } else if left != 0 {
            return Err(Error::source_file("the calibration is of a matrix of another shape"));
        }
        Ok(Self { inputs, outputs, token_share: (tokens + 1.0) / (all + 1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_give_the_matrix_back() {
        let n = 21;
        let packed = super::super::factor::tests::random_moments(n, 60, 7);
        let moments = Moments::new(n, &packed).expect("moments");
        let lower = Lower::cholesky(n, |i, j| f64::from(moments.at(i, j))).expect("definite");
        for i in 0..n {
            for j in 0..n {
                let found = dot(&lower.values[i * n..][..n], &lower.values[j * n..][..n]);
                assert!((found - f64::from(moments.at(i, j))).abs() < 1e-6);
            }
        }
        let x: Vec<f64> = (0..n).map(|i| f64::from(u8::try_from(i).expect("few")) - 9.0).collect();
        let mut product: Vec<f64> =
            (0..n).map(|i| (i..n).map(|k| lower.values[k * n + i] * x[k]).sum()).collect();
        lower.solve_transposed(&mut product);
        assert!(product.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!(Lower::cholesky(2, |_, _| 1.0).is_err());
    }
}
