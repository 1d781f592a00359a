//! One pass over the stored bytes of a file: leaves of the stored root, chunks of all parts,
//! padding.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::failure::{Failure, MAX_FAILURES, add, sort_out};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::format::{
    ALIGN_BYTES, CHUNK_BYTES, CHUNK_LEN, Digest, PREAMBLE_BYTES, Part, TreeHasher,
};
use crate::memory::to_usize;
use crate::par;
use crate::progress::{Progress, step};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// Consecutive jobs of about this much memory go to a thread together.
pub(super) const GROUP_BYTES: u64 = 4 << 20;

/// Leaves that one job reads: two are hashed at a time. At least two, so that a chunk, which is no
/// longer than a leaf, reaches from one job into the next at most.
const WINDOW_BYTES: u64 = 2 * CHUNK_BYTES;
/// Memory of a job: its leaves, a chunk's frame, its content as it is decompressed and as it is
/// handed over, and failures.
const JOB_BYTES: u64 = WINDOW_BYTES + 4 * CHUNK_BYTES;
const _: () = assert!(JOB_BYTES <= 2 * GROUP_BYTES);

/// What the pass found.
pub(super) struct StoredPass {
    /// The stored root.
    pub root: Digest,
    /// Chunks that are damaged, in the order of the index.
    pub chunks: Vec<Failure>,
    /// The first padding that isn't zero.
    pub padding: Option<Failure>,
}

/// Reads the core once. Every thread has two leaves at a time, and all chunks that lie in them are
/// checked from the same bytes. Of a chunk that reaches into the next two leaves both checksums are
/// combined; only where that is a zstd frame, which must be decompressed whole, it is read again.
///
/// # Errors
/// `Io`, `Cancelled`; what is wrong with the file is no error.
///
/// # Spec
/// UC-ROOT-3, UC-PRT-6, UC-PRT-7, UC-PRT-21, UC-PRT-23 to UC-PRT-25, UC-HDR-15.
pub(super) fn check_stored<R: ReadAt + Sync>(
    pack: &Container<R>,
    budget: u64,
    progress: &dyn Progress,
) -> Result<StoredPass> {
    let core_len = pack.preamble().core_len;
    let n = to_usize(core_len.div_ceil(WINDOW_BYTES))?;
    let (gaps, chunks) = (gaps(pack), Chunks::new(pack));
    let buffers = Buffers::default();
    let job = |i: usize| {
        let from = i as u64 * WINDOW_BYTES;
        let window = from..core_len.min(from + WINDOW_BYTES);
        let len = to_usize(window.end - window.start)?;
        buffers.lend(len, |bytes| check_window(pack, &gaps, &chunks, window, bytes, progress))
    };
    let mut tree = TreeHasher::new();
    let mut padding = None;
    let mut damaged = BTreeMap::new();
    let mut pending: Option<crc32fast::Hasher> = None;
    par::each_within(
        n,
        budget,
        |_| JOB_BYTES,
        job,
        |found: Window<'_>| {
            found.leaves.into_iter().for_each(|leaf| tree.push(leaf));
            padding = padding.take().or(found.padding);
            if let Some((chunk, end)) = found.end {
                // Windows come in order, so the one before began this chunk. Were it not so, the
                // end alone would not have the chunk's checksum either.
                let mut crc = pending.take().unwrap_or_default();
                crc.combine(&end);
                let checked = pack.check_stored_crc(chunk.part, chunk.i, crc.finalize());
                let failure = checked.err().map(|e| Failure::from(&e.in_tensor(chunk.name)));
                damaged.extend(failure.map(|f| (chunk.number, f)));
            }
            pending = found.begun;
            damaged.extend(found.damaged);
            // A file may have millions.
            while damaged.len() > MAX_FAILURES {
                damaged.pop_last();
            }
        },
    )?;
    let mut failures = Vec::new();
    add(&mut failures, damaged.into_values());
    Ok(StoredPass { root: tree.root(), chunks: failures, padding })
}

/// What was found in the bytes of one job.
struct Window<'a> {
    leaves: Vec<Digest>,
    padding: Option<Failure>,
    /// By the chunk's number.
    damaged: BTreeMap<usize, Failure>,
    /// The checksum of the end of a chunk that began in the window before.
    end: Option<(Chunk<'a>, crc32fast::Hasher)>,
    /// The checksum of what is here of a chunk that goes on in the next window.
    begun: Option<crc32fast::Hasher>,
}

