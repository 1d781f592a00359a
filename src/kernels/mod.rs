//! Kernels: the inner loops, a room for each job and in it a file for each instruction set.
//!
//! The only place with `unsafe`; below it are only `error`, `rule`, `limits` and `setters`.
//! spec/codec.md defines the results and `codec::reference` transcribes it; every kernel equals it
//! bit for bit, and encodes to the same bytes. Only products may differ in their last bits.
//!
//! Formats, files and whole tensors are left to the layers above, all of which may call what is
//! re-exported here. They check lengths and ranges, so that arguments always fit, and a room
//! asserts it once more where memory depends on it.
//!
//! The `mod.rs` of a room holds the types that callers use and picks a kernel with `dispatch!`.
//! Files of instruction sets use the room's types, `planes` and `target`, what `simd` has for
//! several rooms, and the portable loop where they have none; they don't use `mod.rs`.

#![allow(unsafe_code, reason = "intrinsics, each block with its reason")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "bit arithmetic on known ranges"
)]

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
mod overlay;
mod planes;
pub(crate) mod sha256;
mod simd;
mod stream;
mod target;
#[cfg(feature = "checkpoints")]
mod tile;

pub use choice::Kernel;
#[cfg(feature = "checkpoints")]
pub(crate) use compensate::{Descent, RoundTile, descend, round_tile};
pub(crate) use decode::RowDecoder;
pub(crate) use dot::{Int8Row, MOST, Packed, RowBits, RowDot, dot_f32, pack_row};
pub(crate) use exact::{
    ContextBits, ContextOf, Contexts, DecodeTables, Hint, LANES, LOW, Lanes, Top, anchored, unpack,
};
#[cfg(feature = "checkpoints")]
pub(crate) use exact::{EncodeTables, EncodedLanes, LaneEncoder};
#[cfg(feature = "lm")]
pub(crate) use exp::{ScanToken, exp, exp_shifted, scan_step, silu, swiglu};
pub(crate) use memory::{as_bytes_mut, zeroed};
pub(crate) use nearest::{Nearest, TRIES};
pub(crate) use overlay::{Int8Factors, WideFactors};
pub(crate) use planes::LevelTable;
pub(crate) use stream::{can_stream, stream_copy, stream_end};
pub use target::STEPS;
pub(crate) use target::{Float, bf16_bits, f16_bits};
#[cfg(feature = "checkpoints")]
pub use tile::mul_add_peak;
#[cfg(feature = "checkpoints")]
pub(crate) use tile::{TILE, TILE_LEN, add_product, subtract_product};
