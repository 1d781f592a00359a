//! Overlays on packs: adding, removing, and files of their own (spec/overlay.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::reshard::{CopyOptions, copy_pack};
use super::shards::{NewPack, ShardWriter};
use crate::codec::Factors;
use crate::container::{Container, DecodeOptions, EffectiveTensor, ReadAt, check_block};
use crate::error::{Error, Result};
use crate::format::{
    ALIGN_BYTES, CHUNK_BYTES, Digest, FactorType, MAX_OVERLAY_RANK, OverlayBlock, OverlayEntry,
    Rule, TreeHasher, align_up, check_name, to_usize,
};
use crate::manifest::{
    EffectiveDigests, Manifest, Pack, effective_digests, effective_root, overlay_info,
    overlay_info_bytes,
};
use crate::memory::{self, DEFAULT_MAX_RAM};
use crate::par;
use crate::progress::{Progress, Silent, step};

/// Names what writes files of overlays.
const ENCODER_ID: &str = "uc-overlay-1";

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
    /// `Malformed` (UC-OVL-5, UC-OVL-18) for scales or factors that may not be; `InvalidArgument` for a wrong number of them.
    pub fn factors(&self) -> Result<Factors> {
        let bytes = self.to_bytes()?;
        Factors::parse(&self.entry()?, &bytes).map_err(|e| e.in_tensor(&self.tensor))
    }
}

/// An overlay that will be written: its record, and its factors.
#[derive(Debug)]
pub(super) struct PlannedOverlay {
    entry: OverlayEntry,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// As they are in the overlay of this name of the pack that is copied. Where nothing beneath it changed, it must lead to what it says.
    Kept {
        name: String,
        unchanged: bool,
    },
    New(Vec<Vec<u8>>),
}

impl PlannedOverlay {
    /// Whether what it says of itself is compared, not replaced.
    fn compared(&self) -> bool {
        matches!(self.bytes, Bytes::Kept { unchanged: true, .. })
    }

    fn disagrees<R: ReadAt>(&self, file: &Container<R>, tensor: &str) -> Error {
        let text = format!("the overlay doesn't lead to the digest that it has ({})", Rule::OVL_9);
        file.place(Error::integrity(text).in_part(&self.entry.name).in_tensor(tensor))
    }

    fn held_bytes(&self) -> u64 {
        match &self.bytes {
            Bytes::Kept { .. } => 0,
            Bytes::New(blocks) => blocks.iter().map(|b| b.len() as u64).sum(),
        }
    }

    /// The factors of block `b`; `file` holds those that are kept.
    fn factors<R: ReadAt>(&self, file: &Container<R>, b: usize) -> Result<Factors> {
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
    pub(super) fn write<R: ReadAt>(
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

/// How to change the overlays of a pack.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OverlayOptions {
    /// Replace existing files. Default false.
    pub force: bool,
    /// Bytes of memory to stay within; at least [`MIN_MAX_RAM`](crate::MIN_MAX_RAM). Default
    /// [`DEFAULT_MAX_RAM`](crate::DEFAULT_MAX_RAM).
    pub max_ram: u64,
}

impl Default for OverlayOptions {
    fn default() -> Self {
        Self { force: false, max_ram: DEFAULT_MAX_RAM }
    }
}

/// What was written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OverlayReport {
    /// The files, with their lengths.
    pub files: Vec<(PathBuf, u64)>,
    /// Overlays that the pack has now, in their order.
    pub overlays: Vec<String>,
    /// Root over the stored bytes.
    pub stored_root: Digest,
    /// Root over the decoded tensors: that of the pack that was read.
    pub decoded_root: Digest,
    /// The same with all overlays; nothing without any.
    pub effective_root: Option<Digest>,
}

impl OverlayOptions {
    /// Never overwrites.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`OverlayOptions::force`].
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Sets [`OverlayOptions::max_ram`].
    #[must_use]
    pub fn with_max_ram(mut self, bytes: u64) -> Self {
        self.max_ram = bytes;
        self
    }

    /// Whether the files of such a pack may be made, as far as that can be seen.
    ///
    /// # Errors
    /// `Io`; `InvalidArgument` for a name that can't be used.
    #[cfg(feature = "lm")]
    pub(crate) fn check<R: ReadAt>(&self, pack: &Pack<R>, output: &Path) -> Result<()> {
        NewPack::check(output, self.force, pack.containers().len())
    }

