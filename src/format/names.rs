//! The form of names (spec/container.md, "Names").

use super::MAX_NAME_BYTES;
use crate::error::{Error, Result};
use crate::rule::Rule;

/// Checks the name of a tensor or level table.
///
/// # Errors
/// `Malformed(UC-NAM-1)` for empty, over-long or control-character names.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::malformed(
            Rule::NAM_1,
            format!("name has {} bytes, 1 to {MAX_NAME_BYTES} are allowed", name.len()),
        ));
    }
    if let Some(c) = name.chars().find(|c| c.is_control()) {
        return Err(Error::malformed(
            Rule::NAM_1,
            format!(
                "name \"{}\" holds the control character U+{:04X}",
                name.escape_debug(),
                c as u32
            ),
        ));
    }
    Ok(())
}

/// Checks the relative path of a carried file.
///
/// # Errors
/// `Malformed(UC-NAM-1)` as for any name, `Malformed(UC-NAM-2)` for absolute paths, `.`, `..`,
/// empty components, backslashes and colons (drive letters, streams).
pub(crate) fn check_file_path(path: &str) -> Result<()> {
    check_name(path)?;
    let wrong = if path.contains(['\\', ':']) {
        Some("a backslash or a colon")
    } else if path.split('/').any(str::is_empty) {
        Some("an empty component")
    } else if path.split('/').any(|c| c == "." || c == "..") {
        Some("a `.` or `..` component")
    } else {
        None
    };
    match wrong {
        None => Ok(()),
        Some(what) => Err(Error::malformed(
            Rule::NAM_2,
            format!(
                "path \"{}\" has {what}; carried files have plain relative paths",
                path.escape_debug()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_paths_that_leave_the_folder() {
        for bad in ["/etc/passwd", "a/../b", "..", ".", "a//b", "a/", "C:x", "a\\b", "a\0b", ""] {
            assert!(check_file_path(bad).is_err(), "{bad:?}");
        }
        for good in ["config.json", "1_Pooling/config.json", ".hidden", "a..b", "größe.txt"] {
            check_file_path(good).expect(good);
        }
    }
}
