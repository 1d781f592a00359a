//! Attacks the manifest parser. What parses must give the same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ultracompress::Manifest;

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse(data) {
        let bytes = manifest.to_bytes().expect("what was parsed can be written");
        assert_eq!(Manifest::parse(&bytes).expect("what was written parses"), manifest);
    }
});
