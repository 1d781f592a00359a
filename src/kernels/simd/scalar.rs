//! Portable code: eight codes at a time through an 8 x 8 bit transpose in a 64-bit word.

/// Transposes an 8 x 8 bit matrix held in a word, one row a byte (Hacker's Delight, section 7-3):
/// bit `i` of byte `j` becomes bit `j` of byte `i`.
#[inline]
pub(in crate::kernels) fn transpose(mut x: u64) -> u64 {
    let t = (x ^ (x >> 7)) & 0x00aa_00aa_00aa_00aa;
    x ^= t ^ (t << 7);
    let t = (x ^ (x >> 14)) & 0x0000_cccc_0000_cccc;
    x ^= t ^ (t << 14);
    let t = (x ^ (x >> 28)) & 0x0000_0000_f0f0_f0f0;
    x ^ t ^ (t << 28)
}

/// The eight codes whose bits are byte `at` of each plane, most significant plane first (UC-PLN-6).
#[inline]
pub(in crate::kernels) fn codes(planes: &[&[u8]], at: usize) -> [u8; 8] {
    // The last plane read is the lowest bit of the code.
    transpose(planes.iter().fold(0u64, |w, p| (w << 8) | u64::from(p[at]))).to_le_bytes()
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
