//! Effective digests and roots of a pack, and the info of its overlays (spec/overlay.md).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::failure::MAX_FAILURES;
use super::json;
use crate::container::{Container, DecodeOptions, EffectiveTensor, TensorView};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, OverlayEntry, TreeHasher, tensor_leaf};
use crate::par;
use crate::progress::{Progress, step};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// Effective digests of tensors, by name; those that aren't here are the decoded ones.
pub(crate) type EffectiveDigests = BTreeMap<String, Digest>;

/// SHA-256 of a tensor at its own type after each of its overlays.
///
/// # Errors
/// As for decoding; `Cancelled`.
pub(crate) fn effective_digests<R: ReadAt>(
    tensor: &EffectiveTensor<'_, R>,
    progress: &dyn Progress,
) -> Result<Vec<Digest>> {
    let view = tensor.base();
    tensor
        .digests(|bytes| step(progress, bytes))
        .map_err(|e| view.container().locate(e.in_tensor(view.name())))
}

/// The root over tensors of which some have effective digests (UC-OVL-19). `views` are all tensors,
/// by name.
pub(crate) fn effective_root<R: ReadAt>(
    views: &[TensorView<'_, R>],
    digests: &EffectiveDigests,
) -> Digest {
    let mut tree = TreeHasher::new();
    for view in views {
        let stored = view.entry().encoding.alias_target().unwrap_or(view.name());
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
#[cfg(feature = "checkpoints")]
pub(crate) fn overlay_info_bytes(info: &Map<String, Value>) -> Result<Vec<u8>> {
    let bytes = json::to_canonical(info, Rule::OVL_1)?;
    if bytes.len() > crate::format::MAX_INFO_BYTES {
        return Err(Error::malformed(Rule::OVL_1, "info of an overlay is too long"));
    }
    Ok(bytes)
}

/// Checks overlays without their base, or without all shards of it: what they say of themselves,
/// and their factors. Gives what is wrong.
///
/// # Errors
/// `Io`, `Cancelled`.
pub(crate) fn overlay_forms<R: ReadAt>(
    first: &Container<R>,
    progress: &dyn Progress,
) -> Result<Vec<Error>> {
    let mut wrong = vec![];
    for overlay in first.overlays() {
        wrong.extend(overlay_info(overlay).err().map(|e| first.locate(e)));
        match first.check_factors(overlay, || step(progress, 0)) {
            Err(e) if is_fatal(&e) => return Err(e),
            checked => wrong.extend(checked.err()),
        }
    }
    Ok(wrong)
}

/// Applies the overlays of a pack, which are in its file `first`, one after the other and compares
/// what comes out with what they say. Gives what is wrong with each tensor and root, and how many
/// digests were compared.
///
/// # Errors
/// `Io`, `Cancelled`.
pub(crate) fn overlay_checks<R: ReadAt + Sync>(
    first: &Container<R>,
    views: &[TensorView<'_, R>],
    budget: u64,
    progress: &dyn Progress,
) -> Result<(Vec<Error>, usize)> {
    if first.preamble().is_overlays_only() {
        return Ok((overlay_forms(first, progress)?, 0));
    }
    let (mut wrong, mut compared) = (vec![], 0);
    let stack = first.overlays();
    for overlay in &stack {
        wrong.extend(overlay_info(overlay).err().map(|e| first.locate(e)));
    }
    let mut left: BTreeMap<&str, _> = BTreeMap::new();
    for (name, digests) in decode_overlaid(first, views, &stack, budget, progress)? {
        match digests {
            Ok(digests) => drop(left.insert(name, digests.into_iter())),
            Err(e) if wrong.len() < MAX_FAILURES => wrong.push(e),
            Err(_) => {}
        }
    }
    let mismatch = |rule, what: &str, found: Digest, expected: Digest| {
        let text = format!("{what} is {found}, the overlay says {expected} ({rule})");
        Error::integrity(text)
    };
    let mut digests = EffectiveDigests::new();
    for overlay in &stack {
        step(progress, 0)?;
        for block in &overlay.blocks {
            let next = left.get_mut(block.tensor.as_str()).and_then(Iterator::next);
            let Some(found) = next else { continue };
            compared += 1;
            if found != block.effective_sha256 && wrong.len() < MAX_FAILURES {
                let e = mismatch(Rule::OVL_9, "effective SHA-256", found, block.effective_sha256);
                wrong.push(first.locate(e.in_part(&overlay.name).in_tensor(&block.tensor)));
            }
            digests.insert(block.tensor.clone(), found);
        }
        let root = effective_root(views, &digests);
        if wrong.is_empty() && root != overlay.effective_root {
            let e = mismatch(Rule::OVL_19, "effective root", root, overlay.effective_root);
            wrong.push(first.locate(e.in_tensor(&overlay.name)));
        }
    }
    Ok((wrong, compared))
}

/// A tensor's name, and its digests with one overlay after the other; or what is wrong with it.
type OverlaidTensor<'a> = (&'a str, Result<Vec<Digest>>);

/// Decodes each tensor that has overlays, with each of them.
///
/// # Errors
/// `Io`, `Cancelled`.
fn decode_overlaid<'a, R: ReadAt + Sync>(
    first: &Container<R>,
    views: &[TensorView<'_, R>],
    stack: &[&'a OverlayEntry],
    budget: u64,
    progress: &dyn Progress,
) -> Result<Vec<OverlaidTensor<'a>>> {
    let view = |name: &str| {
        let at = views.binary_search_by(|v| v.name().cmp(name));
        at.map(|at| &views[at]).map_err(|_| Error::argument("no such tensor").in_tensor(name))
    };
    let mut names: Vec<&str> =
        stack.iter().flat_map(|o| o.blocks.iter().map(|b| b.tensor.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    let cost = |i: usize| {
        let base = view(names[i]).map_or(0, |v| DecodeOptions::tiles_cost(v, 0));
        base.saturating_add(EffectiveTensor::<R>::cost(stack, names[i]))
    };
    let found = par::map_within(names.len(), budget, cost, |i| {
        let digests = view(names[i])
            .and_then(|view| EffectiveTensor::read(first, view, stack.len()))
            .and_then(|tensor| effective_digests(&tensor, progress));
        match digests {
            Err(e) if is_fatal(&e) => Err(e),
            digests => Ok(digests),
        }
    })?;
    Ok(names.into_iter().zip(found).collect())
}

fn is_fatal(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Io | ErrorKind::Cancelled)
}
