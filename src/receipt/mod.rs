//! Receipts: records of measurements that travel with a pack and can be replayed (spec/receipt.md).
//!
//! A record of `uc eval` holds one row of figures for each sequence of text; its headline follows from the
//! rows, and [`EvalRecord::parse`] refuses a record whose headline doesn't.

mod attach;
mod record;
mod statistics;

pub use attach::{CheckedReceipt, attach, check};
#[cfg(feature = "lm")]
pub(crate) use record::Measured;
pub use record::{
    BaselineRecord, EvalRecord, Headline, Metric, ModelRecord, Protocol, Rows, TextRecord,
};
