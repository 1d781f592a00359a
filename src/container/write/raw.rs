//! The encoding `raw`: bytes as they are, in chunks that are compressed where that pays. Carried
//! files are stored like that too.

use std::borrow::Cow;

use super::options::EncodeOptions;
use super::tensor::{EncodedTensor, check_source};
use crate::error::{Error, Result};
use crate::format::{
    CHUNK_LEN, Digest, Dtype, Encoding, FileEntry, Part, PartKind, TensorEntry, check_file_path,
};
use crate::par;

impl EncodedTensor {
    /// Keeps `bytes` as they are.
    ///
    /// # Errors
    /// `InvalidArgument` when `bytes` don't fit `dtype` and `shape`; `Malformed` for a bad name.
    pub fn raw(
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        bytes: &[u8],
        options: &EncodeOptions,
    ) -> Result<Self> {
        check_source(name, dtype, shape, bytes)?;
        let (parts, payload) = match bytes {
            [] => (vec![], vec![]),
            _ => {
                let (part, stored) = data_part(bytes, options.zstd_level)?;
                (vec![part], vec![stored])
            }
        };
        let decoded_sha256 = Digest::of(bytes);
        Ok(Self {
            entry: TensorEntry {
                name: name.to_owned(),
                dtype,
                role: options.role,
                shape: shape.to_vec(),
                decoded_sha256,
                encoding: Encoding::Raw,
                parts,
            },
            payload,
        })
    }
}

/// A carried file, ready to be written.
#[derive(Debug, Clone)]
pub struct StoredFile {
    pub(crate) entry: FileEntry,
    pub(crate) payload: Vec<Vec<u8>>,
}

impl StoredFile {
    /// Takes the bytes of a file under its relative path.
    ///
    /// # Errors
    /// `Malformed` for a path that is not plain and relative.
    pub fn new(path: &str, bytes: &[u8], zstd_level: Option<i32>) -> Result<Self> {
        check_file_path(path)?;
        let (parts, payload) = match bytes {
            [] => (vec![], vec![]),
            _ => {
                let (part, stored) = data_part(bytes, zstd_level)?;
                (vec![part], vec![stored])
            }
        };
        let entry = FileEntry {
            path: path.to_owned(),
            len: bytes.len() as u64,
            sha256: Digest::of(bytes),
            parts,
        };
        Ok(Self { entry, payload })
    }

    /// The record it will have; part offsets are zero until it is written.
    pub fn entry(&self) -> &FileEntry {
        &self.entry
    }
}

/// A data part, each chunk compressed where asked for and where it shrinks.
fn data_part(content: &[u8], zstd_level: Option<i32>) -> Result<(Part, Vec<u8>)> {
    let chunks: Vec<&[u8]> = content.chunks(CHUNK_LEN).collect();
    let stored = par::map(chunks.len(), |i| store_chunk(chunks[i], zstd_level));
    let mut part = Part::empty(PartKind::Data, 0);
    let mut all = Vec::new();
    for (chunk, stored) in chunks.into_iter().zip(stored) {
        let stored = stored?;
        part.push_chunk(chunk.len(), &stored);
        all.extend_from_slice(&stored);
    }
    Ok((part, all))
}

/// What is stored of one chunk: a zstd frame, or the chunk itself where a frame isn't shorter.
///
/// # Errors
/// `UnsupportedFeature` when compression is asked of a build without the `zstd` feature.
#[cfg(feature = "zstd")]
pub(crate) fn store_chunk(content: &[u8], zstd_level: Option<i32>) -> Result<Cow<'_, [u8]>> {
    let Some(level) = zstd_level else { return Ok(Cow::Borrowed(content)) };
    let frame = zstd::bulk::compress(content, level).map_err(|e| Error::io("zstd", e))?;
    Ok(if frame.len() < content.len() { Cow::Owned(frame) } else { Cow::Borrowed(content) })
}

/// What is stored of one chunk: the chunk itself.
///
/// # Errors
/// `UnsupportedFeature` when compression is asked for.
#[cfg(not(feature = "zstd"))]
pub(crate) fn store_chunk(content: &[u8], zstd_level: Option<i32>) -> Result<Cow<'_, [u8]>> {
    match zstd_level {
        None => Ok(Cow::Borrowed(content)),
        Some(_) => Err(Error::new(
            crate::error::ErrorKind::UnsupportedFeature,
            "zstd storage was asked for and this build lacks the `zstd` feature",
        )),
    }
}
