//! Products of tiles for the calibrated encoder. Results reach the file, so the order of operations
//! is fixed: each element of a tile takes its products one after the other, `k` ascending, each
//! rounded by itself. Whatever the width of the vectors, that gives the same bits.

use super::choice::{Kernel, dispatch};

/// Rows and columns of a tile, and the width of a panel.
pub(crate) const TILE: usize = 64;
/// Elements of a tile.
pub(crate) const TILE_LEN: usize = TILE * TILE;

/// Products that go by before the next part of a tile: both operands stay in the first cache.
const DEPTH: usize = 128;

/// binary32 or binary64.
pub(crate) trait Real:
    Copy
    + Default
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
{
    /// Runs with the widest vectors of the kernel.
    fn dispatch<const SUBTRACT: bool>(kernel: Kernel, out: &mut [Self], a: &[Self], b: &[Self]);
}

/// `out[i][j] += sum over k of a[k][i] * b[k][j]` for a tile `out`, in panels `a` and `b` of
/// [`TILE`] columns and as many rows as both have.
///
/// # Panics
/// When `out` is no tile, or a panel ends within a row.
pub(crate) fn add_product<T: Real>(kernel: Kernel, out: &mut [T], a: &[T], b: &[T]) {
    check(out, a, b);
    T::dispatch::<false>(kernel, out, a, b);
}

/// As [`add_product`], with each product subtracted.
///
/// # Panics
/// As [`add_product`].
pub(crate) fn subtract_product<T: Real>(kernel: Kernel, out: &mut [T], a: &[T], b: &[T]) {
    check(out, a, b);
    T::dispatch::<true>(kernel, out, a, b);
}

fn check<T>(out: &[T], a: &[T], b: &[T]) {
    assert_eq!(out.len(), TILE_LEN, "a tile");
    assert!(a.len().is_multiple_of(TILE) && a.len() == b.len(), "panels of one length");
}

/// Parts of `4 x WIDTH` elements, which fit the registers.
#[inline(always)]
fn product<T: Real, const WIDTH: usize, const SUBTRACT: bool>(out: &mut [T], a: &[T], b: &[T]) {
    const ROWS: usize = 4;
    let at = |i: usize, j: usize| i * TILE + j;
    for (a, b) in a.chunks(DEPTH * TILE).zip(b.chunks(DEPTH * TILE)) {
        for j in (0..TILE).step_by(WIDTH) {
            for i in (0..TILE).step_by(ROWS) {
                let mut sums = [[T::default(); WIDTH]; ROWS];
                for (r, sums) in sums.iter_mut().enumerate() {
                    sums.copy_from_slice(&out[at(i + r, j)..][..WIDTH]);
                }
                for (a, b) in a.chunks_exact(TILE).zip(b.chunks_exact(TILE)) {
                    let (a, b) = (&a[i..i + ROWS], &b[j..j + WIDTH]);
                    for r in 0..ROWS {
                        for w in 0..WIDTH {
                            let product = a[r] * b[w];
                            sums[r][w] =
                                if SUBTRACT { sums[r][w] - product } else { sums[r][w] + product };
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    out[at(i + r, j)..][..WIDTH].copy_from_slice(sums);
                }
            }
        }
    }
}

macro_rules! real {
    ($t:ty, $plain:literal, $avx2:literal, $avx512:literal) => {
        impl Real for $t {
            fn dispatch<const SUBTRACT: bool>(
                kernel: Kernel,
                out: &mut [Self],
                a: &[Self],
                b: &[Self],
            ) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2")]
                fn avx2<const SUBTRACT: bool>(out: &mut [$t], a: &[$t], b: &[$t]) {
                    product::<$t, $avx2, SUBTRACT>(out, a, b);
                }

                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512vl")]
                fn avx512<const SUBTRACT: bool>(out: &mut [$t], a: &[$t], b: &[$t]) {
                    product::<$t, $avx512, SUBTRACT>(out, a, b);
                }

                // SAFETY: callers have kernels that the CPU can run.
                dispatch!(unsafe kernel,
                    avx512 => avx512::<SUBTRACT>(out, a, b),
                    avx2 => avx2::<SUBTRACT>(out, a, b),
                    _ => product::<$t, $plain, SUBTRACT>(out, a, b),
                );
            }
        }
    };
}

real!(f32, 8, 16, 32);
real!(f64, 4, 8, 16);

/// Does `12 x width x rounds` multiplications and additions of binary32 numbers that stay in
/// registers, half of each, in vectors of 16, 8 or 4: what a core can do at best, for comparison.
#[doc(hidden)]
pub fn mul_add_peak(kernel: Kernel, rounds: usize) -> f32 {
    #[inline(always)]
    fn run<const WIDTH: usize>(rounds: usize) -> f32 {
        // Six of each are in flight at a time; the names keep them in registers.
        let x = std::hint::black_box([1.000_000_1f32; WIDTH]);
        let (mut a, mut b, mut c) = ([0f32; WIDTH], [1f32; WIDTH], [2f32; WIDTH]);
        let (mut d, mut e, mut f) = ([3f32; WIDTH], [4f32; WIDTH], [5f32; WIDTH]);
        let (mut g, mut h, mut i) = ([1f32; WIDTH], [1.1f32; WIDTH], [1.2f32; WIDTH]);
        let (mut j, mut k, mut l) = ([1.3f32; WIDTH], [1.4f32; WIDTH], [1.5f32; WIDTH]);
        for _ in 0..rounds {
            for w in 0..WIDTH {
                a[w] += x[w];
                b[w] += x[w];
                c[w] += x[w];
                d[w] += x[w];
                e[w] += x[w];
                f[w] += x[w];
                g[w] *= x[w];
                h[w] *= x[w];
                i[w] *= x[w];
                j[w] *= x[w];
                k[w] *= x[w];
                l[w] *= x[w];
            }
        }
        [a, b, c, d, e, f, g, h, i, j, k, l].iter().flatten().sum()
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn avx2(rounds: usize) -> f32 {
        run::<8>(rounds)
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl")]
    fn avx512(rounds: usize) -> f32 {
        run::<16>(rounds)
    }
    // SAFETY: callers have kernels that the CPU can run.
    dispatch!(unsafe kernel,
        avx512 => avx512(rounds),
        avx2 => avx2(rounds),
        _ => run::<4>(rounds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn kernels_give_the_bits_of_the_definition() {
        for rows in [0, 1, 127, 128, 300] {
            let (a, b) = (numbers(rows * TILE, 1), numbers(rows * TILE, 2));
            let start = numbers(TILE_LEN, 3);
            let mut expected = start.clone();
            for k in 0..rows {
                for i in 0..TILE {
                    for j in 0..TILE {
                        let product = a[k * TILE + i] * b[k * TILE + j];
                        expected[i * TILE + j] += product;
                    }
                }
            }
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let (a64, b64) = (wide(&a), wide(&b));
            let mut scalar64 = wide(&start);
            subtract_product(Kernel::Scalar, &mut scalar64, &a64, &b64);
            for kernel in Kernel::available() {
                let mut found = start.clone();
                add_product(kernel, &mut found, &a, &b);
                assert!(found == expected, "{kernel}, {rows} rows");
                let mut found = wide(&start);
                subtract_product(kernel, &mut found, &a64, &b64);
                assert!(found == scalar64, "{kernel}, {rows} rows, binary64");
            }
        }
    }
}
