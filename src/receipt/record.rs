//! The record of an evaluation.

use serde::{Deserialize, Serialize};

use super::figures::{Headline, Metric, Rows};
use super::statistics::{headline, largest_count};
use crate::error::{Error, Result};
use crate::format::{MAX_PLANES, MIN_PLANES};
use crate::manifest::is_hex_digest;
use crate::rule::Rule;

/// What `format` says.
const FORMAT: &str = "ultracompress-eval-1";
/// Headline figures are recomputed to this relative precision.
const PRECISION: f64 = 1e-9;
/// What rounding may leave of a standard error that is zero (UC-RCP-3).
const ERROR_FLOOR: f64 = 1e-12;
/// Largest integer that every JSON reader holds exactly.
const MAX_INTEGER: u64 = (1 << 53) - 1;
/// How far below zero rounding may take a divergence.
const SLACK: f64 = 1e-6;

/// The model that was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// Its decoded root, computed from its tensors.
    pub decoded_root: String,
    /// Its stored root, when it is a pack.
    pub stored_root: Option<String>,
    /// The encoder that made it, when it is a pack.
    pub encoder: Option<String>,
    /// Planes read of each row, when not all were.
    pub rung: Option<u8>,
    /// Its root with overlays, when it was evaluated with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_root: Option<String>,
    /// Bits of the planes and overlays that were read, over the weights of the body.
    pub body_bpw: Option<f64>,
    /// Bits of the whole file over all distinct weights.
    pub file_bpw: Option<f64>,
}

/// The text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRecord {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Tokens that the whole file is encoded to.
    pub tokens: u64,
}

/// How the text was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Tokens of a sequence; each is run by itself from an empty state.
    pub seq_len: u64,
    /// Tokens of the text that were used at most.
    pub max_tokens: Option<u64>,
    /// Sequences.
    pub sequences: u64,
    /// Tokens scored, over all sequences.
    pub tokens: u64,
}

/// The same tensors through another quantizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineRecord {
    /// The quantizer, such as `q5_0`.
    pub name: String,
    /// Bits of its blocks over the weights of the body.
    pub body_bpw: Option<f64>,
    /// What its rows come to.
    pub headline: Headline,
    /// Its rows, without those of the reference.
    pub rows: Rows,
}

/// A record of `uc eval`: what was compared by which protocol, a row for each sequence, and the
/// headline that follows from the rows.
///
/// # Spec
/// UC-RCP-1 to UC-RCP-14.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalRecord {
    /// `ultracompress-eval-1`.
    pub format: String,
    /// The program and its version.
    pub tool: String,
    /// What the models were compared by.
    pub metric: Metric,
    /// Architecture of both models.
    pub architecture: String,
    /// Decoded root of the source that the model was compared with, computed from its tensors.
    pub reference_root: String,
    /// SHA-256 of `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// What was evaluated.
    pub model: ModelRecord,
    /// The text.
    pub text: TextRecord,
    /// How it was cut.
    pub protocol: Protocol,
    /// What the rows come to.
    pub headline: Headline,
    /// One number for each sequence: mean over its tokens.
    pub rows: Rows,
    /// The largest divergences of single tokens, one in a hundred and one more, falling; the last
    /// of them is the 99th percentile. Empty without divergences.
    pub kld_largest: Vec<f64>,
    /// Other quantizers in the same run.
    pub baselines: Vec<BaselineRecord>,
}

/// What a measurement found, before anything is derived from it.
#[cfg(feature = "lm")]
pub(crate) struct Measured {
    pub architecture: String,
    pub reference_root: String,
    pub tokenizer_sha256: String,
    pub model: ModelRecord,
    pub text: TextRecord,
    pub protocol: Protocol,
    pub metric: Metric,
    pub rows: Rows,
    pub kld_largest: Vec<f64>,
    /// Name, rate and rows.
    pub baselines: Vec<(String, Option<f64>, Rows)>,
}

impl EvalRecord {
    #[cfg(feature = "lm")]
    pub(crate) fn new(measured: Measured) -> Self {
        let m = measured;
        let mut record = Self {
            format: FORMAT.to_owned(),
            tool: concat!("ultracompress ", env!("CARGO_PKG_VERSION")).to_owned(),
            metric: m.metric,
            architecture: m.architecture,
            reference_root: m.reference_root,
            tokenizer_sha256: m.tokenizer_sha256,
            model: m.model,
            text: m.text,
            protocol: m.protocol,
            headline: Headline::new(),
            rows: m.rows,
            kld_largest: m.kld_largest,
            baselines: vec![],
        };
        record.headline = record.headline_of_rows();
        for (name, body_bpw, rows) in m.baselines {
            let headline = record.headline_of(&rows);
            record.baselines.push(BaselineRecord { name, body_bpw, headline, rows });
        }
        record
    }

