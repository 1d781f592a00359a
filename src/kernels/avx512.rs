//! AVX-512 with VBMI and GFNI.
//!
//! A block is 128 columns, 16 bytes of each plane. `vpermt2b` gathers for each eight columns the bytes
//! of all planes into a 64-bit word, an 8 x 8 bit matrix; `gf2p8affineqb` with that word as its matrix
//! and a constant with one bit set in each byte then reads off one column a byte. Which columns land in
//! which byte is free, so that codes come out already widened to the lanes of the values: a
//! permutation of the table by the codes gives the values in order. For 64 columns that is five shuffles of
//! 512 bits, one a cycle on Zen 4, beside four cycles for storing them as bfloat16.
//!
//! Permutations ignore the high bits of their indices, so lanes need no cleaning.

use std::arch::x86_64::*;

use super::decode::{LevelTable, Row, Shape, Tables};
use super::dot::{DotRow, Int8Row};
use super::nearest::{Cells, TRIES, add_lanes};
use super::target::{Float, STEPS};

/// Columns of a block.
const BLOCK: usize = 128;

/// Bytes of a plane that products ask for ahead of time.
const PREFETCH: usize = 1024;

/// Index and bit constants for codes of `READ` planes.
struct Gather<const READ: usize>;

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

    const INDEX: [[u8; 64]; 3] = [Self::index(1), Self::index(2), Self::index(4)];
    const BITS: [[u8; 64]; 3] = [Self::bits(1), Self::bits(2), Self::bits(4)];
}

#[target_feature(enable = "avx512f")]
fn load64(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn load_ps(values: &[f32; 16]) -> __m512 {
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Codes of one block: planes in, vectors of lanes out.
#[derive(Clone, Copy)]
struct Codes {
    first: __m512i,
    second: __m512i,
}

/// Planes of a row, by pointer: indexing slices in the inner loop would check every load.
#[derive(Clone, Copy)]
struct Planes<'a, const READ: usize> {
    bytes: [*const u8; READ],
    len: usize,
    row: std::marker::PhantomData<&'a [u8]>,
}

impl<'a, const READ: usize> Planes<'a, READ> {
    /// The planes have the same length.
    fn new(planes: &[&'a [u8]]) -> Self {
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
    fn block(&self, at: usize) -> Codes {
        debug_assert!(16 * (at + 1) <= self.len);
        // SAFETY: the 16 bytes are within each plane.
        join(self.bytes.map(|plane| unsafe { _mm_loadu_si128(plane.add(16 * at).cast()) }))
    }

    /// Asks for what comes a kilobyte behind block `at`, which may be a later row: as many streams as
    /// there are planes are more than the CPU follows by itself.
    #[inline]
    fn prefetch(&self, at: usize) {
        for plane in self.bytes {
            // SAFETY: the address is only a hint.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(plane.wrapping_add(16 * at + PREFETCH).cast());
            }
        }
    }

    /// The bytes of block `at`; those behind the end are zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
    fn last_block(&self, at: usize) -> Codes {
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
    fn lanes<const LANE: usize>(self, index: __m512i, bits: __m512i, q: usize) -> __m512i {
        let index = _mm512_add_epi8(index, _mm512_set1_epi8((q * 8 / LANE) as i8));
        let matrix = _mm512_permutex2var_epi8(self.first, index, self.second);
        _mm512_gf2p8affine_epi64_epi8::<0>(bits, matrix)
    }
}

/// Decodes one row.
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
pub(super) unsafe fn decode_row(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    tables: &mut Tables,
    out: &mut [u8],
) {
    macro_rules! by_unit {
        ($f:ident::<$($n:tt),+>($($arg:expr),*)) => {
            if shape.unit16 { $f::<$($n),+, true>($($arg),*) } else { $f::<$($n),+, false>($($arg),*) }
        };
    }
    match (shape.float, shape.read) {
        (Float::F32, ..=5) => fill_singles(row, levels, tables),
        (Float::Bf16 | Float::F16, ..=6) => fill_halves(shape, row, levels, tables),
        _ => {}
    }
    match (shape.float, shape.read) {
        (Float::Bf16 | Float::F16, 3) => by_unit!(halves::<3>(row, tables, out)),
        (Float::Bf16 | Float::F16, 4) => by_unit!(halves::<4>(row, tables, out)),
        (Float::Bf16 | Float::F16, 5) => by_unit!(halves::<5>(row, tables, out)),
        (Float::Bf16 | Float::F16, 6) => by_unit!(halves::<6>(row, tables, out)),
        (Float::F32, 3) => by_unit!(singles::<3>(row, tables, out)),
        (Float::F32, 4) => by_unit!(singles::<4>(row, tables, out)),
        (Float::F32, 5) => by_unit!(singles::<5>(row, tables, out)),
        (Float::F32, 6) => by_unit!(products::<F32, 6>(row, levels, out)),
        (Float::F32, 7) => by_unit!(products::<F32, 7>(row, levels, out)),
        (Float::F32, _) => by_unit!(products::<F32, 8>(row, levels, out)),
        (Float::Bf16, 7) => by_unit!(products::<BF16, 7>(row, levels, out)),
        (Float::Bf16, _) => by_unit!(products::<BF16, 8>(row, levels, out)),
        (Float::F16, 7) => by_unit!(products::<F16, 7>(row, levels, out)),
        (Float::F16, _) => by_unit!(products::<F16, 8>(row, levels, out)),
        (Float::F64, _) => super::scalar::decode_row(shape, row, levels, tables, out),
    }
}

/// The bfloat16 nearest to each lane, in its upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn round_bf16(v: __m512) -> __m512i {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
}

/// The binary16 nearest to each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn round_f16(v: __m512) -> __m256i {
    _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
}

/// Tables of values of two bytes: 64 entries a step (of up to 5 planes, the first 32).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn fill_halves(shape: Shape, row: &Row<'_>, levels: &LevelTable, tables: &mut Tables) {
    if shape.float == Float::F16 {
        let pack =
            |a, b| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(round_f16(a)), round_f16(b));
        return fill_tables(shape, row, levels, tables, pack);
    }
    if is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the feature was detected.
        return unsafe { fill_bf16(shape, row, levels, tables) };
    }
    fill_tables(shape, row, levels, tables, |a, b| {
        let a = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(a)));
        let b = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(b)));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
    });
}

