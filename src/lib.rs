//! The open container for 5-bit transformer weights whose every decoded bit is defined, hashed and
//! reproducible on any CPU.
//!
//! A `.uc` file holds the tensors of a model as bit planes with scales (or as they were), the files
//! that belong to it, and digests of all of it. The format is specified in the `spec/` folder of the
//! repository; items here cite its rules as `UC-IDX-3`.
//!
//! # Reading
//!
//! ```
//! use ultracompress::{Container, DecodeOptions, Dtype};
//! # let file = ultracompress::doc_example();
//!
//! let pack = Container::open(file)?; // bytes, a file, or anything that implements `ReadAt`
//! for tensor in pack.tensors() {
//!     println!("{} {} {:?}", tensor.name(), tensor.dtype(), tensor.shape());
//! }
//! let view = pack.tensor("layers.0.weight").expect("the example has it");
//! let bf16: Vec<u8> = view.decode()?;
//! let two_rows = DecodeOptions::new().with_dtype(Dtype::F32).with_rows(0..2).decode(&view)?;
//! # assert_eq!((bf16.len(), two_rows.len()), (4 * 64 * 2, 2 * 64 * 4));
//! # Ok::<(), ultracompress::Error>(())
//! ```
//!
//! Where a pack has overlays, [`Pack::effective_tensor`] decodes a tensor with them.
//!
//! Where a pack holds the source's own bits (`uc pack --exact`), `DecodeOptions::new().with_exact(true)` gives them.
//!
//! # Writing from memory
//!
//! ```
//! use std::io::Cursor;
//! use ultracompress::{Container, Dtype, EncodeOptions, EncodedTensor, Manifest, PackWriter, VerifyOptions};
//!
//! let weights: Vec<u8> = (0..4 * 64).flat_map(|i| (i as f32 * 0.01).to_le_bytes()).collect();
//! let tensor = EncodedTensor::planes("w", Dtype::F32, &[4, 64], &weights, &EncodeOptions::new())?;
//! let mut manifest = Manifest::new("example-1");
//! manifest.add_tensor("w", &weights, "packed from memory");
//! let mut writer = PackWriter::new(Cursor::new(Vec::new()))?;
//! writer.add_tensor(tensor)?;
//! let (summary, file) = writer.finish(&manifest.to_bytes()?)?;
//!
//! let pack = Container::open(file.into_inner())?;
//! let report = VerifyOptions::new().verify(&pack)?;
//! assert!(report.is_ok() && report.decoded_root == summary.decoded_root);
//! # Ok::<(), ultracompress::Error>(())
//! ```
//!
//! # Features
//!
//! | feature | brings | default |
//! |---|---|---|
//! | `cli` | the `uc` binary and all of the below | yes |
//! | `safetensors` | `import`: checkpoints in and out, recipes | with `cli` |
//! | `zstd` | parts stored as zstd frames | with `cli` |
//! | `rayon` | threads; results never depend on them | with `cli` |
//! | `http` | packs on web servers, read by ranges | with `cli` |
//! | `sign` | `sign`: signatures in minisign's format | with `cli` |
//! | `lm` | `lm`: running language models, calibration, evaluation, training overlays | with `cli` |
//!
//! With `default-features = false` the crate reads, decodes, multiplies, verifies and writes packs.
//!
//! # Layers
//!
//! `kernels` holds the inner loops for each instruction set ([`Kernel`]); [`mod@format`] (bytes to headers) and
//! [`codec`] (codes to values) stand on it and don't know each other's callers; [`container`] joins them to
//! one file; [`matrix`] multiplies with a tensor as it is stored; [`manifest`] adds provenance, packs of several
//! files and verification, [`receipt`] records of measurements; `import` adds checkpoints, `encoder` what packs them by a
//! `calibration`, `lm` models that run.

#[cfg(feature = "safetensors")]
pub mod calibration;
pub mod codec;
pub mod container;
#[cfg(feature = "safetensors")]
mod encoder;
mod error;
pub mod format;
#[cfg(feature = "safetensors")]
pub mod import;
mod kernels;
mod limits;
#[cfg(feature = "lm")]
pub mod lm;
pub mod manifest;
pub mod matrix;
mod memory;
mod par;
mod progress;
pub mod receipt;
#[cfg(feature = "sign")]
pub mod sign;

pub use container::{
    Container, DecodeOptions, EffectiveTensor, EncodeOptions, EncodedTensor, Input, PackWriter,
    PlaneParts, ReadAt, StoredFile, TensorView, WriteSummary,
};
pub use error::{Error, ErrorKind, Result};
pub use format::{Digest, Dtype, Encoding, Role, Rule, TensorEntry};
pub use kernels::Kernel;
#[cfg(feature = "safetensors")]
#[doc(hidden)]
pub use kernels::mul_add_peak;
pub use limits::{Limit, Limits};
pub use manifest::{Check, Failure, Manifest, Pack, ShardIndex, VerifyOptions, VerifyReport};
pub use matrix::{Int8Activations, OverlayMatrix, PackedMatrix, PlaneMatrix};
pub use memory::{DEFAULT_MAX_RAM, MIN_MAX_RAM};
pub use progress::{NoProgress, Progress};
pub use receipt::EvalRecord;

/// A small pack in memory, for the examples of this documentation.
#[doc(hidden)]
pub fn doc_example() -> Vec<u8> {
    let weights: Vec<u8> = (0..256u16).flat_map(|i| (0x3c00 + i).to_le_bytes()).collect();
    let name = "layers.0.weight";
    let write = || {
        let options = EncodeOptions::new();
        let tensor = EncodedTensor::planes(name, Dtype::Bf16, &[4, 64], &weights, &options)?;
        let mut manifest = Manifest::new("example");
        manifest.add_tensor(name, &weights, "example");
        let mut writer = PackWriter::new(std::io::Cursor::new(Vec::new()))?;
        writer.add_tensor(tensor)?;
        Ok::<_, Error>(writer.finish(&manifest.to_bytes()?)?.1.into_inner())
    };
    write().expect("the example is valid")
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

#[cfg(doctest)]
#[doc = include_str!("../docs/from-rust.md")]
struct FromRust;
