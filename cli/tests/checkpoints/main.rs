//! Checkpoints as they are met: larger than memory, cut into shards, damaged, changing, hostile;
//! and disks that are full. What the library and `uc` make of them, and what they leave behind.
//!
//! Limits of memory and of files are set for the processes of `uc` alone, so these tests run beside
//! others.

mod claims;
mod large;
mod outputs;
mod shards;
mod sources;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ultracompress::pack::Recipe;
use ultracompress::{Dtype, Error, ErrorKind};

use support::checkpoint::{Tensor, write_shards};
use support::folder::{Desk, files};
use support::random::Rng;

fn raw_all() -> Recipe {
    let mut recipe = Recipe::default();
    recipe.raw_all = true;
    recipe
}

/// Everything that an error says, for a look at whether it says enough.
#[track_caller]
fn says(e: &Error, kind: &ErrorKind, parts: &[&str]) {
    assert_eq!(e.kind(), kind, "{e}");
    for part in parts {
        assert!(e.to_string().contains(part), "{part:?} is not in: {e}");
    }
}

fn config() -> Vec<u8> {
    format!("{{\"note\": \"{}\"}}", "x".repeat(5000)).into_bytes()
}

/// Six tensors of some hundred KiB, two of them equal, in two safetensors shards that part the
/// equal ones; carried files.
fn tied() -> &'static [Tensor] {
    static ALL: OnceLock<Vec<Tensor>> = OnceLock::new();
    ALL.get_or_init(|| {
        let embedding = Tensor::floats("", Dtype::Bf16, &[300, 512], 20).bytes;
        let ids = |seed| Rng(seed).bytes(700 << 10);
        vec![
            Tensor::new("lm_head.weight", Dtype::Bf16, &[300, 512], embedding.clone()),
            Tensor::new("model.embed_tokens.weight", Dtype::Bf16, &[300, 512], embedding),
            Tensor::new("model.ids.a", Dtype::I32, &[175 << 10], ids(21)),
            Tensor::new("model.ids.b", Dtype::I32, &[175 << 10], ids(22)),
            Tensor::new("model.ids.c", Dtype::I32, &[175 << 10], ids(24)),
            Tensor::floats("model.layers.0.q_proj.weight", Dtype::Bf16, &[64, 64], 23),
        ]
    })
}

fn write_tied(folder: &Path) {
    write_shards(folder, tied(), 2);
    fs::write(folder.join("config.json"), config()).expect("can write");
    fs::create_dir_all(folder.join("1_Pooling")).expect("can write");
    fs::write(folder.join("1_Pooling/config.json"), b"{}").expect("can write");
}

const SHARDS: [&str; 4] =
    ["m-00001-of-00003.uc", "m-00002-of-00003.uc", "m-00003-of-00003.uc", "m.uc.index.json"];

/// A desk with the tied checkpoint in three shards, `m.uc.index.json`.
fn sharded() -> Desk {
    static FILES: OnceLock<BTreeMap<PathBuf, Vec<u8>>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let desk = Desk::new();
        write_tied(&desk.folder("source"));
        desk.folder("out");
        desk.run(&["pack", "source", "-o", "out/m.uc", "--shard-size", "1M", "-q"]).expect(0);
        files(&desk.path("out"))
    });
    assert!(files.keys().map(|p| p.to_str().expect("ASCII")).eq(SHARDS), "{:?}", files.keys());
    let desk = Desk::new();
    files.iter().for_each(|(name, bytes)| desk.write(name, bytes));
    desk
}
