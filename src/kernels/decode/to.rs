//! The type that a decoder writes, as the parameter `TO` of its functions: parameters are no enums.

pub(super) const F32: u8 = 0;
pub(super) const BF16: u8 = 1;
pub(super) const F16: u8 = 2;
