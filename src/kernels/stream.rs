//! Copies that go around the caches.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::choice::{Kernel, dispatch};
#[cfg(target_arch = "x86_64")]
use super::memory::LINE_BYTES;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2, avx512};

/// Whether [`stream_copy`] goes around the caches.
pub(crate) fn can_stream(kernel: Kernel) -> bool {
    matches!(kernel, Kernel::Avx2 | Kernel::Avx512)
}

/// Copies with stores that don't load the lines they replace, nor keep them in the caches. Call
/// [`stream_end`] before another thread looks.
///
/// # Panics
/// When the lengths differ, or the CPU can't run `kernel`.
pub(crate) fn stream_copy(kernel: Kernel, to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "bytes to copy");
    assert!(kernel.is_available(), "kernel {kernel} can't run here");
    // SAFETY: the CPU has what the kernel needs, as was asserted.
    dispatch!(unsafe kernel,
        avx512 => copy_avx512(to, from),
        avx2 => copy_avx2(to, from),
        _ => to.copy_from_slice(from),
    );
}

/// Orders streamed stores before whatever follows.
pub(crate) fn stream_end() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has SSE.
    unsafe {
        _mm_sfence();
    }
}

/// See [`stream_copy`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn copy_avx2(to: &mut [u8], from: &[u8]) {
    let head = to.as_ptr().align_offset(LINE_BYTES).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let (to, to_tail) = to.as_chunks_mut::<LINE_BYTES>();
    let (from, from_tail) = from.as_chunks::<LINE_BYTES>();
    // Whole lines at a time: half a line would be written twice.
    for (to, from) in to.iter_mut().zip(from) {
        let [low, high] = from.as_chunks::<32>().0 else { continue };
        // SAFETY: 64 bytes have room, at a multiple of 64.
        unsafe {
            _mm256_stream_si256(to.as_mut_ptr().cast(), avx2::load(low));
            _mm256_stream_si256(to[32..].as_mut_ptr().cast(), avx2::load(high));
        }
    }
    to_tail.copy_from_slice(from_tail);
}

/// See [`stream_copy`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn copy_avx512(to: &mut [u8], from: &[u8]) {
    let head = to.as_ptr().align_offset(LINE_BYTES).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let (to, to_tail) = to.as_chunks_mut::<LINE_BYTES>();
    let (from, from_tail) = from.as_chunks::<LINE_BYTES>();
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: 64 bytes have room, at a multiple of 64.
        unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), avx512::load64(from)) };
    }
    to_tail.copy_from_slice(from_tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_copies_copy_everything_and_nothing_else() {
        let from: Vec<u8> = (0..2000u32).map(|i| (i % 251) as u8).collect();
        for kernel in Kernel::available() {
            for start in [0, 1, 7, 31, 32, 63] {
                for len in (0..200).chain([511, 1024, 1900]) {
                    let mut to = vec![0xa5; 2200];
                    stream_copy(kernel, &mut to[start..start + len], &from[3..3 + len]);
                    stream_end();
                    assert_eq!(to[start..start + len], from[3..3 + len], "{kernel} {start} {len}");
                    let outside = to[..start].iter().chain(&to[start + len..]);
                    assert!(outside.into_iter().all(|&b| b == 0xa5), "{kernel} {start} {len}");
                }
            }
        }
    }
}
