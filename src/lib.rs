//! The open container for 5-bit transformer weights whose every decoded bit is defined, hashed and
//! reproducible on any CPU.
//!
//! A `.uc` file holds the tensors of a model as bit planes with scales (or as they were), the files
//! that belong to it, and digests of all of it. The format is specified in the `spec/` folder of
//! the repository; items here cite its rules as `UC-IDX-3`.
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
//! [`Pack::effective_tensor`] decodes a tensor with its overlays.
//!
//! `DecodeOptions::new().with_exact(true)` gives the source's own bits of a pack that holds them
//! (`uc pack --exact`).
//!
//! # Writing from memory
//!
//! ```
//! use std::io::Cursor;
//! use ultracompress::{Container, Dtype, EncodeOptions, EncodedTensor, Manifest, PackWriter};
//! use ultracompress::VerifyOptions;
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
//! | `zstd` | parts stored as zstd frames | yes |
//! | `rayon` | threads; results never depend on them | yes |
//! | `checkpoints` | `source`, `output`, `pack`, `unpack`, `edit`, `audit`, `calibration` | |
//! | `http` | packs on web servers, read by ranges | |
//! | `sign` | `sign`: signatures in minisign's format | |
//! | `lm` | `lm`: running language models, calibration, evaluation, training overlays; turns on `checkpoints` and `rayon` | |
//!
//! The crate reads, decodes, multiplies, verifies and writes packs without any of them. The tool
//! `uc` (package `ultracompress-cli`) turns on all.
//!
//! # Rooms
//!
//! Each room uses only those below it:
//!
//! | room | job |
//! |---|---|
//! | `lm` | models that run: calibration, evaluation, training of overlays |
//! | `audit` | checks of a pack against its source, its recipe, another model |
//! | `pack` | from a checkpoint to a pack |
//! | `edit`, `unpack` | packs out of packs; checkpoints out of packs |
//! | `calibration` | files of statistics that steer the encoder |
//! | `source`, `output` | checkpoints in; new files, sets of shards, states of runs |
//! | [`receipt`] | records of measurements and audits |
//! | [`manifest`] | provenance, packs of several files, verification |
//! | [`matrix`], `encoder` | products with a tensor as it is stored; the calibrated encoder |
//! | [`container`] | one file: opening, reading, writing |
//! | [`codec`], [`storage`] | codes to values and back; positioned reads |
//! | [`mod@format`] | bytes to typed headers and back |
//! | `sign` | signatures of files, in minisign's format |
//! | `kernels` | inner loops for each instruction set ([`Kernel`]) |

#[cfg(feature = "checkpoints")]
pub mod audit;
#[cfg(feature = "checkpoints")]
pub mod calibration;
pub mod codec;
pub mod container;
#[cfg(feature = "checkpoints")]
pub mod edit;
#[cfg(feature = "checkpoints")]
mod encoder;
mod error;
pub mod format;
mod kernels;
mod limits;
#[cfg(feature = "lm")]
pub mod lm;
pub mod manifest;
pub mod matrix;
mod memory;
#[cfg(feature = "checkpoints")]
pub mod output;
#[cfg(feature = "checkpoints")]
pub mod pack;
mod par;
mod progress;
pub mod receipt;
mod rule;
mod setters;
#[cfg(feature = "sign")]
pub mod sign;
#[cfg(feature = "checkpoints")]
pub mod source;
pub mod storage;
#[cfg(feature = "checkpoints")]
pub mod unpack;

pub use container::{
    Container, DecodeOptions, EffectiveTensor, EncodeOptions, EncodedTensor, PackWriter,
    PlaneParts, StoredFile, TensorView, WriteSummary,
};
pub use error::{Error, ErrorKind, Result};
pub use format::{Digest, Dtype, Encoding, Role, TensorEntry};
pub use kernels::Kernel;
#[cfg(feature = "checkpoints")]
#[doc(hidden)]
pub use kernels::mul_add_peak;
pub use limits::{Limit, Limits};
pub use manifest::{Check, Failure, Manifest, Pack, ShardIndex, VerifyOptions, VerifyReport};
pub use matrix::{Int8Activations, OverlayMatrix, PackedMatrix, PlaneMatrix};
pub use memory::{DEFAULT_MAX_RAM, MIN_MAX_RAM};
pub use progress::{NoProgress, Progress};
pub use receipt::EvalRecord;
pub use rule::Rule;
pub use storage::{Input, ReadAt};

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
