//! BERT-style encoders, of which MiniLM is one: embeddings, post-norm blocks, mean pooling.

use candle_core::{Result as CandleResult, Tensor};

use super::config::BertConfig;
use super::linear::{Linear, Pass};
use super::ops::{add, layer_norm, softmax};
use super::weights::Weights;
use crate::error::Result;

pub(super) struct Bert {
    config: BertConfig,
    words: Tensor,
    /// Of each position, that of the first token type added.
    positions: Tensor,
    norm: Norm,
    layers: Vec<EncoderBlock>,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
}

struct EncoderBlock {
    qkv: [Linear; 3],
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

impl Norm {
    fn load(w: &Weights<'_>, name: &str, n: usize) -> Result<Self> {
        let part = |end: &str| w.get(&format!("{name}.{end}"), &[n]);
        Ok(Self { weight: part("weight")?, bias: part("bias")? })
    }

    fn forward(&self, x: &Tensor, eps: f64, pass: Pass<'_>) -> CandleResult<Tensor> {
        layer_norm(x, &self.weight, &self.bias, eps, pass.gradients)
    }
}

impl Bert {
    pub(super) fn load(config: BertConfig, w: &Weights<'_>) -> Result<Self> {
        let c = &config;
        let prefix = if w.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let table = |name: &str, n| {
            w.get(&format!("{prefix}embeddings.{name}_embeddings.weight"), &[n, c.hidden])
        };
        let (positions, types) = (table("position", c.positions)?, table("token_type", c.types)?);
        let first = types.narrow(0, 0, 1).and_then(|first| positions.broadcast_add(&first));
        let layers =
            (0..c.layers).map(|i| EncoderBlock::load(c, w, &format!("{prefix}encoder.layer.{i}")));
        Ok(Self {
            words: table("word", c.vocab)?,
            positions: first.map_err(crate::lm::failed)?,
            norm: Norm::load(w, &format!("{prefix}embeddings.LayerNorm"), c.hidden)?,
            layers: layers.collect::<Result<_>>()?,
            config,
        })
    }

    pub(super) fn blocks(&self) -> usize {
        self.layers.len()
    }

    /// States `[batch, n, hidden]` before the first block, of tokens `[batch, n]`.
    pub(super) fn embed(&self, ids: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let (batch, n) = ids.dims2()?;
        let words = self.words.index_select(&ids.flatten_all()?, 0)?;
        let x = words.reshape((batch, n, self.config.hidden))?;
        let x = x.broadcast_add(&self.positions.narrow(0, 0, n)?)?;
        self.norm.forward(&x, self.config.eps, pass)
    }

    /// States after block `i`. `mask [batch, n]` is 1 for tokens and 0 for padding, which is not
    /// seen.
    pub(super) fn block(
        &self,
        i: usize,
        x: &Tensor,
        mask: Option<&Tensor>,
        pass: Pass<'_>,
    ) -> CandleResult<Tensor> {
        let (layer, c) = (&self.layers[i], &self.config);
        let (batch, n, hidden) = x.dims3()?;
        let width = hidden / c.heads;
        let split = |linear: &Linear| {
            let y = linear.forward(x, pass)?.reshape((batch, n, c.heads, width))?;
            y.transpose(1, 2)?.contiguous()
        };
        let [q, k, v] = [split(&layer.qkv[0])?, split(&layer.qkv[1])?, split(&layer.qkv[2])?];
        #[allow(clippy::cast_precision_loss, reason = "a head is small")]
        let mut scores = (q.matmul(&k.t()?)? / (width as f64).sqrt())?;
        if let Some(mask) = mask {
            // As transformers: the lowest number, not minus infinity, so that a row of padding has
            // a softmax.
            let hidden = ((mask.ones_like()? - mask)? * f64::from(f32::MIN))?;
            scores = scores.broadcast_add(&hidden.reshape((batch, 1, 1, n))?)?;
        }
        let y = softmax(&scores, pass.gradients)?.matmul(&v)?;
        let y = layer.out.forward(&y.transpose(1, 2)?.reshape((batch, n, hidden))?, pass)?;
        let x = layer.attention_norm.forward(&add(x, &y, pass.gradients)?, c.eps, pass)?;
        let y = layer.down.forward(&layer.up.forward(&x, pass)?.gelu_erf()?, pass)?;
        layer.norm.forward(&add(&x, &y, pass.gradients)?, c.eps, pass)
    }
}

impl EncoderBlock {
    fn load(c: &BertConfig, w: &Weights<'_>, at: &str) -> Result<Self> {
        let square = |part: &str| {
            Linear::load(w, format!("{at}.attention.{part}"), [c.hidden, c.hidden], true)
        };
        let linear = |part: &str, shape| Linear::load(w, format!("{at}.{part}"), shape, true);
        Ok(Self {
            qkv: [square("self.query")?, square("self.key")?, square("self.value")?],
            out: square("output.dense")?,
            attention_norm: Norm::load(w, &format!("{at}.attention.output.LayerNorm"), c.hidden)?,
            up: linear("intermediate.dense", [c.intermediate, c.hidden])?,
            down: linear("output.dense", [c.hidden, c.intermediate])?,
            norm: Norm::load(w, &format!("{at}.output.LayerNorm"), c.hidden)?,
        })
    }
}
