//! Encoding rows of one tensor at a time, so that a tensor of any size needs little memory.

use crate::codec::{
    LevelSet, Levels, PlaneLayout, RowEncoder, RunBytes, RunDecoder, not_finite, read_f32,
};
use crate::error::{Error, Result};
use crate::format::{
    Digest, Dtype, Encoding, MAX_PLANES, MIN_PLANES, PLANE_COUNTS, Part, PartKind, Role,
    TensorEntry,
};
use crate::memory::to_usize;

use super::options::EncodeOptions;

/// Weights whose binary32 values are at hand at a time: they stay in a core's own cache.
pub(crate) const CACHE_WEIGHTS: usize = 1 << 16;

/// Encodes tiles of one `planes` tensor with uniform counts and the default levels.
#[derive(Debug)]
pub(crate) struct TileEncoder {
    pub layout: PlaneLayout,
    dtype: Dtype,
    row_dims: u8,
    planes: u8,
    encoder: RowEncoder,
}

/// Some consecutive rows, encoded.
#[derive(Debug)]
pub(crate) struct EncodedTile {
    /// Bytes of each part: scales, steps (where there are groups), planes.
    pub pieces: Vec<Vec<u8>>,
    /// What they decode to, at the source's type.
    pub decoded: Vec<u8>,
}

impl TileEncoder {
    /// # Errors
    /// `InvalidArgument` for a type without planes or options out of range; `Malformed` for a shape
    /// without rows.
    pub(crate) fn new(dtype: Dtype, shape: &[u64], options: &EncodeOptions) -> Result<Self> {
        if !dtype.has_planes() || !(MIN_PLANES..=MAX_PLANES).contains(&options.planes) {
            return Err(Error::argument(format!("{dtype} at {} planes", options.planes)));
        }
        let layout = PlaneLayout::new(shape, options.row_dims, options.group)?;
        let set = LevelSet::default_for(options.planes);
        let encoder = RowEncoder::new(&layout, set, dtype)?;
        Ok(Self { layout, dtype, row_dims: options.row_dims, planes: options.planes, encoder })
    }

    /// Source bytes of one row.
    pub(crate) fn row_bytes(&self) -> Result<usize> {
        to_usize(self.layout.cols * self.dtype.bits() / 8)
    }

    /// Rows of a tile of about `weights`, at least one.
    pub(crate) fn tile_rows(&self, weights: usize) -> Result<usize> {
        Ok((weights / to_usize(self.layout.cols)?).max(1))
    }

    /// The record the tensor will have, without checksums and digest.
    pub(crate) fn entry(&self, name: &str, shape: &[u64], role: Role) -> Result<TensorEntry> {
        let rows = self.layout.rows;
        let planes = (0..self.planes).map(|p| (PartKind::Plane(p), self.layout.row_bytes()));
        let per_row = [(PartKind::Scales, 2), (PartKind::Steps, self.layout.steps_row_bytes())];
        let parts = per_row.into_iter().chain(planes).filter(|&(_, bytes)| bytes > 0);
        let parts = parts.map(|(kind, bytes)| {
            let mut part = Part::empty(kind, 0);
            part.len = bytes.checked_mul(rows)?;
            part.stored_len = part.len;
            Some(part)
        });
        let parts: Option<_> = parts.collect();
        Ok(TensorEntry {
            name: name.to_owned(),
            dtype: self.dtype,
            role,
            shape: shape.to_vec(),
            decoded_sha256: Digest([0; 32]),
            encoding: Encoding::Planes {
                row_dims: self.row_dims,
                group: self.layout.group,
                planes: Some(self.planes),
                level_ids: [0; PLANE_COUNTS],
            },
            parts: parts.ok_or_else(|| Error::argument("tensor is too large"))?,
        })
    }

    /// Encodes whole rows, of which the first is `first_row`, and decodes them again.
    ///
    /// # Errors
    /// `InvalidArgument` for values that are not finite binary32 numbers.
    pub(crate) fn encode(&self, first_row: usize, bytes: &[u8]) -> Result<EncodedTile> {
        let row_bytes = self.row_bytes()?;
        let cols = to_usize(self.layout.cols)?;
        let rows_at_once = self.tile_rows(CACHE_WEIGHTS)?;
        let mut tile = EncodedTile { pieces: vec![], decoded: vec![0; bytes.len()] };
        let mut decoder = RunDecoder::new(self.layout, Levels::default(), self.dtype, self.dtype)?;
        let mut weights = Vec::with_capacity(cols * rows_at_once);
        for (i, rows) in bytes.chunks(rows_at_once * row_bytes).enumerate() {
            weights.clear();
            read_f32(rows, self.dtype, &mut weights);
            if let Some(at) = not_finite(&weights) {
                return Err(Error::argument(format!(
                    "element {} is not a finite binary32 number: such tensors are stored raw",
                    (first_row + i * rows_at_once) * cols + at
                )));
            }
            let encoded = self.encoder.encode_finite(&weights);
            let planes: Vec<&[u8]> = encoded.planes.iter().map(Vec::as_slice).collect();
            let run = RunBytes {
                native: self.planes,
                scales: &encoded.scales,
                steps: &encoded.steps,
                planes: &planes,
            };
            decoder.decode(&run, &mut tile.decoded, |row| i * rows_at_once + row)?;
            let steps = (self.layout.n_groups() > 0).then_some(encoded.steps);
            let pieces = std::iter::once(encoded.scales).chain(steps).chain(encoded.planes);
            if tile.pieces.is_empty() {
                tile.pieces.extend(pieces);
            } else {
                tile.pieces.iter_mut().zip(pieces).for_each(|(all, piece)| all.extend(piece));
            }
        }
        Ok(tile)
    }
}
