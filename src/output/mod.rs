//! New files: written beside their name and renamed when they are complete, sets of shards, states
//! of runs that may be interrupted.
//!
//! The room knows packs as files; its callers `pack`, `edit` and `unpack` decide what is in them.
//! `calibration`, `audit` and `lm` write their single files by it.

mod file;
mod pack;
mod state;

pub use file::write_new;
pub(crate) use file::{ClosedFile, NewFile, NewFolder, partial_set_len};
pub(crate) use pack::{NewPack, Placed, ShardWriter, Unnamed, assign, check_shard_size};
pub(crate) use state::{BASE, EXACT, NewName, PackState, ROOTS, RUNGS, Written, bytes_there};
