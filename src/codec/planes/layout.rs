//! Sizes and order of what a `planes` tensor stores (spec/codec.md, "Rows", "Planes").

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::{MAX_PLANES, MIN_PLANES, PLANE_COUNTS, elements, plane_index};
use crate::rule::Rule;

/// Rows, columns and group size of a `planes` tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaneLayout {
    /// Rows of the matrix view.
    pub rows: u64,
    /// Columns of the matrix view.
    pub cols: u64,
    /// Consecutive columns that share a step; 0 when whole rows do.
    pub group: u32,
}

impl PlaneLayout {
    /// The matrix view of a tensor: the first `row_dims` dimensions are rows, the others fold into
    /// columns.
    ///
    /// # Errors
    /// `Malformed` (UC-PLN-2, UC-PLN-8) when there is no such view or it is empty,
    /// `Malformed(UC-PLN-4)` for a group size other than 0, 16, 32, 64, 128 or 256.
    pub fn new(shape: &[u64], row_dims: u8, group: u32) -> Result<Self> {
        let view = shape.split_at_checked(usize::from(row_dims)).filter(|_| row_dims > 0);
        let sizes = view.and_then(|(r, c)| Some((elements(r)?, elements(c)?)));
        let Some((rows @ 1.., cols @ 1..)) = sizes else {
            return Err(Error::malformed(
                if view.is_none() { Rule::PLN_2 } else { Rule::PLN_8 },
                format!("shape {shape:?} with {row_dims} row dimensions is no matrix"),
            ));
        };
        let layout = Self { rows, cols, group };
        layout.check()?;
        Ok(layout)
    }

    /// Checks a layout that was put together by hand.
    ///
    /// # Errors
    /// As [`PlaneLayout::new`].
    pub(crate) fn check(&self) -> Result<()> {
        let Self { rows, cols, group } = *self;
        if rows == 0 || cols == 0 {
            return Err(Error::malformed(Rule::PLN_8, format!("{rows} rows of {cols} columns")));
        }
        if !matches!(group, 0 | 16 | 32 | 64 | 128 | 256) {
            return Err(Error::malformed(Rule::PLN_4, format!("group size {group}")));
        }
        Ok(())
    }

    /// Bytes of one row in one plane.
    pub fn row_bytes(&self) -> u64 {
        self.cols.div_ceil(8)
    }

    /// Groups of one row: 0 when whole rows share step 15.
    pub fn n_groups(&self) -> u64 {
        if self.group == 0 { 0 } else { self.cols.div_ceil(u64::from(self.group)) }
    }

    /// Bytes of one row in the steps part.
    pub fn steps_row_bytes(&self) -> u64 {
        self.n_groups().div_ceil(2)
    }

    /// Bytes of all parts of a tensor whose rows have `planes` planes each.
    pub fn uniform_bytes(&self, planes: u8) -> u64 {
        let row = 2 + self.steps_row_bytes() + u64::from(planes) * self.row_bytes();
        self.rows.saturating_mul(row)
    }

    /// Bytes of the counts part.
    pub fn counts_bytes(&self) -> u64 {
        self.rows.div_ceil(2)
    }
}

/// The planes of each row, and where each row is stored.
///
/// # Spec
/// UC-PLN-3, UC-PLN-5, UC-PLN-9, UC-PLN-10, UC-PLN-13.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaneCounts {
    /// Every row has the same number of planes; rows are stored in their own order.
    Uniform(u8),
    /// Planes of each row; rows are stored in stable order of falling count.
    PerRow(Vec<u8>),
}

/// Consecutive stored rows that share one plane count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRun {
    /// Native planes of these rows.
    pub native: u8,
    /// Where they are stored: positions in storage order.
    pub stored: Range<u64>,
}

impl PlaneCounts {
    /// Reads a counts part: four bits a row (count - 3), even rows in the low half.
    ///
    /// # Errors
    /// `Malformed` (UC-PLN-3, UC-PLN-10, UC-PLN-13).
    pub fn parse(part: &[u8], rows: usize) -> Result<Self> {
        let mut counts = Vec::with_capacity(rows.min(part.len() * 2));
        for r in 0..part.len() * 2 {
            let nibble = (part[r / 2] >> (4 * (r % 2))) & 15;
            if r >= rows {
                if nibble != 0 {
                    return Err(Error::malformed(
                        Rule::PLN_13,
                        "padding of the counts is not zero",
                    ));
                }
            } else if nibble > 5 {
                return Err(Error::malformed(
                    Rule::PLN_3,
                    format!("row {r} has {} planes, 3 to 8 expected", nibble + 3),
                ));
            } else {
                counts.push(nibble + 3);
            }
        }
        if counts.windows(2).all(|w| w[0] == w[1]) {
            return Err(Error::malformed(
                Rule::PLN_10,
                "all rows have one count: it belongs in the tensor record",
            ));
        }
        Ok(Self::PerRow(counts))
    }

