//! From source bytes to a tensor record with its parts, ready to be written.

use sha2::{Digest as _, Sha256};

use crate::codec::{
    LevelSet, Levels, PlaneCounts, PlaneLayout, RowEncoder, RunBytes, decode_run, read_f32,
};
use crate::error::{Error, Result};
use crate::format::{
    CHUNK_BYTES, Chunk, Digest, Dtype, Encoding, FileEntry, LevelsEntry, Part, PartKind, Role,
    Storage, TensorEntry, check_file_path, check_name, to_usize,
};
use crate::par;

/// Weights that one thread encodes at a time.
const TILE_WEIGHTS: usize = 1 << 16;

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
                let (part, stored) = make_part(PartKind::Data, bytes.to_vec(), options.zstd_level)?;
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
        check_name(name)?;
        let target = &target.entry;
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
        if !dtype.has_planes() || !(3..=8).contains(&options.planes) {
            return Err(
                Error::argument(format!("{dtype} at {} planes", options.planes)).in_tensor(name)
            );
        }
        let in_tensor = |e: Error| e.in_tensor(name);
        let layout = PlaneLayout::new(shape, options.row_dims, options.group).map_err(in_tensor)?;
        let set = LevelSet::default_for(options.planes);
        let encoder = RowEncoder::new(&layout, options.planes, set, dtype)?;
        let (rows, cols) = (to_usize(layout.rows)?, to_usize(layout.cols)?);
        let size = to_usize(dtype.bits() / 8)?;
        let tile_rows = (TILE_WEIGHTS / cols).max(1);
        let levels = Levels::default();
        let tiles = par::map(rows.div_ceil(tile_rows), |i| {
            let from = i * tile_rows * cols * size;
            let to = bytes.len().min(from + tile_rows * cols * size);
            let mut weights = Vec::with_capacity((to - from) / size);
            read_f32(&bytes[from..to], dtype, &mut weights);
            if let Some(at) = weights.iter().position(|w| !w.is_finite()) {
                return Err(Error::argument(format!(
                    "element {} is not a finite binary32 number: such tensors are stored raw",
                    from / size + at
                )));
            }
            let encoded = encoder.encode(&weights);
            let planes: Vec<&[u8]> = encoded.planes.iter().map(Vec::as_slice).collect();
            let run = RunBytes {
                native: options.planes,
                scales: &encoded.scales,
                steps: &encoded.steps,
                planes: &planes,
            };
            let mut decoded = Vec::with_capacity(to - from);
            decode_run(&layout, &levels, &run, dtype, dtype, |_, row| {
                decoded.extend_from_slice(row)
            })?;
            Ok((encoded, decoded))
        });
        let mut sha = Sha256::new();
        let mut parts = PlaneParts {
            row_dims: options.row_dims,
            group: options.group,
            counts: PlaneCounts::Uniform(options.planes),
            level_ids: [0; 6],
            scales: Vec::with_capacity(2 * rows),
            steps: Vec::new(),
            planes: vec![Vec::new(); usize::from(options.planes)],
        };
        for tile in tiles {
            let (encoded, decoded) = tile.map_err(in_tensor)?;
            sha.update(&decoded);
            parts.scales.extend(encoded.scales);
            parts.steps.extend(encoded.steps);
            for (all, tile) in parts.planes.iter_mut().zip(encoded.planes) {
                all.extend(tile);
            }
        }
        Self::assemble(name, dtype, shape, options.role, parts, Digest(sha.finalize().into()))
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
            let (part, stored) = make_part(kind, bytes, None)?;
            parts.push(part);
            payload.push(stored);
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
        decode_run(layout, levels, &bytes, dtype, dtype, |i, row| {
            out[places[i] * row_out..][..row_out].copy_from_slice(row);
        })?;
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
                let (part, stored) = make_part(PartKind::Data, bytes.to_vec(), zstd_level)?;
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

/// Splits `content` into chunks, compressed where asked for and where every chunk shrinks.
fn make_part(kind: PartKind, content: Vec<u8>, zstd_level: Option<i32>) -> Result<(Part, Vec<u8>)> {
    let len = content.len() as u64;
    let chunk = to_usize(CHUNK_BYTES)?;
    let frames = match zstd_level {
        Some(level) => deflate(&content, chunk, level)?,
        None => None,
    };
    let mut start = 0u64;
    let mut crc_of = |bytes: &[u8]| {
        let stored_len = u32::try_from(bytes.len()).expect("a chunk has at most 1 MiB");
        let chunk = Chunk { crc32: crc32fast::hash(bytes), stored_len, start };
        start += u64::from(stored_len);
        chunk
    };
    let (storage, chunks, stored) = match frames {
        Some(frames) => {
            (Storage::Zstd, frames.iter().map(|f| crc_of(f)).collect(), frames.concat())
        }
        None => (Storage::Plain, content.chunks(chunk).map(crc_of).collect(), content),
    };
    let stored_len = stored.len() as u64;
    Ok((Part { kind, storage, optional: false, offset: 0, stored_len, len, chunks }, stored))
}

/// The chunks as zstd frames, or nothing when one of them doesn't shrink.
#[cfg(feature = "zstd")]
fn deflate(content: &[u8], chunk: usize, level: i32) -> Result<Option<Vec<Vec<u8>>>> {
    let chunks: Vec<&[u8]> = content.chunks(chunk).collect();
    let frames = par::map(chunks.len(), |i| {
        zstd::bulk::compress(chunks[i], level).map_err(|e| Error::io("zstd", e))
    });
    let frames = frames.into_iter().collect::<Result<Vec<_>>>()?;
    let shrinks = frames.iter().zip(&chunks).all(|(f, c)| f.len() < c.len());
    Ok(shrinks.then_some(frames))
}

#[cfg(not(feature = "zstd"))]
fn deflate(_: &[u8], _: usize, _: i32) -> Result<Option<Vec<Vec<u8>>>> {
    Err(Error::new(
        crate::error::ErrorKind::UnsupportedFeature,
        "zstd storage was asked for and this build lacks the `zstd` feature",
    ))
}
