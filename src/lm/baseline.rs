//! The same tensors through candle's block quantizers (those of ggml), to compare with.

use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result as CandleResult, Tensor};

use super::failed;
use crate::error::{Error, Result};
use crate::format::{Role, elements};
use crate::pack::{Decision, Plan, Recipe};
use crate::source::Model;

/// A block quantizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Baseline {
    name: &'static str,
    dtype: GgmlDType,
}

const ALL: [Baseline; 10] = [
    Baseline { name: "q4_0", dtype: GgmlDType::Q4_0 },
    Baseline { name: "q4_1", dtype: GgmlDType::Q4_1 },
    Baseline { name: "q5_0", dtype: GgmlDType::Q5_0 },
    Baseline { name: "q5_1", dtype: GgmlDType::Q5_1 },
    Baseline { name: "q8_0", dtype: GgmlDType::Q8_0 },
    Baseline { name: "q2k", dtype: GgmlDType::Q2K },
    Baseline { name: "q3k", dtype: GgmlDType::Q3K },
    Baseline { name: "q4k", dtype: GgmlDType::Q4K },
    Baseline { name: "q5k", dtype: GgmlDType::Q5K },
    Baseline { name: "q6k", dtype: GgmlDType::Q6K },
];
/// What embeddings and heads are stored as, whatever the body is.
const FOR_TABLES: Baseline = ALL[4];

impl Baseline {
    /// Its name, such as `q5_0`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Blocks that hold `n` weights, the last perhaps in part.
    fn bytes(self, n: u64) -> u64 {
        n.div_ceil(self.dtype.block_size() as u64) * self.dtype.type_size() as u64
    }

    /// The tensor as it decodes again. Rows that the block doesn't divide are taken as one long
    /// row, padded with zeros.
    fn round(self, tensor: &Tensor) -> CandleResult<Tensor> {
        let block = self.dtype.block_size();
        let n = tensor.elem_count();
        let last = tensor.dims().last().copied().unwrap_or(1);
        if last.is_multiple_of(block) {
            return QTensor::quantize(tensor, self.dtype)?.dequantize(&Device::Cpu);
        }
        let flat = tensor.flatten_all()?.pad_with_zeros(0, 0, n.next_multiple_of(block) - n)?;
        let flat = QTensor::quantize(&flat, self.dtype)?.dequantize(&Device::Cpu)?;
        flat.narrow(0, 0, n)?.reshape(tensor.shape())
    }
}

impl std::str::FromStr for Baseline {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        ALL.into_iter().find(|b| b.name == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|b| b.name).collect();
            let name = name.escape_debug();
            Error::argument(format!("no baseline \"{name}\", there are {}", names.join(", ")))
        })
    }
}

/// Which tensors are quantized, and which of them count as body.
#[derive(Debug)]
pub(super) struct Quantized {
    roles: BTreeMap<String, Role>,
    /// Weights of the body, and bytes of those that stay as they are.
    body_weights: u64,
    body_raw_bytes: u64,
    /// Weights of each body tensor that is quantized.
    body: Vec<u64>,
}

impl Quantized {
    /// Those that a pack stores as planes; of a checkpoint, those that would be.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub(super) fn of(model: &Model) -> Result<Self> {
        let mut all =
            Self { roles: BTreeMap::new(), body_weights: 0, body_raw_bytes: 0, body: vec![] };
        match model {
            Model::Pack(pack) => {
                for t in pack.tensors() {
                    let e = t.entry();
                    if let Some(target) = e.encoding.alias_target() {
                        // Stored once: the target counts. It is rounded as the target is.
                        let target = pack.tensor(target).map(|t| t.entry());
                        if let Some(target) = target.filter(|t| t.encoding.is_quantized()) {
                            all.roles.insert(e.name.clone(), target.role);
                        }
                        continue;
                    }
                    let bytes = || e.dtype.tensor_bytes(&e.shape).unwrap_or(0);
                    let raw = e.encoding.keeps_source_bits().then(bytes);
                    all.add(&e.name, e.role, &e.shape, raw);
                }
            }
            Model::Checkpoint(source) => {
                for t in Plan::new(source, &Recipe::default())?.tensors {
                    match &t.decision {
                        Decision::Planes { .. } => all.add(&t.name, t.role, &t.shape, None),
                        _ => {
                            let bytes = t.dtype.tensor_bytes(&t.shape).unwrap_or(0);
                            all.add(&t.name, t.role, &t.shape, Some(bytes));
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    fn add(&mut self, name: &str, role: Role, shape: &[u64], raw: Option<u64>) {
        let n = elements(shape).unwrap_or(0);
        if role == Role::Body {
            self.body_weights += n;
            match raw {
                Some(bytes) => self.body_raw_bytes += bytes,
                None => self.body.push(n),
            }
        }
        if raw.is_none() {
            self.roles.insert(name.to_owned(), role);
        }
    }

    /// Bits of the body's blocks over its weights.
    pub(super) fn body_bpw(&self, baseline: Baseline) -> Option<f64> {
        let bytes = self.body.iter().map(|&n| baseline.bytes(n)).sum::<u64>() + self.body_raw_bytes;
        #[allow(clippy::cast_precision_loss, reason = "a rate for display")]
        let rate = |weights: u64| bytes as f64 * 8.0 / weights as f64;
        (self.body_weights > 0).then(|| rate(self.body_weights))
    }

    /// The tensor called `name` as `baseline` stores it.
    pub(super) fn round(&self, baseline: Baseline, name: &str, tensor: Tensor) -> Result<Tensor> {
        let Some(role) = self.roles.get(name) else { return Ok(tensor) };
        let table = matches!(role, Role::Embedding | Role::Head);
        let by = if table { FOR_TABLES } else { baseline };
        by.round(&tensor).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_blocks_do_not_divide_keep_their_shape() {
        let values: Vec<f32> = (0..3 * 50).map(|i| (i as f32 - 75.0) / 75.0).collect();
        let tensor = Tensor::from_vec(values.clone(), (3, 50), &Device::Cpu).expect("a matrix");
        for baseline in ALL {
            let found = baseline.round(&tensor).expect("finite");
            assert_eq!(found.dims(), [3, 50]);
            let found = found.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("floats");
            let worst = found.iter().zip(&values).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst > 0.0 && worst < 0.4, "{}: {worst}", baseline.name);
        }
        let q5_0: Baseline = "q5_0".parse().expect("known");
        assert_eq!(q5_0.bytes(150), 5 * 22);
        assert!("q9".parse::<Baseline>().is_err());
    }
}
