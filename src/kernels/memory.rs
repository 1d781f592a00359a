//! Buffers: large ones without touching them first, and numbers that start where lines of the
//! caches do.

/// Bytes of a line of the caches. Vectors that straddle two cost twice as much to load, and a line
/// written in part is read first.
pub(super) const LINE_BYTES: usize = 64;

/// Buffers from this size on are asked to be in huge pages. First touch of ordinary pages is slower
/// than decoding into them.
#[cfg(target_os = "linux")]
const HUGE_BYTES: usize = 4 << 20;

/// A buffer of `len` zeros that nobody wrote: fresh memory of the system is zero already. `None`
/// when there is no such memory.
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
    // SAFETY: whole pages inside the buffer (64 KiB is a multiple of every page size in use); the
    // advice leaves their content as it is.
    unsafe {
        libc::madvise(buffer.as_mut_ptr().add(skip).cast(), whole, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &mut [u8]) {}

/// Numbers that start at a multiple of [`LINE_BYTES`].
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    all: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Aligned<T> {
    pub(super) fn new(len: usize) -> Self {
        let all = vec![T::default(); len + LINE_BYTES / size_of::<T>()];
        let start = all.as_ptr().align_offset(LINE_BYTES).min(all.len() - len);
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
        let len = self.all.len() - LINE_BYTES / size_of::<T>();
        &self.all[self.start..self.start + len]
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.all.len() - LINE_BYTES / size_of::<T>();
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
}
