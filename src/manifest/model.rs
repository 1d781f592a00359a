//! The manifest's members, and its canonical JSON form.

use std::collections::{BTreeMap, HashSet};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{self, is_hex_digest};
use crate::container::{Container, StoredFile};
use crate::error::{Error, Result};
use crate::format::{Digest, Index, TensorEntry};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// What the manifest's `format` member says.
const FORMAT: &str = "ultracompress-manifest-1";

/// What happened to a file of the source folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// Its tensors are in the pack.
    Weights,
    /// It travels byte-exact inside the pack.
    Carried,
    /// It is not in the pack.
    LeftOut,
}

/// One file of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its relative path.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// What happened to it.
    pub role: FileRole,
    /// SHA-256 of its bytes in hexadecimal; absent for files that were left out.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The `__metadata__` of a safetensors file.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Where a tensor comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSource {
    /// SHA-256 of the source tensor's bytes in hexadecimal.
    pub sha256: String,
    /// The weights file it was in; absent for tensors that were packed from memory.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Why it is encoded as it is.
    pub reason: String,
}

/// The core manifest of a pack.
///
/// # Spec
/// UC-MAN-1 to UC-MAN-9.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `ultracompress-manifest-1`.
    pub format: String,
    /// Names the encoder; packs made by one encoder from one source and recipe have equal bytes.
    pub encoder: String,
    /// SHA-256 of the calibration file that steered the encoder, in hexadecimal; absent without
    /// one.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// The licence that the source declares.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Everything that steered the encoder, resolved: an object of at most 1 MiB.
    #[serde(deserialize_with = "small_value")]
    pub recipe: Value,
    /// Decoded roots of rungs: what the pack decodes to when at most so many planes of each row
    /// are read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rungs: BTreeMap<String, String>,
    /// The source's files, by path.
    pub files: Vec<SourceFile>,
    /// The tensors, by name.
    pub tensors: BTreeMap<String, TensorSource>,
}

/// A member that may be absent, but not null.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A recipe is small; as a generic value it would take many times its length.
const MAX_RECIPE_BYTES: usize = 1 << 20;

fn small_value<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Value, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    if raw.get().len() > MAX_RECIPE_BYTES {
        return Err(D::Error::custom(format!("recipe has more than {MAX_RECIPE_BYTES} bytes")));
    }
    serde_json::from_str(raw.get()).map_err(D::Error::custom)
}

impl Manifest {
    /// A manifest without files and tensors.
    pub fn new(encoder: impl Into<String>) -> Self {
        Self {
            format: FORMAT.into(),
            encoder: encoder.into(),
            calibration: None,
            licence: None,
            recipe: Value::Object(serde_json::Map::new()),
            rungs: BTreeMap::new(),
            files: vec![],
            tensors: BTreeMap::new(),
        }
    }

    /// Lists a tensor that is packed from memory: the SHA-256 of its source `bytes`, and why it is
    /// encoded as it is.
    pub fn add_tensor(&mut self, name: &str, bytes: &[u8], reason: &str) {
        let source = TensorSource {
            sha256: Digest::of(bytes).to_string(),
            file: None,
            reason: reason.to_owned(),
        };
        self.tensors.insert(name.to_owned(), source);
    }

    /// Lists a file that travels in the pack.
    pub fn add_file(&mut self, file: &StoredFile) {
        let entry = file.entry();
        self.files.push(SourceFile {
            path: entry.path.clone(),
            bytes: entry.len,
            role: FileRole::Carried,
            sha256: Some(entry.sha256.to_string()),
            metadata: None,
        });
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// The canonical bytes (RFC 8785).
    ///
    /// # Errors
    /// `Malformed(UC-MAN-1)` for numbers that are not safe integers.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        json::to_canonical(self, Rule::MAN_1)
    }

