//! Sizes: of shards, of the whole pack, of the memory that the work takes.

use super::calibrated::{self, Calibrated};
use super::jobs::Jobs;
use super::plan::{Decision, Plan, PlannedTensor};
use super::work::{Exact, Work};
use crate::calibration::Calibration;
use crate::codec::PlaneLayout;
use crate::edit::estimate as residual_bytes;
use crate::error::{Error, Result};
use crate::manifest::FileRole;
use crate::memory;
use crate::output::{Placed, assign};
use crate::par;
use crate::source::{Source, SourceTensor};

/// Most memory that is kept busy for each thread: more would not make it faster.
const BUSY_BYTES: u64 = 64 << 20;

/// The shard of each tensor, and how many there are.
pub(super) fn shards(
    work: &Work<'_>,
    plan: &Plan,
    calibrated: Option<&Calibrated<'_>>,
) -> Result<(Vec<usize>, usize)> {
    let shards = assign(&placed(work, plan, calibrated)?, work.shard_size);
    let count = shards.iter().max().map_or(1, |last| last + 1);
    Ok((shards, count))
}

/// What decides in which shard each tensor is.
fn placed(
    work: &Work<'_>,
    plan: &Plan,
    calibrated: Option<&Calibrated<'_>>,
) -> Result<Vec<Placed>> {
    let Work { source, recipe, exact, .. } = *work;
    let names: Vec<&str> = plan.tensors.iter().map(|t| t.name.as_str()).collect();
    plan.tensors
        .iter()
        .zip(source.tensors())
        .enumerate()
        .map(|(i, (p, t))| {
            Ok(match &p.decision {
                Decision::Raw => Placed::Bytes(t.len),
                Decision::Planes { .. } if calibrated.is_some_and(|c| c.has(i)) => {
                    Placed::Bytes(calibrated.map_or(Ok(0), |c| c.content_bytes(source, i))?)
                }
                Decision::Planes { planes, row_dims } => {
                    let layout = PlaneLayout::new(&t.shape, *row_dims, recipe.group_of(p.role))?;
                    let residual = match exact {
                        Exact::Residual => residual_bytes(t.len, t.dtype, *planes),
                        _ => 0,
                    };
                    Placed::Bytes(layout.uniform_bytes(*planes) + residual)
                }
                Decision::Alias(target) => {
                    Placed::With(names.binary_search(&target.as_str()).map_err(|_| {
                        Error::argument("no such tensor to alias").in_tensor(target)
                    })?)
                }
            })
        })
        .collect()
}

/// An upper estimate of the pack's length in bytes.
pub(super) fn estimate(work: &Work<'_>, plan: &Plan) -> Result<u64> {
    let files = work.source.files.iter().filter(|f| f.role == FileRole::Carried);
    let carried = files.map(|f| f.bytes);
    let exact = if work.exact == Exact::No { 0 } else { work.source.bytes() };
    let tensors = placed(work, plan, None)?.into_iter().map(|placed| match placed {
        Placed::Bytes(n) => n,
        Placed::With(_) => 0,
    });
    // Padding, records and the manifest's entries on top.
    let all = carried.chain(tensors).chain([exact]);
    Ok(all.fold(0u64, |sum, n| sum.saturating_add(n).saturating_add(4096)))
}

/// Memory for reading the source, and for encoding.
///
/// # Errors
/// `InvalidArgument` for too little memory.
pub(super) fn budget(work: &Work<'_>, plan: &Plan, max_ram: u64) -> Result<(u64, u64)> {
    let Work { source, recipe, calibration, .. } = *work;
    // Names, shapes, records and the manifest's text and value, as measured on a checkpoint of
    // 100,000 tensors; and a chunk table.
    let tables = source.tensors().len() as u64 * 4608 + source.bytes() / (1 << 20) * 64;
    let whole = whole(source, plan, calibration);
    let shards = vec![0; plan.tensors.len()];
    let (largest, name) = Jobs::new(source, plan, recipe, &shards, whole)?.largest(source);
    let budget = memory::for_work(max_ram, tables, largest).map_err(|e| match name {
        Some(name) => e.in_tensor(&name),
        None => e,
    })?;
    let busy = budget.min(par::threads() * BUSY_BYTES).max(largest.min(budget));
    Ok((busy, if calibration.is_some() { budget } else { busy }))
}

/// Memory of each tensor that is encoded by the calibration.
pub(super) fn whole(
    source: &Source,
    plan: &Plan,
    calibration: Option<&Calibration>,
) -> Vec<Option<u64>> {
    let tensors = source.tensors().iter().zip(&plan.tensors);
    let memory =
        |(t, p): (&SourceTensor, &PlannedTensor)| calibrated::memory(t, &p.decision, calibration?);
    tensors.map(memory).collect()
}
