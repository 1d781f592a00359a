//! SHA-256 (FIPS 180-4) of two messages at a time on one core.
//!
//! The rounds of SHA-256 wait for one another: the SHA instructions of a core could start two to
//! four times as many as one message gives them. Rounds of two messages that don't depend on each
//! other fill the gaps. Where a processor has no such instructions, the `sha2` crate hashes one
//! after the other; the digests are the same.

use std::sync::OnceLock;

use sha2::block_api::compress256;

use super::choice::Kernel;

type Block = [u8; 64];
type State = [u32; 8];

/// FIPS 180-4, section 5.3.3.
const START: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// FIPS 180-4, section 4.2.2.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const ROUND: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

/// The digests of some leaves of a hash tree, in order: SHA-256 of a zero byte and the leaf's
/// bytes.
///
/// # Spec
/// UC-ROOT-1.
pub(crate) fn leaf_digests(leaves: &[&[u8]]) -> Vec<[u8; 32]> {
    let mut digests = Vec::with_capacity(leaves.len());
    for leaves in leaves.chunks(2) {
        match *leaves {
            [a, b] => digests.extend(leaf_pair([a, b])),
            _ => digests.extend(leaves.iter().map(|leaf| leaf_pair([leaf, &[]])[0])),
        }
    }
    digests
}

/// As [`leaf_digests`], of two leaves. It's fastest when they are of one length.
pub(crate) fn leaf_pair(leaves: [&[u8]; 2]) -> [[u8; 32]; 2] {
    leaf_pair_by(two_streams(), leaves)
}

/// As [`leaf_pair`], with rounds of both messages mixed, or one after the other.
fn leaf_pair_by(two_streams: bool, leaves: [&[u8]; 2]) -> [[u8; 32]; 2] {
    let [a, b] = leaves.map(Leaf::new);
    let mut states = [START; 2];
    compress_pair(two_streams, &mut states, [a.head(), b.head()]);
    compress_pair(two_streams, &mut states, [a.whole, b.whole]);
    compress_pair(two_streams, &mut states, [a.tail(), b.tail()]);
    states.map(|state| {
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    })
}

/// A leaf with the zero byte in front, cut into blocks. Only those at its ends are copied.
struct Leaf<'a> {
    head: Option<Block>,
    /// The blocks between, where they stand in memory.
    whole: &'a [Block],
    /// What is left and the padding of FIPS 180-4, section 5.1.1; and how many blocks of it count.
    tail: ([Block; 2], usize),
}

impl<'a> Leaf<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let first = bytes.split_first_chunk::<63>();
        let (whole, rest) = first.map_or((&[][..], bytes), |(_, rest)| rest.as_chunks());
        let head = first.map(|(first, _)| {
            let mut head = [0; 64];
            head[1..].copy_from_slice(first);
            head
        });
        // Without a head, the zero byte is here.
        let from = usize::from(head.is_none());
        let end = from + rest.len();
        let mut tail = [[0; 64]; 2];
        let flat = tail.as_flattened_mut();
        flat[from..end].copy_from_slice(rest);
        flat[end] = 0x80;
        let n = if end < 56 { 1 } else { 2 };
        let bits = 8 * (bytes.len() as u64 + 1);
        flat[64 * n - 8..64 * n].copy_from_slice(&bits.to_be_bytes());
        Self { head, whole, tail: (tail, n) }
    }

    fn head(&self) -> &[Block] {
        self.head.as_slice()
    }

    fn tail(&self) -> &[Block] {
        &self.tail.0[..self.tail.1]
    }
}

