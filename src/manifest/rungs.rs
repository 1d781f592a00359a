//! Rungs: what a pack decodes to when fewer planes are read, and the roots over that (UC-MAN-9).

use sha2::{Digest as _, Sha256};

use crate::container::{DecodeOptions, TensorView, WHOLE_BYTES};
use crate::error::{Error, Result};
use crate::format::{Digest, TreeHasher, tensor_leaf};
use crate::par;
use crate::progress::{Progress, step};
use crate::storage::ReadAt;

/// The decoded root at `rung` planes. `views` are all tensors of a pack, by name.
///
/// # Errors
/// As for decoding; `Cancelled`.
pub(crate) fn rung_root<R: ReadAt + Sync>(
    views: &[TensorView<'_, R>],
    rung: u8,
    budget: u64,
    progress: &dyn Progress,
) -> Result<Digest> {
    let whole = par::share(budget, WHOLE_BYTES);
    let cost = |i: usize| DecodeOptions::tiles_cost(&views[i], whole);
    let digests = par::map_within(views.len(), budget, cost, |i| {
        let view = &views[i];
        if !view.entry().encoding.is_quantized() {
            return Ok(view.entry().decoded_sha256);
        }
        let mut sha = Sha256::new();
        let options = DecodeOptions::new().with_planes(rung);
        options.decode_tiles_within(view, whole, |bytes| {
            sha.update(bytes);
            step(progress, bytes.len() as u64)
        })?;
        Ok(Digest(sha.finalize().into()))
    })?;
    let mut tree = TreeHasher::new();
    for (i, view) in views.iter().enumerate() {
        let digest = match view.entry().encoding.alias_target() {
            // Targets come with their names in order.
            Some(target) => {
                let at = views.binary_search_by(|v| v.name().cmp(target));
                at.map(|at| digests[at]).map_err(|_| Error::argument("alias of nothing"))?
            }
            None => digests[i],
        };
        tree.push(tensor_leaf(view.name(), view.dtype(), view.shape(), digest));
    }
    Ok(tree.root())
}
