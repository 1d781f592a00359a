//! Level tables for fewer planes than rows have, fitted to what the rows hold (UC-VAL-5).

use std::collections::BTreeMap;

use crate::codec::exact::Block;
use crate::codec::{TableSet, read_f32};
use crate::container::{BlockRows, ExactBase};
use crate::edit::{SAMPLE_WEIGHTS, SourceRows, shape_of};
use crate::error::{Error, Result};
use crate::format::{Dtype, Encoding};
use crate::kernels::Kernel;
use crate::manifest::Pack;
use crate::progress::{Progress, step};
use crate::source::Source;
use crate::storage::ReadAt;

/// Part of the error that a fitted table must save.
const GAIN: f64 = 0.01;

/// Sums over the weights of each code, in units of scale times step; each weight counts by the
/// square of that.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    n: f64,
    value: f64,
    square: f64,
}

/// What the rows of one table set hold.
#[derive(Debug, Clone)]
struct OfSet {
    sums: Vec<Sums>,
}

/// Gathers what tables are fitted to. Sums are of binary64 and made one after the other, so they
/// are the same on every machine.
#[derive(Debug, Default)]
pub(crate) struct Ladder(BTreeMap<TableSet, OfSet>);

impl Ladder {
    /// Adds the weights of a block.
    ///
    /// # Errors
    /// As for reading.
    pub(crate) fn add<R: ReadAt>(
        &mut self,
        set: &TableSet,
        dtype: Dtype,
        base: &mut ExactBase<'_, R>,
        rows: &SourceRows<'_>,
        block: &Block,
    ) -> Result<()> {
        let (_, cols) = shape_of(block)?;
        let mut values = vec![];
        read_f32(&rows.read(block)?, dtype, &mut values);
        let sums = &mut self
            .0
            .entry(set.clone())
            .or_insert_with(|| OfSet { sums: vec![Sums::default(); 1 << set.0] })
            .sums;
        let Some(BlockRows { codes, group, factors }) = base.load(block)? else { return Ok(()) };
        let groups = cols.div_ceil(*group);
        for (i, (code, value)) in codes.iter().zip(&values).enumerate() {
            let factor = f64::from(factors[i / cols * groups + i % cols / group]);
            let value = f64::from(*value);
            let slot = &mut sums[usize::from(*code)];
            slot.n += factor * factor;
            slot.value += factor * value;
            slot.square += value * value;
        }
        Ok(())
    }

    /// For each set of tables another, where that makes one of `rungs` better. The table for all
    /// planes stays as it is.
    pub(crate) fn fit(self, rungs: &[u8]) -> BTreeMap<TableSet, Vec<i8>> {
        let mut refitted = BTreeMap::new();
        for ((native, old), OfSet { sums }) in self.0 {
            let mut new = old.clone();
            for read in (3..native).filter(|r| rungs.contains(r)) {
                let start = (2usize << native) - (2usize << read);
                let table = &mut new[start..start + (1 << read)];
                let joined: Vec<Sums> = sums.chunks(1 << (native - read)).map(join).collect();
                let fitted = levels(&joined, table);
                if error(&joined, &fitted) < (1.0 - GAIN) * error(&joined, table) {
                    table.copy_from_slice(&fitted);
                }
            }
            if new != old {
                refitted.insert((native, old), new);
            }
        }
        refitted
    }
}

fn join(sums: &[Sums]) -> Sums {
    let mut all = Sums::default();
    for s in sums {
        (all.n, all.value, all.square) = (all.n + s.n, all.value + s.value, all.square + s.square);
    }
    all
}

/// The squared error of a table.
fn error(sums: &[Sums], table: &[i8]) -> f64 {
    let of = |(s, level): (&Sums, &i8)| {
        let level = f64::from(*level);
        s.square - 2.0 * level * s.value + level * level * s.n
    };
    sums.iter().zip(table).map(of).sum()
}

