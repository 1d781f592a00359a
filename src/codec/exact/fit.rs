//! Making models: counts of distances by context, contexts of like counts joined to tables.
//!
//! Results reach the file, so all arithmetic is in integers: logarithms are of fixed point.

use std::collections::BTreeMap;

use super::block::{reference, tail_bytes};
use super::encode::{distance, symbol};
use super::model::{ExactModel, ExactTable, NO_BASE, top_of};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::kernels::{ContextBits, ContextOf, Contexts, Hint, LOW, Top, anchored};

/// Tables of a model with a base; more don't pay, and fewer stay in cache.
const MAX_TABLES: usize = 32;
/// Weights that a table must serve on average.
const WEIGHTS_A_TABLE: u64 = 1 << 14;
/// Frequencies sum to two to the power of this.
const PRECISION: u8 = 8;
/// The same without a base, where all rows share few tables.
const PRECISION_NO_BASE: u8 = 11;
/// Symbols have about this many bits; below them bits are stored as they are.
const SYMBOL_BITS: u64 = 21 << FRACTION >> 2;
/// Bits behind the point of a logarithm.
const FRACTION: u32 = 16;
/// Rounds of joining contexts anew.
const ROUNDS: usize = 8;

/// log2 of `x`, which is not zero, with [`FRACTION`] bits behind the point, rounded down.
fn log2(x: u64) -> u64 {
    let whole = x.ilog2();
    // The mantissa in [1, 2), with 31 bits behind the point.
    let mut m = if whole > 31 { x >> (whole - 31) } else { x << (31 - whole) };
    let mut log = u64::from(whole);
    for _ in 0..FRACTION {
        m = (m * m) >> 31;
        log <<= 1;
        if m >> 32 != 0 {
            m >>= 1;
            log |= 1;
        }
    }
    log
}

/// Counts of distances, by context.
#[derive(Debug)]
pub(crate) struct Counts {
    dtype: Dtype,
    native: u8,
    bits: ContextBits,
    classes: Vec<u8>,
    contexts: Contexts,
    /// Context and distance in one number, with its count.
    counts: BTreeMap<u32, u64>,
    fresh: Vec<u32>,
}

/// Numbers that are held before they are counted.
const FRESH: usize = 1 << 20;

/// The class of each code: small magnitudes by themselves, larger ones eight to an octave.
fn classes(levels: &[i8]) -> Vec<u8> {
    let mut magnitudes: Vec<u8> = levels.iter().map(|l| l.unsigned_abs()).collect();
    magnitudes.sort_unstable();
    magnitudes.dedup();
    let octaves = |m: u8| match m {
        0..16 => m,
        _ => {
            let octave = m.ilog2();
            let eighth = ((u32::from(m) * 8) >> octave) & 7;
            u8::try_from(16 + (octave - 4) * 8 + eighth).expect("at most 48")
        }
    };
    let few = magnitudes.len() <= 32;
    let class = |l: &i8| match magnitudes.binary_search(&l.unsigned_abs()) {
        Ok(rank) if few => u8::try_from(rank).expect("at most 32"),
        _ => octaves(l.unsigned_abs()),
    };
    let sparse: Vec<u8> = levels.iter().map(class).collect();
    // No class without codes.
    let mut used = sparse.clone();
    used.sort_unstable();
    used.dedup();
    let dense = |c: &u8| u8::try_from(used.partition_point(|u| u < c)).expect("at most 48");
    sparse.iter().map(dense).collect()
}

impl Counts {
    /// No counts yet, for tensors with these levels or, with none, without a base.
    ///
    /// # Errors
    /// `InvalidArgument` for a type that isn't coded.
    pub(crate) fn new(dtype: Dtype, levels: Option<&[i8]>) -> Result<Self> {
        let top = top_of(dtype);
        let top = top.ok_or_else(|| Error::argument(format!("{dtype} is not coded")))?;
        let (native, classes, bits) = match levels {
            None => {
                let bits = ContextBits { of: ContextOf::Value, mantissa: 2, fraction: 0 };
                (NO_BASE, vec![0], bits)
            }
            Some(levels) => {
                let native = u8::try_from(levels.len().ilog2()).expect("at most 8");
                // Contexts of the factor are faster; those of the value are better where a cell
                // holds few values, and their places within it matter.
                let of = if native > 5 { ContextOf::Value } else { ContextOf::Factor };
                let fraction = u32::from(native > 6 && top == Top::Half32);
                (native, classes(levels), ContextBits { of, mantissa: 5 - fraction, fraction })
            }
        };
        let anchors = levels.map_or(vec![0.0], super::model::anchors);
        let n = classes.iter().max().map_or(0, |&c| usize::from(c) + 1) * bits.each();
        // Each context says its own number, and nothing is added to the magnitude.
        let hints = (0..).take(n).map(|i: u32| i << 16).collect();
        let contexts = Contexts::new(&anchors, &classes, hints, top, bits);
        let (counts, fresh) = (BTreeMap::new(), vec![]);
        Ok(Self { dtype, native, bits, classes, contexts, counts, fresh })
    }

