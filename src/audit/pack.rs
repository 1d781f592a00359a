//! Everything that can be checked of a pack, and the receipt of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::against::against;
use super::rederive::Rederive;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CHUNK_BYTES, Digest};
use crate::limits::Limits;
use crate::manifest::{Check, Failure, INDEX_ENDING, Manifest, Pack, VerifyOptions, VerifyReport};
use crate::memory::DEFAULT_MAX_RAM;
use crate::memory::to_usize;
use crate::progress::{NoProgress, Progress, step};
use crate::receipt::{
    self, AuditReceipt, AuditedDimension, AuditedFile, AuditedManifest, AuditedShard, AuditedTensor,
};
use crate::setters::setters;
use crate::source::Source;
use crate::storage::{Input, ReadAt};

/// What to audit a pack against.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuditOptions {
    /// A root that was published: stored, decoded or effective. Default: none.
    pub root: Option<Digest>,
    /// The checkpoint that the pack was made from: it is compared, and the pack is made again from
    /// it. Default: none.
    pub source: Option<PathBuf>,
    /// The calibration that the pack was made with. Default: none.
    pub calibration: Option<PathBuf>,
    /// What a look at a signature of the pack's file found: the key, and what is wrong. Default:
    /// none.
    pub signature: Option<(String, Option<String>)>,
    /// Folder for the pack that is made again. Default: the system's for temporary files.
    pub work_dir: PathBuf,
    /// Bytes of memory to stay within. Default [`DEFAULT_MAX_RAM`].
    pub max_ram: u64,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self {
            root: None,
            source: None,
            calibration: None,
            signature: None,
            work_dir: std::env::temp_dir(),
            max_ram: DEFAULT_MAX_RAM,
        }
    }
}

impl AuditOptions {
    /// Against nothing from outside.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_root: root = Option<Digest>,
        with_source: source = Option<PathBuf>,
        with_calibration: calibration = Option<PathBuf>,
        with_signature: signature = Option<(String, Option<String>)>,
        with_work_dir: work_dir = PathBuf,
        with_max_ram: max_ram = u64,
    }

    /// Audits the pack at `location`, a path or an address. What is wrong with the pack is in the
    /// receipt.
    ///
    /// # Errors
    /// `Io`; `InvalidArgument` when a calibration is missing, or was given without need; those of
    /// reading the source.
    pub fn audit(&self, location: &Path) -> Result<AuditReceipt> {
        self.audit_with(location, &NoProgress)
    }

    /// As [`AuditOptions::audit`], with progress in bytes.
    ///
    /// # Errors
    /// As [`AuditOptions::audit`]; `Cancelled`.
    pub fn audit_with(&self, location: &Path, progress: &dyn Progress) -> Result<AuditReceipt> {
        let source = self.source.as_deref().map(Source::open).transpose()?;
        let mut receipt = AuditReceipt::new();
        if let Some((key, wrong)) = &self.signature {
            receipt.against.insert("signature_key".into(), key.clone());
            let check = if wrong.is_none() { Check::Ok } else { Check::Mismatch };
            receipt.set("signature", check);
            if let Some(reason) = wrong {
                receipt.fail(&Failure::from(&Error::integrity(reason.clone())), &[]);
            }
        }
        // The same limits everywhere: what is read must not depend on the machine.
        match Pack::open_with(location, |_| true, Limits::default()) {
            Ok(pack) => {
                let names = pack
                    .shard_index()
                    .map_or(vec![], |index| index.shards.iter().map(|s| s.file.clone()).collect());
                let receipt = &mut receipt;
                let mut audit = Audit { options: self, pack: &pack, names, receipt, progress };
                audit.run(location, source.as_ref())?;
            }
            Err(e) if about_the_pack(&e) => {
                // Its own bytes are what there is to name it by.
                receipt.files.push(audited(&Input::open(location)?, None, progress)?);
                receipt.set("structure", Check::Mismatch);
                receipt.fail(&Failure::from(&e), &[]);
            }
            Err(e) => return Err(e),
        }
        receipt.settle(self.source.is_some());
        Ok(receipt)
    }

    /// Whether a calibration was given where one is needed: before hours of work.
    fn check_calibration(&self, manifest: &Manifest) -> Result<()> {
        match (&manifest.calibration, &self.calibration) {
            (Some(sha), None) => Err(Error::argument(format!(
                "the pack was made with a calibration, of SHA-256 {sha}: give it too"
            ))),
            (None, Some(_)) => Err(Error::argument("the pack was made without a calibration")),
            _ => Ok(()),
        }
    }
}

/// The audit of a pack that opens.
struct Audit<'a> {
    options: &'a AuditOptions,
    pack: &'a Pack<Input>,
    /// Files of the shards, as the index names them.
    names: Vec<String>,
    receipt: &'a mut AuditReceipt,
    progress: &'a dyn Progress,
}

