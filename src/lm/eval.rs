//! Evaluation of a model against its source, by a protocol that anyone can replay
//! (spec/receipt.md):
//!
//! The text is encoded once, without special tokens, and cut into sequences of `seq_len` tokens
//! that don't overlap; what is left over is dropped. Each sequence is run by itself from an empty
//! state, and its tokens from the second on are scored. Encoders get `[CLS]` before and `[SEP]`
//! behind `seq_len - 2` tokens.

use std::collections::BTreeMap;

use super::baseline::{Baseline, Quantized};
use super::config::Config;
use super::linear::Pass;
use super::network::{Loaded, check_positions, config_of, load};
use super::ops::sum;
use super::text::{Cut, cut, tokenizer_of};
use super::weights::Weights;
use crate::audit::decoded_root;
use crate::error::{Error, Result};
use crate::format::{Digest, MAX_PLANES, MIN_PLANES, elements};
use crate::kernels::exp_shifted;
use crate::manifest::PackStats;
use crate::manifest::overlay_checks;
use crate::memory::DEFAULT_MAX_RAM;
use crate::par;
use crate::progress::{Progress, Silent, step};
use crate::receipt::{EvalRecord, Measured, Metric, ModelRecord, Protocol, Rows, TextRecord};
use crate::setters::setters;
use crate::source::Model;

/// How to evaluate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EvalOptions {
    /// Tokens of a sequence, 2 at least. Default: 256.
    pub seq_len: usize,
    /// Use at most so many tokens of the text. Default: all.
    pub max_tokens: Option<usize>,
    /// Read at most this many planes of each row. Default: all.
    pub rung: Option<u8>,
    /// With the overlays of the pack, unless a rung is read. Default: yes.
    pub overlays: bool,
    /// Quantizers to compare with, in the same run. Default: none.
    pub baselines: Vec<Baseline>,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { seq_len: 256, max_tokens: None, rung: None, overlays: true, baselines: vec![] }
    }
}

impl EvalOptions {
    /// Sequences of 256 tokens, the whole text, all planes, no baselines.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_seq_len: seq_len = usize,
        with_max_tokens: max_tokens = Option<usize>,
        with_rung: rung = Option<u8>,
        with_overlays: overlays = bool,
        with_baselines: baselines = Vec<Baseline>,
    }

    /// Compares `model` with `reference`: [`EvalOptions::prepare`], then [`Prepared::run`].
    ///
    /// # Errors
    /// As both.
    pub fn eval(
        &self,
        model: &Model,
        reference: &Model,
        text: &[u8],
        progress: &dyn Progress,
    ) -> Result<EvalRecord> {
        self.prepare(model, reference, text)?.run(progress)
    }

    /// Checks that `model` has the architecture and the tokenizer of `reference`, and cuts the text
    /// into sequences. No tensor is read.
    ///
    /// # Errors
    /// `InvalidArgument` for options that make no sense; `Source` for a text that is too short or
    /// not UTF-8, no tokenizer or a damaged one, another architecture or vocabulary than the
    /// reference's; as [`Model::file`].
    pub fn prepare<'a>(
        &self,
        model: &'a Model,
        reference: &'a Model,
        text: &[u8],
    ) -> Result<Prepared<'a>> {
        let config = self.check(model, reference)?;
        let tokenizer = tokenizer_of(model, reference)?;
        let cut = cut(&config, &tokenizer.0, text, self.seq_len, self.max_tokens)?;
        let text = TextRecord {
            sha256: Digest::of(text).to_string(),
            bytes: text.len() as u64,
            tokens: cut.text_tokens,
        };
        let (options, tokenizer_sha256) = (self.clone(), tokenizer.1);
        Ok(Prepared { options, model, reference, config, tokenizer_sha256, cut, text })
    }

    fn overlaid(&self) -> bool {
        self.overlays && self.rung.is_none()
    }

    fn check_seq_len(&self, config: &Config) -> Result<()> {
        let least = if matches!(config, Config::Bert(_)) { 3 } else { 2 };
        if self.seq_len < least {
            return Err(Error::argument(format!("sequences have {least} tokens at least")));
        }
        check_positions(config, self.seq_len)
    }

    /// The configuration of both models.
    fn check(&self, model: &Model, reference: &Model) -> Result<Config> {
        if let Some(rung) = self.rung {
            if !(MIN_PLANES..=MAX_PLANES).contains(&rung) {
                return Err(Error::argument("a rung has 3 to 8 planes"));
            }
            if matches!(model, Model::Checkpoint(_)) {
                return Err(Error::argument("only packs have rungs"));
            }
        }
        let expected = config_of(reference).map_err(|e| e.in_file(SOURCE))?;
        let found = config_of(model).map_err(|e| e.in_file(MODEL))?;
        if found.architecture() != expected.architecture() {
            return Err(Error::source_file(format!(
                "the model is a {}, the reference a {}",
                found.architecture(),
                expected.architecture()
            )));
        }
        if found.vocab() != expected.vocab() {
            return Err(Error::source_file(format!(
                "the model has a vocabulary of {}, the reference of {}",
                found.vocab(),
                expected.vocab()
            )));
        }
        if found != expected {
            return Err(Error::source_file(
                "config.json of the model describes another network than the reference's",
            ));
        }
        self.check_seq_len(&expected)?;
        Ok(expected)
    }
}

