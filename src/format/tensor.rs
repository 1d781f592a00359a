//! The index record of a tensor: what it is, and how it is encoded (spec/container.md, "Tensor
//! records").

use std::io::Cursor;

use binrw::{BinRead, BinWrite};

use super::fields::put_fixed;
use super::part::Part;
use super::{Digest, Dtype, MAX_PLANES, MAX_RANK, MIN_PLANES, PLANE_COUNTS, check_name};
use crate::error::{Error, ErrorKind, Result};
use crate::rule::Rule;

/// Codes of encodings.
const RAW: u8 = 1;
const PLANES: u8 = 2;
const ALIAS: u8 = 3;
const CODED_RAW: u8 = 4;

#[derive(Debug, BinRead, BinWrite)]
#[brw(little)]
struct TensorHeader {
    dtype: u8,
    encoding: u8,
    role: u8,
    rank: u8,
    row_dims: u8,
    group_log2: u8,
    planes: u8,
    reserved: u8,
}

/// What a tensor is for, as far as rates are counted (spec/container.md, "Roles").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Norms, biases, routers, tables: everything that isn't one of the others.
    Other,
    /// A linear layer of a block: what body bpw counts.
    Body,
    /// An embedding table.
    Embedding,
    /// The output head.
    Head,
}

impl Role {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Body => "body",
            Self::Embedding => "embedding",
            Self::Head => "head",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::Body => 1,
            Self::Embedding => 2,
            Self::Head => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Other, Self::Body, Self::Embedding, Self::Head].get(usize::from(code)).copied()
    }
}

/// How a tensor is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// Source bytes as they are.
    Raw,
    /// Codes in bit planes, with scales, steps and levels.
    Planes {
        /// How many leading dimensions make up the rows; the rest fold into columns.
        row_dims: u8,
        /// Consecutive columns that share a step, or 0 when whole rows do.
        group: u32,
        /// Planes of every row, or `None` when a counts part gives them row by row.
        planes: Option<u8>,
        /// Level tables for native counts 3..=8: 0 is the default table, n the n-th levels record.
        level_ids: [u16; PLANE_COUNTS],
    },
    /// Source bytes, entropy-coded without a base.
    Coded {
        /// How many leading dimensions make up the rows; with 0 all is one row.
        row_dims: u8,
    },
    /// The same bytes as another tensor of the pack.
    Alias {
        /// The name of that tensor.
        target: String,
    },
}

impl Encoding {
    /// The name used in JSON: `raw`, `planes`, `coded_raw` or `alias`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Planes { .. } => "planes",
            Self::Coded { .. } => "coded_raw",
            Self::Alias { .. } => "alias",
        }
    }

    /// The tensor whose bytes an alias has.
    pub fn alias_target(&self) -> Option<&str> {
        match self {
            Self::Alias { target } => Some(target),
            Self::Raw | Self::Planes { .. } | Self::Coded { .. } => None,
        }
    }

    /// Whether values come from codes: they are near the source's, exact in binary32, and what
    /// overlays, rungs and quantizers speak of. An alias has what its target has.
    pub fn is_quantized(&self) -> bool {
        match self {
            Self::Planes { .. } => true,
            Self::Raw | Self::Coded { .. } | Self::Alias { .. } => false,
        }
    }

    /// Whether the decoded bytes are the source's own. An alias has what its target has.
    pub fn keeps_source_bits(&self) -> bool {
        match self {
            Self::Raw | Self::Coded { .. } => true,
            Self::Planes { .. } | Self::Alias { .. } => false,
        }
    }
}

/// The index record of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its element type in the source.
    pub dtype: Dtype,
    /// What it is for.
    pub role: Role,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// SHA-256 of its decoded little-endian bytes at the source dtype.
    pub decoded_sha256: Digest,
    /// How it is stored.
    pub encoding: Encoding,
    /// Its parts, in file order.
    pub parts: Vec<Part>,
}

fn malformed<T>(text: &str) -> Result<T> {
    Err(Error::malformed(Rule::TEN_1, text))
}

/// Parses the body of a tensor record.
///
/// # Errors
/// `Malformed` (UC-TEN, UC-DTY, UC-PLN, UC-NAM), `UnsupportedFeature`.
pub(super) fn parse_tensor(body: &[u8], parts: Vec<Part>, name: &str) -> Result<TensorEntry> {
    let Some((fixed, rest)) = body.split_at_checked(8) else {
        return malformed("tensor body is cut off");
    };
    let h = TensorHeader::read(&mut Cursor::new(fixed)).expect("8 bytes hold the tensor header");
    let dtype = Dtype::require_code(h.dtype)?;
    let rank = usize::from(h.rank);
    let Some((shape, rest)) = rest.split_at_checked(8 * rank) else {
        return malformed("tensor shape is cut off");
    };
    let Some((digest, rest)) = rest.split_first_chunk::<32>() else {
        return malformed("decoded digest is cut off");
    };
    let Some(role) = Role::from_code(h.role).filter(|_| h.reserved == 0 && rank <= MAX_RANK) else {
        return malformed("role, rank or reserved byte is out of range");
    };
    let shape: Vec<u64> = shape.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
    if dtype.tensor_bytes(&shape).is_none() {
        let odd_bits = shape.iter().fold(dtype.bits() % 8, |bits, d| bits * (d % 8) % 8);
        return Err(Error::malformed(
            if odd_bits == 0 { Rule::TEN_10 } else { Rule::TEN_2 },
            format!("{dtype} {shape:?} is too large or not a whole number of bytes"),
        ));
    }
    Ok(TensorEntry {
        name: name.to_owned(),
        dtype,
        role,
        shape,
        decoded_sha256: Digest(*digest),
        encoding: parse_encoding(&h, rest)?,
        parts,
    })
}