    /// The counts part, or nothing when the counts are uniform.
    pub fn to_part(&self) -> Option<Vec<u8>> {
        let Self::PerRow(counts) = self else { return None };
        let mut part = vec![0u8; counts.len().div_ceil(2)];
        for (r, &n) in counts.iter().enumerate() {
            part[r / 2] |= (n - 3) << (4 * (r % 2));
        }
        Some(part)
    }

    /// Planes of row `r`.
    pub fn of(&self, r: usize) -> u8 {
        match self {
            Self::Uniform(n) => *n,
            Self::PerRow(counts) => counts[r],
        }
    }

    /// How many of `rows` rows have plane `p`, for p = 0..8.
    pub fn rows_with(&self, rows: u64) -> [u64; 8] {
        let mut with = [0u64; 8];
        for (p, slot) in with.iter_mut().enumerate() {
            *slot = match self {
                Self::Uniform(n) => {
                    if p < usize::from(*n) {
                        rows
                    } else {
                        0
                    }
                }
                Self::PerRow(counts) => {
                    counts.iter().filter(|&&n| usize::from(n) > p).count() as u64
                }
            };
        }
        with
    }

    /// The stored runs that hold the rows `range`, at most one for each count, and nothing for
    /// counts that don't occur. The rows of a run are the rows of `range` with its count, in order.
    pub fn runs(&self, range: Range<u64>) -> Vec<RowRun> {
        RunCursor::new(self).runs(self, range)
    }
}

/// Goes through the rows of a tensor in order and says where each range is stored, without counting
/// the rows in front of it again.
#[derive(Debug, Clone)]
pub(crate) struct RunCursor {
    /// Rows of each count, 3 to 8.
    all: [u64; PLANE_COUNTS],
    /// Rows of each count in front of `at`.
    before: [u64; PLANE_COUNTS],
    at: u64,
}

impl RunCursor {
    pub(crate) fn new(counts: &PlaneCounts) -> Self {
        let mut all = [0; PLANE_COUNTS];
        if let PlaneCounts::PerRow(counts) = counts {
            counts.iter().for_each(|&n| all[plane_index(n)] += 1);
        }
        Self { all, before: [0; PLANE_COUNTS], at: 0 }
    }

    /// As [`PlaneCounts::runs`] of the same counts.
    pub(crate) fn runs(&mut self, counts: &PlaneCounts, range: Range<u64>) -> Vec<RowRun> {
        let counts = match counts {
            PlaneCounts::Uniform(native) => {
                return Vec::from_iter(
                    (!range.is_empty()).then_some(RowRun { native: *native, stored: range }),
                );
            }
            PlaneCounts::PerRow(counts) => counts,
        };
        if range.start < self.at {
            (self.at, self.before) = (0, [0; PLANE_COUNTS]);
        }
        let mut count = |to: u64| {
            let rows = (0u64..).zip(counts).skip(usize::try_from(self.at).unwrap_or(usize::MAX));
            let mut found = [0u64; PLANE_COUNTS];
            rows.take_while(|(r, _)| *r < to).for_each(|(_, &n)| found[plane_index(n)] += 1);
            self.at = self.at.max(to);
            found
        };
        let skipped = count(range.start);
        let inside = count(range.end);
        let mut runs = Vec::new();
        let mut start = 0;
        for native in (MIN_PLANES..=MAX_PLANES).rev() {
            let i = usize::from(native) - 3;
            let from = start + self.before[i] + skipped[i];
            if inside[i] > 0 {
                runs.push(RowRun { native, stored: from..from + inside[i] });
            }
            start += self.all[i];
            self.before[i] += skipped[i] + inside[i];
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_follow_the_stable_order_by_falling_count() {
        let counts = PlaneCounts::PerRow(vec![5, 3, 8, 5, 3, 8]);
        // Storage order: rows 2, 5 (8 planes), 0, 3 (5), 1, 4 (3).
        let run = |native, stored| RowRun { native, stored };
        assert_eq!(counts.runs(0..6), [run(8, 0..2), run(5, 2..4), run(3, 4..6)]);
        assert_eq!(counts.runs(3..5), [run(5, 3..4), run(3, 5..6)]);
        assert_eq!(counts.rows_with(6), [6, 6, 6, 4, 4, 2, 2, 2]);
        let mut cursor = RunCursor::new(&counts);
        for range in [0..2, 2..3, 4..6, 1..4, 3..3, 0..6, 5..6] {
            assert_eq!(cursor.runs(&counts, range.clone()), counts.runs(range));
        }
        let part = counts.to_part().expect("not uniform");
        assert_eq!(PlaneCounts::parse(&part, 6).expect("valid"), counts);
    }
}
