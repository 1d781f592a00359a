//! The manifest: where the tensors come from and how they were made (spec/manifest.md).

mod model;
mod verify;

pub use model::{FileRole, Manifest, SourceFile, TensorSource};
pub use verify::{Check, Failure, VerifyOptions, VerifyReport};
