//! The nearest level of a weight, for the encoder.
//!
//! What is computed here reaches the file, so every kernel does the same binary32 operations in the
//! same order, none of them fused.

use super::choice::Kernel;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use super::neon;
use super::scalar;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Cells of the look-up tables.
pub(super) const CELLS: usize = 512;

/// Scales that are tried at a time.
pub(crate) const TRIES: usize = 4;

/// Nearest-level search for one table of levels.
///
/// Levels are integers, so the midpoints between neighbours are multiples of one half: the nearest
/// level is constant on each cell `[i/2, (i+1)/2)`, and one look-up finds it. Everything is in units of
/// half a level.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub(super) struct Cells {
    /// Twice the level of each cell; cell 0 starts at -256.
    pub twice: [f32; CELLS],
    /// The level, in two's complement.
    pub levels: [u8; CELLS],
    /// Its code.
    pub codes: [u8; CELLS],
}

/// See [`Cells`].
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
        let mut cells =
            Box::new(Cells { twice: [0.0; CELLS], levels: [0; CELLS], codes: [0; CELLS] });
        let mut code = 0usize;
        for cell in 0..CELLS {
            // Twice the lower end of the cell, against twice the midpoint to the next level.
            let low = i32::try_from(cell).expect("below 512") - 256;
            while levels
                .get(code + 1)
                .is_some_and(|&next| i32::from(levels[code]) + i32::from(next) <= low)
            {
                code += 1;
            }
            cells.twice[cell] = 2.0 * f32::from(levels[code]);
            cells.levels[cell] = levels[code].cast_unsigned();
            cells.codes[cell] = u8::try_from(code).expect("at most 256 levels");
        }
        let widest = levels.iter().map(|l| l.unsigned_abs()).max().unwrap_or(127);
        Self {
            kernel,
            cells,
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

    /// For each of four factors `f`, the sum over `x` of the squared distance of `x * f` from twice the
    /// nearest level. Element `i` is added to lane `i % 16`; lanes are added as [`add_lanes`] does.
    pub(crate) fn errors(&self, x: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` asserted that the CPU has what the kernel needs.
            Kernel::Avx512 => unsafe { avx512::errors(&self.cells, x, factors) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernel::Avx2 => unsafe { avx2::errors(&self.cells, x, factors) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: as above.
            Kernel::Neon => unsafe { neon::errors(&self.cells, x, factors) },
            _ => scalar::errors(&self.cells, x, factors),
        }
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
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2")]
        fn avx2(c: &Cells, x: &[f32], weights: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
            weighted(c, x, weights, factors)
        }

        assert_eq!(x.len(), weights.len(), "weights");
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` asserted that the CPU has what the kernel needs.
            Kernel::Avx2 | Kernel::Avx512 => unsafe { avx2(&self.cells, x, weights, factors) },
            _ => weighted(&self.cells, x, weights, factors),
        }
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
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` asserted that the CPU has what the kernel needs.
            Kernel::Avx512 => unsafe { avx512::nearest_codes(&self.cells, x, factor, codes) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernel::Avx2 => unsafe { avx2::nearest_codes(&self.cells, x, factor, codes) },
            _ => scalar::nearest_codes(&self.cells, x, factor, codes),
        }
    }

    /// Spreads the codes of one row over its planes, most significant plane first (UC-PLN-6).
    ///
    /// # Panics
    /// When a plane has not one bit for each code.
    pub(crate) fn scatter(&self, codes: &[u8], planes: &mut [&mut [u8]]) {
        assert!(planes.iter().all(|p| p.len() == codes.len().div_ceil(8)), "bytes of a plane");
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` asserted that the CPU has what the kernel needs.
            Kernel::Avx512 => unsafe { avx512::scatter_codes(codes, planes) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernel::Avx2 => unsafe { avx2::scatter_codes(codes, planes) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: as above.
            Kernel::Neon => unsafe { neon::scatter_codes(codes, planes) },
            _ => scalar::scatter_codes(codes, planes),
        }
    }
}

/// The cell of `y`. All of it is exact but one addition, which may move a `y` less than 2^-16 below a
/// border onto it: both neighbours are as near then.
#[inline]
pub(super) fn cell(y: f32) -> usize {
    // Comparisons that say what `maxps` and `minps` do.
    let y = if y > -256.0 { y } else { -256.0 };
    let y = if y < 255.0 { y } else { 255.0 };
    // SAFETY: 0 to 511.
    (unsafe { (y + 256.0).to_int_unchecked::<i32>() } as usize) % CELLS
}

#[cfg(feature = "checkpoints")]
#[inline(always)]
fn weighted(cells: &Cells, x: &[f32], weights: &[f32], factors: &[f32; TRIES]) -> [f32; TRIES] {
    let mut sums = [0f32; TRIES];
    for (sum, factor) in sums.iter_mut().zip(factors) {
        let mut lanes = [0f32; 16];
        for (x, weights) in x.chunks(16).zip(weights.chunks(16)) {
            for (lane, (x, weight)) in lanes.iter_mut().zip(x.iter().zip(weights)) {
                let y = x * factor;
                let distance = y - cells.twice[cell(y)];
                *lane += weight * (distance * distance);
            }
        }
        *sum = add_lanes(&lanes);
    }
    sums
}

/// The sum of 16 lanes: halves are added until one is left.
#[inline]
pub(super) fn add_lanes(lanes: &[f32; 16]) -> f32 {
    let mut lanes = *lanes;
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
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
