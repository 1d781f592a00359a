//! Which order of bits inside a bit plane decodes fastest?
//!
//! A tensor `[rows, cols]` of 5-bit codes is stored as five bit planes, most
//! significant first, each contiguous for the whole tensor. This program
//! measures four orders of the bits inside a plane:
//!
//! * `N64`: natural order, bit `j` of byte `i` of a row is weight `8i + j`;
//! * `T32`: blocks of 256 weights, bit `k` of byte `b` is weight `32k + b`;
//! * `T4` (codes and matvec only): blocks of 32 weights, bit `k` of byte `b` is
//!   weight `4k + b`;
//! * `T64`: blocks of 512 weights, bit `k` of byte `b` is weight `64k + b`;
//!
//! for three jobs: `codes` (one `u8` code per weight, in order), `bf16`
//! (dequantized weights, in order) and `matvec` (`y = W x`, `x` in int8 with
//! one scale per 32 values). Every kernel is compared with a naive decoder on
//! the whole tensor before it is timed.
//!
//! Run: `rustc -O --edition 2024 -o target/plane_order lab/plane_order/plane_order.rs`, then
//! `target/plane_order --bench --record FILE`
//! (`--samples N` sets the samples per kernel and size; with `--test`, or
//! without `--bench`, the kernels are only checked
//! on a small tensor; `RUSTFLAGS` is not needed, kernels are chosen
//! at run time).

#![allow(unsafe_code, reason = "intrinsics, each block with its reason")]
#![allow(clippy::cast_possible_truncation, reason = "bit arithmetic on known ranges")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

/// The 32 levels, ascending.
const LEVELS: [i8; 32] = [
    -127, -105, -88, -75, -65, -56, -48, -41, -35, -29, -24, -20, -15, -11, -6, -2, 2, 6, 11, 15,
    20, 24, 29, 35, 41, 48, 56, 65, 75, 88, 105, 127,
];
/// The 16 group steps.
const STEPS: [u8; 16] = [32, 35, 38, 42, 46, 51, 56, 61, 67, 74, 81, 88, 97, 106, 117, 128];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    N64,
    T4,
    T32,
    T64,
}

const LAYOUTS: [Layout; 4] = [Layout::N64, Layout::T4, Layout::T32, Layout::T64];

impl Layout {
    /// Byte and bit, inside a row of one plane, of weight `w`.
    fn place(self, w: usize) -> (usize, usize) {
        match self {
            Layout::N64 => (w / 8, w % 8),
            Layout::T4 => (w / 32 * 4 + w % 4, w / 4 % 8),
            Layout::T32 => (w / 256 * 32 + w % 32, w / 32 % 8),
            Layout::T64 => (w / 512 * 64 + w % 64, w / 64 % 8),
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A byte buffer that starts on a cache line.
struct Bytes {
    lines: Vec<Line>,
}

impl Bytes {
    fn new(len: usize) -> Self {
        Bytes { lines: vec![Line([0; 64]); len.div_ceil(64)] }
    }
    fn as_ptr(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }
    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }
    fn get(&self, len: usize) -> &[u8] {
        assert!(len <= self.lines.len() * 64);
        // SAFETY: `len` initialised bytes are inside the allocation.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), len) }
    }
    fn get_mut(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.lines.len() * 64);
        // SAFETY: `len` initialised bytes are inside the allocation, borrowed once.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), len) }
    }
}

struct Tensor {
    layout: Layout,
    rows: usize,
    cols: usize,
    /// Five planes of `rows * cols / 8` bytes.
    planes: Bytes,
    /// One 4-bit step index per 32 weights, low nibble first.
    steps: Vec<u8>,
    scales: Vec<f32>,
}

impl Tensor {
    fn row_bytes(&self) -> usize {
        self.cols / 8
    }
    fn plane_bytes(&self) -> usize {
        self.rows * self.cols / 8
    }
    fn step_bytes(&self) -> usize {
        self.cols / 64
    }
    fn step(&self, row: usize, group: usize) -> usize {
        let b = self.steps[row * self.step_bytes() + group / 2];
        usize::from(b >> (4 * (group % 2)) & 15)
    }
    /// The naive decoder, one weight at a time.
    fn naive_code(&self, row: usize, col: usize) -> u8 {
        let (byte, bit) = self.layout.place(col);
        let all = self.planes.get(5 * self.plane_bytes());
        let mut code = 0;
        for p in 0..5 {
            let b = all[p * self.plane_bytes() + row * self.row_bytes() + byte];
            code = code << 1 | (b >> bit & 1);
        }
        code
    }
}

/// The activations, with the orders the kernels want them in.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
struct Input {
    q: Vec<i8>,
    scale: Vec<f32>,
    /// `-128 * scale * sum(q)` per group: undoes the bias of the levels.
    fix: Vec<f32>,
    /// `-128 * sum(q)` per group.
    fix_int: Vec<i32>,
    natural: Bytes,
    natural_abs: Bytes,
    /// Per block of 256: `[k][i] = x[8i + k]`.
    n256: Bytes,
    n256_abs: Bytes,
    /// Per block of 512: `[k][i] = x[8i + k]`.
    n512: Bytes,
    /// Per block of 512: `[k][h][b] = x[256h + 32k + b]`.
    t32x2: Bytes,
    /// Per block of 256 (512): `[k][4g + b] = x[32g + 4k + b]`.
    t4x256: Bytes,
    t4x256_abs: Bytes,
    t4x512: Bytes,
}

impl Input {
    fn new(rng: &mut Rng, cols: usize) -> Self {
        let q: Vec<i8> =
            (0..cols).map(|_| (rng.next() % 255) as i16 - 127).map(|v| v as i8).collect();
        let scale: Vec<f32> =
            (0..cols / 32).map(|_| 0.5 + (rng.next() % 1000) as f32 / 1000.0).collect();
        let sums: Vec<i32> = q.chunks(32).map(|c| c.iter().map(|&v| i32::from(v)).sum()).collect();
        let fill = |f: &dyn Fn(usize) -> usize, abs: bool| {
            let mut b = Bytes::new(cols);
            for (i, o) in b.get_mut(cols).iter_mut().enumerate() {
                let v = q[f(i)];
                *o = if abs { v.unsigned_abs() } else { v as u8 };
            }
            b
        };
        let n256 = |i: usize| i / 256 * 256 + i % 32 * 8 + i / 32 % 8;
        let n512 = |i: usize| i / 512 * 512 + i % 64 * 8 + i / 64 % 8;
        let t32 = |i: usize| i / 512 * 512 + i / 32 % 2 * 256 + i / 64 % 8 * 32 + i % 32;
        let t4x256 = |i: usize| i / 256 * 256 + i % 32 / 4 * 32 + i / 32 % 8 * 4 + i % 4;
        let t4x512 = |i: usize| i / 512 * 512 + i % 64 / 4 * 32 + i / 64 % 8 * 4 + i % 4;
        Input {
            fix: (0..cols / 32).map(|g| -128.0 * scale[g] * sums[g] as f32).collect(),
            fix_int: sums.iter().map(|s| -128 * s).collect(),
            natural: fill(&|i| i, false),
            natural_abs: fill(&|i| i, true),
            n256: fill(&n256, false),
            n256_abs: fill(&n256, true),
            n512: fill(&n512, false),
            t32x2: fill(&t32, false),
            t4x256: fill(&t4x256, false),
            t4x256_abs: fill(&t4x256, true),
            t4x512: fill(&t4x512, false),
            q,
            scale,
        }
    }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
}

/// Random codes, steps and scales, packed in each layout.
fn tensors(rng: &mut Rng, rows: usize, cols: usize) -> (Vec<u8>, Vec<Tensor>) {
    let mut codes = vec![0u8; rows * cols];
    for c in codes.chunks_mut(8) {
        let r = rng.next();
        for (i, v) in c.iter_mut().enumerate() {
            *v = (r >> (5 * i) & 31) as u8;
        }
    }
    let steps: Vec<u8> = (0..rows * cols / 64).map(|_| rng.next() as u8).collect();
    let scales: Vec<f32> = (0..rows)
        .map(|_| {
            let v = 0.25e-5 + (rng.next() % 4096) as f32 * 1e-9;
            f32::from_bits(v.to_bits() & 0xffff_0000)
        })
        .collect();
    let all = LAYOUTS
        .iter()
        .map(|&layout| {
            let plane = rows * cols / 8;
            let mut planes = Bytes::new(5 * plane);
            let bytes = planes.get_mut(5 * plane);
            let places: Vec<(usize, usize)> = (0..cols).map(|w| layout.place(w)).collect();
            for (r, row) in codes.chunks(cols).enumerate() {
                let base = r * cols / 8;
                for (&code, &(byte, bit)) in row.iter().zip(&places) {
                    for p in 0..5 {
                        bytes[p * plane + base + byte] |= (code >> (4 - p) & 1) << bit;
                    }
                }
            }
            Tensor { layout, rows, cols, planes, steps: steps.clone(), scales: scales.clone() }
        })
        .collect();
    (codes, all)
}

#[inline(always)]
fn to_bf16(v: f32) -> u16 {
    let b = v.to_bits();
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

/// 16 tables of 32 bf16 values for one row.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn row_tables(scale: f32, tables: &mut [[u16; 32]; 16]) {
    for (table, &step) in tables.iter_mut().zip(&STEPS) {
        let f = scale * f32::from(step);
        for (v, &level) in table.iter_mut().zip(&LEVELS) {
            *v = to_bf16(f * f32::from(level));
        }
    }
}

/// The same as two byte tables: 32 low bytes, then 32 high bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn row_byte_tables(scale: f32, tables: &mut [[u8; 64]; 16]) {
    for (table, &step) in tables.iter_mut().zip(&STEPS) {
        let f = scale * f32::from(step);
        let mut words = [0u16; 32];
        for (v, &level) in words.iter_mut().zip(&LEVELS) {
            *v = to_bf16(f * f32::from(level));
        }
        for i in 0..32 {
            table[i] = words[i] as u8;
            table[32 + i] = (words[i] >> 8) as u8;
        }
    }
}

