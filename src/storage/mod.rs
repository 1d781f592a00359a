//! Positioned reads: the only thing a reader needs from its input. Memory, files, web servers.
//!
//! Packs and checkpoints are both read through [`ReadAt`]. `format` and `source` know what the
//! bytes mean.

#[cfg(feature = "http")]
mod http;
mod input;
mod read_at;

#[cfg(feature = "http")]
pub use http::HttpFile;
pub use input::{Input, is_url};
pub(crate) use input::{beside, file_name};
pub use read_at::ReadAt;
pub(crate) use read_at::read_section;
