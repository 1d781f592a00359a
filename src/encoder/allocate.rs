//! Planes for each row under a budget of bits.

use crate::codec::{PlaneCounts, PlaneLayout};
use crate::format::{ALIGN_BYTES, MAX_PLANES, MIN_PLANES, PLANE_COUNTS, plane_index};

/// Halvings of the search for the price of a bit.
const ROUNDS: usize = 100;

/// What an allocation may change: the planes of one matrix.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub layout: PlaneLayout,
    /// For each row, the expected loss at 3, 4, .., 8 planes.
    pub losses: Vec<[f64; PLANE_COUNTS]>,
}

/// Whether rows of a matrix may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Row,
    Tensor,
}

/// Bytes of a matrix in a file, padding included, when `rows_with[p]` rows have plane `p`.
fn stored_bytes(layout: &PlaneLayout, rows_with: &[u64; 8]) -> u64 {
    let uniform = rows_with.iter().all(|n| *n == 0 || *n == layout.rows);
    let counts = if uniform { 0 } else { layout.counts_bytes() };
    let parts = [counts, 2 * layout.rows, layout.rows * layout.steps_row_bytes()];
    let planes = rows_with.iter().map(|n| n * layout.row_bytes());
    parts.into_iter().chain(planes).map(|bytes| bytes.next_multiple_of(ALIGN_BYTES)).sum()
}

fn rows_with(counts: &[u8]) -> [u64; 8] {
    let mut with = [0; 8];
    for &n in counts {
        with[..usize::from(n)].iter_mut().for_each(|w| *w += 1);
    }
    with
}

/// Bytes of a matrix in a file, padding included.
pub(crate) fn bytes_of(layout: &PlaneLayout, counts: &PlaneCounts) -> u64 {
    stored_bytes(layout, &counts.rows_with(layout.rows))
}

/// The fewest bytes that the candidates can take.
pub(crate) fn fewest_bytes(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|c| bytes_of(&c.layout, &PlaneCounts::Uniform(MIN_PLANES))).sum()
}

/// Planes of each row of each candidate, so that the sum of their losses is about as small as
/// `budget` bytes allow. Nothing when even the fewest planes take more.
///
/// Each row gets the count of the least `loss + price * bits`, at the lowest price that the budget
/// allows; what is left goes to the rows that gain most by one plane more.
pub(crate) fn allocate(candidates: &[Candidate], budget: u64, unit: Unit) -> Option<Vec<Vec<u8>>> {
    if fewest_bytes(candidates) > budget {
        return None;
    }
    let total = |all: &[Vec<u8>]| -> u64 {
        candidates.iter().zip(all).map(|(c, n)| stored_bytes(&c.layout, &rows_with(n))).sum()
    };
    let at_price = |price: f64| -> Vec<Vec<u8>> {
        candidates.iter().map(|c| planes_at(c, price, unit)).collect()
    };
    // Prices are powers of two apart by less and less; all arithmetic is exact or rounded once.
    let (mut low, mut high) = (f64::MIN_POSITIVE, f64::MAX / 4.0);
    let mut best: Vec<Vec<u8>> =
        candidates.iter().map(|c| vec![MIN_PLANES; c.losses.len()]).collect();
    for _ in 0..ROUNDS {
        let price = low.sqrt() * high.sqrt();
        let all = at_price(price);
        if total(&all) > budget {
            low = price;
        } else {
            high = price;
            best = all;
        }
    }
    fill(candidates, &mut best, budget, unit);
    Some(best)
}

fn planes_at(candidate: &Candidate, price: f64, unit: Unit) -> Vec<u8> {
    #[allow(clippy::cast_precision_loss, reason = "bits of a row")]
    let bits = (candidate.layout.row_bytes() * 8) as f64;
    let choose = |losses: &[f64; PLANE_COUNTS], bits: f64| {
        let mut best = (f64::INFINITY, MIN_PLANES);
        for n in MIN_PLANES..=MAX_PLANES {
            let cost = losses[plane_index(n)] + price * (bits * f64::from(n));
            if cost < best.0 {
                best = (cost, n);
            }
        }
        best.1
    };
    match unit {
        Unit::Row => candidate.losses.iter().map(|losses| choose(losses, bits)).collect(),
        Unit::Tensor => {
            let mut sums = [0f64; PLANE_COUNTS];
            for losses in &candidate.losses {
                sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
            }
            #[allow(clippy::cast_precision_loss, reason = "a count of rows")]
            let rows = candidate.losses.len() as f64;
            vec![choose(&sums, bits * rows); candidate.losses.len()]
        }
    }
}

