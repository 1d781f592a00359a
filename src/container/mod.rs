//! Whole containers: opening, reading and decoding, encoding and writing (spec/container.md).

mod check;
mod encode;
mod read_at;
mod reader;
mod view;
mod writer;

pub use encode::{EncodeOptions, EncodedTensor, PlaneParts, StoredFile};
pub use read_at::ReadAt;
pub use reader::Container;
pub use view::{DecodeOptions, TensorView};
pub use writer::{PackWriter, WriteSummary};
