//! The share of an overlay in a product, as two thin products.

use super::check;
use crate::codec::Factors;
use crate::error::Result;
use crate::kernels::{Kernel, dot_f32};

/// The factors of an overlay in memory, for products: `y += A (B x)`.
#[derive(Debug, Clone)]
pub struct OverlayMatrix {
    rows: usize,
    cols: usize,
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    kernel: Kernel,
}

impl OverlayMatrix {
    /// Of factors as a file has them.
    ///
    /// # Errors
    /// `InvalidArgument` for a kernel in the environment that this CPU can't run.
    pub fn new(factors: &Factors) -> Result<Self> {
        let (rank, a, b) = factors.to_f32();
        let (rows, cols) = (factors.rows(), factors.cols());
        Ok(Self { rows, cols, rank, a, b, kernel: Kernel::selected()? })
    }

    /// Multiplies with this kernel.
    ///
    /// # Errors
    /// `InvalidArgument` when the CPU can't run it.
    pub fn with_kernel(mut self, kernel: Kernel) -> Result<Self> {
        self.kernel = kernel.require()?;
        Ok(self)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory that its factors take.
    pub fn bytes(&self) -> usize {
        4 * (self.a.len() + self.b.len())
    }

    /// Adds `x (A B)^T` to `y`: `x` are rows of [`OverlayMatrix::cols`] activations, `y` as many
    /// rows of [`OverlayMatrix::rows`] results, of which those of the base are there already.
    /// It takes `rank (rows + cols)` multiplications for each.
    ///
    /// # Errors
    /// `InvalidArgument` when the sizes don't fit.
    pub fn add_product(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check(x.len(), self.cols, y.len(), self.rows)?;
        let mut thin = vec![0f32; self.rank];
        for (x, y) in x.chunks_exact(self.cols).zip(y.chunks_exact_mut(self.rows)) {
            for (t, b) in thin.iter_mut().zip(self.b.chunks_exact(self.cols)) {
                *t = dot_f32(self.kernel, b, x);
            }
            for (y, a) in y.iter_mut().zip(self.a.chunks_exact(self.rank)) {
                *y += dot_f32(self.kernel, a, &thin);
            }
        }
        Ok(())
    }
}
