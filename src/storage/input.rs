//! The place that a pack is read from: a file, or an address.

use std::fs::File;
use std::path::Path;

#[cfg(feature = "http")]
use super::http::HttpFile;
use super::read_at::ReadAt;
use crate::error::{Error, ErrorKind, Result};

/// A local file, or a remote one where the build has the `http` feature.
#[derive(Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a pack has a few")]
pub enum Input {
    /// A local file.
    File(File),
    /// A file on a web server.
    #[cfg(feature = "http")]
    Http(HttpFile),
}

/// Whether `location` is an address rather than a path.
pub fn is_url(location: &Path) -> bool {
    location.to_str().is_some_and(|l| l.starts_with("http://") || l.starts_with("https://"))
}

impl Input {
    /// Opens a path, or an address that starts with `http://` or `https://`.
    ///
    /// # Errors
    /// `Io`; `UnsupportedFeature` for an address when the build lacks the `http` feature. Errors
    /// name the location.
    pub fn open(location: &Path) -> Result<Self> {
        let name = location.display().to_string();
        if is_url(location) {
            #[cfg(feature = "http")]
            return Ok(Self::Http(HttpFile::open(&name)?));
            #[cfg(not(feature = "http"))]
            return Err(Error::new(
                ErrorKind::UnsupportedFeature,
                "is an address and this build lacks the `http` feature",
            )
            .in_file(name));
        }
        let open = || {
            let file = File::open(location).map_err(|e| Error::io("can't open", e))?;
            let meta = file.metadata().map_err(|e| Error::io("can't open", e))?;
            if meta.is_dir() {
                return Err(Error::new(ErrorKind::Io, "is a folder, not a .uc file"));
            }
            Ok(Self::File(file))
        };
        open().map_err(|e| e.in_file(name))
    }
}

/// The location of the file `name` beside `location`.
pub(crate) fn beside(location: &Path, name: &str) -> std::path::PathBuf {
    match location.to_str().filter(|_| is_url(location)) {
        None => location.with_file_name(name),
        Some(url) => {
            let (path, query) = match url.find(['?', '#']) {
                Some(at) => url.split_at(at),
                None => (url, ""),
            };
            let folder = path.rfind('/').map_or(path, |at| &path[..=at]);
            format!("{folder}{}{query}", escaped(name)).into()
        }
    }
}

/// A file name as it stands in an address (RFC 3986, section 2).
fn escaped(name: &str) -> String {
    let byte = |b: u8| match b {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
            char::from(b).to_string()
        }
        _ => format!("%{b:02X}"),
    };
    name.bytes().map(byte).collect()
}

/// The name of the file at `location`, without query.
pub(crate) fn file_name(location: &Path) -> String {
    let all = location.to_string_lossy();
    let path = match all.find(['?', '#']).filter(|_| is_url(location)) {
        Some(at) => &all[..at],
        None => &all,
    };
    Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

impl ReadAt for Input {
    fn len_bytes(&self) -> Result<u64> {
        match self {
            Self::File(file) => file.len_bytes(),
            #[cfg(feature = "http")]
            Self::Http(file) => file.len_bytes(),
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(offset, buf),
            #[cfg(feature = "http")]
            Self::Http(file) => file.read_exact_at(offset, buf),
        }
    }

    fn long_reads_pay(&self) -> bool {
        match self {
            Self::File(file) => file.long_reads_pay(),
            #[cfg(feature = "http")]
            Self::Http(file) => file.long_reads_pay(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_of_paths_and_addresses() {
        let next = |l: &str| beside(Path::new(l), "b.uc").display().to_string();
        assert_eq!(next("a.uc"), "b.uc");
        assert_eq!(next("/x/a.uc"), "/x/b.uc");
        assert_eq!(next("http://h/x/a.uc"), "http://h/x/b.uc");
        assert_eq!(next("https://h/x/a.uc?download=true"), "https://h/x/b.uc?download=true");
        assert_eq!(file_name(Path::new("https://h/x/a.uc?q=1/2")), "a.uc");
        let odd = |l: &str| beside(Path::new(l), "b c#?%é.uc").display().to_string();
        assert_eq!(odd("/x/a.uc"), "/x/b c#?%é.uc");
        assert_eq!(odd("http://h/x/a.uc"), "http://h/x/b%20c%23%3F%25%C3%A9.uc");
        assert_eq!(file_name(Path::new("https://h/x/a.uc?download=true")), "a.uc");
        assert_eq!(file_name(Path::new("/x/a?b.uc")), "a?b.uc");
    }
}