    /// Writes `pack` again as `output`, with `overlays` on top of those that it has, in this order. Everything else stays byte for
    /// byte, and what the overlays lead to is decoded for their digests.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is taken; `Malformed` (UC-OVL) for factors that don't fit a tensor; `Io`; `Cancelled`.
    pub fn add<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        overlays: &[NewOverlay],
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<OverlayReport> {
        let mut stack = self.kept(pack, None)?;
        for overlay in overlays {
            check_name(&overlay.name)?;
            if stack.iter().any(|o| o.entry.name == overlay.name) {
                let text = "the pack has an overlay of this name: choose another with --name";
                return Err(Error::argument(text).in_tensor(&overlay.name));
            }
            stack.push(plan(overlay)?);
        }
        self.write(pack, stack, output, progress)
    }

    /// As [`OverlayOptions::add`], of the overlays of another file, which must be for the same base.
    ///
    /// # Errors
    /// As [`OverlayOptions::add`]; `Integrity` when they are for another base.
    pub fn add_from<R: ReadAt + Sync, S: ReadAt>(
        &self,
        pack: &Pack<R>,
        from: &Pack<S>,
        rename: Option<&str>,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<OverlayReport> {
        let overlays = from.overlays();
        if overlays.is_empty() {
            return Err(from.containers()[0].place(Error::argument("holds no overlay")));
        }
        if rename.is_some() && overlays.len() > 1 {
            return Err(Error::argument("a name for one overlay, but there are several"));
        }
        let mut all = vec![];
        for overlay in overlays {
            if overlay.base_root != pack.decoded_root() {
                let e = Error::integrity(format!(
                    "overlay is for the decoded root {}, this pack's is {}",
                    overlay.base_root,
                    pack.decoded_root()
                ));
                return Err(from.containers()[0].place(e.in_tensor(&overlay.name)));
            }
            let mut new = read_overlay(from, overlay)?;
            if let Some(name) = rename {
                name.clone_into(&mut new.name);
            }
            all.push(new);
        }
        self.add(pack, &all, output, progress)
    }

    /// Writes `pack` again as `output`, without the overlay called `name`.
    ///
    /// # Errors
    /// `InvalidArgument` when there is none; `Io`; `Cancelled`.
    pub fn remove<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        name: &str,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<OverlayReport> {
        if !pack.overlays().iter().any(|o| o.name == name) {
            return Err(Error::argument("the pack has no such overlay").in_tensor(name));
        }
        self.write(pack, self.kept(pack, Some(name))?, output, progress)
    }

    /// Writes the overlay called `name` as a file of its own, for packs with the same decoded root.
    ///
    /// # Errors
    /// As [`OverlayOptions::remove`].
    pub fn export<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        name: &str,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<OverlayReport> {
        pack.require_complete()?;
        let found = pack.overlays().into_iter().find(|o| o.name == name);
        let found =
            found.ok_or_else(|| Error::argument("the pack has no such overlay").in_tensor(name))?;
        let mut stack = vec![plan(&read_overlay(pack, found)?)?];
        let mut new = NewPack::create(output, self.force, 1)?;
        new.refuse_inputs(pack.names())?;
        // A file of overlays can't be decoded by itself, so it says what it leads to as it was measured here.
        if !pack.containers()[0].preamble().is_overlays_only() {
            self.finish(pack, &mut stack, progress)?;
        } else {
            stack[0].entry.effective_root = found.effective_root;
            for (block, old) in stack[0].entry.blocks.iter_mut().zip(&found.blocks) {
                block.effective_sha256 = old.effective_sha256;
            }
            stack[0].entry.base_root = found.base_root;
        }
        let mut writer = new.start()?;
        stack[0].write(pack, &mut writer, progress)?;
        new.end(writer, &Manifest::new(ENCODER_ID).to_bytes()?)?;
        let written = new.open()?;
        report(new, &written)
    }

    /// The overlays that a pack has, but for one.
    fn kept<R: ReadAt>(&self, pack: &Pack<R>, but: Option<&str>) -> Result<Vec<PlannedOverlay>> {
        pack.require_complete()?;
        pack.require_base()?;
        let mut unchanged = true;
        let mut kept = vec![];
        for o in pack.overlays() {
            overlay_info(o).map_err(|e| pack.containers()[0].place(e))?;
            if Some(o.name.as_str()) == but {
                unchanged = false;
                continue;
            }
            let bytes = Bytes::Kept { name: o.name.clone(), unchanged };
            kept.push(PlannedOverlay { entry: o.clone(), bytes });
        }
        Ok(kept)
    }

    /// Numbers overlays, decodes what each leads to and notes the digests.
    fn finish<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        stack: &mut [PlannedOverlay],
        progress: &dyn Progress,
    ) -> Result<()> {
        let views: Vec<_> = pack.tensors().collect();
        let first = &pack.containers()[0];
        // Blocks of each tensor, from the first overlay on.
        let mut blocks: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
        for (o, overlay) in stack.iter().enumerate() {
            for (b, block) in overlay.entry.blocks.iter().enumerate() {
                let tensor = pack.tensor(&block.tensor).map(|t| t.entry());
                check_block(block, tensor)
                    .map_err(|e| e.in_part(&overlay.entry.name).in_tensor(&block.tensor))?;
                blocks.entry(&block.tensor).or_default().push((o, b));
            }
        }
        let blocks: Vec<_> = blocks.into_iter().collect();
        let cost = |i: usize| {
            let (name, own) = &blocks[i];
            let bytes = own.iter().map(|&(o, b)| stack[o].entry.blocks[b].bytes());
            let base = pack.tensor(name).map_or(0, |v| DecodeOptions::tiles_cost(&v, 0));
            bytes.fold(base + (8 << 20), |sum, bytes| sum.saturating_add(5 * bytes))
        };
        let held: u64 = stack.iter().map(PlannedOverlay::held_bytes).sum();
        let most = (0..blocks.len()).map(cost).max().unwrap_or(0);
        let held = pack.tables_bytes().saturating_add(held);
        let budget = memory::for_work(self.max_ram, held, most)?;
        let found = par::map_within(blocks.len(), budget, cost, |i| {
            let (name, own) = &blocks[i];
            let factors = own.iter().map(|&(o, b)| stack[o].factors(first, b));
            let view = pack.tensor(name).ok_or_else(|| Error::argument("no such tensor"))?;
            effective_digests(
                &EffectiveTensor::new(view, factors.collect::<Result<_>>()?),
                progress,
            )
        })?;
        let found: Vec<_> =
            blocks.into_iter().flat_map(|(_, own)| own).zip(found.into_iter().flatten()).collect();
        for ((o, b), digest) in found {
            let block = &stack[o].entry.blocks[b];
            if stack[o].compared() && digest != block.effective_sha256 {
                return Err(stack[o].disagrees(first, &block.tensor));
            }
            stack[o].entry.blocks[b].effective_sha256 = digest;
        }
        let mut digests = EffectiveDigests::new();
        for (i, overlay) in stack.iter_mut().enumerate() {
            for block in &overlay.entry.blocks {
                digests.insert(block.tensor.clone(), block.effective_sha256);
            }
            let root = effective_root(&views, &digests);
            if overlay.compared() && root != overlay.entry.effective_root {
                return Err(overlay.disagrees(first, "all tensors"));
            }
            overlay.entry.base_root = pack.decoded_root();
            overlay.entry.effective_root = root;
            overlay.entry.order =
                u16::try_from(i + 1).map_err(|_| Error::argument("too many overlays"))?;
        }
        Ok(())
    }

