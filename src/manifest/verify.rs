//! Verifying a whole pack: every stored byte, both roots, every decoded tensor.

use std::collections::BTreeMap;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::failure::{Check, Failure, add, sort_out};
use super::shards::{ShardIndex, stored_root_of};
use super::stored::{GROUP_BYTES, StoredPass, check_stored};
use super::{
    Manifest, Pack, alias_checks, exact_checks, has_residual, overlay_checks, overlay_forms,
    rung_root,
};
use crate::container::{Container, DecodeOptions, TensorView, WHOLE_BYTES};
use crate::error::{Error, Result};
use crate::format::{Digest, TensorEntry, TreeHasher, decoded_root, tensor_leaf};
use crate::memory::{self, DEFAULT_MAX_RAM};
use crate::par;
use crate::progress::{NoProgress, Progress, step};
use crate::rule::Rule;
use crate::setters::setters;
use crate::storage::ReadAt;

/// How much to verify.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Decode every tensor and compare it with its digest. Default true.
    pub decode: bool,
    /// Bytes of memory to stay within, whatever the size of the pack; at least
    /// [`MIN_MAX_RAM`](crate::MIN_MAX_RAM). Default [`DEFAULT_MAX_RAM`](crate::DEFAULT_MAX_RAM).
    pub max_ram: u64,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { decode: true, max_ram: DEFAULT_MAX_RAM }
    }
}

/// What [`VerifyOptions::verify`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Checksums of every part, padding, manifest and attachments.
    pub structure: Check,
    /// The stored root, computed again from the file's bytes.
    pub stored: Check,
    /// Every tensor's decoded digest, and the decoded root over them.
    pub decoded: Check,
    /// Tensors that were decoded and compared.
    pub tensors_checked: usize,
    /// Every tensor whose source bits are in the pack, against the source digest in the manifest.
    /// Not checked when there are none.
    pub exact: Check,
    /// Tensors whose exact bits were decoded and compared.
    pub exact_checked: usize,
    /// Every tensor with its overlays, and the effective roots. Not checked when there are no
    /// overlays.
    pub effective: Check,
    /// The root with all overlays, as computed when they were checked.
    pub effective_root: Option<Digest>,
    /// Tensors with overlays that were decoded and compared, one for each overlay on each.
    pub effective_checked: usize,
    /// Rungs whose decoded roots are in the manifest and were compared.
    pub rungs_checked: usize,
    /// The stored root as computed from the bytes.
    pub stored_root: Digest,
    /// The decoded root as computed from decoded tensors; from the recorded digests when decoding
    /// was not asked for.
    pub decoded_root: Digest,
    /// Everything that is wrong.
    pub failures: Vec<Failure>,
    /// Digests of the tensors of one file as found, by name.
    digests: Vec<Digest>,
}

impl VerifyReport {
    /// Of what has these roots, before anything was found to be wrong.
    fn new(stored_root: Digest, decoded_root: Digest) -> Self {
        Self {
            structure: Check::Ok,
            stored: Check::Ok,
            decoded: Check::Ok,
            tensors_checked: 0,
            exact: Check::NotChecked,
            exact_checked: 0,
            rungs_checked: 0,
            effective: Check::NotChecked,
            effective_checked: 0,
            effective_root: None,
            stored_root,
            decoded_root,
            failures: vec![],
            digests: vec![],
        }
    }

    /// Adds what was found in one shard; the roots of all are still to be computed.
    fn add_shard(&mut self, shard: Self) {
        self.structure = self.structure.and(shard.structure);
        self.stored = self.stored.and(shard.stored);
        self.decoded = self.decoded.and(shard.decoded);
        self.tensors_checked += shard.tensors_checked;
        self.failures.extend(shard.failures);
    }

    /// Compares the roots of all shards with those that the index lists.
    fn check_roots(&mut self, index: &ShardIndex) {
        for (what, found, listed, check) in [
            ("stored", self.stored_root, &index.stored_root, &mut self.stored),
            ("decoded", self.decoded_root, &index.decoded_root, &mut self.decoded),
        ] {
            if found.to_string() != *listed {
                *check = Check::Mismatch;
                let e = Error::integrity(format!(
                    "{what} root of all shards is {found}, the index says {listed} ({})",
                    if what == "stored" { Rule::SHD_6 } else { Rule::SHD_17 }
                ));
                self.failures.push(Failure::from(&e));
            }
        }
    }

    /// Whether everything that was compared is equal.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }
}

