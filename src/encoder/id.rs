//! The names of the encoders, which manifests pin.

/// Names the encoder. It changes whenever the bytes that it makes could change.
pub const ENCODER_ID: &str = "uc-rtn-3+zstd-1.5.7";

/// Names the encoder of calibrated packs. It changes whenever the bytes that it makes could change.
pub const CALIBRATED_ENCODER_ID: &str = "uc-yaqa-1+zstd-1.5.7";
