//! The receipt of an audit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[cfg(feature = "checkpoints")]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
#[cfg(feature = "checkpoints")]
use crate::manifest::{Check, Failure};
use crate::rule::Rule;

/// What `format` says.
#[cfg(feature = "checkpoints")]
const FORMAT: &str = "ultracompress-audit-1";
/// The type of the predicate in an in-toto Statement.
const PREDICATE_TYPE: &str = "https://docs.rs/ultracompress/spec/audit/1";

/// What an audit checked, against what, and what it found. Equal packs, audited alike by one
/// version, have equal receipts: there is no name of a folder, host or user and no time in it.
///
/// # Spec
/// audit.md; `schema/audit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AuditReceipt {
    /// Always `ultracompress-audit-1`.
    pub format: String,
    /// The program and its version.
    pub tool: String,
    /// The version of the format that the first file says it has; nothing when that can't be read.
    pub format_version: Option<String>,
    /// `ok`; `failed` when anything at all is wrong; `incomplete` when nothing is, but what was
    /// asked for can't be told: the pack has another encoder than the one that made it again,
    /// or is one shard of several.
    pub verdict: String,
    /// Which shard it is, when it is one that was audited by itself.
    pub shard: Option<AuditedShard>,
    /// What was checked: `ok`, `mismatch` or `not_checked`.
    pub checks: BTreeMap<String, String>,
    /// How much was checked.
    pub counts: BTreeMap<String, u64>,
    /// The files of the pack.
    pub files: Vec<AuditedFile>,
    /// Roots as they were computed: `stored`, `decoded`, `effective`.
    pub roots: BTreeMap<String, String>,
    /// What the pack was compared with.
    pub against: BTreeMap<String, String>,
    /// What the manifest says of how the pack was made; nothing without a manifest that can be
    /// read.
    pub made: Option<AuditedManifest>,
    /// How the pack was made again from its source.
    pub rederived: Option<Rederived>,
    /// The tensors, by name, with their digests as they were compared.
    pub tensors: Vec<AuditedTensor>,
    /// Digests of the receipts in the pack, by name.
    pub receipts: BTreeMap<String, String>,
    /// What is wrong.
    pub failures: Vec<AuditFailure>,
}

/// One shard of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedShard {
    /// Its number, from 1.
    pub number: u64,
    /// How many the pack has.
    pub count: u64,
}

/// A dimension. Those beyond 2^53 - 1, which only empty tensors have, are text: numbers of JSON
/// aren't exact there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AuditedDimension {
    /// As a number.
    Number(u64),
    /// As decimal digits.
    Digits(String),
}

impl From<u64> for AuditedDimension {
    fn from(n: u64) -> Self {
        if n < 1 << 53 { Self::Number(n) } else { Self::Digits(n.to_string()) }
    }
}

/// A file of an audited pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedFile {
    /// Its name, where the index of a sharded pack gives it; a single file may be called anything.
    pub name: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it.
    pub sha256: String,
}

/// How a pack was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedManifest {
    /// SHA-256 of the manifest.
    pub sha256: String,
    /// The encoder that it names.
    pub encoder: String,
    /// SHA-256 of the calibration file, if there was one.
    pub calibration: Option<String>,
    /// SHA-256 of the recipe in canonical JSON.
    pub recipe: String,
    /// Overlays, in their order.
    pub overlays: Vec<String>,
}

/// How a pack was made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rederived {
    /// The encoder that made it again.
    pub encoder: String,
    /// Whether that is the encoder of the pack. Where it isn't, bytes may differ without anything
    /// being wrong.
    pub same_encoder: bool,
    /// Bytes of the core that were compared one by one; overlays are left out of the comparison,
    /// they are inputs.
    pub bytes_compared: u64,
    /// Tensors that decode to the same bytes.
    pub tensors_equal: u64,
    /// Tensors that don't.
    pub tensors_different: u64,
    /// Stored root of what was made again.
    pub stored_root: String,
    /// Decoded root of what was made again.
    pub decoded_root: String,
}