    /// The type that is counted.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What the hints of this tensor are made from: bits 16 up are the context.
    pub(crate) fn contexts(&self) -> &Contexts {
        &self.contexts
    }

    /// Counts one weight.
    pub(crate) fn add(&mut self, hint: Hint, top: u16) {
        let mut distance = distance(hint, top);
        // No window reaches so far, so it doesn't matter how far it is.
        if (0x2000..0x4000).contains(&(distance & 0x7fff)) {
            distance = 0x3000;
        }
        self.fresh.push((hint >> 16 << 16) | distance);
        if self.fresh.len() >= FRESH {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.fresh.sort_unstable();
        for run in self.fresh.chunk_by(|a, b| a == b) {
            *self.counts.entry(run[0]).or_default() += run.len() as u64;
        }
        self.fresh.clear();
    }

    /// The model that codes what was counted; nothing when nothing was.
    ///
    /// # Errors
    /// `Malformed` when a reader would refuse it.
    pub(crate) fn fit(mut self) -> Result<Option<ExactModel>> {
        self.settle();
        let total: u64 = self.counts.values().sum();
        if total == 0 {
            return Ok(None);
        }
        let entries: Vec<(u32, u64)> = std::mem::take(&mut self.counts).into_iter().collect();
        let with_base = self.native != NO_BASE;
        let precision = if with_base {
            PRECISION
        } else {
            let shift = u8::try_from(no_base_shift(self.dtype)).expect("at most 15");
            PRECISION_NO_BASE.min(16 - shift)
        };
        let most = usize::try_from(total / WEIGHTS_A_TABLE).unwrap_or(usize::MAX);
        let n = self.classes.iter().max().map_or(0, |&c| usize::from(c) + 1) * self.bits.each();
        let mut all: Vec<Option<Context>> = vec![None; n];
        for of_one in entries.chunk_by(|a, b| a.0 >> 16 == b.0 >> 16) {
            let window = if with_base {
                Window::of(of_one, precision)
            } else {
                let shift = no_base_shift(self.dtype);
                Window { shift, offset: -(96 << shift) }
            };
            all[(of_one[0].0 >> 16) as usize] = Some(Context::new(of_one, window));
        }
        let seen: Vec<&Context> = all.iter().flatten().collect();
        let joined = join(&seen, most.clamp(1, MAX_TABLES));
        let mut tables = vec![];
        // Numbers of the tables that contexts have.
        let mut numbers = vec![];
        for (i, table) in joined.tables.iter().enumerate() {
            numbers.push(u8::try_from(tables.len()).expect("few tables"));
            if joined.own.contains(&i) {
                let shift = u8::try_from(table.window.shift).expect("below 16");
                let offset = i16::try_from(table.window.offset).expect("15 bits");
                let frequencies = frequencies(&table.counts, precision);
                tables.push(ExactTable { shift, offset, frequencies });
            }
        }
        let mut assigned = joined.own.iter();
        // A context that wasn't seen has the table of the one before it, the likest there is.
        let mut last = None;
        let mut contexts: Vec<Option<u8>> = vec![];
        for context in &all {
            if context.is_some() {
                last = assigned.next().map(|&t| numbers[t]);
            }
            contexts.push(last);
        }
        let first = contexts.iter().flatten().next().copied().unwrap_or(0);
        let model = ExactModel {
            dtype: self.dtype,
            native: self.native,
            precision,
            of_value: self.bits.of == ContextOf::Value,
            mantissa_bits: u8::try_from(self.bits.mantissa).expect("at most 7"),
            fraction_bits: u8::try_from(self.bits.fraction).expect("at most 7"),
            classes: self.classes,
            contexts: contexts.into_iter().map(|c| c.unwrap_or(first)).collect(),
            tables,
        };
        model.check()?;
        Ok(Some(model))
    }
}

/// The hint by which weights of a row with this reference are counted.
pub(crate) fn reference_hint(dtype: Dtype, byte: u8) -> Hint {
    let top = top_of(dtype).unwrap_or(Top::Half32);
    anchored(u32::from(byte & 3) << 16, reference(top, byte))
}

/// The reference of a row: what makes its magnitudes spread around it as those of other rows around
/// theirs. It is the quarter of an octave where the mean of their exponents lies, with the mantissa
/// as a fraction.
pub(crate) fn best_reference(dtype: Dtype, row: &[u8]) -> u8 {
    let top = top_of(dtype).unwrap_or(Top::Half32);
    let size = tail_bytes(dtype) + 2;
    let (mut sum, mut n) = (0u64, 0u64);
    for element in row.chunks_exact(size) {
        let magnitude = u16::from_le_bytes([element[size - 2], element[size - 1]]) & 0x7fff;
        // Zeros say nothing about the others.
        if magnitude != 0 {
            (sum, n) = (sum + u64::from(magnitude), n + 1);
        }
    }
    let mean = u32::try_from(sum / n.max(1)).unwrap_or(0);
    let byte = |b: u8| reference(top, b);
    (0..=255).rev().find(|&b| byte(b) <= mean).unwrap_or(0)
}

/// Bits below the symbols without a base: eight symbols are an octave.
fn no_base_shift(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 => 7,
        Dtype::F64 => 1,
        _ => 4,
    }
}

