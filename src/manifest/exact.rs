//! Exact tensors against the source digests of the manifest (UC-EXA-11, UC-EXA-30).

use std::collections::HashSet;

use sha2::{Digest as _, Sha256};

use super::failure::Failure;
use super::model::Manifest;
use crate::container::{DecodeOptions, TensorView};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, PartKind};
use crate::par;
use crate::progress::{Progress, step};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// Whether the source's own bits of a tensor are coded in the pack.
pub(crate) fn has_residual<R: ReadAt>(view: &TensorView<'_, R>) -> bool {
    view.entry().parts.iter().any(|p| p.kind == PartKind::Residual)
}

/// Decodes the exact bytes of tensors that have them coded, and compares them with the manifest.
/// Gives what is wrong with each, or nothing.
///
/// # Errors
/// `Io`, `Cancelled`.
pub(crate) fn exact_checks<R: ReadAt + Sync>(
    views: &[TensorView<'_, R>],
    manifest: &Manifest,
    budget: u64,
    progress: &dyn Progress,
) -> Result<Vec<Result<()>>> {
    let cost = |i: usize| DecodeOptions::tiles_cost(&views[i], 0);
    par::map_within(views.len(), budget, cost, |i| {
        let view = &views[i];
        match check(view, manifest, progress) {
            Err(e) if matches!(e.kind(), ErrorKind::Io | ErrorKind::Cancelled) => Err(e),
            check => Ok(check),
        }
    })
}

/// UC-EXA-30: aliases have the exact bytes of their targets, so the manifest gives both one source
/// digest. (UC-MAN-3 says so of aliases of raw and coded tensors.)
pub(crate) fn alias_checks<R: ReadAt>(
    views: &[TensorView<'_, R>],
    manifest: &Manifest,
) -> Vec<Failure> {
    let exact: HashSet<&str> =
        views.iter().filter(|v| has_residual(v)).map(TensorView::name).collect();
    let source = |name: &str| manifest.tensors.get(name).map(|t| t.sha256.as_str());
    let wrong = views.iter().filter_map(|view| {
        let target = view.entry().encoding.alias_target()?;
        let same = !exact.contains(target) || source(view.name()) == source(target);
        (!same).then(|| {
            let text = format!(
                "the manifest gives another source digest than that of \"{}\", of which it is an alias ({})",
                target.escape_debug(),
                Rule::EXA_30
            );
            Failure::from(&view.container().locate(Error::integrity(text).in_tensor(view.name())))
        })
    });
    wrong.collect()
}

fn check<R: ReadAt>(
    view: &TensorView<'_, R>,
    manifest: &Manifest,
    progress: &dyn Progress,
) -> Result<()> {
    let mut sha = Sha256::new();
    DecodeOptions::new().with_exact(true).decode_tiles(view, |bytes| {
        sha.update(bytes);
        step(progress, bytes.len() as u64)
    })?;
    let found = Digest(sha.finalize().into()).to_string();
    let expected = manifest.tensors.get(view.name()).map_or("", |t| t.sha256.as_str());
    if found == expected {
        return Ok(());
    }
    let text = format!("exact SHA-256 is {found}, the manifest says {expected} ({})", Rule::EXA_11);
    Err(view.container().locate(Error::integrity(text).in_tensor(view.name())))
}
