//! States between the blocks of a model, in a temporary file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use crate::error::{Error, Result};

/// Numbers by slot and batch. A file that has no name, so nothing is left of it.
pub(super) struct States {
    file: Mutex<File>,
    layout: OnceLock<Layout>,
}

struct Layout {
    batches: usize,
    /// Most numbers of one batch.
    most: usize,
    lengths: Mutex<Vec<usize>>,
}

impl States {
    /// A file in the folder of `output`.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn new(output: &Path) -> Result<Self> {
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let file = tempfile::tempfile_in(folder)
            .map_err(|e| Error::io("can't write here", e).in_file(folder.display().to_string()))?;
        Ok(Self { file: Mutex::new(file), layout: OnceLock::new() })
    }

    /// Says how much there will be.
    pub(super) fn layout(&self, slots: usize, batches: usize, most: usize) {
        let lengths = Mutex::new(vec![0; slots * batches]);
        self.layout.get_or_init(|| Layout { batches, most, lengths });
    }

    fn layout_of(&self, slot: usize, batch: usize) -> Result<(&Layout, usize)> {
        let layout = self.layout.get().ok_or_else(|| Error::argument("no states yet"))?;
        Ok((layout, slot * layout.batches + batch))
    }

    /// How many numbers are there.
    pub(super) fn len_of(&self, slot: usize, batch: usize) -> Result<usize> {
        let (layout, index) = self.layout_of(slot, batch)?;
        Ok(layout.lengths.lock().expect("no panic before")[index])
    }

    pub(super) fn write(&self, slot: usize, batch: usize, values: &[f32]) -> Result<()> {
        let (layout, index) = self.layout_of(slot, batch)?;
        if values.len() > layout.most {
            return Err(Error::argument("more states than expected"));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let at = 4 * (index * layout.most) as u64;
        let mut file = self.file.lock().expect("no panic before");
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.write_all(&bytes))
            .map_err(|e| Error::io("can't keep states", e))?;
        layout.lengths.lock().expect("no panic before")[index] = values.len();
        Ok(())
    }

    pub(super) fn read(&self, slot: usize, batch: usize) -> Result<Vec<f32>> {
        let (layout, index) = self.layout_of(slot, batch)?;
        let mut bytes = vec![0; 4 * self.len_of(slot, batch)?];
        let at = 4 * (index * layout.most) as u64;
        let mut file = self.file.lock().expect("no panic before");
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| Error::io("can't read states back", e))?;
        drop(file);
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}
