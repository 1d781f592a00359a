//! Mamba-1 (Gu and Dao, 2023), with the names of transformers' `MambaForCausalLM`.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result as CandleResult, Tensor};

use super::architecture::{Network, embed, held};
use super::config::MambaConfig;
use super::linear::{Linear, Pass};
use super::ops::{add, rms_norm, softplus, swiglu};
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::{ScanToken, scan_step, silu};

pub(super) struct Mamba {
    config: MambaConfig,
    embedding: Tensor,
    /// Those that are held.
    layers: BTreeMap<usize, MambaBlock>,
    norm: Tensor,
    head: Linear,
}

struct MambaBlock {
    norm: Tensor,
    in_proj: Linear,
    /// `[inner, kernel]`.
    conv: Tensor,
    conv_bias: Option<Tensor>,
    x_proj: Linear,
    dt_proj: Linear,
    /// `-exp(A_log)`, `[inner, state]`.
    a: Tensor,
    d: Tensor,
    out_proj: Linear,
}

impl Mamba {
    pub(super) fn load(config: MambaConfig, w: &Weights<'_>) -> Result<Self> {
        let c = &config;
        let embedding = w.get("backbone.embeddings.weight", &[c.vocab, c.hidden])?;
        let head = if c.tied {
            Linear::tied_head(w, &embedding)?
        } else {
            Linear::load(w, "lm_head".into(), [c.vocab, c.hidden], false)?
        };
        let layers = BTreeMap::new();
        let norm = w.get("backbone.norm_f.weight", &[c.hidden])?;
        Ok(Self { embedding, layers, norm, head, config })
    }
}

impl MambaBlock {
    fn load(c: &MambaConfig, w: &Weights<'_>, i: usize) -> Result<Self> {
        let at = format!("backbone.layers.{i}.mixer");
        let linear = |part: &str, shape, bias| Linear::load(w, format!("{at}.{part}"), shape, bias);
        let conv = w.get(&format!("{at}.conv1d.weight"), &[c.inner, 1, c.kernel])?;
        let conv_bias = || w.get(&format!("{at}.conv1d.bias"), &[c.inner]);
        let a = w.get(&format!("{at}.A_log"), &[c.inner, c.state])?;
        let failed = crate::lm::failed;
        Ok(Self {
            norm: w.get(&format!("backbone.layers.{i}.norm.weight"), &[c.hidden])?,
            in_proj: linear("in_proj", [2 * c.inner, c.hidden], c.bias)?,
            conv: conv.squeeze(1).map_err(failed)?,
            conv_bias: c.conv_bias.then(conv_bias).transpose()?,
            x_proj: linear("x_proj", [c.rank + 2 * c.state, c.inner], false)?,
            dt_proj: linear("dt_proj", [c.inner, c.rank], true)?,
            a: a.exp().and_then(|a| a.neg()).map_err(failed)?,
            d: w.get(&format!("{at}.D"), &[c.inner])?,
            out_proj: linear("out_proj", [c.hidden, c.inner], c.bias)?,
        })
    }

    /// Each column of `x [batch, n, inner]` with its own kernel over the positions before, then
    /// `silu`.
    fn convolve(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (batch, n, inner) = x.dims3()?;
        let values = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        // By tap: the columns' weights side by side.
        let (xs, taps) = (values(x)?, values(&self.conv.t()?.contiguous()?)?);
        let mut y = match &self.conv_bias {
            Some(bias) => values(bias)?.repeat(batch * n),
            None => vec![0.0; xs.len()],
        };
        let kernel = self.conv.dim(1)?;
        for (x, y) in xs.chunks(inner * n).zip(y.chunks_mut(inner * n)) {
            for (k, tap) in taps.chunks(inner).enumerate() {
                // The last tap is of the position itself.
                let rows = y.chunks_mut(inner).skip(kernel - 1 - k).zip(x.chunks(inner));
                for (y, x) in rows {
                    y.iter_mut().zip(x.iter().zip(tap)).for_each(|(y, (x, tap))| *y += tap * x);
                }
            }
        }
        silu(&mut y);
        Tensor::from_vec(y, (batch, n, inner), &Device::Cpu)
    }

    /// [`MambaBlock::convolve`] of differentiable operations.
    fn convolve_slow(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (_, n, _) = x.dims3()?;
        let kernel = self.conv.dim(1)?;
        let padded = x.pad_with_zeros(1, kernel - 1, 0)?;
        let mut y: Option<Tensor> = None;
        for k in 0..kernel {
            let tap = self.conv.narrow(1, k, 1)?.squeeze(1)?;
            let term = padded.narrow(1, k, n)?.broadcast_mul(&tap)?;
            y = Some(match y {
                Some(y) => (y + term)?,
                None => term,
            });
        }
        let y = y.ok_or_else(|| candle_core::Error::Msg("an empty kernel".into()))?;
        match &self.conv_bias {
            Some(bias) => y.broadcast_add(bias)?.silu(),
            None => y.silu(),
        }
    }
}

