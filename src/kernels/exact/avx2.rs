//! AVX2: hints from byte tables, and the coders of eight weights in each register.

use std::arch::x86_64::*;

use super::contexts::{ContextOf, Contexts, FEW_CODES, Hint, Top};
use super::scalar;
use super::tables::{DecodeTables, LANES, Lanes};
#[cfg(feature = "checkpoints")]
use super::tables::{EncodeTables, LaneEncoder};
use crate::kernels::planes::BLOCK;
use crate::kernels::simd::avx2::{blocks, codes};

/// The codes of a row.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unpack(planes: &[&[u8]], out: &mut [u8]) {
    macro_rules! blocks {
        ($read:literal) => {
            blocks::<$read, BLOCK>(planes, out, |planes, _, out| {
                let (left, right) = out.split_at_mut(BLOCK / 2);
                let slots =
                    left.as_chunks_mut::<16>().0.iter_mut().zip(right.as_chunks_mut::<16>().0);
                for (codes, (left, right)) in codes(planes).into_iter().zip(slots) {
                    // SAFETY: 16 bytes have room, twice.
                    unsafe {
                        _mm256_storeu2_m128i(
                            right.as_mut_ptr().cast(),
                            left.as_mut_ptr().cast(),
                            codes,
                        );
                    }
                }
            })
        };
    }
    match planes.len() {
        3 => blocks!(3),
        4 => blocks!(4),
        5 => blocks!(5),
        6 => blocks!(6),
        7 => blocks!(7),
        _ => blocks!(8),
    }
}

/// Eight numbers of a table.
///
/// # Safety
/// Indices are below the table's length.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn gather(table: &[u32], at: __m256i) -> __m256i {
    // Loads one by one are at least as fast as the gather instruction here, and on some CPUs much
    // faster.
    let pairs = [
        _mm256_extract_epi64::<0>(at) as u64,
        _mm256_extract_epi64::<1>(at) as u64,
        _mm256_extract_epi64::<2>(at) as u64,
        _mm256_extract_epi64::<3>(at) as u64,
    ];
    // SAFETY: the caller's promise.
    let get = |i: u64| unsafe { *table.get_unchecked(i as usize) } as i32;
    let low = |i: u64| i & 0xffff_ffff;
    _mm256_setr_epi32(
        get(low(pairs[0])),
        get(pairs[0] >> 32),
        get(low(pairs[1])),
        get(pairs[1] >> 32),
        get(low(pairs[2])),
        get(pairs[2] >> 32),
        get(low(pairs[3])),
        get(pairs[3] >> 32),
    )
}

/// The upper 16 bits of eight magnitudes that binary32 numbers of either sign have.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn top_magnitudes(top: Top, v: __m256) -> __m256i {
    let bits = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fff_ffff));
    match top {
        Top::Half32 => _mm256_srli_epi32::<16>(bits),
        Top::F16 => _mm256_cvtepu16_epi32(_mm256_cvtps_ph::<{ _MM_FROUND_TO_ZERO }>(
            _mm256_castsi256_ps(bits),
        )),
        Top::Quarter64 => {
            _mm256_add_epi32(_mm256_srli_epi32::<19>(bits), _mm256_set1_epi32(896 << 4))
        }
    }
}

/// Hints with something added to their lower halves.
#[inline]
#[target_feature(enable = "avx2")]
fn placed(hint: __m256i, top: __m256i) -> __m256i {
    _mm256_blend_epi16::<0b0101_0101>(hint, _mm256_add_epi32(hint, top))
}

/// Hints of columns, `group` of which share a factor.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn hints(
    contexts: &Contexts,
    codes: &[u8],
    group: usize,
    factors: &[f32],
    out: &mut [Hint],
) {
    match (contexts.has_factors(), contexts.is_plain()) {
        (true, _) => hints_by_factor(contexts, codes, group, factors, out),
        (false, false) => hints_by_value::<false>(contexts, codes, group, factors, out),
        (false, true) => hints_by_value::<true>(contexts, codes, group, factors, out),
    }
}

