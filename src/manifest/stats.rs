//! The number of weights of a pack, and the bits that they take.

use super::pack::Pack;
use crate::format::{
    ALIGN_BYTES, Encoding, Index, MAX_PLANES, OverlayBlock, PartKind, Role, elements,
};
use crate::storage::ReadAt;

/// Sizes of a pack.
///
/// # Spec
/// container.md, "Roles".
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PackStats {
    /// Tensors, aliases included.
    pub tensors: u64,
    /// Distinct weights: elements of all tensors but aliases.
    pub weights: u64,
    /// Weights of the body.
    pub body_weights: u64,
    /// Stored bits of the body, overlays on it included, over its weights; nothing without a body.
    pub body_bpw: Option<f64>,
    /// The part of it that overlays take.
    pub overlay_bpw: Option<f64>,
    /// All bits of the file over its distinct weights; nothing without weights.
    pub file_bpw: Option<f64>,
}

impl PackStats {
    /// Counts the sizes of a pack.
    pub fn of<R: ReadAt>(pack: &Pack<R>) -> Self {
        let of_body = |b: &&OverlayBlock| {
            pack.tensor(&b.tensor).is_some_and(|t| t.entry().role == Role::Body)
        };
        let overlays = pack.overlays();
        let blocks = overlays.iter().flat_map(|o| &o.blocks).filter(of_body);
        let bytes: u64 = blocks.map(|b| b.bytes().next_multiple_of(ALIGN_BYTES)).sum();
        Self::counted(pack, MAX_PLANES, bytes)
    }

    /// As [`PackStats::of`], with only the first `planes` planes of the body counted, and no
    /// overlays: what a reader of that rung fetches.
    pub fn at_rung<R: ReadAt>(pack: &Pack<R>, planes: u8) -> Self {
        Self::counted(pack, planes, 0)
    }

    fn counted<R: ReadAt>(pack: &Pack<R>, planes: u8, overlay_bytes: u64) -> Self {
        let mut count = Count::default();
        pack.containers().iter().for_each(|c| count.add(c.index(), planes));
        #[allow(clippy::cast_precision_loss, reason = "rates for display")]
        let rate = |bytes: u64, n: u64| (n > 0).then(|| bytes as f64 * 8.0 / n as f64);
        Self {
            tensors: pack.tensors().len() as u64,
            weights: count.weights,
            body_weights: count.body_weights,
            body_bpw: rate(count.body_bytes + overlay_bytes, count.body_weights),
            overlay_bpw: rate(overlay_bytes, count.body_weights),
            file_bpw: rate(pack.bytes(), count.weights),
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    weights: u64,
    body_weights: u64,
    body_bytes: u64,
}

impl Count {
    fn add(&mut self, index: &Index, planes: u8) {
        let mut by_body = vec![false; index.levels.len() + 1];
        let mut by_others = by_body.clone();
        for t in &index.tensors {
            if t.encoding.alias_target().is_some() {
                continue;
            }
            let n = elements(&t.shape).unwrap_or(0);
            self.weights = self.weights.saturating_add(n);
            let users = if t.role == Role::Body { &mut by_body } else { &mut by_others };
            if let Encoding::Planes { level_ids, .. } = &t.encoding {
                level_ids.iter().for_each(|&id| users[usize::from(id)] = true);
            }
            if t.role == Role::Body {
                self.body_weights = self.body_weights.saturating_add(n);
                let read = t.parts.iter().filter(|p| match p.kind {
                    PartKind::Plane(plane) => plane < planes,
                    // What is not needed for the values.
                    PartKind::Residual => !p.optional,
                    PartKind::Unknown(..) => false,
                    _ => true,
                });
                self.body_bytes +=
                    read.map(|p| p.stored_len.next_multiple_of(ALIGN_BYTES)).sum::<u64>();
            }
        }
        // Tables that only the body uses are charged to it.
        for (id, table) in (1..).zip(&index.levels) {
            if by_body[id] && !by_others[id] {
                self.body_bytes += table.levels.len() as u64;
            }
        }
    }
}
