//! A model's tensors as candle tensors in binary32.

use std::cell::RefCell;
use std::collections::BTreeSet;

use candle_core::{Device, Tensor};

use super::failed;
use crate::codec::convert_raw;
use crate::container::DecodeOptions;
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::memory::{reserve, to_usize};
use crate::progress::{NoProgress, Progress, step};
use crate::source::Model;

/// Changes a tensor on its way in, by name.
pub(super) type Change<'a> = dyn Fn(&str, Tensor) -> Result<Tensor> + 'a;

/// Tensors of one model, read when they are asked for.
pub(super) struct Weights<'a> {
    model: &'a Model,
    planes: u8,
    overlays: usize,
    change: Option<&'a Change<'a>>,
    progress: &'a dyn Progress,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Weights<'a> {
    /// All planes of all tensors, with all overlays.
    pub(super) fn new(model: &'a Model) -> Self {
        let overlays = model.overlays();
        let used = RefCell::default();
        Self { model, planes: 8, overlays, change: None, progress: &NoProgress, used }
    }

    /// Reads the base without overlays.
    pub(super) fn without_overlays(mut self) -> Self {
        self.overlays = 0;
        self
    }

    /// Reads at most `planes` planes of each row.
    pub(super) fn with_planes(mut self, planes: u8) -> Self {
        self.planes = planes;
        self
    }

    /// Passes each tensor through `change`.
    pub(super) fn with_change(mut self, change: &'a Change<'a>) -> Self {
        self.change = Some(change);
        self
    }

    /// Asks before each tensor whether to stop.
    pub(super) fn with_progress(mut self, progress: &'a dyn Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Whether there is a tensor called `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.model.tensor(name).is_some()
    }

    /// The tensor called `name`, which must have this shape. Values are those that the model
    /// decodes to at its own type, widened.
    ///
    /// # Errors
    /// `Source` when it is missing, has another shape or isn't of floats; as [`Model::read`].
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        step(self.progress, 0)?;
        let locate = |e: Error| e.in_tensor(name);
        let Some((dtype, found)) = self.model.tensor(name) else {
            return Err(locate(Error::source_file("the model lacks it")));
        };
        if found.len() != shape.len() || !found.iter().zip(shape).all(|(a, b)| *a == *b as u64) {
            return Err(locate(Error::source_file(format!(
                "its shape is {found:?}, config.json makes it {shape:?}"
            ))));
        }
        if !dtype.has_planes() {
            return Err(locate(Error::source_file(format!(
                "is {dtype}, a float type is expected"
            ))));
        }
        let size = dtype.tensor_bytes(found).unwrap_or(u64::MAX);
        let mut bytes = reserve(to_usize(size)?).map_err(locate)?;
        let add = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        match self.model {
            Model::Pack(_) if self.overlays > 0 => {
                self.model.read_effective(name, self.overlays, add)?;
            }
            Model::Pack(pack) => {
                let view = pack.tensor(name).ok_or_else(|| Error::argument("no such tensor"))?;
                DecodeOptions::new().with_planes(self.planes).decode_tiles(&view, add)?;
            }
            Model::Checkpoint(_) => self.model.read(name, add)?,
        }
        let bytes = convert_raw(bytes, dtype, Dtype::F32).0;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let tensor =
            Tensor::from_vec(values, shape, &Device::Cpu).map_err(failed).map_err(locate)?;
        self.used.borrow_mut().insert(name.to_owned());
        match self.change {
            Some(change) => change(name, tensor).map_err(locate),
            None => Ok(tensor),
        }
    }

    /// Fails when the model has a tensor that the architecture has no place for: a bias, a norm or
    /// a layer that config.json doesn't speak of would be left out silently. `spare` are ends
    /// or, with a dot behind, starts of names that may be left out.
    ///
    /// # Errors
    /// `Source`, with its name.
    pub(super) fn check_all_used(&self, spare: &[&str]) -> Result<()> {
        let used = self.used.borrow();
        let is_spare = |name: &str| {
            spare
                .iter()
                .any(|s| if s.ends_with('.') { name.starts_with(s) } else { name.ends_with(s) })
        };
        for (name, _, shape) in self.model.tensors() {
            if !used.contains(name) && !is_spare(name) {
                let text =
                    format!("the architecture of config.json has no place for it ({shape:?})");
                return Err(Error::source_file(text).in_tensor(name));
            }
        }
        Ok(())
    }
}
