//! Portable loops, weight by weight.

use super::contexts::{Contexts, Hint};
use super::tables::{DecodeTables, LANES, LOW, Lanes};
#[cfg(feature = "checkpoints")]
use super::tables::{EncodeTables, LaneEncoder};
use crate::kernels::simd::scalar::codes;

/// The codes of a row.
pub(super) fn unpack(planes: &[&[u8]], out: &mut [u8]) {
    for (at, out) in out.chunks_mut(8).enumerate() {
        out.copy_from_slice(&codes(planes, at)[..out.len()]);
    }
}

/// Hints of columns, `group` of which share a factor.
pub(super) fn hints(
    contexts: &Contexts,
    codes: &[u8],
    group: usize,
    factors: &[f32],
    out: &mut [Hint],
) {
    for ((codes, out), factor) in codes.chunks(group).zip(out.chunks_mut(group)).zip(factors) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = contexts.hint(*code, *factor);
        }
    }
}

/// Decodes weights, the first by lane 0; `false` when the words are used up before.
pub(super) fn decode(
    lanes: &mut Lanes<'_>,
    tables: &DecodeTables,
    hints: &[Hint],
    out: &mut [[u8; 2]],
) -> bool {
    let precision = tables.precision;
    let mut words = lanes.words.iter();
    for (hints, out) in hints.chunks(LANES).zip(out.chunks_mut(LANES)) {
        for ((state, hint), out) in lanes.states.iter_mut().zip(hints).zip(out) {
            let slot = *state & ((1 << precision) - 1);
            let entry = tables.entries[((hint >> 24 << precision) | slot) as usize];
            let (frequency, bias, symbol) = (entry >> 20, (entry >> 8) & 0xfff, entry & 0xff);
            let next = frequency.wrapping_mul(*state >> precision).wrapping_add(bias);
            let shift = (hint >> 16) & 15;
            let low = (symbol & 0x7f) << shift | (next & ((1 << shift) - 1));
            *state = next >> shift;
            if *state < LOW {
                let Some(word) = words.next() else { return false };
                *state = *state << 16 | u32::from(u16::from_le_bytes(*word));
            }
            let top = hint.wrapping_add(low) ^ (symbol >> 7 << 15);
            *out = (top as u16).to_le_bytes();
        }
    }
    lanes.words = words.as_slice();
    true
}

/// Encodes weights, of which the first belongs to lane 0, the last of them first.
#[cfg(feature = "checkpoints")]
pub(super) fn encode(
    encoder: &mut LaneEncoder,
    tables: &EncodeTables,
    hints: &[Hint],
    tops: &[[u8; 2]],
    first: usize,
) {
    let precision = tables.precision;
    let each = hints.iter().zip(tops).enumerate();
    for (at, (hint, top)) in each.rev() {
        let (table, shift) = (hint >> 24, hint >> 16 & 15);
        let distance = u32::from(u16::from_le_bytes(*top)).wrapping_sub(*hint) & 0xffff;
        let symbol = (distance & 0x7fff) >> shift;
        let number = table << 8 | distance >> 15 << 7 | symbol & 0x7f;
        let mut code = tables.codes[number as usize];
        let mut raw = distance & ((1 << shift) - 1);
        if symbol > 0x7f || code == 0 {
            encoder.exceptions.push(((first + at) as u16, *top));
            (code, raw) = (tables.usual[table as usize], 0);
        }
        let (frequency, start) = (code & 0xffff, code >> 16);
        let state = &mut encoder.states[at % LANES];
        let mut x = *state;
        if x >> (32 - precision - shift) >= frequency {
            encoder.start -= 1;
            encoder.words[encoder.start] = (x as u16).to_le_bytes();
            x >>= 16;
        }
        let value = x << shift | raw;
        let reciprocal = tables.reciprocals[frequency as usize];
        // Right, or one too small.
        let mut quotient = ((u64::from(value) * u64::from(reciprocal)) >> 32) as u32;
        let mut rest = value.wrapping_sub(quotient.wrapping_mul(frequency));
        if rest >= frequency {
            (quotient, rest) = (quotient + 1, rest - frequency);
        }
        *state = (quotient << precision) + rest + start;
    }
}
