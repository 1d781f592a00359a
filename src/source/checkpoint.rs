//! A checkpoint: its tensors, and the files that belong to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::files::{FoundFile, read_index, read_json, walk};
use super::safetensors::{Header, read_header};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Dtype, MAX_RANK, check_name};
use crate::manifest::FileRole;
use crate::memory::to_usize;
use crate::storage::{Input, ReadAt};

/// Bytes of a tensor that are read at a time.
pub(crate) const PIECE_BYTES: u64 = 4 << 20;

/// A checkpoint on disk: a Hugging Face folder, one `.safetensors` file, or an index file.
#[derive(Debug)]
pub struct Source {
    pub(crate) files: Vec<FoundFile>,
    pub(crate) tensors: Vec<SourceTensor>,
    handles: Vec<WeightsFile>,
    pub(crate) metadata: BTreeMap<String, BTreeMap<String, String>>,
}

/// A file of weights, open, and what its header looked like.
#[derive(Debug)]
pub(crate) struct WeightsFile {
    pub path: String,
    pub file: Input,
    pub len: u64,
    pub head_len: u64,
    pub head_crc32: u32,
}

/// One tensor of the source.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// The weights file it is in.
    pub file: String,
    pub(crate) handle: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Source {
    /// Looks at a source: a folder, a `.safetensors` file or a `*.safetensors.index.json`.
    ///
    /// # Errors
    /// `Source` when it holds no weights, more than one candidate, damaged headers or missing
    /// shards; `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let meta =
            std::fs::metadata(path).map_err(|e| Error::io("can't open", e).in_file(&name))?;
        let file_name =
            path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let result = if meta.is_dir() {
            Self::open_folder(path)
        } else if file_name.ends_with(".safetensors") {
            Self::build(
                vec![FoundFile {
                    path: file_name,
                    on_disk: path.to_owned(),
                    bytes: meta.len(),
                    role: FileRole::Weights,
                }],
                None,
            )
        } else if file_name.ends_with(".safetensors.index.json") {
            Self::open_index(path, &file_name)
        } else {
            Err(Error::source_file(
                "not a folder, a .safetensors file or a .safetensors.index.json",
            ))
        };
        result.map_err(|e| e.in_file(name))
    }

    fn open_index(path: &Path, file_name: &str) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let shards = read_index(path)?;
        let mut files = vec![];
        for shard in shards.values().collect::<BTreeSet<_>>() {
            let on_disk = folder.join(shard);
            let bytes = std::fs::metadata(&on_disk)
                .map_err(|e| {
                    Error::source_file(format!("shard \"{shard}\" named by the index: {e}"))
                        .with_source(e)
                })?
                .len();
            files.push(FoundFile { path: shard.clone(), on_disk, bytes, role: FileRole::Weights });
        }
        let bytes = std::fs::metadata(path).map_err(|e| Error::io("can't open", e))?.len();
        files.push(FoundFile {
            path: file_name.to_owned(),
            on_disk: path.to_owned(),
            bytes,
            role: FileRole::Carried,
        });
        Self::build(files, Some(shards))
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let mut files = vec![];
        walk(folder, "", &mut files)?;
        let at_top =
            |f: &&FoundFile, ending: &str| !f.path.contains('/') && f.path.ends_with(ending);
        let indexes: Vec<_> =
            files.iter().filter(|f| at_top(f, ".safetensors.index.json")).collect();
        let index = indexes
            .iter()
            .find(|f| f.path == "model.safetensors.index.json")
            .or(if indexes.len() == 1 { indexes.first() } else { None });
        let single: Vec<_> = files.iter().filter(|f| at_top(f, ".safetensors")).collect();
        let (weights, shards): (BTreeSet<String>, _) = if let Some(index) = index {
            let shards = read_index(&index.on_disk).map_err(|e| e.in_file(&index.path))?;
            (shards.values().cloned().collect(), Some(shards))
        } else if let Some(f) = single.iter().find(|f| f.path == "model.safetensors") {
            ([f.path.clone()].into(), None)
        } else if let [f] = single[..] {
            ([f.path.clone()].into(), None)
        } else if single.is_empty() {
            return Err(Error::source_file(
                "no .safetensors file in this folder (PyTorch .bin files must be converted first)",
            ));
        } else {
            let names: Vec<_> = single.iter().map(|f| f.path.as_str()).collect();
            return Err(Error::source_file(format!(
                "several weight files and no index: name one of {}",
                names.join(", ")
            )));
        };
        for name in &weights {
            let Some(file) = files.iter_mut().find(|f| &f.path == name) else {
                return Err(Error::source_file(format!(
                    "shard \"{name}\" named by the index is missing"
                )));
            };
            file.role = FileRole::Weights;
        }
        Self::build(files, shards)
    }

    fn build(mut files: Vec<FoundFile>, shards: Option<BTreeMap<String, String>>) -> Result<Self> {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut source =
            Self { files: vec![], tensors: vec![], handles: vec![], metadata: BTreeMap::new() };
        for file in files.iter().filter(|f| f.role == FileRole::Weights) {
            let Header { tensors, metadata, .. } =
                source.open_weights(file).map_err(|e| e.in_file(&file.path))?;
            if let Some(m) = metadata {
                source.metadata.insert(file.path.clone(), m);
            }
            let handle = source.handles.len() - 1;
            source.tensors.extend(tensors.into_iter().map(|t| SourceTensor {
                name: t.name,
                dtype: t.dtype,
                shape: t.shape,
                file: file.path.clone(),
                handle,
                offset: t.offset,
                len: t.len,
            }));
        }
        source.files = files;
        source.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for t in &source.tensors {
            // Before hours of work, what the format can't hold.
            check_name(&t.name).map_err(|e| e.in_file(&t.file))?;
            if t.shape.len() > MAX_RANK {
                return Err(Error::source_file(format!(
                    "{} dimensions, a pack holds at most {MAX_RANK}",
                    t.shape.len()
                ))
                .in_tensor(&t.name)
                .in_file(&t.file));
            }
        }
        if let Some(pair) = source.tensors.windows(2).find(|w| w[0].name == w[1].name) {
            return Err(Error::source_file(format!(
                "tensor stands in \"{}\" and in \"{}\"",
                pair[0].file, pair[1].file
            ))
            .in_tensor(&pair[0].name));
        }
        for (name, shard) in shards.iter().flatten() {
            let found = source.tensor(name).map(|t| t.file.as_str());
            if found != Some(shard) {
                return Err(Error::source_file(match found {
                    None => format!("the index puts it in \"{shard}\", which doesn't hold it"),
                    Some(other) => {
                        format!("the index puts it in \"{shard}\", it is in \"{other}\"")
                    }
                })
                .in_tensor(name));
            }
        }
        Ok(source)
    }

    fn open_weights(&mut self, file: &FoundFile) -> Result<Header> {
        let handle = file.open("can't open")?;
        let header = read_header(&handle)?;
        self.handles.push(WeightsFile {
            path: file.path.clone(),
            file: handle,
            len: header.file_len,
            head_len: header.head_len,
            head_crc32: header.head_crc32,
        });
        Ok(header)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&SourceTensor> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.len).sum()
    }

    /// Refuses to write a pack over a file of the source.
    pub(crate) fn refuse_as_output(&self, output: &Path) -> Result<()> {
        let Ok(output) = output.canonicalize() else { return Ok(()) };
        // What is left out may be replaced: a pack in the folder of its source, made again.
        let kept = self.files.iter().filter(|f| f.role != FileRole::LeftOut);
        for file in kept {
            if file.on_disk.canonicalize().is_ok_and(|f| f == output) {
                return Err(Error::new(ErrorKind::Io, "output is a file of the source")
                    .in_file(output.display().to_string()));
            }
        }
        Ok(())
    }

    /// Files that travel byte-exact in a pack.
    pub fn carried_paths(&self) -> Vec<&str> {
        self.with_role(FileRole::Carried)
    }

    /// Files that stay behind: other formats of the weights, hidden files, other things than files.
    pub fn left_out(&self) -> Vec<&str> {
        self.with_role(FileRole::LeftOut)
    }

    fn with_role(&self, role: FileRole) -> Vec<&str> {
        self.files.iter().filter(|f| f.role == role).map(|f| f.path.as_str()).collect()
    }

    /// A weights file.
    pub(crate) fn handle(&self, handle: usize) -> &WeightsFile {
        &self.handles[handle]
    }

    /// What stands in front of the tensors in each weights file.
    pub(crate) fn heads(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let read = |w: &WeightsFile| {
            let mut head = vec![0; to_usize(w.head_len)?];
            w.file.read_exact_at(0, &mut head).map_err(|e| e.in_file(&w.path))?;
            if crc32fast::hash(&head) != w.head_crc32 {
                return Err(Error::source_file("changed while it was read").in_file(&w.path));
            }
            Ok((w.path.clone(), head))
        };
        self.handles.iter().map(read).collect()
    }

    /// The bytes `offset..offset + len` of a tensor.
    pub(crate) fn read(&self, t: &SourceTensor, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(len)?];
        let WeightsFile { path, file, .. } = &self.handles[t.handle];
        file.read_exact_at(t.offset + offset, &mut bytes)
            .map_err(|e| e.in_tensor(&t.name).in_file(path))?;
        Ok(bytes)
    }

    /// Calls `emit` with consecutive pieces of a tensor's bytes.
    pub(crate) fn tiles(
        &self,
        t: &SourceTensor,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while at < t.len {
            let len = PIECE_BYTES.min(t.len - at);
            emit(&self.read(t, at, len)?)?;
            at += len;
        }
        Ok(())
    }

    /// The content of a JSON file that lies beside the weights, even where only these were named.
    pub(crate) fn beside_weights(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let weights = self.files.iter().find(|f| f.role == FileRole::Weights);
        let Some(weights) = weights else { return Ok(None) };
        let path = weights.on_disk.with_file_name(name);
        if !path.is_file() {
            return Ok(None);
        }
        read_json(&path).map(Some).map_err(|e| e.in_file(name))
    }
}