/// Hashes the blocks of two messages.
fn compress_pair(two_streams: bool, states: &mut [State; 2], blocks: [&[Block]; 2]) {
    let both = if two_streams && detected() { blocks[0].len().min(blocks[1].len()) } else { 0 };
    if both > 0 {
        let blocks = [&blocks[0][..both], &blocks[1][..both]];
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        // SAFETY: the processor has the instructions, as was detected.
        unsafe {
            compress_two(states, blocks);
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        unreachable!("{blocks:?} of {states:?}");
    }
    for (state, blocks) in states.iter_mut().zip(blocks) {
        compress256(state, &blocks[both..]);
    }
}

/// Whether messages are hashed two at a time: where the processor has SHA instructions, unless the
/// scalar kernel is selected. Not in unoptimized builds, where each instruction is a call and
/// the whole a hundred times slower.
fn two_streams() -> bool {
    static TWO: OnceLock<bool> = OnceLock::new();
    let allowed = || Kernel::selected().is_ok_and(|kernel| kernel != Kernel::Scalar);
    *TWO.get_or_init(|| !cfg!(debug_assertions) && detected() && allowed())
}

#[cfg(target_arch = "x86_64")]
fn detected() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
}

#[cfg(target_arch = "aarch64")]
fn detected() -> bool {
    std::arch::is_aarch64_feature_detected!("sha2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> bool {
    false
}

#[cfg(target_arch = "aarch64")]
use aarch64::compress_two;
#[cfg(target_arch = "x86_64")]
use x86_64::compress_two;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;
    use std::array::from_fn;

    use super::{Block, ROUND, State};

    /// State words in the order that the instructions want, of two messages.
    type Halves = [__m128i; 2];

    /// Four rounds of both messages with the words `w`.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn four_rounds(i: usize, abef: &mut Halves, cdgh: &mut Halves, w: Halves) {
        let k = load_words(&ROUND[i]);
        for m in 0..2 {
            let wk = _mm_add_epi32(w[m], k);
            cdgh[m] = _mm_sha256rnds2_epu32(cdgh[m], abef[m], wk);
            abef[m] = _mm_sha256rnds2_epu32(abef[m], cdgh[m], _mm_shuffle_epi32(wk, 0x0e));
        }
    }

    /// The next four words of both message schedules from the sixteen before.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn schedule(w0: Halves, w1: Halves, w2: Halves, w3: Halves) -> Halves {
        from_fn(|m| {
            let sum =
                _mm_add_epi32(_mm_sha256msg1_epu32(w0[m], w1[m]), _mm_alignr_epi8(w3[m], w2[m], 4));
            _mm_sha256msg2_epu32(sum, w3[m])
        })
    }

    /// Hashes as many blocks of each message; they are as many of both.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    pub(super) fn compress_two(states: &mut [State; 2], blocks: [&[Block]; 2]) {
        // Words are a to h from low to high; the instructions want f, e, b, a and h, g, d, c.
        let (mut abef, mut cdgh) = ([_mm_setzero_si128(); 2], [_mm_setzero_si128(); 2]);
        for m in 0..2 {
            let [a, b, c, d, e, f, g, h] = states[m];
            abef[m] = load_words(&[f, e, b, a]);
            cdgh[m] = load_words(&[h, g, d, c]);
        }
        for (a, b) in blocks[0].iter().zip(blocks[1]) {
            let before = (abef, cdgh);
            let mut w: [Halves; 4] = from_fn(|i| [load_message(a, i), load_message(b, i)]);
            for (i, w) in w.into_iter().enumerate() {
                four_rounds(i, &mut abef, &mut cdgh, w);
            }
            // Inner loops of constant length are unrolled, so that the words stay in registers.
            for i in [4, 8, 12] {
                for j in 0..4 {
                    w[j] = schedule(w[j], w[(j + 1) % 4], w[(j + 2) % 4], w[(j + 3) % 4]);
                    four_rounds(i + j, &mut abef, &mut cdgh, w[j]);
                }
            }
            for m in 0..2 {
                abef[m] = _mm_add_epi32(abef[m], before.0[m]);
                cdgh[m] = _mm_add_epi32(cdgh[m], before.1[m]);
            }
        }
        for m in 0..2 {
            let [f, e, b, a] = to_words(abef[m]);
            let [h, g, d, c] = to_words(cdgh[m]);
            states[m] = [a, b, c, d, e, f, g, h];
        }
    }

    /// Words `4 * i` to `4 * i + 3` of a block, which are big-endian.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn load_message(block: &Block, i: usize) -> __m128i {
        let bytes: &[u8; 16] = &block.as_chunks().0[i];
        // SAFETY: an array of 16 bytes is read; the load needs no alignment.
        let words = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        _mm_shuffle_epi8(words, _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203))
    }

    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn load_words(words: &[u32; 4]) -> __m128i {
        // SAFETY: an array of 16 bytes is read; the load needs no alignment.
        unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn to_words(vector: __m128i) -> [u32; 4] {
        let mut words = [0; 4];
        // SAFETY: an array of 16 bytes is written; the store needs no alignment.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), vector) };
        words
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::*;
    use std::array::from_fn;

    use super::{Block, ROUND, State};

    /// Four words of each of two messages.
    type Both = [uint32x4_t; 2];

    /// Four rounds of both messages with the words `w`.
    #[inline]
    #[target_feature(enable = "neon,sha2")]
    fn four_rounds(i: usize, abcd: &mut Both, efgh: &mut Both, w: Both) {
        let k = load_words(&ROUND[i]);
        for m in 0..2 {
            let wk = vaddq_u32(w[m], k);
            let before = abcd[m];
            abcd[m] = vsha256hq_u32(before, efgh[m], wk);
            efgh[m] = vsha256h2q_u32(efgh[m], before, wk);
        }
    }

    /// The next four words of both message schedules from the sixteen before.
    #[inline]
    #[target_feature(enable = "neon,sha2")]
    fn schedule(w0: Both, w1: Both, w2: Both, w3: Both) -> Both {
        from_fn(|m| vsha256su1q_u32(vsha256su0q_u32(w0[m], w1[m]), w2[m], w3[m]))
    }

    /// Hashes as many blocks of each message; they are as many of both.
    #[target_feature(enable = "neon,sha2")]
    pub(super) fn compress_two(states: &mut [State; 2], blocks: [&[Block]; 2]) {
        let half = |from: usize| -> Both {
            from_fn(|m| load_words(states[m][from..].first_chunk().expect("8 words")))
        };
        let (mut abcd, mut efgh) = (half(0), half(4));
        for (a, b) in blocks[0].iter().zip(blocks[1]) {
            let before = (abcd, efgh);
            let mut w: [Both; 4] = from_fn(|i| [load_message(a, i), load_message(b, i)]);
            for (i, w) in w.into_iter().enumerate() {
                four_rounds(i, &mut abcd, &mut efgh, w);
            }
            // Inner loops of constant length are unrolled, so that the words stay in registers.
            for i in [4, 8, 12] {
                for j in 0..4 {
                    w[j] = schedule(w[j], w[(j + 1) % 4], w[(j + 2) % 4], w[(j + 3) % 4]);
                    four_rounds(i + j, &mut abcd, &mut efgh, w[j]);
                }
            }
            for m in 0..2 {
                abcd[m] = vaddq_u32(abcd[m], before.0[m]);
                efgh[m] = vaddq_u32(efgh[m], before.1[m]);
            }
        }
        for m in 0..2 {
            let [a, b, c, d] = to_words(abcd[m]);
            let [e, f, g, h] = to_words(efgh[m]);
            states[m] = [a, b, c, d, e, f, g, h];
        }
    }

    /// Words `4 * i` to `4 * i + 3` of a block, which are big-endian.
    #[inline]
    #[target_feature(enable = "neon,sha2")]
    fn load_message(block: &Block, i: usize) -> uint32x4_t {
        let bytes: &[u8; 16] = &block.as_chunks().0[i];
        // SAFETY: an array of 16 bytes is read; the load needs no alignment.
        let bytes = unsafe { vld1q_u8(bytes.as_ptr()) };
        vreinterpretq_u32_u8(vrev32q_u8(bytes))
    }

    #[inline]
    #[target_feature(enable = "neon,sha2")]
    fn load_words(words: &[u32; 4]) -> uint32x4_t {
        // SAFETY: an array of four words is read.
        unsafe { vld1q_u32(words.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "neon,sha2")]
    fn to_words(vector: uint32x4_t) -> [u32; 4] {
        let mut words = [0; 4];
        // SAFETY: an array of four words is written.
        unsafe { vst1q_u32(words.as_mut_ptr(), vector) };
        words
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    const LENGTHS: [usize; 29] = [
        0,
        1,
        31,
        54,
        55,
        56,
        57,
        61,
        62,
        63,
        64,
        65,
        118,
        119,
        120,
        121,
        122,
        123,
        124,
        125,
        126,
        127,
        128,
        129,
        191,
        192,
        4095,
        4096,
        1 << 20,
    ];

    fn bytes(n: usize) -> Vec<u8> {
        (0u32..).map(|i| i.wrapping_mul(0x9e37_79b1).to_be_bytes()[0]).take(n).collect()
    }

    fn expected(leaf: &[u8]) -> [u8; 32] {
        Sha256::new_with_prefix([0]).chain_update(leaf).finalize().into()
    }

    fn check(pair: [&[u8]; 2]) {
        for two_streams in [true, false] {
            let lengths = pair.map(<[u8]>::len);
            assert_eq!(leaf_pair_by(two_streams, pair), pair.map(expected), "{lengths:?}");
        }
    }

    #[test]
    fn pairs_of_all_lengths_equal_the_sha2_crate_wherever_they_start() {
        let all = bytes((1 << 20) + 70);
        for (i, a) in LENGTHS.into_iter().enumerate() {
            for (j, b) in LENGTHS.into_iter().enumerate() {
                let a = &all[(7 * i + j) % 64..][..a];
                let b = &all[(i + 13 * j) % 64..][..b];
                // Of the long one, a few pairs are enough.
                if a.len().max(b.len()) < 1 << 20 || i.abs_diff(j) < 2 {
                    check([a, b]);
                }
            }
        }
    }

    #[test]
    fn equal_lengths_at_all_alignments_equal_the_sha2_crate() {
        let all = bytes(600);
        for n in 0..=300 {
            for at in [0, 1, n % 64, 63, 64] {
                let pair = [&all[at..at + n], &all[(at * 5) % 67..][..n]];
                check(pair);
            }
        }
    }

    #[test]
    fn lists_of_leaves_keep_their_order() {
        let all = bytes(5000);
        for n in 0..8 {
            let leaves: Vec<&[u8]> = (0..n).map(|i| &all[i * 100..i * 612]).collect();
            let found = leaf_digests(&leaves);
            assert!(found.into_iter().eq(leaves.into_iter().map(expected)), "{n} leaves");
        }
    }

    #[test]
    fn a_state_that_is_not_the_first_is_carried_on() {
        // Blocks that arrive in several runs.
        let bytes = bytes(64 * 20);
        let (blocks, _) = bytes.as_chunks::<64>();
        let mut states = [START; 2];
        for (from, to) in [(0, 1), (1, 3), (3, 10)] {
            compress_pair(
                detected(),
                &mut states,
                [&blocks[from..to], &blocks[10 + from..10 + to]],
            );
        }
        let mut expected = [START; 2];
        compress256(&mut expected[0], &blocks[..10]);
        compress256(&mut expected[1], &blocks[10..]);
        assert_eq!(states, expected);
    }

    proptest! {
        #[test]
        fn random_leaves_equal_the_sha2_crate(
            a in prop::collection::vec(any::<u8>(), 0..700),
            b in prop::collection::vec(any::<u8>(), 0..700),
            skip in (0usize..64, 0usize..64),
        ) {
            let pair = [&a[skip.0.min(a.len())..], &b[skip.1.min(b.len())..]];
            check(pair);
        }
    }
}
