//! The fixed first 256 bytes of a container (spec/container.md, "Preamble").

use std::io::Cursor;

use binrw::{BinRead, BinWrite};

use super::{ALIGN_BYTES, Digest, PREAMBLE_BYTES, align_up};
use crate::error::{Error, ErrorKind, Result};
use crate::rule::Rule;

/// Format major version that this crate reads and writes.
pub const FORMAT_MAJOR: u16 = 1;
/// Format minor version that this crate writes.
pub const FORMAT_MINOR: u16 = 0;

/// `\x89UCP\r\n\x1a\n`: a high byte and both line ends, so that text-mode damage shows at once.
pub(crate) const MAGIC: [u8; 8] = *b"\x89UCP\r\n\x1a\n";
/// Required feature bit: there are coded tensors without a base.
const CODED_RAW: u64 = 1 << 0;
/// Required feature bit: the pack consists of several files, of which this is one.
const SHARDED: u64 = 1 << 1;
/// Required feature bit: the file holds overlays and no tensors.
const OVERLAYS_ONLY: u64 = 1 << 2;
/// Required feature bits that this reader knows.
const KNOWN_REQUIRED: u64 = CODED_RAW | SHARDED | OVERLAYS_ONLY;
/// Optional feature bit: `planes` tensors carry residuals.
const RESIDUAL: u64 = 1 << 0;
/// Optional feature bit: there are overlays.
const OVERLAYS: u64 = 1 << 1;
/// Shard numbers have five digits in file names (UC-SHD-2).
pub(crate) const MAX_SHARDS: u32 = 99_999;
/// Where the bytes start that the stored root reads as zero (UC-ROOT-3).
const UNROOTED_START: usize = 128;
const CRC_AT: usize = PREAMBLE_BYTES - 4;

/// The fixed-size header of a container.
///
/// # Spec
/// UC-HDR-1 to UC-HDR-16.
#[derive(Debug, Clone, PartialEq, Eq, BinRead, BinWrite)]
#[brw(little)]
#[non_exhaustive]
pub struct Preamble {
    pub(crate) magic: [u8; 8],
    /// Format major version.
    pub format_major: u16,
    /// Format minor version.
    pub format_minor: u16,
    pub(crate) preamble_len: u32,
    /// Features without which the file can't be read.
    pub required_features: u64,
    /// Features that a reader may ignore.
    pub optional_features: u64,
    /// Length of preamble, data, index and manifest with padding, in bytes; attachments follow.
    pub core_len: u64,
    /// Offset of the index in bytes.
    pub index_offset: u64,
    /// Length of the index in bytes.
    pub index_len: u64,
    /// Offset of the manifest in bytes.
    pub manifest_offset: u64,
    /// Length of the manifest in bytes.
    pub manifest_len: u64,
    /// Number of index records.
    pub n_records: u32,
    /// CRC-32 of the index.
    pub index_crc32: u32,
    /// CRC-32 of the manifest.
    pub manifest_crc32: u32,
    /// Number of this shard, from 1.
    pub shard_number: u32,
    /// Number of shards of the pack.
    pub shard_count: u32,
    pub(crate) reserved_a: u32,
    /// Root over the decoded tensors.
    pub decoded_root: Digest,
    /// Root over the stored bytes.
    pub stored_root: Digest,
    /// Length of the whole file in bytes.
    pub file_len: u64,
    /// CRC-32 of the attachment section (0 when it is empty).
    pub attachments_crc32: u32,
    pub(crate) reserved_b: [u8; 80],
    pub(crate) preamble_crc32: u32,
}

impl Preamble {
    pub(crate) fn new() -> Self {
        Self {
            magic: MAGIC,
            format_major: FORMAT_MAJOR,
            format_minor: FORMAT_MINOR,
            preamble_len: 256,
            required_features: 0,
            optional_features: 0,
            core_len: 0,
            index_offset: 0,
            index_len: 0,
            manifest_offset: 0,
            manifest_len: 0,
            n_records: 0,
            index_crc32: 0,
            manifest_crc32: 0,
            shard_number: 1,
            shard_count: 1,
            reserved_a: 0,
            decoded_root: Digest([0; 32]),
            stored_root: Digest([0; 32]),
            file_len: 0,
            attachments_crc32: 0,
            reserved_b: [0; 80],
            preamble_crc32: 0,
        }
    }

    /// Marks the file as shard `number` of `count`; 1 of 1 is a file of its own.
    pub(crate) fn set_shard(&mut self, number: u32, count: u32) {
        (self.shard_number, self.shard_count) = (number, count);
        self.required_features &= !SHARDED;
        self.required_features |= if count > 1 { SHARDED } else { 0 };
    }

