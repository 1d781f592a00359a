//! The portable kernel: eight codes at a time through an 8 x 8 bit transpose in a 64-bit word.

use crate::codec::value::Target;

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

/// Gathers the codes of one row from its planes, most significant plane first (UC-PLN-6).
///
/// `planes` holds the row's bytes of each plane read; `codes` has one byte for each column. Returns
/// whether the bits behind the last column are zero.
pub(crate) fn gather_codes(planes: &[&[u8]], codes: &mut [u8]) -> bool {
    let mut clean = true;
    for (b, codes) in codes.chunks_mut(8).enumerate() {
        // The last plane read is the lowest bit of the code.
        let word = planes.iter().fold(0u64, |w, p| (w << 8) | u64::from(p[b]));
        let bytes = transpose(word).to_le_bytes();
        let (now, behind) = bytes.split_at(codes.len());
        codes.copy_from_slice(now);
        clean &= behind.iter().all(|&b| b == 0);
    }
    clean
}

/// Spreads the codes of one row over its planes, most significant plane first: the inverse of
/// [`gather_codes`].
pub(crate) fn scatter_codes(codes: &[u8], planes: &mut [&mut [u8]]) {
    for (b, codes) in codes.chunks(8).enumerate() {
        let mut bytes = [0u8; 8];
        bytes[..codes.len()].copy_from_slice(codes);
        let word = transpose(u64::from_le_bytes(bytes)).to_le_bytes();
        for (plane, byte) in planes.iter_mut().rev().zip(word) {
            plane[b] = byte;
        }
    }
}

/// Writes the values of one group: scale x step x level, exact in binary32 (UC-VAL-3), rounded once.
pub(crate) fn expand_group<T: Target>(codes: &[u8], factor: f32, levels: &[f32], out: &mut [u8]) {
    for (code, out) in codes.iter().zip(out.chunks_exact_mut(T::BYTES)) {
        T::put(factor * levels[usize::from(*code)], out);
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
