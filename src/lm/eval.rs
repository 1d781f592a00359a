//! Evaluation of a model against its source, by a protocol that anyone can replay (spec/receipt.md):
//!
//! The text is encoded once, without special tokens, and cut into sequences of `seq_len` tokens that don't
//! overlap; what is left over is dropped. Each sequence is run by itself from an empty state, and its tokens
//! from the second on are scored. Encoders get `[CLS]` before and `[SEP]` behind `seq_len - 2` tokens.

use std::collections::BTreeMap;

use tokenizers::Tokenizer;

use super::baseline::{Baseline, Quantized};
use super::config::Config;
use super::linear::Pass;
use super::network::{Loaded, check_positions, config_of, load};
use super::ops::sum;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::import::{Model, PackStats, decoded_root};
use crate::kernels::exp_shifted;
use crate::par;
use crate::progress::{Progress, step};
use crate::receipt::{EvalRecord, Measured, Metric, ModelRecord, Protocol, Rows, TextRecord};

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
    /// Quantizers to compare with, in the same run. Default: none.
    pub baselines: Vec<Baseline>,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { seq_len: 256, max_tokens: None, rung: None, baselines: vec![] }
    }
}

impl EvalOptions {
    /// Sequences of 256 tokens, the whole text, all planes, no baselines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`EvalOptions::seq_len`].
    #[must_use]
    pub fn with_seq_len(mut self, tokens: usize) -> Self {
        self.seq_len = tokens;
        self
    }

    /// Sets [`EvalOptions::max_tokens`].
    #[must_use]
    pub fn with_max_tokens(mut self, tokens: Option<usize>) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// Sets [`EvalOptions::rung`].
    #[must_use]
    pub fn with_rung(mut self, planes: Option<u8>) -> Self {
        self.rung = planes;
        self
    }

    /// Sets [`EvalOptions::baselines`].
    #[must_use]
    pub fn with_baselines(mut self, baselines: Vec<Baseline>) -> Self {
        self.baselines = baselines;
        self
    }

    /// Compares `model` with `reference`, whose tokenizer and architecture it must have. Reference, model and
    /// baselines are held in memory as binary32; sequences run on all threads. `progress` counts tokens.
    ///
    /// # Errors
    /// `InvalidArgument` for options that make no sense; `Source` for a text that is too short or not UTF-8, no
    /// tokenizer, another architecture or vocabulary than the reference's, missing tensors, and logits that are
    /// not finite; `Integrity` for a pack whose tensors don't give its decoded root; as reading the models;
    /// `Cancelled`.
    pub fn eval(
        &self,
        model: &Model,
        reference: &Model,
        text: &[u8],
        progress: &dyn Progress,
    ) -> Result<EvalRecord> {
        let config = self.check(model, reference)?;
        let tokenizer = tokenizer_of(model, reference)?;
        let cut = self.cut(&config, &tokenizer.0, text)?;
        let (model_root, reference_root) = (checked_root(model)?, checked_root(reference)?);
        let quantized = if self.baselines.is_empty() { None } else { Some(Quantized::of(model)?) };
        let nothing = || Error::argument("no baselines");
        let seq_len = self.seq_len;
        let read = |m: &Model| load(config.clone(), &Weights::new(m), seq_len);
        let planes = self.rung.unwrap_or(8);
        let mut contestants =
            vec![load(config.clone(), &Weights::new(model).with_planes(planes), seq_len)?];
        for &baseline in &self.baselines {
            let quantized = quantized.as_ref().ok_or_else(nothing)?;
            let change = |name: &str, tensor| quantized.round(baseline, name, tensor);
            let weights = Weights::new(reference).with_change(&change);
            contestants.push(load(config.clone(), &weights, seq_len)?);
        }
        let reference = read(reference)?;
        let found = par::map(cut.sequences.len(), |i| {
            let row = compare(&reference, &contestants, &cut.sequences[i], cut.inner.clone())
                .map_err(|e| {
                    Error::new(e.kind().clone(), format!("sequence {i}: {}", e.message()))
                })?;
            step(progress, seq_len as u64)?;
            Ok(row)
        });
        let found = found.into_iter().collect::<Result<Vec<_>>>()?;
        let metric = if matches!(config, Config::Bert(_)) { Metric::Cosine } else { Metric::Kld };
        let mut all = collect(metric, &found, contestants.len());
        let rates = self
            .baselines
            .iter()
            .map(|b| (b.name().to_owned(), quantized.as_ref().and_then(|q| q.body_bpw(*b))));
        let baselines = rates.zip(all.split_off(1)).map(|((name, bpw), (mut rows, _))| {
            rows.remove("nll_reference");
            (name, bpw, rows)
        });
        let baselines = baselines.collect();
        let Some((rows, kld_largest)) = all.pop() else { return Err(nothing()) };
        Ok(EvalRecord::new(Measured {
            architecture: config.architecture().to_owned(),
            reference_root: reference_root.to_string(),
            tokenizer_sha256: tokenizer.1.to_string(),
            model: self.model_record(model, model_root)?,
            text: TextRecord {
                sha256: Digest::of(text).to_string(),
                bytes: text.len() as u64,
                tokens: cut.text_tokens,
            },
            protocol: Protocol {
                seq_len: seq_len as u64,
                max_tokens: self.max_tokens.map(|n| n as u64),
                sequences: cut.sequences.len() as u64,
                tokens: (cut.sequences.len() * cut.inner.len()) as u64,
            },
            metric,
            rows,
            kld_largest,
            baselines,
        }))
    }