    /// Says whether there are coded tensors, and residuals.
    pub(crate) fn set_exact(&mut self, coded: bool, residuals: bool) {
        self.required_features &= !CODED_RAW;
        self.required_features |= if coded { CODED_RAW } else { 0 };
        self.optional_features &= !RESIDUAL;
        self.optional_features |= if residuals { RESIDUAL } else { 0 };
    }

    /// Says whether there are overlays, and whether there is nothing else.
    pub(crate) fn set_overlays(&mut self, any: bool, only: bool) {
        self.required_features &= !OVERLAYS_ONLY;
        self.required_features |= if only { OVERLAYS_ONLY } else { 0 };
        self.optional_features &= !OVERLAYS;
        self.optional_features |= if any { OVERLAYS } else { 0 };
    }

    /// Whether the file holds overlays for the tensors of another.
    pub fn is_overlays_only(&self) -> bool {
        self.required_features & OVERLAYS_ONLY != 0
    }

    /// Whether tensors of encoding `coded_raw` may be there.
    pub(crate) fn has_coded(&self) -> bool {
        self.required_features & CODED_RAW != 0
    }

    /// Whether the file is one of several that make up a pack.
    pub fn is_sharded(&self) -> bool {
        self.required_features & SHARDED != 0
    }

    /// Length of the attachment section in bytes.
    pub fn attachments_len(&self) -> u64 {
        self.file_len.saturating_sub(self.core_len)
    }

