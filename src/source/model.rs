//! A model of either kind, pack or checkpoint, as a list of tensors with bytes.

use std::path::Path;

use super::checkpoint::Source;
use crate::container::DecodeOptions;
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::manifest::{INDEX_ENDING, Pack};
use crate::memory::{reserve, to_usize};
use crate::storage::{Input, is_url};

/// A pack or a checkpoint.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one or two exist at a time")]
pub enum Model {
    /// A `.uc` file, or the shards of a pack.
    Pack(Pack<Input>),
    /// A folder, `.safetensors` file or index file.
    Checkpoint(Source),
}

impl Model {
    /// Opens what `path` is: a folder or a name of a checkpoint, else a pack or the address of one.
    ///
    /// # Errors
    /// As [`Pack::open_path`] and [`Source::open`]; `InvalidArgument` for one shard of a pack.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.to_string_lossy();
        let index = name.ends_with(".index.json") && !name.ends_with(INDEX_ENDING);
        let checkpoint = path.is_dir() || name.ends_with(".safetensors") || index;
        if checkpoint && !is_url(path) {
            return Ok(Self::Checkpoint(Source::open(path)?));
        }
        let pack = Pack::open_path(path)?;
        pack.require_complete()?;
        pack.require_base()?;
        Ok(Self::Pack(pack))
    }

    /// Name, dtype and shape of every tensor, by name.
    pub fn tensors(&self) -> Vec<(&str, Dtype, &[u64])> {
        match self {
            Self::Pack(pack) => pack.tensors().map(|t| (t.name(), t.dtype(), t.shape())).collect(),
            Self::Checkpoint(source) => source
                .tensors()
                .iter()
                .map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice()))
                .collect(),
        }
    }

    /// Dtype and shape of the tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<(Dtype, &[u64])> {
        match self {
            Self::Pack(pack) => pack.tensor(name).map(|t| (t.dtype(), t.shape())),
            Self::Checkpoint(source) => source.tensor(name).map(|t| (t.dtype, t.shape.as_slice())),
        }
    }

    /// The bytes of a file that belongs to the model, such as `config.json`: one that the pack
    /// carries, or one that lies beside the weights.
    ///
    /// # Errors
    /// As [`Pack::stream_file`]; `LimitExceeded` or `Source` for a file that is too large; `Io`.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Pack(pack) => {
                let file = pack.files().iter().find(|f| f.path == name);
                file.map(|f| pack.containers()[0].read_file(f)).transpose()
            }
            Self::Checkpoint(source) => source.beside_weights(name),
        }
    }

    /// Calls `emit` with consecutive pieces of a tensor's little-endian bytes.
    ///
    /// # Errors
    /// As [`DecodeOptions::decode_into`]; `InvalidArgument` for a name that doesn't exist.
    pub fn read(&self, name: &str, emit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let missing = || Error::argument("no such tensor").in_tensor(name);
        match self {
            Self::Pack(pack) => {
                DecodeOptions::new().decode_tiles(&pack.tensor(name).ok_or_else(missing)?, emit)
            }
            Self::Checkpoint(source) => {
                source.tiles(source.tensor(name).ok_or_else(missing)?, emit)
            }
        }
    }

    /// As [`Model::read`], of what the first `overlays` of a pack make of the tensor.
    ///
    /// # Errors
    /// As [`Model::read`] and [`Pack::effective_tensor`].
    pub fn read_effective(
        &self,
        name: &str,
        overlays: usize,
        emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Pack(pack) if overlays > 0 => {
                pack.effective_tensor(name, overlays)?.decode_tiles(&DecodeOptions::new(), emit)
            }
            _ => self.read(name, emit),
        }
    }

    /// How many overlays it has.
    pub fn overlays(&self) -> usize {
        match self {
            Self::Pack(pack) => pack.overlays().len(),
            Self::Checkpoint(_) => 0,
        }
    }

    /// All bytes of a tensor.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn read_all(&self, name: &str, dtype: Dtype, shape: &[u64]) -> Result<Vec<u8>> {
        let bytes = to_usize(dtype.tensor_bytes(shape).unwrap_or(0))?;
        let mut all = reserve(bytes).map_err(|e| e.in_tensor(name))?;
        self.read(name, |piece| {
            all.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(all)
    }
}
