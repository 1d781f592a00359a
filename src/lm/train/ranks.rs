//! Ranks of each layer under a budget of bytes.

use crate::format::{ALIGN_BYTES, MAX_OVERLAY_RANK};

/// What ranks of one layer cost and gain.
pub(super) struct Offer<'a> {
    pub rows: usize,
    pub cols: usize,
    /// What each rank takes off the error, falling.
    pub gains: &'a [f64],
}

/// Bytes of a block of int8 factors with their scales, as stored.
pub(super) fn bytes(rows: usize, cols: usize, rank: usize) -> u64 {
    let sides = (rows + cols) as u64;
    if rank == 0 { 0 } else { (sides * (rank as u64 + 2)).next_multiple_of(ALIGN_BYTES) }
}

/// The ranks of each layer: steps of most gain for their bytes first, as long as they fit.
pub(super) fn allocate(offers: &[Offer<'_>], budget: u64) -> Vec<usize> {
    // Each layer's steps along its upper hull: the first rank bears the scales too, so it may come
    // with others.
    let mut steps: Vec<(f64, usize, usize)> = vec![];
    for (layer, offer) in offers.iter().enumerate() {
        let most = offer.gains.len().min(MAX_OVERLAY_RANK as usize);
        let mut sums = vec![0.0];
        offer.gains[..most].iter().for_each(|g| sums.push(sums[sums.len() - 1] + g));
        let mut from = 0;
        while from < most {
            #[allow(clippy::cast_precision_loss, reason = "bytes of a layer")]
            let slope = |to: usize| {
                let cost = bytes(offer.rows, offer.cols, to) - bytes(offer.rows, offer.cols, from);
                (sums[to] - sums[from]) / (cost.max(1)) as f64
            };
            let best = (from + 1..=most).max_by(|&a, &b| slope(a).total_cmp(&slope(b)));
            let Some(to) = best.filter(|&to| slope(to) > 0.0) else { break };
            steps.push((slope(to), layer, to));
            from = to;
        }
    }
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut ranks = vec![0; offers.len()];
    let mut spent = 0;
    let mut full = vec![false; offers.len()];
    for (_, layer, rank) in steps {
        let o = &offers[layer];
        let cost = bytes(o.rows, o.cols, rank) - bytes(o.rows, o.cols, ranks[layer]);
        if full[layer] || spent + cost > budget {
            // Its later steps are worth less than those of others.
            full[layer] = true;
            continue;
        }
        spent += cost;
        ranks[layer] = rank;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_ranks_come_first_and_fit() {
        let strong = [100.0, 50.0, 1.0, 0.5];
        let weak = [3.0, 2.0, 0.1];
        let none = [0.0, 0.0];
        let offer = |gains| Offer { rows: 64, cols: 64, gains };
        let offers = [offer(&strong[..]), offer(&weak[..]), offer(&none[..])];
        let cost = |rank| bytes(64, 64, rank);
        assert_eq!(cost(1), 3 * 128);
        assert_eq!(allocate(&offers, 0), [0, 0, 0]);
        // Two ranks gain more for their bytes than one, which bears the scales alone: they come
        // together.
        assert_eq!(allocate(&offers, cost(1)), [0, 0, 0]);
        assert_eq!(allocate(&offers, cost(2)), [2, 0, 0]);
        assert_eq!(allocate(&offers, cost(2) + cost(2)), [2, 2, 0]);
        assert_eq!(allocate(&offers, 1 << 20), [4, 3, 0]);
        for budget in (0..4000).step_by(100) {
            let ranks = allocate(&offers, budget);
            assert!(ranks.iter().map(|&r| cost(r)).sum::<u64>() <= budget);
        }
    }
}
