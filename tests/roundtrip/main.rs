//! What is written is what is read: containers of every kind of content against the reference
//! decoder, the encoder's reach, and checkpoints in and out.

#[cfg(feature = "checkpoints")]
mod checkpoints;
mod containers;
mod encoder;
#[path = "../support/mod.rs"]
mod support;
