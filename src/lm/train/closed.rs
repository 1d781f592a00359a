//! The best product of two thin factors for a matrix of errors, in closed form.

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::encoder::{Lower, Metric};
use crate::error::Result;
use crate::lm::failed;

/// Rounds of subspace iteration: what is left over concerns the last ranks only.
const ROUNDS: usize = 8;
/// Vectors beyond those that are asked for, which take the error of the iteration.
const SPARE: usize = 8;

/// The first singular vectors of an error in its norm, taken back to factors: `E` is nearly `A B`.
#[derive(Debug, Clone)]
pub(super) struct Spectrum {
    pub rows: usize,
    pub cols: usize,
    /// What each rank takes off the squared error, falling.
    pub gains: Vec<f64>,
    /// Column `k` of A, by rank.
    a: Vec<Vec<f64>>,
    /// Row `k` of B, by rank.
    b: Vec<Vec<f64>>,
}

/// Factors as binary32 numbers, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Product {
    pub rows: usize,
    pub cols: usize,
    pub rank: usize,
    /// `[rows, rank]`.
    pub a: Vec<f32>,
    /// `[rank, cols]`.
    pub b: Vec<f32>,
}

/// Finds the first `most` singular vectors of `error` `[rows, cols]` in the norm of `metric`
/// (Eckart and Young, 1936; subspace iteration with Rayleigh and Ritz: Halko, Martinsson and Tropp,
/// 2011, arXiv:0909.4061).
///
/// # Errors
/// `Source` when the tensor library fails.
pub(super) fn spectrum(
    error: &[f64],
    rows: usize,
    cols: usize,
    metric: &Metric,
    most: usize,
) -> Result<Spectrum> {
    let run = || -> CandleResult<Spectrum> {
        let whitened = whiten(error, rows, cols, metric)?;
        let turned = whitened.t()?.contiguous()?;

        let k = (most + SPARE).min(rows.min(cols));
        let mut v = vec![vec![0f64; cols]; k];
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        v.iter_mut().flatten().for_each(|x| *x = noise(&mut state));
        orthonormalize(&mut v);
        let times = |vectors: &[Vec<f64>], by: &Tensor| -> CandleResult<Vec<Vec<f64>>> {
            let n = vectors.first().map_or(0, Vec::len);
            let flat = Tensor::from_vec(vectors.concat(), (vectors.len(), n), &Device::Cpu)?;
            flat.matmul(by)?.to_vec2::<f64>()
        };
        let mut u = vec![];
        for _ in 0..ROUNDS {
            u = times(&v, &turned)?;
            orthonormalize(&mut u);
            v = times(&u, &whitened)?;
            orthonormalize(&mut v);
        }
        // U^T M, whose own singular vectors are turned to lie along the axes.
        let small = times(&u, &whitened)?;
        let gram = |i: usize, j: usize| small[i].iter().zip(&small[j]).map(|(a, b)| a * b).sum();
        let (values, turns) = eigen(k, gram);
        let mix = |vectors: &[Vec<f64>], turn: &[f64], scale: f64| {
            let mut mixed = vec![0f64; vectors.first().map_or(0, Vec::len)];
            for (vector, t) in vectors.iter().zip(turn) {
                mixed.iter_mut().zip(vector).for_each(|(m, x)| *m += t * x * scale);
            }
            mixed
        };
        let keep = most.min(k);
        let (mut a, mut b, mut gains) = (vec![], vec![], vec![]);
        for (value, turn) in values.iter().zip(&turns).take(keep) {
            // Singular values squared; both factors get the root of one.
            let singular = value.max(0.0).sqrt();
            if singular == 0.0 {
                break;
            }
            let mut left = mix(&u, turn, singular.sqrt());
            let mut right = mix(&small, turn, singular.sqrt() / singular);
            let mut rest = &mut left[..];
            for block in &metric.outputs {
                let (own, others) = rest.split_at_mut(block.len());
                block.solve_transposed(own);
                rest = others;
            }
            metric.inputs.solve_transposed(&mut right);
            balance(&mut left, &mut right);
            a.push(left);
            b.push(right);
            gains.push(value * metric.token_share);
        }
        Ok(Spectrum { rows, cols, gains, a, b })
    };
    run().map_err(failed)
}

/// The error as a matrix whose plain norm is that of `metric`.
fn whiten(error: &[f64], rows: usize, cols: usize, metric: &Metric) -> CandleResult<Tensor> {
    let square = |l: &Lower| Tensor::from_slice(l.values(), (l.len(), l.len()), &Device::Cpu);
    let e = Tensor::from_slice(error, (rows, cols), &Device::Cpu)?;
    let e = e.matmul(&square(&metric.inputs)?)?;
    let mut parts = vec![];
    let mut from = 0;
    for block in &metric.outputs {
        let part = e.narrow(0, from, block.len())?;
        parts.push(square(block)?.t()?.contiguous()?.matmul(&part)?);
        from += block.len();
    }
    Tensor::cat(&parts, 0)
}

/// Gives both vectors the same length: metrics may be of very different scale.
fn balance(a: &mut [f64], b: &mut [f64]) {
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let by = (norm(b) / norm(a)).sqrt();
    if by.is_finite() && by > 0.0 {
        a.iter_mut().for_each(|x| *x *= by);
        b.iter_mut().for_each(|x| *x /= by);
    }
}

