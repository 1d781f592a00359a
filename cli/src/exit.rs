//! The exit codes of the tool.

use ultracompress::{Error, ErrorKind};

/// Malformed input and I/O errors.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// A checksum, digest or comparison that did not match.
pub const MISMATCH: u8 = 3;
/// Ctrl-C, as shells give it.
const INTERRUPTED: u8 = 130;

/// The code that a command ends with after this error.
pub fn code_of(e: &Error) -> u8 {
    match e.kind() {
        ErrorKind::Integrity => MISMATCH,
        ErrorKind::InvalidArgument => USAGE,
        ErrorKind::Cancelled => INTERRUPTED,
        _ => FAILED,
    }
}
