//! The files of a checkpoint: which hold weights, which travel along, which stay behind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::json::check_keys;
use crate::error::{Error, Result};
use crate::format::check_file_path;
use crate::manifest::{FileRole, INDEX_ENDING};
use crate::storage::Input;

/// Endings of files that hold the same weights in another format, or a training state.
const DUPLICATES: &[&str] = &[
    "bin",
    "ckpt",
    "ggml",
    "gguf",
    "h5",
    "mlmodel",
    "msgpack",
    "npz",
    "onnx",
    "onnx_data",
    "ot",
    "pb",
    "pdparams",
    "pt",
    "pth",
    "safetensors",
    "tflite",
    "uc",
];

/// One file of the source.
#[derive(Debug, Clone)]
pub(crate) struct FoundFile {
    /// Its name within the checkpoint.
    pub path: String,
    /// Where it lies.
    pub on_disk: PathBuf,
    pub bytes: u64,
    pub role: FileRole,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Most bytes of a JSON file that is read, as of a safetensors header.
const MAX_JSON_BYTES: u64 = 100_000_000;

pub(super) fn read_json(path: &Path) -> Result<Vec<u8>> {
    let io = |e| Error::io("can't read", e);
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::source_file(format!("has more than {MAX_JSON_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The shard of each tensor, as an index file says.
///
/// # Errors
/// `Source` for an index that makes no sense, `Io`.
pub(super) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = read_json(path)?;
    let bad = |e| Error::source_file(format!("not a safetensors index: {e}")).with_source(e);
    check_keys(&text).map_err(bad)?;
    let index: ShardIndex = serde_json::from_slice(&text).map_err(bad)?;
    if index.weight_map.is_empty() {
        return Err(Error::source_file("the index names no tensors"));
    }
    for shard in index.weight_map.values() {
        if check_file_path(shard).is_err() || shard.contains('/') {
            return Err(Error::source_file(format!(
                "the index names \"{}\", which is no plain file name",
                shard.escape_debug()
            )));
        }
    }
    Ok(index.weight_map)
}

/// Lists regular files below `folder`, following symlinks to files (as in a Hugging Face cache).
pub(super) fn walk(folder: &Path, prefix: &str, files: &mut Vec<FoundFile>) -> Result<()> {
    let io = |e| Error::io("can't list", e).in_file(folder.display().to_string());
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let on_disk = entry.path();
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            return Err(
                Error::source_file("file name is not UTF-8").in_file(on_disk.display().to_string())
            );
        };
        let path = format!("{prefix}{name}");
        if name.starts_with('.') {
            // Version control, caches, lock files: not even looked at.
            files.push(FoundFile { path, on_disk, bytes: 0, role: FileRole::LeftOut });
            continue;
        }
        let meta = std::fs::metadata(&on_disk)
            .map_err(|e| Error::io("can't read", e).in_file(on_disk.display().to_string()))?;
        if meta.is_dir() {
            // Folders reached through links could lead in circles; version control isn't content.
            let link = entry.file_type().map_err(io)?.is_symlink();
            if link {
                files.push(FoundFile { path, on_disk, bytes: 0, role: FileRole::LeftOut });
            } else {
                walk(&on_disk, &format!("{path}/"), files)?;
            }
            continue;
        }
        check_file_path(&path).map_err(|e| {
            Error::source_file(format!("can't travel in a pack: {}", e.message())).in_file(&path)
        })?;
        let ending = name.rsplit_once('.').map_or("", |(_, e)| e).to_ascii_lowercase();
        let left_out = DUPLICATES.contains(&ending.as_str())
            || name.ends_with(".bin.index.json")
            || name.ends_with(INDEX_ENDING)
            || !meta.is_file();
        let role = if left_out { FileRole::LeftOut } else { FileRole::Carried };
        files.push(FoundFile { path, on_disk, bytes: meta.len(), role });
    }
    Ok(())
}

impl FoundFile {
    /// Opens the file; `refused` says what can't be done where that fails. Weights and carried
    /// files are read through this alone.
    ///
    /// # Errors
    /// `Io`, naming the file.
    pub(crate) fn open(&self, refused: &str) -> Result<Input> {
        let file = File::open(&self.on_disk);
        file.map(Input::File).map_err(|e| Error::io(refused, e).in_file(&self.path))
    }
}
