//! Coordinate descent on codes: each weight in turn takes the level that is best given all others.

use super::factor::Moments;
use super::grid::Grid;
use super::round::Searches;
use crate::kernels::{Descent, Kernel, TILE, TILE_LEN, add_product, descend};
use crate::par;

/// A symmetric matrix in panels: panel `J` holds columns `64 J` to `64 J + 63` of all rows, zero in
/// the padding.
#[derive(Debug)]
pub(crate) struct Panels {
    padded: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Off-diagonal moments times `share`, and the diagonal plus `damping` times its mean.
    pub(crate) fn new(moments: Moments<'_>, share: f32, damping: f64) -> Self {
        let n = moments.len();
        let padded = n.next_multiple_of(TILE);
        let damp = moments.mean_of_diagonal() * damping;
        let mut values = vec![0f32; padded * padded];
        par::for_each_chunk(&mut values, padded * TILE, |panel, columns| {
            for (i, line) in columns.chunks_exact_mut(TILE).enumerate().take(n) {
                for (c, value) in line.iter_mut().enumerate() {
                    let j = panel * TILE + c;
                    if j < n {
                        *value = moments.damped(i, j, share, damp);
                    }
                }
            }
        });
        Self { padded, values }
    }

    fn panel(&self, j: usize) -> &[f32] {
        &self.values[j * self.padded * TILE..][..self.padded * TILE]
    }

    fn len_panels(&self) -> usize {
        self.padded / TILE
    }
}

/// What is refined: consecutive rows of a matrix.
pub(crate) struct Refined<'a> {
    pub kernel: Kernel,
    pub cols: usize,
    /// The rows, one after the other.
    pub weights: &'a [f32],
    /// The grid of the whole matrix.
    pub grid: &'a Grid,
    /// Where the rows begin in it.
    pub first_row: usize,
    pub searches: &'a Searches,
    /// Moments of the inputs.
    pub inputs: &'a Panels,
    /// Moments of the outputs; without them rows don't matter to each other.
    pub outputs: Option<&'a Panels>,
}

