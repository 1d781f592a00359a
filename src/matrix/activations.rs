//! Activations in 8 bits.

use crate::codec::not_finite;
use crate::error::{Error, Result};
use crate::kernels::Int8Row;

/// Rows of activations, rounded to 8 bits with one scale for each 32 columns.
#[derive(Debug, Clone)]
pub struct Int8Activations {
    pub(super) rows: Vec<Int8Row>,
    pub(super) cols: usize,
}

impl Int8Activations {
    /// Rounds `x`: rows of `cols` finite numbers.
    ///
    /// # Errors
    /// `InvalidArgument` when `x` is not whole rows of finite numbers.
    pub fn new(x: &[f32], cols: usize) -> Result<Self> {
        if cols == 0 || !x.len().is_multiple_of(cols) {
            return Err(Error::argument(format!("{} activations in rows of {cols}", x.len())));
        }
        if let Some(at) = not_finite(x) {
            return Err(Error::argument(format!("activation {at} is not finite")));
        }
        Ok(Self { rows: x.chunks(cols).map(Int8Row::new).collect(), cols })
    }

    /// The rounded values.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut all = Vec::with_capacity(self.rows.len() * self.cols);
        for row in &self.rows {
            let values = row.values[..self.cols].chunks(32).zip(row.scales.iter());
            all.extend(values.flat_map(|(v, s)| v.iter().map(move |&v| f32::from(v) * s)));
        }
        all
    }
}
