//! Error-compensating rounding of a matrix, along its rows and, where the moments of its outputs
//! are known, across them.
//!
//! The expected loss of rounding `W` to `W - E` is about `tr(G E H E^T) / 2`: `H` the second
//! moments of the inputs, `G` those of the gradients at the outputs. With `H = U D U^T` and `G = V
//! F V^T` that is the sum of `f_r d_c ((V^T E U)_rc)^2`, and rounding each weight with all that
//! earlier columns and rows add to it makes each term as small as rounding one number allows
//! (two-sided LDLQ: Tseng et al., "YAQA", 2025, section 3.2).

use std::sync::Mutex;

use super::factor::Factor;
use super::grid::Grid;
use crate::codec::Levels;
use crate::format::{PLANE_COUNTS, plane_index};
use crate::kernels::{Kernel, Nearest, RoundTile, TILE, TILE_LEN, add_product, round_tile};
use crate::par;

/// The searches among the levels of 3, 4, .., 8 planes.
#[derive(Debug)]
pub(crate) struct Searches([Nearest; PLANE_COUNTS]);

impl Searches {
    pub(crate) fn new(kernel: Kernel, levels: Levels<'_>) -> Self {
        Self([3, 4, 5, 6, 7, 8].map(|n| Nearest::new(kernel, levels.set(n).table(n))))
    }

    pub(crate) fn of(&self, planes: u8) -> &Nearest {
        &self.0[plane_index(planes)]
    }
}

/// A matrix `[rows, cols]` to be rounded.
pub(crate) struct Matrix<'a> {
    pub kernel: Kernel,
    pub cols: usize,
    /// Row by row.
    pub weights: &'a [f32],
    pub grid: &'a Grid,
    pub searches: &'a Searches,
    pub inputs: &'a Factor,
}

/// Rows that are rounded in the knowledge of each other.
pub(crate) struct RowBlock<'a> {
    /// The row of the matrix at each position.
    pub rows: Vec<usize>,
    /// The factor of the moments of their outputs; without it each row is by itself.
    pub outputs: Option<&'a Factor>,
}

/// A row of tiles on its way.
struct Strip {
    /// By position of the column: weight minus value of 64 rows.
    errors: Vec<f32>,
    codes: Vec<u8>,
}

