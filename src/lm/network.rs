//! A model that runs: loading it from a pack or a checkpoint, and its forward pass.

use candle_core::{Device, Result as CandleResult, Tensor};

use super::architecture::Network;
use super::bert::Bert;
use super::config::Config;
use super::decoder::Decoder;
use super::failed;
use super::linear::Pass;
use super::mamba::Mamba;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::source::Model;

/// Reads what `config.json` of a model says.
///
/// # Errors
/// `Source` when there is none or it can't be used.
pub(super) fn config_of(model: &Model) -> Result<Config> {
    let json = model.file("config.json")?;
    let json = json.ok_or_else(|| Error::source_file("there is no config.json"))?;
    Config::parse(&json)
}

/// A loaded model of either kind.
pub(super) enum Loaded {
    Language(Box<dyn Network>),
    Encoder(Box<Bert>),
}

/// Reads a model for sequences of up to `seq_len` tokens.
pub(super) fn load(config: Config, weights: &Weights<'_>, seq_len: usize) -> Result<Loaded> {
    let loaded = match config {
        Config::Bert(c) => {
            let bert = Bert::load(c, weights)?;
            weights.check_all_used(&["position_ids", "pooler.", "bert.pooler.", "cls."])?;
            Loaded::Encoder(Box::new(bert))
        }
        _ => {
            let mut network = load_ends(config, weights, seq_len)?;
            for i in 0..network.blocks() {
                network.hold(i, Some(weights))?;
            }
            weights.check_all_used(SPARE)?;
            Loaded::Language(network)
        }
    };
    Ok(loaded)
}

/// What follows from the configuration.
pub(super) const SPARE: &[&str] = &["rotary_emb.inv_freq"];

/// Reads what is before and behind the blocks of a language model, for sequences of up to `seq_len`
/// tokens.
pub(super) fn load_ends(
    config: Config,
    weights: &Weights<'_>,
    seq_len: usize,
) -> Result<Box<dyn Network>> {
    Ok(match config {
        Config::Decoder(c) => Box::new(Decoder::load(c, weights, seq_len)?),
        Config::Mamba(c) => Box::new(Mamba::load(c, weights)?),
        Config::Bert(_) => {
            return Err(Error::argument("an encoder doesn't predict tokens"));
        }
    })
}

/// Token ids as a tensor `[1, n]`.
pub(super) fn ids_tensor(ids: &[u32]) -> CandleResult<Tensor> {
    Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)
}

impl Loaded {
    /// Logits `[n, vocab]` of sequences of one length, each by itself, row after row.
    pub(super) fn logits(&self, sequences: &[&[u32]], pass: Pass<'_>) -> Result<Vec<Vec<f32>>> {
        let Self::Language(network) = self else {
            return Err(Error::argument("an encoder has no logits"));
        };
        let run = || {
            let n = sequences.first().map_or(0, |s| s.len());
            let ids = Tensor::from_vec(sequences.concat(), (sequences.len(), n), &Device::Cpu)?;
            let mut x = network.embed(&ids)?;
            for i in 0..network.blocks() {
                x = network.block(i, &x, pass)?;
            }
            let x = network.head(&x, pass)?;
            let each = (0..sequences.len()).map(|i| x.get(i)?.flatten_all()?.to_vec1::<f32>());
            each.collect::<CandleResult<_>>()
        };
        run().map_err(failed)
    }

