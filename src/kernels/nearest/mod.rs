//! The nearest level of a weight, for the encoder.
//!
//! Results reach the file, so every kernel does the same binary32 operations in the same order,
//! none of them fused.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod cells;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod scalar;

use self::cells::Cells;
#[cfg(feature = "checkpoints")]
use self::cells::{cell, weighted};
use super::choice::{Kernel, dispatch};

pub(crate) use self::cells::TRIES;

/// Nearest-level search for one table of levels, see [`Cells`].
#[derive(Debug)]
pub(crate) struct Nearest {
    kernel: Kernel,
    cells: Box<Cells>,
    #[cfg(feature = "checkpoints")]
    table: Vec<i8>,
    top: f32,
}

impl Nearest {
    /// A search among `levels`, which increase strictly.
    ///
    /// # Panics
    /// When the CPU can't run `kernel`, or there are more than 256 levels.
    pub(crate) fn new(kernel: Kernel, levels: &[i8]) -> Self {
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        let widest = levels.iter().map(|l| l.unsigned_abs()).max().unwrap_or(127);
        Self {
            kernel,
            cells: Cells::new(levels),
            #[cfg(feature = "checkpoints")]
            table: levels.to_vec(),
            top: f32::from(widest.min(127)),
        }
    }

    /// The same search with another kernel.
    ///
    /// # Panics
    /// When the CPU can't run it.
    pub(crate) fn with_kernel(self, kernel: Kernel) -> Self {
        assert!(kernel.is_available(), "kernel {kernel} can't run here");
        Self { kernel, ..self }
    }

    /// For each of four factors `f`, the sum over `x` of the squared distance of `x * f` from twice
    /// the nearest level. Element `i` is added to lane `i % 16`; lanes are added as
    /// [`add_lanes`](super::simd::lanes::add_lanes) does.
    pub(crate) fn errors(&self, x: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
        // SAFETY: `new` asserted that the CPU has what the kernel needs.
        dispatch!(unsafe self.kernel,
            avx512 => avx512::errors(&self.cells, x, factors),
            avx2 => avx2::errors(&self.cells, x, factors),
            neon => neon::errors(&self.cells, x, factors),
            _ => scalar::errors(&self.cells, x, factors),
        )
    }

