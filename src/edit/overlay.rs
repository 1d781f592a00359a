//! Overlays on packs: adding, removing, and files of their own (spec/overlay.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::copy::{CopyOptions, copy_pack};
use super::stack::{NewOverlay, PlannedOverlay, read_overlay};
use crate::container::{DecodeOptions, EffectiveTensor, check_block};
use crate::error::{Error, Result};
use crate::format::{Digest, check_name};
use crate::manifest::{
    EffectiveDigests, Manifest, Pack, effective_digests, effective_root, overlay_info,
};
use crate::memory::{self, DEFAULT_MAX_RAM};
use crate::output::{NewPack, Unnamed};
use crate::par;
use crate::progress::{Progress, Silent};
use crate::setters::setters;
use crate::storage::ReadAt;

/// Names what writes files of overlays.
const ENCODER_ID: &str = "uc-overlay-1";

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

    setters! {
        with_force: force = bool,
        with_max_ram: max_ram = u64,
    }

    /// Whether the files of such a pack may be made, as far as that can be seen.
    ///
    /// # Errors
    /// `Io`; `InvalidArgument` for a name that can't be used.
    #[cfg(feature = "lm")]
    pub(crate) fn check<R: ReadAt>(&self, pack: &Pack<R>, output: &Path) -> Result<()> {
        NewPack::check(output, self.force, pack.containers().len())
    }

    /// Writes `pack` again as `output`, with `overlays` on top of those that it has, in this order.
    /// Everything else stays byte for byte, and what the overlays lead to is decoded for their
    /// digests.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is taken; `Malformed` (UC-OVL) for factors that don't fit
    /// a tensor; `Io`; `Cancelled`.
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
            stack.push(PlannedOverlay::new(overlay)?);
        }
        self.write(pack, stack, output, progress)
    }

    /// As [`OverlayOptions::add`], of the overlays of another file, which must be for the same
    /// base.
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
            return Err(from.containers()[0].locate(Error::argument("holds no overlay")));
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
                return Err(from.containers()[0].locate(e.in_tensor(&overlay.name)));
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
        let mut stack = vec![PlannedOverlay::new(&read_overlay(pack, found)?)?];
        let mut new = NewPack::create(output, self.force, 1)?;
        new.refuse_inputs(pack.names())?;
        // A file of overlays can't be decoded by itself, so it says what it leads to as it was
        // measured here.
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
            overlay_info(o).map_err(|e| pack.containers()[0].locate(e))?;
            if Some(o.name.as_str()) == but {
                unchanged = false;
                continue;
            }
            kept.push(PlannedOverlay::kept(o, unchanged));
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

fn report(new: NewPack, written: &Pack<Unnamed>) -> Result<OverlayReport> {
    let overlays = written.overlays().into_iter().map(|o| o.name.clone()).collect();
    let (stored_root, decoded_root) = (written.stored_root(), written.decoded_root());
    let effective_root = written.effective_root();
    let files = new.commit(written)?;
    Ok(OverlayReport { files, overlays, stored_root, decoded_root, effective_root })
}
