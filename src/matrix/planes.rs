//! A matrix as its planes.

use super::{Int8Activations, Job, check, jobs, multiply};
use crate::codec::{PlaneLayout, RunBytes, RunDecoder};
use crate::container::{PlaneRun, StoredPlanes, TensorView};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::kernels::{Int8Row, Kernel, LevelTable, MOST, RowBits, RowDot, as_bytes_mut, dot_f32};
use crate::memory::to_usize;
use crate::storage::ReadAt;

/// A `planes` tensor in memory, as it is stored.
#[derive(Debug, Clone)]
pub struct PlaneMatrix {
    pub(super) stored: StoredPlanes,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) kernel: Kernel,
    /// Of each run.
    pub(super) tables: Vec<LevelTable>,
    jobs: Vec<Job>,
}

impl PlaneMatrix {
    /// Reads all planes of a tensor.
    ///
    /// # Errors
    /// As [`PlaneMatrix::read_planes`].
    pub fn read<R: ReadAt>(view: &TensorView<'_, R>) -> Result<Self> {
        Self::read_planes(view, 8)
    }

    /// Reads at most `planes` planes (3 to 8) of each row.
    ///
    /// # Errors
    /// `InvalidArgument` for a tensor that is not stored as planes, or too few planes;
    /// `LimitExceeded` when there is no memory for it; `Integrity`, `Malformed`, `Truncated`,
    /// `Io` as decoding it gives.
    pub fn read_planes<R: ReadAt>(view: &TensorView<'_, R>, planes: u8) -> Result<Self> {
        let stored = view.stored_planes(planes)?;
        let (rows, cols) = (to_usize(stored.layout.rows)?, to_usize(stored.layout.cols)?);
        let jobs = jobs(stored.runs.iter().map(PlaneRun::rows));
        let tables = stored.runs.iter().map(|run| LevelTable::new(stored.table(run))).collect();
        Ok(Self { stored, rows, cols, kernel: Kernel::selected()?, tables, jobs })
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

    /// Bytes of memory that its weights take.
    pub fn bytes(&self) -> usize {
        self.stored.runs.iter().map(PlaneRun::bytes).sum()
    }

    /// `y = x W^T`: `x` are rows of [`PlaneMatrix::cols`] activations, `y` as many rows of
    /// [`PlaneMatrix::rows`] results. Rows of the matrix are decoded one at a time to a buffer that
    /// stays in the core's own cache.
    ///
    /// # Errors
    /// `InvalidArgument` when the sizes don't fit.
    pub fn multiply_f32(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        let n = check(x.len(), self.cols, y.len(), self.rows)?;
        let row_layout = PlaneLayout { rows: 1, ..self.stored.layout };
        let (source, f32) = (self.stored.source, Dtype::F32);
        let new_decoder = || {
            RunDecoder::new(row_layout, self.stored.levels(), source, f32)
                .and_then(|d| d.with_kernel(self.kernel))
        };
        let failed = std::sync::Mutex::new(None);
        let fail = |e| *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
        multiply(&self.jobs, n, self.rows, self.stored.row_order(), y, |job, out| {
            let run = &self.stored.runs[job.run];
            let mut decoder = match new_decoder() {
                Ok(decoder) => decoder,
                Err(e) => return fail(e),
            };
            let mut row = vec![0f32; self.cols];
            let mut buffer = [&[][..]; 8];
            for (r, out) in job.rows.clone().zip(out.chunks_mut(n)) {
                let planes = run.planes_of(r, &mut buffer);
                let one = RunBytes {
                    native: run.native,
                    scales: run.scale_of(r),
                    steps: run.steps_of(r),
                    planes,
                };
                if let Err(e) = decoder.decode(&one, as_bytes_mut(&mut row), |_| 0) {
                    return fail(e);
                }
                if cfg!(target_endian = "big") {
                    row.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits().swap_bytes()));
                }
                for (out, x) in out.iter_mut().zip(x.chunks(self.cols)) {
                    *out = dot_f32(self.kernel, &row, x);
                }
            }
        });
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// As [`PlaneMatrix::multiply_f32`] with activations in 8 bits.
    ///
    /// # Errors
    /// `InvalidArgument` when the sizes don't fit.
    pub fn multiply_int8(&self, x: &Int8Activations, y: &mut [f32]) -> Result<()> {
        let n = check_int8(x, self.cols, y.len(), self.rows)?;
        let rows: Vec<&Int8Row> = x.rows.iter().collect();
        multiply(&self.jobs, n, self.rows, self.stored.row_order(), y, |job, out| {
            let run = &self.stored.runs[job.run];
            let (table, group) = (&self.tables[job.run], self.stored.layout.group as usize);
            let mut dot = RowDot::new(self.kernel, table, run.read(), group);
            let mut buffer = [&[][..]; 8];
            for (r, out) in job.rows.clone().zip(out.chunks_mut(n)) {
                let planes = run.planes_of(r, &mut buffer);
                for (x, out) in rows.chunks(MOST).zip(out.chunks_mut(MOST)) {
                    dot.dot(RowBits::Planes(planes), run.steps_of(r), self.cols, x, out);
                }
                let scale = run.scale_value(r);
                out.iter_mut().for_each(|v| *v *= scale);
            }
        });
        Ok(())
    }
}

pub(super) fn check_int8(x: &Int8Activations, cols: usize, y: usize, rows: usize) -> Result<usize> {
    if x.cols != cols {
        return Err(Error::argument(format!("rows of {} activations for {cols} columns", x.cols)));
    }
    check(x.rows.len() * cols, cols, y, rows)
}
