//! Headers of safetensors files, read without the payload and written with alignment.

use std::collections::BTreeMap;

use safetensors::tensor::{Metadata, TensorInfo};

use super::json::check_keys;
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::memory::to_usize;
use crate::storage::ReadAt;

/// Longest header that is read, as in the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The data of files that we write starts at a multiple of this, so that rows lie as they do in
/// memory.
const DATA_ALIGN: usize = 64;

/// One tensor of a safetensors file.
#[derive(Debug, Clone)]
pub(crate) struct HeaderTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Absolute byte offset in the file.
    pub offset: u64,
    pub len: u64,
}

/// The header of a safetensors file.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    /// In the order of the data.
    pub tensors: Vec<HeaderTensor>,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes in front of the data.
    pub head_len: u64,
    /// Their CRC-32, to notice that they changed since.
    pub head_crc32: u32,
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Reads and checks the header of a safetensors file.
///
/// # Errors
/// `Source` naming what is wrong with it, `Io`.
pub(crate) fn read_header(file: &impl ReadAt) -> Result<Header> {
    parse_header(file, file.len_bytes()?)
}

/// As [`read_header`], of a file of `file_len` bytes of which `file` has at least the header.
///
/// # Errors
/// As [`read_header`].
pub(crate) fn parse_header(file: &impl ReadAt, file_len: u64) -> Result<Header> {
    let bad = |text: String| Error::source_file(format!("not a safetensors file: {text}")).at(0);
    if file_len < 8 {
        return Err(bad(format!("it has {file_len} bytes")));
    }
    let mut first = [0; 8];
    file.read_exact_at(0, &mut first)?;
    if first.starts_with(b"version ") {
        return Err(bad("it is a Git LFS pointer, fetch the file itself".into()));
    }
    let header_len = u64::from_le_bytes(first);
    if header_len > MAX_HEADER_BYTES || header_len > file_len - 8 {
        return Err(bad(format!(
            "it claims a header of {header_len} bytes, the file has {file_len}"
        )));
    }
    let mut json = vec![0; to_usize(header_len)?];
    file.read_exact_at(8, &mut json)?;
    check_keys(&json).map_err(|e| bad(format!("header: {e}")).with_source(e))?;
    let parsed: Metadata =
        serde_json::from_slice(&json).map_err(|e| bad(format!("header: {e}")).with_source(e))?;

    let mut names = parsed.offset_keys();
    // Empty tensors share their offset with a neighbour; the name makes the order total.
    names.sort_by_key(|n| parsed.info(n).map(|i| (i.data_offsets, n.clone())));
    let mut tensors = Vec::with_capacity(names.len());
    let mut end = 0u64;
    for name in names {
        let info = parsed.info(&name).expect("listed above");
        let tensor = check_tensor(&name, info, end, 8 + header_len)
            .map_err(|e| Error::source_file(e).in_tensor(&name))?;
        end += tensor.len;
        tensors.push(tensor);
    }
    // No file is 2^64 bytes long, so a sum that saturates is still a mismatch.
    let data_end = (8 + header_len).saturating_add(end);
    if data_end != file_len {
        return Err(Error::source_file(format!(
            "tensors end at byte {data_end}, the file has {file_len}: {}",
            if file_len < data_end { "it is cut off" } else { "bytes are left over" }
        ))
        .at(data_end));
    }
    let metadata = parsed.metadata().clone().map(|m| m.into_iter().collect());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&first);
    crc.update(&json);
    let (head_len, head_crc32) = (8 + header_len, crc.finalize());
    Ok(Header { tensors, file_len, head_len, head_crc32, metadata })
}

fn check_tensor(
    name: &str,
    info: &TensorInfo,
    end: u64,
    base: u64,
) -> std::result::Result<HeaderTensor, String> {
    let dtype = Dtype::from_name(&info.dtype.to_string())
        .ok_or_else(|| format!("dtype {} is not known", info.dtype))?;
    let shape: Vec<u64> = info.shape.iter().map(|&d| d as u64).collect();
    let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    if from != end || to < from {
        return Err(format!(
            "data_offsets [{from}, {to}] leave a hole or overlap: the tensor before ends at {end}"
        ));
    }
    if dtype.tensor_bytes(&shape) != Some(to - from) {
        return Err(format!("{} bytes for {dtype} {shape:?}", to - from));
    }
    let offset = base.saturating_add(from);
    Ok(HeaderTensor { name: name.to_owned(), dtype, shape, offset, len: to - from })
}

/// A header to be written: widest types first, then by name, so that every tensor is aligned to its
/// element size; padded so that the data starts at a multiple of 64.
///
/// Returns the bytes before the data and, for each tensor of `tensors`, its absolute offset.
///
/// # Errors
/// `Source` when safetensors can't express a tensor.
pub(crate) fn build_header(
    tensors: &[(&str, Dtype, &[u64])],
    metadata: Option<&BTreeMap<String, String>>,
) -> Result<(Vec<u8>, Vec<u64>, u64)> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(tensors[i].1.bits()), tensors[i].0));
    let mut at = 0usize;
    let mut offsets = vec![0u64; tensors.len()];
    let mut infos = Vec::with_capacity(tensors.len());
    for i in order {
        let (name, dtype, shape) = tensors[i];
        let bytes = to_usize(dtype.tensor_bytes(shape).unwrap_or(0))?;
        let dtype = serde_json::from_value(dtype.name().into())
            .map_err(|e| Error::source_file(format!("{dtype}: {e}")).in_tensor(name))?;
        let shape = shape.iter().map(|&d| to_usize(d)).collect::<Result<_>>()?;
        infos.push((name.to_owned(), TensorInfo { dtype, shape, data_offsets: (at, at + bytes) }));
        offsets[i] = at as u64;
        at += bytes;
    }
    let infos = Metadata::new(None, infos)
        .map_err(|e| Error::source_file(format!("safetensors header: {e}")).with_source(e))?;
    let mut json = serde_json::to_string(&infos)
        .map_err(|e| Error::source_file(format!("safetensors header: {e}")).with_source(e))?;
    if metadata.is_some() {
        // The crate's own map has no fixed order; the sorted one goes in front of the tensors.
        let text = serde_json::to_string(&metadata)
            .map_err(|e| Error::source_file(format!("safetensors header: {e}")).with_source(e))?;
        let comma = if json == "{}" { "" } else { "," };
        json = format!("{{\"__metadata__\":{text}{comma}{}", &json[1..]);
    }
    let padded = (8 + json.len()).next_multiple_of(DATA_ALIGN) - 8;
    json.push_str(&" ".repeat(padded - json.len()));
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.extend_from_slice(json.as_bytes());
    let base = head.len() as u64;
    offsets.iter_mut().for_each(|o| *o += base);
    Ok((head, offsets, base + at as u64))
}