/// Which distances a table has symbols for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    shift: u32,
    offset: i32,
}

impl Window {
    /// For the distances of one context.
    fn of(entries: &[(u32, u64)], precision: u8) -> Self {
        let total: u64 = entries.iter().map(|(_, n)| n).sum();
        let bits: u64 = entries.iter().map(|(_, n)| n * (log2(total) - log2(*n))).sum();
        let over = (bits / total).saturating_sub(SYMBOL_BITS);
        let most = LOW.ilog2() - u32::from(precision);
        let shift = u32::try_from(over.div_ceil(1 << FRACTION)).map_or(most, |s| s.min(most));
        // Magnitudes below the expected one, whatever the sign.
        let is_below = |key: u32| key & 0x7fff >= 1 << 14;
        let below: u64 = entries.iter().filter(|(k, _)| is_below(*k)).map(|(_, n)| n).sum();
        let offset = match shift {
            _ if below * 512 < total => 0,
            3.. => -(112 << shift),
            _ => -(64 << shift),
        };
        Self { shift, offset }
    }

    /// The symbol of a distance.
    fn symbol(self, distance: u32) -> Option<u8> {
        symbol(distance.wrapping_sub(self.offset.cast_unsigned()) & 0xffff, self.shift)
    }
}

/// One context: counts of its symbols.
#[derive(Debug, Clone)]
struct Context {
    window: Window,
    counts: Vec<(u8, u64)>,
    total: u64,
}

impl Context {
    fn new(entries: &[(u32, u64)], window: Window) -> Self {
        let mut by_symbol: BTreeMap<u8, u64> = BTreeMap::new();
        for (key, n) in entries {
            if let Some(symbol) = window.symbol(*key) {
                *by_symbol.entry(symbol).or_default() += n;
            }
        }
        let total = by_symbol.values().sum();
        Self { window, counts: by_symbol.into_iter().collect(), total }
    }

    /// Bits of its symbols by a table, in fixed point.
    fn cost(&self, costs: &[u64; 256]) -> u64 {
        self.counts.iter().map(|(s, n)| n * costs[usize::from(*s)]).sum()
    }

    /// Bits by a table of its own.
    fn own(&self) -> u64 {
        let total = log2(self.total.max(1));
        self.counts.iter().map(|(_, n)| n * (total - log2(*n))).sum()
    }
}

/// A table in the making.
#[derive(Debug, Clone)]
struct Joint {
    window: Window,
    counts: [u64; 256],
}

impl Joint {
    fn empty(window: Window) -> Self {
        Self { window, counts: [0; 256] }
    }

    fn add(&mut self, context: &Context) {
        context.counts.iter().for_each(|(s, n)| self.counts[usize::from(*s)] += n);
    }

    /// Bits of each symbol; those that don't occur count as a small part of one.
    fn costs(&self) -> [u64; 256] {
        let total: u64 = self.counts.iter().sum();
        let total = log2(total * 256 + 256);
        self.counts.map(|n| total - log2(n * 256 + 1))
    }
}

struct Joined {
    tables: Vec<Joint>,
    /// The table of each context.
    own: Vec<usize>,
}

