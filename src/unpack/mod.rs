//! From a pack to a checkpoint folder that engines load.
//!
//! Decoding is left to `container` and `manifest`, naming and syncing files to `output`. Only the
//! tool and programs of users call the room.

mod folder;

pub use folder::{UnpackOptions, UnpackReport};
