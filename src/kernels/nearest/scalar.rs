//! Portable searches.

use super::cells::{Cells, TRIES, cell};
use crate::kernels::simd::lanes::add_lanes;
use crate::kernels::simd::scalar::transpose;

/// See [`Nearest::errors`](super::Nearest::errors). Arithmetic and look-ups have loops of their
/// own: the former compile to vector code.
pub(super) fn errors(cells: &Cells, x: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
    factors.map(|factor| {
        let mut lanes = [0f32; 16];
        let (whole, rest) = x.as_chunks::<16>();
        for x in whole {
            let y = x.map(|x| x * factor);
            let at = y.map(cell);
            let near = at.map(|cell| cells.twice[cell]);
            for i in 0..16 {
                let e = y[i] - near[i];
                lanes[i] += e * e;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            let y = x * factor;
            let e = y - cells.twice[cell(y)];
            *lane += e * e;
        }
        add_lanes(&lanes)
    })
}

/// See [`Nearest::codes`](super::Nearest::codes).
pub(super) fn codes(cells: &Cells, x: &[f32], factor: f32, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(x) {
        *code = cells.codes[cell(x * factor)];
    }
}

/// Spreads the codes of one row over its planes, most significant plane first.
pub(super) fn scatter(codes: &[u8], planes: &mut [&mut [u8]]) {
    for (b, codes) in codes.chunks(8).enumerate() {
        let mut bytes = [0u8; 8];
        bytes[..codes.len()].copy_from_slice(codes);
        let word = transpose(u64::from_le_bytes(bytes)).to_le_bytes();
        for (plane, byte) in planes.iter_mut().rev().zip(word) {
            plane[b] = byte;
        }
    }
}
