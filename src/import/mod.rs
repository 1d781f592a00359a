//! Checkpoints in and out: Hugging Face folders and safetensors files.
//!
//! ```text
//! source  -> plan (recipe, default rule) -> pack
//! pack    -> unpack
//! model   -> compare: two models of either kind
//! ```

mod against;
mod audit;
mod calibrated;
mod compare;
mod encode;
mod exact;
mod json;
mod ladder;
mod lora;
mod model;
mod output;
mod overlay;
mod pack;
mod plan;
mod receipt;
mod rederive;
mod reshard;
mod resume;
mod reuse;
mod safetensors_file;
mod scan;
mod shards;
mod source;
mod strip;
mod unpack;

pub(crate) use json::check_keys;
#[cfg(feature = "lm")]
pub(crate) use output::{ClosedFile, NewFile};
#[cfg(feature = "lm")]
pub(crate) use safetensors_file::build_header;
pub(crate) use safetensors_file::{Header, HeaderTensor, read_header};

pub use against::{AgainstReport, against};
pub use audit::AuditOptions;
pub use calibrated::CALIBRATED_ENCODER_ID;
pub use compare::{DiffReport, SameReport, TensorDiff, decoded_root, diff, same};
pub use exact::{ExactOptions, ExactReport};
pub use lora::{LoraReport, read_lora};
pub use model::Model;
pub use output::write_new;
pub use overlay::{NewBlock, NewFactors, NewOverlay, OverlayOptions, OverlayReport, read_overlay};
pub use pack::{ENCODER_ID, Exact, PackOptions, PackReport, PackStats};
pub use plan::{
    Allocation, Bpw, CalibratedRecipe, Decision, Plan, PlannedTensor, Recipe, Rule as RecipeRule,
    Setting,
};
pub use receipt::add_receipt;
pub use reshard::{ReshardOptions, ReshardReport};
pub use source::{Source, SourceTensor};
pub use strip::{StripOptions, StripReport};
pub use unpack::{UnpackOptions, UnpackReport};
