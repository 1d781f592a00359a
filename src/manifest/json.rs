//! JSON in canonical form (RFC 8785) with safe integers only: manifest and index file.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::canonical;
use crate::error::{Error, Result};
use crate::rule::Rule;

/// # Errors
/// `Malformed(rule)` for numbers that are not safe integers, and for deep nesting.
pub(super) fn to_canonical<T: Serialize>(value: &T, rule: Rule) -> Result<Vec<u8>> {
    let bytes = serde_json_canonicalizer::to_vec(value)
        .map_err(|e| Error::malformed(rule, e.to_string()).with_source(e))?;
    check(&bytes, rule)?;
    Ok(bytes)
}

/// # Errors
/// `Malformed(form)` for what isn't canonical JSON, `Malformed(members)` for members that are
/// missing or of another type.
pub(super) fn from_canonical<T: DeserializeOwned>(
    bytes: &[u8],
    form: Rule,
    members: Rule,
) -> Result<T> {
    // Also refuses members that stand there twice, of which a parser keeps one.
    check(bytes, form)?;
    serde_json::from_slice(bytes).map_err(|e| {
        // What the message quotes is the input's, control characters and all.
        Error::malformed(members, e.to_string().escape_debug().to_string()).with_source(e)
    })
}

fn check(bytes: &[u8], rule: Rule) -> Result<()> {
    canonical::check(bytes).map_err(|(at, text)| {
        Error::malformed(rule, format!("not canonical JSON (RFC 8785): {text}, at its byte {at}"))
    })
}

/// Whether `s` is a digest as the files write it: 64 lower-case hexadecimal digits.
pub(crate) fn is_hex_digest(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn messages_have_no_control_characters_of_the_input() {
        let mut manifest = Manifest::new("x");
        manifest.add_tensor("a", b"", "x");
        let text = String::from_utf8(manifest.to_bytes().expect("valid")).expect("JSON");
        let file = r#""files":[{"bytes":1,"path":"a","role":"\u001b[31m"}]"#;
        let text = text.replace("\"files\":[]", file);
        let e = Manifest::parse(text.as_bytes()).expect_err("a role that is none");
        assert!(matches!(e.kind(), crate::error::ErrorKind::Malformed(Rule::MAN_2)), "{e}");
        assert!(!e.to_string().chars().any(char::is_control), "{e:?}");
    }
}
