//! The pack of the small model, made once for all tests of a binary. Tests say `#[path =
//! "support/tiny.rs"] mod tiny;` besides `mod support;`, for this needs the feature `checkpoints`
//! and the rest needs none.

use std::sync::OnceLock;

use ultracompress::pack::PackOptions;
use ultracompress::source::Source;

use crate::support::folder::{Desk, tiny_llama};

pub fn tiny_pack() -> &'static [u8] {
    static PACK: OnceLock<Vec<u8>> = OnceLock::new();
    PACK.get_or_init(|| {
        let desk = Desk::new();
        let source = Source::open(&tiny_llama()).expect("readable");
        PackOptions::new().pack(&source, &desk.path("model.uc")).expect("packs");
        desk.read("model.uc")
    })
}
