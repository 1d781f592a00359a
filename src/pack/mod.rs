//! From a checkpoint to a pack.
//!
//! ```text
//! options      what a caller may ask for, and the steps in their order
//! plan         encoding, planes and group of each tensor, by recipe and by rule
//! work         what the steps work with, and what each hands to the next
//! steps        scan, allocate (calibrated: survey, allocate, fit), encode
//! calibrated   matrices under a calibration: groups, planes, levels
//! jobs, write  pieces of the source, encoded on any thread, written in one order
//! reuse        tensors of an older pack
//! assemble     rungs, the exact rung, names; report, provenance
//! sizes        shards, the whole pack, memory
//! ```

mod assemble;
mod calibrated;
mod jobs;
mod options;
mod plan;
mod provenance;
mod report;
mod reuse;
mod rungs;
mod sizes;
mod steps;
mod work;
mod write;

pub use crate::encoder::{CALIBRATED_ENCODER_ID, ENCODER_ID};
pub use options::PackOptions;
pub use plan::{
    Allocation, Bpw, CalibratedRecipe, Decision, Plan, PlannedTensor, Recipe, RecipeRule, Setting,
};
pub use report::PackReport;
pub use work::Exact;
