//! Kernels: the inner loops over one row. Today the portable scalar one; each ISA gets a file of its
//! own beside it and must equal `codec::reference` bit for bit.

pub(crate) mod scalar;
