//! Whole containers: opening, reading and decoding, encoding and writing (spec/container.md).

mod check;
mod encode;
mod exact;
mod fetch;
#[cfg(feature = "http")]
mod http;
mod input;
mod overlay;
mod read_at;
mod reader;
mod root_hasher;
mod stored_planes;
#[cfg(feature = "checkpoints")]
mod stream;
mod tile;
mod view;
mod writer;

pub(crate) use check::check_block;
#[cfg(feature = "checkpoints")]
pub(crate) use encode::store_chunk;
pub use encode::{EncodeOptions, EncodedTensor, PlaneParts, StoredFile};
#[cfg(feature = "checkpoints")]
pub(crate) use exact::{BlockRows, ExactBase, residual_header};
#[cfg(feature = "http")]
pub use http::HttpFile;
pub use input::{Input, is_url};
pub(crate) use input::{beside, file_name};
pub use overlay::EffectiveTensor;
pub use read_at::ReadAt;
pub(crate) use read_at::read_section;
pub use reader::Container;
pub(crate) use stored_planes::{PlaneRun, StoredPlanes};
#[cfg(feature = "checkpoints")]
pub(crate) use stream::{OpenData, OpenPlanes};
#[cfg(feature = "checkpoints")]
pub(crate) use tile::{CACHE_WEIGHTS, EncodedTile, TileEncoder};
pub(crate) use view::WHOLE_BYTES;
pub use view::{DecodeOptions, TensorView};

pub use writer::{PackWriter, WriteSummary};
