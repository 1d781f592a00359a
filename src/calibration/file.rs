//! Reading and writing calibration files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::record::{CalibrationRecord, KEY, LayerRecord};
use crate::encoder::Statistics;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, Dtype};
use crate::memory::to_usize;
use crate::source::{Header, HeaderTensor, read_header};
use crate::storage::ReadAt;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Numbers of a packed lower triangle.
fn triangle(n: usize) -> usize {
    n * (n + 1) / 2
}

fn input_name(owner: &str) -> String {
    format!("{owner}.input")
}

fn output_name(layer: &str) -> String {
    format!("{layer}.output")
}

/// An open calibration file.
///
/// # Spec
/// calibration.md.
#[derive(Debug)]
pub struct Calibration {
    file: File,
    path: String,
    record: CalibrationRecord,
    sha256: Digest,
    tensors: BTreeMap<String, HeaderTensor>,
    /// Layers by the tensor of their weights.
    weights: BTreeMap<String, String>,
}

impl Calibration {
    /// Opens a calibration file, reads all of it once for its digest, and checks that it holds what
    /// its record says.
    ///
    /// # Errors
    /// `Source` for a file that is not a calibration or is damaged; `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        Self::open_named(path, name.clone()).map_err(|e| e.in_file(name))
    }

    fn open_named(path: &Path, name: String) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("can't read", e))?;
        let Header { tensors, file_len, metadata, .. } = read_header(&file)?;
        let json = metadata.as_ref().and_then(|m| m.get(KEY));
        let json = json.ok_or_else(|| Error::source_file("not a calibration file"))?;
        let record = CalibrationRecord::parse(json)?;
        let tensors = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        let mut sha = Sha256::new();
        let mut piece = vec![0; PIECE];
        let mut at = 0u64;
        while at < file_len {
            let n = to_usize((file_len - at).min(PIECE as u64))?;
            file.read_exact_at(at, &mut piece[..n])?;
            sha.update(&piece[..n]);
            at += n as u64;
        }
        let sha256 = Digest(sha.finalize().into());
        let weights = record.layers.iter().flat_map(|(name, layer)| {
            let tied = layer.weight.iter().map(|tensor| (tensor.clone(), name.clone()));
            tied.chain([(format!("{name}.weight"), name.clone())])
        });
        let weights = weights.collect();
        let calibration = Self { file, path: name, record, sha256, tensors, weights };
        calibration.check()?;
        Ok(calibration)
    }

    /// Whether all tensors of the record are there, and no others.
    fn check(&self) -> Result<()> {
        let mut expected = 0;
        for (name, layer) in &self.record.layers {
            if layer.input == *name {
                self.tensor(&input_name(name), triangle(to_usize(layer.cols)?))?;
                expected += 1;
            }
            if layer.outputs {
                let blocks = self.record.blocks(layer)?;
                self.tensor(&output_name(name), blocks.into_iter().map(triangle).sum())?;
                expected += 1;
            }
        }
        if self.tensors.len() != expected {
            return Err(Error::source_file("tensors that the calibration doesn't speak of"));
        }
        Ok(())
    }

    fn tensor(&self, name: &str, numbers: usize) -> Result<&HeaderTensor> {
        let wrong = |what: &str| Error::source_file(what).in_tensor(name);
        let tensor = self.tensors.get(name).ok_or_else(|| wrong("the calibration lacks it"))?;
        if tensor.dtype != Dtype::F32 || tensor.shape != [numbers as u64] {
            return Err(wrong("has another type or shape than the record makes it"));
        }
        Ok(tensor)
    }

    /// What the file says of itself.
    pub fn record(&self) -> &CalibrationRecord {
        &self.record
    }

    /// Where the file is.
    #[cfg(feature = "lm")]
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// SHA-256 of the file.
    pub fn sha256(&self) -> Digest {
        self.sha256
    }

    /// The layer whose weights are the tensor called `name`.
    pub(crate) fn layer_of(&self, tensor: &str) -> Option<&LayerRecord> {
        let name = self.weights.get(tensor)?;
        self.record.layers.get(name)
    }

    /// The layer called `name`.
    pub fn layer(&self, name: &str) -> Option<&LayerRecord> {
        self.record.layers.get(name)
    }

    /// Second moments of the inputs of a layer, `[cols (cols + 1) / 2]`: the rows of the lower
    /// triangle of the mean of `x x^T` over the tokens that the layer saw.
    ///
    /// # Errors
    /// `InvalidArgument` for a layer that isn't there; `Io`.
    pub fn inputs(&self, name: &str) -> Result<Vec<f32>> {
        let layer = self.known(name)?;
        self.read(&input_name(&layer.input), triangle(to_usize(layer.cols)?))
    }

    /// Second moments of the loss's gradients at the outputs of a layer, for each block of rows the
    /// lower triangle of the mean of `g g^T`.
    ///
    /// # Errors
    /// As [`Calibration::inputs`].
    pub fn outputs(&self, name: &str) -> Result<Vec<Vec<f32>>> {
        let sizes = self.record.blocks(self.known(name)?)?;
        let mut all = self.read(&output_name(name), sizes.iter().copied().map(triangle).sum())?;
        let mut blocks = vec![];
        for rows in sizes {
            let rest = all.split_off(triangle(rows));
            blocks.push(std::mem::replace(&mut all, rest));
        }
        Ok(blocks)
    }

    /// What the encoder takes of the layer whose weights are `tensor`.
    pub(crate) fn statistics(&self, tensor: &str) -> Result<Statistics> {
        let name = self.weights.get(tensor).map_or(tensor, String::as_str);
        let layer = self.known(name)?;
        Ok(Statistics {
            inputs: self.inputs(name)?,
            outputs: layer.outputs.then(|| self.outputs(name)).transpose()?,
            tokens: layer.tokens,
            all_tokens: self.record.protocol.tokens,
        })
    }

    /// Names the file in an error.
    pub(crate) fn locate(&self, e: Error) -> Error {
        e.in_file(&self.path)
    }

    fn known(&self, name: &str) -> Result<&LayerRecord> {
        self.layer(name).ok_or_else(|| {
            Error::argument("the calibration has no such layer").in_tensor(name).in_file(&self.path)
        })
    }

    fn read(&self, name: &str, numbers: usize) -> Result<Vec<f32>> {
        let locate = |e: Error| e.in_tensor(name).in_file(&self.path);
        let tensor = self.tensor(name, numbers).map_err(locate)?;
        let mut values: Vec<f32> = Vec::new();
        values.try_reserve_exact(numbers).map_err(|_| {
            locate(Error::new(ErrorKind::Io, format!("no memory for {numbers} numbers")))
        })?;
        let mut piece = vec![0; PIECE];
        let mut at = 0u64;
        while at < tensor.len {
            let n = to_usize((tensor.len - at).min(PIECE as u64))?;
            self.file.read_exact_at(tensor.offset + at, &mut piece[..n]).map_err(locate)?;
            let found = piece[..n].as_chunks().0;
            values.extend(found.iter().map(|b| f32::from_le_bytes(*b)));
            at += n as u64;
        }
        Ok(values)
    }
}

