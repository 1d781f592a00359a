//! Chunks of a part: their checksums, and their content where it is stored as a zstd frame.

use std::ops::Range;

#[cfg(not(feature = "zstd"))]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
use crate::format::{Part, Storage};
use crate::memory::{reserve_more, to_usize};
use crate::rule::Rule;

impl Part {
    /// Checks the stored bytes of chunks against their checksums. Gives the content where it isn't
    /// stored as it is.
    ///
    /// # Errors
    /// `Integrity`, `Malformed` (UC-PRT-7, UC-PRT-23 to UC-PRT-25), `UnsupportedFeature`.
    pub(super) fn check_chunks(
        &self,
        chunks: Range<usize>,
        stored: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let mut content = (self.storage == Storage::Zstd).then(Vec::new);
        let mut rest = stored;
        for i in chunks {
            let (bytes, tail) = rest.split_at(self.chunks[i].stored_len as usize);
            self.check_chunk_crc(i, crc32fast::hash(bytes))?;
            if let Some(content) = &mut content {
                if self.is_compressed(i) {
                    let len = to_usize(self.chunk_len(i))?;
                    reserve_more(content, len)?;
                    content.extend(inflate(bytes, len).map_err(|e| self.in_chunk(i, e))?);
                } else {
                    content.extend_from_slice(bytes);
                }
            }
            rest = tail;
        }
        Ok(content)
    }

    /// Compares the checksum of a chunk's stored bytes.
    ///
    /// # Errors
    /// `Integrity`.
    pub(super) fn check_chunk_crc(&self, chunk: usize, found: u32) -> Result<()> {
        compare_crc(found, self.chunks[chunk].crc32, Rule::PRT_6)
            .map_err(|e| self.in_chunk(chunk, e))
    }

    /// Whether a chunk is a zstd frame: one that doesn't shrink is stored as it is.
    pub(crate) fn is_compressed(&self, chunk: usize) -> bool {
        let stored_len = u64::from(self.chunks[chunk].stored_len);
        self.storage == Storage::Zstd && stored_len != self.chunk_len(chunk)
    }

    fn in_chunk(&self, chunk: usize, e: Error) -> Error {
        Error::new(e.kind().clone(), format!("chunk {chunk}: {}", e.message()))
            .at(self.offset + self.chunks[chunk].start)
    }
}

/// Compares the checksum of a section or a part with the one that the file gives.
///
/// # Errors
/// `Integrity`.
pub(super) fn check_crc(bytes: &[u8], expected: u32, rule: Rule) -> Result<()> {
    compare_crc(crc32fast::hash(bytes), expected, rule)
}

fn compare_crc(found: u32, expected: u32, rule: Rule) -> Result<()> {
    if found != expected {
        return Err(Error::integrity(format!(
            "checksum is {found:08x}, the file says {expected:08x} ({rule})"
        )));
    }
    Ok(())
}

#[cfg(feature = "zstd")]
fn inflate(frame: &[u8], len: usize) -> Result<Vec<u8>> {
    check_frame_header(frame)?;
    // The library would also take several frames, and frames that are skipped.
    if zstd::zstd_safe::find_frame_compressed_size(frame).ok() != Some(frame.len()) {
        return Err(Error::malformed(Rule::PRT_7, "chunk is not one zstd frame"));
    }
    // The capacity bounds what a hostile frame can produce: at most 1 MiB.
    match zstd::bulk::decompress(frame, len) {
        Ok(bytes) if bytes.len() == len => Ok(bytes),
        Ok(bytes) => Err(Error::malformed(
            Rule::PRT_23,
            format!("zstd frame holds {} bytes, expected {len}", bytes.len()),
        )),
        Err(e) => Err(Error::malformed(Rule::PRT_23, format!("zstd frame: {e}")).with_source(e)),
    }
}

/// What the library is less strict about than UC-PRT-7, UC-PRT-24 and UC-PRT-25.
#[cfg(feature = "zstd")]
fn check_frame_header(frame: &[u8]) -> Result<()> {
    // 8 MiB, which RFC 8878 asks every decoder for.
    const MAX_WINDOW: u64 = 8 << 20;
    let Some(([magic @ .., descriptor], rest)) = frame.split_first_chunk::<5>() else {
        return Err(Error::malformed(Rule::PRT_7, "chunk is shorter than a frame header"));
    };
    if *magic != [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(Error::malformed(Rule::PRT_7, "chunk is not one zstd frame"));
    }
    // A frame of a single segment has its content as window.
    let single_segment = descriptor & 0x20 != 0;
    if let Some(&window) = rest.first().filter(|_| !single_segment) {
        let base = 1u64 << (10 + (window >> 3));
        let size = base + base / 8 * u64::from(window & 7);
        if size > MAX_WINDOW {
            return Err(Error::malformed(Rule::PRT_25, format!("zstd frame needs {size} bytes")));
        }
    }
    // Behind the window, little-endian; 0 means that there is none.
    let dictionary = rest.get(usize::from(!single_segment)..).unwrap_or_default();
    let bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    if dictionary.iter().take(bytes).any(|&b| b != 0) {
        return Err(Error::malformed(Rule::PRT_24, "zstd frame needs a dictionary"));
    }
    Ok(())
}

#[cfg(not(feature = "zstd"))]
fn inflate(_: &[u8], _: usize) -> Result<Vec<u8>> {
    Err(Error::new(
        ErrorKind::UnsupportedFeature,
        "part is stored as zstd and this build lacks the `zstd` feature",
    ))
}
