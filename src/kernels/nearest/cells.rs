//! The tables in which the nearest level of a weight is looked up.

#[cfg(feature = "checkpoints")]
use crate::kernels::simd::lanes::add_lanes;

/// Cells of the look-up tables.
pub(super) const CELLS: usize = 512;

/// Scales that are tried at a time.
pub(crate) const TRIES: usize = 4;

/// The nearest level by cell, for one table of levels.
///
/// Levels are integers, so the midpoints between neighbours are multiples of one half: the nearest
/// level is constant on each cell `[i/2, (i+1)/2)`, and one look-up finds it. Everything is in
/// units of half a level.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub(in crate::kernels) struct Cells {
    /// Twice the level of each cell; cell 0 starts at -256.
    pub twice: [f32; CELLS],
    /// The level, in two's complement.
    pub levels: [u8; CELLS],
    /// Its code.
    pub codes: [u8; CELLS],
}

impl Cells {
    /// Of levels that increase strictly.
    ///
    /// # Panics
    /// When there are more than 256.
    pub(super) fn new(levels: &[i8]) -> Box<Self> {
        let mut cells =
            Box::new(Self { twice: [0.0; CELLS], levels: [0; CELLS], codes: [0; CELLS] });
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
        cells
    }
}

/// The cell of `y`. All of it is exact but one addition, which may move a `y` less than 2^-16 below
/// a border onto it: both neighbours are as near then.
#[inline]
pub(in crate::kernels) fn cell(y: f32) -> usize {
    // Comparisons that say what `maxps` and `minps` do.
    let y = if y > -256.0 { y } else { -256.0 };
    let y = if y < 255.0 { y } else { 255.0 };
    // SAFETY: 0 to 511.
    (unsafe { (y + 256.0).to_int_unchecked::<i32>() } as usize) % CELLS
}

/// See [`Nearest::weighted_errors`](super::Nearest::weighted_errors). Portable, and compiled once
/// more for AVX2.
#[cfg(feature = "checkpoints")]
#[inline(always)]
pub(super) fn weighted(
    cells: &Cells,
    x: &[f32],
    weights: &[f32],
    factors: &[f32; TRIES],
) -> [f32; TRIES] {
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
