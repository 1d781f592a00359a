//! The manifest's members, and its canonical JSON form.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::container::{Container, ReadAt, StoredFile};
use crate::error::{Error, Result};
use crate::format::{Digest, Encoding, Index, Rule};

/// What the manifest's `format` member says.
const FORMAT: &str = "ultracompress-manifest-1";
/// Deepest nesting of arrays and objects below the manifest itself.
const MAX_DEPTH: usize = 64;
/// Largest integer that every JSON reader holds exactly.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The `__metadata__` of a safetensors file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Where a tensor comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSource {
    /// SHA-256 of the source tensor's bytes in hexadecimal.
    pub sha256: String,
    /// The weights file it was in; absent for tensors that were packed from memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Why it is encoded as it is.
    pub reason: String,
}

/// The core manifest of a pack.
///
/// # Spec
/// UC-MAN-1 to UC-MAN-4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `ultracompress-manifest-1`.
    pub format: String,
    /// Names the encoder; packs made by one encoder from one source and recipe have equal bytes.
    pub encoder: String,
    /// The licence that the source declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Everything that steered the encoder, resolved.
    pub recipe: Value,
    /// The source's files, by path.
    pub files: Vec<SourceFile>,
    /// The tensors, by name.
    pub tensors: BTreeMap<String, TensorSource>,
}

impl Manifest {
    /// A manifest without files and tensors.
    pub fn new(encoder: impl Into<String>) -> Self {
        Self {
            format: FORMAT.into(),
            encoder: encoder.into(),
            licence: None,
            recipe: Value::Object(serde_json::Map::new()),
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
        let value = serde_json::to_value(self)
            .map_err(|e| Error::malformed(Rule::MAN_2, e.to_string()).with_source(e))?;
        check_values(&value, 0)?;
        canonical(&value)
    }

    /// Parses canonical bytes.
    ///
    /// # Errors
    /// `Malformed` (UC-MAN-1, UC-MAN-2).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::malformed(Rule::MAN_1, format!("not JSON: {e}")).with_source(e))?;
        check_values(&value, 0)?;
        // Catches duplicate members too: parsing keeps only one of them.
        if canonical(&value)? != bytes {
            return Err(Error::malformed(Rule::MAN_1, "JSON is not in canonical form (RFC 8785)"));
        }
        let manifest: Self = serde_json::from_value(value)
            .map_err(|e| Error::malformed(Rule::MAN_2, e.to_string()).with_source(e))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads, parses and compares the manifest of a pack with its index.
    ///
    /// # Errors
    /// `Integrity` for a checksum that disagrees, `Malformed` (UC-MAN-1 to UC-MAN-3).
    pub fn read<R: ReadAt>(pack: &Container<R>) -> Result<Self> {
        let bytes = pack.manifest_bytes()?;
        let place = |e: Error| e.in_part("manifest").at(pack.preamble().manifest_offset);
        let manifest = Self::parse(&bytes).map_err(place)?;
        manifest.check_against(pack.index()).map_err(place)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        let fail = |text: String| Err(Error::malformed(Rule::MAN_2, text));
        if self.format != FORMAT {
            return fail(format!("manifest format is \"{}\"", self.format.escape_debug()));
        }
        if !self.recipe.is_object() {
            return fail("recipe is not an object".into());
        }
        if self.files.windows(2).any(|w| w[0].path >= w[1].path) {
            return fail("files are not sorted by path, each once".into());
        }
        for f in &self.files {
            crate::format::check_file_path(&f.path)?;
            let digest = f.sha256.as_deref().map(is_hex_digest);
            if digest == Some(false) || (digest.is_none() && f.role != FileRole::LeftOut) {
                return fail(format!("file \"{}\" has no proper SHA-256", f.path.escape_debug()));
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
                return fail(format!(
                    "tensor \"{}\" has no proper SHA-256 or names a file that isn't listed",
                    name.escape_debug()
                ));
            }
        }
        Ok(())
    }

    /// UC-MAN-3: names, digests and carried files agree with the index.
    fn check_against(&self, index: &Index) -> Result<()> {
        let fail =
            |name: &str, text: &str| Err(Error::malformed(Rule::MAN_3, text).in_tensor(name));
        for t in &index.tensors {
            let Some(source) = self.tensors.get(&t.name) else {
                return fail(&t.name, "tensor is not in the manifest");
            };
            let exact = match &t.encoding {
                Encoding::Raw => true,
                Encoding::Planes { .. } => false,
                Encoding::Alias { target } => {
                    index.tensor(target).is_some_and(|other| other.encoding == Encoding::Raw)
                }
            };
            if exact && source.sha256 != t.decoded_sha256.to_string() {
                return fail(
                    &t.name,
                    "a raw tensor's source digest differs from its decoded digest",
                );
            }
        }
        if self.tensors.len() != index.tensors.len() {
            let extra = self.tensors.keys().find(|n| index.tensor(n).is_none());
            return fail(
                extra.map_or("", |n| n),
                "manifest names a tensor that isn't in the index",
            );
        }
        let carried: Vec<_> = self.files.iter().filter(|f| f.role == FileRole::Carried).collect();
        let listed = carried.iter().map(|f| (f.path.as_str(), f.bytes, f.sha256.clone()));
        let stored =
            index.files.iter().map(|f| (f.path.as_str(), f.len, Some(f.sha256.to_string())));
        if !listed.eq(stored) {
            return fail("", "carried files of manifest and index differ");
        }
        Ok(())
    }
}

fn is_hex_digest(s: &str) -> bool {
    Digest::from_hex(s).is_some_and(|d| d.to_string() == s)
}

fn canonical(value: &Value) -> Result<Vec<u8>> {
    serde_json_canonicalizer::to_vec(value)
        .map_err(|e| Error::malformed(Rule::MAN_1, e.to_string()).with_source(e))
}

/// UC-MAN-1: safe integers only, and no deep nesting.
fn check_values(value: &Value, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::malformed(
            Rule::MAN_1,
            format!("values are nested more than {MAX_DEPTH} deep"),
        ));
    }
    match value {
        Value::Number(n) => {
            let safe = n.as_i64().map(i64::unsigned_abs).or(n.as_u64());
            if safe.is_none_or(|n| n > MAX_SAFE_INTEGER) {
                return Err(Error::malformed(
                    Rule::MAN_1,
                    format!("{n} is not an integer within 2^53 - 1"),
                ));
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|v| check_values(v, depth + 1)),
        Value::Object(members) => members.values().try_for_each(|v| check_values(v, depth + 1)),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}
