//! The index record of an overlay (spec/overlay.md): what it is for, and where the factors of each
//! tensor lie.

use std::io::Cursor;

use binrw::{BinRead, BinWrite};

use super::fields::put;
use super::{ALIGN_BYTES, Digest, Part, PartKind, Storage, align_up, check_name};
use crate::error::{Error, Result};
use crate::rule::Rule;

/// Highest rank: sums of so many products of two int8 are exact in binary32 (UC-OVL-6).
pub const MAX_OVERLAY_RANK: u32 = 1024;
/// Most bytes of what an overlay says of itself.
pub(crate) const MAX_INFO_BYTES: usize = 1 << 20;

/// How the factors of a block are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FactorType {
    /// int8, with a bfloat16 scale for each row of A and each column of B.
    Int8,
    /// binary16, with one binary32 factor: imported adapters.
    F16,
}

impl FactorType {
    /// The name used in JSON: `int8` or `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::F16 => "f16",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Int8 => 1,
            Self::F16 => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Int8, Self::F16].into_iter().find(|f| f.code() == code)
    }
}

/// What an overlay does to one tensor: `A` [rows, rank] times `B` [rank, cols] is added to it.
#[derive(Debug, Clone, PartialEq)]
pub struct OverlayBlock {
    /// The tensor's name.
    pub tensor: String,
    /// How the factors are stored.
    pub factors: FactorType,
    /// Columns of A and rows of B.
    pub rank: u32,
    /// Rows of A: a product of the tensor's first dimensions.
    pub rows: u64,
    /// Columns of B: the product of the others.
    pub cols: u64,
    /// What products are multiplied by; binary16 factors only.
    pub scaling: f32,
    /// SHA-256 of the tensor's little-endian bytes at its own type with this overlay and those
    /// before it.
    pub effective_sha256: Digest,
    /// Where its factors start in the overlay's part.
    pub(crate) start: u64,
}

impl OverlayBlock {
    /// A block of zeros, for fuzzing; nothing when its size overflows.
    #[doc(hidden)]
    pub fn for_tests(factors: FactorType, rank: u32, rows: u64, cols: u64) -> Option<Self> {
        let block = Self {
            tensor: "x".into(),
            factors,
            rank,
            rows,
            cols,
            scaling: 0.0,
            effective_sha256: Digest([0; 32]),
            start: 0,
        };
        block.checked_bytes().map(|_| block)
    }

    /// Bytes of its factors and scales.
    ///
    /// # Panics
    /// For a block whose size overflows, which is never parsed.
    pub fn bytes(&self) -> u64 {
        self.checked_bytes().expect("checked when it was parsed")
    }

    /// Bytes of its factors, scales and padding in the part.
    pub(crate) fn padded_bytes(&self) -> Option<u64> {
        align_up(self.checked_bytes()?, ALIGN_BYTES)
    }

    fn checked_bytes(&self) -> Option<u64> {
        let sides = self.rows.checked_add(self.cols)?;
        let (scales, factor) = match self.factors {
            FactorType::Int8 => (2, 1),
            FactorType::F16 => (0, 2),
        };
        sides.checked_mul(u64::from(self.rank) * factor + scales)
    }
}

/// The index record of an overlay.
#[derive(Debug, Clone, PartialEq)]
pub struct OverlayEntry {
    /// Its name.
    pub name: String,
    /// Decoded root of the pack that it was made for.
    pub base_root: Digest,
    /// Decoded root with this overlay and those before it.
    pub effective_root: Digest,
    /// Its place among the overlays of the file: 1 is applied first.
    pub order: u16,
    /// The tensors it changes, by name.
    pub blocks: Vec<OverlayBlock>,
    /// How it was made: an object of canonical JSON.
    pub info: Vec<u8>,
    /// Its one part, which holds the factors.
    pub parts: Vec<Part>,
}

#[derive(Debug, BinRead, BinWrite)]
#[brw(little)]
struct OverlayHeader {
    base_root: [u8; 32],
    effective_root: [u8; 32],
    order: u16,
    reserved: u16,
    n_blocks: u32,
    info_len: u32,
    reserved2: u32,
}

const HEADER_BYTES: usize = 80;

#[derive(Debug, BinRead, BinWrite)]
#[brw(little)]
struct BlockHeader {
    name_len: u16,
    factors: u8,
    reserved: u8,
    rank: u32,
    rows: u64,
    cols: u64,
    scaling: u32,
    reserved2: u32,
    effective_sha256: [u8; 32],
}

const BLOCK_HEADER_BYTES: usize = 64;

/// Takes `n` bytes and the zeros up to the next multiple of 8.
fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let cut = || Error::malformed(Rule::OVL_1, "the overlay's body is cut off");
    let (field, tail) = rest.split_at_checked(n).ok_or_else(cut)?;
    let padding = n.next_multiple_of(8) - n;
    let (zeros, tail) = tail.split_at_checked(padding).ok_or_else(cut)?;
    if zeros.iter().any(|&b| b != 0) {
        return Err(Error::malformed(Rule::OVL_1, "padding in the overlay's body is not zero"));
    }
    *rest = tail;
    Ok(field)
}

