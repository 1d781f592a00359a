//! x
#![allow(missing_docs, dead_code, unused_imports)]
pub mod codec;
pub mod container;
mod error;
pub mod manifest;
mod progress;
pub use format::*;
pub use manifest::*;
pub use progress::*;
pub mod format;
#[cfg(feature = "safetensors")]
pub mod import;
mod limits;
mod par;
pub use container::*;
pub use error::{Error, ErrorKind, Result};
pub use limits::{Limit, Limits};
