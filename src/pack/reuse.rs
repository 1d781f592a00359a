//! Tensors of an older pack, taken over where encoding would give the same bytes again.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::plan::{Decision, Plan};
use super::work::{Allocated, Work};
use crate::codec::Levels;
use crate::container::{DecodeOptions, EncodedTensor, TensorView};
use crate::encoder::ENCODER_ID;
use crate::error::{Error, Result};
use crate::format::{Digest, Encoding, PLANE_COUNTS, PartKind};
use crate::manifest::{Manifest, Pack};
use crate::source::Source;
use crate::storage::Input;

/// A pack whose tensors may be taken over.
pub(crate) struct OldPack {
    pack: Pack<Input>,
    manifest: Manifest,
}

/// The tensors that are taken over.
pub(crate) struct Reused {
    pack: Option<OldPack>,
    /// By tensor of the source: stored bytes.
    stored: Vec<Option<u64>>,
}

impl OldPack {
    /// # Errors
    /// As [`Pack::open_path`] and [`Pack::manifest`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let pack = Pack::open_path(path)?;
        pack.require_complete()?;
        let manifest = pack.manifest()?;
        Ok(Self { pack, manifest })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.pack.names()
    }

    /// Whether a tensor is stored here as this plan would store it.
    fn has(&self, name: &str, sha256: Digest, decision: &Decision, group: u32, level: u8) -> bool {
        let Some(view) = self.pack.tensor(name) else { return false };
        if self.manifest.tensors.get(name).is_none_or(|t| t.sha256 != sha256.to_string()) {
            return false;
        }
        match (decision, &view.entry().encoding) {
            (Decision::Raw, Encoding::Raw) => {
                let zstd = |id: &str| id.split_once('+').map(|(_, zstd)| zstd.to_owned());
                zstd(&self.manifest.encoder) == zstd(ENCODER_ID)
                    && self.manifest.recipe["zstd_level"] == level
            }
            (Decision::Planes { planes, row_dims }, Encoding::Planes { .. }) => {
                self.manifest.encoder == ENCODER_ID
                    && same_planes(&view, *planes, *row_dims, group).unwrap_or(false)
            }
            _ => false,
        }
    }
}

fn same_planes(view: &TensorView<'_, Input>, planes: u8, rows: u8, group: u32) -> Result<bool> {
    let Encoding::Planes { row_dims, group: own, planes: native, level_ids } =
        &view.entry().encoding
    else {
        return Ok(false);
    };
    // Tables for rungs below are fitted afterwards.
    let levels = Levels::resolve(level_ids, &view.container().index().levels)?;
    let top = levels.set(planes).table(planes);
    Ok((*row_dims, *own, *native) == (rows, group, Some(planes))
        && top == Levels::default().set(planes).table(planes))
}

impl Reused {
    pub(crate) fn none(source: &Source) -> Self {
        Self { pack: None, stored: vec![None; source.tensors().len()] }
    }

    /// Chooses the tensors of `pack` that would be encoded to what they are there. What needs more
    /// memory than there is for encoding is encoded anew.
    pub(crate) fn choose(pack: OldPack, work: &Work<'_>, allocated: &Allocated<'_>) -> Self {
        let Work { source, recipe, encoding: budget, .. } = *work;
        let Allocated { plan, scans, calibrated, .. } = allocated;
        let stored = |i: usize| {
            let (t, p) = (&source.tensors()[i], &plan.tensors[i]);
            let group = recipe.group_of(p.role);
            let sha256 = scans.tensors[i].sha256;
            // The digest is one of bytes: other elements may have the same.
            let view = pack.pack.tensor(&t.name)?;
            if (view.dtype(), view.shape()) != (t.dtype, t.shape.as_slice()) {
                return None;
            }
            if calibrated.as_ref().is_some_and(|c| c.has(i))
                || !pack.has(&t.name, sha256, &p.decision, group, recipe.zstd_level)
            {
                return None;
            }
            let parts = &view.entry().parts;
            let bytes = kept(parts).map(|p| p.stored_len).sum();
            (cost(bytes) <= budget).then_some(bytes)
        };
        let stored = (0..source.tensors().len()).map(stored).collect();
        Self { pack: Some(pack), stored }
    }

    pub(crate) fn has(&self, i: usize) -> bool {
        self.stored[i].is_some()
    }

    pub(crate) fn count(&self) -> usize {
        self.stored.iter().flatten().count()
    }

    /// Memory of taking a tensor over.
    pub(crate) fn cost(&self, i: usize) -> Option<u64> {
        self.stored[i].map(cost)
    }

    /// The tensor as it will be stored, after a look at what it decodes to.
    ///
    /// # Errors
    /// `Integrity` where the old pack is damaged; `Io`.
    pub(crate) fn tensor(&self, source: &Source, plan: &Plan, i: usize) -> Result<EncodedTensor> {
        let name = &source.tensors()[i].name;
        let view = self.pack.as_ref().and_then(|old| old.pack.tensor(name));
        let view = view.ok_or_else(|| Error::argument("isn't in the old pack").in_tensor(name))?;
        let locate = |e: Error| view.container().locate(e.in_tensor(name));
        let mut entry = view.entry().clone();
        entry.role = plan.tensors[i].role;
        entry.parts = kept(&view.entry().parts).cloned().collect();
        if let Encoding::Planes { level_ids, .. } = &mut entry.encoding {
            *level_ids = [0; PLANE_COUNTS];
        }
        let mut payload = vec![];
        for part in &entry.parts {
            let mut bytes = vec![];
            for chunk in 0..part.chunks.len() {
                bytes.extend(view.container().read_stored(part, chunk).map_err(locate)?);
            }
            payload.push(bytes);
        }
        let mut sha = Sha256::new();
        DecodeOptions::new().decode_tiles(&view, |bytes| {
            sha.update(bytes);
            Ok(())
        })?;
        if Digest(sha.finalize().into()) != entry.decoded_sha256 {
            return Err(locate(Error::integrity("doesn't decode to what the index says")));
        }
        Ok(EncodedTensor { entry, payload })
    }
}

/// Parts that a pack without the exact rung has.
fn kept(parts: &[crate::format::Part]) -> impl Iterator<Item = &crate::format::Part> {
    parts.iter().filter(|p| !matches!(p.kind, PartKind::Residual | PartKind::Unknown(..)))
}

fn cost(stored: u64) -> u64 {
    // What is read, and the tile that is decoded.
    stored.saturating_mul(2).saturating_add(1 << 20)
}
