//! Calibration files: statistics of real activations, as `uc calibrate` writes them and the encoder
//! reads them (spec/calibration.md).
//!
//! Statistics are made in `lm` and used in `encoder`; the room only reads and writes them. `pack`,
//! `audit` and `lm` call it.

mod file;
mod record;

pub use file::Calibration;
#[cfg(feature = "lm")]
pub(crate) use file::{CalibrationWriter, Slot};
#[cfg(feature = "lm")]
pub(crate) use record::sibling_key;
pub use record::{CalibrationRecord, LayerRecord, Protocol};