pub(super) fn parse_overlay(body: &[u8], parts: Vec<Part>, name: &str) -> Result<OverlayEntry> {
    let fail = |rule, text: String| Err(Error::malformed(rule, text));
    let mut rest = body;
    let fixed = take(&mut rest, HEADER_BYTES)?;
    let h = OverlayHeader::read(&mut Cursor::new(fixed)).expect("80 bytes hold the header");
    if (h.reserved, h.reserved2) != (0, 0) || h.n_blocks == 0 {
        return fail(Rule::OVL_1, format!("{} blocks, or reserved bytes", h.n_blocks));
    }
    let mut blocks: Vec<OverlayBlock> = vec![];
    let mut start = 0u64;
    for _ in 0..h.n_blocks {
        let fixed = take(&mut rest, BLOCK_HEADER_BYTES)?;
        let b = BlockHeader::read(&mut Cursor::new(fixed)).expect("64 bytes hold the header");
        let tensor = std::str::from_utf8(take(&mut rest, usize::from(b.name_len))?)
            .map_err(|e| Error::malformed(Rule::NAM_1, "name is not UTF-8").with_source(e))?;
        check_name(tensor)?;
        let block = parse_block(&b, tensor, start).map_err(|e| e.in_part(tensor))?;
        let end = block.padded_bytes().and_then(|n| start.checked_add(n));
        start = end.ok_or_else(|| Error::malformed(Rule::OVL_13, "factors are too large"))?;
        if blocks.last().is_some_and(|last| last.tensor.as_str() >= tensor) {
            return fail(Rule::OVL_11, "blocks are not sorted by tensor, each once".into());
        }
        blocks.push(block);
    }
    let info_len = h.info_len as usize;
    if info_len > MAX_INFO_BYTES {
        return fail(Rule::OVL_1, format!("info has {info_len} bytes"));
    }
    let info = take(&mut rest, info_len)?;
    if !rest.is_empty() {
        return fail(Rule::OVL_1, format!("{} bytes are left over", rest.len()));
    }
    let whole = matches!(&parts[..], [part] if part.kind == PartKind::Data && part.len == start);
    if !whole {
        return fail(Rule::OVL_13, format!("the factors take {start} bytes, the parts are others"));
    }
    if parts[0].storage != Storage::Plain {
        let e = Error::malformed(Rule::PRT_27, "factors can't be stored as zstd");
        return Err(e.in_part(parts[0].kind.name()).at(parts[0].offset));
    }
    Ok(OverlayEntry {
        name: name.to_owned(),
        base_root: Digest(h.base_root),
        effective_root: Digest(h.effective_root),
        order: h.order,
        blocks,
        info: info.to_vec(),
        parts,
    })
}

fn parse_block(b: &BlockHeader, tensor: &str, start: u64) -> Result<OverlayBlock> {
    let fail = |rule, text: String| Err(Error::malformed(rule, text));
    let Some(factors) = FactorType::from_code(b.factors) else {
        return fail(Rule::OVL_2, format!("factors of type {}", b.factors));
    };
    if (b.reserved, b.reserved2) != (0, 0) {
        return fail(Rule::OVL_2, "reserved bytes are not zero".into());
    }
    if !(1..=MAX_OVERLAY_RANK).contains(&b.rank) || b.rows == 0 || b.cols == 0 {
        return fail(Rule::OVL_2, format!("{} x {} of rank {}", b.rows, b.cols, b.rank));
    }
    let scaling = f32::from_bits(b.scaling);
    let right = match factors {
        FactorType::Int8 => b.scaling == 0,
        FactorType::F16 => {
            scaling.is_normal() && (2f32.powi(-64)..=2f32.powi(64)).contains(&scaling.abs())
        }
    };
    if !right {
        return fail(Rule::OVL_12, format!("scaling {scaling} of {} factors", factors.name()));
    }
    Ok(OverlayBlock {
        tensor: tensor.to_owned(),
        factors,
        rank: b.rank,
        rows: b.rows,
        cols: b.cols,
        scaling,
        effective_sha256: Digest(b.effective_sha256),
        start,
    })
}

impl OverlayEntry {
    /// Lays the blocks out in the part, one behind the other; gives the part's length.
    ///
    /// # Errors
    /// `Malformed(UC-OVL-13)` when they are too large.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn lay_out(&mut self) -> Result<u64> {
        let mut end = 0u64;
        for block in &mut self.blocks {
            block.start = end;
            let next = block.padded_bytes().and_then(|n| end.checked_add(n));
            end = next.ok_or_else(|| Error::malformed(Rule::OVL_13, "factors are too large"))?;
        }
        Ok(end)
    }

    /// The block for the tensor called `name`.
    pub fn block(&self, tensor: &str) -> Option<&OverlayBlock> {
        let at = self.blocks.binary_search_by(|b| b.tensor.as_str().cmp(tensor)).ok()?;
        self.blocks.get(at)
    }

    pub(super) fn body(&self) -> Result<Vec<u8>> {
        let too_long = |_| Error::malformed(Rule::OVL_1, "the overlay's body is too long");
        let mut out = Cursor::new(Vec::new());
        let header = OverlayHeader {
            base_root: self.base_root.0,
            effective_root: self.effective_root.0,
            order: self.order,
            reserved: 0,
            n_blocks: u32::try_from(self.blocks.len()).map_err(too_long)?,
            info_len: u32::try_from(self.info.len()).map_err(too_long)?,
            reserved2: 0,
        };
        header.write(&mut out).expect("memory");
        let mut body = out.into_inner();
        for b in &self.blocks {
            let header = BlockHeader {
                name_len: u16::try_from(b.tensor.len()).map_err(too_long)?,
                factors: b.factors.code(),
                reserved: 0,
                rank: b.rank,
                rows: b.rows,
                cols: b.cols,
                scaling: b.scaling.to_bits(),
                reserved2: 0,
                effective_sha256: b.effective_sha256.0,
            };
            let mut out = Cursor::new(Vec::new());
            header.write(&mut out).expect("memory");
            body.extend(out.into_inner());
            put(&mut body, b.tensor.as_bytes());
        }
        put(&mut body, &self.info);
        Ok(body)
    }
}
