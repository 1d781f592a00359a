//! From source bytes to a tensor record with its parts, ready to be written.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

use super::tile::TileEncoder;
use crate::codec::{Levels, PlaneCounts, PlaneLayout, RunBytes, RunDecoder};
use crate::error::{Error, Result};
use crate::format::{
    Digest, Dtype, Encoding, FileEntry, LevelsEntry, Part, PartKind, Role, TensorEntry,
    check_file_path, check_name, to_usize,
};
use crate::par;

/// Weights that one thread encodes at a time.
const TILE_WEIGHTS: usize = 1 << 16;
/// Content of a chunk (UC-PRT-2).
const CHUNK_LEN: usize = 1 << 20;

/// How a tensor is encoded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// Planes of every row, 3 to 8. Default 5.
    pub planes: u8,
    /// Consecutive columns that share a step: 16, 32, 64, 128, 256, or 0 for whole rows. Default 32.
    pub group: u32,
    /// How many leading dimensions make up the rows. Default 1.
    pub row_dims: u8,
    /// zstd level for raw parts; `None` stores them plain. Default `None`.
    pub zstd_level: Option<i32>,
    /// What the tensor is for. Default [`Role::Other`].
    pub role: Role,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { planes: 5, group: 32, row_dims: 1, zstd_level: None, role: Role::Other }
    }
}

impl EncodeOptions {
    /// Five planes, groups of 32, rows from the first dimension, raw parts plain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`EncodeOptions::planes`].
    #[must_use]
    pub fn with_planes(mut self, planes: u8) -> Self {
        self.planes = planes;
        self
    }

    /// Sets [`EncodeOptions::group`].
    #[must_use]
    pub fn with_group(mut self, group: u32) -> Self {
        self.group = group;
        self
    }

    /// Sets [`EncodeOptions::row_dims`].
    #[must_use]
    pub fn with_row_dims(mut self, row_dims: u8) -> Self {
        self.row_dims = row_dims;
        self
    }

    /// Sets [`EncodeOptions::zstd_level`].
    #[must_use]
    pub fn with_zstd_level(mut self, level: Option<i32>) -> Self {
        self.zstd_level = level;
        self
    }

    /// Sets [`EncodeOptions::role`].
    #[must_use]
    pub fn with_role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}

/// A tensor that is encoded but not yet written: its record and the stored bytes of its parts.
#[derive(Debug, Clone)]
pub struct EncodedTensor {
    pub(crate) entry: TensorEntry,
    pub(crate) payload: Vec<Vec<u8>>,
}

