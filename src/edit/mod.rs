//! Packs out of packs: cut or joined again, without residuals, with overlays, adapters, receipts or
//! the exact rung. Values of the base never change here.
//!
//! Each job writes a new pack beside the old one. `pack` uses the room for what it adds to a
//! finished pack.

mod copy;
mod exact;
mod lora;
mod overlay;
mod receipt;
mod reshard;
mod stack;
mod strip;

pub(crate) use copy::{CopyOptions, copy_pack};
pub(crate) use exact::{Adder, SAMPLE_WEIGHTS, SourceRows, estimate, shape_of};
pub use exact::{ExactOptions, ExactReport};
pub use lora::{LoraReport, read_lora};
pub use overlay::{OverlayOptions, OverlayReport};
pub use receipt::add_receipt;
pub use reshard::{ReshardOptions, ReshardReport};
pub use stack::{NewBlock, NewFactors, NewOverlay, read_overlay};
pub use strip::{StripOptions, StripReport};