fn model_record(options: &EvalOptions, model: &Model, root: Digest) -> Result<ModelRecord> {
    let rung = options.rung;
    let mut record = ModelRecord {
        decoded_root: root.to_string(),
        stored_root: None,
        encoder: None,
        rung,
        effective_root: None,
        body_bpw: None,
        file_bpw: None,
    };
    if let Model::Pack(pack) = model {
        let stats = match options.overlaid() {
            true => PackStats::of(pack),
            false => PackStats::at_rung(pack, rung.unwrap_or(8)),
        };
        record.stored_root = Some(pack.stored_root().to_string());
        record.encoder = Some(pack.manifest()?.encoder);
        (record.body_bpw, record.file_bpw) = (stats.body_bpw, stats.file_bpw);
        if options.overlaid() {
            record.effective_root = pack.effective_root().map(|root| root.to_string());
        }
    }
    Ok(record)
}

/// How errors name the two models.
const MODEL: &str = "the model";
const SOURCE: &str = "the source";

/// An evaluation that is ready to run.
pub struct Prepared<'a> {
    options: EvalOptions,
    model: &'a Model,
    reference: &'a Model,
    config: Config,
    tokenizer_sha256: Digest,
    cut: Cut,
    text: TextRecord,
}

impl std::fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("options", &self.options)
            .field("architecture", &self.config.architecture())
            .field("sequences", &self.cut.sequences.len())
            .finish_non_exhaustive()
    }
}

