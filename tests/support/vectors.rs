//! The vectors of the spec, where they are used as samples. `tests/vectors.rs` is what runs them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::folder::{files, repository};

pub fn unhex(hex: &str) -> Vec<u8> {
    let digit = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// Every valid container by the name of its vector.
pub fn valid_containers() -> BTreeMap<String, Vec<u8>> {
    let vectors = files(&repository().join("spec/vectors/container/valid"));
    assert!(!vectors.is_empty(), "vectors are there");
    let container = |(path, text): (std::path::PathBuf, Vec<u8>)| {
        let json: Value = serde_json::from_slice(&text).expect("JSON");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, unhex(json["input"].as_str().expect("hexadecimal")))
    };
    vectors.into_iter().map(container).collect()
}
