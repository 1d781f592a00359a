//! The figures of an evaluation: rows, and what they come to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One number for each sequence, by column.
pub type Rows = BTreeMap<String, Vec<f64>>;

/// Figures by name; nothing where a single sequence gives none.
pub type Headline = BTreeMap<String, Option<f64>>;

/// What models are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Kullback-Leibler divergence of next-token distributions, and perplexity.
    Kld,
    /// Cosines of pooled embeddings and of hidden states.
    Cosine,
}

impl Metric {
    /// Its columns of rows.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Kld => &["kld", "nll", "nll_reference", "top1"],
            Self::Cosine => &["cosine_hidden", "cosine_pooled"],
        }
    }
}
