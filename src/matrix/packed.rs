//! A matrix repacked for multiplication.

use super::planes::check_int8;
use super::{Int8Activations, Job, PlaneMatrix, jobs, multiply};
use crate::container::{PlaneRun, StoredPlanes};
use crate::error::Result;
use crate::kernels::{Int8Row, Kernel, LevelTable, MOST, Packed, RowBits, RowDot, pack_row};
use crate::memory::zeroed;
use crate::par;

/// A [`PlaneMatrix`] in the layout that AVX2 and NEON multiply fastest: rows of up to five planes
/// take five bits a weight, in one stream instead of five, with four bits of a code side by side;
/// others take a byte a weight. Columns are padded to a multiple of 256. It exists in memory only.
///
/// Rows in groups of 16 are multiplied by portable code. With AVX-512, products of the planes
/// themselves need no repacking; those of a repacked matrix run on AVX2 and may differ from them in
/// their last bits.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    /// Scales and steps; its planes are empty.
    stored: StoredPlanes,
    /// Rows of each run, one after the other.
    runs: Vec<Vec<u8>>,
    rows: usize,
    cols: usize,
    kernel: Kernel,
    tables: Vec<LevelTable>,
    jobs: Vec<Job>,
}

impl PlaneMatrix {
    /// Repacks for faster multiplication with 8-bit activations.
    ///
    /// # Errors
    /// `LimitExceeded` when there is no memory for it.
    pub fn repack(&self) -> Result<PackedMatrix> {
        PackedMatrix::new(self)
    }
}

impl PackedMatrix {
    pub(super) fn new(matrix: &PlaneMatrix) -> Result<Self> {
        let mut runs = Vec::new();
        for run in &matrix.stored.runs {
            let row_bytes = Packed::of(run.read()).row_bytes(matrix.cols);
            let bytes = row_bytes.checked_mul(run.rows());
            let mut packed = zeroed(bytes.unwrap_or(usize::MAX))?;
            let table = matrix.stored.table(run);
            par::for_each_chunk(&mut packed, row_bytes, |r, out| {
                pack_row(run.planes_of(r, &mut [&[][..]; 8]), table, matrix.cols, out);
            });
            runs.push(packed);
        }
        Ok(Self {
            runs,
            stored: matrix.stored.without_planes(),
            rows: matrix.rows,
            cols: matrix.cols,
            kernel: matrix.kernel,
            tables: matrix.tables.clone(),
            jobs: jobs(matrix.stored.runs.iter().map(PlaneRun::rows)),
        })
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
        let stored = self.stored.runs.iter().map(PlaneRun::bytes).sum::<usize>();
        stored + self.runs.iter().map(Vec::len).sum::<usize>()
    }

    /// As [`PlaneMatrix::multiply_int8`].
    ///
    /// # Errors
    /// `InvalidArgument` when the sizes don't fit.
    pub fn multiply_int8(&self, x: &Int8Activations, y: &mut [f32]) -> Result<()> {
        let n = check_int8(x, self.cols, y.len(), self.rows)?;
        let rows: Vec<&Int8Row> = x.rows.iter().collect();
        multiply(&self.jobs, n, self.rows, self.stored.row_order(), y, |job, out| {
            let run = &self.stored.runs[job.run];
            let row_bytes = Packed::of(run.read()).row_bytes(self.cols);
            let (table, group) = (&self.tables[job.run], self.stored.layout.group as usize);
            let mut dot = RowDot::new(self.kernel, table, run.read(), group);
            for (r, out) in job.rows.clone().zip(out.chunks_mut(n)) {
                let bits = RowBits::Packed(&self.runs[job.run][r * row_bytes..][..row_bytes]);
                for (x, out) in rows.chunks(MOST).zip(out.chunks_mut(MOST)) {
                    dot.dot(bits, run.steps_of(r), self.cols, x, out);
                }
                let scale = run.scale_value(r);
                out.iter_mut().for_each(|v| *v *= scale);
            }
        });
        Ok(())
    }
}