/// Hints of columns, `group` of which share a factor, by the contexts of factors.
#[target_feature(enable = "avx2,f16c")]
fn hints_by_factor(
    contexts: &Contexts,
    codes: &[u8],
    group: usize,
    factors: &[f32],
    out: &mut [Hint],
) {
    let (doubled, top) = contexts.doubled();
    // Entries 0 to 15, and 16 to 31.
    let halves = |bytes: &[u8; FEW_CODES]| {
        // SAFETY: 32 bytes are there.
        unsafe {
            let at: *const __m128i = bytes.as_ptr().cast();
            (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)))
        }
    };
    let a = halves(doubled);
    for ((codes, out), factor) in codes.chunks(group).zip(out.chunks_mut(group)).zip(factors) {
        let [b0, b1, b2, b3] = &contexts.by_factor(*factor).hint;
        let (b0, b1, b2, b3) = (halves(b0), halves(b1), halves(b2), halves(b3));
        let half = _mm256_set1_ps(factor * 0.5);
        let (sixteens, rest) = codes.as_chunks::<16>();
        let (outs, out_rest) = out.as_chunks_mut::<16>();
        for (codes, out) in sixteens.iter().zip(outs) {
            // SAFETY: 16 bytes are there.
            let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
            let high = _mm_slli_epi16::<3>(codes);
            macro_rules! look_up {
                ($t:ident) => {{
                    let (low, upper) =
                        (_mm_shuffle_epi8($t.0, codes), _mm_shuffle_epi8($t.1, codes));
                    _mm_blendv_epi8(low, upper, high)
                }};
            }
            let (b0, b1) = (look_up!(b0), look_up!(b1));
            let (b2, b3, a) = (look_up!(b2), look_up!(b3), look_up!(a));
            let (low, low2) = (_mm_unpacklo_epi8(b0, b1), _mm_unpackhi_epi8(b0, b1));
            let (up, up2) = (_mm_unpacklo_epi8(b2, b3), _mm_unpackhi_epi8(b2, b3));
            let hint = [
                _mm256_set_m128i(_mm_unpackhi_epi16(low, up), _mm_unpacklo_epi16(low, up)),
                _mm256_set_m128i(_mm_unpackhi_epi16(low2, up2), _mm_unpacklo_epi16(low2, up2)),
            ];
            let anchor = [_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(a))];
            let slots = out.as_chunks_mut::<8>().0;
            for ((hint, anchor), out) in hint.into_iter().zip(anchor).zip(slots) {
                let v = _mm256_mul_ps(_mm256_cvtepi32_ps(anchor), half);
                // SAFETY: 32 bytes have room.
                unsafe {
                    let hint = placed(hint, top_magnitudes(top, v));
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), hint);
                }
            }
        }
        for (out, code) in out_rest.iter_mut().zip(rest) {
            *out = contexts.hint(*code, *factor);
        }
    }
}

