//! How a tensor is encoded.

use crate::format::Role;

/// How a tensor is encoded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// Planes of every row, 3 to 8. Default 5.
    pub planes: u8,
    /// Consecutive columns that share a step: 16, 32, 64, 128, 256, or 0 for whole rows. Default 32.
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

    /// Sets [`EncodeOptions::planes`].
    #[must_use]
    pub fn with_planes(mut self, planes: u8) -> Self {
        self.planes = planes;
        self
    }

    /// Sets [`EncodeOptions::group`].
    #[must_use]
    pub fn with_group(mut self, group: u32) -> Self {
        self.group = group;
        self
    }

    /// Sets [`EncodeOptions::row_dims`].
    #[must_use]
    pub fn with_row_dims(mut self, row_dims: u8) -> Self {
        self.row_dims = row_dims;
        self
    }

    /// Sets [`EncodeOptions::zstd_level`].
    #[must_use]
    pub fn with_zstd_level(mut self, level: Option<i32>) -> Self {
        self.zstd_level = level;
        self
    }

    /// Sets [`EncodeOptions::role`].
    #[must_use]
    pub fn with_role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}
