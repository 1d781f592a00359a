//! Decoders with attention: Llama, Mistral, Qwen2, Qwen3, and their mixtures of experts.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result as CandleResult, Tensor};

use super::architecture::{Network, embed, held};
use super::config::{DecoderConfig, Experts, LayerKind};
use super::failed;
use super::linear::{Linear, Pass};
use super::ops::{Seen, add, causal_softmax, rms_norm, rope, swiglu};
use super::weights::Weights;
use crate::error::Result;

pub(super) struct Decoder {
    config: DecoderConfig,
    embedding: Tensor,
    /// Those that are held.
    layers: BTreeMap<usize, DecoderBlock>,
    norm: Tensor,
    head: Linear,
    /// Cosines and sines of positions, `[seq_len, head_dim / 2]`.
    turns: [Tensor; 2],
    /// The same over the root of `head_dim`, which scales the scores.
    q_turns: [Tensor; 2],
}

struct DecoderBlock {
    kind: LayerKind,
    attention_norm: Tensor,
    qkv: [Linear; 3],
    qk_norm: Option<[Tensor; 2]>,
    o: Linear,
    mlp_norm: Tensor,
    mlp: Mlp,
}

enum Mlp {
    Dense(Box<Gated>),
    Sparse { router: Linear, experts: Vec<Gated>, chosen: usize, normalized: bool },
}

/// `down(silu(gate(x)) * up(x))`.
struct Gated {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Gated {
    fn forward(&self, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let (gate, up) = (self.gate.forward(x, pass)?, self.up.forward(x, pass)?);
        self.down.forward(&swiglu(&gate, &up, pass.gradients)?, pass)
    }
}

impl Decoder {
    /// Reads a model for sequences of up to `seq_len` tokens.
    pub(super) fn load(config: DecoderConfig, w: &Weights<'_>, seq_len: usize) -> Result<Self> {
        let c = &config;
        let embedding = w.get("model.embed_tokens.weight", &[c.vocab, c.hidden])?;
        let head = if c.tied {
            Linear::tied_head(w, &embedding)?
        } else {
            Linear::load(w, "lm_head".into(), [c.vocab, c.hidden], false)?
        };
        let layers = BTreeMap::new();
        let norm = w.get("model.norm.weight", &[c.hidden])?;
        let (cos, sin) = c.rope.turns(seq_len);
        let table =
            |v| Tensor::from_vec(v, (seq_len, c.head_dim / 2), &Device::Cpu).map_err(failed);
        #[allow(clippy::cast_precision_loss, reason = "a head is small")]
        #[allow(clippy::cast_possible_truncation, reason = "to what the model computes in")]
        let scale = (1.0 / (c.head_dim as f64).sqrt()) as f32;
        let scaled = |v: &[f32]| table(v.iter().map(|v| v * scale).collect());
        let q_turns = [scaled(&cos)?, scaled(&sin)?];
        let turns = [table(cos)?, table(sin)?];
        Ok(Self { embedding, layers, norm, head, turns, q_turns, config })
    }