    /// As [`Nearest::errors`], with each squared distance multiplied by the weight of its place.
    ///
    /// # Panics
    /// When the slices differ in length.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn weighted_errors(
        &self,
        x: &[f32],
        weights: &[f32],
        factors: &[f32; TRIES],
    ) -> [f32; TRIES] {
        assert_eq!(x.len(), weights.len(), "weights");
        // SAFETY: `new` asserted that the CPU has what the kernel needs.
        dispatch!(unsafe self.kernel,
            x86 => avx2::weighted_errors(&self.cells, x, weights, factors),
            _ => weighted(&self.cells, x, weights, factors),
        )
    }

    /// The largest magnitude among the levels, 127 at most: what the peak of a row belongs on.
    pub(crate) fn top(&self) -> f32 {
        self.top
    }

    /// The level of a code. Codes beyond the table have the last level.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn level(&self, code: u8) -> i8 {
        self.table[usize::from(code).min(self.table.len() - 1)]
    }

    /// The code of the level nearest to half of `y`.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn code(&self, y: f32) -> u8 {
        self.cells.codes[cell(y)]
    }

    #[cfg(feature = "checkpoints")]
    pub(super) fn cells(&self) -> &Cells {
        &self.cells
    }

    /// The codes of the levels nearest to half of `x * factor`.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub(crate) fn codes(&self, x: &[f32], factor: f32, codes: &mut [u8]) {
        assert_eq!(x.len(), codes.len(), "codes");
        // SAFETY: `new` asserted that the CPU has what the kernel needs.
        dispatch!(unsafe self.kernel,
            avx512 => avx512::codes(&self.cells, x, factor, codes),
            avx2 => avx2::codes(&self.cells, x, factor, codes),
            _ => scalar::codes(&self.cells, x, factor, codes),
        )
    }

    /// Spreads the codes of one row over its planes, most significant plane first (UC-PLN-6).
    ///
    /// # Panics
    /// When a plane has not one bit for each code.
    pub(crate) fn scatter(&self, codes: &[u8], planes: &mut [&mut [u8]]) {
        assert!(planes.iter().all(|p| p.len() == codes.len().div_ceil(8)), "bytes of a plane");
        // SAFETY: `new` asserted that the CPU has what the kernel needs.
        dispatch!(unsafe self.kernel,
            avx512 => avx512::scatter(codes, planes),
            avx2 => avx2::scatter(codes, planes),
            neon => neon::scatter(codes, planes),
            _ => scalar::scatter(codes, planes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Strictly increasing levels, dense and sparse.
    fn tables() -> Vec<Vec<i8>> {
        let spread = |n: i32, step: i32| -> Vec<i8> {
            (0..n).map(|i| i8::try_from(i * step - 64).expect("in range")).collect()
        };
        vec![
            vec![-128, -127, -1, 0, 1, 2, 126, 127],
            spread(16, 9),
            spread(32, 6),
            spread(64, 2),
            spread(128, 1),
            (-128..=127).collect(),
        ]
    }

    fn weights(n: usize) -> Vec<f32> {
        let mut state = 7u32;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let bits = state >> 8;
                // Some at exact borders of cells.
                if bits.is_multiple_of(5) {
                    f32::from(bits as u16 % 600) / 2.0 - 150.0
                } else {
                    bits as f32 / 43_000.0 - 195.0
                }
            })
            .collect()
    }

    #[test]
    fn the_nearest_level_is_found_far_beyond_the_table() {
        for levels in tables() {
            let nearest = Nearest::new(Kernel::Scalar, &levels);
            let x: Vec<f32> = (-32_000i16..=32_000).map(|i| f32::from(i) / 128.0).collect();
            let mut codes = vec![0; x.len()];
            nearest.codes(&x, 2.0, &mut codes);
            for (x, code) in x.iter().zip(codes) {
                let error = (x - f32::from(levels[usize::from(code)])).abs();
                let least = levels.iter().map(|&l| (x - f32::from(l)).abs());
                assert!(error <= least.fold(f32::INFINITY, f32::min), "{x} became code {code}");
            }
        }
    }

    #[test]
    fn kernels_find_the_same_errors_and_codes() {
        let all = weights(1500);
        for levels in tables() {
            let scalar = Nearest::new(Kernel::Scalar, &levels);
            for kernel in Kernel::available() {
                let nearest = Nearest::new(kernel, &levels);
                for n in (0..70).chain([255, 256, 257, 1499]) {
                    let x = &all[1..=n];
                    let factors = [1.7, 2.0, 0.01, 9e9];
                    let bits = |e: [f32; TRIES]| e.map(f32::to_bits);
                    let what = format!("{kernel}, {n} weights, {} levels", levels.len());
                    assert_eq!(
                        bits(nearest.errors(x, &factors)),
                        bits(scalar.errors(x, &factors)),
                        "{what}"
                    );
                    let (mut found, mut expected) = (vec![0xa5; n], vec![0x5a; n]);
                    nearest.codes(x, 2.0, &mut found);
                    scalar.codes(x, 2.0, &mut expected);
                    assert_eq!(found, expected, "{what}");
                }
            }
        }
    }

    #[test]
    fn kernels_scatter_alike() {
        for kernel in Kernel::available() {
            for n_planes in 3..=8usize {
                let levels: Vec<i8> = (0..1i32 << n_planes).map(|i| (i - 128) as i8).collect();
                let (fast, scalar) =
                    (Nearest::new(kernel, &levels), Nearest::new(Kernel::Scalar, &levels));
                for n in (1..140).chain([511, 512, 513]) {
                    let codes: Vec<u8> =
                        (0..n).map(|i| ((i * 37 + i / 7) % levels.len()) as u8).collect();
                    let scatter = |nearest: &Nearest, poison: u8| {
                        let mut planes = vec![vec![poison; n.div_ceil(8)]; n_planes];
                        let mut slices: Vec<&mut [u8]> =
                            planes.iter_mut().map(Vec::as_mut_slice).collect();
                        nearest.scatter(&codes, &mut slices);
                        planes
                    };
                    assert_eq!(scatter(&fast, 0xff), scatter(&scalar, 0), "{kernel}, {n} codes");
                }
            }
        }
    }
}