/// As [`fill_halves`] for bfloat16, with one instruction to round and pack. It flushes subnormals, but a
/// product of scale (at least 2^-126), step (at least 2^5) and level (at least 1) is none.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16")]
fn fill_bf16(shape: Shape, row: &Row<'_>, levels: &LevelTable, tables: &mut Tables) {
    fill_tables(shape, row, levels, tables, |a, b| {
        // SAFETY: both types are 64 bytes without padding.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a)) }
    });
}

/// Fills the table of each step that the row uses, 32 products at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fill_tables(
    shape: Shape,
    row: &Row<'_>,
    levels: &LevelTable,
    tables: &mut Tables,
    pack: impl Fn(__m512, __m512) -> __m512i,
) {
    let used = row.used;
    let pairs = levels.values.as_chunks::<32>().0;
    for (v, pair) in
        pairs[..(1 << shape.read) / 32 + usize::from(shape.read < 5)].iter().enumerate()
    {
        let [a, b] = pair.as_chunks::<16>().0 else { return };
        let (a, b) = (load_ps(a), load_ps(b));
        for (k, (table, factor)) in tables.0.iter_mut().zip(row.factors).enumerate() {
            if used >> k & 1 == 1 {
                let factor = _mm512_set1_ps(*factor);
                let values = pack(_mm512_mul_ps(factor, a), _mm512_mul_ps(factor, b));
                let to: &mut [u8] = &mut table[64 * v..][..64];
                // SAFETY: 64 bytes are there.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), values) };
            }
        }
    }
}

/// Tables of 32 binary32 values.
#[target_feature(enable = "avx512f,avx512bw")]
fn fill_singles(row: &Row<'_>, levels: &LevelTable, tables: &mut Tables) {
    let [a, b, ..] = levels.values.as_chunks::<16>().0 else { return };
    let (a, b) = (load_ps(a), load_ps(b));
    let used = row.used;
    for (k, (table, factor)) in tables.0.iter_mut().zip(row.factors).enumerate() {
        if used >> k & 1 == 1 {
            let factor = _mm512_set1_ps(*factor);
            // SAFETY: a table has 128 bytes.
            unsafe {
                _mm512_storeu_ps(table.as_mut_ptr().cast(), _mm512_mul_ps(factor, a));
                _mm512_storeu_ps(table[64..].as_mut_ptr().cast(), _mm512_mul_ps(factor, b));
            }
        }
    }
}

