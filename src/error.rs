//! The crate's one error type: what a caller acts on ([`ErrorKind`]), where it happened, and why.

use std::fmt;
use std::ops::Range;

use crate::limits::Limit;
use crate::rule::Rule;

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the terms a caller acts on. The text of an [`Error`] may improve between
/// releases, the kind stays.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused a read or a write.
    Io,
    /// The input ends before the bytes `needed`.
    Truncated {
        /// The byte range of the file that would have been read.
        needed: Range<u64>,
    },
    /// The file has a format major version that this reader doesn't know.
    UnsupportedVersion,
    /// The file needs a feature (required bit, encoding, storage method) that this reader lacks.
    UnsupportedFeature,
    /// The bytes break the named rule of the format.
    Malformed(Rule),
    /// A checksum or a digest disagrees with the bytes it speaks of.
    Integrity,
    /// The input asks for more than a ceiling of [`Limits`](crate::Limits) allows.
    LimitExceeded(Limit),
    /// The caller's argument makes no sense.
    InvalidArgument,
    /// The source checkpoint is damaged or can't be used.
    Source,
    /// The caller asked to stop.
    Cancelled,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    file: Option<String>,
    tensor: Option<String>,
    part: Option<String>,
    offset_bytes: Option<u64>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// An error of this crate: a kind, a message, and the place (file, tensor, part, byte offset).
#[derive(Debug)]
pub struct Error(Box<Inner>);

impl Error {
    /// Makes an error of `kind` with a lower-case message that names what was found and expected.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            file: None,
            tensor: None,
            part: None,
            offset_bytes: None,
            source: None,
        }))
    }

    pub(crate) fn malformed(rule: Rule, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed(rule), message)
    }

    pub(crate) fn integrity(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Integrity, message)
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    #[cfg(feature = "checkpoints")]
    pub(crate) fn source_file(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Source, message)
    }

    pub(crate) fn io(what: &str, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{what}: {source}")).with_source(source)
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds the name of the file, unless one is already there.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<String>) -> Self {
        self.0.file.get_or_insert_with(|| file.into());
        self
    }

    pub(crate) fn in_tensor(mut self, tensor: &str) -> Self {
        self.0.tensor.get_or_insert_with(|| tensor.to_owned());
        self
    }

    pub(crate) fn in_part(mut self, part: impl Into<String>) -> Self {
        self.0.part.get_or_insert_with(|| part.into());
        self
    }

    pub(crate) fn at(mut self, offset_bytes: u64) -> Self {
        self.0.offset_bytes.get_or_insert(offset_bytes);
        self
    }

    /// What a caller acts on.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// What was found and expected, without the place.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file, where one is known.
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }

    /// The tensor (or other named record), where one is concerned.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The part of the tensor, or the section of the file, where one is concerned.
    pub fn part(&self) -> Option<&str> {
        self.0.part.as_deref()
    }

    /// The byte offset in the file, where one is known.
    pub fn offset_bytes(&self) -> Option<u64> {
        self.0.offset_bytes
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        if let Some(file) = &e.file {
            write!(f, "{file}: ")?;
        }
        if let Some(tensor) = &e.tensor {
            write!(f, "\"{}\": ", tensor.escape_debug())?;
        }
        if let Some(part) = &e.part {
            write!(f, "{part}: ")?;
        }
        f.write_str(&e.message)?;
        if let ErrorKind::Malformed(rule) = &e.kind {
            write!(f, " ({rule})")?;
        }
        if let Some(offset) = e.offset_bytes {
            write!(f, ", at byte {offset}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}
