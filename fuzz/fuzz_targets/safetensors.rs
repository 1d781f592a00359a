//! Attacks the import of safetensors files: any bytes as a file, opened and packed.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ultracompress::pack::PackOptions;
use ultracompress::source::Source;
use ultracompress::{Container, VerifyOptions};

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|data: &[u8]| {
    let path: PathBuf = FOLDER.path().join("model.safetensors");
    // The mutated bytes are header and data; the length in front always fits the header's end.
    let header = data.iter().rposition(|&b| b == b'}').map_or(data.len(), |at| at + 1);
    let mut file = (header as u64).to_le_bytes().to_vec();
    file.extend_from_slice(data);
    std::fs::write(&path, file).expect("temporary");
    let Ok(source) = Source::open(&path) else { return };
    let output = FOLDER.path().join("out.uc");
    if PackOptions::new().with_force(true).pack(&source, &output).is_ok() {
        let pack = Container::open_path(&output).expect("what was packed opens");
        assert!(VerifyOptions::new().verify(&pack).expect("readable").is_ok());
    }
});