/// Hints of columns, `group` of which share a factor, by the contexts of values. With `PLAIN`
/// anchors and classes are computed (see [`plain_code`](super::contexts::plain_code)).
#[target_feature(enable = "avx2,f16c")]
fn hints_by_value<const PLAIN: bool>(
    contexts: &Contexts,
    codes: &[u8],
    group: usize,
    factors: &[f32],
    out: &mut [Hint],
) {
    let (by_code, by_context, top, context_bits) = contexts.parts();
    if context_bits.of == ContextOf::Factor {
        return scalar::hints(contexts, codes, group, factors, out);
    }
    let count = |bits: u32| _mm_cvtsi32_si128(bits as i32);
    let to_mantissa = count(23 - context_bits.mantissa);
    let (from_fraction, fraction_bits) =
        (count(16 - context_bits.fraction), count(context_bits.fraction));
    let free = _mm256_set1_epi32(0x7fff);
    let each = count(context_bits.mantissa + context_bits.fraction);
    let (one, top_bit) = (_mm256_set1_epi32(1), _mm256_set1_epi32(i32::MIN));
    for ((codes, out), factor) in codes.chunks(group).zip(out.chunks_mut(group)).zip(factors) {
        let (eights, rest) = codes.as_chunks::<8>();
        let (outs, out_rest) = out.as_chunks_mut::<8>();
        let (factor_8, half) = (_mm256_set1_ps(*factor), _mm256_set1_ps(factor * 0.5));
        for (codes, out) in eights.iter().zip(outs) {
            // SAFETY: eight bytes are there.
            let codes = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast())) };
            let (v, first) = if PLAIN {
                let level = _mm256_sub_epi32(codes, _mm256_set1_epi32(128));
                let magnitude = _mm256_abs_epi32(level);
                let twice = _mm256_sub_epi32(_mm256_add_epi32(magnitude, magnitude), one);
                let anchor = _mm256_cvtepi32_ps(_mm256_max_epi32(twice, one));
                let sign = _mm256_castsi256_ps(_mm256_and_si256(level, top_bit));
                let v = _mm256_or_ps(_mm256_mul_ps(anchor, half), sign);
                let float = _mm256_castps_si256(_mm256_cvtepi32_ps(magnitude));
                let eighths =
                    _mm256_sub_epi32(_mm256_srli_epi32::<20>(float), _mm256_set1_epi32(1032));
                let small = _mm256_min_epi32(magnitude, _mm256_set1_epi32(15));
                (v, _mm256_sll_epi32(_mm256_max_epi32(eighths, small), each))
            } else {
                // SAFETY: each code has an entry.
                let entry = unsafe { gather(by_code, codes) };
                let anchor = _mm256_castsi256_ps(_mm256_andnot_si256(free, entry));
                (_mm256_mul_ps(anchor, factor_8), _mm256_and_si256(entry, free))
            };
            let bits = _mm256_castps_si256(v);
            let low_23 = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f_ffff));
            let low_16 = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff));
            let mantissa = _mm256_sll_epi32(_mm256_srl_epi32(low_23, to_mantissa), fraction_bits);
            let fraction = _mm256_srl_epi32(low_16, from_fraction);
            let number = _mm256_or_si256(mantissa, fraction);
            let context = _mm256_add_epi32(first, number);
            // SAFETY: contexts of all codes exist.
            let hint = unsafe { gather(by_context, context) };
            let sign = _mm256_slli_epi32::<15>(_mm256_srli_epi32::<31>(bits));
            let hint = placed(hint, _mm256_or_si256(sign, top_magnitudes(top, v)));
            // SAFETY: 32 bytes have room.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), hint) };
        }
        for (out, code) in out_rest.iter_mut().zip(rest) {
            *out = contexts.hint(*code, *factor);
        }
    }
}

/// The lanes that a mask names, in their order, and how many they are.
const fn lanes_of(mask: usize) -> ([u8; 8], usize) {
    let (mut lanes, mut n, mut lane) = ([0; 8], 0, 0);
    while lane < 8 {
        if mask >> lane & 1 == 1 {
            lanes[n] = lane;
            n += 1;
        }
        lane += 1;
    }
    (lanes, n)
}

/// By the lanes that take a word: where in the next 16 bytes each finds its own, for its lower
/// half; a byte above 127 gives zero.
static SPREAD: [[u8; 32]; 256] = {
    let mut table = [[0x80; 32]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (lanes, n) = lanes_of(mask);
        let mut word = 0;
        while word < n {
            let to = 4 * lanes[word] as usize;
            (table[mask][to], table[mask][to + 1]) = (2 * word as u8, 2 * word as u8 + 1);
            word += 1;
        }
        mask += 1;
    }
    table
};