/// Portable kernels: `u64` arithmetic only.
mod scalar {
    use super::Tensor;

    const fn rep(b: u8) -> u64 {
        b as u64 * 0x0101_0101_0101_0101
    }

    /// Eight bytes of each plane to eight words: byte `b` of word `k` is the
    /// code at bit `k` of byte `b`.
    #[inline(always)]
    fn swar(p: [u64; 5]) -> [u64; 8] {
        let [b4, b3, b2, b1, b0] = p;
        let t = (b0 >> 1 ^ b1) & rep(0x55);
        let (e10, o10) = (b0 ^ t << 1, b1 ^ t);
        let t = (b2 >> 1 ^ b3) & rep(0x55);
        let (e32, o32) = (b2 ^ t << 1, b3 ^ t);
        let t = (e10 >> 2 ^ e32) & rep(0x33);
        let (q0, q2) = (e10 ^ t << 2, e32 ^ t);
        let t = (o10 >> 2 ^ o32) & rep(0x33);
        let (q1, q3) = (o10 ^ t << 2, o32 ^ t);
        let (lo, hi) = (rep(0x0f), rep(0x10));
        [
            q0 & lo | b4 << 4 & hi,
            q1 & lo | b4 << 3 & hi,
            q2 & lo | b4 << 2 & hi,
            q3 & lo | b4 << 1 & hi,
            q0 >> 4 & lo | b4 & hi,
            q1 >> 4 & lo | b4 >> 1 & hi,
            q2 >> 4 & lo | b4 >> 2 & hi,
            q3 >> 4 & lo | b4 >> 3 & hi,
        ]
    }

    #[inline(always)]
    fn load(planes: [&[u8]; 5], at: usize) -> [u64; 5] {
        planes.map(|p| u64::from_le_bytes(p[at..at + 8].try_into().unwrap()))
    }

    fn planes(t: &Tensor) -> [&[u8]; 5] {
        let n = t.plane_bytes();
        let all = t.planes.get(5 * n);
        std::array::from_fn(|p| &all[p * n..(p + 1) * n])
    }

    /// One byte per weight, as every caller of a kernel gives it.
    fn output<'a>(weights: usize, out: *mut u8) -> &'a mut [u8] {
        // SAFETY: the caller of every kernel gives one byte per weight.
        unsafe { std::slice::from_raw_parts_mut(out, weights) }
    }

    fn codes_t<const W: usize>(t: &Tensor, out: *mut u8) {
        let p = planes(t);
        for (block, o) in output(t.rows * t.cols, out).chunks_exact_mut(8 * W).enumerate() {
            for b in (0..W).step_by(8) {
                let v = swar(load(p, block * W + b));
                for (k, v) in v.iter().enumerate() {
                    o[k * W + b..k * W + b + 8].copy_from_slice(&v.to_le_bytes());
                }
            }
        }
    }

    pub unsafe fn codes_t4(t: &Tensor, out: *mut u8) {
        let p = planes(t);
        for (i, o) in output(t.rows * t.cols, out).chunks_exact_mut(64).enumerate() {
            let v = swar(load(p, 8 * i));
            for (k, v) in v.into_iter().enumerate() {
                o[4 * k..4 * k + 4].copy_from_slice(&(v as u32).to_le_bytes());
                o[32 + 4 * k..36 + 4 * k].copy_from_slice(&((v >> 32) as u32).to_le_bytes());
            }
        }
    }

    pub unsafe fn codes_t32(t: &Tensor, out: *mut u8) {
        codes_t::<32>(t, out);
    }

    pub unsafe fn codes_t64(t: &Tensor, out: *mut u8) {
        codes_t::<64>(t, out);
    }

    /// `swar`, then an 8x8 transpose of bytes.
    pub unsafe fn codes_n64_transpose(t: &Tensor, out: *mut u8) {
        #[inline(always)]
        fn swap<const S: u32>(v: &mut [u64; 8], i: usize, j: usize, mask: u64) {
            let t = (v[i] >> S ^ v[j]) & mask;
            v[j] ^= t;
            v[i] ^= t << S;
        }
        let p = planes(t);
        for (i, o) in output(t.rows * t.cols, out).chunks_exact_mut(64).enumerate() {
            let mut v = swar(load(p, 8 * i));
            for k in [0, 2, 4, 6] {
                swap::<8>(&mut v, k, k + 1, 0x00ff_00ff_00ff_00ff);
            }
            for k in [0, 1, 4, 5] {
                swap::<16>(&mut v, k, k + 2, 0x0000_ffff_0000_ffff);
            }
            for k in 0..4 {
                swap::<32>(&mut v, k, k + 4, 0x0000_0000_ffff_ffff);
            }
            for (o, v) in o.chunks_exact_mut(8).zip(v) {
                o.copy_from_slice(&v.to_le_bytes());
            }
        }
    }

    const SPREAD: [u64; 256] = {
        let mut t = [0u64; 256];
        let mut i = 0;
        while i < 256 {
            let mut j = 0;
            while j < 8 {
                t[i] |= (i as u64 >> j & 1) << (8 * j);
                j += 1;
            }
            i += 1;
        }
        t
    };