    /// A figure of the headline.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.headline.get(name).copied().flatten()
    }

    fn headline_of(&self, rows: &Rows) -> Headline {
        let reference = self.rows.get("nll_reference");
        headline(self.metric, rows, reference.map(Vec::as_slice))
    }

    fn headline_of_rows(&self) -> Headline {
        let mut all = self.headline_of(&self.rows);
        if self.metric == Metric::Kld {
            all.insert("kld_p99".to_owned(), self.kld_largest.last().copied());
        }
        all
    }

    /// The canonical bytes (RFC 8785).
    ///
    /// # Errors
    /// `Malformed(UC-RCP-1)` for numbers that JSON has not.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json_canonicalizer::to_vec(self)
            .map_err(|e| Error::malformed(Rule::RCP_1, e.to_string()).with_source(e))
    }

    /// Parses canonical bytes, and recomputes every headline from its rows.
    ///
    /// # Errors
    /// `Malformed` for bytes that aren't a record (UC-RCP-1, UC-RCP-2, UC-RCP-4 to UC-RCP-13),
    /// `Integrity` for a headline that its rows don't give (UC-RCP-3, UC-RCP-14).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| {
            let rule = if e.is_data() { Rule::RCP_2 } else { Rule::RCP_1 };
            // Names in the message are the input's.
            Error::malformed(rule, e.to_string().escape_debug().to_string()).with_source(e)
        })?;
        let again = record.to_bytes()?;
        if again != bytes {
            let at = again.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            return Err(Error::malformed(
                Rule::RCP_1,
                format!("not canonical JSON (RFC 8785), from its byte {at} on"),
            ));
        }
        record.check_members()?;
        record.check_headlines()?;
        Ok(record)
    }

    fn check_members(&self) -> Result<()> {
        let fail = |rule, text: String| Err(Error::malformed(rule, text));
        if self.format != FORMAT {
            return fail(Rule::RCP_2, format!("format is \"{}\"", self.format.escape_debug()));
        }
        let digests = [&self.reference_root, &self.tokenizer_sha256, &self.text.sha256];
        let all = digests.into_iter().chain([&self.model.decoded_root]);
        let all = all.chain(&self.model.stored_root).chain(&self.model.effective_root);
        if let Some(bad) = all.into_iter().find(|d| !is_hex_digest(d)) {
            return fail(Rule::RCP_2, format!("\"{}\" is no digest", bad.escape_debug()));
        }
        if self.model.rung.is_some_and(|r| !(MIN_PLANES..=MAX_PLANES).contains(&r)) {
            return fail(Rule::RCP_2, "a rung has 3 to 8 planes".into());
        }
        if self.model.rung.is_some() && self.model.effective_root.is_some() {
            return fail(Rule::RCP_4, "rungs are without overlays".into());
        }
        let Protocol { seq_len, max_tokens, sequences, tokens } = self.protocol;
        let integers = [seq_len, sequences, tokens, self.text.bytes, self.text.tokens];
        if integers.into_iter().chain(max_tokens).any(|n| n > MAX_INTEGER) {
            return fail(Rule::RCP_2, "an integer beyond 2^53 - 1".into());
        }
        self.check_counts()?;
        self.check_rows("rows", &self.rows, self.metric.columns())?;
        self.check_largest()?;
        self.check_baselines()
    }

    /// Scored tokens, by the length and number of sequences and the length of the text.
    fn check_counts(&self) -> Result<()> {
        let Protocol { seq_len, max_tokens, sequences, tokens } = self.protocol;
        // Of a sequence of a language model the first token isn't scored, of one of an encoder the
        // ends.
        let ends = if self.metric == Metric::Kld { 1 } else { 2 };
        let scored = seq_len.saturating_sub(ends);
        let used =
            sequences.saturating_mul(if self.metric == Metric::Kld { seq_len } else { scored });
        let there = self.text.tokens.min(max_tokens.unwrap_or(u64::MAX));
        if tokens == 0 || tokens != scored.saturating_mul(sequences) || used > there {
            return Err(Error::malformed(
                match tokens {
                    _ if used > there => Rule::RCP_6,
                    0 => Rule::RCP_2,
                    _ => Rule::RCP_5,
                },
                format!(
                    "{tokens} tokens of {sequences} sequences of {seq_len}, in a text of {there}"
                ),
            ));
        }
        Ok(())
    }

    /// The largest divergences: how many, falling, and no more than all together.
    fn check_largest(&self) -> Result<()> {
        let fail = |rule, text: String| Err(Error::malformed(rule, text));
        let Protocol { sequences, tokens, .. } = self.protocol;
        let expected = if self.metric == Metric::Kld { largest_count(tokens) } else { 0 };
        let sorted = self.kld_largest.windows(2).all(|pair| pair[0] >= pair[1]);
        if self.kld_largest.len() as u64 != expected || !sorted {
            return fail(
                if sorted { Rule::RCP_9 } else { Rule::RCP_12 },
                format!("kld_largest is not {expected} falling numbers"),
            );
        }
        #[allow(clippy::cast_precision_loss, reason = "counts of tokens")]
        if let (Some(last), Some(kld)) = (self.kld_largest.last(), self.rows.get("kld")) {
            // No divergence is less than zero, but for rounding: the largest are no more than all
            // together.
            let all = kld.iter().sum::<f64>() * tokens as f64 / sequences as f64;
            let largest = self.kld_largest.iter().sum::<f64>();
            if *last < -SLACK || largest > all + SLACK * tokens as f64 {
                return fail(
                    if *last < -SLACK { Rule::RCP_10 } else { Rule::RCP_13 },
                    "kld_largest is more than the divergences of all tokens".into(),
                );
            }
        }
        Ok(())
    }

    fn check_baselines(&self) -> Result<()> {
        let others: Vec<&str> =
            self.metric.columns().iter().copied().filter(|c| *c != "nll_reference").collect();
        for (i, b) in self.baselines.iter().enumerate() {
            if self.baselines[..i].iter().any(|other| other.name == b.name) {
                return Err(Error::malformed(
                    Rule::RCP_11,
                    format!("two baselines are called \"{}\"", b.name.escape_debug()),
                ));
            }
            self.check_rows(&b.name, &b.rows, &others)?;
        }
        Ok(())
    }

    /// Columns, their lengths and their ranges.
    fn check_rows(&self, what: &str, rows: &Rows, columns: &[&str]) -> Result<()> {
        let range = |column: &str| match column {
            "top1" => 0.0..=1.0,
            "nll" | "nll_reference" | "kld" => -SLACK..=f64::MAX,
            _ => -1.0..=1.0,
        };
        let outside = |(column, values): (&String, &Vec<f64>)| {
            values.iter().any(|v| !range(column).contains(v)).then(|| column.clone())
        };
        if let Some(column) = rows.iter().find_map(outside) {
            let what = what.escape_debug();
            let text = format!("\"{what}\" has impossible numbers in {}", column.escape_debug());
            return Err(Error::malformed(Rule::RCP_8, text));
        }
        let found: Vec<&str> = rows.keys().map(String::as_str).collect();
        let n = self.protocol.sequences;
        let lengths = rows.values().all(|column| column.len() as u64 == n);
        if found != columns || !lengths {
            return Err(Error::malformed(
                Rule::RCP_7,
                format!(
                    "\"{}\" has not {n} numbers in each of {}",
                    what.escape_debug(),
                    columns.join(", ")
                ),
            ));
        }
        Ok(())
    }

    fn check_headlines(&self) -> Result<()> {
        compare("headline", &self.headline, &self.headline_of_rows())?;
        for b in &self.baselines {
            compare(&b.name, &b.headline, &self.headline_of(&b.rows))?;
        }
        Ok(())
    }
}

