//! A row of planes as every job sees it: its blocks, its levels, and the units of columns that
//! share a step.

/// Columns of a block: what AVX2 takes at a time, and twice what AVX-512 and NEON take. All of a
/// group (at most as many) are in one. Activations and packed rows are padded to whole blocks.
pub(super) const BLOCK: usize = 256;
/// Bytes of a block in one plane.
pub(super) const BLOCK_BYTES: usize = BLOCK / 8;

/// Codes of 8 planes, which is the most that a row has.
pub(super) const CODES: usize = 256;

/// Columns of a unit, which share a step, unless groups are of 16.
pub(super) const UNIT: usize = 32;
/// Columns of a unit where groups are of 16.
pub(super) const UNIT16: usize = 16;

/// Columns of a unit: [`UNIT16`] or [`UNIT`].
#[inline]
pub(super) fn unit_columns(unit16: bool) -> usize {
    if unit16 { UNIT16 } else { UNIT }
}

/// Bytes of the steps of `cols` columns: four bits for each group of `group_cols`, none where that
/// is 0.
#[inline]
pub(super) fn step_bytes(cols: usize, group_cols: usize) -> usize {
    match group_cols {
        0 => 0,
        group => cols.div_ceil(group).div_ceil(2),
    }
}

/// The levels of one table, by code; entries behind the last are zero.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub(crate) struct LevelTable {
    pub values: [f32; CODES],
    pub bytes: [i8; CODES],
}

impl LevelTable {
    /// # Panics
    /// When there are more than 256 levels.
    pub(crate) fn new(levels: &[i8]) -> Self {
        let mut table = Self { values: [0.0; CODES], bytes: [0; CODES] };
        table.bytes[..levels.len()].copy_from_slice(levels);
        for (value, level) in table.values.iter_mut().zip(levels) {
            *value = f32::from(*level);
        }
        table
    }
}

/// Fills `units` with the step index of each of `n` units; `group_units` of them share one, all
/// when it is 0.
pub(super) fn spread_steps(units: &mut Vec<u8>, steps: &[u8], group_units: usize, n: usize) {
    if group_units == 0 {
        units.clear();
        units.resize(n, 15);
        return;
    }
    units.resize(n, 0);
    if group_units == 1 {
        for (pair, byte) in units.as_chunks_mut::<2>().0.iter_mut().zip(steps) {
            *pair = [byte & 15, byte >> 4];
        }
        return;
    }
    for (pair, byte) in units.chunks_mut(2 * group_units).zip(steps) {
        let (even, odd) = pair.split_at_mut(group_units.min(pair.len()));
        even.fill(byte & 15);
        odd.fill(byte >> 4);
    }
}