/// A tensor of an audited pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<AuditedDimension>,
    /// How it is stored.
    pub encoding: String,
    /// SHA-256 of what it decodes to, as the index says.
    pub decoded_sha256: String,
    /// SHA-256 of the source tensor, as the manifest says.
    pub source_sha256: Option<String>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFailure {
    /// What kind of error it is, in the words of the vectors: `malformed`, `integrity`,
    /// `truncated`, `unsupported_version`, `unsupported_feature`.
    pub kind: String,
    /// The file, where the index of a sharded pack names it.
    pub file: Option<String>,
    /// The tensor or other record.
    pub tensor: Option<String>,
    /// The part or section.
    pub part: Option<String>,
    /// Where in the file.
    pub offset: Option<u64>,
    /// What was found and expected.
    pub reason: String,
}

impl AuditReceipt {
    /// Nothing checked yet.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn new() -> Self {
        let checks = [
            "structure",
            "stored",
            "decoded",
            "effective",
            "exact",
            "rungs",
            "receipts",
            "root",
            "signature",
            "source",
            "rederived",
        ];
        Self {
            format: FORMAT.into(),
            tool: concat!("ultracompress ", env!("CARGO_PKG_VERSION")).into(),
            format_version: None,
            verdict: "failed".into(),
            shard: None,
            checks: checks.map(|c| (c.to_owned(), Check::NotChecked.name().to_owned())).into(),
            counts: BTreeMap::new(),
            files: vec![],
            roots: BTreeMap::new(),
            against: BTreeMap::new(),
            made: None,
            rederived: None,
            tensors: vec![],
            receipts: BTreeMap::new(),
            failures: vec![],
        }
    }

    #[cfg(feature = "checkpoints")]
    pub(crate) fn set(&mut self, check: &str, outcome: Check) {
        self.checks.insert(check.to_owned(), outcome.name().to_owned());
    }

    /// Lists a failure. Names of files stay where they are `known`: names within a pack. Others are
    /// paths.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn fail(&mut self, failure: &Failure, known: &[String]) {
        let name = |path: &String| {
            let name = std::path::Path::new(path).file_name()?.to_str()?.to_owned();
            known.contains(&name).then_some(name)
        };
        let kind = match failure.kind {
            ErrorKind::Integrity => "integrity",
            ErrorKind::Truncated { .. } => "truncated",
            ErrorKind::UnsupportedVersion => "unsupported_version",
            ErrorKind::UnsupportedFeature => "unsupported_feature",
            _ => "malformed",
        };
        self.failures.push(AuditFailure {
            kind: kind.into(),
            file: failure.file.as_ref().and_then(name),
            tensor: failure.tensor.clone(),
            part: failure.part.clone(),
            offset: failure.offset_bytes,
            reason: failure.reason.clone(),
        });
    }

    /// Whether everything that was checked is right.
    pub fn is_ok(&self) -> bool {
        self.verdict == "ok"
    }

    /// The verdict; `with_source` says that the pack was to be made again.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn settle(&mut self, with_source: bool) {
        let any = |word: Check| self.checks.values().any(|c| c == word.name());
        let unknown = with_source && self.checks["rederived"] == Check::NotChecked.name();
        self.verdict = if any(Check::Mismatch) || !self.failures.is_empty() {
            "failed"
        } else if unknown || self.shard.is_some() {
            "incomplete"
        } else {
            "ok"
        }
        .into();
    }

    /// The canonical bytes (RFC 8785).
    ///
    /// # Errors
    /// `Malformed(UC-RCP-1)` for numbers beyond 2^53.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        canonical(self)
    }

    /// An in-toto Statement (v1) about the files and the decoded root, whose predicate is the
    /// receipt, in canonical form.
    ///
    /// # Errors
    /// As [`AuditReceipt::to_bytes`].
    pub fn to_in_toto(&self) -> Result<Vec<u8>> {
        let file = |f: &AuditedFile| {
            let name = f.name.as_deref().unwrap_or("pack");
            json!({ "name": name, "digest": { "sha256": f.sha256 } })
        };
        let mut subject: Vec<Value> = self.files.iter().map(file).collect();
        if let Some(root) = self.roots.get("decoded") {
            // Not the SHA-256 of a file: the root of a tree of such, so it has a name of its own.
            subject.push(json!({ "name": "decoded_root", "digest": { "uc_decoded_root": root } }));
        }
        canonical(&json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subject,
            "predicateType": PREDICATE_TYPE,
            "predicate": self,
        }))
    }
}

fn canonical(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json_canonicalizer::to_vec(value)
        .map_err(|e| Error::malformed(Rule::RCP_1, e.to_string()).with_source(e))
}
