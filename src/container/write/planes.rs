//! The encoding `planes`: quantized here, or by an encoder of the caller's.

use sha2::{Digest as _, Sha256};

use super::options::EncodeOptions;
use super::tensor::{EncodedTensor, check_source, whole_part};
use super::tile::TileEncoder;
use crate::codec::{Levels, PlaneCounts, PlaneLayout, RunBytes, RunDecoder};
use crate::error::{Error, Result};
use crate::format::{
    Digest, Dtype, Encoding, LevelsEntry, MAX_PLANES, MIN_PLANES, PLANE_COUNTS, PartKind, Role,
    TensorEntry, check_name,
};
use crate::memory::to_usize;
use crate::par;

/// Weights that one thread encodes at a time.
const TILE_WEIGHTS: usize = 1 << 16;

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
    pub level_ids: [u16; PLANE_COUNTS],
    /// bfloat16 scales in storage order.
    pub scales: Vec<u8>,
    /// Step indices in storage order.
    pub steps: Vec<u8>,
    /// Planes, most significant first.
    pub planes: Vec<Vec<u8>>,
}

impl EncodedTensor {
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

    /// As [`EncodedTensor::from_planes`] with tables that no writer has yet: what is stored for
    /// `level_ids` is set with [`EncodedTensor::set_level_ids`].
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
    pub(crate) fn set_level_ids(&mut self, ids: [u16; PLANE_COUNTS]) {
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
        PlaneCounts::Uniform(n) => (MIN_PLANES..=MAX_PLANES).contains(n),
        PlaneCounts::PerRow(counts) => {
            counts.len() == rows
                && counts.iter().all(|n| (MIN_PLANES..=MAX_PLANES).contains(n))
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
        let row_order: Vec<usize> =
            (0..rows).filter(|&r| parts.counts.of(r) == run.native).collect();
        decoder.decode(&bytes, &mut out, |i| row_order[i])?;
    }
    Ok(out)
}
