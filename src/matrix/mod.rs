//! Multiplying with a tensor straight from its planes.
//!
//! A [`PlaneMatrix`] holds the planes of one tensor in memory as they are stored, 5 bits a weight,
//! and multiplies activations with it without ever writing the decoded matrix:
//!
//! ```
//! use ultracompress::{Container, PlaneMatrix};
//! # let file = ultracompress::doc_example();
//!
//! let pack = Container::open(file)?;
//! let view = pack.tensor("layers.0.weight").expect("the example has it");
//! let matrix = PlaneMatrix::read(&view)?;
//! let x = vec![1.0; matrix.cols()];
//! let mut y = vec![0.0; matrix.rows()];
//! matrix.multiply_f32(&x, &mut y)?; // y = W x
//!
//! // Faster, and the usual choice of engines: activations in 8 bits.
//! let x = ultracompress::Int8Activations::new(&x, matrix.cols())?;
//! matrix.multiply_int8(&x, &mut y)?;
//! # Ok::<(), ultracompress::Error>(())
//! ```
//!
//! Overlays come on top as two thin products ([`OverlayMatrix`]).
//!
//! # Accuracy
//!
//! Let `W` be the matrix in exact arithmetic (UC-VAL-3; tensors of BF16 and F16 are rounded once
//! more when they are decoded to their own type), `u = 2^-24` and `n` the number of columns.
//!
//! - [`PlaneMatrix::multiply_f32`]: each result is within `(n + 8) u sum |w x|` of `W x`.
//! - [`PlaneMatrix::multiply_int8`]: activations are first rounded to `x'`, eight bits with one
//!   binary32 scale for each 32 columns, of which `|x - x'|` is at most 1/253 of the largest
//!   magnitude among the 32. Products with `x'` are exact within 16 or 32 columns; adding them up
//!   leaves a result within `(n / 8 + 16) u sum |w x'|` of `W x'`.
//!
//! - [`OverlayMatrix::add_product`]: adds `A (B x)` within `(n + rank + 8) u sum |A| |B| |x|`,
//!   where A and B are the factors with their scales, each rounded once. The base with overlays as
//!   decoded (UC-OVL-23) is rounded twice more for each weight.
//!
//! Bounds hold while nothing over- or underflows. With 8-bit activations that means: the largest of
//! each 32 is 0 or at least 2^-100, and `n` times the largest of all stays below 2^105, whatever
//! the row scale. The last bits depend on the kernel and on repacking, and on nothing else: not on
//! threads, nor on what else is multiplied in the same call.

mod activations;
mod overlay;
mod packed;
mod planes;

pub use activations::Int8Activations;
pub use overlay::OverlayMatrix;
pub use packed::PackedMatrix;
pub use planes::PlaneMatrix;

use crate::error::{Error, Result};
use crate::par;

/// Rows that one job multiplies.
const JOB_ROWS: usize = 128;

/// Consecutive rows of one run of stored rows.
#[derive(Debug, Clone)]
struct Job {
    run: usize,
    rows: std::ops::Range<usize>,
}

/// Cuts runs of so many rows into jobs.
fn jobs(runs: impl Iterator<Item = usize>) -> Vec<Job> {
    let cut = |(run, rows): (usize, usize)| {
        (0..rows)
            .step_by(JOB_ROWS)
            .map(move |start| Job { run, rows: start..rows.min(start + JOB_ROWS) })
    };
    runs.enumerate().flat_map(cut).collect()
}

/// Runs the jobs on all threads. `multiply` gives for each row of a job `n` results, which land in
/// `y`: one output row of `rows` values for each row of activations. `places` has the row of each
/// stored row, where that differs.
fn multiply(
    jobs: &[Job],
    n: usize,
    rows: usize,
    row_order: Option<&[Vec<usize>]>,
    y: &mut [f32],
    multiply: impl Fn(&Job, &mut [f32]) + Sync + Send,
) {
    if n == 0 {
        return;
    }
    let found = par::map(jobs.len(), |j| {
        let mut out = vec![0.0; jobs[j].rows.len() * n];
        multiply(&jobs[j], &mut out);
        out
    });
    for (job, found) in jobs.iter().zip(found) {
        for (row, found) in job.rows.clone().zip(found.chunks(n)) {
            let own_row = row_order.map_or(row, |p| p[job.run][row]);
            for (i, value) in found.iter().enumerate() {
                y[i * rows + own_row] = *value;
            }
        }
    }
}

/// Checks the sizes of activations (`n` rows of `cols`) and results.
fn check(x: usize, cols: usize, y: usize, rows: usize) -> Result<usize> {
    let n = x / cols;
    if n * cols != x || n * rows != y {
        return Err(Error::argument(format!(
            "{x} activations and {y} results with a matrix of {rows} x {cols}"
        )));
    }
    Ok(n)
}
