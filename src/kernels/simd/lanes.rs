//! The order in which lanes are added. Sums that reach the file have this order from every kernel.

/// The sum of 16 lanes: halves are added until one is left.
#[inline]
pub(in crate::kernels) fn add_lanes(lanes: &[f32; 16]) -> f32 {
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
