//! One pass over a source before anything is written: digests, and values that planes can't hold.

use sha2::{Digest as _, Sha256};

use super::checkpoint::{PIECE_BYTES, Source, WeightsFile};
use super::files::FoundFile;
use crate::codec::read_f32;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, Dtype};
use crate::manifest::FileRole;
use crate::memory::to_usize;
use crate::par;
use crate::progress::{Progress, step};
use crate::storage::ReadAt;

/// Bytes of a carried file that are read at a time.
const FILE_BYTES: u64 = 1 << 20;

/// What was found out about the bytes of a tensor or a carried file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scan {
    pub sha256: Digest,
    /// CRC-32 of the bytes, to notice cheaply that they changed since.
    pub crc32: u32,
    /// First element of a float tensor that isn't a finite binary32 number.
    pub odd: Option<u64>,
}

/// What was found out about a source.
#[derive(Debug)]
pub(crate) struct Scans {
    /// By tensor.
    pub tensors: Vec<Scan>,
    /// By file; nothing for those that are left out. Of weights files the SHA-256 only, where it
    /// was asked for.
    pub files: Vec<Option<Scan>>,
}

/// A scan in progress.
#[derive(Debug, Clone, Default)]
struct Open {
    sha: Sha256,
    crc: crc32fast::Hasher,
    odd: Option<u64>,
    at: u64,
    /// The start of an element that the last piece cut.
    cut: Vec<u8>,
}

impl Open {
    fn update(&mut self, bytes: &[u8], dtype: Option<Dtype>) {
        self.sha.update(bytes);
        self.crc.update(bytes);
        if let Some(dtype) = dtype.filter(|d| self.odd.is_none() && d.has_planes()) {
            self.look(bytes, dtype);
        }
        self.at += bytes.len() as u64;
    }

    /// Looks for odd elements. Data may start at any offset of its file, so pieces may cut
    /// elements.
    fn look(&mut self, mut bytes: &[u8], dtype: Dtype) {
        let size = usize::try_from(dtype.bits() / 8).expect("at most 8");
        let mut first = (self.at - self.cut.len() as u64) / size as u64;
        if !self.cut.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(size - self.cut.len()));
            self.cut.extend_from_slice(now);
            if self.cut.len() < size {
                return;
            }
            self.odd = first_odd(&self.cut, dtype).map(|_| first);
            self.cut.clear();
            first += 1;
            bytes = later;
        }
        let (whole, rest) = bytes.split_at(bytes.len() / size * size);
        self.odd = self.odd.or_else(|| first_odd(whole, dtype).map(|i| first + i));
        self.cut.extend_from_slice(rest);
    }

    fn finish(self) -> Scan {
        let sha256 = Digest(self.sha.finalize().into());
        Scan { sha256, crc32: self.crc.finalize(), odd: self.odd }
    }
}

/// Reads every tensor and, `with_files`, everything else that will be in the pack, each byte once.
///
/// # Errors
/// `Io`, `Truncated` for a file that has become shorter, `Cancelled`.
pub(crate) fn scan(
    source: &Source,
    with_files: bool,
    budget: u64,
    progress: &dyn Progress,
) -> Result<Scans> {
    let weights: Vec<_> = source.files.iter().filter(|f| f.role == FileRole::Weights).collect();
    // By file, in the order of the data: what is read in a row is fastest to read.
    let mut tensors: Vec<Vec<usize>> = vec![vec![]; weights.len()];
    for (i, t) in source.tensors().iter().enumerate() {
        tensors[t.handle].push(i);
    }
    for of_file in &mut tensors {
        of_file.sort_by_key(|&i| (source.tensors()[i].offset, source.tensors()[i].len));
    }
    let scan_weights =
        |handle: usize| scan_weights(source, handle, &tensors[handle], with_files, progress);
    let carried = |f: &FoundFile| match f.role {
        FileRole::Carried if with_files => scan_file(f, progress).map(Some),
        _ => Ok(None),
    };
    let found = par::map_within(weights.len(), budget, |_| PIECE_BYTES, scan_weights)?;
    let carried = |i: usize| carried(&source.files[i]);
    let mut files = par::map_within(source.files.len(), budget, |_| FILE_BYTES, carried)?;
    let mut all: Vec<Option<Scan>> = vec![None; source.tensors().len()];
    let weights_files =
        (0..source.files.len()).filter(|&i| source.files[i].role == FileRole::Weights);
    for ((file_index, of_file), found) in weights_files.zip(&tensors).zip(found) {
        let (file, scans) = found;
        files[file_index] = file;
        of_file.iter().zip(scans).for_each(|(&i, scan)| all[i] = Some(scan));
    }
    let tensors = all.into_iter().map(|s| s.expect("each tensor is in a file")).collect();
    Ok(Scans { tensors, files })
}

