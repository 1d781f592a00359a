//! The index file of a pack that consists of several files (spec/container.md, "Sharded packs").

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::json;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::format::{Digest, MAX_SHARDS, TreeHasher, check_file_path, check_name, decoded_root};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// What the index file's `format` member says.
const FORMAT: &str = "ultracompress-index-1";
/// The ending of an index file's name.
pub(crate) const INDEX_ENDING: &str = ".uc.index.json";

/// One shard, as the index file lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// Its file name.
    pub file: String,
    /// Length of its core in bytes.
    pub core_len: u64,
    /// Its stored root in hexadecimal.
    pub stored_root: String,
    /// Its decoded root, over its own tensors, in hexadecimal.
    pub decoded_root: String,
}

/// The index file of a sharded pack.
///
/// # Spec
/// UC-SHD-2, UC-SHD-3, UC-SHD-6, UC-SHD-9 to UC-SHD-11, UC-SHD-14, UC-SHD-15, UC-SHD-17.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// Always `ultracompress-index-1`.
    pub format: String,
    /// The root over the stored roots of the shards, in hexadecimal.
    pub stored_root: String,
    /// The root over the decoded tensors of all shards, in hexadecimal.
    pub decoded_root: String,
    /// The shards, by number.
    pub shards: Vec<ShardFile>,
    /// The shard of each tensor, by name.
    pub weight_map: BTreeMap<String, String>,
}

/// The name of shard `number` of `count` of the pack `stem` (UC-SHD-2).
fn shard_name(stem: &str, number: u32, count: u32) -> String {
    format!("{stem}-{number:05}-of-{count:05}.uc")
}

/// The stored root of a sharded pack (UC-SHD-6).
pub(crate) fn stored_root_of(shards: impl IntoIterator<Item = Digest>) -> Digest {
    let mut tree = TreeHasher::new();
    shards.into_iter().for_each(|root| tree.push(TreeHasher::leaf(&root.0)));
    tree.root()
}

impl ShardIndex {
    /// The file name of shard `number`, from 1, of `count` of the pack `stem`.
    pub fn file_name(stem: &str, number: u32, count: u32) -> String {
        shard_name(stem, number, count)
    }

    /// The index of a pack whose shards are written, in order of number, with their file names.
    pub fn of<R: ReadAt>(shards: &[(String, Container<R>)]) -> Self {
        let mut tensors: Vec<_> = shards.iter().flat_map(|(_, c)| &c.index().tensors).collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let preambles = || shards.iter().map(|(_, c)| c.preamble());
        let file = |(name, c): &(String, Container<R>)| ShardFile {
            file: name.clone(),
            core_len: c.preamble().core_len,
            stored_root: c.preamble().stored_root.to_string(),
            decoded_root: c.preamble().decoded_root.to_string(),
        };
        let listed = |(name, c): &(String, Container<R>)| {
            let tensors = c.index().tensors.iter();
            tensors.map(|t| (t.name.clone(), name.clone())).collect::<Vec<_>>()
        };
        Self {
            format: FORMAT.into(),
            stored_root: stored_root_of(preambles().map(|p| p.stored_root)).to_string(),
            decoded_root: decoded_root(tensors).to_string(),
            shards: shards.iter().map(file).collect(),
            weight_map: shards.iter().flat_map(listed).collect(),
        }
    }

    /// The canonical bytes (RFC 8785).
    ///
    /// # Errors
    /// `Malformed(UC-SHD-3)` for numbers that are not safe integers.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        json::to_canonical(self, Rule::SHD_3)
    }

    /// Parses canonical bytes.
    ///
    /// # Errors
    /// `Malformed` (UC-SHD-2, UC-SHD-3, UC-SHD-9, UC-SHD-10, UC-SHD-15, UC-NAM-1), `Integrity`
    /// (UC-SHD-6).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let index: Self = json::from_canonical(bytes, Rule::SHD_3, Rule::SHD_10)?;
        index.check()?;
        Ok(index)
    }

    fn check(&self) -> Result<()> {
        let fail = |rule, text: String| Err(Error::malformed(rule, text));
        if self.format != FORMAT {
            return fail(
                Rule::SHD_10,
                format!("format is \"{}\", expected \"{FORMAT}\"", self.format.escape_debug()),
            );
        }
        let count = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        if !(2..=MAX_SHARDS).contains(&count) {
            return fail(Rule::SHD_10, format!("{count} shards, 2 to {MAX_SHARDS} expected"));
        }
        for (number, shard) in (1..).zip(&self.shards) {
            let ending = shard_name("", number, count);
            let plain = check_file_path(&shard.file).is_ok() && !shard.file.contains('/');
            if !plain || !shard.file.ends_with(&ending) || shard.file.len() == ending.len() {
                return fail(
                    if plain { Rule::SHD_2 } else { Rule::SHD_9 },
                    format!(
                        "shard {number} is called \"{}\", expected a plain name that ends in \"{ending}\"",
                        shard.file.escape_debug()
                    ),
                );
            }
            if !json::is_hex_digest(&shard.stored_root) || !json::is_hex_digest(&shard.decoded_root)
            {
                return fail(Rule::SHD_10, format!("shard {number} has no proper roots"));
            }
        }
        let stem =
            |s: &ShardFile| s.file[..s.file.len() - shard_name("", 1, count).len()].to_owned();
        if self.shards.iter().any(|s| stem(s) != stem(&self.shards[0])) {
            return fail(
                Rule::SHD_2,
                "the names of the shards differ in more than the number".into(),
            );
        }
        let roots = self.shards.iter().filter_map(|s| Digest::from_hex(&s.stored_root));
        let rule = if json::is_hex_digest(&self.stored_root) { Rule::SHD_6 } else { Rule::SHD_10 };
        if stored_root_of(roots).to_string() != self.stored_root {
            return Err(Error::integrity(format!(
                "stored_root is not that of the shards' stored roots ({rule})",
            )));
        }
        if !json::is_hex_digest(&self.decoded_root) {
            return fail(Rule::SHD_10, "decoded_root is no proper root".into());
        }
        let files: HashSet<&str> = self.shards.iter().map(|s| s.file.as_str()).collect();
        for (tensor, file) in &self.weight_map {
            check_name(tensor)?;
            if !files.contains(file.as_str()) {
                return Err(Error::malformed(
                    Rule::SHD_15,
                    format!("is in \"{}\", which is not listed", file.escape_debug()),
                )
                .in_tensor(tensor));
            }
        }
        Ok(())
    }
}