fn compare(what: &str, found: &Headline, expected: &Headline) -> Result<()> {
    let near = |name: &str, a: f64, b: f64| {
        let floor = if name.ends_with("_se") { ERROR_FLOOR } else { 0.0 };
        let allowed = floor.max(PRECISION * a.abs().max(b.abs()));
        // Of numbers that overflow nothing follows.
        a.is_finite() && b.is_finite() && (a - b).abs() <= allowed
    };
    let names = found.keys().chain(expected.keys());
    for name in names {
        let (found, expected) = (found.get(name).copied(), expected.get(name).copied());
        let same = match (found.flatten(), expected.flatten()) {
            (Some(a), Some(b)) => near(name, a, b),
            _ => found == expected,
        };
        if !same {
            let show = |v: Option<Option<f64>>| match v {
                None => "nothing".to_owned(),
                Some(None) => "null".to_owned(),
                Some(Some(v)) => v.to_string(),
            };
            return Err(Error::integrity(format!(
                "\"{}\" says that {} is {}, its rows give {} ({})",
                what.escape_debug(),
                name.escape_debug(),
                show(found),
                show(expected),
                if found.is_some() == expected.is_some() { Rule::RCP_3 } else { Rule::RCP_14 }
            )));
        }
    }
    Ok(())
}