impl Spectrum {
    /// The best factors of this rank, or of as many as there are.
    #[allow(clippy::cast_possible_truncation, reason = "factors are trained in binary32")]
    pub(super) fn product(&self, rank: usize) -> Product {
        let rank = rank.min(self.a.len());
        let at = |i: usize| self.a[i % rank][i / rank] as f32;
        Product {
            rows: self.rows,
            cols: self.cols,
            rank,
            a: (0..self.rows * rank).map(at).collect(),
            b: self.b[..rank].iter().flatten().map(|x| *x as f32).collect(),
        }
    }
}

/// From -1 to 1 (splitmix64).
#[allow(clippy::cast_precision_loss, reason = "53 bits")]
pub(super) fn noise(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Gram and Schmidt, twice; vectors that depend on others become zero.
fn orthonormalize(vectors: &mut [Vec<f64>]) {
    for i in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(i);
        let own = &mut rest[0];
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let start = norm(own);
        for _ in 0..2 {
            for other in &*before {
                let along: f64 = own.iter().zip(other).map(|(a, b)| a * b).sum();
                own.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let length = norm(own);
        let scale = if length > start * 1e-12 { 1.0 / length } else { 0.0 };
        own.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Eigenvalues of a symmetric matrix, falling, with their vectors (Jacobi's rotations).
fn eigen(n: usize, entry: impl Fn(usize, usize) -> f64) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut m: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| entry(i, j)).collect()).collect();
    let mut vectors: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| if i == j { 1.0 } else { 0.0 }).collect()).collect();
    for _ in 0..30 {
        let total: f64 = m.iter().flatten().map(|x| x * x).sum();
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| m[i][j] * m[i][j]).sum();
        if off <= total * 1e-24 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if m[p][q] == 0.0 {
                    continue;
                }
                let theta = (m[q][q] - m[p][p]) / (2.0 * m[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in &mut m {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                rotate(&mut m, p, q, c, s);
                rotate(&mut vectors, p, q, c, s);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| m[b][b].total_cmp(&m[a][a]));
    let values = order.iter().map(|&i| m[i][i]).collect();
    (values, order.iter().map(|&i| vectors[i].clone()).collect())
}

/// Turns rows `p` and `q` into one another.
fn rotate(rows: &mut [Vec<f64>], p: usize, q: usize, c: f64, s: f64) {
    let (first, second) = rows.split_at_mut(q);
    for (a, b) in first[p].iter_mut().zip(&mut second[0]) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Statistics;

    fn matrix(rows: usize, cols: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        (0..rows * cols).map(|_| noise(&mut state)).collect()
    }

    /// `sum |R^T (E - A B) L|^2`.
    fn loss(e: &[f64], p: &Product, metric: &Metric) -> f64 {
        let (rows, cols) = (p.rows, p.cols);
        let at = |i: usize| {
            let product: f64 = (0..p.rank)
                .map(|k| {
                    f64::from(p.a[i / cols * p.rank + k]) * f64::from(p.b[k * cols + i % cols])
                })
                .sum();
            e[i] - product
        };
        let d: Vec<f64> = (0..rows * cols).map(at).collect();
        let l = metric.inputs.values();
        let dl = |i: usize, j: usize| -> f64 {
            (0..cols).map(|k| d[i * cols + k] * l[k * cols + j]).sum()
        };
        let dl: Vec<f64> = (0..rows * cols).map(|i| dl(i / cols, i % cols)).collect();
        let (mut from, mut sum) = (0, 0.0);
        for block in &metric.outputs {
            let n = block.len();
            for i in 0..n {
                for j in 0..cols {
                    let v: f64 =
                        (0..n).map(|k| block.values()[k * n + i] * dl[(from + k) * cols + j]).sum();
                    sum += v * v;
                }
            }
            from += n;
        }
        sum
    }

    #[test]
    fn products_take_off_what_their_gains_say() {
        let (rows, cols) = (20, 14);
        let mut e = matrix(rows, cols, 1);
        // Some directions matter more.
        e.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(u8::from(i % 5 == 0)));
        let moments = |n: usize, seed: u64| {
            let x = matrix(3 * n, n, seed);
            let at = |i: usize, j: usize| -> f64 {
                (0..3 * n).map(|t| x[t * n + i] * x[t * n + j]).sum::<f64>()
            };
            let packed = (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)));
            #[allow(clippy::cast_possible_truncation, reason = "moments are binary32")]
            let packed = packed.map(|(i, j)| at(i, j) as f32).collect::<Vec<f32>>();
            packed
        };
        let statistics = Statistics {
            inputs: moments(cols, 5),
            outputs: Some(vec![moments(16, 6), moments(4, 8)]),
            tokens: 99,
            all_tokens: 99,
        };
        for metric in
            [Metric::plain(rows, cols), Metric::new(rows, cols, &statistics).expect("definite")]
        {
            let all = spectrum(&e, rows, cols, &metric, cols).expect("computes");
            assert!(all.gains.windows(2).all(|w| w[0] >= w[1]) && all.gains.len() == cols);
            let before = loss(&e, &all.product(0), &metric);
            let mut left = before;
            for rank in 1..=cols {
                left -= all.gains[rank - 1];
                let found = loss(&e, &all.product(rank), &metric);
                assert!((found - left).abs() < 1e-5 * before, "rank {rank}: {found} {left}");
            }
            // Fewer vectors find the same first ones.
            let some = spectrum(&e, rows, cols, &metric, 3).expect("computes");
            let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-3 * b.abs();
            assert!(some.gains.iter().zip(&all.gains).all(near));
        }
    }
}
