//! The state that the steps of packing work with, and the result that each hands to the next.

use super::calibrated::Calibrated;
use super::plan::{Plan, Recipe};
use crate::calibration::Calibration;
use crate::source::{Scans, Source};

/// Whether a pack holds the source's own bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Exact {
    /// Only of tensors that are raw.
    #[default]
    No,
    /// All: planes have residuals.
    Residual,
    /// All, and no planes: tensors are coded without a base where that pays.
    Only,
}

/// What all steps work with.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub source: &'a Source,
    pub recipe: &'a Recipe,
    pub calibration: Option<&'a Calibration>,
    pub exact: Exact,
    pub shard_size: Option<u64>,
    /// Memory for reading.
    pub scanning: u64,
    /// Memory for encoding.
    pub encoding: u64,
}

/// What scanning found: digests, values that planes can't hold, and the plan with both considered.
pub(super) struct Scanned {
    pub plan: Plan,
    pub scans: Scans,
}

/// How each tensor will be encoded, and in which shard it will be.
pub(super) struct Allocated<'a> {
    pub plan: Plan,
    pub scans: Scans,
    pub calibrated: Option<Calibrated<'a>>,
    /// The shard of each tensor.
    pub shards: Vec<usize>,
    /// How many shards there are.
    pub count: usize,
}
