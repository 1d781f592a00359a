//! The manifest (where the tensors come from and how they were made, spec/manifest.md), packs of
//! one or several files, and their verification.

mod canonical;
mod exact;
mod failure;
mod json;
mod model;
mod overlays;
mod pack;
mod rungs;
mod shards;
mod stats;
mod stored;
mod verify;

pub(crate) use exact::{alias_checks, exact_checks, has_residual};
pub use failure::{Check, Failure};
pub(crate) use json::is_hex_digest;
pub use model::{FileRole, Manifest, SourceFile, TensorSource};
pub use overlays::overlay_info;
#[cfg(feature = "checkpoints")]
pub(crate) use overlays::{
    EffectiveDigests, effective_digests, effective_root, overlay_info_bytes,
};
pub(crate) use overlays::{overlay_checks, overlay_forms};
pub use pack::Pack;
pub(crate) use rungs::rung_root;
#[cfg(feature = "checkpoints")]
pub(crate) use shards::INDEX_ENDING;
pub use shards::{ShardFile, ShardIndex};
pub use stats::PackStats;
pub use verify::{VerifyOptions, VerifyReport};
