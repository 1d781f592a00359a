//! Overlays on their way to a file: new ones, and those that a pack has.

use serde_json::{Map, Value};

use crate::codec::Factors;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::format::{
    ALIGN_BYTES, CHUNK_BYTES, Digest, FactorType, MAX_OVERLAY_RANK, OverlayBlock, OverlayEntry,
    TreeHasher, align_up,
};
use crate::manifest::{Pack, overlay_info, overlay_info_bytes};
use crate::memory::to_usize;
use crate::output::ShardWriter;
use crate::progress::{Progress, step};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// Factors of one tensor of a [`NewOverlay`], with their scales.
#[derive(Debug, Clone, PartialEq)]
pub enum NewFactors {
    /// int8 factors and the bits of bfloat16 scales.
    Int8 {
        /// `[rows, rank]`.
        a: Vec<i8>,
        /// `[rank, cols]`.
        b: Vec<i8>,
        /// One for each row of A.
        row_scales: Vec<u16>,
        /// One for each column of B.
        column_scales: Vec<u16>,
    },
    /// Bits of binary16 factors.
    F16 {
        /// `[rows, rank]`.
        a: Vec<u16>,
        /// `[rank, cols]`.
        b: Vec<u16>,
        /// What products are multiplied by.
        scaling: f32,
    },
}

/// What a [`NewOverlay`] adds to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBlock {
    /// The tensor's name.
    pub tensor: String,
    /// Columns of A and rows of B.
    pub rank: usize,
    /// Rows of A.
    pub rows: usize,
    /// Columns of B.
    pub cols: usize,
    /// The factors.
    pub factors: NewFactors,
}

/// An overlay that isn't in a file yet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewOverlay {
    /// Its name.
    pub name: String,
    /// How it was made. Numbers are integers.
    pub info: Map<String, Value>,
    /// The tensors it changes.
    pub blocks: Vec<NewBlock>,
}

impl NewBlock {
    fn entry(&self) -> Result<OverlayBlock> {
        let wrong = |text: String| Error::argument(text).in_tensor(&self.tensor);
        let ranks = 1..=MAX_OVERLAY_RANK as usize;
        if !ranks.contains(&self.rank) || self.rows == 0 || self.cols == 0 {
            return Err(wrong(format!("{} x {} of rank {}", self.rows, self.cols, self.rank)));
        }
        if (self.rows as u64).checked_add(self.cols as u64).is_none_or(|sides| sides > 1 << 48) {
            return Err(wrong("factors are too large".into()));
        }
        let (factors, scaling) = match &self.factors {
            NewFactors::Int8 { .. } => (FactorType::Int8, 0.0),
            NewFactors::F16 { scaling, .. } => (FactorType::F16, *scaling),
        };
        let sizes = 2f32.powi(-64)..=2f32.powi(64);
        if factors == FactorType::F16 && !sizes.contains(&scaling.abs()) {
            return Err(wrong(format!("products times {scaling:e}: 2^-64 to 2^64 are possible")));
        }
        Ok(OverlayBlock {
            tensor: self.tensor.clone(),
            factors,
            rank: u32::try_from(self.rank).map_err(|_| wrong("rank is too high".into()))?,
            rows: self.rows as u64,
            cols: self.cols as u64,
            scaling,
            effective_sha256: Digest([0; 32]),
            start: 0,
        })
    }

    /// Its bytes in the part, with padding.
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        let words = |bytes: &mut Vec<u8>, w: &[u16]| {
            bytes.extend(w.iter().flat_map(|w| w.to_le_bytes()));
        };
        match &self.factors {
            NewFactors::Int8 { a, b, row_scales, column_scales } => {
                words(&mut bytes, row_scales);
                words(&mut bytes, column_scales);
                bytes.extend(a.iter().chain(b).map(|v| v.cast_unsigned()));
            }
            NewFactors::F16 { a, b, .. } => {
                words(&mut bytes, a);
                words(&mut bytes, b);
            }
        }
        let entry = self.entry()?;
        if bytes.len() as u64 != entry.bytes() {
            return Err(Error::argument("factors of another size").in_tensor(&self.tensor));
        }
        let padded = align_up(bytes.len() as u64, ALIGN_BYTES);
        bytes.resize(to_usize(padded.unwrap_or(u64::MAX))?, 0);
        Ok(bytes)
    }

    /// The factors as they will decode.
    ///
    /// # Errors
    /// `Malformed` (UC-OVL-5, UC-OVL-18) for scales or factors that may not be; `InvalidArgument`
    /// for a wrong number of them.
    pub fn factors(&self) -> Result<Factors> {
        let bytes = self.to_bytes()?;
        Factors::parse(&self.entry()?, &bytes).map_err(|e| e.in_tensor(&self.tensor))
    }
}

/// An overlay that will be written: its record, and its factors.
#[derive(Debug)]
pub(crate) struct PlannedOverlay {
    pub entry: OverlayEntry,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// As they are in the overlay of this name of the pack that is copied. Where nothing beneath it
    /// changed, it must lead to what it says.
    Kept {
        name: String,
        unchanged: bool,
    },
    New(Vec<Vec<u8>>),
}

impl PlannedOverlay {
    /// Whether what it says of itself is compared, not replaced.
    pub(crate) fn compared(&self) -> bool {
        matches!(self.bytes, Bytes::Kept { unchanged: true, .. })
    }

    pub(crate) fn disagrees<R: ReadAt>(&self, file: &Container<R>, tensor: &str) -> Error {
        let text = format!("the overlay doesn't lead to the digest that it has ({})", Rule::OVL_9);
        file.locate(Error::integrity(text).in_part(&self.entry.name).in_tensor(tensor))
    }

