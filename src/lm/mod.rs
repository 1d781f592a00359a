//! Language models that run: forward passes of known architectures, evaluation against the source,
//! calibration, training of overlays (feature `lm`).
//!
//! ```no_run
//! use std::path::Path;
//! use ultracompress::NoProgress;
//! use ultracompress::source::Model;
//! use ultracompress::lm::EvalOptions;
//!
//! let (pack, source) = (Model::open(Path::new("model.uc"))?, Model::open(Path::new("model"))?);
//! let text = std::fs::read("heldout.txt")?;
//! let record = EvalOptions::new().eval(&pack, &source, &text, &NoProgress)?;
//! println!("KL divergence {:?} nats a token", record.figure("kld_mean"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything is computed in binary32 on the CPU by candle. Results don't depend on threads; their
//! last bits may on the CPU.

mod architecture;
mod baseline;
mod bert;
mod calibrate;
mod config;
mod decoder;
mod eval;
mod linear;
mod mamba;
mod moments;
mod network;
mod ops;
mod rope;
mod states;
mod text;
pub mod train;
mod weights;

pub use baseline::Baseline;
pub use calibrate::{CalibrateOptions, PreparedCalibration};
pub use config::ARCHITECTURES;
pub use eval::{EvalOptions, Prepared};
pub use network::LanguageModel;
pub use train::{Method, Objective, TrainOptions, TrainReport};

use crate::error::{Error, ErrorKind};

/// An error of the tensor library.
fn failed(e: candle_core::Error) -> Error {
    Error::new(ErrorKind::Source, format!("can't compute: {e}")).with_source(e)
}
