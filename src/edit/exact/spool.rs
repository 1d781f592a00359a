//! A residual on its way into a pack.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

use crate::codec::exact::residual_header;
use crate::container::OpenData;
use crate::error::{Error, Result};
use crate::format::CHUNK_BYTES;
use crate::memory::to_usize;
use crate::output::ShardWriter;

/// Bytes of blocks that are held in memory.
const IN_MEMORY: usize = 4 << 20;

/// A residual that is being made: lengths and some blocks in memory, many in a file without a name.
pub(crate) struct Spool {
    file: SpooledTempFile,
    header: Vec<u8>,
    lengths: Vec<u32>,
    blocks: u64,
}

impl Spool {
    pub(crate) fn new(folder: &Path, names: [[u8; 8]; 6], n: usize) -> Result<Self> {
        let file = tempfile::spooled_tempfile_in(IN_MEMORY, folder);
        let lengths = Vec::with_capacity(n);
        Ok(Self { file, header: residual_header(&names, n)?, lengths, blocks: 0 })
    }

    pub(crate) fn push(&mut self, block: &[u8]) -> Result<()> {
        let length = u32::try_from(block.len());
        self.lengths.push(length.map_err(|_| Error::argument("block is too long"))?);
        self.blocks += block.len() as u64;
        self.file.write_all(block).map_err(spool_error)
    }

    pub(crate) fn len(&self) -> u64 {
        self.header.len() as u64 + 4 * self.lengths.len() as u64 + self.blocks
    }

    /// Writes it as a part behind what is written.
    pub(crate) fn write(&mut self, writer: &mut ShardWriter, optional: bool) -> Result<OpenData> {
        self.file.seek(SeekFrom::Start(0)).map_err(spool_error)?;
        let mut left = self.len();
        let mut head = self.header.clone();
        head.extend(self.lengths.iter().flat_map(|n| n.to_le_bytes()));
        let mut all = head.chain(&mut self.file);
        let mut data = writer.begin_residual(optional)?;
        let mut chunk = vec![];
        while left > 0 {
            chunk.resize(to_usize(left.min(CHUNK_BYTES))?, 0);
            all.read_exact(&mut chunk).map_err(spool_error)?;
            writer.put_chunk(&mut data, chunk.len(), &chunk)?;
            left -= chunk.len() as u64;
        }
        Ok(data)
    }
}

fn spool_error(e: std::io::Error) -> Error {
    Error::io("can't write a temporary file", e)
}
