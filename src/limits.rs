//! Every ceiling a reader applies to untrusted input, with its default and its reason.

use std::fmt;

use crate::setters::setters;

/// Memory that an index takes while it is parsed and held, over its length; as measured on packs of
/// 100,000 and of 900,000 tensors.
pub(crate) const INDEX_FACTOR: u64 = 5;
/// The same of a manifest, which is held as text and as maps while it is read.
pub(crate) const MANIFEST_FACTOR: u64 = 6;

/// Names the ceiling that an input ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// [`Limits::max_index_bytes`].
    IndexBytes,
    /// [`Limits::max_manifest_bytes`].
    ManifestBytes,
    /// [`Limits::max_attachment_bytes`].
    AttachmentBytes,
    /// [`Limits::max_file_bytes`].
    FileBytes,
    /// The address space of this machine.
    AddressSpace,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IndexBytes => "max_index_bytes",
            Self::ManifestBytes => "max_manifest_bytes",
            Self::AttachmentBytes => "max_attachment_bytes",
            Self::FileBytes => "max_file_bytes",
            Self::AddressSpace => "address space",
        })
    }
}

/// Ceilings that a reader applies before it reserves memory.
///
/// Memory is always reserved for bytes that are present, never for a count that is claimed: a
/// section that ends beyond the file is refused first. The limits here bound what a large file may
/// make a reader hold at once.
///
/// # Spec
/// UC-LIM-1 (ceilings every conforming reader must at least accept).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Largest index, in bytes. Default 1 GiB: about three million tensors.
    pub max_index_bytes: u64,
    /// Largest manifest, in bytes. Default 512 MiB: it holds about 200 bytes for each tensor.
    pub max_manifest_bytes: u64,
    /// Largest attachment section, in bytes. Default 256 MiB.
    pub max_attachment_bytes: u64,
    /// Largest carried file after decompression, in bytes. Default 1 GiB: tokenizers are
    /// megabytes.
    pub max_file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_index_bytes: 1 << 30,
            max_manifest_bytes: 512 << 20,
            max_attachment_bytes: 256 << 20,
            max_file_bytes: 1 << 30,
        }
    }
}

impl Limits {
    /// The default limits, lowered so that what they allow can be read within `max_ram` bytes of
    /// memory.
    pub fn within(max_ram: u64) -> Self {
        let default = Self::default();
        Self {
            max_index_bytes: default.max_index_bytes.min(max_ram / INDEX_FACTOR),
            max_manifest_bytes: default.max_manifest_bytes.min(max_ram / MANIFEST_FACTOR),
            max_attachment_bytes: default.max_attachment_bytes.min(max_ram / 2),
            ..default
        }
    }

    setters! {
        with_max_index_bytes: max_index_bytes = u64,
        with_max_manifest_bytes: max_manifest_bytes = u64,
        with_max_attachment_bytes: max_attachment_bytes = u64,
        with_max_file_bytes: max_file_bytes = u64,
    }
}
