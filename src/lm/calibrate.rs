//! Statistics of real activations for the calibrated encoder (spec/calibration.md).
//!
//! The model runs block by block: forward with the states before each block kept in a temporary
//! file, then backward, each block once more with its gradients. Only one block's weights and
//! moments are in memory at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use candle_core::{Device, Result as CandleResult, Tensor, Var};

use super::architecture::Network;
use super::config::Config;
use super::failed;
use super::linear::{Observer, Pass};
use super::moments::{Panels, Sums};
use super::network::{SPARE, check_positions, config_of, load_ends};
use super::states::States;
use super::text::{Cut, cut, tokenizer_of};
use super::weights::Weights;
use crate::audit::decoded_root;
use crate::calibration::{
    CalibrationRecord, CalibrationWriter, LayerRecord, Protocol, Slot, sibling_key,
};
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::kernels::Kernel;
use crate::memory::to_usize;
use crate::par;
use crate::progress::{Progress, Silent, step};
use crate::receipt::TextRecord;
use crate::setters::setters;
use crate::source::Model;

/// How to calibrate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CalibrateOptions {
    /// Tokens of a sequence, 2 at least. Default: 256.
    pub seq_len: usize,
    /// Use at most so many tokens of the text. Default: all.
    pub max_tokens: Option<usize>,
    /// Seed of the labels. Default: 0.
    pub seed: u64,
    /// Consecutive outputs whose gradients are correlated with each other, a multiple of 64.
    /// Default: 2048.
    pub output_block: usize,
    /// Replace an existing file. Default: no.
    pub force: bool,
}

impl Default for CalibrateOptions {
    fn default() -> Self {
        Self { seq_len: 256, max_tokens: None, seed: 0, output_block: 2048, force: false }
    }
}

/// The head's name.
const HEAD: &str = "lm_head";
/// Most weights of a head that is encoded by a calibration: it is encoded as a whole.
const MOST_HEAD: u64 = 1 << 28;

/// Sequences that run at a time on a thread.
const BATCH: usize = 2;
/// Memory for what runs at a time; one batch always may.
const RUNNING_BYTES: u64 = 2 << 30;

impl CalibrateOptions {
    /// Sequences of 256 tokens, the whole text, seed 0, blocks of 2048 outputs.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_seq_len: seq_len = usize,
        with_max_tokens: max_tokens = Option<usize>,
        with_seed: seed = u64,
        with_output_block: output_block = usize,
        with_force: force = bool,
    }

    /// Cuts the text into sequences. No tensor is read.
    ///
    /// # Errors
    /// `InvalidArgument` for options that make no sense and for encoders; `Source` for a text that
    /// is too short or not UTF-8, no tokenizer or a damaged one, an architecture that is not
    /// known; as [`Model::file`].
    pub fn prepare<'a>(&self, model: &'a Model, text: &[u8]) -> Result<PreparedCalibration<'a>> {
        let config = config_of(model)?;
        if matches!(config, Config::Bert(_)) {
            return Err(Error::argument(
                "an encoder doesn't predict tokens: it can't be calibrated",
            ));
        }
        if self.seq_len < 2 {
            return Err(Error::argument("sequences have 2 tokens at least"));
        }
        if self.output_block == 0 || !self.output_block.is_multiple_of(64) {
            return Err(Error::argument("output blocks are multiples of 64"));
        }
        check_positions(&config, self.seq_len)?;
        let (tokenizer, tokenizer_sha256) = tokenizer_of(model, model)?;
        let cut = cut(&config, &tokenizer, text, self.seq_len, self.max_tokens)?;
        let text = TextRecord {
            sha256: Digest::of(text).to_string(),
            bytes: text.len() as u64,
            tokens: cut.text_tokens,
        };
        let blocks = config.layers();
        Ok(PreparedCalibration {
            options: self.clone(),
            model,
            config,
            tokenizer_sha256,
            cut,
            text,
            blocks,
        })
    }
}

