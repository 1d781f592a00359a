//! What a pack decodes to with its overlays, and what overlays say of themselves (spec/overlay.md).

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::json;
use crate::container::{Container, DecodeOptions, EffectiveTensor, ReadAt, TensorView};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, Encoding, OverlayEntry, Rule, TreeHasher, tensor_leaf};
use crate::par;
use crate::progress::{Progress, step};

/// Effective digests of tensors, by name; those that aren't here are the decoded ones.
pub(crate) type EffectiveDigests = BTreeMap<String, Digest>;

/// SHA-256 of a tensor with overlays, at its own type.
///
/// # Errors
/// As for decoding; `Cancelled`.
pub(crate) fn effective_digest<R: ReadAt>(
    tensor: &EffectiveTensor<'_, R>,
    progress: &dyn Progress,
) -> Result<Digest> {
    let mut sha = Sha256::new();
    let view = tensor.base();
    tensor
        .decode_tiles(&DecodeOptions::new(), |bytes| {
            sha.update(bytes);
            step(progress, bytes.len() as u64)
        })
        .map_err(|e| view.container().place(e.in_tensor(view.name())))?;
    Ok(Digest(sha.finalize().into()))
}

/// The root over tensors of which some have effective digests (UC-OVL-9). `views` are all tensors, by name.
pub(crate) fn effective_root<R: ReadAt>(
    views: &[TensorView<'_, R>],
    digests: &EffectiveDigests,
) -> Digest {
    let mut tree = TreeHasher::new();
    for view in views {
        let stored = match &view.entry().encoding {
            Encoding::Alias { target } => target,
            _ => view.name(),
        };
        let digest = digests.get(stored).copied().unwrap_or(view.entry().decoded_sha256);
        tree.push(tensor_leaf(view.name(), view.dtype(), view.shape(), digest));
    }
    tree.root()
}

/// What an overlay says of how it was made.
///
/// # Errors
/// `Malformed(UC-OVL-1)` when it is no object of canonical JSON.
pub fn overlay_info(overlay: &OverlayEntry) -> Result<Map<String, Value>> {
    json::from_canonical(&overlay.info, Rule::OVL_1, Rule::OVL_1)
        .map_err(|e| e.in_tensor(&overlay.name))
}

/// Canonical bytes of what an overlay says of itself.
///
/// # Errors
/// `Malformed(UC-OVL-1)` for numbers that aren't safe integers.
#[cfg(feature = "safetensors")]
pub(crate) fn overlay_info_bytes(info: &Map<String, Value>) -> Result<Vec<u8>> {
    let bytes = json::to_canonical(info, Rule::OVL_1)?;
    if bytes.len() > crate::format::MAX_INFO_BYTES {
        return Err(Error::malformed(Rule::OVL_1, "info of an overlay is too long"));
    }
    Ok(bytes)
}

/// Applies the overlays of a pack, which are in its file `first`, one after the other and compares what comes out with what they say. Gives what is wrong with
/// each tensor and root, and how many digests were compared.
///
/// # Errors
/// `Io`, `Cancelled`.
pub(crate) fn overlay_checks<R: ReadAt + Sync>(
    first: &Container<R>,
    views: &[TensorView<'_, R>],
    budget: u64,
    progress: &dyn Progress,
) -> Result<(Vec<Error>, usize)> {
    let (mut wrong, mut compared) = (vec![], 0);
    let stack = first.overlays();
    // A file of overlays has no base: what they say of themselves is all there is to check.
    for overlay in &stack {
        wrong.extend(overlay_info(overlay).err().map(|e| first.place(e)));
    }
    if first.preamble().is_overlays_only() {
        for overlay in &stack {
            for block in &overlay.blocks {
                match first.read_factors(overlay, block) {
                    Err(e) if is_fatal(&e) => return Err(e),
                    read => wrong.extend(read.err()),
                }
            }
        }
        return Ok((wrong, 0));
    }
    let view = |name: &str| {
        let at = views.binary_search_by(|v| v.name().cmp(name));
        at.map(|at| &views[at]).map_err(|_| Error::argument("no such tensor").in_tensor(name))
    };
    let mut digests = EffectiveDigests::new();
    for (i, overlay) in stack.iter().enumerate() {
        let blocks = &overlay.blocks;
        let cost = |b: usize| {
            let name = &blocks[b].tensor;
            let base = view(name).map_or(0, |v| DecodeOptions::tiles_cost(v, 0));
            base.saturating_add(EffectiveTensor::<R>::cost(&stack[..=i], name))
        };
        let found = par::map_within(blocks.len(), budget, cost, |b| {
            let digest = view(&blocks[b].tensor)
                .and_then(|view| EffectiveTensor::read(first, view, i + 1))
                .and_then(|tensor| effective_digest(&tensor, progress));
            match digest {
                Err(e) if is_fatal(&e) => Err(e),
                digest => Ok(digest),
            }
        })?;
        let mismatch = |what: String, found: Digest, expected: Digest| {
            let text = format!("{what} is {found}, the overlay says {expected} ({})", Rule::OVL_9);
            Error::integrity(text)
        };
        for (block, found) in blocks.iter().zip(found) {
            match found {
                Err(e) => wrong.push(e),
                Ok(found) => {
                    compared += 1;
                    if found != block.effective_sha256 {
                        let e = mismatch("effective SHA-256".into(), found, block.effective_sha256);
                        wrong.push(first.place(e.in_part(&overlay.name).in_tensor(&block.tensor)));
                    }
                    digests.insert(block.tensor.clone(), found);
                }
            }
        }
        let root = effective_root(views, &digests);
        if wrong.is_empty() && root != overlay.effective_root {
            let e = mismatch("effective root".into(), root, overlay.effective_root);
            wrong.push(first.place(e.in_tensor(&overlay.name)));
        }
    }
    Ok((wrong, compared))
}

fn is_fatal(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Io | ErrorKind::Cancelled)
}
