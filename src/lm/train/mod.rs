//! Training overlays: low-rank corrections of a pack, made from real activations, kept only if they
//! earn their bits (spec/overlay.md says what they are; this is how they come about).
//!
//! ```text
//! text ─► calibration ─► whitened errors ─► spectra ─► ranks ─► factors (closed form) ─► training ─► gate
//!                              ▲                        ▲                                  ▲
//!                      source less base              budget                    teacher, probe set
//! ```

mod closed;
mod gate;
mod gradient;
mod options;
mod ranks;
mod run;
mod state;

pub use gradient::Objective;
pub use options::{GateRow, Method, Probe, TrainOptions, TrainReport};
