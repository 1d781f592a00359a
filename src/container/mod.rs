//! Whole containers: opening, reading and decoding, encoding and writing (spec/container.md).
//!
//! `read` has a reader for each encoding, `write` makes files. Bytes come from `storage`;
//! `manifest` knows packs of several files.

mod read;
mod write;

#[cfg(feature = "checkpoints")]
pub(crate) use read::{BlockRows, ExactBase};
pub use read::{Container, DecodeOptions, EffectiveTensor, TensorView};
pub(crate) use read::{PlaneRun, StoredPlanes, WHOLE_BYTES, check_block};
#[cfg(feature = "checkpoints")]
pub(crate) use write::{
    CACHE_WEIGHTS, EncodedTile, OpenData, OpenPlanes, TileEncoder, store_chunk,
};
pub use write::{EncodeOptions, EncodedTensor, PackWriter, PlaneParts, StoredFile, WriteSummary};