fn check_window<'a, R: ReadAt>(
    pack: &Container<R>,
    gaps: &[(Range<u64>, Rule)],
    chunks: &Chunks<'a>,
    window: Range<u64>,
    bytes: &mut [u8],
    progress: &dyn Progress,
) -> Result<Window<'a>> {
    let mut at = window.start;
    for leaf in bytes.chunks_mut(LEAF) {
        step(progress, 0)?;
        pack.reader().read_exact_at(at, leaf).map_err(|e| pack.locate(e))?;
        at += leaf.len() as u64;
    }
    let mut found =
        Window { leaves: vec![], padding: None, damaged: BTreeMap::new(), end: None, begun: None };
    for chunk in chunks.overlapping(&window) {
        // A window may have millions of chunks.
        step(progress, 0)?;
        let here = &bytes[within(&window, chunk.stored())?];
        let (begins, ends) =
            (chunk.stored().start >= window.start, chunk.stored().end <= window.end);
        let checked = if begins && ends {
            pack.check_stored(chunk.part, chunk.i, here)
        } else if !chunk.part.is_compressed(chunk.i) {
            let mut crc = crc32fast::Hasher::new();
            crc.update(here);
            match begins {
                true => found.begun = Some(crc),
                false => found.end = Some((chunk, crc)),
            }
            continue;
        } else if begins {
            let from = chunk.i as u64 * CHUNK_BYTES;
            let content = from..from + chunk.part.chunk_len(chunk.i);
            pack.read_part(chunk.part, content).map(drop)
        } else {
            continue;
        };
        let mut failures = vec![];
        sort_out(checked.map_err(|e| e.in_tensor(chunk.name)), &mut failures)?;
        found.damaged.extend(failures.into_iter().map(|failure| (chunk.number, failure)));
        if found.damaged.len() > MAX_FAILURES {
            found.damaged.pop_last();
        }
    }

    found.padding = check_padding(pack, gaps, &window, bytes)?;
    if window.start == 0 {
        bytes[..PREAMBLE_BYTES].copy_from_slice(&pack.preamble().rooted_bytes());
    }
    let leaves: Vec<&[u8]> = bytes.chunks(LEAF).collect();
    found.leaves = TreeHasher::leaves(&leaves);
    step(progress, bytes.len() as u64)?;
    Ok(found)
}

/// Where the bytes of a range of the file are in a window's, as far as they are.
fn within(window: &Range<u64>, range: Range<u64>) -> Result<Range<usize>> {
    let from = range.start.max(window.start) - window.start;
    Ok(to_usize(from)?..to_usize(range.end.min(window.end) - window.start)?)
}

/// The first byte of padding in a window that is not zero: one message is enough.
fn check_padding<R: ReadAt>(
    pack: &Container<R>,
    gaps: &[(Range<u64>, Rule)],
    window: &Range<u64>,
    bytes: &[u8],
) -> Result<Option<Failure>> {
    let first = gaps.partition_point(|(gap, _)| gap.end <= window.start);
    for (gap, rule) in gaps[first..].iter().take_while(|(gap, _)| gap.start < window.end) {
        let padding = within(window, gap.clone())?;
        if let Some(i) = bytes[padding.clone()].iter().position(|&b| b != 0) {
            let at = window.start + (padding.start + i) as u64;
            let e = Error::malformed(*rule, "padding is not zero");
            return Ok(Some(Failure::from(&pack.locate(e.in_part("padding").at(at)))));
        }
    }
    Ok(None)
}

/// [`CHUNK_BYTES`] in memory.
const LEAF: usize = CHUNK_LEN;
const _: () = assert!(LEAF as u64 == CHUNK_BYTES);

/// Memory for windows that goes from one job to the next, so that no pages are made for each.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn lend<T>(&self, len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = free().pop().unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let result = f(&mut buffer[..len]);
        free().push(buffer);
        result
    }
}

/// One chunk of a part.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    name: &'a str,
    part: &'a Part,
    i: usize,
    /// In the order of the index.
    number: usize,
}

impl Chunk<'_> {
    /// Its bytes in the file.
    fn stored(&self) -> Range<u64> {
        let chunk = &self.part.chunks[self.i];
        let start = self.part.offset + chunk.start;
        start..start + u64::from(chunk.stored_len)
    }
}

