//! Kernels: the inner loops over rows of planes, one file for each instruction set.
//!
//! This is the bottom layer and the only place with `unsafe`. What a kernel computes is defined by
//! spec/codec.md and transcribed in `codec::reference`; every kernel equals it bit for bit, and encodes to
//! the same bytes. Only products may differ in their last bits. Callers check lengths and ranges; what they hand
//! over here always fits.

#![allow(unsafe_code, reason = "intrinsics, each block with its reason")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "bit arithmetic on known ranges"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod choice;
#[cfg(feature = "checkpoints")]
mod compensate;
mod decode;
mod dot;
mod exact;
#[cfg(feature = "lm")]
mod exp;
mod memory;
mod nearest;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod overlay;
mod scalar;
pub(crate) mod sha256;
mod target;
#[cfg(feature = "checkpoints")]
mod tile;

pub use choice::Kernel;
#[cfg(feature = "checkpoints")]
pub(crate) use compensate::{Descent, RoundTile, descend, round_tile};
pub(crate) use decode::{LevelTable, RowDecoder};
pub(crate) use dot::{Int8Row, MOST, Packed, RowBits, RowDot, dot_f32, pack_row};
pub(crate) use exact::{
    ContextBits, ContextOf, Contexts, DecodeTables, Hint, LANES, LOW, Lanes, Top, place, unpack,
};
#[cfg(feature = "checkpoints")]
pub(crate) use exact::{EncodeTables, EncodedLanes, LaneEncoder};
#[cfg(feature = "lm")]
pub(crate) use exp::{ScanToken, exp, exp_shifted, scan_step, silu, swiglu};
pub(crate) use memory::{as_bytes_mut, can_stream, stream_copy, stream_end, zeroed};
pub(crate) use nearest::{Nearest, TRIES};
pub(crate) use overlay::{Int8Factors, WideFactors};
pub use target::STEPS;
pub(crate) use target::{Float, bf16_bits, f16_bits};
#[cfg(feature = "checkpoints")]
pub use tile::mul_add_peak;
#[cfg(feature = "checkpoints")]
pub(crate) use tile::{TILE, TILE_LEN, add_product, subtract_product};