/// What a `planes` tensor stores, made by an encoder of the caller's.
#[derive(Debug, Clone)]
pub struct PlaneParts {
    /// How many leading dimensions make up the rows.
    pub row_dims: u8,
    /// Consecutive columns that share a step, or 0.
    pub group: u32,
    /// Planes of each row.
    pub counts: PlaneCounts,
    /// Level tables by native count: 0 for the default, n for the n-th of the writer's tables.
    pub level_ids: [u16; 6],
    /// bfloat16 scales in storage order.
    pub scales: Vec<u8>,
    /// Step indices in storage order.
    pub steps: Vec<u8>,
    /// Planes, most significant first.
    pub planes: Vec<Vec<u8>>,
}

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

    /// Says that the tensor has the bytes of `target`.
    ///
    /// # Errors
    /// `Malformed` for a bad name.
    pub fn alias(name: &str, target: &Self) -> Result<Self> {
        Self::alias_of(name, &target.entry)
    }

    pub(crate) fn alias_of(name: &str, target: &TensorEntry) -> Result<Self> {
        check_name(name)?;
        Ok(Self {
            entry: TensorEntry {
                name: name.to_owned(),
                encoding: Encoding::Alias { target: target.name.clone() },
                parts: vec![],
                ..target.clone()
            },
            payload: vec![],
        })
    }

    /// Quantizes a float tensor to planes with the spec's default level tables.
    ///
    /// Rows are encoded in parallel; the result depends on `bytes` and `options` alone.
    ///
    /// # Errors
    /// `InvalidArgument` for a type without planes, values that are not finite binary32 numbers, or
    /// options out of range; `Malformed` for a bad name or shape.
    pub fn planes(
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        bytes: &[u8],
        options: &EncodeOptions,
    ) -> Result<Self> {
        check_source(name, dtype, shape, bytes)?;
        let in_tensor = |e: Error| e.in_tensor(name);
        let encoder = TileEncoder::new(dtype, shape, options).map_err(in_tensor)?;
        let rows = to_usize(encoder.layout.rows)?;
        let row_bytes = encoder.row_bytes()?;
        let tile_rows = encoder.tile_rows(TILE_WEIGHTS)?;
        let tiles = par::map(rows.div_ceil(tile_rows), |i| {
            let from = i * tile_rows;
            let to = rows.min(from + tile_rows);
            encoder.encode(from, &bytes[from * row_bytes..to * row_bytes])
        });
        let mut sha = Sha256::new();
        let mut entry = encoder.entry(name, shape, options.role)?;
        let mut payload: Vec<Vec<u8>> = vec![Vec::new(); entry.parts.len()];
        for tile in tiles {
            let tile = tile.map_err(in_tensor)?;
            sha.update(&tile.decoded);
            payload.iter_mut().zip(tile.pieces).for_each(|(all, piece)| all.extend(piece));
        }
        entry.decoded_sha256 = Digest(sha.finalize().into());
        for (part, bytes) in entry.parts.iter_mut().zip(&payload) {
            *part = whole_part(part.kind, bytes);
        }
        Ok(Self { entry, payload })
    }

    /// Takes planes made by another encoder. `levels` are the writer's tables
    /// ([`PackWriter::levels`](super::PackWriter::levels)).
    ///
    /// # Errors
    /// `Malformed` or `InvalidArgument` where a reader would refuse the tensor.
    pub fn from_planes(
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        role: Role,
        parts: PlaneParts,
        levels: &[LevelsEntry],
    ) -> Result<Self> {
        check_name(name)?;
        if !dtype.has_planes() || dtype.tensor_bytes(shape).is_none() {
            return Err(Error::argument(format!("{dtype} {shape:?} as planes")).in_tensor(name));
        }
        let layout = PlaneLayout::new(shape, parts.row_dims, parts.group)?;
        let tables = Levels::resolve(&parts.level_ids, levels)?;
        let bytes = decode_parts(&layout, &tables, &parts, dtype).map_err(|e| e.in_tensor(name))?;
        Self::assemble(name, dtype, shape, role, parts, Digest::of(&bytes))
    }

    /// As [`EncodedTensor::from_planes`] with tables that no writer has yet: what is stored for `level_ids` is set
    /// with [`EncodedTensor::set_level_ids`].
    #[cfg(feature = "checkpoints")]
    pub(crate) fn with_levels(
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        role: Role,
        parts: PlaneParts,
        levels: &Levels<'_>,
    ) -> Result<Self> {
        let layout = PlaneLayout::new(shape, parts.row_dims, parts.group)?;
        let bytes = decode_parts(&layout, levels, &parts, dtype).map_err(|e| e.in_tensor(name))?;
        Self::assemble(name, dtype, shape, role, parts, Digest::of(&bytes))
    }

    /// Says which tables of the writer the tensor uses.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn set_level_ids(&mut self, ids: [u16; 6]) {
        if let Encoding::Planes { level_ids, .. } = &mut self.entry.encoding {
            *level_ids = ids;
        }
    }

    fn assemble(
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        role: Role,
        stored: PlaneParts,
        decoded_sha256: Digest,
    ) -> Result<Self> {
        let counts = stored.counts.to_part().map(|part| (PartKind::Counts, part));
        let planes = (0u8..).map(PartKind::Plane).zip(stored.planes);
        let all = counts
            .into_iter()
            .chain([(PartKind::Scales, stored.scales), (PartKind::Steps, stored.steps)])
            .chain(planes)
            .filter(|(_, bytes)| !bytes.is_empty());
        let (mut parts, mut payload) = (vec![], vec![]);
        for (kind, bytes) in all {
            parts.push(whole_part(kind, &bytes));
            payload.push(bytes);
        }
        let planes = match stored.counts {
            PlaneCounts::Uniform(n) => Some(n),
            PlaneCounts::PerRow(_) => None,
        };
        Ok(Self {
            entry: TensorEntry {
                name: name.to_owned(),
                dtype,
                role,
                shape: shape.to_vec(),
                decoded_sha256,
                encoding: Encoding::Planes {
                    row_dims: stored.row_dims,
                    group: stored.group,
                    planes,
                    level_ids: stored.level_ids,
                },
                parts,
            },
            payload,
        })
    }

    /// The record it will have; part offsets are zero until it is written.
    pub fn entry(&self) -> &TensorEntry {
        &self.entry
    }
}

