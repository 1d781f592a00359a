//! Checks of a pack against something outside of it: the source it was made from, the recipe that
//! makes it again, another model.
//!
//! Checks of a pack by itself are left to `manifest`, the form of receipts to `receipt`, packing
//! again to `pack`. The tool calls the room; `lm` takes the decoded roots of models from it.

mod against;
mod compare;
mod pack;
mod rederive;

pub use against::{AgainstReport, against};
pub use compare::{DiffReport, SameReport, TensorDiff, decoded_root, diff, same};
pub use pack::AuditOptions;
