//! Checkpoints: tensors, safetensors files, files in shards.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use ultracompress::Dtype;

use super::random::{Rng, size};

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Self {
        let name = name.into();
        assert_eq!(dtype.tensor_bytes(shape), Some(bytes.len() as u64), "{name}");
        Self { name, dtype, shape: shape.to_vec(), bytes }
    }

    /// Finite values of few magnitudes.
    pub fn floats(name: impl Into<String>, dtype: Dtype, shape: &[u64], seed: u64) -> Self {
        let (keep, set) = match dtype {
            Dtype::Bf16 => (0x83ff_83ff_83ff_83ff, 0x3c00_3c00_3c00_3c00),
            Dtype::F32 => (0x83ff_ffff_83ff_ffff, 0x3c00_0000_3c00_0000),
            _ => (0x803f_ffff_ffff_ffff, 0x3f80_0000_0000_0000),
        };
        let n = size(dtype.tensor_bytes(shape).expect("whole bytes"));
        Self::new(name, dtype, shape, Rng(seed).words(n, keep, set))
    }

    /// For the safetensors crate.
    pub fn view(&self) -> (&str, TensorView<'_>) {
        let dtype = serde_json::from_value(self.dtype.name().into()).expect("a known type");
        let shape = self.shape.iter().map(|n| size(*n)).collect();
        (&self.name, TensorView::new(dtype, shape, &self.bytes).expect("fits"))
    }
}

/// A number as a source of this type has it, in little-endian bytes.
#[allow(clippy::cast_possible_truncation, reason = "rounds to the source's type")]
pub fn number(v: f64, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => half::f16::from_f32(v as f32).to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(v as f32).to_le_bytes().to_vec(),
        Dtype::F32 => (v as f32).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    }
}

/// Little-endian binary32 numbers.
pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A safetensors file with this header and this data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// The header of a safetensors file, and where the data begins.
pub fn header_of(file: &[u8]) -> (Value, usize) {
    let data = 8 + size(u64::from_le_bytes(file[..8].try_into().expect("8 bytes")));
    (serde_json::from_slice(&file[8..data]).expect("JSON"), data)
}

/// Writes a safetensors file with these tensors in this order.
pub fn write_weights<'a>(path: &Path, tensors: impl IntoIterator<Item = &'a Tensor>) {
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for t in tensors {
        let from = data.len();
        data.extend_from_slice(&t.bytes);
        let offsets = [from, data.len()];
        let entry = json!({"dtype": t.dtype.name(), "shape": t.shape, "data_offsets": offsets});
        header.insert(t.name.clone(), entry);
    }
    fs::write(path, safetensors(&Value::Object(header).to_string(), &data)).expect("can write");
}

/// What shard `i` of `n` is called, counted from 0.
pub fn shard_name(i: usize, n: usize) -> String {
    format!("model-{:05}-of-{n:05}.safetensors", i + 1)
}

/// Writes the index of a checkpoint in shards: name and file of each tensor.
pub fn write_index(folder: &Path, weight_map: impl IntoIterator<Item = (String, String)>) {
    let weight_map: serde_json::Map<_, _> =
        weight_map.into_iter().map(|(name, file)| (name, file.into())).collect();
    let index = json!({ "metadata": {}, "weight_map": weight_map }).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).expect("can write");
}

/// Tensor `i` goes to safetensors shard `i % shards`.
pub fn write_shards(folder: &Path, tensors: &[Tensor], shards: usize) {
    for shard in 0..shards {
        let own = tensors.iter().skip(shard).step_by(shards);
        write_weights(&folder.join(shard_name(shard, shards)), own);
    }
    let place = |(i, t): (usize, &Tensor)| (t.name.clone(), shard_name(i % shards, shards));
    write_index(folder, tensors.iter().enumerate().map(place));
}
