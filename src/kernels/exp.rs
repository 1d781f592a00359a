//! Exponentials of binary32 numbers, for softmax and its relatives in `lm`. The same bits from
//! every kernel: one portable loop, compiled once more for AVX2.

use super::choice::{Kernel, dispatch};

/// `e^x` to about one unit in the last place, in a form that compilers turn into vector code. Below
/// -87 and above 88 it stays at its value there (about 1e-38 and 1e38); NaN stays NaN.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    // Cephes' expf: e^x = 2^n e^r with |r| at most ln(2) / 2.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let value = p * r * r + r + 1.0;
    // NaN has no integer; any scale will do for it.
    let power = ((n + ROUND).to_bits() & 0x3ff).wrapping_add(127) << 23;
    value * f32::from_bits(power & 0x7f80_0000)
}

macro_rules! dispatched {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) {
            #[inline(always)]
            fn portable($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $type),*) {
                portable($($arg),*);
            }

            // SAFETY: the CPU has AVX2 where the kernel is one of these.
            dispatch!(unsafe Kernel::detect(),
                x86 => avx2($($arg),*),
                _ => portable($($arg),*),
            );
        }
    };
}

dispatched! {
    /// `out = e^(x - shift)`, as far as both go.
    exp_shifted(out: &mut [f32], x: &[f32], shift: f32) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = exp(x - shift));
    }
}

dispatched! {
    /// `gate = silu(gate) * up`, as far as both go.
    swiglu(gate: &mut [f32], up: &[f32]) {
        gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + exp(-*g)) * u);
    }
}

dispatched! {
    /// `x = silu(x)`.
    silu(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x));
    }
}

/// What a token brings to a selective scan: time steps and inputs of each column, and what all
/// columns share.
#[derive(Clone, Copy)]
pub(crate) struct ScanToken<'a> {
    pub dt: &'a [f32],
    pub x: &'a [f32],
    pub b: &'a [f32],
    pub c: &'a [f32],
}

dispatched! {
    /// A step of a selective scan: for each column `state = e^(dt a) state + dt x b`, and `y` grows
    /// by the sum of `state c`, added in eight lanes. `state` and `a` have as many numbers a column
    /// as `b` and `c`.
    scan_step(state: &mut [f32], a: &[f32], token: ScanToken<'_>, y: &mut [f32]) {
        let width = token.b.len();
        let columns = state.chunks_exact_mut(width).zip(a.chunks_exact(width)).zip(y);
        for (((state, a), y), (dt, x)) in columns.zip(token.dt.iter().zip(token.x)) {
            let dx = dt * x;
            let mut lanes = [0f32; 8];
            let shared = token.b.chunks(8).zip(token.c.chunks(8));
            for ((state, a), (b, c)) in state.chunks_mut(8).zip(a.chunks(8)).zip(shared) {
                let each = state.iter_mut().zip(a).zip(b.iter().zip(c)).zip(&mut lanes);
                for (((h, a), (b, c)), lane) in each {
                    *h = exp(dt * a) * *h + dx * b;
                    *lane += *h * c;
                }
            }
            *y += lanes.iter().sum::<f32>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_the_last_places() {
        let mut worst = 0f64;
        for i in -86_000..=87_000 {
            let x = i as f32 / 1000.0;
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((found / exact - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(-1e9) < 2e-38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn the_loops_give_the_same_bits_on_every_kernel() {
        let x: Vec<f32> = (0..999).map(|i| (i as f32 - 500.0) * 0.17).collect();
        let mut found = vec![0.0; x.len()];
        exp_shifted(&mut found, &x, 3.0);
        assert!(found.iter().zip(&x).all(|(f, x)| *f == exp(x - 3.0)));
        let mut gate = x.clone();
        swiglu(&mut gate, &found);
        let by_hand = |(x, u): (&f32, &f32)| x / (1.0 + exp(-x)) * u;
        assert!(gate.iter().zip(x.iter().zip(&found).map(by_hand)).all(|(a, b)| *a == b));
    }
}
