//! The encoding `alias`: the tensor that holds the values is another one.

use super::open::TensorView;
use crate::error::{Error, Result};
use crate::format::Encoding;
use crate::rule::Rule;
use crate::storage::ReadAt;

impl<'a, R: ReadAt> TensorView<'a, R> {
    /// The tensor whose parts hold the values: this one, or the target of an alias.
    ///
    /// # Errors
    /// `Malformed(UC-TEN-4)` for a target that doesn't exist.
    pub(crate) fn resolve(&self) -> Result<TensorView<'a, R>> {
        match &self.entry().encoding {
            Encoding::Alias { target } => self.container().tensor(target).ok_or_else(|| {
                Error::malformed(Rule::TEN_4, format!("alias of \"{target}\", which doesn't exist"))
            }),
            _ => Ok(*self),
        }
    }
}
