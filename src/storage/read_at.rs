//! Reading bytes at any position.

use std::fs::File;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{reserve_more, to_usize};

/// Bytes of a section that are asked for before any has arrived.
const FIRST_BYTES: usize = 32 << 20;

/// A source of bytes that can be read at any position: a file, a slice, HTTP ranges.
pub trait ReadAt {
    /// Length of the source in bytes.
    ///
    /// # Errors
    /// `Io`.
    fn len_bytes(&self) -> Result<u64>;

    /// Fills `buf` with the bytes that start at `offset`.
    ///
    /// # Errors
    /// `Truncated` with the exact range wanted when the source ends before it; `Io`.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Whether one long read is much cheaper than several short ones, as it is on a server: whole
    /// tensors are then read at once, up to 64 MiB. Default true; false for files and bytes in
    /// memory.
    fn long_reads_pay(&self) -> bool {
        true
    }

    /// The `len` bytes that start at `offset`, when they are in memory anyway: then they aren't
    /// copied. Nothing by default, and where the source ends before.
    fn bytes_at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let _ = (offset, len);
        None
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn bytes_at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        (**self).bytes_at(offset, len)
    }

    fn len_bytes(&self) -> Result<u64> {
        (**self).len_bytes()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_exact_at(offset, buf)
    }

    fn long_reads_pay(&self) -> bool {
        (**self).long_reads_pay()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Box<T> {
    fn bytes_at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        (**self).bytes_at(offset, len)
    }

    fn len_bytes(&self) -> Result<u64> {
        (**self).len_bytes()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_exact_at(offset, buf)
    }

    fn long_reads_pay(&self) -> bool {
        (**self).long_reads_pay()
    }
}

/// The `len` bytes at `offset`. Memory is taken as bytes arrive: the length of a file on a server
/// is no more than the server's word.
///
/// # Errors
/// `LimitExceeded`, and as [`ReadAt::read_exact_at`].
pub(crate) fn read_section(input: &impl ReadAt, offset: u64, len: u64) -> Result<Vec<u8>> {
    let len = to_usize(len)?;
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let have = bytes.len();
        let more = (len - have).min(have.max(FIRST_BYTES));
        reserve_more(&mut bytes, more)?;
        bytes.resize(have + more, 0);
        input.read_exact_at(offset + have as u64, &mut bytes[have..])?;
    }
    Ok(bytes)
}

pub(super) fn truncated(needed: Range<u64>) -> Error {
    let text = format!("input ends before bytes {}..{}", needed.start, needed.end);
    let at = needed.start;
    Error::new(ErrorKind::Truncated { needed }, text).at(at)
}

impl ReadAt for [u8] {
    fn bytes_at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset).ok()?;
        self.get(from..from.checked_add(len)?)
    }

    fn len_bytes(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self.bytes_at(offset, buf.len()) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return Err(truncated(offset..offset.saturating_add(buf.len() as u64))),
        }
        Ok(())
    }

    fn long_reads_pay(&self) -> bool {
        false
    }
}

impl ReadAt for Vec<u8> {
    fn bytes_at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.as_slice().bytes_at(offset, len)
    }

    fn len_bytes(&self) -> Result<u64> {
        self.as_slice().len_bytes()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.as_slice().read_exact_at(offset, buf)
    }

    fn long_reads_pay(&self) -> bool {
        false
    }
}

impl ReadAt for File {
    fn len_bytes(&self) -> Result<u64> {
        Ok(self.metadata().map_err(|e| Error::io("can't get the file's length", e))?.len())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        #[cfg(unix)]
        let result = std::os::unix::fs::FileExt::read_exact_at(self, buf, offset);
        #[cfg(windows)]
        let result = seek_read_exact(self, offset, buf);
        result.map_err(|e| {
            if e.kind() == std::io::ErrorKind::UnexpectedEof {
                truncated(offset..offset.saturating_add(buf.len() as u64)).with_source(e)
            } else {
                Error::io("can't read", e).at(offset)
            }
        })
    }

    fn long_reads_pay(&self) -> bool {
        false
    }
}

#[cfg(windows)]
fn seek_read_exact(file: &File, mut offset: u64, mut buf: &mut [u8]) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_read(buf, offset) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
