//! The values that the weights of a matrix can take: scales, steps and planes of each row.

use crate::codec::scale_f32;
use crate::kernels::STEPS;

/// Scales, steps and plane counts of a matrix, by row.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    /// Columns that share a step.
    pub group: usize,
    /// Groups of a row.
    pub groups: usize,
    pub planes: Vec<u8>,
    /// bfloat16 bits.
    pub scales: Vec<u16>,
    /// Step indices, `groups` a row.
    pub steps: Vec<u8>,
}

impl Grid {
    /// Scale times step: exact.
    pub(crate) fn effective(&self, row: usize, group: usize) -> f32 {
        let step = STEPS[usize::from(self.steps[row * self.groups + group])];
        scale_f32(self.scales[row]) * f32::from(step)
    }
}