/// The two vectors of the table of step `k`.
#[inline]
#[target_feature(enable = "avx512f")]
fn table(tables: &Tables, k: u8) -> (__m512i, __m512i) {
    debug_assert!(k < 16);
    // SAFETY: units are below 16, and a table has 128 bytes.
    unsafe {
        let low = tables.0.get_unchecked(usize::from(k)).as_ptr();
        (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(low.add(64).cast()))
    }
}

/// Values of two bytes, 3 to 6 planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
fn halves<const READ: usize, const UNIT16: bool>(row: &Row<'_>, tables: &Tables, out: &mut [u8]) {
    let index = load64(&Gather::<READ>::INDEX[1]);
    let bits = load64(&Gather::<READ>::BITS[1]);
    let planes = Planes::<READ>::new(row.planes);
    let per_block = if UNIT16 { 8 } else { 4 };
    let values = |codes: Codes, q: usize, units: &[u8]| {
        let lanes = codes.lanes::<2>(index, bits, q);
        let look_up = |k: u8| {
            let (low, high) = table(tables, k);
            if READ == 6 {
                _mm512_permutex2var_epi16(low, lanes, high)
            } else {
                _mm512_permutexvar_epi16(lanes, low)
            }
        };
        if UNIT16 {
            let (left, right) = (look_up(units[2 * q]), look_up(units[2 * q + 1]));
            _mm512_mask_blend_epi16(0xffff_0000, left, right)
        } else {
            look_up(units[q])
        }
    };
    let (whole, tail) = out.as_chunks_mut::<{ 2 * BLOCK }>();
    let (full, rest) = (whole.len(), whole.len() * per_block);
    for ((at, out), units) in whole.iter_mut().enumerate().zip(row.units.chunks_exact(per_block)) {
        let codes = planes.block(at);
        for (q, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            // SAFETY: 64 bytes are there.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), values(codes, q, units)) };
        }
    }
    if !tail.is_empty() {
        let codes = planes.last_block(full);
        for (q, out) in tail.chunks_mut(64).enumerate() {
            let mask = first(out.len() / 2);
            // SAFETY: the mask keeps to the words that `out` has.
            unsafe {
                let values = values(codes, q, &row.units[rest..]);
                _mm512_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, values);
            }
        }
    }
}

/// A mask of the first `n` of up to 32 lanes.
fn first(n: usize) -> u32 {
    if n == 0 { 0 } else { u32::MAX >> (32 - n.min(32)) }
}

/// Binary32, 3 to 5 planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
fn singles<const READ: usize, const UNIT16: bool>(row: &Row<'_>, tables: &Tables, out: &mut [u8]) {
    let index = load64(&Gather::<READ>::INDEX[2]);
    let bits = load64(&Gather::<READ>::BITS[2]);
    let planes = Planes::<READ>::new(row.planes);
    let per_block = if UNIT16 { 8 } else { 4 };
    let values = |codes: Codes, q: usize, units: &[u8]| {
        let (low, high) = table(tables, units[if UNIT16 { q } else { q / 2 }]);
        let lanes = codes.lanes::<4>(index, bits, q);
        _mm512_permutex2var_ps(_mm512_castsi512_ps(low), lanes, _mm512_castsi512_ps(high))
    };
    let (whole, tail) = out.as_chunks_mut::<{ 4 * BLOCK }>();
    let (full, rest) = (whole.len(), whole.len() * per_block);
    for ((at, out), units) in whole.iter_mut().enumerate().zip(row.units.chunks_exact(per_block)) {
        let codes = planes.block(at);
        for (q, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            // SAFETY: 64 bytes are there.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), values(codes, q, units)) };
        }
    }
    if !tail.is_empty() {
        let codes = planes.last_block(full);
        for (q, out) in tail.chunks_mut(64).enumerate() {
            store::<F32>(out, values(codes, q, &row.units[rest..]));
        }
    }
}