/// A calibration that is ready to run.
pub struct PreparedCalibration<'a> {
    options: CalibrateOptions,
    model: &'a Model,
    config: Config,
    tokenizer_sha256: Digest,
    cut: Cut,
    text: TextRecord,
    blocks: usize,
}

impl std::fmt::Debug for PreparedCalibration<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedCalibration")
            .field("options", &self.options)
            .field("architecture", &self.config.architecture())
            .field("sequences", &self.cut.sequences.len())
            .finish_non_exhaustive()
    }
}

/// Linear layers as the forward pass meets them.
#[derive(Default)]
struct Met(Mutex<Vec<(String, [usize; 3], candle_core::TensorId)>>);

impl Observer for Met {
    fn linear(&self, name: &str, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        let (cols, rows) = (last(input)?, last(&output)?);
        let tokens = input.elem_count() / cols.max(1);
        let mut all = self.0.lock().expect("no panic before");
        all.push((name.to_owned(), [rows, cols, tokens], input.id()));
        Ok(output)
    }
}

fn last(x: &Tensor) -> CandleResult<usize> {
    x.dim(candle_core::D::Minus1)
}

/// Inputs of linear layers, and a variable of zeros on top of their outputs, whose gradient is that
/// of the output.
#[derive(Default)]
struct Tapped(Mutex<Vec<(String, Tensor, Var)>>);

impl Observer for Tapped {
    fn linear(&self, name: &str, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        let tap = Var::zeros(output.shape(), output.dtype(), output.device())?;
        let output = (output + tap.as_tensor())?;
        let mut all = self.0.lock().expect("no panic before");
        all.push((name.to_owned(), input.detach(), tap));
        Ok(output)
    }
}

/// What one batch brings to a layer.
struct Share {
    name: String,
    /// Only for layers under whose name the inputs are kept.
    inputs: Option<Panels>,
    gradients: Panels,
    tokens: usize,
}

