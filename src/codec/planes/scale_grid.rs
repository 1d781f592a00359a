//! The scales that the encoders try: a logarithmic grid with the finest ratio of the steps.

use super::value::max_scale_exponent;
use crate::format::Dtype;

/// `4^(i/15)`, i = 0..15: the ratios of the steps, as binary32 literals so that no library computes
/// them.
const RATIO: [f32; 15] = [
    1.0, 1.096825, 1.203025, 1.319508, 1.4472692, 1.587401, 1.7411011, 1.9096832, 2.0945883,
    2.2973967, 2.5198421, 2.7638257, 3.031433, 3.3249516, 3.64689,
];

/// Lowest and highest grid point that is ever asked for.
pub(crate) const POINTS: std::ops::RangeInclusive<i32> = -64..=16;
/// Place of point 0.
const POINT_ZERO: usize = 64;

/// `4^(t/15)` for every `t` of [`POINTS`].
#[derive(Debug, Clone)]
pub(crate) struct ScaleGrid([f32; 81]);

impl ScaleGrid {
    pub(crate) fn new() -> Self {
        let mut grid = [0f32; 81];
        for (t, ratio) in POINTS.zip(&mut grid) {
            let part = RATIO[usize::try_from(t.rem_euclid(15)).expect("0 to 14")];
            // Multiplying by a power of four is exact.
            let exponent = 127 + 2 * t.div_euclid(15);
            *ratio = part * f32::from_bits(u32::try_from(exponent).expect("117 to 129") << 23);
        }
        Self(grid)
    }

    pub(crate) fn ratio(&self, t: i32) -> f32 {
        self.0[usize::try_from(t - POINTS.start()).expect("within the grid")]
    }

    /// For each peak the highest point `t` up to 0 with `amax * 4^(t/15)` at most it; groups that
    /// are smaller by far share point -45.
    pub(crate) fn indices(&self, peaks: &[f32], amax: f32) -> Vec<i32> {
        // Falling, so the number of those above a peak is how far down its point is.
        let ladder: [f32; 45] = std::array::from_fn(|i| amax * self.0[POINT_ZERO - i]);
        let count = |peak: &f32| ladder.iter().map(|l| i32::from(l > peak)).sum::<i32>();
        peaks.iter().map(|peak| -count(peak)).collect()
    }
}

/// The bits of the nearest scale that a tensor of this dtype may have (UC-VAL-1).
pub(crate) fn scale_bits(scale: f32, dtype: Dtype) -> u16 {
    let bits = half::bf16::from_f32(scale).to_bits();
    bits.clamp(1 << 7, (max_scale_exponent(dtype) << 7) | 0x7f)
}