/// What [`products`] writes.
const F32: u8 = 0;
const BF16: u8 = 1;
const F16: u8 = 2;

/// Rounds and stores 16 values, or as many as `out` has room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn store<const TO: u8>(out: &mut [u8], values: __m512) {
    let bytes = if TO == F32 { 4 } else { 2 };
    let mask = first(out.len() / bytes) as u16;
    let to = out.as_mut_ptr();
    // SAFETY: the mask keeps to the values that `out` has room for.
    unsafe {
        match TO {
            F32 => _mm512_mask_storeu_ps(to.cast(), mask, values),
            BF16 => {
                let words = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(values)));
                _mm256_mask_storeu_epi16(to.cast(), mask, words);
            }
            _ => _mm256_mask_storeu_epi16(to.cast(), mask, round_f16(values)),
        }
    }
}

/// Level bytes of 64 codes.
#[derive(Clone, Copy)]
struct LevelBytes([__m512i; 4]);

impl LevelBytes {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(levels: &LevelTable) -> Self {
        let mut all = [_mm512_setzero_si512(); 4];
        for (to, bytes) in all.iter_mut().zip(levels.bytes.as_chunks::<64>().0) {
            // SAFETY: 64 bytes are there.
            *to = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        }
        Self(all)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn of<const READ: usize>(self, codes: __m512i) -> __m512i {
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

/// Any count of planes, by multiplication.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,gfni")]
fn products<const TO: u8, const READ: usize, const UNIT16: bool>(
    row: &Row<'_>,
    levels: &LevelTable,
    out: &mut [u8],
) {
    let index = load64(&Gather::<READ>::INDEX[0]);
    let bits = load64(&Gather::<READ>::BITS[0]);
    let levels = LevelBytes::load(levels);
    let planes = Planes::<READ>::new(row.planes);
    let bytes = if TO == F32 { 4 } else { 2 };
    for (at, out) in out.chunks_mut(bytes * BLOCK).enumerate() {
        let codes =
            if out.len() == bytes * BLOCK { planes.block(at) } else { planes.last_block(at) };
        for (h, out) in out.chunks_mut(bytes * 64).enumerate() {
            let level = levels.of::<READ>(codes.lanes::<1>(index, bits, h));
            let sixteens = [
                _mm512_castsi512_si128(level),
                _mm512_extracti32x4_epi32::<1>(level),
                _mm512_extracti32x4_epi32::<2>(level),
                _mm512_extracti32x4_epi32::<3>(level),
            ];
            for (i, (out, level)) in out.chunks_mut(bytes * 16).zip(sixteens).enumerate() {
                let unit = if UNIT16 { 8 * at + 4 * h + i } else { 4 * at + 2 * h + i / 2 };
                let factor = row.factors[usize::from(row.units[unit] & 15)];
                let level = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(level));
                store::<TO>(out, _mm512_mul_ps(level, _mm512_set1_ps(factor)));
            }
        }
    }
}

/// A table of 512 bytes.
struct Bytes512([__m512i; 8]);

impl Bytes512 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8; 512]) -> Self {
        let mut all = [_mm512_setzero_si512(); 8];
        for (to, bytes) in all.iter_mut().zip(bytes.as_chunks::<64>().0) {
            *to = load64(bytes);
        }
        Self(all)
    }

    /// The byte of each index, 0 to 511, in the low byte of its lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn look_up(&self, index: __m512i) -> __m512i {
        let [a, b, c, d, e, f, g, h] = self.0;
        let at_128 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(128));
        let at_256 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(256));
        let pair = |a, b, c, d| {
            let (low, high) =
                (_mm512_permutex2var_epi8(a, index, b), _mm512_permutex2var_epi8(c, index, d));
            _mm512_mask_blend_epi32(at_128, low, high)
        };
        _mm512_mask_blend_epi32(at_256, pair(a, b, c, d), pair(e, f, g, h))
    }
}

/// The cells of 16 values.
#[inline]
#[target_feature(enable = "avx512f")]
fn cells_of(y: __m512) -> __m512i {
    let y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(-256.0)), _mm512_set1_ps(255.0));
    _mm512_cvttps_epi32(_mm512_add_ps(y, _mm512_set1_ps(256.0)))
}

