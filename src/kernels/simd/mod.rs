//! Loads, codes from planes, look-ups: shared by the jobs of one instruction set. The loops
//! themselves are in their rooms, which are the only callers.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod lanes;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(super) mod neon;
pub(super) mod scalar;
