//! What tests of the tool share: all that those of the library share, and [`uc`].
#![allow(dead_code, reason = "each test uses a part")]

#[path = "../../../tests/support/mod.rs"]
mod shared;
pub mod uc;

#[allow(unused_imports, reason = "each test uses a part")]
pub use shared::*;
