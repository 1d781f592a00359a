//! Checkpoints in: what a Hugging Face folder or a safetensors file holds, read by position.
//!
//! The room knows nothing of packs, but for [`Model`], which is either a checkpoint or a pack.

mod checkpoint;
mod files;
mod json;
mod model;
mod safetensors;
mod scan;

pub use checkpoint::{Source, SourceTensor};
pub(crate) use json::check_keys;
pub use model::Model;
pub(crate) use safetensors::{Header, HeaderTensor, build_header, parse_header, read_header};
pub(crate) use scan::{Scan, Scans, scan};