    /// Parses and checks the first 256 bytes of a file that is `file_len` bytes long.
    ///
    /// # Errors
    /// `Malformed`, `UnsupportedVersion`, `UnsupportedFeature`, `Integrity` or `Truncated`, in the
    /// order of spec/container.md, "Opening a file".
    pub(crate) fn parse(bytes: &[u8], actual_len: u64) -> Result<Self> {
        check_magic(bytes, actual_len)?;
        let bytes: &[u8; PREAMBLE_BYTES] =
            bytes.get(..PREAMBLE_BYTES).and_then(|b| b.try_into().ok()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Truncated { needed: 0..PREAMBLE_BYTES as u64 },
                    format!(
                        "file has {actual_len} bytes, the preamble alone has {PREAMBLE_BYTES} ({})",
                        Rule::HDR_6
                    ),
                )
            })?;
        let major = u16::from_le_bytes([bytes[8], bytes[9]]);
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        let p = Self::read(&mut Cursor::new(&bytes[..]))
            .expect("256 bytes hold the fixed-size preamble and no field restricts its value");
        if major != FORMAT_MAJOR {
            // A damaged version field is damage; only a consistent one is another format.
            return Err(if crc == p.preamble_crc32 {
                Error::new(
                    ErrorKind::UnsupportedVersion,
                    format!("format {major}.{} is not known, this reader knows {FORMAT_MAJOR}.x ({})", p.format_minor, Rule::HDR_2),
                )
            } else {
                Error::new(
                    ErrorKind::UnsupportedVersion,
                    format!("format major {major} is not known and the preamble's checksum doesn't match: another format or damage ({})", Rule::HDR_2),
                )
            }
            .at(8));
        }
        if crc != p.preamble_crc32 {
            return Err(Error::integrity(format!(
                "checksum of bytes 0..{CRC_AT} is {crc:08x}, the preamble says {:08x} ({})",
                p.preamble_crc32,
                Rule::HDR_3
            ))
            .in_part("preamble")
            .at(0));
        }
        p.check(actual_len).map_err(|e| e.in_part("preamble"))?;
        Ok(p)
    }

    /// Checks all fields but the checksum, for a file that is `actual_len` bytes long.
    ///
    /// # Errors
    /// As [`Preamble::parse`].
    pub(crate) fn check(&self, actual_len: u64) -> Result<()> {
        self.check_fixed()?;
        self.check_len(actual_len)?;
        self.check_layout(actual_len)?;
        self.check_shard()
    }

    /// What doesn't depend on the file: features, the length of the preamble, reserved bytes.
    fn check_fixed(&self) -> Result<()> {
        let unknown = self.required_features & !KNOWN_REQUIRED;
        if unknown != 0 {
            return Err(Error::new(
                ErrorKind::UnsupportedFeature,
                format!(
                    "required feature bit {} is not known ({})",
                    unknown.trailing_zeros(),
                    Rule::HDR_5
                ),
            )
            .at(16));
        }
        if self.preamble_len as usize != PREAMBLE_BYTES {
            return Err(Error::malformed(
                Rule::HDR_4,
                format!("preamble length is {}, format 1 has {PREAMBLE_BYTES}", self.preamble_len),
            )
            .at(12));
        }
        if self.reserved_a != 0 || self.reserved_b != [0; 80] {
            return Err(Error::malformed(Rule::HDR_14, "reserved bytes are not zero").at(92));
        }
        Ok(())
    }

    fn check_len(&self, actual_len: u64) -> Result<()> {
        if actual_len < self.file_len {
            return Err(Error::new(
                ErrorKind::Truncated { needed: actual_len..self.file_len },
                format!(
                    "file has {actual_len} bytes, the preamble says {} ({})",
                    self.file_len,
                    Rule::HDR_6
                ),
            )
            .at(160));
        }
        if actual_len > self.file_len {
            return Err(Error::malformed(
                Rule::HDR_6,
                format!("file has {actual_len} bytes, the preamble says {}", self.file_len),
            )
            .at(160));
        }
        Ok(())
    }

    /// That index, manifest and attachments follow one another in a file of that length.
    fn check_layout(&self, actual_len: u64) -> Result<()> {
        let end = |offset: u64, len: u64| {
            align_up(offset.checked_add(len)?, ALIGN_BYTES).filter(|&e| e <= actual_len)
        };
        let placed = self.index_offset >= PREAMBLE_BYTES as u64
            && self.index_offset.is_multiple_of(ALIGN_BYTES)
            && end(self.index_offset, self.index_len) == Some(self.manifest_offset)
            && end(self.manifest_offset, self.manifest_len) == Some(self.core_len)
            && (self.file_len - self.core_len).is_multiple_of(ALIGN_BYTES);
        if !placed {
            return Err(Error::malformed(
                Rule::HDR_7,
                format!(
                    "index {}+{}, manifest {}+{} and core end {} don't follow one another, aligned to {ALIGN_BYTES}, within {} bytes",
                    self.index_offset, self.index_len, self.manifest_offset, self.manifest_len, self.core_len, self.file_len
                ),
            )
            .at(32));
        }
        if self.attachments_len() == 0 && self.attachments_crc32 != 0 {
            return Err(Error::malformed(
                Rule::ATT_5,
                "attachment section is empty but has a checksum",
            )
            .at(168));
        }
        Ok(())
    }

    /// The shard's number, and what only the first shard has.
    fn check_shard(&self) -> Result<()> {
        let (number, count) = (self.shard_number, self.shard_count);
        let expected = if !self.is_sharded() && (number, count) != (1, 1) {
            Some("a file without the `sharded` feature is 1 of 1")
        } else if self.is_sharded()
            && !((2..=MAX_SHARDS).contains(&count) && (1..=count).contains(&number))
        {
            Some("with the `sharded` feature there are 2 to 99999, numbered from 1")
        } else {
            None
        };
        if let Some(expected) = expected {
            return Err(Error::malformed(
                if self.is_sharded() { Rule::HDR_8 } else { Rule::HDR_16 },
                format!("shard {number} of {count}: {expected}"),
            )
            .at(84));
        }
        if number > 1
            && (self.manifest_len, self.manifest_crc32, self.attachments_len()) != (0, 0, 0)
        {
            return Err(Error::malformed(
                Rule::SHD_1,
                format!("shard {number} has a manifest or attachments: only the first has"),
            )
            .at(64));
        }
        Ok(())
    }

    /// The 256 bytes as the stored root reads them: zero from byte 128 on (UC-ROOT-3).
    pub(crate) fn rooted_bytes(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = self.to_bytes();
        bytes[UNROOTED_START..].fill(0);
        bytes
    }

    /// The 256 bytes, with a fresh checksum.
    pub(crate) fn to_bytes(&self) -> [u8; PREAMBLE_BYTES] {
        let mut out = Cursor::new(Vec::with_capacity(PREAMBLE_BYTES));
        self.write(&mut out).expect("writing fixed-size fields to memory can't fail");
        let mut bytes: [u8; PREAMBLE_BYTES] =
            out.into_inner().try_into().expect("the fields of the preamble take 256 bytes");
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

fn check_magic(bytes: &[u8], actual_len: u64) -> Result<()> {
    let have = &bytes[..bytes.len().min(MAGIC.len())];
    if have == MAGIC {
        return Ok(());
    }
    let hint = if actual_len == 0 {
        "the file is empty".to_owned()
    } else if have.starts_with(b"\x89UCP\n\x1a") || have.starts_with(b"\x89UCP\r\r") {
        "line ends were changed: the file was moved as text, fetch it again in binary mode"
            .to_owned()
    } else if have.starts_with(b"\x09UCP") {
        "the high bit was cut off: the file was moved as 7-bit text".to_owned()
    } else if bytes.get(8) == Some(&b'{') {
        "this looks like a safetensors file; `uc pack` makes a .uc file of it".to_owned()
    } else if have.starts_with(b"GGUF") {
        "this is a GGUF file".to_owned()
    } else if have.starts_with(b"PK") {
        "this is a zip archive (a PyTorch checkpoint?)".to_owned()
    } else if have.starts_with(b"version ") {
        "this is a Git LFS pointer, not the file itself".to_owned()
    } else {
        format!("found {have:02x?}, expected {MAGIC:02x?}")
    };
    Err(Error::malformed(Rule::HDR_1, format!("not a .uc file: {hint}")).at(0))
}
