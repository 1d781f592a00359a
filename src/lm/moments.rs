//! Sums of outer products of activations.

use candle_core::{D, Result as CandleResult, Tensor};

use crate::error::{Error, Result};
use crate::kernels::{Kernel, TILE, TILE_LEN, add_product};
use crate::par;

/// Vectors as panels of [`TILE`] columns, `[panel][token][64]`, padded with zeros.
pub(super) struct Panels {
    tokens: usize,
    values: Vec<f32>,
}

impl Panels {
    /// The rows of a tensor `[.., cols]`.
    pub(super) fn new(x: &Tensor) -> CandleResult<Self> {
        let cols = x.dim(D::Minus1)?;
        let rows = x.flatten_all()?.to_vec1::<f32>()?;
        let tokens = rows.len() / cols.max(1);
        let mut values = vec![0f32; cols.div_ceil(TILE) * tokens * TILE];
        for (t, row) in rows.chunks_exact(cols.max(1)).enumerate() {
            for (p, part) in row.chunks(TILE).enumerate() {
                values[(p * tokens + t) * TILE..][..part.len()].copy_from_slice(part);
            }
        }
        Ok(Self { tokens, values })
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    fn panel(&self, i: usize) -> &[f32] {
        let len = self.tokens * TILE;
        &self.values[i * len..][..len]
    }
}

/// The sum of `x x^T` as the tiles of its lower triangle. Tiles take tokens in order, in binary32
/// within a batch and in binary64 across batches.
#[derive(Debug, Clone, Default)]
struct Outer {
    first_panel: usize,
    tiles: Vec<f64>,
}

impl Outer {
    fn new(first_panel: usize, n: usize) -> Self {
        let panels = n.div_ceil(TILE);
        Self { first_panel, tiles: vec![0.0; panels * (panels + 1) / 2 * TILE_LEN] }
    }

    fn add(&mut self, kernel: Kernel, x: &Panels) {
        let first = self.first_panel;
        par::for_each_chunk(&mut self.tiles, TILE_LEN, |t, sums| {
            let (i, j) = tile_of(t);
            let mut tile = vec![0f32; TILE_LEN];
            add_product(kernel, &mut tile, x.panel(first + i), x.panel(first + j));
            sums.iter_mut().zip(&tile).for_each(|(sum, x)| *sum += f64::from(*x));
        });
    }