/// Up to 16 values; zeros behind the end.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_some(x: &[f32]) -> __m512 {
    let mask = first(x.len()) as u16;
    // SAFETY: the mask keeps to the values that are there.
    unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
}

/// See [`Nearest::errors`](super::nearest::Nearest::errors).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) unsafe fn errors(cells: &Cells, x: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
    let table = Bytes512::load(&cells.levels);
    let mut sums = [_mm512_setzero_ps(); TRIES];
    for x in x.chunks(16) {
        let mask = first(x.len()) as u16;
        let x = load_some(x);
        for (sum, factor) in sums.iter_mut().zip(factors) {
            let y = _mm512_mul_ps(x, _mm512_set1_ps(*factor));
            let level = table.look_up(cells_of(y));
            // The byte goes to the top of the lane and, with its sign, back to twice its value.
            let twice = _mm512_srai_epi32::<23>(_mm512_slli_epi32::<24>(level));
            let e = _mm512_sub_ps(y, _mm512_cvtepi32_ps(twice));
            *sum = _mm512_mask_add_ps(*sum, mask, *sum, _mm512_mul_ps(e, e));
        }
    }
    sums.map(|sum| {
        let mut lanes = [0f32; 16];
        // SAFETY: 16 lanes have room.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        add_lanes(&lanes)
    })
}

/// See [`Nearest::codes`](super::nearest::Nearest::codes).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) unsafe fn nearest_codes(cells: &Cells, x: &[f32], factor: f32, codes: &mut [u8]) {
    let table = Bytes512::load(&cells.codes);
    let factor = _mm512_set1_ps(factor);
    for (x, codes) in x.chunks(16).zip(codes.chunks_mut(16)) {
        let found = table.look_up(cells_of(_mm512_mul_ps(load_some(x), factor)));
        let mask = first(x.len()) as u16;
        // SAFETY: the mask keeps to the codes that have room.
        unsafe { _mm512_mask_cvtepi32_storeu_epi8(codes.as_mut_ptr().cast(), mask, found) };
    }
}

/// See [`Nearest::scatter`](super::nearest::Nearest::scatter): a mask of one bit of 64 codes is eight
/// bytes of a plane.
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn scatter_codes(codes: &[u8], planes: &mut [&mut [u8]]) {
    let (whole, rest) = codes.as_chunks::<64>();
    let n = planes.len();
    for (at, codes) in whole.iter().enumerate() {
        let codes = load64(codes);
        for (p, plane) in planes.iter_mut().enumerate() {
            let bits = _mm512_test_epi8_mask(codes, _mm512_set1_epi8((1u8 << (n - 1 - p)) as i8));
            plane[8 * at..][..8].copy_from_slice(&bits.to_le_bytes());
        }
    }
    if !rest.is_empty() {
        let mut last = [0; 64];
        last[..rest.len()].copy_from_slice(rest);
        let codes = load64(&last);
        for (p, plane) in planes.iter_mut().enumerate() {
            let bits = _mm512_test_epi8_mask(codes, _mm512_set1_epi8((1u8 << (n - 1 - p)) as i8));
            let to = &mut plane[8 * whole.len()..];
            let len = to.len();
            to.copy_from_slice(&bits.to_le_bytes()[..len]);
        }
    }
}

/// The steps as binary32.
const STEP_VALUES: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = STEPS[i] as f32;
        i += 1;
    }
    values
};

