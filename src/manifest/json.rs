//! JSON in canonical form (RFC 8785) with safe integers only: manifest and index file.

use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::Rule;

/// Deepest nesting of arrays and objects below the outermost one.
const MAX_DEPTH: usize = 64;
/// Largest integer that every JSON reader holds exactly.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// What is written as canonical JSON.
pub(super) trait Canonical: Serialize + DeserializeOwned {
    /// Whether all numbers are safe integers, and nothing is nested too deep (UC-MAN-1).
    fn values_are_safe(&self) -> bool;
}

/// Whether a length can be written.
pub(super) fn is_safe(n: u64) -> bool {
    n <= MAX_SAFE_INTEGER
}

/// Whether a value that is a member of the outermost object can be written.
pub(super) fn is_safe_value(value: &Value) -> bool {
    check_values(value, 1, Rule::MAN_1).is_ok()
}

/// # Errors
/// `Malformed(rule)` for numbers that are not safe integers.
pub(super) fn to_canonical<T: Serialize>(value: &T, rule: Rule) -> Result<Vec<u8>> {
    let value = serde_json::to_value(value)
        .map_err(|e| Error::malformed(rule, e.to_string()).with_source(e))?;
    check_values(&value, 0, rule)?;
    canonical(&value, rule)
}

/// # Errors
/// `Malformed(form)` for what isn't canonical JSON, `Malformed(members)` for members that are missing
/// or of another type.
pub(super) fn from_canonical<T: Canonical>(bytes: &[u8], form: Rule, members: Rule) -> Result<T> {
    // The usual file has no members but those of `T`: then it is what `T` is written as. This is twice as
    // fast for a pack of 100,000 tensors.
    if let Ok(read) = serde_json::from_slice::<T>(bytes)
        && read.values_are_safe()
        && is_canonical(&read, bytes, form)?
    {
        return Ok(read);
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::malformed(form, format!("not JSON: {e}")).with_source(e))?;
    check_values(&value, 0, form)?;
    // Catches duplicate members too: parsing keeps only one of them.
    if !is_canonical(&value, bytes, form)? {
        return Err(Error::malformed(form, "JSON is not in canonical form (RFC 8785)"));
    }
    serde_json::from_value(value)
        .map_err(|e| Error::malformed(members, e.to_string()).with_source(e))
}

/// Whether `s` is a digest as the files write it: 64 lower-case hexadecimal digits.
pub(super) fn is_hex_digest(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn canonical(value: &Value, rule: Rule) -> Result<Vec<u8>> {
    serde_json_canonicalizer::to_vec(value)
        .map_err(|e| Error::malformed(rule, e.to_string()).with_source(e))
}

/// Whether the canonical form of `value` is `bytes`; compared as it is made, so that none is kept.
fn is_canonical<T: Serialize>(value: &T, bytes: &[u8], rule: Rule) -> Result<bool> {
    struct Compare<'a>(&'a [u8], bool);
    impl Write for Compare<'_> {
        fn write(&mut self, made: &[u8]) -> std::io::Result<usize> {
            let rest = self.0.strip_prefix(made);
            self.1 &= rest.is_some();
            self.0 = rest.unwrap_or_default();
            Ok(made.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut compare = Compare(bytes, true);
    serde_json_canonicalizer::to_writer(value, &mut compare)
        .map_err(|e| Error::malformed(rule, e.to_string()).with_source(e))?;
    Ok(compare.1 && compare.0.is_empty())
}

/// UC-MAN-1: safe integers only, and no deep nesting.
fn check_values(value: &Value, depth: usize, rule: Rule) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::malformed(
            rule,
            format!("values are nested more than {MAX_DEPTH} deep"),
        ));
    }
    match value {
        Value::Number(n) => {
            let safe = n.as_i64().map(i64::unsigned_abs).or(n.as_u64());
            if safe.is_none_or(|n| n > MAX_SAFE_INTEGER) {
                return Err(Error::malformed(
                    rule,
                    format!("{n} is not an integer within 2^53 - 1"),
                ));
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|v| check_values(v, depth + 1, rule)),
        Value::Object(members) => {
            members.values().try_for_each(|v| check_values(v, depth + 1, rule))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}
