//! The planes of a tensor in memory, as they are stored.

use crate::codec::{Levels, OwnedLevels, PlaneLayout};
use crate::format::Dtype;

/// A `planes` tensor, checked.
#[derive(Debug, Clone)]
pub(crate) struct StoredPlanes {
    pub layout: PlaneLayout,
    /// The tensor's own dtype.
    pub source: Dtype,
    pub(crate) levels: OwnedLevels,
    pub runs: Vec<PlaneRun>,
    /// The row of each stored row, by run, when they differ.
    pub(crate) row_order: Option<Vec<Vec<usize>>>,
}

impl StoredPlanes {
    pub(crate) fn levels(&self) -> Levels<'_> {
        self.levels.borrow()
    }

    /// The level table of a run.
    pub(crate) fn table(&self, run: &PlaneRun) -> &[i8] {
        let read = u8::try_from(run.read()).expect("at most 8");
        self.levels.borrow().set(run.native).table(read)
    }

    pub(crate) fn row_order(&self) -> Option<&[Vec<usize>]> {
        self.row_order.as_deref()
    }

    /// The same without the bytes of the planes.
    pub(crate) fn without_planes(&self) -> Self {
        let empty = |run: &PlaneRun| PlaneRun {
            scales: run.scales.clone(),
            steps: run.steps.clone(),
            planes: vec![vec![]; run.planes.len()],
            ..*run
        };
        Self {
            runs: self.runs.iter().map(empty).collect(),
            levels: self.levels.clone(),
            row_order: self.row_order.clone(),
            ..*self
        }
    }
}

/// Consecutive stored rows of one plane count.
#[derive(Debug, Clone)]
pub(crate) struct PlaneRun {
    pub native: u8,
    pub(crate) scales: Vec<u8>,
    pub(crate) steps: Vec<u8>,
    pub(crate) planes: Vec<Vec<u8>>,
    pub(crate) row_bytes: usize,
    pub(crate) steps_row_bytes: usize,
}

impl PlaneRun {
    pub(crate) fn rows(&self) -> usize {
        self.scales.len() / 2
    }

    /// Planes read.
    pub(crate) fn read(&self) -> usize {
        self.planes.len()
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        let planes = self.planes.iter().map(Vec::len).sum::<usize>();
        self.scales.len() + self.steps.len() + planes
    }

    /// The bytes of a row in each plane, kept in `buffer`.
    pub(crate) fn planes_of<'b, 's>(
        &'s self,
        row: usize,
        buffer: &'b mut [&'s [u8]; 8],
    ) -> &'b [&'s [u8]] {
        for (to, plane) in buffer.iter_mut().zip(&self.planes) {
            *to = &plane[row * self.row_bytes..][..self.row_bytes];
        }
        &buffer[..self.planes.len()]
    }

    pub(crate) fn steps_of(&self, row: usize) -> &[u8] {
        &self.steps[row * self.steps_row_bytes..][..self.steps_row_bytes]
    }

    pub(crate) fn scale_of(&self, row: usize) -> &[u8] {
        &self.scales[2 * row..][..2]
    }

    pub(crate) fn scale_value(&self, row: usize) -> f32 {
        let bits = u16::from_le_bytes([self.scales[2 * row], self.scales[2 * row + 1]]);
        half::bf16::from_bits(bits).to_f32()
    }
}