/// Decodes whole steps of all lanes while their words surely suffice; returns how many weights that
/// are.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2).
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn decode(
    lanes: &mut Lanes<'_>,
    tables: &DecodeTables,
    hints: &[Hint],
    out: &mut [[u8; 2]],
) -> usize {
    match tables.precision {
        8 => decode_by::<8>(lanes, tables, hints, out),
        9 => decode_by::<9>(lanes, tables, hints, out),
        10 => decode_by::<10>(lanes, tables, hints, out),
        11 => decode_by::<11>(lanes, tables, hints, out),
        _ => 0,
    }
}

/// As [`decode`], with tables of this precision.
#[target_feature(enable = "avx2,popcnt")]
fn decode_by<const PRECISION: i32>(
    lanes: &mut Lanes<'_>,
    tables: &DecodeTables,
    hints: &[Hint],
    out: &mut [[u8; 2]],
) -> usize {
    let entries = &tables.entries;
    debug_assert_eq!(PRECISION, tables.precision as i32, "precision");
    // No hint leads out of the tables, whatever it says.
    let last = _mm256_set1_epi32((entries.len() - 1) as i32);
    let slots = _mm256_set1_epi32((1 << PRECISION) - 1);
    let mut x = [_mm256_setzero_si256(); 4];
    for (x, states) in x.iter_mut().zip(lanes.states.as_chunks::<8>().0) {
        // SAFETY: 32 bytes are there.
        *x = unsafe { _mm256_loadu_si256(states.as_ptr().cast()) };
    }
    let mut words = lanes.words;
    let (steps, _) = hints.as_chunks::<LANES>();
    let (outs, _) = out.as_chunks_mut::<LANES>();
    let mut done = 0;
    for (hints, out) in steps.iter().zip(outs) {
        // Each group of eight looks at eight words and takes some of them.
        if words.len() < LANES {
            break;
        }
        // All look-ups first: they wait for memory together.
        let mut entries_of = [_mm256_setzero_si256(); 4];
        let mut hints_of = [_mm256_setzero_si256(); 4];
        for g in 0..4 {
            // SAFETY: 32 bytes are there.
            let hint = unsafe { _mm256_loadu_si256(hints.as_ptr().add(8 * g).cast()) };
            let table = _mm256_slli_epi32::<PRECISION>(_mm256_srli_epi32::<24>(hint));
            let at = _mm256_or_si256(table, _mm256_and_si256(x[g], slots));
            // SAFETY: `last` is the last entry's index.
            entries_of[g] = unsafe { gather(entries, _mm256_min_epu32(at, last)) };
            hints_of[g] = hint;
        }
        let mut tops = [_mm256_setzero_si256(); 4];
        for g in 0..4 {
            let (entry, hint) = (entries_of[g], hints_of[g]);
            let bias = _mm256_and_si256(_mm256_srli_epi32::<8>(entry), _mm256_set1_epi32(0xfff));
            let times = _mm256_srli_epi32::<PRECISION>(x[g]);
            let next =
                _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32::<20>(entry), times), bias);
            let shift = _mm256_and_si256(_mm256_srli_epi32::<16>(hint), _mm256_set1_epi32(15));
            let state = _mm256_srlv_epi32(next, shift);
            // The symbol in place of what is above the raw bits.
            let symbol = _mm256_and_si256(entry, _mm256_set1_epi32(0x7f));
            let above = _mm256_sllv_epi32(_mm256_sub_epi32(symbol, state), shift);
            let low = _mm256_add_epi32(next, above);
            let flip = _mm256_slli_epi32::<8>(_mm256_and_si256(entry, _mm256_set1_epi32(0x80)));
            let value = _mm256_xor_si256(_mm256_add_epi32(hint, low), flip);
            tops[g] = _mm256_blend_epi16::<0b1010_1010>(value, _mm256_setzero_si256());
            x[g] = state;
        }
        for x in &mut x {
            let takes = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(*x), _mm256_setzero_si256());
            let mask = _mm256_movemask_ps(_mm256_castsi256_ps(takes)) as usize & 255;
            // SAFETY: of 32 words at most 24 were taken, so 16 bytes are there; so they are in the
            // table.
            let word = unsafe {
                let next_words = _mm_loadu_si128(words.as_ptr().cast());
                let order = _mm256_loadu_si256(SPREAD[mask].as_ptr().cast());
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(next_words), order)
            };
            let filled = _mm256_or_si256(_mm256_slli_epi32::<16>(*x), word);
            *x = _mm256_blendv_epi8(*x, filled, takes);
            words = &words[mask.count_ones() as usize..];
        }
        for ([low, high], out) in tops.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            let packed =
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(*low, *high));
            // SAFETY: 32 bytes have room.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), packed) };
        }
        done += LANES;
    }
    for (x, states) in x.iter().zip(lanes.states.as_chunks_mut::<8>().0) {
        // SAFETY: 32 bytes have room.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), *x) };
    }
    lanes.words = words;
    done
}

