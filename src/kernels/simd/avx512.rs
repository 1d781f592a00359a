//! AVX-512 with VBMI and GFNI: blocks of planes to codes in lanes of any width, and loads of
//! pieces.
//!
//! A block is 128 columns, 16 bytes of each plane. `vpermt2b` gathers for each eight columns the
//! bytes of all planes into a 64-bit word, an 8 x 8 bit matrix; `gf2p8affineqb` with that word as
//! its matrix and a constant with one bit set in each byte then reads off one column a byte. Which
//! columns land in which byte is free, so that codes come out already widened to the lanes of the
//! values: a permutation of a table by the codes gives the values in order.
//!
//! Permutations ignore the high bits of their indices, so lanes need no cleaning.

use std::arch::x86_64::*;

use crate::kernels::planes::{self, LevelTable};

/// Columns of a block here: half of one of [`planes`].
pub(in crate::kernels) const BLOCK: usize = planes::BLOCK / 2;

/// Bytes of a plane that products ask for ahead of time.
const PREFETCH: usize = 1024;

/// Index and bit constants for codes of `READ` planes.
pub(in crate::kernels) struct Gather<const READ: usize>;

impl<const READ: usize> Gather<READ> {
    /// For lanes of `lane` bytes, which of the 128 bytes of [`Codes`] make up the
    /// matrices of vector 0. Vector `q` wants `q * 8 / lane` more.
    const fn index(lane: usize) -> [u8; 64] {
        let mut index = [0; 64];
        let mut i = 0;
        while i < 64 {
            // Result bit `b` comes from byte `7 - b` of the matrix: the last plane is bit 0.
            let (word, byte) = (i / 8, i % 8);
            let column = word * (8 / lane);
            index[i] = if byte + READ >= 8 {
                let plane = byte + READ - 8;
                (if plane < 4 { 16 * plane } else { 64 + 16 * (plane - 4) } + column / 8) as u8
            } else {
                // Absent planes: where the last of eight would be, which is zero.
                112
            };
            i += 1;
        }
        index
    }

    /// For lanes of `lane` bytes, the one bit that picks the column of each lane.
    const fn bits(lane: usize) -> [u8; 64] {
        let mut bits = [0; 64];
        let mut i = 0;
        while i < 64 {
            if i % lane == 0 {
                bits[i] = 1 << (i / lane % 8);
            }
            i += 1;
        }
        bits
    }

    pub(in crate::kernels) const INDEX: [[u8; 64]; 3] =
        [Self::index(1), Self::index(2), Self::index(4)];
    pub(in crate::kernels) const BITS: [[u8; 64]; 3] =
        [Self::bits(1), Self::bits(2), Self::bits(4)];
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::kernels) fn load64(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::kernels) fn load_ps(values: &[f32; 16]) -> __m512 {
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// A mask of the first `n` of up to 32 lanes.
#[inline]
pub(in crate::kernels) fn first(n: usize) -> u32 {
    if n == 0 { 0 } else { u32::MAX >> (32 - n.min(32)) }
}

/// Up to 16 values; zeros behind the end.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::kernels) fn load_some(x: &[f32]) -> __m512 {
    let mask = first(x.len()) as u16;
    // SAFETY: the mask keeps to the values that are there.
    unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
}

/// Codes of one block: planes in, vectors of lanes out.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Codes {
    pub(in crate::kernels) first: __m512i,
    pub(in crate::kernels) second: __m512i,
}

/// Planes of a row, by pointer: indexing slices in the inner loop would check every load.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Planes<'a, const READ: usize> {
    bytes: [*const u8; READ],
    len: usize,
    row: std::marker::PhantomData<&'a [u8]>,
}

impl<'a, const READ: usize> Planes<'a, READ> {
    /// The planes have the same length.
    pub(in crate::kernels) fn new(planes: &[&'a [u8]]) -> Self {
        let len = planes[0].len();
        let mut bytes = [std::ptr::null(); READ];
        for (to, plane) in bytes.iter_mut().zip(&planes[..READ]) {
            *to = plane[..len].as_ptr();
        }
        Self { bytes, len, row: std::marker::PhantomData }
    }

    /// The bytes of block `at`, which the planes have in full.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
    pub(in crate::kernels) fn block(&self, at: usize) -> Codes {
        debug_assert!(16 * (at + 1) <= self.len);
        // SAFETY: the 16 bytes are within each plane.
        join(self.bytes.map(|plane| unsafe { _mm_loadu_si128(plane.add(16 * at).cast()) }))
    }

    /// Asks for what comes a kilobyte behind block `at`, which may be a later row: as many streams
    /// as there are planes are more than the CPU follows by itself.
    #[inline]
    pub(in crate::kernels) fn prefetch(&self, at: usize) {
        for plane in self.bytes {
            // SAFETY: the address is only a hint.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(plane.wrapping_add(16 * at + PREFETCH).cast());
            }
        }
    }

    /// The bytes of block `at`; those behind the end are zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
    pub(in crate::kernels) fn last_block(&self, at: usize) -> Codes {
        let left = self.len.saturating_sub(16 * at).min(16);
        let mask = first(left) as u16;
        // SAFETY: the mask keeps to the bytes of the plane.
        join(
            self.bytes
                .map(|plane| unsafe { _mm_maskz_loadu_epi8(mask, plane.add(16 * at).cast()) }),
        )
    }
}

/// Four planes to a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn join<const READ: usize>(planes: [__m128i; READ]) -> Codes {
    let plane = |i: usize| planes.get(i).copied().unwrap_or(_mm_setzero_si128());
    let join = |i: usize| {
        let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(plane(i)), plane(i + 1));
        let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(plane(i + 2)), plane(i + 3));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    };
    let second = if READ == 5 { _mm512_zextsi128_si512(plane(4)) } else { join(4) };
    Codes { first: join(0), second }
}

impl Codes {
    /// Codes of vector `q` in lanes of `LANE` bytes; `index` is that of vector 0.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
    pub(in crate::kernels) fn lanes<const LANE: usize>(
        self,
        index: __m512i,
        bits: __m512i,
        q: usize,
    ) -> __m512i {
        let index = _mm512_add_epi8(index, _mm512_set1_epi8((q * 8 / LANE) as i8));
        let matrix = _mm512_permutex2var_epi8(self.first, index, self.second);
        _mm512_gf2p8affine_epi64_epi8::<0>(bits, matrix)
    }
}

/// Level bytes of 64 codes.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct LevelBytes(pub(in crate::kernels) [__m512i; 4]);

impl LevelBytes {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) fn load(levels: &LevelTable) -> Self {
        let mut all = [_mm512_setzero_si512(); 4];
        for (to, bytes) in all.iter_mut().zip(levels.bytes.as_chunks::<64>().0) {
            // SAFETY: 64 bytes are there.
            *to = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        }
        Self(all)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(in crate::kernels) fn of<const READ: usize>(self, codes: __m512i) -> __m512i {
        let [a, b, c, d] = self.0;
        match READ {
            ..=6 => _mm512_permutexvar_epi8(codes, a),
            7 => _mm512_permutex2var_epi8(a, codes, b),
            _ => _mm512_mask_blend_epi8(
                _mm512_movepi8_mask(codes),
                _mm512_permutex2var_epi8(a, codes, b),
                _mm512_permutex2var_epi8(c, codes, d),
            ),
        }
    }
}
