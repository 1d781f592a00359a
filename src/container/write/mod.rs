//! Encoding tensors and writing containers.
//!
//! ```text
//! options, tensor      how a tensor is encoded; one that is
//! raw, planes, alias   from bytes to a tensor, one file for each encoding (tile: pieces)
//! writer, stream       files: whole tensors, or rows as they arrive
//! root_hasher          the stored root, as bytes go by
//! ```

mod alias;
mod options;
mod planes;
mod raw;
mod root_hasher;
#[cfg(feature = "checkpoints")]
mod stream;
mod tensor;
mod tile;
mod writer;

pub use options::EncodeOptions;
pub use planes::PlaneParts;
pub use raw::StoredFile;
#[cfg(feature = "checkpoints")]
pub(crate) use raw::store_chunk;
#[cfg(feature = "checkpoints")]
pub(crate) use stream::{OpenData, OpenPlanes};
pub use tensor::EncodedTensor;
#[cfg(feature = "checkpoints")]
pub(crate) use tile::{CACHE_WEIGHTS, EncodedTile, TileEncoder};
pub use writer::{PackWriter, WriteSummary};
