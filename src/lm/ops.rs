//! Loops that candle has not, or has in several passes over memory. All compute in binary32, and
//! each has a form made of candle's differentiable operations beside it.

#![allow(clippy::cast_possible_truncation, reason = "binary32 is what the models compute in")]

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor, bail};

use crate::kernels::{self, exp_shifted};

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&values[from..to]),
        None => bail!("contiguous values are expected"),
    }
}

/// Which positions a position sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// How many tokens back, itself included.
    pub window: Option<usize>,
}

impl Seen {
    /// The first position that position `i` sees; the last is `i`.
    fn first(self, i: usize) -> usize {
        self.window.map_or(0, |w| (i + 1).saturating_sub(w))
    }

    /// What is added to scores: 0 for positions that are seen, minus infinity for others.
    fn mask(self, n: usize, device: &candle_core::Device) -> Result<Tensor> {
        let seen = |at: usize| {
            let (i, j) = (at / n, at % n);
            if j <= i && j >= self.first(i) { 0f32 } else { f32::NEG_INFINITY }
        };
        Tensor::from_iter((0..n * n).map(seen), device)?.reshape((n, n))
    }
}

/// Softmax over the last dimension of scores `[.., rows, n]`, of which row `i` is of position `i %
/// n`.
pub(super) fn causal_softmax(scores: &Tensor, seen: Seen, gradients: bool) -> Result<Tensor> {
    let n = scores.dim(D::Minus1)?;
    if !gradients {
        return scores.apply_op1_no_bwd(&CausalSoftmax(seen));
    }
    let shape = scores.shape().clone();
    let masked = scores.reshape(((), n, n))?.broadcast_add(&seen.mask(n, scores.device())?)?;
    candle_nn::ops::softmax(&masked, D::Minus1)?.reshape(shape)
}

/// Softmax over the last dimension.
pub(super) fn softmax(x: &Tensor, gradients: bool) -> Result<Tensor> {
    if gradients {
        return candle_nn::ops::softmax(x, D::Minus1);
    }
    candle_nn::ops::softmax_last_dim(x)
}

struct CausalSoftmax(Seen);

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let scores = contiguous(storage, layout)?;
        let n = layout.shape().dims().last().copied().unwrap_or(1);
        let mut out = vec![0f32; scores.len()];
        for (row, (scores, out)) in scores.chunks(n).zip(out.chunks_mut(n)).enumerate() {
            let i = row % n;
            let range = self.0.first(i)..=i;
            let (scores, out) = (&scores[range.clone()], &mut out[range]);
            let most = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
            exp_shifted(out, scores, most);
            let inverse = (1.0 / sum(out)) as f32;
            out.iter_mut().for_each(|o| *o *= inverse);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// The sum in binary64: eight lanes, so that it is fast, in an order that never changes.
pub(super) fn sum(values: &[f32]) -> f64 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut lanes = [0f64; 8];
    for eight in eights {
        for (lane, v) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(*v);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v)).sum::<f64>()
}

/// `silu(gate) * up`.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor, gradients: bool) -> Result<Tensor> {
    if gradients { gate.silu()? * up } else { gate.apply_op2_no_bwd(up, &Swiglu) }
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = contiguous(gate, gate_layout)?.to_vec();
        kernels::swiglu(&mut out, contiguous(up, up_layout)?);
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

/// `x + y`, of the same shape. candle's own addition hands long tensors to a pool of threads that
/// spin, which costs more than it gains where sequences run on all cores already.
pub(super) fn add(x: &Tensor, y: &Tensor, gradients: bool) -> Result<Tensor> {
    if gradients { x + y } else { x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &Add) }
}

/// `x [.., cols] + bias [cols]`.
pub(super) fn add_bias(x: &Tensor, bias: &Tensor, gradients: bool) -> Result<Tensor> {
    if gradients { x.broadcast_add(bias) } else { x.apply_op2_no_bwd(bias, &Add) }
}

/// Adds the second again and again, as often as it goes into the first.
struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (contiguous(x, x_layout)?, contiguous(y, y_layout)?);
        let mut out = x.to_vec();
        for row in out.chunks_mut(y.len().max(1)) {
            row.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// Root mean square norm over the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, gradients: bool) -> Result<Tensor> {
    if gradients {
        return candle_nn::ops::rms_norm_slow(x, weight, eps as f32);
    }
    candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32)
}

/// Layer norm over the last dimension.
pub(super) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    gradients: bool,
) -> Result<Tensor> {
    if gradients {
        return candle_nn::ops::layer_norm_slow(x, weight, bias, eps as f32);
    }
    let (weight, bias) = (weight.to_vec1::<f32>()?, bias.to_vec1::<f32>()?);
    let mut values = x.flatten_all()?.to_vec1::<f32>()?;
    for row in values.chunks_mut(weight.len().max(1)) {
        // Centred first: a constant row has a variance of zero.
        let middle = (sum(row) / row.len() as f64) as f32;
        row.iter_mut().for_each(|v| *v -= middle);
        let squares = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        let scale = (1.0 / (squares / row.len() as f64 + eps).sqrt()) as f32;
        row.iter_mut()
            .zip(weight.iter().zip(&bias))
            .for_each(|(v, (w, b))| *v = *v * scale * w + b);
    }
    Tensor::from_vec(values, x.shape(), x.device())
}

/// Turns pairs of columns of `x [batch, heads, n, head_dim]`.
pub(super) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, gradients: bool) -> Result<Tensor> {
    if gradients {
        return candle_nn::rotary_emb::rope_slow(x, cos, sin);
    }
    candle_nn::rotary_emb::rope(&x.contiguous()?, cos, sin)
}

/// `ln(1 + e^x)`, which goes over into `x` (as PyTorch has it, from 20 on).
pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