impl VerifyOptions {
    /// Verifies everything.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_decode: decode = bool,
        with_max_ram: max_ram = u64,
    }

    /// Verifies one file. What is wrong is listed in the report; an error means that the file could
    /// not be examined. Of a sharded pack this is one shard: [`VerifyOptions::verify_pack`]
    /// verifies all.
    ///
    /// # Errors
    /// `Io`, `Cancelled`, `LimitExceeded`; `InvalidArgument` for too little memory.
    pub fn verify<R: ReadAt + Sync>(&self, file: &Container<R>) -> Result<VerifyReport> {
        let budget = self.work_budget(file)?;
        let mut report =
            self.verify_file(file, budget, Some(&|| manifest_of(file)), &NoProgress)?;
        if !file.preamble().is_sharded() {
            let views: Vec<_> = file.tensors().collect();
            self.other_rungs(&mut report, file, views, Manifest::read(file), budget, &NoProgress)?;
        } else {
            lone_overlays(&mut report, file, &NoProgress)?;
        }
        Ok(report)
    }

    /// Adds to a report what lies below and beyond the planes: recorded rungs, overlays, which are
    /// in the file `first`, and the exact rung. `views` are all tensors.
    fn other_rungs<R: ReadAt + Sync>(
        &self,
        report: &mut VerifyReport,
        first: &Container<R>,
        mut views: Vec<TensorView<'_, R>>,
        manifest: Result<Manifest>,
        budget: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        // What is wrong with the manifest is a failure of the structure.
        let Some(manifest) = manifest.ok().filter(|_| self.decode) else { return Ok(()) };
        // Where planes are damaged, so are their rungs.
        if report.decoded == Check::Ok {
            for (rung, expected) in &manifest.rungs {
                let planes = rung.parse().map_err(|_| Error::argument("no rung"))?;
                let found = rung_root(&views, planes, budget, progress)?.to_string();
                if found != *expected {
                    let e = Error::integrity(format!(
                        "decoded root of rung {rung} is {found}, the manifest says {expected} ({})",
                        Rule::MAN_9
                    ));
                    report.decoded = Check::Mismatch;
                    add(&mut report.failures, [Failure::from(&e.in_part("manifest"))]);
                }
            }
            report.rungs_checked = manifest.rungs.len();
        }
        if report.decoded == Check::Ok && !first.index().overlays.is_empty() {
            let (wrong, compared) = overlay_checks(first, &views, budget, progress)?;
            let only = first.preamble().is_overlays_only() && wrong.is_empty();
            report.effective = if only { Check::NotChecked } else { Check::Ok };
            report.effective_checked = compared;
            report.effective_root = first.overlays().last().map(|o| o.effective_root);
            for e in wrong {
                report.effective = Check::Mismatch;
                add(&mut report.failures, [Failure::from(&e)]);
            }
        }
        let aliases = alias_checks(&views, &manifest);
        views.retain(has_residual);
        if views.is_empty() {
            return Ok(());
        }
        report.exact = Check::of(&aliases);
        add(&mut report.failures, aliases);
        for check in exact_checks(&views, &manifest, budget, progress)? {
            report.exact_checked += usize::from(check.is_ok());
            let mut failures = vec![];
            sort_out(check, &mut failures)?;
            for failure in failures {
                report.exact = Check::Mismatch;
                // Damage was found in the stored bytes already.
                if !report.failures.contains(&failure) {
                    add(&mut report.failures, [failure]);
                }
            }
        }
        Ok(())
    }

    /// Verifies a whole pack: each file, the manifest against all of them, the roots of a sharded
    /// pack.
    ///
    /// # Errors
    /// As [`VerifyOptions::verify`].
    pub fn verify_pack<R: ReadAt + Sync>(&self, pack: &Pack<R>) -> Result<VerifyReport> {
        self.verify_pack_with(pack, &NoProgress)
    }

    /// As [`VerifyOptions::verify_pack`], with progress in bytes of the file (stored part) and of
    /// decoded tensors.
    ///
    /// # Errors
    /// As [`VerifyOptions::verify`].
    pub fn verify_pack_with<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        progress: &dyn Progress,
    ) -> Result<VerifyReport> {
        match pack.shard_index() {
            None => self.verify_only(pack, progress),
            Some(index) => self.verify_shards(pack, index, progress),
        }
    }

    /// A pack of one file, or one shard of several.
    fn verify_only<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        progress: &dyn Progress,
    ) -> Result<VerifyReport> {
        let file = &pack.containers()[0];
        let manifest = || match pack.require_complete() {
            Ok(()) => pack.manifest().map(drop),
            Err(_) => manifest_of(file),
        };
        let budget = self.work_budget(file)?;
        let mut report = self.verify_file(file, budget, Some(&manifest), progress)?;
        if pack.require_complete().is_ok() {
            let views = pack.tensors().collect();
            self.other_rungs(&mut report, file, views, pack.manifest(), budget, progress)?;
        } else {
            lone_overlays(&mut report, file, progress)?;
        }
        Ok(report)
    }

    fn verify_shards<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        index: &ShardIndex,
        progress: &dyn Progress,
    ) -> Result<VerifyReport> {
        pack.require_complete()?;
        let largest = pack.containers().iter().map(|c| self.largest(c)).max().unwrap_or(0);
        let budget = memory::for_work(self.max_ram, pack.tables_bytes(), largest)?;
        let mut whole = VerifyReport::new(pack.stored_root(), pack.decoded_root());
        let (mut stored_roots, mut leaves) = (vec![], BTreeMap::new());
        for (i, file) in pack.containers().iter().enumerate() {
            let manifest = || pack.manifest().map(drop);
            let manifest: Option<&dyn Fn() -> Result<()>> = (i == 0).then_some(&manifest);
            let report = self.verify_file(file, budget, manifest, progress)?;
            stored_roots.push(report.stored_root);
            for (t, digest) in file.index().tensors.iter().zip(&report.digests) {
                leaves.insert(t.name.as_str(), tensor_leaf(&t.name, t.dtype, &t.shape, *digest));
            }
            whole.add_shard(report);
        }
        whole.stored_root = stored_root_of(stored_roots);
        let mut tree = TreeHasher::new();
        leaves.into_values().for_each(|leaf| tree.push(leaf));
        whole.decoded_root = tree.root();
        whole.check_roots(index);
        let views = pack.tensors().collect();
        let first = &pack.containers()[0];
        self.other_rungs(&mut whole, first, views, pack.manifest(), budget, progress)?;
        Ok(whole)
    }

    fn work_budget<R: ReadAt>(&self, file: &Container<R>) -> Result<u64> {
        memory::for_work(self.max_ram, file.tables_bytes(), self.largest(file))
    }

    /// Memory of the job that needs most.
    fn largest<R: ReadAt>(&self, file: &Container<R>) -> u64 {
        let decode = file.tensors().map(|v| DecodeOptions::tiles_cost(&v, 0)).max().unwrap_or(0);
        if self.decode { decode.max(GROUP_BYTES) } else { GROUP_BYTES }
    }

    fn verify_file<R: ReadAt + Sync>(
        &self,
        pack: &Container<R>,
        budget: u64,
        manifest: Option<&dyn Fn() -> Result<()>>,
        progress: &dyn Progress,
    ) -> Result<VerifyReport> {
        let StoredPass { root: stored_root, chunks, padding } =
            check_stored(pack, budget, progress)?;
        let mut failures = check_structure(pack, chunks, padding, manifest, progress)?;
        let structure = Check::of(&failures);

        let wrong = check_stored_root(pack, stored_root);
        let stored = Check::of(wrong.as_slice());
        failures.extend(wrong);

        let entries = &pack.index().tensors;
        let mut found = match self.decode {
            true => check_decoded(pack, budget, progress)?,
            false => DecodedPass::recorded(entries),
        };
        found.failures.extend(check_decoded_root(pack));
        let mut tree = TreeHasher::new();
        for (t, digest) in entries.iter().zip(&found.digests) {
            tree.push(tensor_leaf(&t.name, t.dtype, &t.shape, *digest));
        }
        let decoded = match (self.decode, Check::of(&found.failures)) {
            (false, Check::Ok) => Check::NotChecked,
            (_, check) => check,
        };
        failures.extend(found.failures);
        Ok(VerifyReport {
            structure,
            stored,
            decoded,
            tensors_checked: found.checked,
            failures,
            digests: found.digests,
            ..VerifyReport::new(stored_root, tree.root())
        })
    }
}