/// One weights file: the digest of the whole, and its tensors.
fn scan_weights(
    source: &Source,
    handle: usize,
    tensors: &[usize],
    with_file: bool,
    progress: &dyn Progress,
) -> Result<(Option<Scan>, Vec<Scan>)> {
    let WeightsFile { path, file, len, head_len, head_crc32 } = source.handle(handle);
    let (len, head_len) = (*len, *head_len);
    let mut head = crc32fast::Hasher::new();
    let mut whole = Sha256::new();
    let mut open = Open::default();
    let mut done = Vec::with_capacity(tensors.len());
    let mut buffer = vec![0; to_usize(PIECE_BYTES.min(len))?];
    let mut at = 0;
    while at < len {
        let piece = &mut buffer[..to_usize(PIECE_BYTES.min(len - at))?];
        file.read_exact_at(at, piece).map_err(|e| e.in_file(path))?;
        let end = at + piece.len() as u64;
        let piece = &*piece;
        head.update(&piece[..to_usize(head_len.clamp(at, end) - at)?]);
        let feed = || -> Result<()> {
            let mut from = at;
            while let Some(t) = tensors.get(done.len()).map(|&i| &source.tensors()[i]) {
                let tensor_end = t.offset + t.len;
                let (start, stop) = (from.max(t.offset), end.min(tensor_end));
                if start < stop {
                    let bytes = &piece[to_usize(start - at)?..to_usize(stop - at)?];
                    open.update(bytes, Some(t.dtype));
                    step(progress, bytes.len() as u64)?;
                }
                if tensor_end > end {
                    break;
                }
                done.push(std::mem::take(&mut open).finish());
                from = tensor_end;
            }
            Ok(())
        };
        // Two hashes of the same bytes: a thread for each.
        let hash = || {
            if with_file {
                whole.update(piece)
            }
        };
        par::join(hash, feed).1?;
        at = end;
    }
    // Where the tensors are was read when the source was opened.
    let now = file.len_bytes().map_err(|e| e.in_file(path))?;
    if head.finalize() != *head_crc32 || now != len || done.len() != tensors.len() {
        return Err(Error::source_file("changed while it was read").in_file(path));
    }
    let digest = Digest(whole.finalize().into());
    Ok((with_file.then_some(Scan { sha256: digest, crc32: 0, odd: None }), done))
}

/// One carried file.
fn scan_file(file: &FoundFile, progress: &dyn Progress) -> Result<Scan> {
    let in_file = |e: Error| e.in_file(&file.path);
    let changed = || Error::source_file("changed while it was read");
    let input = file.open("can't read")?;
    let unchanged = || match input.len_bytes() {
        Ok(len) if len == file.bytes => Ok(()),
        Ok(_) => Err(changed()),
        Err(e) => Err(e),
    };
    let mut open = Open::default();
    let mut buffer = vec![0; to_usize(FILE_BYTES.min(file.bytes))?];
    unchanged().map_err(in_file)?;
    while open.at < file.bytes {
        step(progress, 0)?;
        let piece = &mut buffer[..to_usize(FILE_BYTES.min(file.bytes - open.at))?];
        input.read_exact_at(open.at, piece).map_err(|e| match e.kind() {
            ErrorKind::Truncated { .. } => in_file(changed()),
            _ => in_file(e),
        })?;
        open.update(piece, None);
    }
    unchanged().map_err(in_file)?;
    step(progress, 0)?;
    Ok(open.finish())
}

/// Index of the first element that isn't a finite binary32 number.
fn first_odd(bytes: &[u8], dtype: Dtype) -> Option<u64> {
    let found = match dtype {
        Dtype::F16 => bytes.chunks_exact(2).position(|b| b[1] & 0x7c == 0x7c),
        Dtype::Bf16 => bytes.chunks_exact(2).position(|b| b[1] & 0x7f == 0x7f && b[0] & 0x80 != 0),
        Dtype::F32 => bytes.chunks_exact(4).position(|b| b[3] & 0x7f == 0x7f && b[2] & 0x80 != 0),
        _ => {
            let mut values = Vec::with_capacity(bytes.len() / 8);
            read_f32(bytes, dtype, &mut values);
            values.iter().position(|v| !v.is_finite())
        }
    };
    found.map(|i| i as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_elements_are_found_wherever_pieces_cut() {
        for (dtype, one, odd) in [
            (Dtype::Bf16, vec![0x80, 0x3f], vec![0x80, 0x7f]),
            (Dtype::F16, vec![0, 0x3c], vec![1, 0x7c]),
            (Dtype::F32, vec![0, 0, 0x80, 0x3f], vec![1, 0, 0x80, 0xff]),
            (Dtype::F64, vec![0, 0, 0, 0, 0, 0, 0xf0, 0x3f], vec![0, 0, 0, 0, 0, 0, 0xf0, 0x7f]),
        ] {
            for at in 0..12usize {
                let bytes: Vec<u8> =
                    (0..12).flat_map(|i| if i == at { odd.clone() } else { one.clone() }).collect();
                for cut in 1..bytes.len() {
                    let mut open = Open::default();
                    bytes.chunks(cut).for_each(|piece| open.update(piece, Some(dtype)));
                    let scan = open.finish();
                    assert_eq!(scan.odd, Some(at as u64), "{dtype} {at} {cut}");
                    assert_eq!(scan.sha256, Digest::of(&bytes));
                }
            }
        }
    }
}