impl PreparedCalibration<'_> {
    /// How much [`PreparedCalibration::run`] reports to its progress: tokens, once for each block
    /// in each direction and once for the head.
    pub fn work(&self) -> u64 {
        let tokens = self.cut.sequences.iter().map(Vec::len).sum::<usize>();
        tokens as u64 * (2 * self.blocks as u64 + 1)
    }

    /// Runs the model and writes the calibration file `output`, which appears only when it is
    /// complete.
    ///
    /// # Errors
    /// `Source` for missing tensors and statistics that are not finite; as reading the model;
    /// `Cancelled`; `Io`.
    pub fn run(&self, output: &Path, progress: &dyn Progress) -> Result<CalibrationRecord> {
        let kernel = Kernel::selected()?;
        let root = decoded_root(self.model, &Silent(progress))?;
        // The record names the base's root.
        let weights = Weights::new(self.model).without_overlays().with_progress(progress);
        let mut network = load_ends(self.config.clone(), &weights, self.options.seq_len)?;
        let batches: Vec<&[Vec<u32>]> = self.cut.sequences.chunks(BATCH).collect();
        let states = States::new(output)?;
        let run = Run {
            options: &self.options,
            batches: &batches,
            states: &states,
            vocab: self.config.vocab(),
            progress,
        };

        let mut layers = run.forward(network.as_mut(), &weights)?;
        weights.check_all_used(SPARE)?;
        let head = self.head_layer(run.tokens() as u64);
        layers.extend(head.clone().map(|layer| (HEAD.to_owned(), layer)));
        let record = CalibrationRecord {
            format_version: CalibrationRecord::FORMAT_VERSION,
            architecture: self.config.architecture().to_owned(),
            model_root: root.to_string(),
            tokenizer_sha256: self.tokenizer_sha256.to_string(),
            text: self.text.clone(),
            protocol: Protocol {
                seq_len: self.options.seq_len as u64,
                max_tokens: self.options.max_tokens.map(|n| n as u64),
                sequences: self.cut.sequences.len() as u64,
                tokens: run.tokens() as u64,
                seed: self.options.seed,
            },
            output_block: self.options.output_block as u64,
            layers: self.with_unseen_experts(layers)?,
        };
        let mut writer = CalibrationWriter::new(output, self.options.force, &record)?;
        let sums = run.head(network.as_ref(), kernel)?;
        if let Some(layer) = &head {
            let values =
                sums.inputs(to_usize(layer.cols)?, None, 0).map_err(|e| e.in_tensor(HEAD))?;
            writer.put(HEAD, Slot::Input, &values)?;
        }
        for block in (0..network.blocks()).rev() {
            network.hold(block, Some(&weights))?;
            let sums = run.backward(network.as_ref(), block, &record, kernel)?;
            network.hold(block, None)?;
            write(sums, &record, &mut writer)?;
        }
        writer.finish()?;
        Ok(record)
    }

    /// The head, unless it is so large that it had better stream.
    fn head_layer(&self, tokens: u64) -> Option<LayerRecord> {
        let named = |name: &str| self.model.tensor(name).is_some();
        let own = format!("{HEAD}.weight");
        let tables = ["model.embed_tokens.weight", "backbone.embeddings.weight"];
        let table = tables.into_iter().find(|t| named(t));
        let weight = table.filter(|_| self.config.tied() || !named(&own));
        let (_, shape) = self.model.tensor(weight.unwrap_or(&own))?;
        let &[rows, cols] = shape else { return None };
        (rows.saturating_mul(cols) <= MOST_HEAD).then(|| LayerRecord {
            rows,
            cols,
            tokens,
            input: HEAD.to_owned(),
            weight: weight.map(str::to_owned),
            outputs: false,
            fallback: false,
        })
    }

    /// Adds the experts that no token chose, and says which of all layers need help.
    fn with_unseen_experts(
        &self,
        mut layers: BTreeMap<String, LayerRecord>,
    ) -> Result<BTreeMap<String, LayerRecord>> {
        let mut siblings: BTreeMap<String, (String, LayerRecord)> = BTreeMap::new();
        for (name, layer) in &layers {
            if let Some(key) = sibling_key(name) {
                siblings.entry(key).or_insert_with(|| (name.clone(), layer.clone()));
            }
        }
        for (tensor, _, shape) in self.model.tensors() {
            let Some(name) = tensor.strip_suffix(".weight") else { continue };
            let sibling = sibling_key(name).and_then(|key| siblings.get(&key));
            let (Some((other, like)), false) = (sibling, layers.contains_key(name)) else {
                continue;
            };
            // The same part of this expert.
            let (from, to) = (expert_of(other), expert_of(name));
            let input = match (like.input.strip_prefix(from), &like.input == other) {
                (Some(part), false) => format!("{to}{part}"),
                _ => name.to_owned(),
            };
            if shape != [like.rows, like.cols] {
                return Err(
                    Error::source_file("has another shape than other experts").in_tensor(tensor)
                );
            }
            layers.insert(name.to_owned(), LayerRecord { tokens: 0, input, ..like.clone() });
        }
        for (name, layer) in &mut layers {
            let few = layer.tokens < layer.cols.max(layer.rows);
            layer.fallback = few && sibling_key(name).is_some();
        }
        Ok(layers)
    }
}

/// The name of an expert's layer up to the expert's number.
fn expert_of(layer: &str) -> &str {
    let number = layer.find(".experts.").map_or(0, |at| at + ".experts.".len());
    let end = layer[number..].find('.').map_or(layer.len(), |n| number + n);
    &layer[..end]
}