/// The selective scan: `h = exp(dt a) h + dt x b`, `y = h c + d x` at each position. `x` and `dt`
/// (before `softplus`) are `[batch, n, inner]`, `a` is `[inner, state]`, `b` and `c` are `[batch,
/// n, state]`.
fn scan(
    x: &Tensor,
    dt: &Tensor,
    layer: &MambaBlock,
    b: &Tensor,
    c: &Tensor,
) -> CandleResult<Tensor> {
    let a = &layer.a;
    let (batch, n, inner) = x.dims3()?;
    let state = a.dim(1)?;
    let values = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let (xs, mut dts, a, b, c) = (values(x)?, values(dt)?, values(a)?, values(b)?, values(c)?);
    let d = values(&layer.d)?;
    dts.iter_mut().for_each(|dt| *dt = softplus(*dt));
    let mut y: Vec<f32> = xs.iter().zip(d.iter().cycle()).map(|(x, d)| x * d).collect();
    for s in 0..batch {
        let mut h = vec![0f32; inner * state];
        for t in s * n..(s + 1) * n {
            let (columns, states) = (inner * t..inner * (t + 1), state * t..state * (t + 1));
            let token = ScanToken {
                dt: &dts[columns.clone()],
                x: &xs[columns.clone()],
                b: &b[states.clone()],
                c: &c[states],
            };
            scan_step(&mut h, &a, token, &mut y[columns]);
        }
    }
    Tensor::from_vec(y, (batch, n, inner), &Device::Cpu)
}

/// `ln(1 + e^x)` of differentiable operations: `max(x, 0) + ln(1 + u)` with `u = e^-|x|`, the
/// logarithm by the series of `2 atanh(u / (2 + u))`, which keeps small `u`.
fn softplus_slow(x: &Tensor) -> CandleResult<Tensor> {
    let u = x.abs()?.neg()?.exp()?;
    let t = (&u / (&u + 2.0)?)?;
    let square = t.sqr()?;
    // t is at most 1/3: the next term is below 1e-9.
    let mut series = (square.zeros_like()? + 1.0 / 15.0)?;
    for k in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = ((series * &square)? + 1.0 / k)?;
    }
    x.relu()? + ((t * series)? * 2.0)?
}

/// [`scan`] of differentiable operations.
fn scan_slow(x: &Tensor, dt: &Tensor, a: &Tensor, b: &Tensor, c: &Tensor) -> CandleResult<Tensor> {
    let (batch, n, inner) = x.dims3()?;
    let state = a.dim(1)?;
    let mut h = Tensor::zeros((batch, inner, state), x.dtype(), x.device())?;
    let mut all = Vec::with_capacity(n);
    for t in 0..n {
        let at = |v: &Tensor| v.narrow(1, t, 1)?.squeeze(1);
        let dt = at(dt)?.unsqueeze(2)?;
        let decay = dt.broadcast_mul(&a.unsqueeze(0)?)?.exp()?;
        let new = (dt * at(x)?.unsqueeze(2)?)?.broadcast_mul(&at(b)?.unsqueeze(1)?)?;
        h = ((decay * &h)? + new)?;
        all.push(h.broadcast_mul(&at(c)?.unsqueeze(1)?)?.sum(D::Minus1)?);
    }
    Tensor::stack(&all, 1)
}

impl Network for Mamba {
    fn blocks(&self) -> usize {
        self.config.layers
    }

    fn hold(&mut self, i: usize, weights: Option<&Weights<'_>>) -> Result<()> {
        self.layers.remove(&i);
        if let Some(weights) = weights {
            self.layers.insert(i, MambaBlock::load(&self.config, weights, i)?);
        }
        Ok(())
    }

    fn embed(&self, ids: &Tensor) -> CandleResult<Tensor> {
        embed(&self.embedding, ids)
    }

    fn block(&self, i: usize, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let (layer, c) = (held(&self.layers, i)?, &self.config);
        let y = rms_norm(x, &layer.norm, c.eps, pass.gradients)?;
        let y = layer.in_proj.forward(&y, pass)?;
        let (y, gate) = (y.narrow(2, 0, c.inner)?, y.narrow(2, c.inner, c.inner)?.contiguous()?);
        let y = if pass.gradients { layer.convolve_slow(&y)? } else { layer.convolve(&y)? };
        let parts = layer.x_proj.forward(&y, pass)?;
        let part = |from, len| parts.narrow(2, from, len)?.contiguous();
        let (dt, b, s) =
            (part(0, c.rank)?, part(c.rank, c.state)?, part(c.rank + c.state, c.state)?);
        let dt = layer.dt_proj.forward(&dt, pass)?;
        let y = if pass.gradients {
            let dt = softplus_slow(&dt)?;
            (scan_slow(&y, &dt, &layer.a, &b, &s)? + y.broadcast_mul(&layer.d)?)?
        } else {
            scan(&y, &dt, layer, &b, &s)?
        };
        let y = swiglu(&gate, &y, pass.gradients)?;
        add(x, &layer.out_proj.forward(&y, pass)?, pass.gradients)
    }

    fn head(&self, x: &Tensor, pass: Pass<'_>) -> CandleResult<Tensor> {
        let x = rms_norm(x, &self.norm, self.config.eps, pass.gradients)?;
        self.head.forward(&x, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_softplus_agree_where_exponentials_are_small() {
        let x = [-30f32, -20.0, -12.0, -5.0, -0.5, 0.0, 0.7, 3.0, 19.0, 25.0];
        let slow = softplus_slow(&Tensor::new(&x, &Device::Cpu).expect("ten")).expect("computes");
        for (x, slow) in x.iter().zip(slow.to_vec1::<f32>().expect("ten")) {
            assert!((slow / softplus(*x) - 1.0).abs() < 1e-6, "{x}: {slow} and {}", softplus(*x));
        }
    }
}