impl Audit<'_> {
    fn run(&mut self, location: &Path, source: Option<&Source>) -> Result<()> {
        let (options, pack) = (self.options, self.pack);
        if source.is_some() {
            // Of one shard there is no source to make it from.
            pack.require_complete()?;
            if let Ok(manifest) = pack.manifest() {
                options.check_calibration(&manifest)?;
            }
        }
        self.identify();
        self.list_files(location)?;
        let verify = VerifyOptions::new().with_max_ram(options.max_ram);
        let report = verify.verify_pack_with(pack, self.progress)?;
        self.record(&report);
        let manifest = pack.manifest().ok();
        self.receipt.tensors = audited_tensors(pack, manifest.as_ref());
        if let Some(manifest) = &manifest {
            self.receipt.made = Some(made(pack, manifest)?);
        }
        check_receipts(self.receipt, pack, &self.names);
        if let Some(root) = options.root {
            self.compare_root(root);
        }
        match (source, &manifest) {
            (Some(source), Some(manifest)) => {
                if self.compare_source(manifest, source, report.exact)? {
                    self.rederive(manifest, source)?;
                }
            }
            (Some(_), None) => self.receipt.set("source", Check::Mismatch),
            (None, _) => {}
        }
        Ok(())
    }

    /// The format's version, and which shard it is when it is one alone.
    fn identify(&mut self) {
        let preamble = self.pack.containers()[0].preamble();
        self.receipt.format_version =
            Some(format!("{}.{}", preamble.format_major, preamble.format_minor));
        if self.pack.require_complete().is_err() {
            self.receipt.shard = Some(AuditedShard {
                number: preamble.shard_number.into(),
                count: preamble.shard_count.into(),
            });
        }
    }

    /// Lengths and digests of all files.
    fn list_files(&mut self, location: &Path) -> Result<()> {
        if self.pack.shard_index().is_some() {
            // The index file may be called anything that ends like one.
            let (index, name) = (Input::open(location)?, format!("pack{INDEX_ENDING}"));
            self.receipt.files.push(audited(&index, Some(name), self.progress)?);
        }
        for (i, container) in self.pack.containers().iter().enumerate() {
            let name = self.names.get(i).cloned();
            self.receipt.files.push(audited(container.reader(), name, self.progress)?);
        }
        Ok(())
    }

    /// What verification found.
    fn record(&mut self, report: &VerifyReport) {
        let receipt = &mut *self.receipt;
        for (name, check) in [
            ("structure", report.structure),
            ("stored", report.stored),
            ("decoded", report.decoded),
            ("effective", report.effective),
            ("exact", report.exact),
        ] {
            receipt.set(name, check);
        }
        for (name, count) in [
            ("tensors", report.tensors_checked),
            ("effective_tensors", report.effective_checked),
            ("exact_tensors", report.exact_checked),
            ("rungs", report.rungs_checked),
        ] {
            receipt.counts.insert(name.into(), count as u64);
        }
        if report.rungs_checked > 0 {
            receipt.set("rungs", report.decoded);
        }
        receipt.roots.insert("stored".into(), report.stored_root.to_string());
        if report.decoded == Check::Ok {
            receipt.roots.insert("decoded".into(), report.decoded_root.to_string());
        }
        if let (Check::Ok, Some(root)) = (report.effective, report.effective_root) {
            receipt.roots.insert("effective".into(), root.to_string());
        }
        self.fail_all(&report.failures);
    }

    fn fail_all(&mut self, failures: &[Failure]) {
        failures.iter().for_each(|f| self.receipt.fail(f, &self.names));
    }

    fn compare_root(&mut self, root: Digest) {
        self.receipt.against.insert("root".into(), root.to_string());
        let known = self.receipt.roots.values().any(|r| *r == root.to_string());
        self.receipt.set("root", if known { Check::Ok } else { Check::Mismatch });
        if !known {
            let text = format!("no root of the pack is {root}");
            self.receipt.fail(&Failure::from(&Error::integrity(text)), &[]);
        }
    }

    /// Compares the pack with its source. False when making it again can teach nothing more: a
    /// damaged pack, or one of another source, doesn't come out the same.
    fn compare_source(
        &mut self,
        manifest: &Manifest,
        source: &Source,
        exact: Check,
    ) -> Result<bool> {
        let found = against(self.pack, manifest, source, self.progress, exact)?;
        self.receipt.set("source", Check::of(&found.failures));
        for (name, count) in [
            ("source_tensors_equal", found.exact),
            ("source_tensors_claimed", found.claimed),
            ("source_files_equal", found.files),
        ] {
            self.receipt.counts.insert(name.into(), count);
        }
        self.fail_all(&found.failures);
        let checks = &self.receipt.checks;
        let damaged = ["structure", "stored", "decoded"]
            .iter()
            .any(|c| checks.get(*c).is_some_and(|c| c == Check::Mismatch.name()));
        Ok(!damaged && found.failures.is_empty())
    }

    /// Makes the pack again from its source, and compares.
    fn rederive(&mut self, manifest: &Manifest, source: &Source) -> Result<()> {
        let AuditOptions { work_dir, calibration, max_ram, .. } = self.options;
        let temp = tempfile::Builder::new().prefix(".uc-audit-").tempdir_in(work_dir);
        let temp = temp.map_err(|e| {
            Error::io("can't write here", e).in_file(work_dir.display().to_string())
        })?;
        let work = Rederive {
            source,
            calibration: calibration.as_deref(),
            work_dir: temp.path(),
            max_ram: *max_ram,
        };
        let options = match work.options(self.pack, manifest) {
            Err(e) => {
                self.receipt.set("rederived", Check::Mismatch);
                self.receipt.fail(&Failure::from(&e.in_part("manifest")), &self.names);
                return Ok(());
            }
            Ok(options) => options,
        };
        let (rederived, failures) = work.run(self.pack, manifest, &options, self.progress)?;
        let outcome = match rederived.same_encoder {
            true => Check::of(&failures),
            // What another encoder makes may differ.
            false => Check::NotChecked,
        };
        self.receipt.set("rederived", outcome);
        self.receipt.against.insert("encoder".into(), rederived.encoder.clone());
        self.receipt.rederived = Some(rederived);
        self.fail_all(&failures);
        Ok(())
    }
}

