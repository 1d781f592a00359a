//! Attacks the parser of records. Canonical JSON is rebuilt from mutated values, so that mutation
//! gets past that rule; what parses must give the same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ultracompress::EvalRecord;

fuzz_target!(|data: &[u8]| {
    let canonical = serde_json::from_slice::<serde_json::Value>(data)
        .ok()
        .and_then(|value| serde_json_canonicalizer::to_vec(&value).ok());
    for bytes in [Some(data.to_vec()), canonical].into_iter().flatten() {
        if let Ok(record) = EvalRecord::parse(&bytes) {
            assert_eq!(record.to_bytes().expect("what was parsed can be written"), bytes);
        }
    }
});