    /// One table look-up per byte of a plane: bit `j` goes to byte `j`.
    pub unsafe fn codes_n64_table(t: &Tensor, out: *mut u8) {
        static TABLE: [u64; 256] = SPREAD;
        let p = planes(t);
        for (i, o) in output(t.rows * t.cols, out).chunks_exact_mut(64).enumerate() {
            let w = load(p, 8 * i);
            for (j, o) in o.chunks_exact_mut(8).enumerate() {
                let mut v = 0;
                for w in w {
                    v = v << 1 | TABLE[(w >> (8 * j) & 255) as usize];
                }
                o.copy_from_slice(&v.to_le_bytes());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Bytes, Input, LEVELS, STEPS, Tensor, row_byte_tables};
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn load5(t: &Tensor, at: usize) -> [__m256i; 5] {
        let n = t.plane_bytes();
        // SAFETY: the caller keeps `at + 32 <= n`.
        std::array::from_fn(|p| unsafe {
            _mm256_loadu_si256(t.planes.as_ptr().add(p * n + at).cast())
        })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn put(out: *mut u8, at: usize, v: __m256i) {
        // SAFETY: the caller keeps `at + 32` inside the output.
        unsafe { _mm256_storeu_si256(out.add(at).cast(), v) }
    }

    /// Two 4-bit fields per byte: vector `k` has bits `k` (low) and `k + 4`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn nibbles(p: [__m256i; 5]) -> [__m256i; 4] {
        let [_, b3, b2, b1, b0] = p;
        let m5 = _mm256_set1_epi8(0x55);
        let m3 = _mm256_set1_epi8(0x33);
        let one = |a, b| {
            let t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16::<1>(a), b), m5);
            (_mm256_xor_si256(a, _mm256_add_epi8(t, t)), _mm256_xor_si256(b, t))
        };
        let two = |a, b| {
            let t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16::<2>(a), b), m3);
            (_mm256_xor_si256(a, _mm256_slli_epi16::<2>(t)), _mm256_xor_si256(b, t))
        };
        let (e10, o10) = one(b0, b1);
        let (e32, o32) = one(b2, b3);
        let (q0, q2) = two(e10, e32);
        let (q1, q3) = two(o10, o32);
        [q0, q1, q2, q3]
    }

    /// The low four bits of the codes at bit `k`, clean.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn low4(q: [__m256i; 4]) -> [__m256i; 8] {
        let m = _mm256_set1_epi8(0x0f);
        std::array::from_fn(|k| {
            if k < 4 {
                _mm256_and_si256(q[k], m)
            } else {
                _mm256_and_si256(_mm256_srli_epi16::<4>(q[k - 4]), m)
            }
        })
    }

    /// The top plane with bit `k` of each byte moved to bit 7, in vector `k`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn top7(b: __m256i) -> [__m256i; 8] {
        [
            _mm256_slli_epi16::<7>(b),
            _mm256_slli_epi16::<6>(b),
            _mm256_slli_epi16::<5>(b),
            _mm256_slli_epi16::<4>(b),
            _mm256_slli_epi16::<3>(b),
            _mm256_slli_epi16::<2>(b),
            _mm256_slli_epi16::<1>(b),
            b,
        ]
    }

    /// The top plane with bit `k` of each byte moved to bit 4, in vector `k`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn top4(b: __m256i) -> [__m256i; 8] {
        [
            _mm256_slli_epi16::<4>(b),
            _mm256_slli_epi16::<3>(b),
            _mm256_slli_epi16::<2>(b),
            _mm256_slli_epi16::<1>(b),
            b,
            _mm256_srli_epi16::<1>(b),
            _mm256_srli_epi16::<2>(b),
            _mm256_srli_epi16::<3>(b),
        ]
    }

    /// Natural order: low four bits and 0xff/0 masks of the top bit for 8
    /// vectors of 32 weights. `ORDER` 0: weights in order; 1: ordered for the later
    /// unpack to words (weights 0-7, 16-23 | 8-15, 24-31); 2: no reordering, lanes
    /// are 128 weights apart.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn natural<const ORDER: u8>(p: [__m256i; 5]) -> ([__m256i; 8], [__m256i; 8]) {
        let order = _mm256_broadcastsi128_si256(if ORDER == 1 {
            _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)
        } else {
            _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)
        });
        let p = p.map(|v| {
            if ORDER == 2 {
                v
            } else {
                _mm256_permute4x64_epi64::<0xd8>(_mm256_shuffle_epi8(v, order))
            }
        });
        let [q0, q1, q2, q3] = nibbles(p);
        let (al, ah) = (_mm256_unpacklo_epi8(q0, q1), _mm256_unpackhi_epi8(q0, q1));
        let (bl, bh) = (_mm256_unpacklo_epi8(q2, q3), _mm256_unpackhi_epi8(q2, q3));
        let d = [
            _mm256_unpacklo_epi16(al, bl),
            _mm256_unpackhi_epi16(al, bl),
            _mm256_unpacklo_epi16(ah, bh),
            _mm256_unpackhi_epi16(ah, bh),
        ];
        let m = _mm256_set1_epi8(0x0f);
        let low: [__m256i; 8] = std::array::from_fn(|w| {
            let v = d[w / 2];
            let l = _mm256_and_si256(v, m);
            let h = _mm256_and_si256(_mm256_srli_epi16::<4>(v), m);
            if w % 2 == 0 { _mm256_unpacklo_epi32(l, h) } else { _mm256_unpackhi_epi32(l, h) }
        });
        let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let top = std::array::from_fn(|w| {
            let rep = _mm256_set_epi64x(
                (2 * w as i64 + 1) * 0x0101_0101_0101_0101,
                2 * w as i64 * 0x0101_0101_0101_0101,
                (2 * w as i64 + 1) * 0x0101_0101_0101_0101,
                2 * w as i64 * 0x0101_0101_0101_0101,
            );
            let v = _mm256_and_si256(_mm256_shuffle_epi8(p[0], rep), bits);
            _mm256_cmpeq_epi8(v, bits)
        });
        (low, top)
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn codes_n64(t: &Tensor, out: *mut u8) {
        let ten = _mm256_set1_epi8(0x10);
        for at in (0..t.plane_bytes()).step_by(32) {
            // SAFETY: `at` is a block of 32 bytes, 256 weights, in range.
            unsafe {
                let (low, top) = natural::<0>(load5(t, at));
                for w in 0..8 {
                    let v = _mm256_or_si256(low[w], _mm256_and_si256(top[w], ten));
                    put(out, at * 8 + 32 * w, v);
                }
            }
        }
    }

    /// The same with 16-byte stores in place of the reordering.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn codes_n64_stores(t: &Tensor, out: *mut u8) {
        let ten = _mm256_set1_epi8(0x10);
        for at in (0..t.plane_bytes()).step_by(32) {
            // SAFETY: `at` is a block of 32 bytes, 256 weights, in range.
            unsafe {
                let (low, top) = natural::<2>(load5(t, at));
                for w in 0..8 {
                    let v = _mm256_or_si256(low[w], _mm256_and_si256(top[w], ten));
                    let o = out.add(at * 8 + 16 * w);
                    _mm_storeu_si128(o.cast(), _mm256_castsi256_si128(v));
                    _mm_storeu_si128(o.add(128).cast(), _mm256_extracti128_si256::<1>(v));
                }
            }
        }
    }

    /// Replicate bytes, test one bit per byte, shift the results in.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn codes_n64_test(t: &Tensor, out: *mut u8) {
        let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let one = 0x0101_0101_0101_0101_i64;
        let rep = _mm256_setr_epi64x(0, one, 2 * one, 3 * one);
        let n = t.plane_bytes();
        for at in (0..n).step_by(4) {
            // SAFETY: `at` is a group of 4 bytes, 32 weights, in range.
            unsafe {
                let mut v = _mm256_setzero_si256();
                for p in 0..5 {
                    let w = t.planes.as_ptr().add(p * n + at).cast::<i32>().read_unaligned();
                    let b = _mm256_shuffle_epi8(_mm256_set1_epi32(w), rep);
                    let hit = _mm256_cmpeq_epi8(_mm256_and_si256(b, bits), bits);
                    v = _mm256_or_si256(v, _mm256_and_si256(hit, _mm256_set1_epi8(16 >> p)));
                }
                put(out, at * 8, v);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn codes_t<const W: usize>(t: &Tensor, out: *mut u8) {
        let ten = _mm256_set1_epi8(0x10);
        for block in (0..t.plane_bytes()).step_by(W) {
            for half in (0..W).step_by(32) {
                // SAFETY: 32 bytes of a block of `8 * W` weights, in range.
                unsafe {
                    let p = load5(t, block + half);
                    let low = low4(nibbles(p));
                    let top = top4(p[0]);
                    for k in 0..8 {
                        let v = _mm256_or_si256(low[k], _mm256_and_si256(top[k], ten));
                        put(out, block * 8 + W * k + half, v);
                    }
                }
            }
        }
    }

    /// `swar`, then a 4x4 transpose of 32-bit words in each lane.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn codes_t4(t: &Tensor, out: *mut u8) {
        let ten = _mm256_set1_epi8(0x10);
        for at in (0..t.plane_bytes()).step_by(32) {
            // SAFETY: `at` is a block of 32 bytes, 256 weights, in range.
            unsafe {
                let p = load5(t, at);
                let low = low4(nibbles(p));
                let top = top4(p[0]);
                let v: [__m256i; 8] =
                    std::array::from_fn(|k| _mm256_or_si256(low[k], _mm256_and_si256(top[k], ten)));
                let words = |v: &[__m256i]| {
                    let (a, b) =
                        (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
                    let (c, d) =
                        (_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
                    [
                        _mm256_unpacklo_epi64(a, c),
                        _mm256_unpackhi_epi64(a, c),
                        _mm256_unpacklo_epi64(b, d),
                        _mm256_unpackhi_epi64(b, d),
                    ]
                };
                let (l, h) = (words(&v[..4]), words(&v[4..]));
                for g in 0..4 {
                    let o = at * 8 + 32 * g;
                    put(out, o, _mm256_permute2x128_si256::<0x20>(l[g], h[g]));
                    put(out, o + 128, _mm256_permute2x128_si256::<0x31>(l[g], h[g]));
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn codes_t32(t: &Tensor, out: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { codes_t::<32>(t, out) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn codes_t64(t: &Tensor, out: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { codes_t::<64>(t, out) }
    }

    /// 32 bf16 weights from the low four bits and the top bit (in bit 7).
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn weights(table: &[u8; 64], low: __m256i, top: __m256i, out: *mut u16) {
        // SAFETY: the table is 64 bytes; the caller gives room for 32 weights.
        unsafe {
            let part = |i: usize| {
                _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().add(i).cast()))
            };
            let lo = _mm256_blendv_epi8(
                _mm256_shuffle_epi8(part(0), low),
                _mm256_shuffle_epi8(part(16), low),
                top,
            );
            let hi = _mm256_blendv_epi8(
                _mm256_shuffle_epi8(part(32), low),
                _mm256_shuffle_epi8(part(48), low),
                top,
            );
            _mm256_storeu_si256(out.cast(), _mm256_unpacklo_epi8(lo, hi));
            _mm256_storeu_si256(out.add(16).cast(), _mm256_unpackhi_epi8(lo, hi));
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn bf16_n64(t: &Tensor, out: *mut u16) {
        let mut tables = [[0u8; 64]; 16];
        for r in 0..t.rows {
            row_byte_tables(t.scales[r], &mut tables);
            for block in (0..t.row_bytes()).step_by(32) {
                // SAFETY: a block of 256 weights of row `r`, in range.
                unsafe {
                    let at = r * t.row_bytes() + block;
                    let (low, top) = natural::<1>(load5(t, at));
                    let s = t.steps.as_ptr().add(at / 8).cast::<u32>().read_unaligned();
                    for w in 0..8 {
                        let table = &tables[(s >> (4 * w) & 15) as usize];
                        weights(table, low[w], top[w], out.add(at * 8 + 32 * w));
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn bf16_t<const W: usize>(t: &Tensor, out: *mut u16) {
        let mut tables = [[0u8; 64]; 16];
        for r in 0..t.rows {
            row_byte_tables(t.scales[r], &mut tables);
            for block in (0..t.row_bytes()).step_by(W) {
                let at = r * t.row_bytes() + block;
                for half in (0..W).step_by(32) {
                    // SAFETY: 32 bytes of a block of `8 * W` weights of row `r`.
                    unsafe {
                        let p = load5(t, at + half).map(|v| _mm256_permute4x64_epi64::<0xd8>(v));
                        let low = low4(nibbles(p));
                        let top = top7(p[0]);
                        let s = t.steps.as_ptr().add(at / 8);
                        let s = if W == 32 {
                            u64::from(s.cast::<u32>().read_unaligned())
                        } else {
                            s.cast::<u64>().read_unaligned() >> (half / 8)
                        };
                        for k in 0..8 {
                            let table = &tables[(s >> (W / 8 * k) & 15) as usize];
                            weights(table, low[k], top[k], out.add(at * 8 + W * k + half));
                        }
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn bf16_t32(t: &Tensor, out: *mut u16) {
        // SAFETY: as the caller promises.
        unsafe { bf16_t::<32>(t, out) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn bf16_t64(t: &Tensor, out: *mut u16) {
        // SAFETY: as the caller promises.
        unsafe { bf16_t::<64>(t, out) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn level_tables() -> [__m256i; 2] {
        // SAFETY: both loads are inside the table of 32 bytes.
        [0, 16].map(|i| unsafe {
            _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVELS.as_ptr().add(i).cast()))
        })
    }

    /// Sums of two products `level * x` in 16 bits.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn pairs(
        l: [__m256i; 2],
        low: __m256i,
        top: __m256i,
        x: *const u8,
        abs: *const u8,
    ) -> __m256i {
        let v =
            _mm256_blendv_epi8(_mm256_shuffle_epi8(l[0], low), _mm256_shuffle_epi8(l[1], low), top);
        // SAFETY: the caller keeps 32 activations in range.
        unsafe {
            let x = _mm256_loadu_si256(x.cast());
            let abs = _mm256_loadu_si256(abs.cast());
            _mm256_maddubs_epi16(abs, _mm256_sign_epi8(v, x))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn sum(v: __m256) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }

    /// Natural order: 4 bytes of a plane are one group, so after the bit
    /// transpose each 32-bit lane is one group; `x` is reordered once.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn matvec_n64(t: &Tensor, x: &Input, y: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { matvec_lanes(t, x, [&x.n256, &x.n256_abs], y) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn matvec_t4(t: &Tensor, x: &Input, y: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { matvec_lanes(t, x, [&x.t4x256, &x.t4x256_abs], y) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn matvec_lanes(t: &Tensor, x: &Input, xs: [&Bytes; 2], y: *mut f32) {
        let l = level_tables();
        let ones = _mm256_set1_epi16(1);
        let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        let clear = _mm256_set1_epi32(0x8080_8000_u32 as i32);
        for r in 0..t.rows {
            let mut acc = _mm256_setzero_ps();
            for block in (0..t.row_bytes()).step_by(32) {
                // SAFETY: a block of 256 weights of row `r`, in range.
                unsafe {
                    let steps = _mm256_broadcastsi128_si256(_mm_loadu_si128(STEPS.as_ptr().cast()));
                    let at = r * t.row_bytes() + block;
                    let p = load5(t, at);
                    let low = low4(nibbles(p));
                    let top = top7(p[0]);
                    let xp = xs[0].as_ptr().add(block * 8);
                    let ap = xs[1].as_ptr().add(block * 8);
                    let mut dot = _mm256_setzero_si256();
                    for k in 0..8 {
                        let v = pairs(l, low[k], top[k], xp.add(32 * k), ap.add(32 * k));
                        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(v, ones));
                    }
                    let s = t.steps.as_ptr().add(at / 8).cast::<i32>().read_unaligned();
                    let s = _mm256_srlv_epi32(_mm256_set1_epi32(s), shifts);
                    let s = _mm256_and_si256(s, _mm256_set1_epi32(15));
                    let s = _mm256_shuffle_epi8(steps, _mm256_or_si256(s, clear));
                    let dot = _mm256_mullo_epi32(dot, s);
                    let scale = _mm256_loadu_ps(x.scale.as_ptr().add(block / 4));
                    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc);
                }
            }
            // SAFETY: the caller gives one output per row.
            unsafe { *y.add(r) = sum(acc) * t.scales[r] };
        }
    }

    static STEP_PAIRS: [i32; 16] = {
        let mut t = [0; 16];
        let mut i = 0;
        while i < 16 {
            t[i] = STEPS[i] as i32 * 0x1_0001;
            i += 1;
        }
        t
    };

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn matvec_t<const W: usize>(t: &Tensor, x: &Input, y: *mut f32) {
        let l = level_tables();
        for r in 0..t.rows {
            let mut acc = [_mm256_setzero_ps(); 2];
            for block in (0..t.row_bytes()).step_by(W) {
                let at = r * t.row_bytes() + block;
                for half in (0..W).step_by(32) {
                    // SAFETY: 32 bytes of a block of `8 * W` weights of row `r`.
                    unsafe {
                        let p = load5(t, at + half);
                        let low = low4(nibbles(p));
                        let top = top7(p[0]);
                        let s = t.steps.as_ptr().add(at / 8);
                        let s = if W == 32 {
                            u64::from(s.cast::<u32>().read_unaligned())
                        } else {
                            s.cast::<u64>().read_unaligned() >> (half / 8)
                        };
                        for k in 0..8 {
                            let i = block * 8 + W * k + half;
                            let v = pairs(
                                l,
                                low[k],
                                top[k],
                                x.natural.as_ptr().add(i),
                                x.natural_abs.as_ptr().add(i),
                            );
                            let s = STEP_PAIRS[(s >> (W / 8 * k) & 15) as usize];
                            let dot = _mm256_madd_epi16(v, _mm256_set1_epi32(s));
                            let scale = _mm256_set1_ps(*x.scale.as_ptr().add(i / 32));
                            acc[k % 2] =
                                _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc[k % 2]);
                        }
                    }
                }
            }
            // SAFETY: the caller gives one output per row.
            unsafe { *y.add(r) = sum(_mm256_add_ps(acc[0], acc[1])) * t.scales[r] };
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn matvec_t32(t: &Tensor, x: &Input, y: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { matvec_t::<32>(t, x, y) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn matvec_t64(t: &Tensor, x: &Input, y: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { matvec_t::<64>(t, x, y) }
    }
}

/// Needs AVX-512 F, BW, VL, VBMI, VNNI and GFNI.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Bytes, Input, LEVELS, STEPS, Tensor, row_tables};
    use std::arch::x86_64::*;

    macro_rules! wide {
        ($($(#[$m:meta])* $v:vis unsafe fn $n:ident $([$($g:tt)*])? ($($a:tt)*) $(-> $r:ty)? $b:block)*) => {$(
            $(#[$m])*
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni")]
            $v unsafe fn $n $(<$($g)*>)? ($($a)*) $(-> $r)? $b
        )*};
    }

    /// `a` where the mask is set, else `b`.
    macro_rules! select {
        ($m:expr, $a:expr, $b:expr) => {
            _mm512_ternarylogic_epi64::<0xca>($m, $a, $b)
        };
    }

    /// Plane byte (of 64) wanted at byte `s` of lane `l` by `gather`.
    const fn wanted(split: bool, l: usize, s: usize) -> u8 {
        let (q, e) = (s / 2, s % 2);
        (if split { 8 * q + 4 * e + l } else { 8 * q + 2 * l + e }) as u8
    }

    const fn order(split: bool) -> [u8; 64] {
        let mut t = [0; 64];
        let mut i = 0;
        while i < 64 {
            t[i] = wanted(split, i / 16, i % 16);
            i += 1;
        }
        t
    }

    /// Indices into two planes: byte `s` of the first, of the second, and so on.
    const fn order_two(split: bool, high: usize) -> [u8; 64] {
        let mut t = [0; 64];
        let mut i = 0;
        while i < 64 {
            let s = i % 16 / 2 + 8 * high;
            t[i] = wanted(split, i / 16, s) + if i % 2 == 1 { 64 } else { 0 };
            i += 1;
        }
        t
    }

    /// The top plane at byte 3 of each 32-bit lane, for words `4m..4m + 4`.
    const fn order_top(split: bool, m: usize) -> [u8; 64] {
        let mut t = [0; 64];
        let mut i = 0;
        while i < 64 {
            t[i] = wanted(split, i / 16, 4 * m + i % 16 / 4);
            i += 1;
        }
        t
    }

    wide! {
        unsafe fn table(t: &[u8; 64]) -> __m512i {
            // SAFETY: 64 bytes are readable.
            unsafe { _mm512_loadu_si512(t.as_ptr().cast()) }
        }

        unsafe fn load5(t: &Tensor, at: usize) -> [__m512i; 5] {
            let n = t.plane_bytes();
            // SAFETY: the caller keeps `at + 64 <= n`.
            std::array::from_fn(|p| unsafe {
                _mm512_loadu_si512(t.planes.as_ptr().add(p * n + at).cast())
            })
        }

        unsafe fn put(out: *mut u8, at: usize, v: __m512i) {
            // SAFETY: the caller keeps `at + 64` inside the output.
            unsafe { _mm512_storeu_si512(out.add(at).cast(), v) }
        }

        /// Byte `b` of vector `k` is the code at bit `k` of byte `b`; bits above 5
        /// are garbage.
        unsafe fn swar(p: [__m512i; 5]) -> [__m512i; 8] {
            let [b4, b3, b2, b1, b0] = p;
            let m5 = _mm512_set1_epi8(0x55);
            let m3 = _mm512_set1_epi8(0x33);
            let mf = _mm512_set1_epi8(0x0f);
            let e10 = select!(m5, b0, _mm512_slli_epi16::<1>(b1));
            let o10 = select!(m5, _mm512_srli_epi16::<1>(b0), b1);
            let e32 = select!(m5, b2, _mm512_slli_epi16::<1>(b3));
            let o32 = select!(m5, _mm512_srli_epi16::<1>(b2), b3);
            let q0 = select!(m3, e10, _mm512_slli_epi16::<2>(e32));
            let q2 = select!(m3, _mm512_srli_epi16::<2>(e10), e32);
            let q1 = select!(m3, o10, _mm512_slli_epi16::<2>(o32));
            let q3 = select!(m3, _mm512_srli_epi16::<2>(o10), o32);
            [
                select!(mf, q0, _mm512_slli_epi16::<4>(b4)),
                select!(mf, q1, _mm512_slli_epi16::<3>(b4)),
                select!(mf, q2, _mm512_slli_epi16::<2>(b4)),
                select!(mf, q3, _mm512_slli_epi16::<1>(b4)),
                select!(mf, _mm512_srli_epi16::<4>(q0), b4),
                select!(mf, _mm512_srli_epi16::<4>(q1), _mm512_srli_epi16::<1>(b4)),
                select!(mf, _mm512_srli_epi16::<4>(q2), _mm512_srli_epi16::<2>(b4)),
                select!(mf, _mm512_srli_epi16::<4>(q3), _mm512_srli_epi16::<3>(b4)),
            ]
        }

        /// Natural order: gather the five bytes of 8 weights in a word, then one
        /// GFNI 8x8 bit transpose per 64 weights. Clean codes. `SPLIT` orders each
        /// vector for the later unpack to words, `TWO` uses two-source permutes.
        unsafe fn gather[const SPLIT: bool, const TWO: bool](p: [__m512i; 5]) -> [__m512i; 8] {
            let [b4, b3, b2, b1, b0] = p;
            // SAFETY: the needed features are enabled on this function.
            unsafe {
                let (hl, hh, ll, lh) = if TWO {
                    let lo = table(const { &order_two(SPLIT, 0) });
                    let hi = table(const { &order_two(SPLIT, 1) });
                    (
                        _mm512_permutex2var_epi8(b3, lo, b2),
                        _mm512_permutex2var_epi8(b3, hi, b2),
                        _mm512_permutex2var_epi8(b1, lo, b0),
                        _mm512_permutex2var_epi8(b1, hi, b0),
                    )
                } else {
                    let o = table(const { &order(SPLIT) });
                    let b3 = _mm512_permutexvar_epi8(o, b3);
                    let b2 = _mm512_permutexvar_epi8(o, b2);
                    let b1 = _mm512_permutexvar_epi8(o, b1);
                    let b0 = _mm512_permutexvar_epi8(o, b0);
                    (
                        _mm512_unpacklo_epi8(b3, b2),
                        _mm512_unpackhi_epi8(b3, b2),
                        _mm512_unpacklo_epi8(b1, b0),
                        _mm512_unpackhi_epi8(b1, b0),
                    )
                };
                let y = [
                    _mm512_unpacklo_epi16(hl, ll),
                    _mm512_unpackhi_epi16(hl, ll),
                    _mm512_unpacklo_epi16(hh, lh),
                    _mm512_unpackhi_epi16(hh, lh),
                ];
                let m = 0x8888_8888_8888_8888;
                let x = [
                    _mm512_maskz_permutexvar_epi8(m, table(const { &order_top(SPLIT, 0) }), b4),
                    _mm512_maskz_permutexvar_epi8(m, table(const { &order_top(SPLIT, 1) }), b4),
                    _mm512_maskz_permutexvar_epi8(m, table(const { &order_top(SPLIT, 2) }), b4),
                    _mm512_maskz_permutexvar_epi8(m, table(const { &order_top(SPLIT, 3) }), b4),
                ];
                let unit = _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64);
                std::array::from_fn(|q| {
                    let (x, y) = (x[q / 2], y[q / 2]);
                    let v = if q % 2 == 0 {
                        _mm512_unpacklo_epi32(x, y)
                    } else {
                        _mm512_unpackhi_epi32(x, y)
                    };
                    _mm512_gf2p8affine_epi64_epi8::<0>(unit, v)
                })
            }
        }

        unsafe fn codes_gather[const TWO: bool](t: &Tensor, out: *mut u8) {
            for at in (0..t.plane_bytes()).step_by(64) {
                // SAFETY: a block of 64 bytes, 512 weights, in range.
                unsafe {
                    let v = gather::<false, TWO>(load5(t, at));
                    for (k, v) in v.into_iter().enumerate() {
                        put(out, at * 8 + 64 * k, v);
                    }
                }
            }
        }

        pub unsafe fn codes_n64_gfni(t: &Tensor, out: *mut u8) {
            // SAFETY: as the caller promises.
            unsafe { codes_gather::<false>(t, out) }
        }

        pub unsafe fn codes_n64_gfni_two(t: &Tensor, out: *mut u8) {
            // SAFETY: as the caller promises.
            unsafe { codes_gather::<true>(t, out) }
        }

        /// Mask registers: one masked operation per plane and 64 weights.
        pub unsafe fn codes_n64_mask(t: &Tensor, out: *mut u8) {
            let n = t.plane_bytes();
            for at in (0..n).step_by(8) {
                // SAFETY: 8 bytes of each plane, 64 weights, in range.
                unsafe {
                    let k = |p: usize| {
                        t.planes.as_ptr().add(p * n + at).cast::<u64>().read_unaligned()
                    };
                    let v = _mm512_maskz_mov_epi8(k(0), _mm512_set1_epi8(16));
                    let v = _mm512_mask_add_epi8(v, k(1), v, _mm512_set1_epi8(8));
                    let v = _mm512_mask_add_epi8(v, k(2), v, _mm512_set1_epi8(4));
                    let v = _mm512_mask_add_epi8(v, k(3), v, _mm512_set1_epi8(2));
                    let v = _mm512_mask_add_epi8(v, k(4), v, _mm512_set1_epi8(1));
                    put(out, at * 8, v);
                }
            }
        }

        pub unsafe fn codes_t64(t: &Tensor, out: *mut u8) {
            let m = _mm512_set1_epi8(31);
            for at in (0..t.plane_bytes()).step_by(64) {
                // SAFETY: a block of 64 bytes, 512 weights, in range.
                unsafe {
                    for (k, v) in swar(load5(t, at)).into_iter().enumerate() {
                        put(out, at * 8 + 64 * k, _mm512_and_si512(v, m));
                    }
                }
            }
        }

        pub unsafe fn codes_t32(t: &Tensor, out: *mut u8) {
            let m = _mm512_set1_epi8(31);
            for at in (0..t.plane_bytes()).step_by(64) {
                // SAFETY: two blocks of 32 bytes, 512 weights, in range (the spike
                // keeps `cols` a multiple of 512).
                unsafe {
                    let v = swar(load5(t, at)).map(|v| _mm512_and_si512(v, m));
                    for k in 0..4 {
                        let (a, b) = (v[2 * k], v[2 * k + 1]);
                        put(out, at * 8 + 64 * k, _mm512_shuffle_i64x2::<0x44>(a, b));
                        put(out, at * 8 + 256 + 64 * k, _mm512_shuffle_i64x2::<0xee>(a, b));
                    }
                }
            }
        }

        /// The same with 32-byte stores in place of shuffles.
        pub unsafe fn codes_t32_stores(t: &Tensor, out: *mut u8) {
            let m = _mm512_set1_epi8(31);
            for at in (0..t.plane_bytes()).step_by(64) {
                // SAFETY: as in `codes_t32`.
                unsafe {
                    for (k, v) in swar(load5(t, at)).into_iter().enumerate() {
                        let v = _mm512_and_si512(v, m);
                        let o = out.add(at * 8 + 32 * k);
                        _mm256_storeu_si256(o.cast(), _mm512_castsi512_si256(v));
                        _mm256_storeu_si256(o.add(256).cast(), _mm512_extracti64x4_epi64::<1>(v));
                    }
                }
            }
        }

        /// 32 weights: the low (or high) half of a vector ordered for the unpack.
        unsafe fn weights[const HIGH: bool](v: __m512i, table: &[u16; 32], out: *mut u16) {
            let v = if HIGH { _mm512_unpackhi_epi8(v, v) } else { _mm512_unpacklo_epi8(v, v) };
            // SAFETY: the table is 64 bytes; the caller gives room for 32 weights.
            unsafe {
                let t = _mm512_loadu_si512(table.as_ptr().cast());
                _mm512_storeu_si512(out.cast(), _mm512_permutexvar_epi16(v, t));
            }
        }

        /// `KIND`: 0 natural, 1 T32, 2 T64, 3 natural with two-source permutes.
        unsafe fn bf16[const KIND: u8](t: &Tensor, out: *mut u16) {
            let spread = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
            let mut tables = [[0u16; 32]; 16];
            for r in 0..t.rows {
                row_tables(t.scales[r], &mut tables);
                for block in (0..t.row_bytes()).step_by(64) {
                    // SAFETY: 64 bytes, 512 weights of row `r`, in range.
                    unsafe {
                        let at = r * t.row_bytes() + block;
                        let p = load5(t, at);
                        let v = match KIND {
                            0 => gather::<true, false>(p),
                            3 => gather::<true, true>(p),
                            _ => swar(p.map(|v| _mm512_permutexvar_epi64(spread, v))),
                        };
                        let s = t.steps.as_ptr().add(at / 8).cast::<u64>().read_unaligned();
                        // Output in ascending order in every layout.
                        for g in 0..16 {
                            let table = &tables[(s >> (4 * g) & 15) as usize];
                            let o = out.add(at * 8 + 32 * g);
                            let (k, high) = if KIND == 1 {
                                (g % 8, g >= 8)
                            } else {
                                (g / 2, g % 2 == 1)
                            };
                            if high {
                                weights::<true>(v[k], table, o);
                            } else {
                                weights::<false>(v[k], table, o);
                            }
                        }
                    }
                }
            }
        }

        pub unsafe fn bf16_n64_gfni(t: &Tensor, out: *mut u16) {
            // SAFETY: as the caller promises.
            unsafe { bf16::<0>(t, out) }
        }

        pub unsafe fn bf16_n64_gfni_two(t: &Tensor, out: *mut u16) {
            // SAFETY: as the caller promises.
            unsafe { bf16::<3>(t, out) }
        }

        pub unsafe fn bf16_t32(t: &Tensor, out: *mut u16) {
            // SAFETY: as the caller promises.
            unsafe { bf16::<1>(t, out) }
        }

        pub unsafe fn bf16_t64(t: &Tensor, out: *mut u16) {
            // SAFETY: as the caller promises.
            unsafe { bf16::<2>(t, out) }
        }

        /// Mask registers: codes in 16-bit lanes, 32 weights at a time.
        pub unsafe fn bf16_n64_mask(t: &Tensor, out: *mut u16) {
            let n = t.plane_bytes();
            let mut tables = [[0u16; 32]; 16];
            for r in 0..t.rows {
                row_tables(t.scales[r], &mut tables);
                for g in 0..t.cols / 32 {
                    // SAFETY: 4 bytes of each plane, 32 weights of row `r`, in range.
                    unsafe {
                        let at = r * t.row_bytes() + 4 * g;
                        let k = |p: usize| {
                            t.planes.as_ptr().add(p * n + at).cast::<u32>().read_unaligned()
                        };
                        let v = _mm512_maskz_mov_epi16(k(0), _mm512_set1_epi16(16));
                        let v = _mm512_mask_add_epi16(v, k(1), v, _mm512_set1_epi16(8));
                        let v = _mm512_mask_add_epi16(v, k(2), v, _mm512_set1_epi16(4));
                        let v = _mm512_mask_add_epi16(v, k(3), v, _mm512_set1_epi16(2));
                        let v = _mm512_mask_add_epi16(v, k(4), v, _mm512_set1_epi16(1));
                        let table = tables[t.step(r, g)].as_ptr();
                        let w = _mm512_permutexvar_epi16(v, _mm512_loadu_si512(table.cast()));
                        _mm512_storeu_si512(out.add(at * 8).cast(), w);
                    }
                }
            }
        }

        /// Levels plus 128, twice, and the steps as floats.
        unsafe fn constants() -> (__m512i, __m512) {
            let mut levels = [0u8; 64];
            for (i, v) in levels.iter_mut().enumerate() {
                *v = (i16::from(LEVELS[i % 32]) + 128) as u8;
            }
            let steps = STEPS.map(f32::from);
            // SAFETY: both tables are 64 bytes.
            unsafe { (table(&levels), _mm512_loadu_ps(steps.as_ptr())) }
        }

        /// Steps of 16 groups.
        unsafe fn step16(steps: __m512, idx: *const u8) -> __m512 {
            // SAFETY: the caller keeps 8 bytes of step indices in range.
            let v = unsafe { _mm512_cvtepu8_epi64(_mm_loadl_epi64(idx.cast())) };
            let v = _mm512_or_si512(v, _mm512_slli_epi64::<28>(v));
            _mm512_permutexvar_ps(v, steps)
        }

        /// Natural order: each 32-bit lane is one group; `x` is reordered once.
        pub unsafe fn matvec_n64(t: &Tensor, x: &Input, y: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { matvec_lanes(t, x, &x.n512, y) }
        }

        pub unsafe fn matvec_t4(t: &Tensor, x: &Input, y: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { matvec_lanes(t, x, &x.t4x512, y) }
        }

        unsafe fn matvec_lanes(t: &Tensor, x: &Input, xs: &Bytes, y: *mut f32) {
            // SAFETY: blocks of 64 bytes, 512 weights of row `r`, in range.
            unsafe {
                let (levels, steps) = constants();
                for r in 0..t.rows {
                    let mut acc = _mm512_setzero_ps();
                    for block in (0..t.row_bytes()).step_by(64) {
                        let at = r * t.row_bytes() + block;
                        let v = swar(load5(t, at));
                        let xp = xs.as_ptr().add(block * 8);
                        let mut d = [
                            _mm512_loadu_si512(x.fix_int.as_ptr().add(block / 4).cast()),
                            _mm512_setzero_si512(),
                        ];
                        for (k, v) in v.into_iter().enumerate() {
                            let w = _mm512_permutexvar_epi8(v, levels);
                            let x = _mm512_loadu_si512(xp.add(64 * k).cast());
                            d[k % 2] = _mm512_dpbusd_epi32(d[k % 2], w, x);
                        }
                        let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(d[0], d[1]));
                        let s = step16(steps, t.steps.as_ptr().add(at / 8));
                        let scale = _mm512_loadu_ps(x.scale.as_ptr().add(block / 4));
                        acc = _mm512_fmadd_ps(dot, _mm512_mul_ps(s, scale), acc);
                    }
                    *y.add(r) = _mm512_reduce_add_ps(acc) * t.scales[r];
                }
            }
        }

        /// T32 or T64: each vector is two groups of 8 lanes.
        unsafe fn matvec_t[const T32: bool](t: &Tensor, x: &Input, y: *mut f32) {
            // SAFETY: blocks of 64 bytes, 512 weights of row `r`, in range.
            unsafe {
                let (levels, steps) = constants();
                let xs = if T32 { &x.t32x2 } else { &x.natural };
                let first = if T32 { [0, 8] } else { [0, 1] };
                let lanes = _mm512_inserti64x4::<1>(
                    _mm512_set1_epi32(first[0]),
                    _mm256_set1_epi32(first[1]),
                );
                for r in 0..t.rows {
                    let mut acc = [_mm512_setzero_ps(); 2];
                    let mut fix = _mm512_setzero_ps();
                    for block in (0..t.row_bytes()).step_by(64) {
                        let at = r * t.row_bytes() + block;
                        let v = swar(load5(t, at));
                        let xp = xs.as_ptr().add(block * 8);
                        let s = step16(steps, t.steps.as_ptr().add(at / 8));
                        let scale = _mm512_loadu_ps(x.scale.as_ptr().add(block / 4));
                        fix = _mm512_fmadd_ps(
                            s,
                            _mm512_loadu_ps(x.fix.as_ptr().add(block / 4)),
                            fix,
                        );
                        let s = _mm512_mul_ps(s, scale);
                        for (k, v) in v.into_iter().enumerate() {
                            let w = _mm512_permutexvar_epi8(v, levels);
                            let x = _mm512_loadu_si512(xp.add(64 * k).cast());
                            let d = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x);
                            let g = if T32 { k } else { 2 * k };
                            let i = _mm512_add_epi32(lanes, _mm512_set1_epi32(g as i32));
                            acc[k % 2] = _mm512_fmadd_ps(
                                _mm512_cvtepi32_ps(d),
                                _mm512_permutexvar_ps(i, s),
                                acc[k % 2],
                            );
                        }
                    }
                    let acc = _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), fix);
                    *y.add(r) = _mm512_reduce_add_ps(acc) * t.scales[r];
                }
            }
        }

        pub unsafe fn matvec_t32(t: &Tensor, x: &Input, y: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { matvec_t::<true>(t, x, y) }
        }

        pub unsafe fn matvec_t64(t: &Tensor, x: &Input, y: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { matvec_t::<false>(t, x, y) }
        }
    }
}

#[derive(Clone, Copy)]
enum Run {
    Codes(unsafe fn(&Tensor, *mut u8)),
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Bf16(unsafe fn(&Tensor, *mut u16)),
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Matvec(unsafe fn(&Tensor, &Input, *mut f32)),
}

struct Kernel {
    layout: Layout,
    isa: &'static str,
    variant: &'static str,
    run: Run,
}

impl Kernel {
    fn job(&self) -> &'static str {
        match self.run {
            Run::Codes(_) => "codes",
            Run::Bf16(_) => "bf16",
            Run::Matvec(_) => "matvec",
        }
    }
}

/// The kernels this machine can run.
fn kernels() -> Vec<Kernel> {
    use Layout::{N64, T4, T32, T64};
    use Run::Codes;
    let mut list = Vec::new();
    let mut add = |layout, isa, variant, run| list.push(Kernel { layout, isa, variant, run });
    add(N64, "scalar", "swar+byte transpose", Codes(scalar::codes_n64_transpose));
    add(N64, "scalar", "table of 256", Codes(scalar::codes_n64_table));
    add(T4, "scalar", "swar", Codes(scalar::codes_t4));
    add(T32, "scalar", "swar", Codes(scalar::codes_t32));
    add(T64, "scalar", "swar", Codes(scalar::codes_t64));
    #[cfg(target_arch = "x86_64")]
    {
        use Run::{Bf16, Matvec};
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            let isa = "avx2";
            add(N64, isa, "swar+unpack", Codes(avx2::codes_n64));
            add(N64, isa, "swar+unpack, half stores", Codes(avx2::codes_n64_stores));
            add(N64, isa, "bit test", Codes(avx2::codes_n64_test));
            add(T4, isa, "swar+unpack", Codes(avx2::codes_t4));
            add(T32, isa, "swar", Codes(avx2::codes_t32));
            add(T64, isa, "swar", Codes(avx2::codes_t64));
            add(N64, isa, "swar+unpack", Bf16(avx2::bf16_n64));
            add(T32, isa, "swar", Bf16(avx2::bf16_t32));
            add(T64, isa, "swar", Bf16(avx2::bf16_t64));
            add(N64, isa, "swar, group lanes", Matvec(avx2::matvec_n64));
            add(T4, isa, "swar, group lanes", Matvec(avx2::matvec_t4));
            add(T32, isa, "swar", Matvec(avx2::matvec_t32));
            add(T64, isa, "swar", Matvec(avx2::matvec_t64));
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("gfni")
        {
            let isa = "avx512";
            add(N64, isa, "mask", Codes(avx512::codes_n64_mask));
            add(N64, isa, "gfni", Codes(avx512::codes_n64_gfni));
            add(N64, isa, "gfni, vpermi2b", Codes(avx512::codes_n64_gfni_two));
            add(T32, isa, "swar", Codes(avx512::codes_t32));
            add(T32, isa, "swar, half stores", Codes(avx512::codes_t32_stores));
            add(T64, isa, "swar", Codes(avx512::codes_t64));
            add(N64, isa, "mask", Bf16(avx512::bf16_n64_mask));
            add(N64, isa, "gfni", Bf16(avx512::bf16_n64_gfni));
            add(N64, isa, "gfni, vpermi2b", Bf16(avx512::bf16_n64_gfni_two));
            add(T32, isa, "swar", Bf16(avx512::bf16_t32));
            add(T64, isa, "swar", Bf16(avx512::bf16_t64));
            add(N64, isa, "swar, group lanes", Matvec(avx512::matvec_n64));
            add(T4, isa, "swar, group lanes", Matvec(avx512::matvec_t4));
            add(T32, isa, "swar", Matvec(avx512::matvec_t32));
            add(T64, isa, "swar", Matvec(avx512::matvec_t64));
        }
    }
    list
}

/// One shape: the tensors in each layout, the expected results, the output.
struct Case {
    name: &'static str,
    tensors: Vec<Tensor>,
    codes: Vec<u8>,
    input: Input,
    out: Bytes,
}

impl Case {
    fn new(name: &'static str, rows: usize, cols: usize, copies: usize) -> Self {
        let mut rng = Rng(0x1234_5678_9abc_def1);
        let mut case = Case {
            name,
            tensors: Vec::new(),
            codes: Vec::new(),
            input: Input::new(&mut rng, cols),
            out: Bytes::new(rows * cols * 2),
        };
        for _ in 0..copies {
            let (codes, tensors) = tensors(&mut rng, rows, cols);
            case.codes.extend(codes);
            case.tensors.extend(tensors);
        }
        case
    }

    fn weights(&self) -> usize {
        self.tensors[0].rows * self.tensors[0].cols
    }

    /// The given copy of the tensor in a layout.
    fn pick(&self, layout: Layout, copy: usize) -> usize {
        let copies = self.tensors.len() / LAYOUTS.len();
        let l = LAYOUTS.iter().position(|&l| l == layout).unwrap();
        copy % copies * LAYOUTS.len() + l
    }

    fn call(&mut self, kernel: &Kernel, copy: usize) {
        let t = &self.tensors[self.pick(kernel.layout, copy)];
        let out = self.out.as_mut_ptr();
        // SAFETY: `kernels` lists only what the machine has; the output is big and
        // aligned enough for two bytes per weight; cols is a multiple of 512.
        unsafe {
            match kernel.run {
                Run::Codes(f) => f(t, out),
                Run::Bf16(f) => f(t, out.cast()),
                Run::Matvec(f) => f(t, &self.input, out.cast()),
            }
        }
        black_box(&mut self.out);
    }

    /// Compare every result of a kernel, on every copy, with the naive decoder.
    fn check(&mut self, kernel: &Kernel) {
        let n = self.weights();
        for copy in 0..self.tensors.len() / LAYOUTS.len() {
            self.out.get_mut(2 * n).fill(0xa5);
            self.call(kernel, copy);
            let t = &self.tensors[self.pick(kernel.layout, copy)];
            let codes = &self.codes[copy * n..][..n];
            let out = self.out.get(2 * n);
            let word = |i: usize| u16::from_le_bytes([out[2 * i], out[2 * i + 1]]);
            for r in 0..t.rows {
                let (mut sum, mut size) = (0f64, 0f64);
                for c in 0..t.cols {
                    let i = r * t.cols + c;
                    let code = codes[i];
                    let step = STEPS[t.step(r, c / 32)];
                    let level = LEVELS[usize::from(code)];
                    let good = match kernel.run {
                        Run::Codes(_) => out[i] == code,
                        Run::Bf16(_) => {
                            let exact = t.scales[r] * f32::from(step) * f32::from(level);
                            word(i) == to_bf16(exact)
                        }
                        Run::Matvec(_) => {
                            let v = f64::from(step) * f64::from(level) * f64::from(self.input.q[c]);
                            let v = v * f64::from(self.input.scale[c / 32]);
                            sum += v;
                            size += v.abs();
                            true
                        }
                    };
                    assert!(
                        good,
                        "{} {:?} {} {}: weight {r},{c}",
                        kernel.job(),
                        kernel.layout,
                        kernel.isa,
                        kernel.variant
                    );
                }
                if let Run::Matvec(_) = kernel.run {
                    let bits = u32::from(word(2 * r)) | u32::from(word(2 * r + 1)) << 16;
                    let got = f64::from(f32::from_bits(bits));
                    let scale = f64::from(t.scales[r]);
                    assert!(
                        (got - sum * scale).abs() <= 2e-6 * size * scale,
                        "matvec {:?} {} {}: row {r}: {got} for {}",
                        kernel.layout,
                        kernel.isa,
                        kernel.variant,
                        sum * scale
                    );
                }
            }
        }
    }

    /// The packed tensors hold the codes they were made from.
    fn check_naive(&self) {
        let n = self.weights();
        for (i, t) in self.tensors.iter().enumerate() {
            let codes = &self.codes[i / LAYOUTS.len() * n..][..n];
            for r in 0..t.rows {
                for c in 0..t.cols {
                    assert_eq!(t.naive_code(r, c), codes[r * t.cols + c]);
                }
            }
        }
    }
}

/// Median, minimum and maximum.
fn spread(samples: &mut [f64]) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    [samples[samples.len() / 2], samples[0], samples[samples.len() - 1]]
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines()
            .find(|l| l.starts_with(name))
            .and_then(|l| l.split(':').nth(1))
            .map_or("?", str::trim)
            .to_string()
    };
    format!(
        "{} {} (family {}, model {})",
        std::env::consts::ARCH,
        field("model name"),
        field("cpu family"),
        field("model\t")
    )
}

fn rustc() -> String {
    std::process::Command::new("rustc")
        .arg("--version")
        .output()
        .ok()
        .and_then(|o| String::from_utf8(o.stdout).ok())
        .map_or("unknown".into(), |s| s.trim().to_string())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).cloned()
    };
    let list = kernels();
    // `cargo bench` passes `--bench`, `cargo test` does not.
    if args.iter().any(|a| a == "--test") || !args.iter().any(|a| a == "--bench") {
        let mut case = Case::new("test", 3, 1024, 1);
        case.check_naive();
        for kernel in &list {
            case.check(kernel);
        }
        println!("plane_order: {} kernels agree", list.len());
        return;
    }
    let samples: usize = value("--samples").map_or(21, |v| v.parse().expect("a number"));
    let mut results = String::new();
    let mut copies = String::new();
    for (name, rows, cols, tensors, repeat) in
        [("L2 64x4096", 64, 4096, 1, 64), ("memory 14336x4096", 14336, 4096, 2, 1)]
    {
        let mut case = Case::new(name, rows, cols, tensors);
        case.check_naive();
        for kernel in &list {
            case.check(kernel);
        }
        let n = case.weights();
        let source = Bytes::new(2 * n);
        let mut rates = vec![Vec::new(); list.len()];
        let mut memcpy = Vec::new();
        for sample in 0..samples * if repeat > 1 { 3 } else { 1 } {
            for (i, kernel) in list.iter().enumerate() {
                case.call(kernel, sample + i + 1);
                let start = Instant::now();
                for _ in 0..repeat {
                    case.call(kernel, sample + i);
                }
                let time = start.elapsed().as_secs_f64();
                rates[i].push((n * repeat) as f64 / time / 1e9);
            }
            let start = Instant::now();
            for _ in 0..repeat {
                case.out.get_mut(2 * n).copy_from_slice(black_box(source.get(2 * n)));
                black_box(&mut case.out);
            }
            let time = start.elapsed().as_secs_f64();
            memcpy.push((2 * n * repeat) as f64 / time / 1e9);
        }
        for (kernel, rates) in list.iter().zip(&mut rates) {
            let [median, min, max] = spread(rates);
            println!(
                "{:18} {:6} {:?} {:6} {:22} {median:7.3} Gw/s ({min:.3} to {max:.3})",
                case.name,
                kernel.job(),
                kernel.layout,
                kernel.isa,
                kernel.variant
            );
            let comma = if results.is_empty() { "" } else { ",\n" };
            write!(
                results,
                "{comma}    {{\"job\": \"{}\", \"layout\": \"{:?}\", \"isa\": \"{}\", \
                 \"variant\": \"{}\", \"size\": \"{}\", \"gw_per_s\": {{\"median\": {median:.3}, \
                 \"min\": {min:.3}, \"max\": {max:.3}}}, \"samples\": {}}}",
                kernel.job(),
                kernel.layout,
                kernel.isa,
                kernel.variant,
                case.name,
                rates.len()
            )
            .unwrap();
        }
        let [median, min, max] = spread(&mut memcpy);
        println!("{:18} memcpy {median:.2} GB/s written ({min:.2} to {max:.2})", case.name);
        let comma = if copies.is_empty() { "" } else { ",\n" };
        write!(
            copies,
            "{comma}    {{\"size\": \"{}\", \"bytes\": {}, \"gb_per_s_written\": \
             {{\"median\": {median:.2}, \"min\": {min:.2}, \"max\": {max:.2}}}, \"samples\": {}}}",
            case.name,
            2 * n,
            memcpy.len()
        )
        .unwrap();
    }
    let record = format!(
        "{{\n  \"what\": \"order of the bits inside a bit plane: decoding rate of 5-bit planes\",\n  \
         \"command\": \"rustc -O --edition 2024 lab/plane_order/plane_order.rs; ./plane_order --bench --record FILE\",\n  \
         \"cpu\": \"{}\",\n  \"rustc\": \"{}\",\n  \"threads\": 1,\n  \
         \"method\": \"kernels interleaved, one timed sample of each per round after one untimed \
         call; every kernel checked against a naive decoder on the whole tensor before timing; \
         baseline target, features chosen at run time; one core; the reordering of x is not timed; \
         memory: two tensors in turn, one output buffer\",\n  \
         \"results\": [\n{results}\n  ],\n  \"memcpy\": [\n{copies}\n  ]\n}}\n",
        cpu(),
        rustc()
    );
    if let Some(path) = value("--record") {
        std::fs::write(&path, record).expect("the record can be written");
    }
}
