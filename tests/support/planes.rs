//! Planes of random bits, and what the reference decoder makes of them.

use std::ops::Range;

use ultracompress::Dtype;
use ultracompress::codec::{PlaneCounts, PlaneLayout, reference};

use super::random::{Rng, size};

/// Types of tensors that may be stored as planes.
pub const FLOATS: [Dtype; 4] = [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::F64];
/// Columns that share a step; 0 is a whole row without one.
pub const GROUPS: [u32; 6] = [0, 16, 32, 64, 128, 256];

/// Clears the padding of steps, half a byte in each row where the number of groups is odd.
pub fn clear_steps(layout: &PlaneLayout, steps: &mut [u8]) {
    if layout.n_groups() % 2 == 1 {
        let row = size(layout.steps_row_bytes());
        steps.chunks_mut(row).for_each(|r| r[row - 1] &= 15);
    }
}

/// Clears the padding of a plane, bits in each row behind the last column.
pub fn clear_plane(layout: &PlaneLayout, plane: &mut [u8]) {
    if !layout.cols.is_multiple_of(8) {
        let (row, keep) = (size(layout.row_bytes()), (1u8 << (layout.cols % 8)) - 1);
        plane.chunks_mut(row).for_each(|r| r[row - 1] &= keep);
    }
}

/// Random steps, and as many random planes as a row with these counts has.
pub fn steps_and_planes(
    rng: &mut Rng,
    layout: &PlaneLayout,
    counts: &PlaneCounts,
) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut steps = rng.bytes(size(layout.steps_row_bytes() * layout.rows));
    clear_steps(layout, &mut steps);
    let with = counts.rows_with(layout.rows).into_iter().filter(|rows| *rows > 0);
    let planes = with.map(|rows| {
        let mut plane = rng.bytes(size(rows * layout.row_bytes()));
        clear_plane(layout, &mut plane);
        plane
    });
    let planes = planes.collect();
    (steps, planes)
}

/// What the reference decoder makes of `rows`, as little-endian bytes.
pub fn reference_bytes(
    stored: &reference::StoredPlanes<'_>,
    rows: Range<u64>,
    rung: u8,
    target: Dtype,
) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        for col in 0..stored.layout.cols {
            let bits = reference::decode_weight(stored, size(row), size(col), rung, target);
            assert!(
                target.bits() == 64 || bits >> target.bits() == 0,
                "the reference decoder made {bits:#x} of a {target}"
            );
            out.extend_from_slice(&bits.to_le_bytes()[..size(target.bits() / 8)]);
        }
    }
    out
}
