//! A pack against the checkpoint it claims to come from.

use sha2::{Digest as _, Sha256};

use super::source::Source;
use crate::container::{Container, ReadAt};
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::manifest::{Failure, Manifest};
use crate::par;
use crate::progress::{Progress, step};

/// Compares every tensor of `source` with the source digest in the pack's manifest, name by name,
/// with dtype and shape. A raw tensor's source digest is its decoded digest, so raw tensors are
/// thereby compared bit for bit.
///
/// # Errors
/// `Io`, `Cancelled`. What differs is listed in the result.
pub fn against<R: ReadAt + Sync>(
    pack: &Container<R>,
    manifest: &Manifest,
    source: &Source,
    progress: &dyn Progress,
) -> Result<Vec<Failure>> {
    let differs = |name: &str, text: String| {
        Failure::from(&Error::integrity(format!("against the source: {text}")).in_tensor(name))
    };
    let mut failures = Vec::new();
    for t in pack.tensors() {
        if source.tensor(t.name()).is_none() {
            failures.push(differs(t.name(), "not there".into()));
        }
    }
    let tensors = source.tensors();
    let results = par::map(tensors.len(), |i| {
        let t = &tensors[i];
        let Some(view) = pack.tensor(&t.name) else {
            return Ok(Some(differs(&t.name, "not in the pack".into())));
        };
        if (view.dtype(), view.shape()) != (t.dtype, t.shape.as_slice()) {
            return Ok(Some(differs(
                &t.name,
                format!(
                    "{} {:?}, the pack has {} {:?}",
                    t.dtype,
                    t.shape,
                    view.dtype(),
                    view.shape()
                ),
            )));
        }
        let mut sha = Sha256::new();
        source.tiles(t, |bytes| {
            sha.update(bytes);
            step(progress, bytes.len() as u64)
        })?;
        let found = Digest(sha.finalize().into()).to_string();
        let expected = manifest.tensors.get(&t.name).map_or("", |s| s.sha256.as_str());
        Ok((found != expected)
            .then(|| differs(&t.name, format!("SHA-256 is {found}, the manifest says {expected}"))))
    });
    for result in results {
        failures.extend(result?);
    }
    Ok(failures)
}
