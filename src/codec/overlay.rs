//! Factors of overlays, and values with overlays (spec/overlay.md).

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::format::{Dtype, FactorType, OverlayBlock};
use crate::kernels::{Int8Factors, Kernel, WideFactors, bf16_bits, f16_bits};
use crate::memory::to_usize;
use crate::rule::Rule;

/// The factors of one overlay for one tensor, checked.
#[derive(Debug, Clone)]
pub struct Factors {
    rows: usize,
    cols: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Int8(Int8Factors),
    F16(WideFactors),
}

/// Exponents of scales: products of two with the largest sum are far from overflow, and none are
/// subnormal (UC-OVL-5).
pub(crate) const SCALE_EXPONENTS: std::ops::RangeInclusive<i32> = -60..=40;

/// Whether a scale may have these bits: positive, and within 2^-60 to 2^40.
fn check_scale(bits: u16, what: &str, i: usize) -> Result<f32> {
    let scale = bf16::from_bits(bits).to_f32();
    let least = 2f32.powi(*SCALE_EXPONENTS.start());
    let most = 2f32.powi(*SCALE_EXPONENTS.end());
    if (least..=most).contains(&scale) {
        return Ok(scale);
    }
    let text = format!("scale of {what} {i} is {scale:e}, 2^-60 to 2^40 expected");
    Err(Error::malformed(Rule::OVL_5, text))
}

fn scales(bytes: &[u8], what: &str) -> Result<Vec<f32>> {
    let words = bytes.as_chunks::<2>().0.iter().enumerate();
    words.map(|(i, b)| check_scale(u16::from_le_bytes(*b), what, i)).collect()
}

fn wide(bytes: &[u8], what: &str) -> Result<Vec<f32>> {
    let words = bytes.as_chunks::<2>().0.iter().enumerate();
    let of = |(i, b): (usize, &[u8; 2])| match f16::from_le_bytes(*b) {
        v if v.is_finite() => Ok(v.to_f32()),
        v => Err(Error::malformed(Rule::OVL_18, format!("factor {i} of {what} is {v}"))),
    };
    words.map(of).collect()
}

impl Factors {
    /// Reads the stored bytes of a block: its factors, scales and padding.
    ///
    /// # Errors
    /// `Malformed` (UC-OVL-13, UC-OVL-5, UC-OVL-18).
    pub fn parse(block: &OverlayBlock, bytes: &[u8]) -> Result<Self> {
        let (rows, cols) = (to_usize(block.rows)?, to_usize(block.cols)?);
        let rank = block.rank as usize;
        let len = to_usize(block.bytes())?;
        let Some((bytes, padding)) = bytes.split_at_checked(len) else {
            return Err(Error::malformed(Rule::OVL_13, "factors are cut off"));
        };
        if padding.iter().any(|&b| b != 0) {
            return Err(Error::malformed(Rule::OVL_13, "padding behind factors is not zero"));
        }
        let kind = match block.factors {
            FactorType::Int8 => {
                let (row_scales, rest) = bytes.split_at(2 * rows);
                let (column_scales, rest) = rest.split_at(2 * cols);
                let (a, b) = rest.split_at(rows * rank);
                let row_scales = scales(row_scales, "row")?;
                let column_scales = scales(column_scales, "column")?;
                Kind::Int8(Int8Factors::new(a, b, row_scales, column_scales))
            }
            FactorType::F16 => {
                let (a, b) = bytes.split_at(2 * rows * rank);
                let (a, b) = (wide(a, "A")?, wide(b, "B")?);
                Kind::F16(WideFactors { a, b, rank, cols, scaling: block.scaling })
            }
        };
        Ok(Self { rows, cols, kind })
    }

    /// Rows of A.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of B.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// A `[rows, rank]` and B `[rank, cols]` as binary32 numbers whose product is what is added,
    /// but for rounding. The rank may be one more than the block's, with zeros.
    pub fn to_f32(&self) -> (usize, Vec<f32>, Vec<f32>) {
        match &self.kind {
            Kind::Int8(f) => {
                let (a, b) = f.to_f32();
                (f.even_rank(), a, b)
            }
            Kind::F16(f) => (f.rank, f.a.iter().map(|v| v * f.scaling).collect(), f.b.clone()),
        }
    }

    /// Adds the product to consecutive values of the tensor, of which the first is element `first`.
    ///
    /// # Errors
    /// `InvalidArgument` when they reach beyond the tensor.
    ///
    /// # Spec
    /// UC-OVL-6 to UC-OVL-8, UC-OVL-23 to UC-OVL-25.
    pub fn add(&self, kernel: Kernel, first: u64, values: &mut [f32]) -> Result<()> {
        let mut at = to_usize(first)?;
        if at.checked_add(values.len()).is_none_or(|end| end > self.rows * self.cols) {
            return Err(Error::argument("values beyond the tensor"));
        }
        let mut rest = values;
        while !rest.is_empty() {
            let (row, col) = (at / self.cols, at % self.cols);
            // Whole rows at once, or a piece of one.
            let n = match rest.len() / self.cols {
                whole @ 1.. if col == 0 => whole * self.cols,
                _ => rest.len().min(self.cols - col),
            };
            let (now, later) = rest.split_at_mut(n);
            let width = n.min(self.cols);
            match &self.kind {
                Kind::Int8(f) => f.add(kernel, row, col, width, now),
                Kind::F16(f) => f.add(row, col, width, now),
            }
            at += n;
            rest = later;
        }
        Ok(())
    }
}

/// Appends values, which are no NaN, as little-endian elements of a float type (UC-VAL-4).
///
/// # Errors
/// `InvalidArgument` for another type.
pub(crate) fn round_to(values: &[f32], target: Dtype, out: &mut Vec<u8>) -> Result<()> {
    match target {
        Dtype::Bf16 => out.extend(values.iter().flat_map(|&v| bf16_bits(v).to_le_bytes())),
        Dtype::F16 => out.extend(values.iter().flat_map(|&v| f16_bits(v).to_le_bytes())),
        Dtype::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Dtype::F64 => out.extend(values.iter().flat_map(|&v| f64::from(v).to_le_bytes())),
        other => return Err(Error::argument(format!("can't decode to {other}"))),
    }
    Ok(())
}