    /// Parses canonical bytes.
    ///
    /// # Errors
    /// `Malformed` (UC-MAN-1, UC-MAN-2, UC-MAN-5, UC-MAN-7, UC-MAN-8, UC-MAN-10).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Self = json::from_canonical(bytes, Rule::MAN_1, Rule::MAN_2)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads, parses and compares the manifest of a file with its index. The manifest of a sharded
    /// pack names the tensors of all shards: [`Pack::manifest`](crate::Pack::manifest) compares
    /// it with them.
    ///
    /// # Errors
    /// `Integrity` for a checksum that disagrees, `Malformed` (UC-MAN-1 to UC-MAN-3, UC-MAN-5,
    /// UC-MAN-7, UC-MAN-8, UC-MAN-10, UC-EXA-12).
    pub fn read<R: ReadAt>(pack: &Container<R>) -> Result<Self> {
        let bytes = pack.manifest_bytes()?;
        let locate =
            |e: Error| pack.locate(e.in_part("manifest").at(pack.preamble().manifest_offset));
        let manifest = Self::parse(&bytes).map_err(locate)?;
        let (index, whole) = (pack.index(), !pack.preamble().is_sharded());
        manifest.check_against(index.tensors.iter(), index, whole).map_err(locate)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        let fail = |rule, text: String| Err(Error::malformed(rule, text));
        if self.format != FORMAT {
            return fail(
                Rule::MAN_2,
                format!("manifest format is \"{}\"", self.format.escape_debug()),
            );
        }
        if !self.recipe.is_object() {
            return fail(Rule::MAN_2, "recipe is not an object".into());
        }
        if self.calibration.as_deref().is_some_and(|c| !is_hex_digest(c)) {
            return fail(Rule::MAN_2, "calibration is not a SHA-256".into());
        }
        let is_rung = |r: &str| matches!(r, "3" | "4" | "5" | "6" | "7");
        let wrong = |(rung, root): &(&String, &String)| !is_rung(rung) || !is_hex_digest(root);
        if let Some((rung, _)) = self.rungs.iter().find(wrong) {
            let rule = if is_rung(rung) { Rule::MAN_10 } else { Rule::MAN_5 };
            return Err(Error::malformed(rule, "rungs are 3 to 7, each with a SHA-256"));
        }
        if self.files.windows(2).any(|w| w[0].path >= w[1].path) {
            return fail(Rule::MAN_7, "files are not sorted by path, each once".into());
        }
        for f in &self.files {
            crate::format::check_file_path(&f.path)?;
            let digest = f.sha256.as_deref().map(is_hex_digest);
            if digest == Some(false) || (digest.is_none() && f.role != FileRole::LeftOut) {
                return fail(
                    Rule::MAN_2,
                    format!("file \"{}\" has no proper SHA-256", f.path.escape_debug()),
                );
            }
        }
        let weights: HashSet<&str> = self
            .files
            .iter()
            .filter(|f| f.role == FileRole::Weights)
            .map(|f| f.path.as_str())
            .collect();
        for (name, t) in &self.tensors {
            if !is_hex_digest(&t.sha256) || t.file.as_deref().is_some_and(|p| !weights.contains(p))
            {
                return fail(
                    if is_hex_digest(&t.sha256) { Rule::MAN_8 } else { Rule::MAN_2 },
                    format!(
                        "tensor \"{}\" has no proper SHA-256 or names a file that isn't listed",
                        name.escape_debug()
                    ),
                );
            }
        }
        Ok(())
    }

    /// UC-MAN-3, UC-EXA-12: names, digests, carried files and heads agree with the index of the
    /// first file. `tensors` are sorted by name; a manifest may name others unless they are the
    /// `whole` pack.
    pub(super) fn check_against<'a>(
        &self,
        tensors: impl Iterator<Item = &'a TensorEntry> + Clone,
        first: &Index,
        whole: bool,
    ) -> Result<()> {
        let fail =
            |name: &str, text: &str| Err(Error::malformed(Rule::MAN_3, text).in_tensor(name));
        let raw: HashSet<&str> =
            tensors.clone().filter(|t| t.encoding.keeps_source_bits()).map(|t| &*t.name).collect();
        let mut n = 0;
        for t in tensors.clone() {
            n += 1;
            let Some(source) = self.tensors.get(&t.name) else {
                return fail(&t.name, "tensor is not in the manifest");
            };
            let exact = match t.encoding.alias_target() {
                Some(target) => raw.contains(target),
                None => t.encoding.keeps_source_bits(),
            };
            if exact && source.sha256 != t.decoded_sha256.to_string() {
                return fail(
                    &t.name,
                    "a raw tensor's source digest differs from its decoded digest",
                );
            }
        }
        if whole && self.tensors.len() != n {
            let held: HashSet<&str> = tensors.map(|t| &*t.name).collect();
            let extra = self.tensors.keys().find(|n| !held.contains(n.as_str()));
            return fail(
                extra.map_or("", |n| n),
                "manifest names a tensor that isn't in the index",
            );
        }
        let carried: Vec<_> = self.files.iter().filter(|f| f.role == FileRole::Carried).collect();
        let listed = carried.iter().map(|f| (f.path.as_str(), f.bytes, f.sha256.clone()));
        let stored =
            first.files.iter().map(|f| (f.path.as_str(), f.len, Some(f.sha256.to_string())));
        if !listed.eq(stored) {
            return fail("", "carried files of manifest and index differ");
        }
        for head in &first.heads {
            let listed = self.files.binary_search_by(|f| f.path.cmp(&head.path)).ok();
            if listed.is_none_or(|at| self.files[at].role != FileRole::Weights) {
                let text = "a head of no weights file that the manifest lists";
                return Err(Error::malformed(Rule::EXA_12, text).in_tensor(&head.path));
            }
        }
        Ok(())
    }
}