impl Prepared<'_> {
    /// How many tokens will run through each model.
    pub fn tokens(&self) -> u64 {
        (self.cut.sequences.len() * self.options.seq_len) as u64
    }

    /// About how many bytes of memory it takes: all weights of all models as binary32, and the
    /// logits of the sequences that run at a time.
    pub fn memory_bytes(&self) -> u64 {
        let weights = self.reference.tensors().into_iter().map(|(_, _, shape)| elements(shape));
        let weights = weights.fold(0u64, |n, e| n.saturating_add(e.unwrap_or(u64::MAX)));
        let models = 2 + self.options.baselines.len() as u64;
        let running = par::threads().saturating_mul(self.batch_bytes());
        weights.saturating_mul(4 * models).saturating_add(running)
    }

    /// Logits of the reference, their exponentials, logits of one model, and a copy while they are
    /// made.
    fn batch_bytes(&self) -> u64 {
        let tokens = BATCH as u64 * self.options.seq_len as u64;
        4 * 4 * tokens.saturating_mul(self.config.vocab() as u64)
    }

    /// Loads the models and compares them. Source, model and baselines are held in memory as
    /// binary32; sequences run on all threads. `progress` counts tokens.
    ///
    /// # Errors
    /// `Source` for missing tensors and figures that are not finite; `Integrity` for a pack whose
    /// tensors don't give its decoded root; as reading the models; `Cancelled`.
    pub fn run(&self, progress: &dyn Progress) -> Result<EvalRecord> {
        let Self { options, model, reference, config, cut, .. } = self;
        let (model_root, reference_root) = (
            checked_root(model, progress).map_err(|e| e.in_file(MODEL))?,
            checked_root(reference, progress).map_err(|e| e.in_file(SOURCE))?,
        );
        let quantized = Quantized::of(model)?;
        let read = |weights: Weights<'_>, name: &str| {
            let weights = weights.with_progress(progress);
            load(config.clone(), &weights, options.seq_len).map_err(|e| e.in_file(name))
        };
        let mut weights = Weights::new(model).with_planes(options.rung.unwrap_or(8));
        if !options.overlaid() {
            weights = weights.without_overlays();
        }
        let mut contestants = vec![(MODEL, read(weights, MODEL)?)];
        for &baseline in &options.baselines {
            let change = |name: &str, tensor| quantized.round(baseline, name, tensor);
            let weights = Weights::new(reference).with_change(&change);
            contestants.push((baseline.name(), read(weights, baseline.name())?));
        }
        let source = read(Weights::new(reference), SOURCE)?;
        let batches: Vec<&[Vec<u32>]> = cut.sequences.chunks(BATCH).collect();
        let cost = |_| self.batch_bytes();
        let found = par::map_within(batches.len(), RUNNING_BYTES, cost, |i| {
            let run = Running { source: &source, contestants: &contestants, progress };
            let rows = run.compare(batches[i], &cut.inner, BATCH * i)?;
            step(progress, (options.seq_len * batches[i].len()) as u64)?;
            Ok(rows)
        })?;
        self.record(&found.concat(), &quantized, [model_root, reference_root])
    }

    fn record(
        &self,
        found: &[Vec<Row>],
        quantized: &Quantized,
        [model_root, reference_root]: [Digest; 2],
    ) -> Result<EvalRecord> {
        let Self { options, model, config, cut, .. } = self;
        let metric = if matches!(config, Config::Bert(_)) { Metric::Cosine } else { Metric::Kld };
        let mut all = collect(metric, found, 1 + options.baselines.len());
        let named = options.baselines.iter().zip(all.split_off(1));
        let baselines = named.map(|(baseline, (mut rows, _))| {
            rows.remove("nll_reference");
            (baseline.name().to_owned(), quantized.body_bpw(*baseline), rows)
        });
        let baselines = baselines.collect();
        let (rows, kld_largest) = all.remove(0);
        let record = EvalRecord::new(Measured {
            architecture: config.architecture().to_owned(),
            reference_root: reference_root.to_string(),
            tokenizer_sha256: self.tokenizer_sha256.to_string(),
            model: model_record(options, model, model_root)?,
            text: self.text.clone(),
            protocol: Protocol {
                seq_len: options.seq_len as u64,
                max_tokens: options.max_tokens.map(|n| n as u64),
                sequences: cut.sequences.len() as u64,
                tokens: (cut.sequences.len() * cut.inner.len()) as u64,
            },
            metric,
            rows,
            kld_largest,
            baselines,
        });
        let all = record.baselines.iter().map(|b| (b.name.as_str(), &b.headline));
        for (name, headline) in all.chain([(MODEL, &record.headline)]) {
            if let Some(figure) = headline.iter().find(|(_, v)| v.is_some_and(|v| !v.is_finite())) {
                let text = format!("{} is not finite", figure.0);
                return Err(Error::source_file(text).in_file(name));
            }
        }
        Ok(record)
    }
}

/// Sequences that run at a time on a thread: products of two pack their weights half as often.
const BATCH: usize = 2;
/// Memory for the logits of sequences that run at a time; one always may.
const RUNNING_BYTES: u64 = 2 << 30;

/// The decoded root, computed; a pack must claim the same, and its overlays must lead to what they
/// say.
pub(super) fn checked_root(model: &Model, progress: &dyn Progress) -> Result<Digest> {
    let found = decoded_root(model, &Silent(progress))?;
    if let Model::Pack(pack) = model
        && pack.decoded_root() != found
    {
        return Err(Error::integrity(format!(
            "decoded root is {found}, the pack says {}",
            pack.decoded_root()
        )));
    }
    if let Model::Pack(pack) = model {
        let views: Vec<_> = pack.tensors().collect();
        let silent = Silent(progress);
        let checks = overlay_checks(&pack.containers()[0], &views, DEFAULT_MAX_RAM, &silent)?;
        checks.0.into_iter().next().map_or(Ok(()), Err)?;
    }
    Ok(found)
}