/// By the lanes that give a word: which bytes of eight words move to the end, in their order. (What
/// comes before is not looked at.)
#[cfg(feature = "checkpoints")]
static COLLECT: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (lanes, n) = lanes_of(mask);
        let mut word = 0;
        while word < n {
            let (from, to) = (2 * lanes[word], 2 * (8 - n + word));
            (table[mask][to], table[mask][to + 1]) = (from, from + 1);
            word += 1;
        }
        mask += 1;
    }
    table
};

/// Encodes whole steps of all lanes, the last weight first.
///
/// # Safety
/// The CPU can run [`Kernel::Avx2`](crate::Kernel::Avx2); hints and tops are as many, a multiple of
/// the lanes, and the encoder has room for a word of each and eight more.
#[cfg(feature = "checkpoints")]
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn encode(
    encoder: &mut LaneEncoder,
    tables: &EncodeTables,
    hints: &[Hint],
    tops: &[[u8; 2]],
    first: usize,
) {
    let EncodeTables { codes, reciprocals, usual, precision } = tables;
    let zero = _mm256_setzero_si256();
    // No hint leads out of the tables, whatever it says.
    let last = _mm256_set1_epi32((codes.len() - 1) as i32);
    let (up, kept) =
        (_mm_cvtsi32_si128(*precision as i32), _mm256_set1_epi32(32 - *precision as i32));
    let mut x = [zero; 4];
    for (x, states) in x.iter_mut().zip(encoder.states.as_chunks::<8>().0) {
        // SAFETY: 32 bytes are there.
        *x = unsafe { _mm256_loadu_si256(states.as_ptr().cast()) };
    }
    let steps = hints.as_chunks::<LANES>().0.iter().zip(tops.as_chunks::<LANES>().0);
    for (step, (hints, tops)) in steps.enumerate().rev() {
        for g in (0..4).rev() {
            // SAFETY: 32 and 16 bytes are there.
            let (hint, top) = unsafe {
                (
                    _mm256_loadu_si256(hints.as_ptr().add(8 * g).cast()),
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(tops.as_ptr().add(8 * g).cast())),
                )
            };
            let shift = _mm256_and_si256(_mm256_srli_epi32::<16>(hint), _mm256_set1_epi32(15));
            // How far it is, in the lower half; the sign is its bit 15.
            let distance = _mm256_sub_epi32(top, hint);
            let near = _mm256_and_si256(distance, _mm256_set1_epi32(0x7fff));
            let symbol = _mm256_srlv_epi32(near, shift);
            let sign = _mm256_and_si256(_mm256_srli_epi32::<8>(distance), _mm256_set1_epi32(0x80));
            let table = _mm256_slli_epi32::<8>(_mm256_srli_epi32::<24>(hint));
            let low = _mm256_and_si256(symbol, _mm256_set1_epi32(0x7f));
            let number = _mm256_or_si256(table, _mm256_or_si256(sign, low));
            // SAFETY: `last` is the last code's index.
            let mut code = unsafe { gather(codes, _mm256_min_epu32(number, last)) };
            // The raw bits are what the symbol leaves.
            let mut raw = _mm256_sub_epi32(near, _mm256_sllv_epi32(symbol, shift));
            let far = _mm256_cmpgt_epi32(symbol, _mm256_set1_epi32(0x7f));
            let odd = _mm256_or_si256(far, _mm256_cmpeq_epi32(code, zero));
            let odd = _mm256_movemask_ps(_mm256_castsi256_ps(odd));
            if odd != 0 {
                let (mut own, mut own_raw) = ([0u32; 8], [0u32; 8]);
                // SAFETY: 32 bytes have room in each.
                unsafe {
                    _mm256_storeu_si256(own.as_mut_ptr().cast(), code);
                    _mm256_storeu_si256(own_raw.as_mut_ptr().cast(), raw);
                }
                for lane in (0..8).rev().filter(|lane| odd >> lane & 1 == 1) {
                    let at = 8 * g + lane;
                    encoder.exceptions.push(((first + LANES * step + at) as u16, tops[at]));
                    (own[lane], own_raw[lane]) = (usual[(hints[at] >> 24) as usize], 0);
                }
                // SAFETY: 32 bytes are there.
                unsafe {
                    code = _mm256_loadu_si256(own.as_ptr().cast());
                    raw = _mm256_loadu_si256(own_raw.as_ptr().cast());
                }
            }
            let frequency = _mm256_and_si256(code, _mm256_set1_epi32(0xffff));
            // SAFETY: no frequency is above 2^precision.
            let reciprocal = unsafe { gather(reciprocals, frequency) };
            let above = _mm256_srlv_epi32(x[g], _mm256_sub_epi32(kept, shift));
            let stays = _mm256_cmpgt_epi32(frequency, above);
            let full = !_mm256_movemask_ps(_mm256_castsi256_ps(stays)) as usize & 255;
            let low_words = _mm256_and_si256(x[g], _mm256_set1_epi32(0xffff));
            let words = _mm_packus_epi32(
                _mm256_castsi256_si128(low_words),
                _mm256_extracti128_si256::<1>(low_words),
            );
            // SAFETY: at least eight words more than are still to come have room before `start`.
            unsafe {
                let order = _mm_loadu_si128(COLLECT[full].as_ptr().cast());
                let at = encoder.words.as_mut_ptr().add(encoder.start - 8);
                _mm_storeu_si128(at.cast(), _mm_shuffle_epi8(words, order));
            }
            encoder.start -= full.count_ones() as usize;
            let state = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(x[g]), x[g], stays);
            let value = _mm256_or_si256(_mm256_sllv_epi32(state, shift), raw);
            // The upper halves of products; right, or one too small.
            let even = _mm256_srli_epi64::<32>(_mm256_mul_epu32(value, reciprocal));
            let odd = _mm256_mul_epu32(
                _mm256_srli_epi64::<32>(value),
                _mm256_srli_epi64::<32>(reciprocal),
            );
            let quotient = _mm256_blend_epi32::<0b1010_1010>(even, odd);
            let rest = _mm256_sub_epi32(value, _mm256_mullo_epi32(quotient, frequency));
            let more = _mm256_cmpgt_epi32(frequency, rest);
            // All ones where the quotient is right, else zero.
            let quotient = _mm256_add_epi32(_mm256_add_epi32(quotient, _mm256_set1_epi32(1)), more);
            let rest = _mm256_sub_epi32(rest, _mm256_andnot_si256(more, frequency));
            let slot = _mm256_add_epi32(rest, _mm256_srli_epi32::<16>(code));
            x[g] = _mm256_add_epi32(_mm256_sll_epi32(quotient, up), slot);
        }
    }
    for (x, states) in x.iter().zip(encoder.states.as_chunks_mut::<8>().0) {
        // SAFETY: 32 bytes have room.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), *x) };
    }
}