impl Matrix<'_> {
    /// Rounds the rows of a block: codes by position of the row and then column of the matrix.
    pub(crate) fn round(&self, block: &RowBlock<'_>) -> Vec<u8> {
        let columns = self.inputs.n_panels();
        let n_strips = block.rows.len().div_ceil(TILE);
        let padded = columns * TILE;
        let effective = Effective::new(self.grid, &block.rows, n_strips);
        let strips: Vec<Mutex<Strip>> = (0..n_strips)
            .map(|_| {
                Mutex::new(Strip {
                    errors: vec![0.0; padded * TILE],
                    codes: vec![0; padded * TILE],
                })
            })
            .collect();
        // What each column of tiles has carried across its rows, `[row][64]`.
        let carried_len = if block.outputs.is_some() { n_strips * TILE_LEN } else { 0 };
        let carried: Vec<Mutex<Vec<f32>>> =
            (0..columns).map(|_| Mutex::new(vec![0.0; carried_len])).collect();
        // A tile needs those to its left and those above it: tiles of one diagonal don't need each
        // other.
        for diagonal in 0..columns + n_strips - 1 {
            let first = (diagonal + 1).saturating_sub(columns);
            let last = diagonal.min(n_strips - 1);
            par::map(last + 1 - first, |i| {
                let strip = first + i;
                let column = diagonal - strip;
                let mut own = strips[strip].lock().expect("no tile panics");
                let mut above = carried[column].lock().expect("no tile panics");
                self.tile(block, strip, column, &effective, &mut own, &mut above);
            });
        }
        self.collect(block, strips)
    }

    fn tile(
        &self,
        block: &RowBlock<'_>,
        strip: usize,
        column: usize,
        effective: &Effective,
        own: &mut Strip,
        carried: &mut [f32],
    ) {
        let (left, top) = (column * TILE, strip * TILE);
        let rows = (block.rows.len() - top).min(TILE);
        let cols = (self.cols - left).min(TILE);
        let mut weights = vec![0f32; TILE_LEN];
        let columns = &self.inputs.order[left..left + cols];
        for (m, &row) in block.rows[top..top + rows].iter().enumerate() {
            let line = &self.weights[row * self.cols..][..self.cols];
            for (n, &c) in columns.iter().enumerate() {
                weights[n * TILE + m] = line[c];
            }
        }
        let (before, errors) = own.errors.split_at_mut(left * TILE);
        let errors = &mut errors[..TILE_LEN];
        let mut base = vec![0f32; TILE_LEN];
        add_product(self.kernel, &mut base, self.inputs.columns(column, 0, left), before);
        let mut add = vec![0f32; TILE_LEN];
        let (above, beside) = if block.outputs.is_some() {
            carried.split_at_mut(top * TILE)
        } else {
            carried.split_at_mut(0)
        };
        let by_row = block.outputs.map(|outputs| {
            add_product(self.kernel, &mut add, above, outputs.columns(strip, 0, top));
            outputs.columns(strip, top, top + TILE)
        });
        let groups: Vec<usize> = columns.iter().map(|c| c / self.grid.group).collect();
        let of = |all| groups.iter().map(|&g| effective.of(all, strip, g)).collect::<Vec<_>>();
        let nearest: Vec<&Nearest> = block.rows[top..top + rows]
            .iter()
            .map(|&r| self.searches.of(self.grid.planes[r]))
            .collect();
        let at = left * TILE..(left + TILE) * TILE;
        round_tile(
            self.kernel,
            RoundTile {
                rows,
                cols,
                weights: &weights,
                base: &mut base,
                add: &mut add,
                by_column: self.inputs.columns(column, left, left + TILE),
                by_row,
                effective: &of(&effective.values),
                inverse: &of(&effective.inverse),
                nearest: &nearest,
                errors,
                carried: beside,
                codes: &mut own.codes[at],
            },
        );
    }

    fn collect(&self, block: &RowBlock<'_>, strips: Vec<Mutex<Strip>>) -> Vec<u8> {
        let mut codes = vec![0; block.rows.len() * self.cols];
        let strips: Vec<Strip> =
            strips.into_iter().map(|s| s.into_inner().expect("no tile panics")).collect();
        par::for_each_chunk(&mut codes, TILE * self.cols, |s, codes| {
            for (position, &c) in self.inputs.order.iter().enumerate() {
                let found = &strips[s].codes[position * TILE..][..TILE];
                for (line, code) in codes.chunks_exact_mut(self.cols).zip(found) {
                    line[c] = *code;
                }
            }
        });
        codes
    }
}

/// Scale times step of the rows of a block, as tiles take them.
struct Effective {
    groups: usize,
    /// `[strip][group][64]`.
    values: Vec<f32>,
    /// Two over these.
    inverse: Vec<f32>,
}

impl Effective {
    fn new(grid: &Grid, rows: &[usize], strips: usize) -> Self {
        let groups = grid.groups;
        let mut values = vec![1f32; strips * groups * TILE];
        for (position, &row) in rows.iter().enumerate() {
            for g in 0..groups {
                values[((position / TILE) * groups + g) * TILE + position % TILE] =
                    grid.effective(row, g);
            }
        }
        let inverse = values.iter().map(|v| 2.0 / v).collect();
        Self { groups, values, inverse }
    }

    fn of<'a>(&self, all: &'a [f32], strip: usize, group: usize) -> &'a [f32] {
        &all[(strip * self.groups + group) * TILE..][..TILE]
    }
}