    /// How many tokens an evaluation will run through each model.
    ///
    /// # Errors
    /// As [`EvalOptions::eval`], as far as text and reference alone are concerned.
    pub fn tokens(&self, reference: &Model, text: &[u8]) -> Result<u64> {
        let config = config_of(reference)?;
        self.check_seq_len(&config)?;
        let cut = self.cut(&config, &tokenizer_of(reference, reference)?.0, text)?;
        Ok((cut.sequences.len() * self.seq_len) as u64)
    }

    fn check_seq_len(&self, config: &Config) -> Result<()> {
        if self.seq_len < 2 {
            return Err(Error::argument("sequences have two tokens at least"));
        }
        check_positions(config, self.seq_len)
    }

    /// The configuration of both models.
    fn check(&self, model: &Model, reference: &Model) -> Result<Config> {
        if let Some(rung) = self.rung {
            if !(3..=8).contains(&rung) {
                return Err(Error::argument("a rung has 3 to 8 planes"));
            }
            if matches!(model, Model::Checkpoint(_)) {
                return Err(Error::argument("only packs have rungs"));
            }
        }
        let expected = config_of(reference)?;
        let found = config_of(model)?;
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

    fn cut(&self, config: &Config, tokenizer: &Tokenizer, text: &[u8]) -> Result<Cut> {
        let text = std::str::from_utf8(text)
            .map_err(|e| Error::source_file(format!("the text is not UTF-8: {e}")))?;
        let encoding = tokenizer
            .encode_fast(text, false)
            .map_err(|e| Error::source_file(format!("tokenizer.json: {e}")))?;
        let ids = encoding.get_ids();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab()) {
            return Err(Error::source_file(format!(
                "the tokenizer gives token {id}, the model has a vocabulary of {}",
                config.vocab()
            )));
        }
        let used = &ids[..ids.len().min(self.max_tokens.unwrap_or(usize::MAX))];
        let encoder = matches!(config, Config::Bert(_));
        let (width, inner) = if encoder {
            (self.seq_len.saturating_sub(2), 1..self.seq_len - 1)
        } else {
            (self.seq_len, 1..self.seq_len)
        };
        if width == 0 || used.len() < width {
            return Err(Error::source_file(format!(
                "the text is too short: {} tokens, a sequence takes {width}",
                used.len()
            )));
        }
        let ends = if encoder {
            let id = |name: &str| {
                let found = tokenizer.token_to_id(name);
                found.ok_or_else(|| Error::source_file(format!("tokenizer.json has no {name}")))
            };
            Some((id("[CLS]")?, id("[SEP]")?))
        } else {
            None
        };
        let sequence = |tokens: &[u32]| match ends {
            None => tokens.to_vec(),
            Some((cls, sep)) => [&[cls][..], tokens, &[sep]].concat(),
        };
        let sequences = used.chunks_exact(width).map(sequence).collect();
        Ok(Cut { sequences, inner, text_tokens: ids.len() as u64 })
    }