/// Step times activation scale, 16 units at a time; `out` and `scales` have whole blocks of 256 columns.
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn unit_factors(steps: &[u8], scales: &[f32], out: &mut [f32]) {
    let table = load_ps(&STEP_VALUES);
    let units = |eight: &[u8; 8]| {
        // SAFETY: eight bytes are there.
        let bytes = unsafe { _mm_loadl_epi64(eight.as_ptr().cast()) };
        let low = _mm_set1_epi8(15);
        let odd = _mm_and_si128(_mm_srli_epi16::<4>(bytes), low);
        _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_and_si128(bytes, low), odd))
    };
    let (whole, rest) = steps.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let (out, out_half) = out.as_chunks_mut::<16>();
    let (scales, scales_half) = scales.as_chunks::<16>();
    for ((out, scales), eight) in out.iter_mut().zip(scales).zip(whole.iter().chain([&last])) {
        let factors = _mm512_mul_ps(_mm512_permutexvar_ps(units(eight), table), load_ps(scales));
        // SAFETY: 16 values have room.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), factors) };
    }
    // A block is eight units.
    if let ([_, ..], [_, ..]) = (&*out_half, scales_half) {
        let eight = whole.get(out.len()).unwrap_or(&last);
        let factors = _mm512_permutexvar_ps(units(eight), table);
        let factors = _mm512_mul_ps(factors, load_some(scales_half));
        // SAFETY: the mask keeps to what `out` has.
        unsafe {
            let mask = first(out_half.len()) as u16;
            _mm512_mask_storeu_ps(out_half.as_mut_ptr(), mask, factors);
        }
    }
}