fn audited_tensors(pack: &Pack<Input>, manifest: Option<&Manifest>) -> Vec<AuditedTensor> {
    let claimed = manifest.map(|m| &m.tensors);
    let audited = pack.tensors().map(|t| AuditedTensor {
        name: t.name().to_owned(),
        dtype: t.dtype().name().to_owned(),
        shape: t.shape().iter().copied().map(AuditedDimension::from).collect(),
        encoding: t.entry().encoding.name().to_owned(),
        decoded_sha256: t.entry().decoded_sha256.to_string(),
        source_sha256: claimed.and_then(|c| Some(c.get(t.name())?.sha256.clone())),
    });
    audited.collect()
}

/// Whether an error says something of the pack rather than of this machine.
fn about_the_pack(e: &Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::Malformed(_)
            | ErrorKind::Integrity
            | ErrorKind::Truncated { .. }
            | ErrorKind::UnsupportedVersion
            | ErrorKind::UnsupportedFeature
    )
}

fn audited(file: &Input, name: Option<String>, progress: &dyn Progress) -> Result<AuditedFile> {
    let bytes = file.len_bytes()?;
    let mut sha = Sha256::new();
    let mut piece = vec![0; to_usize(CHUNK_BYTES.min(bytes))?];
    let mut at = 0;
    while at < bytes {
        let piece = &mut piece[..to_usize(CHUNK_BYTES.min(bytes - at))?];
        file.read_exact_at(at, piece)?;
        sha.update(&*piece);
        at += piece.len() as u64;
        step(progress, piece.len() as u64)?;
    }
    Ok(AuditedFile { name, bytes, sha256: Digest(sha.finalize().into()).to_string() })
}

fn made(pack: &Pack<Input>, manifest: &Manifest) -> Result<AuditedManifest> {
    let recipe = serde_json_canonicalizer::to_vec(&manifest.recipe)
        .map_err(|e| Error::argument(format!("recipe: {e}")).with_source(e))?;
    Ok(AuditedManifest {
        sha256: Digest::of(&pack.containers()[0].manifest_bytes()?).to_string(),
        encoder: manifest.encoder.clone(),
        calibration: manifest.calibration.clone(),
        recipe: Digest::of(&recipe).to_string(),
        overlays: pack.overlays().into_iter().map(|o| o.name.clone()).collect(),
    })
}

/// Records of evaluations in the pack: that they are of this pack, and that their headlines follow
/// from their rows.
fn check_receipts(receipt: &mut AuditReceipt, pack: &Pack<Input>, names: &[String]) {
    // What is wrong with attachments is a failure of the structure.
    let Ok(attachments) = pack.attachments() else { return };
    let found = receipt::check(&attachments, pack.stored_root(), pack.decoded_root());
    receipt.counts.insert("receipts".into(), found.len() as u64);
    if found.is_empty() {
        return;
    }
    let mut digests = BTreeMap::new();
    let mut check = Check::Ok;
    for r in found {
        if let Err(reason) = &r.record {
            check = Check::Mismatch;
            let e = Error::integrity(reason.clone()).in_part("attachments").in_tensor(&r.name);
            receipt.fail(&Failure::from(&e), names);
        }
        digests.insert(r.name, r.sha256.to_string());
    }
    receipt.receipts = digests;
    receipt.set("receipts", check);
}