    fn pool(&mut self, other: &Self) {
        if self.tiles.is_empty() {
            self.clone_from(other);
        } else {
            self.tiles.iter_mut().zip(&other.tiles).for_each(|(a, b)| *a += b);
        }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        let (a, b) = (i / TILE, j / TILE);
        let tile = a * (a + 1) / 2 + b;
        self.tiles.get(tile * TILE_LEN + (i % TILE) * TILE + j % TILE).copied().unwrap_or(0.0)
    }
}

/// Row and column of tile `t` of a lower triangle.
fn tile_of(t: usize) -> (usize, usize) {
    let mut i = 0;
    while (i + 1) * (i + 2) / 2 <= t {
        i += 1;
    }
    (i, t - i * (i + 1) / 2)
}

/// Sums over the tokens that a layer saw.
#[derive(Debug, Default)]
pub(super) struct Sums {
    tokens: usize,
    inputs: Option<Outer>,
    outputs: Vec<Outer>,
}

impl Sums {
    /// Nothing yet, for outputs in blocks of so many.
    pub(super) fn new(blocks: &[usize]) -> Self {
        let mut first = 0;
        let outputs = blocks.iter().map(|&rows| {
            let outer = Outer::new(first / TILE, rows);
            first += rows;
            outer
        });
        Self { tokens: 0, inputs: None, outputs: outputs.collect() }
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds what a batch saw.
    pub(super) fn add(
        &mut self,
        kernel: Kernel,
        inputs: Option<&Panels>,
        gradients: Option<&Panels>,
        tokens: usize,
    ) {
        self.tokens += tokens;
        if let Some(x) = inputs {
            let cols = x.values.len() / x.tokens.max(1);
            self.inputs.get_or_insert_with(|| Outer::new(0, cols)).add(kernel, x);
        }
        if let Some(gradients) = gradients {
            self.outputs.iter_mut().for_each(|outer| outer.add(kernel, gradients));
        }
    }

    /// Adds the sums of a sibling.
    pub(super) fn pool(&mut self, other: &Self) {
        self.tokens += other.tokens;
        if let Some(inputs) = &other.inputs {
            self.inputs.get_or_insert_with(Outer::default).pool(inputs);
        }
        self.outputs.resize(self.outputs.len().max(other.outputs.len()), Outer::default());
        self.outputs.iter_mut().zip(&other.outputs).for_each(|(a, b)| a.pool(b));
    }

    /// Mean second moments of `cols` inputs; `lent` tokens like those of the lender's count too.
    ///
    /// # Errors
    /// `Source` when they are not finite.
    pub(super) fn inputs(
        &self,
        cols: usize,
        lender: Option<&Self>,
        lent: usize,
    ) -> Result<Vec<f32>> {
        let lender = lender.and_then(|l| Some((l.inputs.as_ref()?, l.tokens)));
        means(cols, (self.inputs.as_ref(), self.tokens), lender, lent)
    }

    /// As [`Sums::inputs`] of the gradients, one block after the other.
    ///
    /// # Errors
    /// As [`Sums::inputs`].
    pub(super) fn outputs(
        &self,
        blocks: &[usize],
        lender: Option<&Self>,
        lent: usize,
    ) -> Result<Vec<f32>> {
        let mut all = vec![];
        for (b, &rows) in blocks.iter().enumerate() {
            let lender = lender.and_then(|l| Some((l.outputs.get(b)?, l.tokens)));
            all.extend(means(rows, (self.outputs.get(b), self.tokens), lender, lent)?);
        }
        Ok(all)
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of tokens")]
#[allow(clippy::cast_possible_truncation, reason = "stored as binary32")]
fn means(
    n: usize,
    (own, tokens): (Option<&Outer>, usize),
    lender: Option<(&Outer, usize)>,
    lent: usize,
) -> Result<Vec<f32>> {
    let lender = lender.filter(|(_, tokens)| lent > 0 && *tokens > 0);
    let total = tokens + lender.map_or(0, |_| lent);
    let mut all = Vec::with_capacity(n * (n + 1) / 2);
    for i in 0..n {
        for j in 0..=i {
            let mut sum = own.map_or(0.0, |o| o.at(i, j));
            if let Some((lender, lender_tokens)) = lender {
                sum += lender.at(i, j) * (lent as f64 / lender_tokens as f64);
            }
            let mean = (sum / total.max(1) as f64) as f32;
            if !mean.is_finite() {
                return Err(Error::source_file(format!("the moment of {i} and {j} is {mean}")));
            }
            all.push(mean);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn vectors(tokens: usize, cols: usize, shift: usize) -> (Vec<f32>, Panels) {
        let at =
            |i: usize| f32::from(u8::try_from((i * 37 + shift) % 101).expect("small")) / 50.0 - 1.0;
        let values: Vec<f32> = (0..tokens * cols).map(at).collect();
        let tensor = Tensor::from_slice(&values, (1, tokens, cols), &Device::Cpu).expect("fits");
        (values, Panels::new(&tensor).expect("floats"))
    }

    /// The mean of products of two columns.
    fn mean(x: &[f32], cols: usize, i: usize, j: usize) -> f64 {
        let rows = x.chunks_exact(cols);
        let n = f64::from(u32::try_from(rows.len()).expect("few"));
        rows.map(|x| f64::from(x[i]) * f64::from(x[j])).sum::<f64>() / n
    }

    #[test]
    fn moments_are_means_of_outer_products() {
        let (cols, rows) = (70, 130);
        let blocks = [128, 2];
        let mut sums = Sums::new(&blocks);
        let (mut all_x, mut all_g) = (vec![], vec![]);
        for (tokens, shift) in [(5, 1), (1, 9), (40, 4)] {
            let (x, x_panels) = vectors(tokens, cols, shift);
            let (g, g_panels) = vectors(tokens, rows, shift + 50);
            sums.add(Kernel::detect(), Some(&x_panels), Some(&g_panels), tokens);
            all_x.extend(x);
            all_g.extend(g);
        }
        assert_eq!(sums.tokens(), 46);
        let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-5;
        let inputs = sums.inputs(cols, None, 0).expect("finite");
        let outputs = sums.outputs(&blocks, None, 0).expect("finite");
        let mut at = 0;
        for i in 0..cols {
            for j in 0..=i {
                assert!(near(inputs[at], mean(&all_x, cols, i, j)), "{i}, {j}");
                at += 1;
            }
        }
        assert_eq!(at, inputs.len());
        let mut at = 0;
        for (first, n) in [(0, 128), (128, 2)] {
            for i in first..first + n {
                for j in first..=i {
                    assert!(near(outputs[at], mean(&all_g, rows, i, j)), "{i}, {j}");
                    at += 1;
                }
            }
        }
        assert_eq!(at, outputs.len());

        // Six tokens of its own and six like those of a lender that saw 46.
        let (own, panels) = vectors(6, cols, 77);
        let mut few = Sums::new(&blocks);
        few.add(Kernel::detect(), Some(&panels), None, 6);
        let helped = few.inputs(cols, Some(&sums), 6).expect("finite");
        let both = f64::midpoint(mean(&own, cols, 3, 1), mean(&all_x, cols, 3, 1));
        assert!(near(helped[3 * 4 / 2 + 1], both));
        let alone = few.inputs(cols, Some(&sums), 0).expect("finite");
        assert!(near(alone[3 * 4 / 2 + 1], mean(&own, cols, 3, 1)));
        // Nothing of its own: the lender's.
        let borrowed = Sums::default().inputs(cols, Some(&sums), 100).expect("finite");
        assert!(near(borrowed[3 * 4 / 2 + 1], mean(&all_x, cols, 3, 1)));
    }
}