/// What a sequence gives for one contestant.
#[derive(Debug, Clone, Default)]
struct Row {
    columns: BTreeMap<&'static str, f64>,
    klds: Vec<f32>,
}

/// Models in memory.
struct Running<'a> {
    source: &'a Loaded,
    contestants: &'a [(&'static str, Loaded)],
    progress: &'a dyn Progress,
}

impl Running<'_> {
    /// Runs sequences, of which the first has the number `first`, through all models: a row of each
    /// for each.
    fn compare(
        &self,
        sequences: &[Vec<u32>],
        inner: &std::ops::Range<usize>,
        first: usize,
    ) -> Result<Vec<Vec<Row>>> {
        step(self.progress, 0)?;
        let mut rows: Vec<Vec<Row>> = sequences.iter().map(|_| vec![]).collect();
        let at = |e: Error, i: usize, name: &str| {
            e.in_part(format!("sequence {}", first + i)).in_file(name)
        };
        if let Loaded::Encoder(_) = self.source {
            for (i, ids) in sequences.iter().enumerate() {
                let expected = self.source.states(ids, None).map_err(|e| at(e, i, SOURCE))?;
                for (name, model) in self.contestants {
                    step(self.progress, 0)?;
                    let found = model.states(ids, None);
                    let row = found.and_then(|found| cosines(&expected, &found, ids.len()));
                    rows[i].push(row.map_err(|e| at(e, i, name))?);
                }
            }
            return Ok(rows);
        }
        let ids: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let logits = self.source.logits(&ids, Pass::default()).map_err(|e| at(e, 0, SOURCE))?;
        let expected = logits.into_iter().zip(&ids).enumerate().map(|(i, (logits, ids))| {
            Expected::new(logits, &ids[inner.clone()]).map_err(|e| at(e, i, SOURCE))
        });
        let expected = expected.collect::<Result<Vec<_>>>()?;
        for (name, model) in self.contestants {
            step(self.progress, 0)?;
            let logits = model.logits(&ids, Pass::default()).map_err(|e| at(e, 0, name))?;
            for (i, (expected, logits)) in expected.iter().zip(logits).enumerate() {
                let row = expected.compare(&logits, &ids[i][inner.clone()]);
                rows[i].push(row.map_err(|e| at(e, i, name))?);
            }
        }
        Ok(rows)
    }
}

/// Distributions of the reference at the positions whose next token is scored.
struct Expected {
    logits: Vec<f32>,
    vocab: usize,
    /// Of logits less the largest of their position.
    exponentials: Vec<f32>,
    tops: Vec<Top>,
    nll: f64,
}

/// The largest logit of a position, and the sum of exponentials.
#[derive(Debug, Clone, Copy)]
struct Top {
    at: usize,
    most: f32,
    /// `sum e^(logit - most)`.
    total: f64,
    /// `ln sum e^logit`.
    log_sum: f64,
}

impl Top {
    fn of(logits: &[f32], exponentials: &mut [f32]) -> Result<Self> {
        let (mut at, mut most, mut least) = (0, f32::NEG_INFINITY, f32::INFINITY);
        for (i, &v) in logits.iter().enumerate() {
            if v > most {
                (at, most) = (i, v);
            }
            least = if v < least { v } else { least };
        }
        exp_shifted(exponentials, logits, most);
        let total = sum(exponentials);
        if !(total.is_finite() && most.is_finite() && least.is_finite()) {
            return Err(Error::source_file("logits are not finite"));
        }
        Ok(Self { at, most, total, log_sum: f64::from(most) + total.ln() })
    }
}

impl Expected {
    fn new(logits: Vec<f32>, targets: &[u32]) -> Result<Self> {
        let vocab = logits.len() / (targets.len() + 1);
        let mut exponentials = vec![0f32; targets.len() * vocab];
        let rows = logits.chunks(vocab).zip(exponentials.chunks_mut(vocab));
        let tops = rows.map(|(row, out)| Top::of(row, out)).collect::<Result<Vec<_>>>()?;
        let mut this = Self { logits, vocab, exponentials, tops, nll: 0.0 };
        this.nll = this.nll(&this.logits, &this.tops, targets);
        Ok(this)
    }

