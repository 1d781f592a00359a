//! The record of a calibration file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::memory::to_usize;
use crate::receipt::TextRecord;

/// Name of the metadata entry that holds the record.
pub(super) const KEY: &str = "ultracompress_calibration";
/// Version of the file's layout.
const FORMAT: u32 = 1;
/// Widest layer that is read: a triangle of it has 2^37 numbers.
const MAX_WIDTH: u64 = 1 << 19;

/// How activations were gathered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Tokens of a sequence.
    pub seq_len: u64,
    /// The bound on tokens that was asked for.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// How many sequences were run.
    pub sequences: u64,
    /// Tokens of all sequences.
    pub tokens: u64,
    /// Seed of the labels, which are sampled from the model's own predictions.
    pub seed: u64,
}

/// One linear layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub cols: u64,
    /// Tokens that it saw. Experts see some only.
    pub tokens: u64,
    /// The layer under whose name the moments of the inputs are: itself, or another with the same
    /// inputs.
    pub input: String,
    /// The tensor that holds its weights, where that isn't its own `.weight`: a tied head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// There are moments of its outputs. Default: yes. The head has none.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub outputs: bool,
    /// It saw so few tokens that its moments lean on those of the other experts of its block.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fallback: bool,
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// What a calibration file says of itself.
///
/// # Spec
/// calibration.md, "Record".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// Always 1.
    pub format_version: u32,
    /// As `config.json` spells it.
    pub architecture: String,
    /// Decoded root of the model that was run.
    pub model_root: String,
    /// Digest of its `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// The text.
    pub text: TextRecord,
    /// How it was run.
    pub protocol: Protocol,
    /// Rows whose gradients are correlated with each other: `output_block` consecutive ones, a
    /// multiple of 64.
    pub output_block: u64,
    /// The layers, by name: that of their weight, without `.weight`.
    pub layers: BTreeMap<String, LayerRecord>,
}

impl CalibrationRecord {
    /// The version that this crate writes and reads.
    pub const FORMAT_VERSION: u32 = FORMAT;

    pub(super) fn parse(json: &str) -> Result<Self> {
        let bad = |e: String| Error::source_file(format!("calibration: {e}"));
        crate::source::check_keys(json.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let record: Self = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
        if record.format_version != FORMAT {
            return Err(bad(format!("format version {} is not known", record.format_version)));
        }
        if record.output_block == 0 || !record.output_block.is_multiple_of(64) {
            return Err(bad(format!("output_block {}", record.output_block)));
        }
        for (name, layer) in &record.layers {
            let wrong = |what: String| Error::source_file(what).in_tensor(name);
            if [layer.rows, layer.cols].iter().any(|n| !(1..=MAX_WIDTH).contains(n)) {
                return Err(wrong(format!("{} rows and {} columns", layer.rows, layer.cols)));
            }
            let owner = record.layers.get(&layer.input);
            if !owner.is_some_and(|o| o.cols == layer.cols && o.input == layer.input) {
                return Err(wrong(format!("its inputs are not those of {}", layer.input)));
            }
            if layer.tokens > record.protocol.tokens {
                return Err(wrong(format!("{} tokens", layer.tokens)));
            }
        }
        Ok(record)
    }

    /// Rows of each block of a layer's outputs.
    pub(crate) fn blocks(&self, layer: &LayerRecord) -> Result<Vec<usize>> {
        if !layer.outputs {
            return Ok(vec![]);
        }
        let (rows, most) = (to_usize(layer.rows)?, to_usize(self.output_block)?);
        Ok((0..rows).step_by(most).map(|from| most.min(rows - from)).collect())
    }
}

/// What the names of all experts of one block have in common: the name without the expert's number.
/// Nothing for other layers.
#[cfg(feature = "lm")]
pub(crate) fn sibling_key(layer: &str) -> Option<String> {
    let (block, rest) = layer.split_once(".experts.")?;
    let (number, part) = rest.split_once('.')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| format!("{block}.experts.*.{part}"))
}