    /// Bytes of factors that are in memory.
    pub(crate) fn held_bytes(&self) -> u64 {
        match &self.bytes {
            Bytes::Kept { .. } => 0,
            Bytes::New(blocks) => blocks.iter().map(|b| b.len() as u64).sum(),
        }
    }

    /// The factors of block `b`; `file` holds those that are kept.
    pub(crate) fn factors<R: ReadAt>(&self, file: &Container<R>, b: usize) -> Result<Factors> {
        let block = &self.entry.blocks[b];
        match &self.bytes {
            Bytes::New(blocks) => Factors::parse(block, &blocks[b])
                .map_err(|e| e.in_part(&self.entry.name).in_tensor(&block.tensor)),
            Bytes::Kept { name, .. } => {
                let old = file.index().overlays.iter().find(|o| o.name == *name);
                file.read_factors(old.ok_or_else(|| Error::argument("no such overlay"))?, block)
            }
        }
    }

    /// Writes the factors and lists the overlay.
    pub(crate) fn write<R: ReadAt>(
        &self,
        pack: &Pack<R>,
        writer: &mut ShardWriter,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut data = writer.begin_data()?;
        // Blocks are cut into chunks without regard to where one ends.
        let mut pending: Vec<u8> = vec![];
        let mut put = |bytes: &[u8], last: bool| -> Result<()> {
            pending.extend_from_slice(bytes);
            let chunk = to_usize(CHUNK_BYTES)?;
            while pending.len() >= chunk || (last && !pending.is_empty()) {
                let n = pending.len().min(chunk);
                writer.put_chunk(&mut data, n, &pending[..n])?;
                pending.drain(..n);
            }
            Ok(())
        };
        match &self.bytes {
            Bytes::Kept { name, .. } => {
                let first = &pack.containers()[0];
                let old = first.index().overlays.iter().find(|o| o.name == *name);
                let old = old.ok_or_else(|| Error::argument("no such overlay").in_tensor(name))?;
                let part = &old.parts[0];
                for at in (0..part.len).step_by(to_usize(CHUNK_BYTES)?) {
                    put(&first.read_part(part, at..part.len.min(at + CHUNK_BYTES))?, false)?;
                    step(progress, 0)?;
                }
            }
            Bytes::New(blocks) => blocks.iter().try_for_each(|block| put(block, false))?,
        }
        put(&[], true)?;
        writer.end_overlay(self.entry.clone(), data);
        Ok(())
    }
}

impl PlannedOverlay {
    /// An overlay that is new.
    ///
    /// # Errors
    /// `InvalidArgument` for factors that no overlay can have.
    pub(crate) fn new(overlay: &NewOverlay) -> Result<Self> {
        let mut blocks: Vec<&NewBlock> = overlay.blocks.iter().collect();
        blocks.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        let mut entry = OverlayEntry {
            name: overlay.name.clone(),
            base_root: TreeHasher::new().root(),
            effective_root: TreeHasher::new().root(),
            order: 1,
            blocks: blocks.iter().map(|b| b.entry()).collect::<Result<_>>()?,
            info: overlay_info_bytes(&overlay.info)?,
            parts: vec![],
        };
        entry.lay_out()?;
        let bytes = blocks.iter().map(|b| b.to_bytes()).collect::<Result<_>>()?;
        Ok(Self { entry, bytes: Bytes::New(bytes) })
    }

    /// One that the pack has; where nothing beneath it changed, it must lead to what it says.
    pub(crate) fn kept(entry: &OverlayEntry, unchanged: bool) -> Self {
        Self { entry: entry.clone(), bytes: Bytes::Kept { name: entry.name.clone(), unchanged } }
    }
}

/// An overlay of a file, in memory.
///
/// # Errors
/// As [`Container::read_factors`](crate::Container::read_factors).
pub fn read_overlay<R: ReadAt>(pack: &Pack<R>, overlay: &OverlayEntry) -> Result<NewOverlay> {
    let first = &pack.containers()[0];
    let info = overlay_info(overlay).map_err(|e| first.locate(e))?;
    let word = |bytes: &[u8]| -> Vec<u16> {
        bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
    };
    let mut blocks = vec![];
    for block in &overlay.blocks {
        // Checks them.
        first.read_factors(overlay, block)?;
        let (rows, cols) = (to_usize(block.rows)?, to_usize(block.cols)?);
        let rank = block.rank as usize;
        let bytes = first.read_part(&overlay.parts[0], block.start..block.start + block.bytes())?;
        let factors = match block.factors {
            FactorType::Int8 => {
                let (row_scales, rest) = bytes.split_at(2 * rows);
                let (column_scales, rest) = rest.split_at(2 * cols);
                let (a, b) = rest.split_at(rows * rank);
                let signed = |v: &[u8]| v.iter().map(|b| b.cast_signed()).collect();
                NewFactors::Int8 {
                    a: signed(a),
                    b: signed(b),
                    row_scales: word(row_scales),
                    column_scales: word(column_scales),
                }
            }
            FactorType::F16 => {
                let (a, b) = bytes.split_at(2 * rows * rank);
                NewFactors::F16 { a: word(a), b: word(b), scaling: block.scaling }
            }
        };
        blocks.push(NewBlock { tensor: block.tensor.clone(), rank, rows, cols, factors });
    }
    Ok(NewOverlay { name: overlay.name.clone(), info, blocks })
}
