//! Attacks the comparison with a signature. Nothing but a signature of these bytes by this key is
//! accepted, whatever is around it.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use ultracompress::sign::verify_signature;

const FILE: &[u8] = b"weights";
/// The seed is a signature by this key, made with the minisign tool.
const KEY: &str = "RWTdXXFm2oJLmiaFvbLCBAT7f7J6fq+q20/Uq9jUiTrc/xoKkIYOelsI";

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(signed) = verify_signature(Cursor::new(FILE), KEY, &text) {
        assert_eq!(signed.comment, "a comment");
        assert!(verify_signature(Cursor::new(b"Weights"), KEY, &text).is_err());
    }
    // As keys of both kinds.
    let _ = verify_signature(Cursor::new(FILE), &text, &text);
    let _ = ultracompress::sign::key_id(&text);
});