/// UC-SHD-7, UC-SHD-18: of a shard by itself, what its overlays are without the tensors of the
/// others.
fn lone_overlays<R: ReadAt>(
    report: &mut VerifyReport,
    shard: &Container<R>,
    progress: &dyn Progress,
) -> Result<()> {
    for e in overlay_forms(shard, progress)? {
        report.structure = Check::Mismatch;
        let failure = Failure::from(&e);
        // Damage was found in the stored bytes already.
        if !report.failures.contains(&failure) {
            add(&mut report.failures, [failure]);
        }
    }
    Ok(())
}

/// The manifest of a file that is looked at by itself. Only the first shard of a pack has one.
fn manifest_of<R: ReadAt>(file: &Container<R>) -> Result<()> {
    if file.preamble().shard_number == 1 { Manifest::read(file).map(drop) } else { Ok(()) }
}

/// Cuts `0..n` into runs of about [`GROUP_BYTES`].
fn groups(n: usize, cost: impl Fn(usize) -> u64) -> Vec<(Range<usize>, u64)> {
    let mut groups = Vec::new();
    let (mut start, mut sum) = (0, 0u64);
    for i in 0..n {
        sum = sum.saturating_add(cost(i));
        if sum >= GROUP_BYTES || i + 1 == n {
            groups.push((start..i + 1, sum));
            (start, sum) = (i + 1, 0);
        }
    }
    groups
}

