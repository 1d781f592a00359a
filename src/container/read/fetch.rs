//! Stored bytes of tensors on their way to the decoder: read, checked, cut.

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::open::Container;
use crate::error::{Error, Result};
use crate::format::{ALIGN_BYTES, CHUNK_BYTES, Part, PartKind, Storage};
use crate::memory::{reserve, to_usize};
use crate::storage::ReadAt;

/// Stored bytes of a tensor that are read at once and kept while it goes by in tiles. Above this,
/// each part is read chunk by chunk.
pub(crate) const WHOLE_BYTES: u64 = 64 << 20;

/// Bytes that were read, or that are in memory anyway.
#[derive(Debug, Clone)]
enum Buffer<'a> {
    Read(Arc<Vec<u8>>),
    There(&'a [u8]),
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::There(bytes) => bytes,
        }
    }
}

/// Bytes of a part, perhaps in a buffer with others that were read at once.
#[derive(Debug, Clone)]
pub(crate) struct Piece<'a> {
    buffer: Buffer<'a>,
    range: Range<usize>,
}

impl Piece<'_> {
    fn own(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { buffer: Buffer::Read(Arc::new(bytes)), range }
    }

    /// Bytes `range` of this piece.
    fn slice(&self, range: Range<usize>) -> Self {
        let range = self.range.start + range.start..self.range.start + range.end;
        Self { buffer: self.buffer.clone(), range }
    }
}

impl Deref for Piece<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl From<Piece<'_>> for Vec<u8> {
    fn from(piece: Piece<'_>) -> Self {
        let Piece { buffer, range } = piece;
        let shared = match buffer {
            Buffer::There(bytes) => return bytes[range].to_vec(),
            Buffer::Read(shared) => shared,
        };
        match Arc::try_unwrap(shared) {
            Ok(mut bytes) => {
                bytes.truncate(range.end);
                bytes.drain(..range.start);
                bytes
            }
            Err(shared) => shared[range].to_vec(),
        }
    }
}

/// The chunks of a part that hold some of its content.
struct Covering<'a> {
    part: &'a Part,
    content: Range<u64>,
    chunks: Range<usize>,
    /// Where they are stored in the file.
    stored: Range<u64>,
}

impl<'a> Covering<'a> {
    fn new(part: &'a Part, content: Range<u64>) -> Result<Self> {
        if content.end > part.len || content.start > content.end {
            return Err(Error::argument(format!(
                "bytes {content:?} of a part of {} bytes",
                part.len
            )));
        }
        if content.is_empty() {
            return Ok(Self { part, content, chunks: 0..0, stored: part.offset..part.offset });
        }
        let first = to_usize(content.start / CHUNK_BYTES)?;
        let last = to_usize((content.end - 1) / CHUNK_BYTES)?;
        let end = &part.chunks[last];
        let stored = part.offset + part.chunks[first].start
            ..part.offset + end.start + u64::from(end.stored_len);
        Ok(Self { part, content, chunks: first..last + 1, stored })
    }

    /// Checks the chunks, which stand in `buffer` from `base` on, and cuts the content out of them.
    fn piece<'b>(&self, buffer: &Buffer<'b>, base: u64) -> Result<Piece<'b>> {
        let from = to_usize(self.stored.start - base)?;
        let stored = &buffer[from..][..to_usize(self.stored.end - self.stored.start)?];
        let plain = self.part.check_chunks(self.chunks.clone(), stored)?;
        if matches!(self.part.storage, Storage::Unknown(_)) || self.content.is_empty() {
            // Of a storage that isn't known the checksums are all that can be said.
            return Ok(Piece::own(vec![]));
        }
        let all = match plain {
            None => Piece { buffer: buffer.clone(), range: from..from + stored.len() },
            Some(content) => Piece::own(content),
        };
        let skip = to_usize(self.content.start - self.chunks.start as u64 * CHUNK_BYTES)?;
        Ok(all.slice(skip..skip + to_usize(self.content.end - self.content.start)?))
    }
}

impl<R: ReadAt> Container<R> {
    /// Bytes of the content of several parts. The chunks that hold them are read and checked; parts
    /// that lie side by side, as those of one tensor do, are read at once.
    ///
    /// # Errors
    /// `Integrity` where a chunk disagrees with its checksum, `Malformed` (UC-PRT-7,
    /// UC-PRT-23 to UC-PRT-25) for a damaged zstd frame, `UnsupportedFeature` for zstd without the
    /// `zstd` feature, `Truncated`, `Io`.
    pub(crate) fn read_parts(&self, wants: &[(&Part, Range<u64>)]) -> Result<Vec<Piece<'_>>> {
        let covering: Vec<_> = wants
            .iter()
            .map(|(part, range)| Covering::new(part, range.clone()))
            .collect::<Result<_>>()?;
        let mut pieces = Vec::with_capacity(wants.len());
        let mut rest = &covering[..];
        while let Some(first) = rest.first() {
            let mut end = first.stored.end;
            let mut n = 1;
            for next in &rest[1..] {
                let near = end..end.saturating_add(ALIGN_BYTES);
                if !near.contains(&next.stored.start) || next.stored.is_empty() {
                    break;
                }
                end = next.stored.end;
                n += 1;
            }
            let base = first.stored.start;
            let len = to_usize(end - base)?;
            let buffer = match self.reader().bytes_at(base, len) {
                Some(bytes) if bytes.len() == len => Buffer::There(bytes),
                _ => {
                    let mut bytes = reserve(len)?;
                    bytes.resize(len, 0);
                    if len > 0 {
                        self.reader()
                            .read_exact_at(base, &mut bytes)
                            .map_err(|e| self.locate(e))?;
                    }
                    Buffer::Read(Arc::new(bytes))
                }
            };
            for c in &rest[..n] {
                let locate = |e: Error| self.locate(e.in_part(c.part.kind.name()));
                pieces.push(c.piece(&buffer, base).map_err(locate)?);
            }
            rest = &rest[n..];
        }
        Ok(pieces)
    }

    /// The bytes `range` of a part's content.
    ///
    /// # Errors
    /// As [`Container::read_parts`].
    pub(crate) fn read_part(&self, part: &Part, range: Range<u64>) -> Result<Vec<u8>> {
        let piece = self.read_parts(&[(part, range)])?.pop();
        Ok(piece.map(Vec::from).unwrap_or_default())
    }
}

