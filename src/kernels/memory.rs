//! Buffers: large ones without touching them first, and copies that go around the caches.

use super::choice::Kernel;

/// Buffers from this size on are asked to be in huge pages. First touch of ordinary pages is slower
/// than decoding into them.
#[cfg(target_os = "linux")]
const HUGE_BYTES: usize = 4 << 20;

/// A buffer of `len` zeros that nobody wrote: fresh memory of the system is zero already. `None` when
/// there is no such memory.
pub(crate) fn zeroed(len: usize) -> Option<Vec<u8>> {
    if len == 0 {
        return Some(Vec::new());
    }
    let layout = std::alloc::Layout::array::<u8>(len).ok()?;
    // SAFETY: the layout has a size, and `Vec<u8>` frees with this very layout.
    let mut buffer = unsafe {
        let bytes = std::alloc::alloc_zeroed(layout);
        if bytes.is_null() {
            return None;
        }
        Vec::from_raw_parts(bytes, len, len)
    };
    advise_huge_pages(&mut buffer);
    Some(buffer)
}

/// Asks for huge pages where the platform has them; whether it obeys doesn't matter.
#[cfg(target_os = "linux")]
fn advise_huge_pages(buffer: &mut [u8]) {
    if buffer.len() < HUGE_BYTES {
        return;
    }
    const PAGE: usize = 64 << 10;
    let skip = buffer.as_ptr().align_offset(PAGE);
    let whole = buffer.len().saturating_sub(skip) / PAGE * PAGE;
    // SAFETY: whole pages inside the buffer (64 KiB is a multiple of every page size in use); the advice
    // leaves their content as it is.
    unsafe {
        libc::madvise(buffer.as_mut_ptr().add(skip).cast(), whole, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &mut [u8]) {}

/// Numbers that start at a multiple of 64 bytes: vectors that straddle cache lines cost twice as much to
/// load.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    all: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Aligned<T> {
    pub(super) fn new(len: usize) -> Self {
        let all = vec![T::default(); len + 64 / size_of::<T>()];
        let start = all.as_ptr().align_offset(64).min(all.len() - len);
        Self { all, start }
    }
}

impl<T: Copy + Default> From<&[T]> for Aligned<T> {
    fn from(numbers: &[T]) -> Self {
        let mut aligned = Self::new(numbers.len());
        aligned.copy_from_slice(numbers);
        aligned
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl<T> std::ops::Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let len = self.all.len() - 64 / size_of::<T>();
        &self.all[self.start..self.start + len]
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.all.len() - 64 / size_of::<T>();
        &mut self.all[self.start..self.start + len]
    }
}

/// The memory of some numbers.
pub(crate) fn as_bytes_mut(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory, of which every pattern of bits is a number.
    unsafe {
        let len = std::mem::size_of_val(numbers);
        std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), len)
    }
}

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
    match kernel {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has what the kernel needs.
        Kernel::Avx512 => unsafe { super::avx512::stream_copy(to, from) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kernel::Avx2 => unsafe { super::avx2::stream_copy(to, from) },
        _ => to.copy_from_slice(from),
    }
}

/// Orders streamed stores before whatever follows.
pub(crate) fn stream_end() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_buffers_are_zero_and_grow() {
        for len in [0, 1, 4096, (4 << 20) + 12_345] {
            let mut buffer = zeroed(len).expect("memory");
            assert!(buffer.len() == len && buffer.iter().all(|&b| b == 0));
            buffer.extend([1; 100]);
            buffer.shrink_to_fit();
        }
        assert!(zeroed(usize::MAX).is_none());
    }

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
