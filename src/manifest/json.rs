//! JSON in canonical form (RFC 8785) with safe integers only: manifest and index file.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::{Digest, Rule};

/// Deepest nesting of arrays and objects below the outermost one.
const MAX_DEPTH: usize = 64;
/// Largest integer that every JSON reader holds exactly.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

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
pub(super) fn from_canonical<T: DeserializeOwned>(
    bytes: &[u8],
    form: Rule,
    members: Rule,
) -> Result<T> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::malformed(form, format!("not JSON: {e}")).with_source(e))?;
    check_values(&value, 0, form)?;
    // Catches duplicate members too: parsing keeps only one of them.
    if canonical(&value, form)? != bytes {
        return Err(Error::malformed(form, "JSON is not in canonical form (RFC 8785)"));
    }
    serde_json::from_value(value)
        .map_err(|e| Error::malformed(members, e.to_string()).with_source(e))
}

/// Whether `s` is a digest as the files write it: 64 lower-case hexadecimal digits.
pub(super) fn is_hex_digest(s: &str) -> bool {
    Digest::from_hex(s).is_some_and(|d| d.to_string() == s)
}

fn canonical(value: &Value, rule: Rule) -> Result<Vec<u8>> {
    serde_json_canonicalizer::to_vec(value)
        .map_err(|e| Error::malformed(rule, e.to_string()).with_source(e))
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