    fn attention(&self, layer: &DecoderBlock, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let c = &self.config;
        let (batch, n, _) = x.dims3()?;
        let (width, kv_heads) = (c.head_dim, c.kv_heads);
        let [q, k, v] = &layer.qkv;
        let split = |x: Tensor| {
            let heads = x.dim(D::Minus1)? / width;
            x.reshape((batch, n, heads, width))?.transpose(1, 2)?.contiguous()
        };
        let [mut q, mut k, v] =
            [split(q.forward(x, pass)?)?, split(k.forward(x, pass)?)?, split(v.forward(x, pass)?)?];
        if let Some([q_norm, k_norm]) = &layer.qk_norm {
            q = rms_norm(&q, q_norm, c.eps, pass.gradients)?;
            k = rms_norm(&k, k_norm, c.eps, pass.gradients)?;
        }
        let turn = |x: &Tensor, [cos, sin]: &[Tensor; 2]| {
            rope(x, &cos.narrow(0, 0, n)?, &sin.narrow(0, 0, n)?, pass.gradients)
        };
        let (q, k) = (turn(&q, &self.q_turns)?, turn(&k, &self.turns)?);
        // Query heads that share a key head become more rows of it: nothing is copied.
        let rows = c.heads / kv_heads * n;
        let q = q.reshape((batch, kv_heads, rows, width))?;
        let seen = Seen { window: layer.kind.window };
        let weights = causal_softmax(&q.matmul(&k.t()?)?, seen, pass.gradients)?;
        let y = weights.matmul(&v)?.reshape((batch, c.heads, n, width))?;
        layer.o.forward(&y.transpose(1, 2)?.reshape((batch, n, c.heads * width))?, pass)
    }
}

impl DecoderBlock {
    fn load(c: &DecoderConfig, w: &Weights<'_>, i: usize, kind: LayerKind) -> Result<Self> {
        let at = format!("model.layers.{i}");
        let attention = |part: &str, rows, cols, bias| {
            Linear::load(w, format!("{at}.self_attn.{part}"), [rows, cols], bias)
        };
        let norm = |part: &str, n| w.get(&format!("{at}.{part}.weight"), &[n]);
        let (q_rows, kv_rows) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mlp = match &c.experts {
            Some(experts) if kind.sparse => sparse(c, experts, w, &at)?,
            _ => Mlp::Dense(Box::new(gated(
                c,
                w,
                [
                    format!("{at}.mlp.gate_proj"),
                    format!("{at}.mlp.up_proj"),
                    format!("{at}.mlp.down_proj"),
                ],
                c.intermediate,
            )?)),
        };
        Ok(Self {
            kind,
            attention_norm: norm("input_layernorm", c.hidden)?,
            qkv: [
                attention("q_proj", q_rows, c.hidden, c.qkv_bias)?,
                attention("k_proj", kv_rows, c.hidden, c.qkv_bias)?,
                attention("v_proj", kv_rows, c.hidden, c.qkv_bias)?,
            ],
            qk_norm: if c.qk_norm {
                Some([norm("self_attn.q_norm", c.head_dim)?, norm("self_attn.k_norm", c.head_dim)?])
            } else {
                None
            },
            o: attention("o_proj", c.hidden, q_rows, c.o_bias)?,
            mlp_norm: norm("post_attention_layernorm", c.hidden)?,
            mlp,
        })
    }
}

fn gated(
    c: &DecoderConfig,
    w: &Weights<'_>,
    [gate, up, down]: [String; 3],
    intermediate: usize,
) -> Result<Gated> {
    Ok(Gated {
        gate: Linear::load(w, gate, [intermediate, c.hidden], c.mlp_bias)?,
        up: Linear::load(w, up, [intermediate, c.hidden], c.mlp_bias)?,
        down: Linear::load(w, down, [c.hidden, intermediate], c.mlp_bias)?,
    })
}

fn sparse(c: &DecoderConfig, e: &Experts, w: &Weights<'_>, at: &str) -> Result<Mlp> {
    let (block, names) = if e.mixtral {
        ("block_sparse_moe", ["w1", "w3", "w2"])
    } else {
        ("mlp", ["gate_proj", "up_proj", "down_proj"])
    };
    let at = format!("{at}.{block}");
    let expert = |i: usize| {
        gated(c, w, names.map(|name| format!("{at}.experts.{i}.{name}")), e.intermediate)
    };
    Ok(Mlp::Sparse {
        router: Linear::load(w, format!("{at}.gate"), [e.count, c.hidden], false)?,
        experts: (0..e.count).map(expert).collect::<Result<_>>()?,
        chosen: e.chosen,
        normalized: e.normalized,
    })
}

impl Mlp {
    fn forward(&self, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let (router, experts, chosen, normalized) = match self {
            Self::Dense(mlp) => return mlp.forward(x, pass),
            Self::Sparse { router, experts, chosen, normalized } => {
                (router, experts, *chosen, *normalized)
            }
        };
        let shape = x.shape().clone();
        let x = x.reshape(((), x.dim(D::Minus1)?))?;
        let shares = candle_nn::ops::softmax(&router.forward(&x, pass)?, D::Minus1)?;
        // Which experts each token goes to: those of the largest shares, the first of equal ones.
        let found = shares.to_vec2::<f32>()?;
        let mut mask = vec![0f32; found.len() * experts.len()];
        let mut tokens = vec![Vec::<u32>::new(); experts.len()];
        for (t, row) in found.iter().enumerate() {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            for &e in &order[..chosen] {
                mask[t * experts.len() + e] = 1.0;
                tokens[e].push(u32::try_from(t).map_err(candle_core::Error::wrap)?);
            }
        }
        let mask = Tensor::from_vec(mask, shares.shape(), x.device())?;
        let mut shares = (shares * mask)?;
        if normalized {
            shares = shares.broadcast_div(&shares.sum_keepdim(1)?)?;
        }
        let mut y = x.zeros_like()?;
        for (e, (expert, tokens)) in experts.iter().zip(tokens).enumerate() {
            if tokens.is_empty() {
                continue;
            }
            let len = tokens.len();
            let tokens = Tensor::from_vec(tokens, len, x.device())?;
            let share = shares.narrow(1, e, 1)?.contiguous()?.index_select(&tokens, 0)?;
            let found = expert.forward(&x.index_select(&tokens, 0)?, pass)?;
            y = y.index_add(&tokens, &found.broadcast_mul(&share)?, 0)?;
        }
        y.reshape(shape)
    }
}

impl Network for Decoder {
    fn blocks(&self) -> usize {
        self.config.layers.len()
    }

    fn hold(&mut self, i: usize, weights: Option<&Weights<'_>>) -> Result<()> {
        self.layers.remove(&i);
        if let Some(weights) = weights {
            let kind = self.config.layers[i];
            self.layers.insert(i, DecoderBlock::load(&self.config, weights, i, kind)?);
        }
        Ok(())
    }

    fn embed(&self, ids: &Tensor) -> CandleResult<Tensor> {
        embed(&self.embedding, ids)
    }

    fn block(&self, i: usize, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let layer = held(&self.layers, i)?;
        let norm = |x: &Tensor, w| rms_norm(x, w, self.config.eps, pass.gradients);
        let y = self.attention(layer, &norm(x, &layer.attention_norm)?, pass)?;
        let x = add(x, &y, pass.gradients)?;
        let y = layer.mlp.forward(&norm(&x, &layer.mlp_norm)?, pass)?;
        add(&x, &y, pass.gradients)
    }

    fn head(&self, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let x = rms_norm(x, &self.norm, self.config.eps, pass.gradients)?;
        self.head.forward(&x, pass)
    }
}
