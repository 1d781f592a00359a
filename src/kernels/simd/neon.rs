//! NEON: loads and stores, the transpose of bits within nibbles, and look-ups by codes. Every
//! AArch64 CPU has it. Little-endian only: lanes of different widths share registers.
//!
//! A block is 128 columns, 16 bytes of each plane. An 8 x 8 bit transpose turns them into codes:
//! two rounds of swaps within each nibble, on four registers at a time, which are here; the round
//! between nibbles comes last, where up to 4 planes leave one register for two, and where `sli` and
//! `sri` need no masks. Tables of bytes are looked up by `tbl`.

use std::arch::aarch64::*;

use crate::kernels::planes::{self, LevelTable};

/// Columns of a block here: half of one of [`planes`].
pub(in crate::kernels) const BLOCK: usize = planes::BLOCK / 2;
/// Bytes of a block in one plane.
pub(in crate::kernels) const BYTES: usize = BLOCK / 8;

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are there.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn load_ps(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: four values are there.
    unsafe { vld1q_f32(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn store(to: &mut [u8; 16], v: uint8x16_t) {
    // SAFETY: 16 bytes are there.
    unsafe { vst1q_u8(to.as_mut_ptr(), v) };
}

/// Codes of a block: register `j` has columns `16 j ..`.
pub(in crate::kernels) type Codes = [uint8x16_t; 8];

/// Transposes a 4 x 4 bit matrix in each nibble: bit `i` of register `j` becomes bit `j` of
/// register `i`.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn transpose_nibbles(mut v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    // Exchange the upper part of each field of `a` with the lower part of `b`'s.
    macro_rules! swap {
        ($shift:literal, $mask:literal, $a:literal, $b:literal) => {
            let mask = vdupq_n_u8($mask);
            let (a, b) = (v[$a], v[$b]);
            v[$a] = vbslq_u8(mask, a, vshlq_n_u8::<$shift>(b));
            v[$b] = vbslq_u8(mask, vshrq_n_u8::<$shift>(a), b);
        };
    }
    swap!(2, 0x33, 0, 2);
    swap!(2, 0x33, 1, 3);
    swap!(1, 0x55, 0, 1);
    swap!(1, 0x55, 2, 3);
    v
}

/// Looks up `N` tables of 16 bytes, one behind the other, by codes below `16 N`.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn look_up<const N: usize>(
    tables: &[uint8x16_t; N],
    codes: uint8x16_t,
) -> uint8x16_t {
    match *tables.as_slice() {
        [a] => vqtbl1q_u8(a, codes),
        [a, b] => vqtbl2q_u8(uint8x16x2_t(a, b), codes),
        _ => {
            let mut found = codes;
            for (s, &[a, b, c, d]) in tables.as_chunks::<4>().0.iter().enumerate() {
                let four = uint8x16x4_t(a, b, c, d);
                found = if s == 0 {
                    vqtbl4q_u8(four, codes)
                } else {
                    // Codes of other tables become 64 or more, where `tbx` changes nothing.
                    vqtbx4q_u8(found, four, vsubq_u8(codes, vdupq_n_u8((64 * s) as u8)))
                };
            }
            found
        }
    }
}

/// The levels of 16 codes a table.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn level_tables<const SUBS: usize>(
    levels: &LevelTable,
) -> [uint8x16_t; SUBS] {
    let mut tables = [vdupq_n_u8(0); SUBS];
    for (to, from) in tables.iter_mut().zip(levels.bytes.as_chunks::<16>().0) {
        *to = load(&from.map(i8::cast_unsigned));
    }
    tables
}