/// The chunks of all parts: each part by its first chunk, sorted by offset.
struct Chunks<'a>(Vec<Chunk<'a>>);

impl<'a> Chunks<'a> {
    fn new<R: ReadAt>(pack: &'a Container<R>) -> Self {
        let mut number = 0;
        let first = |(name, part): (&'a str, &'a Part)| {
            number += part.chunks.len();
            Chunk { name, part, i: 0, number: number - part.chunks.len() }
        };
        let mut parts: Vec<_> = pack.index().parts().map(first).collect();
        parts.sort_by_key(|first| first.part.offset);
        Self(parts)
    }

    /// Those with bytes in `window`.
    fn overlapping(&self, window: &Range<u64>) -> impl Iterator<Item = Chunk<'a>> {
        let Range { start, end } = *window;
        let first = self.0.partition_point(|p| p.part.offset + p.part.stored_len <= start);
        let parts = self.0[first..].iter().take_while(move |p| p.part.offset < end);
        parts.flat_map(move |p| {
            let from_part = start.saturating_sub(p.part.offset);
            let first =
                p.part.chunks.partition_point(|c| c.start + u64::from(c.stored_len) <= from_part);
            (first..p.part.chunks.len())
                .map(|i| Chunk { i, number: p.number + i, ..*p })
                .take_while(move |chunk| chunk.stored().start < end)
        })
    }
}

