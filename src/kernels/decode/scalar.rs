//! The portable decoder, eight columns at a time.

use super::row::{Row, Shape, Tables};
use crate::kernels::planes::LevelTable;
use crate::kernels::simd::scalar::codes;
use crate::kernels::target::{Float, bf16_bits, f16_bits};

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
