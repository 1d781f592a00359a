//! From a pack to a checkpoint folder that engines load.

mod folder;

pub use folder::{UnpackOptions, UnpackReport};
