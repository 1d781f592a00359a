//! Rounding a tile of weights to levels, each weight corrected for the errors of those before it.
//! Results reach the file: the order of operations is fixed and none are fused.

use super::choice::{Kernel, dispatch};
use super::nearest::Nearest;
use super::nearest::cells::{Cells, cell};
use super::tile::{TILE, TILE_LEN};

/// A tile that is being rounded. Tiles of [`TILE_LEN`] elements are by column, `[column][row]`,
/// unless said otherwise; columns and rows are in the order of the encoder.
pub(crate) struct RoundTile<'a> {
    /// How many rows and columns are weights; what is beyond them is padding.
    pub rows: usize,
    pub cols: usize,
    pub weights: &'a [f32],
    /// What earlier columns add to each weight.
    pub base: &'a mut [f32],
    /// What earlier rows add to each weight.
    pub add: &'a mut [f32],
    /// Feedback from column `p` to column `n`: `[p][n]`, zero unless `p < n`.
    pub by_column: &'a [f32],
    /// Feedback from row `p` to row `m`: `[p][m]`, zero unless `p < m`. Nothing when rows don't
    /// matter to each other.
    pub by_row: Option<&'a [f32]>,
    /// For each column, scale times step of each row: [`TILE`] numbers.
    pub effective: &'a [&'a [f32]],
    /// Two over these.
    pub inverse: &'a [&'a [f32]],
    /// The search among the levels of each row.
    pub nearest: &'a [&'a Nearest],
    /// Takes weight minus value.
    pub errors: &'a mut [f32],
    /// Takes the error of each weight and what its column has had added to it, by row:
    /// `[row][column]`. With `by_row` only.
    pub carried: &'a mut [f32],
    /// Takes the codes.
    pub codes: &'a mut [u8],
}

#[inline(always)]
fn round(tile: &mut RoundTile<'_>) {
    let cells: [&Cells; TILE] = std::array::from_fn(|m| tile.nearest[m.min(tile.rows - 1)].cells());
    let line = |n: usize| n * TILE..(n + 1) * TILE;
    for n in 0..tile.cols {
        // Columns of this tile that came before.
        for p in 0..n {
            let u = tile.by_column[p * TILE + n];
            let errors = &tile.errors[line(p)];
            for (base, error) in tile.base[line(n)].iter_mut().zip(errors) {
                *base += u * error;
            }
        }
        let (effective, inverse) = (tile.effective[n], tile.inverse[n]);
        for m in 0..tile.rows {
            let at = n * TILE + m;
            let (weight, base) = (tile.weights[at], tile.base[at]);
            let target = (weight + base) + tile.add[at];
            let y = target * inverse[m];
            let i = cell(y);
            let value = (cells[m].twice[i] * 0.5) * effective[m];
            tile.codes[at] = cells[m].codes[i];
            let error = weight - value;
            tile.errors[at] = error;
            if let Some(by_row) = tile.by_row {
                let carried = error + base;
                tile.carried[m * TILE + n] = carried;
                for (add, u) in tile.add[line(n)].iter_mut().zip(&by_row[line(m)]) {
                    *add += u * carried;
                }
            }
        }
    }
}

/// Rounds a tile.
///
/// # Panics
/// When slices have other lengths than [`RoundTile`] says.
pub(crate) fn round_tile(kernel: Kernel, mut tile: RoundTile<'_>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn avx2(tile: &mut RoundTile<'_>) {
        round(tile);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl")]
    fn avx512(tile: &mut RoundTile<'_>) {
        round(tile);
    }

    assert!((1..=TILE).contains(&tile.rows) && (1..=TILE).contains(&tile.cols), "a tile");
    assert!(tile.weights.len() == TILE_LEN && tile.errors.len() == TILE_LEN, "a tile");
    // SAFETY: callers have kernels that the CPU can run.
    dispatch!(unsafe kernel,
        avx512 => avx512(&mut tile),
        avx2 => avx2(&mut tile),
        _ => round(&mut tile),
    );
}

/// A change of one weight in coordinate descent, and what it changes.
pub(crate) struct Descent<'a> {
    pub change: f32,
    /// Second moment of the weight's input.
    pub curvature: f32,
    /// The row of the weight.
    pub row: usize,
    /// Moments of the outputs, `[panel][row][64]`, panels of `panel_len` numbers.
    pub outputs: &'a [f32],
    pub panel_len: usize,
    /// The column of the weight in its panel.
    pub column: usize,
    /// Gradients of the panel, `[strip][column][64]`.
    pub gradients: &'a mut [f32],
    /// Changes of the column times moments of the outputs, by row.
    pub sums: &'a mut [f32],
}

#[inline(always)]
fn spread(d: &mut Descent<'_>) {
    let strips = d.gradients.chunks_exact_mut(TILE_LEN).zip(d.sums.chunks_exact_mut(TILE));
    for ((tile, sums), panel) in strips.zip(d.outputs.chunks_exact(d.panel_len)) {
        let moments = &panel[d.row * TILE..][..TILE];
        let gradients = &mut tile[d.column * TILE..][..TILE];
        for i in 0..TILE {
            let part = d.change * moments[i];
            sums[i] += part;
            gradients[i] += d.curvature * part;
        }
    }
}

/// Adds what a change means to the other rows of its column.
pub(crate) fn descend(kernel: Kernel, mut d: Descent<'_>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn avx2(d: &mut Descent<'_>) {
        spread(d);
    }

    // SAFETY: callers have kernels that the CPU can run.
    dispatch!(unsafe kernel,
        x86 => avx2(&mut d),
        _ => spread(&mut d),
    );
}
