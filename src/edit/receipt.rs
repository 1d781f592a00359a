//! A pack with one receipt more.

use std::fs::File;
use std::path::Path;

use crate::container::Container;
use crate::error::{Error, Result};
use crate::manifest::{Pack, VerifyOptions};
use crate::output::{ClosedFile, NewFile};
use crate::progress::Progress;
use crate::receipt::attach;
use crate::storage::Input;

/// Writes the pack with the record of an evaluation of it attached to `output`; both roots stay.
/// The new file's stored bytes are verified before it gets its name. Gives the receipt's name.
///
/// # Errors
/// As [`attach`]; `InvalidArgument` for a pack of several files, whose first shard alone is to be
/// named; `Integrity` where the stored bytes are damaged; `Io`, also when `output` exists (unless
/// `force`).
pub fn add_receipt(
    pack: &Pack<Input>,
    record: &[u8],
    output: &Path,
    force: bool,
    progress: &dyn Progress,
) -> Result<String> {
    let [file] = pack.containers() else {
        return Err(Error::argument(
            "a pack of several files: join it with `uc reshard`, or evaluate and keep the record beside it",
        ));
    };
    pack.require_complete()?;
    let mut new = NewFile::create(output, force)?;
    let roots = (pack.stored_root(), pack.decoded_root());
    let name = attach(file, roots, record, &mut new, progress)?;
    let closed = new.close()?;
    let written: Container<File> = Container::open_path(closed.path())?;
    let report = VerifyOptions::new().with_decode(false).verify(&written)?;
    if let Some(failure) = report.failures.first() {
        let e = Error::integrity(format!("{}: nothing was written", failure.reason));
        return Err(file.locate(e));
    }
    ClosedFile::commit(vec![closed])?;
    Ok(name)
}
