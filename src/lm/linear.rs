//! Linear layers whose inputs and outputs can be observed.

use candle_core::{D, Tensor};

use super::failed;
use super::ops::add_bias;
use super::weights::Weights;
use crate::error::{Error, Result};

/// Watches the linear layers of a forward pass: calibration and training stand on it.
pub(crate) trait Observer: Sync {
    /// Called for each linear layer with its name (that of its weight, without `.weight`), its
    /// input `[.., cols]` and its output `[.., rows]`; what it returns goes on in place of the
    /// output. Adding a variable of zeros to the output makes its gradient that of the output.
    fn linear(&self, name: &str, input: &Tensor, output: Tensor) -> candle_core::Result<Tensor>;
}

/// How a forward pass is run.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pass<'a> {
    /// Watches every linear layer.
    pub observer: Option<&'a dyn Observer>,
    /// Uses differentiable operations only, which are slower.
    pub gradients: bool,
}

/// `y = x W^T + b`.
#[derive(Debug)]
pub(super) struct Linear {
    name: String,
    /// Transposed, `[cols, rows]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `name.weight` `[rows, cols]`, and `name.bias` if there is to be one.
    pub(super) fn load(
        weights: &Weights<'_>,
        name: String,
        [rows, cols]: [usize; 2],
        bias: bool,
    ) -> Result<Self> {
        let weight = weights.get(&format!("{name}.weight"), &[rows, cols])?;
        let bias = bias.then(|| weights.get(&format!("{name}.bias"), &[rows])).transpose()?;
        // Side by side, which products pack faster.
        let weight = weight.t().and_then(|w| w.contiguous()).map_err(failed)?;
        Ok(Self { name, weight, bias })
    }

    /// The head of a model that shares it with its `embedding`. Some files hold it once more; there
    /// it must be the same.
    ///
    /// # Errors
    /// `Source` when it is another; as [`Weights::get`].
    pub(super) fn tied_head(weights: &Weights<'_>, embedding: &Tensor) -> Result<Self> {
        const NAME: &str = "lm_head";
        let stored = format!("{NAME}.weight");
        if weights.has(&stored) {
            let own = weights.get(&stored, embedding.dims())?;
            let differs = |a: &Tensor| a.ne(embedding)?.flatten_all()?.max(0)?.to_scalar::<u8>();
            if differs(&own).map_err(failed)? != 0 {
                let text = "config.json ties it to the embedding, but it is another matrix";
                return Err(Error::source_file(text).in_tensor(&stored));
            }
        }
        Self::tied(NAME, embedding)
    }

    /// A layer that shares a weight `[rows, cols]` with another.
    fn tied(name: &str, weight: &Tensor) -> Result<Self> {
        let weight = weight.t().map_err(failed)?;
        Ok(Self { name: name.to_owned(), weight, bias: None })
    }

    pub(super) fn forward(&self, x: &Tensor, pass: Pass<'_>) -> candle_core::Result<Tensor> {
        let dims = x.dims();
        let cols = x.dim(D::Minus1)?;
        let flat = x.reshape(((), cols))?;
        let mut y = flat.matmul(&self.weight)?;
        if let Some(bias) = &self.bias {
            y = add_bias(&y, bias, pass.gradients)?;
        }
        let mut out = dims[..dims.len() - 1].to_vec();
        out.push(self.weight.dim(1)?);
        let y = y.reshape(out)?;
        match pass.observer {
            Some(observer) => observer.linear(&self.name, x, y),
            None => Ok(y),
        }
    }
}