    /// States `[n, hidden]` of one sequence before the first block and after each.
    pub(super) fn states(&self, ids: &[u32], mask: Option<&[f32]>) -> Result<Vec<Vec<f32>>> {
        let Self::Encoder(bert) = self else {
            return Err(Error::argument("only encoders are compared by their states"));
        };
        let pass = Pass::default();
        let run = || {
            let mask =
                mask.map(|m| Tensor::from_slice(m, (1, m.len()), &Device::Cpu)).transpose()?;
            let mut x = bert.embed(&ids_tensor(ids)?, pass)?;
            let mut all = vec![x.flatten_all()?.to_vec1::<f32>()?];
            for i in 0..bert.blocks() {
                x = bert.block(i, &x, mask.as_ref(), pass)?;
                all.push(x.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok(all)
        };
        run().map_err(failed)
    }
}

/// A model of one of the known [`ARCHITECTURES`](super::ARCHITECTURES) in memory, ready to run.
pub struct LanguageModel {
    loaded: Loaded,
    config: Config,
    seq_len: usize,
}

impl std::fmt::Debug for LanguageModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LanguageModel")
            .field("architecture", &self.config.architecture())
            .field("seq_len", &self.seq_len)
            .finish_non_exhaustive()
    }
}

impl LanguageModel {
    /// Loads a pack or a folder for sequences of up to `seq_len` tokens. All weights are held as
    /// binary32.
    ///
    /// # Errors
    /// `Source` for an architecture that is not known, for missing tensors and for tensors that
    /// `config.json` has no place for; `InvalidArgument` for sequences longer than the model
    /// takes; as [`Model::read`].
    pub fn load(model: &Model, seq_len: usize) -> Result<Self> {
        let config = config_of(model)?;
        check_positions(&config, seq_len)?;
        let loaded = load(config.clone(), &Weights::new(model), seq_len)?;
        Ok(Self { loaded, config, seq_len })
    }

    /// The architecture, as `config.json` spells it.
    pub fn architecture(&self) -> &'static str {
        self.config.architecture()
    }

    /// Entries of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.config.vocab()
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() || ids.len() > self.seq_len {
            return Err(Error::argument(format!(
                "{} tokens, the model was loaded for 1 to {}",
                ids.len(),
                self.seq_len
            )));
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab()) {
            Some(id) => {
                let text = format!("token {id} of a vocabulary of {}", self.vocab());
                Err(Error::argument(text))
            }
            None => Ok(()),
        }
    }

    /// Logits of a sequence from an empty state: one row of [`LanguageModel::vocab`] numbers for
    /// each token.
    ///
    /// # Errors
    /// `InvalidArgument` for too many tokens, tokens beyond the vocabulary, or an encoder.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        self.check(ids)?;
        Ok(self.loaded.logits(&[ids], Pass::default())?.remove(0))
    }

    /// Hidden states of an encoder: before its first block and after each, one row for each token.
    /// `mask` is 1 for tokens and 0 for padding.
    ///
    /// # Errors
    /// `InvalidArgument` as [`LanguageModel::logits`], or for another architecture or a mask of
    /// another length.
    pub fn states(&self, ids: &[u32], mask: Option<&[f32]>) -> Result<Vec<Vec<f32>>> {
        self.check(ids)?;
        if mask.is_some_and(|m| m.len() != ids.len()) {
            return Err(Error::argument("a mask of another length"));
        }
        self.loaded.states(ids, mask)
    }
}