    /// Mean over the targets of minus their log probability.
    fn nll(&self, logits: &[f32], tops: &[Top], targets: &[u32]) -> f64 {
        let rows = logits.chunks(self.vocab).zip(tops).zip(targets);
        let each = rows.map(|((row, top), &id)| top.log_sum - f64::from(row[id as usize]));
        mean(each.sum(), targets.len())
    }

    fn compare(&self, logits: &[f32], targets: &[u32]) -> Result<Row> {
        if logits.len() != self.logits.len() {
            return Err(Error::source_file("the model has another vocabulary than the reference"));
        }
        let mut scratch = vec![0f32; self.vocab];
        let (mut tops, mut klds, mut same) = (vec![], vec![], 0usize);
        let rows = logits.chunks(self.vocab).zip(self.logits.chunks(self.vocab));
        let mut total = 0.0;
        for ((row, expected), (top, weights)) in
            rows.zip(self.tops.iter().zip(self.exponentials.chunks(self.vocab)))
        {
            let own = Top::of(row, &mut scratch)?;
            // Sum of p (log p - log q), of logits relative to the largest: small numbers stay
            // small.
            scratch
                .iter_mut()
                .zip(weights.iter().zip(expected.iter().zip(row)))
                .for_each(|(out, (w, (x, y)))| *out = w * ((x - top.most) - (y - own.most)));
            let kld = sum(&scratch) / top.total - top.total.ln() + own.total.ln();
            total += kld;
            #[allow(clippy::cast_possible_truncation, reason = "for a percentile")]
            klds.push(kld as f32);
            same += usize::from(own.at == top.at);
            tops.push(own);
        }
        let columns = [
            ("nll", self.nll(logits, &tops, targets)),
            ("nll_reference", self.nll),
            ("kld", mean(total, targets.len())),
            #[allow(clippy::cast_precision_loss, reason = "counts of tokens")]
            ("top1", mean(same as f64, targets.len())),
        ];
        Ok(Row { columns: columns.into(), klds })
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of tokens")]
fn mean(total: f64, n: usize) -> f64 {
    total / n as f64
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn cosine(a: &[f32], b: &[f32]) -> Result<f64> {
    let found = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if found.is_finite() {
        return Ok(found.min(1.0));
    }
    Err(Error::source_file("hidden states are zero or not finite"))
}

/// Cosines of the mean of the last states, and of the states of each token after each block.
fn cosines(expected: &[Vec<f32>], found: &[Vec<f32>], n: usize) -> Result<Row> {
    let pooled = |states: &[Vec<f32>]| {
        let last = states.last().map_or(&[][..], Vec::as_slice);
        let width = last.len() / n;
        let mut sums = vec![0f32; width];
        for row in last.chunks(width.max(1)) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
        sums
    };
    let (mut total, mut count) = (0.0, 0);
    // The first states are those before any block.
    for (a, b) in expected.iter().zip(found).skip(1) {
        let width = a.len() / n;
        for (a, b) in a.chunks(width).zip(b.chunks(width)) {
            total += cosine(a, b)?;
            count += 1;
        }
    }
    let columns = [
        ("cosine_pooled", cosine(&pooled(expected), &pooled(found))?),
        ("cosine_hidden", mean(total, count)),
    ];
    Ok(Row { columns: columns.into(), klds: vec![] })
}

/// Rounded to a thousand-millionth: what a record holds.
fn rounded(v: f64) -> f64 {
    (v * 1e9).round() / 1e9
}

/// Columns of each contestant, and its largest divergences.
fn collect(metric: Metric, found: &[Vec<Row>], contestants: usize) -> Vec<(Rows, Vec<f64>)> {
    let one = |c: usize| {
        let mut rows = Rows::new();
        let mut klds: Vec<f32> = Vec::new();
        for sequence in found {
            for (name, value) in &sequence[c].columns {
                rows.entry((*name).to_owned()).or_default().push(rounded(*value));
            }
            klds.extend(&sequence[c].klds);
        }
        klds.sort_unstable_by(|a, b| b.total_cmp(a));
        if metric == Metric::Kld {
            klds.truncate(klds.len() / 100 + 1);
        }
        (rows, klds.into_iter().map(|v| rounded(f64::from(v))).collect())
    };
    (0..contestants).map(one).collect()
}
