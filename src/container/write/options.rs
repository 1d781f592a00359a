//! Options for encoding a tensor.

use crate::format::Role;
use crate::setters::setters;

/// How a tensor is encoded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// Planes of every row, 3 to 8. Default 5.
    pub planes: u8,
    /// Consecutive columns that share a step: 16, 32, 64, 128, 256, or 0 for whole rows. Default
    /// 32.
    pub group: u32,
    /// How many leading dimensions make up the rows. Default 1.
    pub row_dims: u8,
    /// zstd level for raw parts; `None` stores them plain. Default `None`.
    pub zstd_level: Option<i32>,
    /// What the tensor is for. Default [`Role::Other`].
    pub role: Role,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { planes: 5, group: 32, row_dims: 1, zstd_level: None, role: Role::Other }
    }
}

impl EncodeOptions {
    /// Five planes, groups of 32, rows from the first dimension, raw parts plain.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_planes: planes = u8,
        with_group: group = u32,
        with_row_dims: row_dims = u8,
        with_zstd_level: zstd_level = Option<i32>,
        with_role: role = Role,
    }
}
