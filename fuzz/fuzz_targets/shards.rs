//! Attacks the index file of a sharded pack, before good shards in any order. What is accepted must
//! verify, and the index must give the same bytes again.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ultracompress::{Container, Pack, ShardIndex, VerifyOptions};

static SHARDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let vector = include_str!("../../spec/vectors/pack/valid/two-shards.json");
    let vector: serde_json::Value = serde_json::from_str(vector).expect("vectors are JSON");
    let shards = vector["input"]["shards"].as_object().expect("files by name");
    shards.values().map(|hex| unhex(hex.as_str().expect("hexadecimal"))).collect()
});

fn unhex(hex: &str) -> Vec<u8> {
    let digit = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fuzz_target!(|data: &[u8]| {
    let Some((&order, text)) = data.split_first() else { return };
    let Ok(index) = ShardIndex::parse(text) else { return };
    assert_eq!(ShardIndex::parse(&index.to_bytes().expect("it was parsed")).expect("valid"), index);
    let shards = (0..index.shards.len()).map(|i| {
        let chosen = usize::from(order >> (2 * (i % 4)) & 3);
        let bytes = SHARDS.get(chosen)?;
        Some(Container::open(bytes.as_slice()).expect("the vector's shards are valid"))
    });
    if let Ok(pack) = Pack::from_shards(index, shards.collect())
        && pack.require_complete().is_ok()
    {
        assert!(VerifyOptions::new().verify_pack(&pack).expect("in memory").is_ok());
    }
});