/// Joins contexts to at most `most` tables, but at least one for each window.
fn join(contexts: &[&Context], most: usize) -> Joined {
    let mut tables: Vec<Joint> = vec![];
    let mut own = vec![];
    for context in contexts {
        let at = tables.iter().position(|t| t.window == context.window);
        let at = at.unwrap_or_else(|| {
            tables.push(Joint::empty(context.window));
            tables.len() - 1
        });
        tables[at].add(context);
        own.push(at);
    }
    let ideal: Vec<u64> = contexts.iter().map(|c| c.own()).collect();
    let costs: Vec<_> = tables.iter().map(Joint::costs).collect();
    let mut cost: Vec<u64> = contexts.iter().zip(&own).map(|(c, &t)| c.cost(&costs[t])).collect();
    // The context that its table serves worst founds another.
    while tables.len() < most {
        let loss = |i: usize| cost[i].saturating_sub(ideal[i]);
        let Some(worst) = (0..contexts.len()).max_by_key(|&i| (loss(i), i)) else { break };
        if loss(worst) >> FRACTION == 0 {
            break;
        }
        let mut table = Joint::empty(contexts[worst].window);
        table.add(contexts[worst]);
        let costs = table.costs();
        for (i, context) in contexts.iter().enumerate() {
            if context.window == table.window && context.cost(&costs) < cost[i] {
                (cost[i], own[i]) = (context.cost(&costs), tables.len());
            }
        }
        tables.push(table);
    }
    for _ in 0..ROUNDS {
        let windows: Vec<Window> = tables.iter().map(|t| t.window).collect();
        tables = windows.into_iter().map(Joint::empty).collect();
        contexts.iter().zip(&own).for_each(|(c, &t)| tables[t].add(c));
        let costs: Vec<_> = tables.iter().map(Joint::costs).collect();
        for (context, own) in contexts.iter().zip(&mut own) {
            let fit = (0..tables.len()).filter(|&t| tables[t].window == context.window);
            *own = fit.min_by_key(|&t| (context.cost(&costs[t]), t)).unwrap_or(*own);
        }
    }
    for table in &mut tables {
        *table = Joint::empty(table.window);
    }
    contexts.iter().zip(&own).for_each(|(c, &t)| tables[t].add(c));
    Joined { tables, own }
}

/// Frequencies that sum to 2^precision. Symbols that are cheaper as exceptions have none; without
/// counts there is one symbol.
fn frequencies(counts: &[u64; 256], precision: u8) -> Vec<(u8, u16)> {
    let sum = 1u64 << precision;
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return vec![(0, 1 << precision)];
    }
    // An exception costs some 32 bits, a slot about 1.44 bits of `total / sum` weights.
    let rare = |n: u64| n * 16 * sum < total;
    let kept: Vec<(u8, u64)> =
        (0u8..=255).zip(*counts).filter(|&(_, n)| n > 0 && !rare(n)).collect();
    let total: u64 = kept.iter().map(|(_, n)| n).sum();
    let share = |n: u64| ((n * sum + total / 2) / total).max(1);
    let mut all: Vec<(u8, u64, u64)> = kept.iter().map(|&(s, n)| (s, n, share(n))).collect();
    // What another slot more, or one less, changes in bits.
    let step = |n: u64, f: u64| n * (log2(f + 1) - log2(f));
    loop {
        let have: u64 = all.iter().map(|(_, _, f)| f).sum();
        if have == sum {
            break;
        }
        let at = if have < sum {
            (0..all.len()).max_by_key(|&i| (step(all[i].1, all[i].2), i))
        } else {
            let may = (0..all.len()).filter(|&i| all[i].2 > 1);
            may.min_by_key(|&i| (step(all[i].1, all[i].2 - 1), i))
        };
        let Some(at) = at else { break };
        all[at].2 = if have < sum { all[at].2 + 1 } else { all[at].2 - 1 };
    }
    let narrow = |f: u64| u16::try_from(f).expect("at most 2^11");
    all.into_iter().map(|(s, _, f)| (s, narrow(f))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_close() {
        for x in [1u64, 2, 3, 5, 7, 1000, 65_537, u64::from(u32::MAX), 1 << 40, (1 << 50) + 12_345]
        {
            let exact = (x as f64).log2();
            let found = log2(x) as f64 / f64::from(1u32 << FRACTION);
            assert!((found - exact).abs() < 2e-4, "{x}: {found}, not {exact}");
        }
    }

    #[test]
    fn frequencies_fill_tables() {
        let mut counts = [0; 256];
        assert_eq!(frequencies(&counts, 10), [(0, 1024)]);
        counts[3] = 1;
        assert_eq!(frequencies(&counts, 10), [(3, 1024)]);
        for (s, n) in (0..).zip(&mut counts) {
            *n = 1_000_000 >> (s / 8);
        }
        let found = frequencies(&counts, 10);
        assert_eq!(found.iter().map(|(_, f)| u32::from(*f)).sum::<u32>(), 1024);
        assert!(found.len() < 256, "rare symbols are exceptions");
    }
}