/// What all phases share.
struct Run<'a> {
    options: &'a CalibrateOptions,
    batches: &'a [&'a [Vec<u32>]],
    states: &'a States,
    vocab: usize,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    fn tokens(&self) -> usize {
        self.batches.iter().map(|b| b.len() * self.options.seq_len).sum()
    }

    fn batch_tokens(&self, batch: usize) -> u64 {
        (self.batches[batch].len() * self.options.seq_len) as u64
    }

    /// Runs `work` for all batches on all threads.
    fn each<T: Send>(&self, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
        par::map_within(self.batches.len(), RUNNING_BYTES, |_| 1, work)
    }

    fn read(&self, slot: usize, batch: usize, hidden: usize) -> Result<Tensor> {
        let values = self.states.read(slot, batch)?;
        let shape = (self.batches[batch].len(), self.options.seq_len, hidden);
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(failed)
    }

    fn write(&self, slot: usize, batch: usize, x: &Tensor) -> Result<()> {
        let values = x.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(failed)?;
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(Error::source_file(format!("activation {at} of a block is not finite")));
        }
        self.states.write(slot, batch, &values)
    }

    /// Runs all blocks and keeps the states before each and behind the last. Returns the linear
    /// layers.
    fn forward(
        &self,
        network: &mut dyn Network,
        weights: &Weights<'_>,
    ) -> Result<BTreeMap<String, LayerRecord>> {
        let mut hidden = 0;
        for (i, batch) in self.batches.iter().enumerate() {
            let ids =
                Tensor::from_vec(batch.concat(), (batch.len(), self.options.seq_len), &Device::Cpu)
                    .map_err(failed)?;
            let x = network.embed(&ids).map_err(failed)?;
            hidden = last(&x).map_err(failed)?;
            if i == 0 {
                let most = BATCH * self.options.seq_len * hidden;
                self.states.layout(network.blocks() + 1, self.batches.len(), most);
            }
            self.write(0, i, &x)?;
        }
        let mut layers = BTreeMap::new();
        for block in 0..network.blocks() {
            network.hold(block, Some(weights))?;
            let running: &dyn Network = network;
            let met = self.each(|batch| {
                let met = Met::default();
                let pass = Pass { observer: Some(&met), gradients: false };
                let x = self.read(block, batch, hidden)?;
                let y = running.block(block, &x, pass).map_err(failed)?;
                self.write(block + 1, batch, &y)?;
                step(self.progress, self.batch_tokens(batch))?;
                Ok(met.0.into_inner().expect("no panic before"))
            })?;
            network.hold(block, None)?;
            for met in met {
                list(&mut layers, &met);
            }
        }
        Ok(layers)
    }

    /// Replaces the states behind the last block by the gradients there, of the loss of labels that
    /// are sampled from the model's own predictions. Returns the moments of the head's inputs.
    fn head(&self, network: &dyn Network, kernel: Kernel) -> Result<Sums> {
        let slot = network.blocks();
        let mut sums = Sums::default();
        let work = |batch: usize| {
            let hidden = self.states.len_of(slot, batch)? / to_usize(self.batch_tokens(batch))?;
            let x = Var::from_tensor(&self.read(slot, batch, hidden)?).map_err(failed)?;
            let tapped = Tapped::default();
            let pass = Pass { observer: Some(&tapped), gradients: true };
            let gradient = || {
                let logits = network.head(x.as_tensor(), pass)?;
                let vocab = last(&logits)?;
                let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
                let first = batch * BATCH * self.options.seq_len;
                for (t, row) in values.chunks_exact_mut(vocab).enumerate() {
                    label_gradient(row, uniform(self.options.seed, (first + t) as u64));
                }
                let ahead = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
                let loss = (logits * ahead)?.sum_all()?;
                let gradients = loss.backward()?;
                gradients.get(x.as_tensor()).cloned().ok_or_else(no_gradient)
            };
            self.write(slot, batch, &gradient().map_err(failed)?)?;
            let tapped = tapped.0.into_inner().expect("no panic before");
            let inputs = tapped.first().map(|(_, input, _)| Panels::new(input));
            step(self.progress, self.batch_tokens(batch))?;
            inputs.transpose().map_err(failed)
        };
        // Logits, their gradient and what lies between.
        let vocab = self.vocab as u64;
        let cost = |batch| self.batch_tokens(batch) * vocab * 24;
        par::each_within(self.batches.len(), RUNNING_BYTES, cost, work, |inputs| {
            if let Some(inputs) = &inputs {
                sums.add(kernel, Some(inputs), None, inputs.tokens());
            }
        })?;
        Ok(sums)
    }

    /// Replaces the states before a block by the gradients there, and sums up the moments of its
    /// layers.
    fn backward(
        &self,
        network: &dyn Network,
        block: usize,
        record: &CalibrationRecord,
        kernel: Kernel,
    ) -> Result<BTreeMap<String, Sums>> {
        let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
        let work = |batch: usize| {
            let hidden = self.states.len_of(block, batch)? / to_usize(self.batch_tokens(batch))?;
            let x = Var::from_tensor(&self.read(block, batch, hidden)?).map_err(failed)?;
            let ahead = self.read(block + 1, batch, hidden)?;
            let tapped = Tapped::default();
            let gradients = || {
                let pass = Pass { observer: Some(&tapped), gradients: true };
                let y = network.block(block, x.as_tensor(), pass)?;
                (y * ahead)?.sum_all()?.backward()
            };
            let gradients = gradients().map_err(failed)?;
            let before = gradients.get(x.as_tensor()).ok_or_else(no_gradient).map_err(failed)?;
            self.write(block, batch, before)?;
            let tapped = tapped.0.into_inner().expect("no panic before");
            let shares = tapped.into_iter().map(|(name, input, tap)| {
                let layer = record.layers.get(&name).ok_or_else(|| {
                    Error::source_file("ran backward but not forward").in_tensor(&name)
                })?;
                let gradient = match gradients.get(tap.as_tensor()) {
                    Some(gradient) => gradient.clone(),
                    None => tap.zeros_like().map_err(failed)?,
                };
                let own = layer.input == name;
                let tokens = input.elem_count() / to_usize(layer.cols)?;
                let inputs = own.then(|| Panels::new(&input)).transpose().map_err(failed)?;
                let gradients = Panels::new(&gradient).map_err(failed)?;
                Ok(Share { name, inputs, gradients, tokens })
            });
            shares.collect::<Result<Vec<Share>>>()
        };
        let cost = |batch| self.batch_tokens(batch) << 16;
        let mut done = 0;
        let mut failed = None;
        par::each_within(self.batches.len(), RUNNING_BYTES, cost, work, |shares| {
            for share in shares {
                let layer = &record.layers[&share.name];
                let blocks = record.blocks(layer).unwrap_or_default();
                let own = sums.entry(share.name).or_insert_with(|| Sums::new(&blocks));
                own.add(kernel, share.inputs.as_ref(), Some(&share.gradients), share.tokens);
            }
            if let Err(e) = step(self.progress, self.batch_tokens(done)) {
                failed.get_or_insert(e);
            }
            done += 1;
        })?;
        match failed {
            Some(e) => Err(e),
            None => Ok(sums),
        }
    }
}

