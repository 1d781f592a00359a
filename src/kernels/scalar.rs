//! The portable kernel: eight codes at a time through an 8 x 8 bit transpose in a 64-bit word.

use super::decode::{LevelTable, Row, Shape, Tables};
use super::dot::{BLOCK, DotRow, Int8Row, NIBBLE_BYTES, Packed, RowBits};
use super::exact::{Contexts, DecodeTables, Hint, LANES, LOW, Lanes};
#[cfg(feature = "checkpoints")]
use super::exact::{EncodeTables, LaneEncoder};
use super::nearest::{Cells, TRIES, add_lanes, cell};
use super::target::{Float, bf16_bits, f16_bits};

/// Transposes an 8 x 8 bit matrix held in a word, one row a byte (Hacker's Delight, section 7-3):
/// bit `i` of byte `j` becomes bit `j` of byte `i`.
fn transpose(mut x: u64) -> u64 {
    let t = (x ^ (x >> 7)) & 0x00aa_00aa_00aa_00aa;
    x ^= t ^ (t << 7);
    let t = (x ^ (x >> 14)) & 0x0000_cccc_0000_cccc;
    x ^= t ^ (t << 14);
    let t = (x ^ (x >> 28)) & 0x0000_0000_f0f0_f0f0;
    x ^ t ^ (t << 28)
}

/// The eight codes whose bits are byte `at` of each plane, most significant plane first (UC-PLN-6).
pub(super) fn codes(planes: &[&[u8]], at: usize) -> [u8; 8] {
    // The last plane read is the lowest bit of the code.
    transpose(planes.iter().fold(0u64, |w, p| (w << 8) | u64::from(p[at]))).to_le_bytes()
}

/// Spreads the codes of one row over its planes, most significant plane first.
pub(super) fn scatter_codes(codes: &[u8], planes: &mut [&mut [u8]]) {
    for (b, codes) in codes.chunks(8).enumerate() {
        let mut bytes = [0u8; 8];
        bytes[..codes.len()].copy_from_slice(codes);
        let word = transpose(u64::from_le_bytes(bytes)).to_le_bytes();
        for (plane, byte) in planes.iter_mut().rev().zip(word) {
            plane[b] = byte;
        }
    }
}

/// Decodes one row: scale x step x level, exact in binary32 (UC-VAL-3), rounded once.
pub(super) fn decode_row(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    tables: &mut Tables,
    out: &mut [u8],
) {
    if shape.has_tables() {
        fill_tables(shape, row, levels, tables);
        each_eight(shape, row, out, |step, codes, out| {
            let table = tables.0[step].as_chunks::<2>().0;
            for (code, out) in codes.iter().zip(out.as_chunks_mut().0) {
                *out = table[usize::from(*code) & 63];
            }
        });
        return;
    }
    match shape.float {
        Float::Bf16 => multiply(shape, row, levels, out, |v| bf16_bits(v).to_le_bytes()),
        Float::F16 => multiply(shape, row, levels, out, |v| f16_bits(v).to_le_bytes()),
        Float::F32 => multiply(shape, row, levels, out, f32::to_le_bytes),
        Float::F64 => multiply(shape, row, levels, out, |v| f64::from(v).to_le_bytes()),
    }
}

/// Values of two bytes, for every step that occurs and every code.
fn fill_tables(shape: Shape, row: &Row<'_>, levels: &LevelTable, tables: &mut Tables) {
    let round = if shape.float == Float::Bf16 { bf16_bits } else { f16_bits };
    let used = row.used;
    for (k, (table, factor)) in tables.0.iter_mut().zip(row.factors).enumerate() {
        if used >> k & 1 == 1 {
            let entries = table.as_chunks_mut::<2>().0.iter_mut().zip(&levels.values);
            entries.take(1 << shape.read).for_each(|(to, l)| *to = round(factor * l).to_le_bytes());
        }
    }
}

fn multiply<const N: usize>(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    out: &mut [u8],
    put: impl Fn(f32) -> [u8; N],
) {
    each_eight(shape, row, out, |step, codes, out| {
        let factor = row.factors[step];
        for (code, out) in codes.iter().zip(out.as_chunks_mut::<N>().0) {
            *out = put(factor * levels.values[usize::from(*code)]);
        }
    });
}

/// Calls `f` with step, codes and output of up to eight columns at a time.
fn each_eight(
    shape: Shape,
    row: &Row<'_>,
    out: &mut [u8],
    mut f: impl FnMut(usize, &[u8; 8], &mut [u8]),
) {
    let per_unit = shape.unit() / 8;
    for (b, out) in out.chunks_mut(8 * shape.float.bytes()).enumerate() {
        f(usize::from(row.units[b / per_unit] & 15), &codes(row.planes, b), out);
    }
}

/// See [`Nearest::errors`](super::nearest::Nearest::errors). Arithmetic and look-ups have loops of their
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

/// See [`Nearest::codes`](super::nearest::Nearest::codes).
pub(super) fn nearest_codes(cells: &Cells, x: &[f32], factor: f32, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(x) {
        *code = cells.codes[cell(x * factor)];
    }
}

/// See [`RowDot::dot`](super::dot::RowDot::dot).
pub(super) fn dot(row: &DotRow<'_>, bits: RowBits<'_>, x: &[&Int8Row], out: &mut [f32]) {
    let per_unit = if row.unit16 { 2 } else { 4 };
    out.fill(0.0);
    for u in 0..row.cols.div_ceil(8 * per_unit) {
        let bytes = u * per_unit..row.cols.div_ceil(8).min((u + 1) * per_unit);
        let mut levels = [[0i32; 8]; 4];
        for (levels, b) in levels.iter_mut().zip(bytes.clone()) {
            *levels = levels_of(row, bits, b);
        }
        for ((out, x), factors) in out.iter_mut().zip(x).zip(row.factors) {
            let values = &x.values.as_chunks::<8>().0[bytes.clone()];
            let products = levels.iter().flatten().zip(values.iter().flatten());
            let sum: i32 = products.map(|(l, x)| l * i32::from(*x)).sum();
            *out += sum as f32 * factors[u];
        }
    }
}

/// The levels of columns `8 b` to `8 b + 7`.
fn levels_of(row: &DotRow<'_>, bits: RowBits<'_>, b: usize) -> [i32; 8] {
    let level = |code: u8| i32::from(row.levels.bytes[usize::from(code)]);
    match bits {
        RowBits::Planes(planes) => codes(planes, b).map(level),
        RowBits::Packed(bytes) if Packed::of(row.read) == Packed::Nibbles => {
            let block = &bytes[b / 32 * NIBBLE_BYTES..][..NIBBLE_BYTES];
            std::array::from_fn(|k| {
                let low = block[32 * (k % 4) + b % 32] >> (k / 4 * 4) & 15;
                level(low | (block[128 + b % 32] >> k & 1) << 4)
            })
        }
        RowBits::Packed(bytes) => {
            let block = &bytes[b / 32 * BLOCK..][..BLOCK];
            std::array::from_fn(|k| i32::from(block[32 * k + b % 32].cast_signed()))
        }
    }
}

/// See [`dot_f32`](super::dot::dot_f32).
pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    add_lanes(&lanes) + rest
}

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
pub(super) fn decode_exact(
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
pub(super) fn encode_exact(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_swaps_bit_and_byte() {
        for i in 0..64 {
            assert_eq!(transpose(1 << i), 1 << (8 * (i % 8) + i / 8));
        }
    }
}
