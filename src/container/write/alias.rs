//! The encoding `alias`: the bytes of another tensor.

use super::tensor::EncodedTensor;
use crate::error::Result;
use crate::format::{Encoding, TensorEntry, check_name};

impl EncodedTensor {
    /// Says that the tensor has the bytes of `target`.
    ///
    /// # Errors
    /// `Malformed` for a bad name.
    pub fn alias(name: &str, target: &Self) -> Result<Self> {
        Self::alias_of(name, &target.entry)
    }

    pub(crate) fn alias_of(name: &str, target: &TensorEntry) -> Result<Self> {
        check_name(name)?;
        Ok(Self {
            entry: TensorEntry {
                name: name.to_owned(),
                encoding: Encoding::Alias { target: target.name.clone() },
                parts: vec![],
                ..target.clone()
            },
            payload: vec![],
        })
    }
}