fn no_gradient() -> candle_core::Error {
    candle_core::Error::Msg("a state has no gradient".into())
}

/// Adds the layers of one pass over a block; those that got the same tensor share their inputs.
fn list(
    layers: &mut BTreeMap<String, LayerRecord>,
    met: &[(String, [usize; 3], candle_core::TensorId)],
) {
    for (name, [rows, cols, tokens], id) in met {
        let owner = met.iter().filter(|(_, _, other)| other == id).map(|(name, ..)| name).min();
        let layer = layers.entry(name.clone()).or_insert_with(|| LayerRecord {
            rows: *rows as u64,
            cols: *cols as u64,
            tokens: 0,
            input: owner.unwrap_or(name).clone(),
            weight: None,
            outputs: true,
            fallback: false,
        });
        layer.tokens += *tokens as u64;
    }
}

/// A number from 0 to 1 for each token (splitmix64 of seed and place).
#[allow(clippy::cast_precision_loss, reason = "53 bits")]
fn uniform(seed: u64, position: u64) -> f64 {
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Turns logits into the gradient of `-log p(label)` for a label that is drawn with `at`, from 0 to
/// 1.
#[allow(clippy::cast_possible_truncation, reason = "gradients are binary32")]
fn label_gradient(row: &mut [f32], at: f64) {
    let peak = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let mut sum = 0f64;
    for x in row.iter_mut() {
        *x = crate::kernels::exp(*x - peak);
        sum += f64::from(*x);
    }
    let mut label = None;
    let mut passed = 0f64;
    for (i, x) in row.iter_mut().enumerate() {
        passed += f64::from(*x);
        if label.is_none() && passed > at * sum {
            label = Some(i);
        }
        *x = (f64::from(*x) / sum) as f32;
    }
    if let Some(x) = row.get_mut(label.unwrap_or(0)) {
        *x -= 1.0;
    }
}

/// Writes the moments of a block. Experts that saw few tokens lean on what all of their block saw.
fn write(
    sums: BTreeMap<String, Sums>,
    record: &CalibrationRecord,
    writer: &mut CalibrationWriter,
) -> Result<()> {
    let mut pools: BTreeMap<String, Sums> = BTreeMap::new();
    for (name, sums) in &sums {
        if let Some(key) = sibling_key(name) {
            pools.entry(key).or_default().pool(sums);
        }
    }
    let unseen = record.layers.iter().filter(|(name, layer)| {
        layer.tokens == 0 && sibling_key(name).is_some_and(|key| pools.contains_key(&key))
    });
    let empty = Sums::default();
    for (name, sums) in sums.iter().chain(unseen.map(|(name, _)| (name, &empty))) {
        let layer = &record.layers[name];
        let least = to_usize(layer.cols.max(layer.rows))?;
        let lent = if layer.fallback { least.saturating_sub(sums.tokens()) } else { 0 };
        let lender = sibling_key(name).and_then(|key| pools.get(&key));
        let locate = |e: Error| e.in_tensor(name);
        if layer.input == *name {
            let values = sums.inputs(to_usize(layer.cols)?, lender, lent).map_err(locate)?;
            writer.put(name, Slot::Input, &values)?;
        }
        let values = sums.outputs(&record.blocks(layer)?, lender, lent).map_err(locate)?;
        writer.put(name, Slot::Output, &values)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_drawn_from_the_prediction() {
        let logits = [0.0f32, 1.0, -2.0, 3.0];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let mut drawn = [0u32; 4];
        for position in 0..20_000 {
            let mut row = logits;
            label_gradient(&mut row, uniform(5, position));
            let label = row.iter().position(|x| *x < 0.0).expect("one label");
            assert!(row.iter().sum::<f32>().abs() < 1e-5, "p less the label");
            drawn[label] += 1;
        }
        for (count, logit) in drawn.iter().zip(logits) {
            let (found, expected) = (f64::from(*count) / 20_000.0, f64::from(logit).exp() / sum);
            assert!((found - expected).abs() < 0.01, "{found} {expected}");
        }
        assert!(uniform(1, 0) != uniform(2, 0) && uniform(1, 0) != uniform(1, 1));
    }

    #[test]
    fn experts_have_siblings() {
        let name = "model.layers.3.block_sparse_moe.experts.12.w1";
        assert_eq!(expert_of(name), "model.layers.3.block_sparse_moe.experts.12");
        let key = sibling_key(name).expect("an expert");
        assert_eq!(key, "model.layers.3.block_sparse_moe.experts.*.w1");
        assert_eq!(sibling_key("model.layers.3.block_sparse_moe.experts.0.w1"), Some(key));
        assert_eq!(sibling_key("model.layers.3.mlp.up_proj"), None);
        assert_eq!(sibling_key("model.layers.3.mlp.experts.down"), None);
    }
}
