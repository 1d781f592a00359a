//! Decoding tables that were made for one tensor, kept for the next.

use std::sync::{Arc, Mutex, PoisonError};

use super::block::BlockTables;
use crate::error::Result;
use crate::format::Dtype;
use crate::kernels::Kernel;

/// How many tables a container keeps, and the most bytes that each may have: those that our encoder
/// makes have 32 KiB, others up to 2 MiB.
const MOST_KEPT: usize = 8;

const MOST_KEPT_BYTES: usize = 128 << 10;

/// Decoding tables that were made for one tensor, kept for the next.
#[derive(Debug, Default)]
pub(crate) struct ExactTables(Mutex<Vec<KeptTables>>);

#[derive(Debug)]
struct KeptTables {
    model: String,
    dtype: Dtype,
    levels: Option<Vec<i8>>,
    kernel: Kernel,
    tables: Arc<BlockTables>,
}

impl ExactTables {
    /// The tables of a model for tensors of this type and with these levels, made by `make` if they
    /// aren't there.
    pub(crate) fn get(
        &self,
        (model, dtype): (&str, Dtype),
        levels: Option<&[i8]>,
        kernel: Kernel,
        make: impl FnOnce() -> Result<BlockTables>,
    ) -> Result<Arc<BlockTables>> {
        // Nothing is left half done while the lock is held, so a thread that panicked did no harm.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |kept: &&KeptTables| {
            (&kept.model[..], kept.dtype, kept.levels.as_deref(), kept.kernel)
                == (model, dtype, levels, kernel)
        };
        if let Some(known) = lock().iter().find(is_it) {
            return Ok(Arc::clone(&known.tables));
        }
        let tables = Arc::new(make()?);
        if tables.bytes() > MOST_KEPT_BYTES {
            return Ok(tables);
        }
        let (model, levels) = (model.to_owned(), levels.map(<[i8]>::to_vec));
        let mut kept = lock();
        if kept.len() >= MOST_KEPT {
            kept.remove(0);
        }
        kept.push(KeptTables { model, dtype, levels, kernel, tables: Arc::clone(&tables) });
        Ok(tables)
    }
}