/// The encoding, of which `rest` are the fields behind the digest.
fn parse_encoding(h: &TensorHeader, rest: &[u8]) -> Result<Encoding> {
    let unused = |row_dims: u8, names: &str| {
        let rule = match (h.group_log2, h.planes, row_dims) {
            (0, 0, 0) => return Ok(()),
            (0, 0, _) => Rule::TEN_11,
            _ => Rule::TEN_3,
        };
        Err(Error::malformed(rule, format!("{names} belong to encoding planes")))
    };
    match h.encoding {
        RAW => {
            unused(h.row_dims, "row_dims, group_log2 and planes")?;
            if !rest.is_empty() {
                return malformed("raw tensor body is too long");
            }
            Ok(Encoding::Raw)
        }
        PLANES => parse_planes(h, rest),
        ALIAS => {
            unused(h.row_dims, "row_dims, group_log2 and planes")?;
            let target = std::str::from_utf8(rest).map_err(|e| {
                Error::malformed(Rule::NAM_1, "alias target is not UTF-8").with_source(e)
            })?;
            check_name(target)?;
            Ok(Encoding::Alias { target: target.to_owned() })
        }
        CODED_RAW => {
            unused(0, "group_log2 and planes")?;
            if !rest.is_empty() {
                return malformed("coded tensor body is too long");
            }
            Ok(Encoding::Coded { row_dims: h.row_dims })
        }
        other => Err(Error::new(
            ErrorKind::UnsupportedFeature,
            format!("encoding {other} is not known ({})", Rule::TEN_6),
        )),
    }
}

fn parse_planes(h: &TensorHeader, rest: &[u8]) -> Result<Encoding> {
    let Ok(rest) = <&[u8; 16]>::try_from(rest) else {
        return malformed("planes tensor body has the wrong length");
    };
    let (ids, reserved) = rest.split_at(12);
    if reserved != [0; 4] {
        return malformed("reserved bytes are not zero");
    }
    let group = match h.group_log2 {
        0 => 0,
        n @ 4..=8 => 1u32 << n,
        n => {
            let text = format!("group_log2 is {n}, 0 or 4 to 8 expected");
            return Err(Error::malformed(Rule::PLN_4, text));
        }
    };
    let planes = match h.planes {
        0 => None,
        n @ MIN_PLANES..=MAX_PLANES => Some(n),
        n => {
            let text = format!("{n} planes, {MIN_PLANES} to {MAX_PLANES} expected");
            return Err(Error::malformed(Rule::PLN_3, text));
        }
    };
    let mut level_ids = [0; PLANE_COUNTS];
    for (id, bytes) in level_ids.iter_mut().zip(ids.as_chunks::<2>().0) {
        *id = u16::from_le_bytes(*bytes);
    }
    Ok(Encoding::Planes { row_dims: h.row_dims, group, planes, level_ids })
}

/// The body of a tensor record.
///
/// # Errors
/// `Malformed` for more dimensions than a record can count.
pub(super) fn tensor_body(t: &TensorEntry) -> Result<Vec<u8>> {
    let (encoding, row_dims, group, planes) = match &t.encoding {
        Encoding::Raw => (RAW, 0, 0, 0),
        Encoding::Planes { row_dims, group, planes, .. } => {
            (PLANES, *row_dims, *group, planes.unwrap_or(0))
        }
        Encoding::Alias { .. } => (ALIAS, 0, 0, 0),
        Encoding::Coded { row_dims } => (CODED_RAW, *row_dims, 0, 0),
    };
    let group_log2 = if group == 0 { 0 } else { group.trailing_zeros() };
    let mut body = Vec::new();
    put_fixed(
        &mut body,
        &TensorHeader {
            dtype: t.dtype.code(),
            encoding,
            role: t.role.code(),
            rank: u8::try_from(t.shape.len())
                .map_err(|_| Error::malformed(Rule::TEN_1, "too many dimensions"))?,
            row_dims,
            group_log2: u8::try_from(group_log2).expect("at most 31"),
            planes,
            reserved: 0,
        },
    );
    body.extend(t.shape.iter().flat_map(|d| d.to_le_bytes()));
    body.extend_from_slice(&t.decoded_sha256.0);
    match &t.encoding {
        Encoding::Raw | Encoding::Coded { .. } => {}
        Encoding::Planes { level_ids, .. } => {
            body.extend(level_ids.iter().flat_map(|id| id.to_le_bytes()));
            body.extend_from_slice(&[0; 4]);
        }
        Encoding::Alias { target } => body.extend_from_slice(target.as_bytes()),
    }
    Ok(body)
}