/// See [`RowDot::dot`](super::dot::RowDot::dot).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni")]
pub(super) unsafe fn dot(row: &DotRow<'_>, planes: &[&[u8]], x: &[&Int8Row], out: &mut [f32]) {
    match row.read {
        3 => dot_some::<3>(row, planes, x, out),
        4 => dot_some::<4>(row, planes, x, out),
        5 => dot_some::<5>(row, planes, x, out),
        6 => dot_some::<6>(row, planes, x, out),
        7 => dot_some::<7>(row, planes, x, out),
        _ => dot_some::<8>(row, planes, x, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni")]
fn dot_some<const READ: usize>(
    row: &DotRow<'_>,
    planes: &[&[u8]],
    x: &[&Int8Row],
    out: &mut [f32],
) {
    let planes = Planes::<READ>::new(planes);
    match (x, row.unit16) {
        ([a], false) => out[0] = dot_rows::<READ, 1, false>(row, &planes, [a])[0],
        ([a], true) => out[0] = dot_rows::<READ, 1, true>(row, &planes, [a])[0],
        ([a, rest @ ..], unit16) => {
            // Missing rows repeat the first.
            let other = |i: usize| rest.get(i).copied().unwrap_or(a);
            let x = [*a, other(0), other(1), other(2)];
            let sums = if unit16 {
                dot_rows::<READ, 4, true>(row, &planes, x)
            } else {
                dot_rows::<READ, 4, false>(row, &planes, x)
            };
            out.copy_from_slice(&sums[..out.len()]);
        }
        ([], _) => {}
    }
}

/// For the order of `Int8Row::laned`, which bytes make up the matrices of vector 0; vector 1 wants two more.
const fn laned_index<const READ: usize>() -> [u8; 64] {
    let mut index = Gather::<READ>::INDEX[0];
    let mut i = 0;
    while i < 64 {
        let (word, at) = (i / 8, i / 8);
        // Byte `at` of the plane was meant.
        if i % 8 + READ >= 8 {
            index[i] += (4 * (word % 4) + word / 4) as u8;
            index[i] -= at as u8;
        }
        i += 1;
    }
    index
}

/// 128 columns at a time: codes, levels biased to 0..=255, products with `vpdpbusd` in lanes of four columns.
/// A unit has the same four lanes in both vectors, so both are added before the factor comes in.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni")]
fn dot_rows<const READ: usize, const N: usize, const UNIT16: bool>(
    row: &DotRow<'_>,
    planes: &Planes<'_, READ>,
    x: [&Int8Row; N],
) -> [f32; N] {
    let first = load64(&const { laned_index::<READ>() });
    let index = [first, _mm512_add_epi8(first, _mm512_set1_epi8(2))];
    let bits = load64(&Gather::<READ>::BITS[0]);
    let mut levels = LevelBytes::load(row.levels);
    for v in &mut levels.0 {
        *v = _mm512_xor_si512(*v, _mm512_set1_epi8(-128));
    }
    // The unit of each lane: of 32 columns, or the first of two of 16.
    let unit = if UNIT16 {
        _mm512_set_epi32(6, 6, 4, 4, 2, 2, 0, 0, 6, 6, 4, 4, 2, 2, 0, 0)
    } else {
        _mm512_set_epi32(3, 3, 2, 2, 1, 1, 0, 0, 3, 3, 2, 2, 1, 1, 0, 0)
    };
    // Two sums each: additions wait for one another.
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    // No closure: with six calls it is not inlined, and sums go through memory.
    macro_rules! add {
        ($codes:expr, $at:expr) => {{
            let (codes, at): (Codes, usize) = ($codes, $at);
            let levels = index.map(|index| {
                let matrix = _mm512_permutex2var_epi8(codes.first, index, codes.second);
                levels.of::<READ>(_mm512_gf2p8affine_epi64_epi8::<0>(bits, matrix))
            });
            for n in 0..N {
                // SAFETY: activations and factors are padded to whole blocks of 256 columns.
                let (values, factors) = unsafe {
                    let values: *const __m512i = x[n].laned.as_ptr().add(128 * at).cast();
                    let factors = row.factors[n].as_ptr();
                    (
                        [0, 1].map(|v| _mm512_loadu_si512(values.add(v))),
                        if UNIT16 {
                            _mm512_castps256_ps512(_mm256_loadu_ps(factors.add(8 * at)))
                        } else {
                            _mm512_castps128_ps512(_mm_loadu_ps(factors.add(4 * at)))
                        },
                    )
                };
                if UNIT16 {
                    for v in 0..2 {
                        // SAFETY: as above.
                        let fix = unsafe {
                            _mm512_loadu_si512(x[n].fix.as_ptr().add(32 * at + 16 * v).cast())
                        };
                        let unit = _mm512_add_epi32(unit, _mm512_set1_epi32(v as i32));
                        let factor = _mm512_permutexvar_ps(unit, factors);
                        let products = _mm512_dpbusd_epi32(fix, levels[v], values[v]);
                        sums[n][v] =
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, sums[n][v]);
                    }
                } else {
                    let fix = x[n].fix_both.as_ptr();
                    // SAFETY: as above.
                    let fix = unsafe { _mm512_loadu_si512(fix.add(16 * at).cast()) };
                    let factor = _mm512_permutexvar_ps(unit, factors);
                    let products = _mm512_dpbusd_epi32(fix, levels[0], values[0]);
                    let products = _mm512_dpbusd_epi32(products, levels[1], values[1]);
                    let sum = &mut sums[n][at % 2];
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, *sum);
                }
            }
        }};
    }
    let full = row.cols / BLOCK;
    let fours = full / 4;
    for four in 0..fours {
        // A line of each plane.
        planes.prefetch(4 * four);
        // Spelled out, so that each sum has a register of its own.
        add!(planes.block(4 * four), 4 * four);
        add!(planes.block(4 * four + 1), 4 * four + 1);
        add!(planes.block(4 * four + 2), 4 * four + 2);
        add!(planes.block(4 * four + 3), 4 * four + 3);
    }
    for at in 4 * fours..full {
        add!(planes.block(at), at);
    }
    if !row.cols.is_multiple_of(BLOCK) {
        add!(planes.last_block(full), full);
    }
    sums.map(|[a, b]| _mm512_reduce_add_ps(_mm512_add_ps(a, b)))
}

/// See [`dot_f32`](super::dot::dot_f32).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<64>();
    let (b, b_rest) = b.as_chunks::<64>();
    let mut sums = [_mm512_setzero_ps(); 4];
    for (a, b) in a.iter().zip(b) {
        let some = a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0);
        for (sum, (a, b)) in sums.iter_mut().zip(some) {
            *sum = _mm512_fmadd_ps(load_ps(a), load_ps(b), *sum);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest.chunks(16)).zip(b_rest.chunks(16)) {
        *sum = _mm512_fmadd_ps(load_some(a), load_some(b), *sum);
    }
    let [a, b, c, d] = sums;
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}

/// See [`stream_copy`](super::memory::stream_copy).
///
/// # Safety
/// The CPU can run [`Kernel::Avx512`](super::Kernel::Avx512).
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn stream_copy(to: &mut [u8], from: &[u8]) {
    let head = to.as_ptr().align_offset(64).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let (to, to_tail) = to.as_chunks_mut::<64>();
    let (from, from_tail) = from.as_chunks::<64>();
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: 64 bytes have room, at a multiple of 64.
        unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), load64(from)) };
    }
    to_tail.copy_from_slice(from_tail);
}
