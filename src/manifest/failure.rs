//! Outcomes of checks, and what is wrong.

use crate::error::{Error, ErrorKind, Result};

/// The outcome of one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Compared and equal.
    Ok,
    /// Compared and different.
    Mismatch,
    /// Not compared.
    NotChecked,
}

impl Check {
    /// The word used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Mismatch => "mismatch",
            Self::NotChecked => "not_checked",
        }
    }

    pub(crate) fn of(failures: &[Failure]) -> Self {
        if failures.is_empty() { Self::Ok } else { Self::Mismatch }
    }

    /// The outcome over two files.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Mismatch, _) | (_, Self::Mismatch) => Self::Mismatch,
            (Self::NotChecked, _) | (_, Self::NotChecked) => Self::NotChecked,
            (Self::Ok, Self::Ok) => Self::Ok,
        }
    }
}

/// One thing that is wrong with a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// The file, where it has a name.
    pub file: Option<String>,
    /// The tensor or carried file concerned.
    pub tensor: Option<String>,
    /// The part or section concerned.
    pub part: Option<String>,
    /// Where in the file.
    pub offset_bytes: Option<u64>,
    /// What was found and expected.
    pub reason: String,
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        let reason = match e.kind() {
            ErrorKind::Malformed(rule) => format!("{} ({rule})", e.message()),
            _ => e.message().to_owned(),
        };
        Self {
            kind: e.kind().clone(),
            file: e.file().map(str::to_owned),
            tensor: e.tensor().map(str::to_owned),
            part: e.part().map(str::to_owned),
            offset_bytes: e.offset_bytes(),
            reason,
        }
    }
}

/// Errors that speak of the pack become failures, the others end the run.
pub(super) fn sort_out(result: Result<()>, failures: &mut Vec<Failure>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(e) => match e.kind() {
            ErrorKind::Malformed(_)
            | ErrorKind::Integrity
            | ErrorKind::Truncated { .. }
            | ErrorKind::UnsupportedFeature => {
                failures.push(Failure::from(&e));
                Ok(())
            }
            _ => Err(e),
        },
    }
}

/// Failures of one check of one file that are listed; a file may have millions.
pub(super) const MAX_FAILURES: usize = 1000;

/// Lists failures up to [`MAX_FAILURES`]; the last one says that there are more.
pub(super) fn add(list: &mut Vec<Failure>, found: impl IntoIterator<Item = Failure>) {
    for mut failure in found {
        if list.len() + 1 == MAX_FAILURES {
            failure.reason = format!("{} (and more, which are not listed)", failure.reason);
        }
        if list.len() < MAX_FAILURES {
            list.push(failure);
        }
    }
}