/// Spends what is left of the budget.
fn fill(candidates: &[Candidate], all: &mut [Vec<u8>], budget: u64, unit: Unit) {
    let mut with: Vec<[u64; 8]> = all.iter().map(|counts| rows_with(counts)).collect();
    let size = |i: usize, with: &[u64; 8]| stored_bytes(&candidates[i].layout, with);
    let mut used: u64 = with.iter().enumerate().map(|(i, with)| size(i, with)).sum();
    let mut steps: Vec<(f64, usize, usize)> = vec![];
    for (i, (candidate, counts)) in candidates.iter().zip(&*all).enumerate() {
        if unit == Unit::Tensor {
            continue;
        }
        #[allow(clippy::cast_precision_loss, reason = "bytes of a row")]
        let bytes = candidate.layout.row_bytes() as f64;
        for (r, (losses, &n)) in candidate.losses.iter().zip(counts).enumerate() {
            if n < MAX_PLANES {
                steps.push(((losses[plane_index(n)] - losses[plane_index(n + 1)]) / bytes, i, r));
            }
        }
    }
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for (gain, i, r) in steps {
        if gain <= 0.0 {
            break;
        }
        let mut more = with[i];
        more[usize::from(all[i][r])] += 1;
        let bytes = used - size(i, &with[i]) + size(i, &more);
        if bytes <= budget {
            (with[i], used) = (more, bytes);
            all[i][r] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses that fall by four for each plane.
    fn candidate(rows: u64, cols: u64, loss: impl Fn(u64) -> f64) -> Candidate {
        let layout = PlaneLayout::new(&[rows, cols], 1, 0).expect("valid");
        let powers: [f64; 6] = [1.0, 0.25, 0.0625, 0.015_625, 0.003_906_25, 0.000_976_562_5];
        let losses = (0..rows).map(|r| powers.map(|power| loss(r) * power));
        Candidate { layout, losses: losses.collect() }
    }

    fn bytes(candidates: &[Candidate], all: &[Vec<u8>]) -> u64 {
        let size = |(c, n): (&Candidate, &Vec<u8>)| stored_bytes(&c.layout, &rows_with(n));
        candidates.iter().zip(all).map(size).sum()
    }

    fn loss(candidates: &[Candidate], all: &[Vec<u8>]) -> f64 {
        let rows = candidates.iter().zip(all).flat_map(|(c, n)| c.losses.iter().zip(n));
        rows.map(|(losses, n)| losses[plane_index(*n)]).sum()
    }

    #[test]
    fn the_budget_is_kept_and_spent() {
        let candidates = [
            candidate(100, 192, |r| 1.0 + r as f64),
            candidate(64, 512, |r| 50.0 / (1.0 + r as f64)),
        ];
        let least = fewest_bytes(&candidates);
        assert!(allocate(&candidates, least - 1, Unit::Row).is_none());
        let weights = 100 * 192 + 64 * 512;
        for budget in [least, least + 1, weights * 4 / 8, weights * 5 / 8, weights * 6 / 8, 1 << 30]
        {
            let all = allocate(&candidates, budget, Unit::Row).expect("possible");
            let used = bytes(&candidates, &all);
            assert!(used <= budget);
            let most = all.iter().flatten().all(|n| *n == MAX_PLANES);
            assert!(most || budget == least || used + 192 > budget, "{used} of {budget} bytes");
        }
    }

    #[test]
    fn planes_go_where_they_matter() {
        let candidates = [candidate(64, 256, |r| if r < 8 { 1000.0 } else { 1.0 })];
        let budget = 64 * 256 * 5 / 8 + 512;
        let rows = allocate(&candidates, budget, Unit::Row).expect("possible");
        assert!(rows[0][..8].iter().all(|n| *n >= 7), "{:?}", rows[0]);
        let tensor = allocate(&candidates, budget, Unit::Tensor).expect("possible");
        assert!(tensor[0].iter().all(|n| *n == tensor[0][0]));
        assert!(loss(&candidates, &rows) < loss(&candidates, &tensor));
        // No single exchange of planes between two rows is better.
        let least = loss(&candidates, &rows);
        for a in 0..64 {
            for b in 0..64 {
                let mut other = rows.clone();
                if a != b && other[0][a] < MAX_PLANES && other[0][b] > MIN_PLANES {
                    other[0][a] += 1;
                    other[0][b] -= 1;
                    assert!(loss(&candidates, &other) >= least);
                }
            }
        }
    }
}
