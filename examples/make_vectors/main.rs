//! Regenerates the test vectors under `spec/vectors`, byte for byte.
//!
//! ```text
//! cargo run --example make_vectors            # writes spec/vectors
//! cargo run --example make_vectors -- DIR     # writes DIR
//! ```
//!
//! Files are put together field by field here, not by the crate's writer, so that each invalid one
//! can break one rule and keep all others, checksums and roots included. Decoded values come from
//! the literal reference decoder.
//!
//! | module | vectors of |
//! |---|---|
//! | [`container`] | spec/container.md: preamble, index, names, tensors, files, attachments, roots |
//! | [`parts`] | spec/container.md, "Parts" |
//! | [`shards`] | spec/container.md, "Sharded packs" |
//! | [`codec`] | spec/codec.md |
//! | [`exact`] | spec/exact.md; [`exact_coder`] is the encoder that makes residuals |
//! | [`overlay`] | spec/overlay.md; [`overlay_factors`] makes factors and what they lead to |
//! | [`manifest`] | spec/manifest.md |
//! | [`receipt`] | spec/receipt.md |
//!
//! They share [`mod@file`], which writes a container, [`planes`], which makes tensors of planes,
//! and [`set`], which holds the vectors and says at which levels each must pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod codec;
mod container;
mod exact;
mod exact_coder;
mod file;
mod manifest;
mod overlay;
mod overlay_factors;
mod parts;
mod planes;
mod receipt;
mod set;
mod shards;

pub use set::level_of;

/// Every vector: path below `spec/vectors`, and the text of the file.
pub fn vectors() -> BTreeMap<PathBuf, String> {
    let mut set = set::VectorSet::default();
    let pages = [
        container::add,
        parts::add,
        shards::add,
        codec::add,
        exact::add,
        overlay::add,
        manifest::add,
        receipt::add,
    ];
    for add in pages {
        add(&mut set);
    }
    set.into_files()
}

#[allow(dead_code, reason = "the test that compares the vectors includes this file as a module")]
fn main() -> std::io::Result<()> {
    let root = std::env::args().nth(1).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("spec").join("vectors"),
        PathBuf::from,
    );
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    for (path, text) in vectors() {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("vectors lie in folders"))?;
        std::fs::write(path, text)?;
    }
    Ok(())
}