    fn write<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        mut stack: Vec<PlannedOverlay>,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<OverlayReport> {
        pack.require_complete()?;
        let mut new = NewPack::create(output, self.force, pack.containers().len())?;
        new.refuse_inputs(pack.names())?;
        pack.manifest()?;
        self.finish(pack, &mut stack, progress)?;
        let manifest = pack.containers()[0].manifest_bytes()?;
        let shards: Vec<usize> = pack.shards_of_tensors().collect();
        let options = CopyOptions { overlays: Some(stack), ..CopyOptions::default() };
        let written = copy_pack(pack, &shards, &mut new, &manifest, &options, &Silent(progress))?;
        report(new, &written)
    }
}

fn report(new: NewPack, written: &Pack<super::shards::Unnamed>) -> Result<OverlayReport> {
    let overlays = written.overlays().into_iter().map(|o| o.name.clone()).collect();
    let (stored_root, decoded_root) = (written.stored_root(), written.decoded_root());
    let effective_root = written.effective_root();
    let files = new.commit(written)?;
    Ok(OverlayReport { files, overlays, stored_root, decoded_root, effective_root })
}

fn plan(overlay: &NewOverlay) -> Result<PlannedOverlay> {
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
    Ok(PlannedOverlay { entry, bytes: Bytes::New(bytes) })
}

/// An overlay of a file, in memory.
///
/// # Errors
/// As [`Container::read_factors`](crate::Container::read_factors).
pub fn read_overlay<R: ReadAt>(pack: &Pack<R>, overlay: &OverlayEntry) -> Result<NewOverlay> {
    let first = &pack.containers()[0];
    let info = overlay_info(overlay).map_err(|e| first.place(e))?;
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
