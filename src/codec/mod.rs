//! Codes, planes, levels and values: what `planes` tensors decode to (spec/codec.md).
//!
//! The safe API here checks lengths once; the kernels below it then index without surprises.

mod convert;
mod kernels;
mod layout;
mod levels;
mod quantize;
pub mod reference;
mod value;

pub use convert::convert_raw;
pub(crate) use convert::read_f32;
pub(crate) use layout::RunCursor;
pub use layout::{PlaneCounts, PlaneLayout, RowRun};
pub use levels::{LevelSet, Levels};
pub(crate) use quantize::RowEncoder;
pub use value::STEPS;

use crate::error::{Error, Result};
use crate::format::{Dtype, Rule};
use value::{Target, ToBf16, ToF16, ToF32, ToF64, check_scale, scale_f32};

/// Consecutive stored rows of one plane count, as byte slices of the parts.
#[derive(Debug, Clone)]
pub struct RunBytes<'a> {
    /// Native planes of these rows.
    pub native: u8,
    /// Two bytes a row.
    pub scales: &'a [u8],
    /// `steps_row_bytes` a row.
    pub steps: &'a [u8],
    /// `row_bytes` a row for each plane read, most significant first: 3 to `native` of them.
    pub planes: &'a [&'a [u8]],
}

/// Decodes stored rows: calls `emit(i, bytes)` for row `i` of the run with its values as
/// little-endian `target` elements.
///
/// `source` is the tensor's own dtype, which bounds the row scales.
///
/// # Errors
/// `Malformed` for a row scale out of range (UC-VAL-1) or padding bits that are not zero (UC-PLN-6,
/// UC-PLN-7); `InvalidArgument` when slices don't fit the layout or `target` is not a float of
/// UC-VAL-4.
pub fn decode_run(
    layout: &PlaneLayout,
    levels: &Levels<'_>,
    run: &RunBytes<'_>,
    source: Dtype,
    target: Dtype,
    emit: impl FnMut(usize, &[u8]),
) -> Result<()> {
    match target {
        Dtype::Bf16 => decode_run_as::<ToBf16>(layout, levels, run, source, emit),
        Dtype::F16 => decode_run_as::<ToF16>(layout, levels, run, source, emit),
        Dtype::F32 => decode_run_as::<ToF32>(layout, levels, run, source, emit),
        Dtype::F64 => decode_run_as::<ToF64>(layout, levels, run, source, emit),
        other => Err(Error::argument(format!("planes don't decode to {other}"))),
    }
}

fn decode_run_as<T: Target>(
    layout: &PlaneLayout,
    levels: &Levels<'_>,
    run: &RunBytes<'_>,
    source: Dtype,
    mut emit: impl FnMut(usize, &[u8]),
) -> Result<()> {
    let size = |n: u64| crate::format::to_usize(n);
    let (cols, row_bytes) = (size(layout.cols)?, size(layout.row_bytes())?);
    let (n_groups, steps_row) = (size(layout.n_groups())?, size(layout.steps_row_bytes())?);
    let rows = run.scales.len() / 2;
    let read = run.planes.len();
    let fits = (3..=usize::from(run.native)).contains(&read)
        && run.native <= 8
        && run.scales.len() == 2 * rows
        && run.steps.len() == steps_row * rows
        && run.planes.iter().all(|p| p.len() == row_bytes * rows);
    if !fits {
        return Err(Error::argument("slices don't fit the layout of the tensor"));
    }
    let table = levels.set(run.native).table(u8::try_from(read).expect("at most 8"));
    let table: Vec<f32> = table.iter().map(|&l| f32::from(l)).collect();
    let group = if layout.group == 0 { cols } else { layout.group as usize };
    let mut codes = vec![0u8; cols];
    let mut out = vec![0u8; cols * T::BYTES];
    let mut planes = run.planes.to_vec();
    for row in 0..rows {
        let bits = u16::from_le_bytes([run.scales[2 * row], run.scales[2 * row + 1]]);
        check_scale(bits, source)?;
        let scale = scale_f32(bits);
        let steps = &run.steps[row * steps_row..][..steps_row];
        if n_groups % 2 == 1 && steps[steps_row - 1] >> 4 != 0 {
            return Err(Error::malformed(Rule::PLN_7, "padding of the steps is not zero"));
        }
        for (slot, plane) in planes.iter_mut().zip(run.planes) {
            *slot = &plane[row * row_bytes..][..row_bytes];
        }
        if !kernels::scalar::gather_codes(&planes, &mut codes) {
            return Err(Error::malformed(Rule::PLN_6, "bits behind the last column are not zero"));
        }
        for (g, (codes, out)) in
            codes.chunks(group).zip(out.chunks_mut(group * T::BYTES)).enumerate()
        {
            let step = match steps.get(g / 2) {
                Some(pair) => STEPS[usize::from((pair >> (4 * (g % 2))) & 15)],
                None => STEPS[15],
            };
            kernels::scalar::expand_group::<T>(codes, scale * f32::from(step), &table, out);
        }
        emit(row, &out);
    }
    Ok(())
}