/// Decodes planes that are in memory.
fn decode_parts(
    layout: &PlaneLayout,
    levels: &Levels<'_>,
    parts: &PlaneParts,
    dtype: Dtype,
) -> Result<Vec<u8>> {
    let rows = to_usize(layout.rows)?;
    let fits = match &parts.counts {
        PlaneCounts::Uniform(n) => (3..=8).contains(n),
        PlaneCounts::PerRow(counts) => {
            counts.len() == rows
                && counts.iter().all(|n| (3..=8).contains(n))
                && counts.windows(2).any(|w| w[0] != w[1])
        }
    };
    let with = parts.counts.rows_with(layout.rows);
    let sizes = (0..8)
        .all(|p| parts.planes.get(p).map_or(0, |b| b.len() as u64) == with[p] * layout.row_bytes());
    if !fits || !sizes || parts.scales.len() != 2 * rows {
        return Err(Error::argument("parts don't fit the shape and counts"));
    }
    let row_out = to_usize(layout.cols * dtype.bits() / 8)?;
    let mut out = vec![0; rows * row_out];
    let mut decoder = RunDecoder::new(*layout, *levels, dtype, dtype)?;
    for run in parts.counts.runs(0..layout.rows) {
        let slice = |bytes: &'_ [u8], per_row: u64| -> Result<std::ops::Range<usize>> {
            let range = to_usize(run.stored.start * per_row)?..to_usize(run.stored.end * per_row)?;
            if range.end > bytes.len() {
                return Err(Error::argument("parts don't fit the shape and counts"));
            }
            Ok(range)
        };
        let planes = parts.planes[..usize::from(run.native)]
            .iter()
            .map(|p| Ok(&p[slice(p, layout.row_bytes())?]))
            .collect::<Result<Vec<_>>>()?;
        let bytes = RunBytes {
            native: run.native,
            scales: &parts.scales[slice(&parts.scales, 2)?],
            steps: &parts.steps[slice(&parts.steps, layout.steps_row_bytes())?],
            planes: &planes,
        };
        let places: Vec<usize> = (0..rows).filter(|&r| parts.counts.of(r) == run.native).collect();
        decoder.decode(&bytes, &mut out, |i| places[i])?;
    }
    Ok(out)
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

fn check_source(name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Result<()> {
    check_name(name)?;
    if dtype.tensor_bytes(shape) != Some(bytes.len() as u64) {
        return Err(
            Error::argument(format!("{} bytes for {dtype} {shape:?}", bytes.len())).in_tensor(name)
        );
    }
    Ok(())
}

/// A part that is stored as it is.
fn whole_part(kind: PartKind, content: &[u8]) -> Part {
    let mut part = Part::empty(kind, 0);
    content.chunks(CHUNK_LEN).for_each(|chunk| part.push_chunk(chunk.len(), chunk));
    part
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