    fn model_record(&self, model: &Model, root: Digest) -> Result<ModelRecord> {
        let mut record = ModelRecord {
            decoded_root: root.to_string(),
            stored_root: None,
            encoder: None,
            rung: self.rung,
            body_bpw: None,
            file_bpw: None,
        };
        if let Model::Pack(pack) = model {
            let stats = PackStats::at_rung(pack, self.rung.unwrap_or(8));
            record.stored_root = Some(pack.stored_root().to_string());
            record.encoder = Some(pack.manifest()?.encoder);
            (record.body_bpw, record.file_bpw) = (stats.body_bpw, stats.file_bpw);
        }
        Ok(record)
    }
}

/// The text as sequences.
struct Cut {
    sequences: Vec<Vec<u32>>,
    /// The tokens of a sequence that count.
    inner: std::ops::Range<usize>,
    text_tokens: u64,
}

/// The tokenizer of the reference and its digest. One that the model brings must be the same.
fn tokenizer_of(model: &Model, reference: &Model) -> Result<(Tokenizer, Digest)> {
    const FILE: &str = "tokenizer.json";
    let json = reference.file(FILE)?;
    let json = json.ok_or_else(|| Error::source_file("there is no tokenizer.json"))?;
    if model.file(FILE)?.is_some_and(|own| own != json) {
        return Err(Error::source_file("the model's tokenizer.json is not the reference's"));
    }
    let bad = |e: tokenizers::Error| Error::source_file(format!("tokenizer.json: {e}"));
    let mut tokenizer = Tokenizer::from_bytes(&json).map_err(bad)?;
    // What a pipeline may want; the text is taken whole.
    tokenizer.with_truncation(None).map_err(bad)?;
    tokenizer.with_padding(None);
    Ok((tokenizer, Digest::of(&json)))
}

/// The decoded root, computed; a pack must claim the same.
fn checked_root(model: &Model) -> Result<Digest> {
    let found = decoded_root(model)?;
    if let Model::Pack(pack) = model
        && pack.decoded_root() != found
    {
        return Err(Error::integrity(format!(
            "decoded root is {found}, the pack says {}",
            pack.decoded_root()
        )));
    }
    Ok(found)
}

/// What a sequence gives for one contestant.
#[derive(Debug, Default)]
struct Row {
    columns: BTreeMap<&'static str, f64>,
    klds: Vec<f32>,
}

fn compare(
    reference: &Loaded,
    contestants: &[Loaded],
    ids: &[u32],
    inner: std::ops::Range<usize>,
) -> Result<Vec<Row>> {
    if let Loaded::Encoder(_) = reference {
        let expected = reference.states(ids, None)?;
        return contestants
            .iter()
            .map(|c| cosines(&expected, &c.states(ids, None)?, ids.len()))
            .collect();
    }
    let targets = &ids[inner];
    let expected = Expected::new(reference.logits(ids, Pass::default())?, targets)?;
    contestants
        .iter()
        .map(|c| expected.compare(&c.logits(ids, Pass::default())?, targets))
        .collect()
}

/// Distributions of the reference at the positions whose next token is scored.
struct Expected {
    logits: Vec<f32>,
    vocab: usize,
    /// Of each position: exponentials of logits below the largest, which and how large that is, the logarithm
    /// of their sum, and the sum.
    exponentials: Vec<f32>,
    tops: Vec<Top>,
    nll: f64,
}

#[derive(Debug, Clone, Copy)]
struct Top {
    at: usize,
    most: f32,
    total: f64,
    /// `ln sum e^logit`.
    log_sum: f64,
}

impl Top {
    fn of(logits: &[f32], exponentials: &mut [f32]) -> Result<Self> {
        let (mut at, mut most) = (0, f32::NEG_INFINITY);
        for (i, &v) in logits.iter().enumerate() {
            if v > most {
                (at, most) = (i, v);
            }
        }
        exp_shifted(exponentials, logits, most);
        let total = sum(exponentials);
        if !(total.is_finite() && most.is_finite()) {
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
            // Sum of p (log p - log q), of logits relative to the largest: small numbers stay small.
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
