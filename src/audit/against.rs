//! A pack against the checkpoint it claims to come from.

use std::collections::BTreeMap;

use crate::container::TensorView;
use crate::error::{Error, Result};
use crate::format::Encoding;
use crate::manifest::{Check, Failure, FileRole, Manifest, Pack, has_residual};
use crate::memory::DEFAULT_MAX_RAM;
use crate::progress::Progress;
use crate::source::{Scan, Scans, Source, SourceTensor, scan};
use crate::storage::ReadAt;

/// What [`against`] compared.
#[derive(Debug, Clone, Default)]
pub struct AgainstReport {
    /// Tensors whose decoded bytes are the source's, bit for bit.
    pub exact: u64,
    /// Those of them that a residual leads to, or that are coded.
    pub decoded: u64,
    /// Quantized tensors whose source digest in the manifest is that of the source. The digest is
    /// the packer's claim: that the planes were made from this source is not shown by it.
    pub claimed: u64,
    /// Carried files that are equal.
    pub files: u64,
    /// What differs.
    pub failures: Vec<Failure>,
}

/// Compares a pack with the checkpoint it claims to come from: every tensor's name, dtype, shape
/// and source digest, raw tensors bit for bit (their source digest is their decoded digest), and
/// every carried file. `exact` is what [`VerifyReport::exact`](crate::VerifyReport::exact) said of
/// this pack: when it is `Ok`, tensors whose exact bits are coded have been decoded and found to be
/// those of the manifest, and so they are compared through it.
///
/// # Errors
/// `Io`, `Cancelled`. What differs is listed in the result.
pub fn against<R: ReadAt + Sync>(
    pack: &Pack<R>,
    manifest: &Manifest,
    source: &Source,
    progress: &dyn Progress,
    exact: Check,
) -> Result<AgainstReport> {
    let mut report = AgainstReport::default();
    for t in pack.tensors() {
        if source.tensor(t.name()).is_none() {
            report.failures.push(differs(t.name(), "not there".into()));
        }
    }
    // A source that is a single file has no carried ones to compare with.
    let whole = source.files.iter().any(|f| f.role == FileRole::Carried);
    let scans = scan(source, whole, DEFAULT_MAX_RAM, progress)?;
    let tensors = source.tensors();
    let compare = |(t, scan): (&SourceTensor, &Scan)| {
        let Some(view) = pack.tensor(&t.name) else {
            return Some(differs(&t.name, "not in the pack".into()));
        };
        if (view.dtype(), view.shape()) != (t.dtype, t.shape.as_slice()) {
            let (dtype, shape) = (view.dtype(), view.shape());
            let text = format!("{} {:?}, the pack has {dtype} {shape:?}", t.dtype, t.shape);
            return Some(differs(&t.name, text));
        }
        let found = scan.sha256.to_string();
        let expected = manifest.tensors.get(&t.name).map_or("", |s| s.sha256.as_str());
        (found != expected)
            .then(|| differs(&t.name, format!("SHA-256 is {found}, the manifest says {expected}")))
    };
    let results: Vec<_> = tensors.iter().zip(&scans.tensors).map(compare).collect();
    for (t, result) in tensors.iter().zip(results) {
        match result {
            Some(failure) => report.failures.push(failure),
            None => match pack.tensor(&t.name).map(|v| exactness(&v)) {
                Some(Exactness::Stored) => report.exact += 1,
                Some(Exactness::Coded) if exact == Check::Ok => {
                    (report.exact, report.decoded) = (report.exact + 1, report.decoded + 1);
                }
                _ => report.claimed += 1,
            },
        }
    }
    compare_carried(pack, source, &scans, whole, &mut report);
    Ok(report)
}

fn differs(name: &str, text: String) -> Failure {
    Failure::from(&Error::integrity(format!("against the source: {text}")).in_tensor(name))
}

/// Compares carried files; `whole` when the source has such.
fn compare_carried<R: ReadAt>(
    pack: &Pack<R>,
    source: &Source,
    scans: &Scans,
    whole: bool,
    report: &mut AgainstReport,
) {
    // Weights files may be cut differently; their tensors were compared.
    let theirs: BTreeMap<&str, String> = source
        .files
        .iter()
        .zip(&scans.files)
        .filter(|(f, _)| f.role == FileRole::Carried)
        .filter_map(|(f, scan)| Some((f.path.as_str(), scan.as_ref()?.sha256.to_string())))
        .collect();
    let ours: BTreeMap<&str, String> =
        pack.files().iter().map(|f| (f.path.as_str(), f.sha256.to_string())).collect();
    for path in theirs.keys().chain(ours.keys().filter(|p| whole && !theirs.contains_key(*p))) {
        match (theirs.get(path), ours.get(path)) {
            (Some(x), Some(y)) if x == y => report.files += 1,
            (Some(_), Some(_)) => report.failures.push(differs(path, "the file differs".into())),
            (Some(_), None) => report.failures.push(differs(path, "not in the pack".into())),
            _ => report.failures.push(differs(path, "not there".into())),
        }
    }
}

/// How a tensor holds the source's bits.
enum Exactness {
    /// As they are: the decoded digest is that of the source.
    Stored,
    /// A residual leads to them.
    Coded,
    Not,
}

fn exactness<R: ReadAt>(view: &TensorView<'_, R>) -> Exactness {
    match view.resolve() {
        Ok(v) if has_residual(&v) => Exactness::Coded,
        Ok(v) if v.entry().encoding == Encoding::Raw => Exactness::Stored,
        _ => Exactness::Not,
    }
}
