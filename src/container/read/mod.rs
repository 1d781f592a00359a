//! Opening containers, and a reader for each encoding.
//!
//! ```text
//! check, open     the index, checked; views of its tensors
//! fetch           bytes of parts, with their checksums compared (chunks)
//! reader          the trait of readers: raw, planes, exact (and coded_raw), alias
//! decode          what a caller may ask for, and the choice of the reader
//! stored_planes   planes in memory as they are stored, for products
//! overlay         tensors with overlays on top
//! ```

mod alias;
mod check;
mod chunks;
mod decode;
mod exact;
mod fetch;
mod open;
mod overlay;
mod planes;
mod raw;
mod reader;
mod stored_planes;

pub(crate) use check::{check_block, check_index};
pub use decode::DecodeOptions;
#[cfg(feature = "checkpoints")]
pub(crate) use exact::{BlockRows, ExactBase};
pub(crate) use fetch::WHOLE_BYTES;
pub use open::{Container, TensorView};
pub use overlay::EffectiveTensor;
pub(crate) use stored_planes::{PlaneRun, StoredPlanes};