impl Refined<'_> {
    /// Makes `passes` passes over the columns, fewer when nothing changes any more.
    pub(crate) fn descend(&self, codes: &mut [u8], passes: usize) {
        let rows = self.weights.len() / self.cols;
        let strips = rows.div_ceil(TILE);
        let panels = self.inputs.len_panels();
        let padded_rows = strips * TILE;
        // Value minus weight, by column and strip: `[strip][col][64]`.
        let mut errors = vec![0f32; panels * TILE * padded_rows];
        let strip_len = panels * TILE * TILE;
        par::for_each_chunk(&mut errors, strip_len, |strip, errors| {
            for m in 0..TILE.min(rows - strip * TILE) {
                let row = strip * TILE + m;
                for c in 0..self.cols {
                    let at = row * self.cols + c;
                    errors[c * TILE + m] = self.value(row, c, codes[at]) - self.weights[at];
                }
            }
        });
        // Errors times moments of the inputs, by panel of columns: `[panel][row][64]`.
        let mut products = vec![0f32; panels * TILE * padded_rows];
        par::for_each_chunk(&mut products, TILE * padded_rows, |panel, products| {
            for (strip, tile) in products.chunks_exact_mut(TILE_LEN).enumerate() {
                let errors = &errors[strip * strip_len..][..strip_len];
                add_product(self.kernel, tile, errors, self.inputs.panel(panel));
            }
        });
        for _ in 0..passes {
            let mut any = false;
            for panel in 0..panels {
                let changes = self.panel(panel, codes, &products[panel * TILE * padded_rows..]);
                let Some(changes) = changes else { continue };
                any = true;
                par::for_each_chunk(&mut products, TILE * padded_rows, |other, products| {
                    let moments = &self.inputs.panel(other)[panel * TILE_LEN..][..TILE_LEN];
                    for (strip, tile) in products.chunks_exact_mut(TILE_LEN).enumerate() {
                        let changes = &changes[strip * TILE_LEN..][..TILE_LEN];
                        if changes.iter().any(|x| *x != 0.0) {
                            add_product(self.kernel, tile, changes, moments);
                        }
                    }
                });
            }
            if !any {
                break;
            }
        }
    }

    fn value(&self, row: usize, col: usize, code: u8) -> f32 {
        let own_row = self.first_row + row;
        let level = self.searches.of(self.grid.planes[own_row]).level(code);
        f32::from(level) * self.grid.effective(own_row, col / self.grid.group)
    }

    /// One pass over the columns of a panel. Returns the changes, `[strip][col][64]`, if there are
    /// any.
    fn panel(&self, panel: usize, codes: &mut [u8], products: &[f32]) -> Option<Vec<f32>> {
        let rows = self.weights.len() / self.cols;
        let strips = rows.div_ceil(TILE);
        let cols = TILE.min(self.cols - panel * TILE);
        let products = &products[..strips * TILE_LEN];
        // Half the gradient of the loss at each weight, `[strip][col][64]`.
        let mut gradients = vec![0f32; strips * TILE_LEN];
        par::for_each_chunk(&mut gradients, TILE_LEN, |strip, tile| match self.outputs {
            Some(outputs) => {
                let moments = &outputs.panel(strip)[..products.len()];
                add_product(self.kernel, tile, products, moments);
            }
            None => {
                let product = &products[strip * TILE_LEN..][..TILE_LEN];
                for n in 0..TILE {
                    for m in 0..TILE {
                        tile[n * TILE + m] = product[m * TILE + n];
                    }
                }
            }
        });
        let inputs = &self.inputs.panel(panel)[panel * TILE_LEN..][..TILE_LEN];
        let mut changes = vec![0f32; strips * TILE_LEN];
        let mut any = false;
        let mut sums = vec![0f32; strips * TILE];
        for n in 0..cols {
            let col = panel * TILE + n;
            sums.fill(0.0);
            let mut changed = false;
            for row in 0..rows {
                let own_row = self.first_row + row;
                let at = (row / TILE) * TILE_LEN + n * TILE + row % TILE;
                let own =
                    self.outputs.map_or(1.0, |o| o.panel(row / TILE)[row * TILE + row % TILE]);
                let curvature = own * inputs[n * TILE + n];
                if curvature <= 0.0 {
                    continue;
                }
                let effective = self.grid.effective(own_row, col / self.grid.group);
                let search = self.searches.of(self.grid.planes[own_row]);
                let code = &mut codes[row * self.cols + col];
                let current = f32::from(search.level(*code)) * effective;
                let wanted = current - gradients[at] / curvature;
                let found = search.code(wanted * (2.0 / effective));
                let value = f32::from(search.level(found)) * effective;
                // Only steps that help: the nearest level may be the present one's equal.
                if found == *code || (value - wanted).abs() >= (current - wanted).abs() {
                    continue;
                }
                *code = found;
                let change = value - current;
                changes[at] = change;
                changed = true;
                match self.outputs {
                    Some(outputs) => descend(
                        self.kernel,
                        Descent {
                            change,
                            curvature: inputs[n * TILE + n],
                            row,
                            outputs: &outputs.values,
                            panel_len: outputs.padded * TILE,
                            column: n,
                            gradients: &mut gradients,
                            sums: &mut sums,
                        },
                    ),
                    None => sums[row] = change,
                }
            }
            if changed {
                any = true;
                // What the changes of this column mean to the later ones of the panel.
                for (tile, sums) in
                    gradients.chunks_exact_mut(TILE_LEN).zip(sums.chunks_exact(TILE))
                {
                    for later in n + 1..cols {
                        let moment = inputs[n * TILE + later];
                        let line = &mut tile[later * TILE..][..TILE];
                        line.iter_mut().zip(sums).for_each(|(g, s)| *g += moment * s);
                    }
                }
            }
        }
        any.then_some(changes)
    }
}
