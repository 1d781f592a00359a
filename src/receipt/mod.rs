//! Receipts: records of measurements that travel with a pack and can be replayed (spec/receipt.md).
//!
//! A record of `uc eval` holds one row of figures for each sequence of text; its headline follows
//! from the rows, and [`EvalRecord::parse`] refuses a record whose headline doesn't. An
//! [`AuditReceipt`] says what was checked of a pack.
//!
//! Running models is left to `lm`, checking packs to `audit`, which make the records; `edit` adds
//! them to packs.

mod attach;
mod audit;
mod figures;
mod record;
mod statistics;

pub use attach::{CheckedReceipt, attach, check};
pub use audit::{
    AuditFailure, AuditReceipt, AuditedDimension, AuditedFile, AuditedManifest, AuditedShard,
    AuditedTensor, Rederived,
};
pub use figures::{Headline, Metric, Rows};
#[cfg(feature = "lm")]
pub(crate) use record::Measured;
pub use record::{BaselineRecord, EvalRecord, ModelRecord, Protocol, TextRecord};