impl<R: ReadAt> Container<R> {
    /// Checks the stored bytes of one chunk.
    ///
    /// # Errors
    /// As [`Container::read_parts`], but for reading.
    pub(crate) fn check_stored(&self, part: &Part, chunk: usize, stored: &[u8]) -> Result<()> {
        let checked = part.check_chunks(chunk..chunk + 1, stored);
        checked.map(drop).map_err(|e| self.locate(e.in_part(part.kind.name())))
    }

    /// As [`Container::check_stored`], of a chunk that is stored as it is, by its checksum.
    ///
    /// # Errors
    /// `Integrity`.
    pub(crate) fn check_stored_crc(&self, part: &Part, chunk: usize, found: u32) -> Result<()> {
        let checked = part.check_chunk_crc(chunk, found);
        checked.map_err(|e| self.locate(e.in_part(part.kind.name())))
    }

    /// The stored bytes of one chunk, compared with their checksum.
    ///
    /// # Errors
    /// As [`Container::read_parts`].
    #[cfg(feature = "checkpoints")]
    pub(crate) fn read_stored(&self, part: &Part, chunk: usize) -> Result<Vec<u8>> {
        let locate = |e: Error| self.locate(e.in_part(part.kind.name()));
        let listed = &part.chunks[chunk];
        let mut bytes = vec![0; listed.stored_len as usize];
        self.reader().read_exact_at(part.offset + listed.start, &mut bytes).map_err(locate)?;
        self.check_stored(part, chunk, &bytes)?;
        Ok(bytes)
    }
}

/// Where the decoder gets the stored rows of one tensor from.
pub(crate) enum Rows<'a, R> {
    /// Reads what is asked for.
    Direct(&'a Container<R>),
    /// Has whole parts at hand.
    Whole(Vec<(PartKind, Piece<'a>)>),
    /// Goes forward through the parts and keeps one chunk for each plane count of each part, so
    /// that no chunk is read twice.
    Forward(&'a Container<R>, HashMap<(PartKind, u8), (usize, Piece<'a>)>),
}

/// Bytes of a part that belong to rows of one native plane count.
pub(crate) struct Want<'a> {
    pub part: &'a Part,
    pub native: u8,
    pub range: Range<u64>,
}

impl<'a, R: ReadAt> Rows<'a, R> {
    /// Reads whole parts.
    pub(crate) fn whole(container: &'a Container<R>, parts: &[&'a Part]) -> Result<Self> {
        let wants: Vec<_> = parts.iter().map(|p| (*p, 0..p.len)).collect();
        let kinds = parts.iter().map(|p| p.kind);
        Ok(Self::Whole(kinds.zip(container.read_parts(&wants)?).collect()))
    }

    /// # Errors
    /// As [`Container::read_parts`].
    pub(crate) fn get(&mut self, wants: &[Want<'_>]) -> Result<Vec<Piece<'a>>> {
        match self {
            Self::Direct(container) => {
                let wants: Vec<_> = wants.iter().map(|w| (w.part, w.range.clone())).collect();
                container.read_parts(&wants)
            }
            Self::Whole(parts) => wants
                .iter()
                .map(|w| {
                    let part = parts.iter().find(|(kind, _)| *kind == w.part.kind);
                    let (_, piece) = part.ok_or_else(|| Error::argument("part was not read"))?;
                    Ok(piece.slice(to_usize(w.range.start)?..to_usize(w.range.end)?))
                })
                .collect(),
            Self::Forward(container, chunks) => {
                wants.iter().map(|w| forward(container, chunks, w)).collect()
            }
        }
    }
}

fn forward<'a, R: ReadAt>(
    container: &'a Container<R>,
    at_hand: &mut HashMap<(PartKind, u8), (usize, Piece<'a>)>,
    want: &Want<'_>,
) -> Result<Piece<'a>> {
    let mut joined: Option<Vec<u8>> = None;
    let mut from = want.range.start;
    while from < want.range.end {
        let i = to_usize(from / CHUNK_BYTES)?;
        let start = i as u64 * CHUNK_BYTES;
        let key = (want.part.kind, want.native);
        let chunk = match at_hand.get(&key) {
            Some((j, chunk)) if *j == i => chunk.clone(),
            _ => {
                let range = start..start + want.part.chunk_len(i);
                let chunk = container.read_parts(&[(want.part, range)])?.remove(0);
                at_hand.insert(key, (i, chunk.clone()));
                chunk
            }
        };
        let to = want.range.end.min(start + CHUNK_BYTES);
        let piece = chunk.slice(to_usize(from - start)?..to_usize(to - start)?);
        if from == want.range.start && to == want.range.end {
            return Ok(piece);
        }
        joined.get_or_insert_default().extend_from_slice(&piece);
        from = to;
    }
    Ok(Piece::own(joined.unwrap_or_default()))
}
