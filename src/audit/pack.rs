//! Everything that can be checked of a pack, and the receipt of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::against::against;
use super::rederive::Rederive;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CHUNK_BYTES, Digest};
use crate::limits::Limits;
use crate::manifest::{Check, Failure, INDEX_ENDING, Manifest, Pack, VerifyOptions};
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
    /// The checkpoint that the pack was made from: it is compared, and the pack is made again from it. Default: none.
    pub source: Option<PathBuf>,
    /// The calibration that the pack was made with. Default: none.
    pub calibration: Option<PathBuf>,
    /// What a look at a signature of the pack's file found: the key, and what is wrong. Default: none.
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

    /// Audits the pack at `location`, a path or an address. What is wrong with the pack is in the receipt.
    ///
    /// # Errors
    /// `Io`; `InvalidArgument` when a calibration is missing, or was given without need; those of reading the source.
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
                self.audit_pack(&mut receipt, &pack, location, source.as_ref(), progress)?
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

    fn audit_pack(
        &self,
        receipt: &mut AuditReceipt,
        pack: &Pack<Input>,
        location: &Path,
        source: Option<&Source>,
        progress: &dyn Progress,
    ) -> Result<()> {
        if source.is_some() {
            // Of one shard there is no source to make it from.
            pack.require_complete()?;
            if let Ok(manifest) = pack.manifest() {
                self.check_calibration(&manifest)?;
            }
        }
        let preamble = pack.containers()[0].preamble();
        receipt.format_version =
            Some(format!("{}.{}", preamble.format_major, preamble.format_minor));
        if pack.require_complete().is_err() {
            receipt.shard = Some(AuditedShard {
                number: preamble.shard_number.into(),
                count: preamble.shard_count.into(),
            });
        }
        let mut names = vec![];
        if let Some(index) = pack.shard_index() {
            // The index file may be called anything that ends like one.
            names.extend(index.shards.iter().map(|s| s.file.clone()));
            let index = Input::open(location)?;
            receipt.files.push(audited(&index, Some(format!("pack{INDEX_ENDING}")), progress)?);
        }
        for (i, container) in pack.containers().iter().enumerate() {
            let name = names.get(i).cloned();
            receipt.files.push(audited(container.reader(), name, progress)?);
        }

        let options = VerifyOptions::new().with_max_ram(self.max_ram);
        let report = options.verify_pack_with(pack, progress)?;
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
        report.failures.iter().for_each(|f| receipt.fail(f, &names));

        let manifest = pack.manifest().ok();
        let claimed = manifest.as_ref().map(|m| &m.tensors);
        receipt.tensors = pack
            .tensors()
            .map(|t| AuditedTensor {
                name: t.name().to_owned(),
                dtype: t.dtype().name().to_owned(),
                shape: t.shape().iter().copied().map(AuditedDimension::from).collect(),
                encoding: t.entry().encoding.name().to_owned(),
                decoded_sha256: t.entry().decoded_sha256.to_string(),
                source_sha256: claimed.and_then(|c| Some(c.get(t.name())?.sha256.clone())),
            })
            .collect();
        if let Some(manifest) = &manifest {
            receipt.made = Some(made(pack, manifest)?);
        }
        check_receipts(receipt, pack, &names);
        if let Some(root) = self.root {
            receipt.against.insert("root".into(), root.to_string());
            let known = receipt.roots.values().any(|r| *r == root.to_string());
            receipt.set("root", if known { Check::Ok } else { Check::Mismatch });
            if !known {
                let text = format!("no root of the pack is {root}");
                receipt.fail(&Failure::from(&Error::integrity(text)), &[]);
            }
        }
        match (source, &manifest) {
            (Some(source), Some(manifest)) => {
                self.audit_source(receipt, pack, manifest, source, report.exact, &names, progress)
            }
            (Some(_), None) => {
                receipt.set("source", Check::Mismatch);
                Ok(())
            }
            (None, _) => Ok(()),
        }
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

    #[allow(clippy::too_many_arguments, reason = "one step of `audit_pack`")]
    fn audit_source(
        &self,
        receipt: &mut AuditReceipt,
        pack: &Pack<Input>,
        manifest: &Manifest,
        source: &Source,
        exact: Check,
        names: &[String],
        progress: &dyn Progress,
    ) -> Result<()> {
        let check = |failures: &[Failure]| {
            if failures.is_empty() { Check::Ok } else { Check::Mismatch }
        };
        let found = against(pack, manifest, source, progress, exact)?;
        receipt.set("source", check(&found.failures));
        for (name, count) in [
            ("source_tensors_equal", found.exact),
            ("source_tensors_claimed", found.claimed),
            ("source_files_equal", found.files),
        ] {
            receipt.counts.insert(name.into(), count);
        }
        found.failures.iter().for_each(|f| receipt.fail(f, names));
        let damaged = ["structure", "stored", "decoded"]
            .iter()
            .any(|c| receipt.checks.get(*c).is_some_and(|c| c == Check::Mismatch.name()));
        if damaged || !found.failures.is_empty() {
            // Nothing more to learn: of another source, or whole, there is no such pack.
            return Ok(());
        }
        let temp = tempfile::Builder::new().prefix(".uc-audit-").tempdir_in(&self.work_dir);
        let temp = temp.map_err(|e| {
            Error::io("can't write here", e).in_file(self.work_dir.display().to_string())
        })?;
        let work = Rederive {
            source,
            calibration: self.calibration.as_deref(),
            work_dir: temp.path(),
            max_ram: self.max_ram,
        };
        let options = match work.options(pack, manifest) {
            Err(e) => {
                receipt.set("rederived", Check::Mismatch);
                receipt.fail(&Failure::from(&e.in_part("manifest")), names);
                return Ok(());
            }
            Ok(options) => options,
        };
        let (rederived, failures) = work.run(pack, manifest, &options, progress)?;
        let outcome = match rederived.same_encoder {
            true => check(&failures),
            // What another encoder makes may differ.
            false => Check::NotChecked,
        };
        receipt.set("rederived", outcome);
        receipt.against.insert("encoder".into(), rederived.encoder.clone());
        receipt.rederived = Some(rederived);
        failures.iter().for_each(|f| receipt.fail(f, names));
        Ok(())
    }
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

/// Records of evaluations in the pack: that they are of this pack, and that their headlines follow from their rows.
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