/// Adds to damaged chunks what else is wrong with the structure.
fn check_structure<R: ReadAt + Sync>(
    pack: &Container<R>,
    mut failures: Vec<Failure>,
    padding: Option<Failure>,
    manifest: Option<&dyn Fn() -> Result<()>>,
    progress: &dyn Progress,
) -> Result<Vec<Failure>> {
    for file in pack.index().files.iter().chain(&pack.index().heads) {
        sort_out(pack.stream_file(file, |_| step(progress, 0)), &mut failures)?;
    }
    failures.extend(padding);
    if let Some(manifest) = manifest {
        sort_out(manifest(), &mut failures)?;
    }
    sort_out(pack.attachments().map(drop), &mut failures)?;
    failures.dedup();
    Ok(failures)
}

/// What is wrong with the stored root as computed from the bytes.
fn check_stored_root<R: ReadAt>(pack: &Container<R>, found: Digest) -> Option<Failure> {
    let expected = pack.preamble().stored_root;
    (found != expected).then(|| {
        let e = Error::integrity(format!(
            "stored root is {found}, the preamble says {expected} ({})",
            Rule::ROOT_3
        ));
        Failure::from(&pack.locate(e.in_part("preamble").at(128)))
    })
}

/// What is wrong with the decoded root over the digests of the index.
fn check_decoded_root<R: ReadAt>(pack: &Container<R>) -> Option<Failure> {
    let (found, expected) = (decoded_root(&pack.index().tensors), pack.preamble().decoded_root);
    (found != expected).then(|| {
        let e = Error::integrity(format!(
            "decoded root over the index is {found}, the preamble says {expected} ({})",
            Rule::ROOT_2
        ));
        Failure::from(&pack.locate(e.in_part("preamble").at(96)))
    })
}

/// Digests of all tensors of a file, and what is wrong with them.
struct DecodedPass {
    digests: Vec<Digest>,
    /// Tensors that were compared.
    checked: usize,
    failures: Vec<Failure>,
}

impl DecodedPass {
    /// The digests of the index, when nothing is decoded.
    fn recorded(entries: &[TensorEntry]) -> Self {
        let digests = entries.iter().map(|t| t.decoded_sha256).collect();
        Self { digests, checked: 0, failures: vec![] }
    }
}

/// Decodes every tensor, and compares it with the index.
fn check_decoded<R: ReadAt + Sync>(
    pack: &Container<R>,
    budget: u64,
    progress: &dyn Progress,
) -> Result<DecodedPass> {
    let entries = &pack.index().tensors;
    let mut pass = DecodedPass::recorded(entries);
    let all = decode_all(pack, budget, progress)?;
    for ((entry, digest), found) in entries.iter().zip(&mut pass.digests).zip(all) {
        if let Some(failure) = found.failure {
            add(&mut pass.failures, [*failure]);
            continue;
        }
        pass.checked += 1;
        if found.digest != *digest {
            let e = Error::integrity(format!(
                "decoded SHA-256 is {}, the index says {digest} ({})",
                found.digest,
                Rule::TEN_5
            ));
            let e = pack.locate(e.in_tensor(&entry.name));
            add(&mut pass.failures, [Failure::from(&e)]);
            *digest = found.digest;
        }
    }
    Ok(pass)
}

/// A tensor that was decoded.
struct Decoded {
    digest: Digest,
    failure: Option<Box<Failure>>,
}

/// Decodes every tensor.
fn decode_all<R: ReadAt + Sync>(
    pack: &Container<R>,
    budget: u64,
    progress: &dyn Progress,
) -> Result<Vec<Decoded>> {
    let views: Vec<_> = pack.tensors().collect();
    let whole = par::share(budget, WHOLE_BYTES);
    let decode = |view: &TensorView<'_, R>| -> Result<Decoded> {
        // An alias was found to have its target's digest when the pack was opened.
        if view.entry().encoding.alias_target().is_some() {
            return Ok(Decoded { digest: view.entry().decoded_sha256, failure: None });
        }
        let mut sha = Sha256::new();
        let result = DecodeOptions::new().decode_tiles_within(view, whole, |bytes| {
            sha.update(bytes);
            step(progress, bytes.len() as u64)
        });
        let mut failures = Vec::new();
        sort_out(result, &mut failures)?;
        Ok(Decoded { digest: Digest(sha.finalize().into()), failure: failures.pop().map(Box::new) })
    };
    let groups = groups(views.len(), |i| DecodeOptions::tiles_cost(&views[i], whole));
    let decode_group =
        |g: usize| views[groups[g].0.clone()].iter().map(decode).collect::<Result<Vec<_>>>();
    let cost = |g: usize| groups[g].1;
    let found = par::map_within(groups.len(), budget, cost, decode_group)?;
    Ok(found.into_iter().flatten().collect())
}