/// UC-PRT-21, UC-HDR-15: what must be zero, by offset.
fn gaps<R: ReadAt>(pack: &Container<R>) -> Vec<(Range<u64>, Rule)> {
    let p = pack.preamble();
    let sections = [
        (p.index_offset + p.index_len, p.manifest_offset, Rule::HDR_15),
        (p.manifest_offset + p.manifest_len, p.core_len, Rule::HDR_15),
    ];
    let parts = pack.index().parts().map(|(_, part)| {
        let end = part.offset + part.stored_len;
        (end, end.next_multiple_of(ALIGN_BYTES), Rule::PRT_21)
    });
    let all = parts.chain(sections).filter(|(from, to, _)| from < to);
    let mut all: Vec<_> = all.map(|(from, to, rule)| (from..to, rule)).collect();
    all.sort_by_key(|(gap, _)| gap.start);
    all
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::container::{EncodeOptions, EncodedTensor, PackWriter};
    use crate::format::Dtype;
    use crate::manifest::Manifest;
    use crate::memory::DEFAULT_MAX_RAM;
    use crate::progress::NoProgress;

    /// Bytes that compress, but not to nothing.
    fn noise(n: usize) -> Vec<u8> {
        let mix = |i: u32| (i.wrapping_mul(0x9e37_79b1) >> 15 ^ i).wrapping_mul(0x85eb_ca6b);
        (0..).map(|i| mix(i).to_be_bytes()[0] & 0x5b).take(n).collect()
    }

    /// A file whose chunks lie across all borders of leaves and windows, and whose parts are in
    /// another order than the index.
    fn pack() -> Vec<u8> {
        let level = cfg!(feature = "zstd").then_some(1);
        let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("starts");
        let mut manifest = Manifest::new("test");
        let tensors = [
            ("d", (3 << 20) + 77, None),
            ("c", 5, None),
            ("a", 9 << 20, level),
            ("b", 1 << 20, None),
        ];
        for (name, n, level) in tensors {
            let (bytes, shape) = (noise(n), [n as u64]);
            let options = EncodeOptions::new().with_zstd_level(level);
            let tensor = EncodedTensor::raw(name, Dtype::U8, &shape, &bytes, &options);
            writer.add_tensor(tensor.expect("encodes")).expect("fits");
            manifest.add_tensor(name, &bytes, "test");
        }
        writer.finish(&manifest.to_bytes().expect("valid")).expect("ends").1.into_inner()
    }

    /// What each chunk by itself says, in the order of the index, and the root leaf by leaf.
    fn one_by_one(pack: &Container<Vec<u8>>) -> (Vec<Failure>, Digest) {
        let mut failures = vec![];
        for (name, part) in pack.index().parts() {
            for i in 0..part.chunks.len() {
                let from = i as u64 * CHUNK_BYTES;
                let read = pack.read_part(part, from..from + part.chunk_len(i));
                failures.extend(read.err().map(|e| Failure::from(&e.in_tensor(name))));
            }
        }
        let mut core = pack.reader()[..to_usize(pack.preamble().core_len).expect("small")].to_vec();
        core[..PREAMBLE_BYTES].copy_from_slice(&pack.preamble().rooted_bytes());
        let mut tree = TreeHasher::new();
        core.chunks(LEAF).for_each(|leaf| tree.push(TreeHasher::leaf(leaf)));
        (failures, tree.root())
    }

    #[test]
    fn damage_anywhere_is_found_as_chunk_by_chunk() {
        let whole = pack();
        let p = Container::open(whole.clone()).expect("valid").preamble().clone();
        let end = to_usize(p.index_offset).expect("small");
        assert!(whole.len() > 6 << 20, "{} bytes are too few windows", whole.len());
        let pack = Container::open(whole.clone()).expect("valid");
        let crossing = |zstd: bool| {
            let all = Chunks::new(&pack).overlapping(&(0..p.core_len)).collect::<Vec<_>>();
            all.iter().any(|c| {
                let Range { start, end } = c.stored();
                c.part.is_compressed(c.i) == zstd && start / WINDOW_BYTES < (end - 1) / WINDOW_BYTES
            })
        };
        assert!(crossing(false) && crossing(true) == cfg!(feature = "zstd"));
        let borders = (1..end.div_ceil(LEAF)).flat_map(|i| [i * LEAF - 1, i * LEAF]);
        let offsets: Vec<usize> = (256..end).step_by(1_443_977).chain(borders).collect();
        let one = offsets.iter().map(|&at| vec![at]);
        for damage in one.chain([vec![], offsets.clone()]) {
            let mut bytes = whole.clone();
            damage.iter().for_each(|&at| bytes[at] ^= 4);
            let pack = Container::open(bytes).expect("only payload differs").with_name("x.uc");
            let (failures, root) = one_by_one(&pack);
            let found = check_stored(&pack, DEFAULT_MAX_RAM, &NoProgress).expect("can be read");
            assert_eq!((found.chunks, found.root), (failures, root), "{damage:?}");
        }
    }

    #[test]
    fn the_first_padding_that_is_not_zero_is_named() {
        let whole = pack();
        let pack = Container::open(whole.clone()).expect("valid");
        let gaps: Vec<_> = gaps(&pack).into_iter().map(|(gap, _)| gap.end - 1).collect();
        assert!(gaps.len() > 3);
        for first in 0..gaps.len() {
            let mut bytes = whole.clone();
            for &at in &gaps[first..] {
                bytes[to_usize(at).expect("small")] = 1;
            }
            let pack = Container::open(bytes).expect("padding is checked later");
            let found = check_stored(&pack, DEFAULT_MAX_RAM, &NoProgress).expect("can be read");
            assert_eq!(found.padding.and_then(|f| f.offset_bytes), Some(gaps[first]));
            assert_eq!(found.chunks, []);
        }
    }

    /// Chunks of one byte that say they are frames: two million of them in a window, all damaged.
    #[test]
    #[cfg(not(feature = "zstd"))]
    fn failures_of_one_window_are_bounded() {
        const N: usize = 2 << 20;
        let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("starts");
        let options = EncodeOptions::new();
        let mut tensor = EncodedTensor::raw("a", Dtype::U8, &[1], &[7], &options).expect("encodes");
        tensor.entry.shape = vec![(N as u64) << 20];
        let offset = tensor.entry.parts[0].offset;
        let mut part = Part::empty(crate::format::PartKind::Data, offset);
        (0..N).for_each(|_| part.push_chunk(1 << 20, &[7]));
        tensor.entry.parts = vec![part];
        tensor.payload = vec![vec![7; N]];
        writer.add_tensor(tensor).expect("fits");
        let mut manifest = Manifest::new("test");
        manifest.add_tensor("a", &[7], "test");
        let file = writer.finish(&manifest.to_bytes().expect("valid")).expect("ends").1;
        let pack = Container::open(file.into_inner()).expect("valid");
        let (gaps, chunks) = (gaps(&pack), Chunks::new(&pack));
        let mut bytes = vec![0; 2 * LEAF];
        let window = 0..WINDOW_BYTES.min(pack.preamble().core_len);
        let found = check_window(&pack, &gaps, &chunks, window, &mut bytes, &NoProgress);
        assert_eq!(found.expect("can be read").damaged.len(), MAX_FAILURES);
    }
}