/// The mean of each code's weights, as levels that increase strictly; those of `old` where there
/// are no weights.
fn levels(sums: &[Sums], old: &[i8]) -> Vec<i8> {
    #[allow(clippy::cast_possible_truncation, reason = "rounded and in range")]
    let mean = |(s, old): (&Sums, &i8)| match s.value / s.n {
        mean if mean.is_finite() => mean.round().clamp(-128.0, 127.0) as i8,
        _ => *old,
    };
    let mut table: Vec<i8> = sums.iter().zip(old).map(mean).collect();
    // Means that are crowded at an end make room.
    for i in 1..table.len() {
        table[i] = table[i].max(table[i - 1].saturating_add(1));
    }
    for i in (1..table.len()).rev() {
        table[i - 1] = table[i - 1].min(table[i].saturating_sub(1));
    }
    table
}

/// Tables for `rungs` that fit the tensors of a pack better than those they have, fitted to some of
/// the blocks of each.
///
/// # Errors
/// As for decoding; `Cancelled`.
pub(crate) fn fit<R: ReadAt>(
    pack: &Pack<R>,
    source: &Source,
    rungs: &[u8],
    progress: &dyn Progress,
) -> Result<BTreeMap<TableSet, Vec<i8>>> {
    let kernel = Kernel::selected()?;
    let planes =
        || pack.tensors().filter(|v| matches!(v.entry().encoding, Encoding::Planes { .. }));
    let mut totals: BTreeMap<TableSet, u64> = BTreeMap::new();
    for view in planes() {
        let base = ExactBase::new(view, None, kernel)?;
        for (native, rows) in base.layout.runs() {
            let weights = (rows.end - rows.start).saturating_mul(base.layout.cols());
            let total = totals.entry((*native, base.all_levels(*native).to_vec())).or_default();
            *total = total.saturating_add(weights);
        }
    }
    let mut ladder = Ladder::default();
    let mut seen: BTreeMap<TableSet, u64> = BTreeMap::new();
    for view in planes() {
        let in_tensor = |e: Error| e.in_tensor(view.name());
        let mut base = ExactBase::new(view, None, kernel).map_err(in_tensor)?;
        let rows = SourceRows::new(source, view.name(), base.layout.cols(), &base.counts())?;
        for (native, run) in base.layout.runs().to_vec() {
            let set = (native, base.all_levels(native).to_vec());
            let stride = totals[&set].div_ceil(SAMPLE_WEIGHTS).max(1);
            let seen = seen.entry(set.clone()).or_default();
            for block in base.layout.blocks(run)? {
                *seen += 1;
                if (*seen - 1).is_multiple_of(stride) {
                    step(progress, 0)?;
                    ladder.add(&set, view.dtype(), &mut base, &rows, &block).map_err(in_tensor)?;
                }
            }
        }
    }
    Ok(ladder.fit(rungs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_means_and_increase() {
        let of = |mean: f64| Sums { n: 2.0, value: 2.0 * mean, square: 2.0 * mean * mean };
        let sums = [-120.0, -60.2, -60.1, 0.4, 0.3, 90.6, 200.0, 210.0].map(of);
        let old = [-100, -70, -40, -10, 10, 40, 70, 100];
        assert_eq!(levels(&sums, &old), [-120, -60, -59, 0, 1, 91, 126, 127]);
        let none = [Sums::default(); 8];
        assert_eq!(levels(&none, &old), old);
    }

    #[test]
    fn tables_change_only_where_it_pays() {
        let native = 4u8;
        let old: Vec<i8> = crate::codec::LevelSet::default_for(native).table(4).to_vec();
        let set: Vec<i8> = old
            .iter()
            .chain(crate::codec::LevelSet::default_for(native).table(3))
            .copied()
            .collect();
        let ladder = |mean: &dyn Fn(usize) -> f64| {
            let of = |i: usize| Sums { n: 1.0, value: mean(i), square: mean(i) * mean(i) + 9.0 };
            let sums = (0..16).map(of).collect();
            Ladder(BTreeMap::from([((native, set.clone()), OfSet { sums })]))
        };
        let at_levels = |i: usize| f64::from(old[i]);
        assert!(ladder(&|i| f64::from(set[16 + i / 2])).fit(&[3]).is_empty());
        assert!(ladder(&at_levels).fit(&[5]).is_empty(), "no such rung");
        let shifted = ladder(&|i| at_levels(i) + 20.0).fit(&[3]);
        let new = &shifted[&(native, set.clone())];
        assert_eq!(new[..16], old[..]);
        assert!(new[16..] != set[16..]);
    }
}