/// Fails when sequences are longer than the model takes.
pub(super) fn check_positions(config: &Config, seq_len: usize) -> Result<()> {
    match config.positions() {
        Some(most) if seq_len > most => Err(Error::argument(format!(
            "sequences of {seq_len} tokens, the model takes at most {most}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Mutex;

    use candle_core::{D, Var};

    use super::super::linear::Observer;
    use super::*;

    /// Adds a variable to the output of each linear layer, and keeps the shapes of inputs.
    #[derive(Default)]
    struct Probe {
        variables: Mutex<BTreeMap<String, Var>>,
        inputs: Mutex<BTreeMap<String, Vec<usize>>>,
    }

    impl Observer for Probe {
        fn linear(&self, name: &str, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
            let mut variables = self.variables.lock().expect("no panic before");
            if !variables.contains_key(name) {
                variables.insert(name.to_owned(), Var::from_tensor(&output.zeros_like()?)?);
            }
            let mut inputs = self.inputs.lock().expect("no panic before");
            inputs.insert(name.to_owned(), input.dims().to_vec());
            output + variables[name].as_tensor()
        }
    }

    const IDS: [u32; 12] = [3, 17, 5, 40, 8, 21, 33, 2, 60, 11, 29, 6];

    fn loaded(name: &str) -> Loaded {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name);
        let model = Model::open(&folder).expect(name);
        load(config_of(&model).expect(name), &Weights::new(&model), IDS.len()).expect(name)
    }

    fn logits(loaded: &Loaded, pass: Pass<'_>) -> Tensor {
        let Loaded::Language(network) = loaded else { panic!("a language model") };
        let mut x = network.embed(&ids_tensor(&IDS).expect("ids")).expect("embeds");
        for i in 0..network.blocks() {
            x = network.block(i, &x, pass).expect("runs");
        }
        network.head(&x, pass).expect("runs")
    }

    /// Minus the log probability of each next token, added up.
    fn loss(loaded: &Loaded, pass: Pass<'_>) -> Tensor {
        let run = || {
            let logits = logits(loaded, pass).squeeze(0)?.narrow(0, 0, IDS.len() - 1)?;
            let targets = Tensor::from_slice(&IDS[1..], IDS.len() - 1, &Device::Cpu)?;
            let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
            log_p.gather(&targets.unsqueeze(1)?, 1)?.sum_all()?.neg()
        };
        run().expect("a loss")
    }

    fn scalar(t: &Tensor) -> f64 {
        f64::from(t.to_scalar::<f32>().expect("a number"))
    }

    #[test]
    fn gradients_of_every_linear_layer_are_those_of_finite_differences() {
        for (name, linears) in [
            ("llama3_bands", 2 * 7 + 1),
            ("llama_linear", 2 * 7 + 1),
            ("mistral", 2 * 7 + 1),
            ("qwen3", 2 * 7 + 1),
            ("mixtral", 0), // as many experts as the tokens choose
            ("mamba", 2 * 4 + 1),
        ] {
            let model = loaded(name);
            let fast = logits(&model, Pass::default());
            let slow = logits(&model, Pass { observer: None, gradients: true });
            let apart = (fast - slow).and_then(|d| d.abs()?.max_all());
            assert!(scalar(&apart.expect("a difference")) < 1e-4, "{name}: both paths agree");

            let probe = Probe::default();
            let pass = Pass { observer: Some(&probe), gradients: true };
            let gradients = loss(&model, pass).backward().expect("differentiable");
            let variables = probe.variables.lock().expect("no panic before").clone();
            let inputs = probe.inputs.lock().expect("no panic before").clone();
            assert!(linears == 0 || variables.len() == linears, "{name}: {:?}", variables.keys());
            for (layer, variable) in &variables {
                let gradient = gradients.get(variable.as_tensor()).expect(layer);
                assert_eq!(gradient.dims(), variable.dims(), "{name}, {layer}");
                assert!(inputs[layer].len() >= 2, "{name}, {layer}");
                // Along the gradient itself, where the change is largest.
                let norm = scalar(&gradient.sqr().and_then(|g| g.sum_all()).expect("a sum")).sqrt();
                assert!(norm > 1e-6, "{name}, {layer}: no gradient");
                let step = 2e-2;
                let at = |scale: f64| {
                    let moved = (gradient * (scale / norm)).expect("scales");
                    variable.set(&moved).expect("of its shape");
                    let found = scalar(&loss(&model, pass));
                    variable.set(&gradient.zeros_like().expect("zeros")).expect("of its shape");
                    found
                };
                let found = (at(step) - at(-step)) / (2.0 * step);
                // Routers may choose other experts within the step.
                let router = layer.ends_with("block_sparse_moe.gate");
                assert!(
                    router || (found / norm - 1.0).abs() < 0.03,
                    "{name}, {layer}: {found} by differences, {norm} by the gradient"
                );
            }
        }
    }
}
