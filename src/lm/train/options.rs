//! Options for training an overlay, and the report of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::gradient::Objective;
use crate::format::Digest;
use crate::receipt::EvalRecord;

/// Where factors come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Singular vectors of the error itself: a baseline to beat.
    Svd,
    /// Singular vectors of the error as inputs and gradients weigh it.
    Whitened,
    /// Those, trained further against the source.
    Gradient,
}

impl Method {
    /// Its name on the command line and in recipes: `svd`, `whitened` or `gradient`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Svd => "svd",
            Self::Whitened => "whitened",
            Self::Gradient => "gradient",
        }
    }
}

/// How to train an overlay.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TrainOptions {
    /// The overlay's name. Default: `trained`.
    pub name: String,
    /// Bits of body and overlay together, over the weights of the body. Default: a half more than
    /// the pack has.
    pub bpw: Option<f64>,
    /// Where factors come from. Default: gradient.
    pub method: Method,
    /// What the gradient is of. Default: KL.
    pub objective: Objective,
    /// Optimizer steps; of each block, with the objective hidden. Default: 120.
    pub steps: usize,
    /// Steps between two looks at the probe set. Default: 40.
    pub round: usize,
    /// Sequences of a step. Default: 8.
    pub batch: usize,
    /// Step size, relative to the size of factors. Default: 0.02.
    pub learning_rate: f64,
    /// Seed of the order of sequences. Default: 0.
    pub seed: u64,
    /// Rounds that may be undone before training stops. Default: 3.
    pub max_rescues: usize,
    /// Training stops when a round gains less than this part of the loss on the probe set.
    /// Default: 0.002.
    pub min_gain: f64,
    /// With the objective hidden, blocks get the states that trained blocks before them give; else
    /// those of the source. Default: yes.
    pub refreshed: bool,
    /// Tokens of a sequence. Default: 256.
    pub seq_len: usize,
    /// Use at most so many tokens of the text. Default: all.
    pub max_tokens: Option<usize>,
    /// A calibration file of the source. Default: made from the text.
    pub calibration: Option<PathBuf>,
    /// Text for the last comparison, which nothing was tuned on. Default: the last eighth of the
    /// text, which is also the probe set.
    pub held_out: Option<Vec<u8>>,
    /// The base may not change, so nothing but the base without overlay is compared with. Default:
    /// no.
    pub frozen_base: bool,
    /// Keep the overlay whatever the comparison says. Default: no.
    pub keep: bool,
    /// Go on from the state of an interrupted run. Default: no.
    pub resume: bool,
    /// Replace an existing file. Default: no.
    pub force: bool,
    /// Memory for writing the pack. Default [`DEFAULT_MAX_RAM`](crate::DEFAULT_MAX_RAM).
    pub max_ram: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            name: "trained".into(),
            bpw: None,
            method: Method::Gradient,
            objective: Objective::Kl,
            steps: 120,
            round: 40,
            batch: 8,
            learning_rate: 0.02,
            seed: 0,
            max_rescues: 3,
            min_gain: 0.002,
            refreshed: true,
            seq_len: 256,
            max_tokens: None,
            calibration: None,
            held_out: None,
            frozen_base: false,
            keep: false,
            resume: false,
            force: false,
            max_ram: crate::DEFAULT_MAX_RAM,
        }
    }
}

/// What training came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TrainReport {
    /// Whether the output has the overlay.
    pub kept: bool,
    /// Why, in a sentence.
    pub reason: String,
    /// Ranks of the layers, by tensor.
    pub ranks: BTreeMap<String, usize>,
    /// Bits of the body before.
    pub bpw_before: f64,
    /// Bits of body and overlay.
    pub bpw_after: f64,
    /// Pack and overlay on the held-out text.
    pub before: EvalRecord,
    /// The same with the overlay.
    pub after: EvalRecord,
    /// What was compared, at matched bits where the base may change.
    pub table: Vec<GateRow>,
    /// Optimizer steps, and rounds that were undone.
    pub steps: usize,
    /// Rounds that were undone.
    pub rescues: usize,
    /// Why training ended: `steps`, `rescues`, `gain`, or `closed_form`.
    pub stopped: &'static str,
    /// Looks at the probe set.
    pub probes: Vec<Probe>,
    /// Threads that factors were trained with.
    pub threads: u64,
    /// The comparison was on a text of its own; else on the probe set, which rounds were chosen
    /// by.
    pub held_out: bool,
    /// SHA-256 over the trained factors, in the order of tensors.
    pub factors_sha256: Digest,
    /// The files that were written.
    pub files: Vec<(PathBuf, u64)>,
    /// Root over the stored bytes of the output.
    pub stored_root: Digest,
    /// Effective root of the output, when it has overlays.
    pub effective_root: Option<Digest>,
}

/// One look at the probe set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The block that was trained, when they are one by one.
    pub block: Option<usize>,
    /// The objective there.
    pub loss: f64,
    /// The round before made it worse and was undone.
    pub undone: bool,
}

impl TrainOptions {
    /// Sequences of 256 tokens, gradient training on KL, half a bit.
    pub fn new() -> Self {
        Self::default()
    }
}

/// One contestant of the comparison.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GateRow {
    /// What it is: `base`, `overlay`, `calibrated` or `calibrated, groups of 16`.
    pub name: String,
    /// Bits of body and overlays.
    pub body_bpw: f64,
    /// Mean KL divergence to the source.
    pub kld_mean: f64,
    /// Its standard error over sequences.
    pub kld_se: Option<f64>,
    /// Its KL divergence less the overlay's, mean over sequences.
    pub difference: f64,
    /// The standard error of that, paired over sequences.
    pub difference_se: Option<f64>,
}