#[cfg(feature = "lm")]
pub(crate) use writer::{CalibrationWriter, Slot};

#[cfg(feature = "lm")]
#[cfg(feature = "lm")]
mod writer {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;
    use crate::output::{ClosedFile, NewFile};
    use crate::source::build_header;

    fn to_json(record: &CalibrationRecord) -> Result<String> {
        serde_json::to_string(record)
            .map_err(|e| Error::argument(format!("calibration: {e}")).with_source(e))
    }

    /// What is written of a layer.
    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Slot {
        Input,
        Output,
    }

    /// Writes a calibration file, layer by layer in any order.
    pub(crate) struct CalibrationWriter {
        out: NewFile,
        offsets: BTreeMap<String, (u64, usize)>,
        end: u64,
    }

    impl CalibrationWriter {
        /// Starts a file with this record. What [`CalibrationWriter::put`] doesn't fill is zero.
        pub(crate) fn new(path: &Path, force: bool, record: &CalibrationRecord) -> Result<Self> {
            let mut tensors: Vec<(String, u64)> = vec![];
            for (name, layer) in &record.layers {
                if layer.input == *name {
                    tensors.push((input_name(name), triangle(to_usize(layer.cols)?) as u64));
                }
                if !layer.outputs {
                    continue;
                }
                let blocks = record.blocks(layer)?;
                let numbers: usize = blocks.into_iter().map(triangle).sum();
                tensors.push((output_name(name), numbers as u64));
            }
            let shapes: Vec<[u64; 1]> = tensors.iter().map(|(_, n)| [*n]).collect();
            let listed: Vec<(&str, Dtype, &[u64])> = tensors
                .iter()
                .zip(&shapes)
                .map(|((name, _), shape)| (name.as_str(), Dtype::F32, shape.as_slice()))
                .collect();
            let metadata = BTreeMap::from([(KEY.to_owned(), to_json(record)?)]);
            let (head, offsets, end) = build_header(&listed, Some(&metadata))?;
            let mut out = NewFile::create(path, force)?;
            out.write_all(&head).map_err(|e| Error::io("can't write", e))?;
            let offsets = tensors
                .into_iter()
                .zip(offsets)
                .map(|((name, n), at)| Ok((name, (at, to_usize(n)?))))
                .collect::<Result<_>>()?;
            Ok(Self { out, offsets, end })
        }

        /// Writes the moments of a layer.
        pub(crate) fn put(&mut self, layer: &str, slot: Slot, values: &[f32]) -> Result<()> {
            let name = match slot {
                Slot::Input => input_name(layer),
                Slot::Output => output_name(layer),
            };
            let found = self.offsets.get(&name).filter(|(_, numbers)| *numbers == values.len());
            let &(at, _) = found.ok_or_else(|| {
                Error::source_file("another number of moments than expected").in_tensor(&name)
            })?;
            let mut write = || {
                self.out.seek(SeekFrom::Start(at))?;
                values.chunks(PIECE / 4).try_for_each(|values| {
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    self.out.write_all(&bytes)
                })
            };
            write().map_err(|e| Error::io("can't write", e).in_tensor(&name))
        }

        /// Gives the complete file its name.
        pub(crate) fn finish(mut self) -> Result<()> {
            let end = self.out.seek(SeekFrom::End(0)).map_err(|e| Error::io("can't write", e))?;
            if end != self.end {
                return Err(Error::source_file("not all moments were written"));
            }
            ClosedFile::commit(vec![self.out.close()?])
        }
    }
}
