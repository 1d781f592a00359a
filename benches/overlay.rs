//! Applying an overlay while decoding, beside what the core can do: one thread, medians, a JSON
//! object on stdout.
//!
//! ```text
//! cargo bench --bench overlay
//! ```
//!
//! `peak` is the share of the multiplications and additions that the core does in registers (half
//! of each, no memory), with one of each counted for every weight and rank.

mod support;

use std::hint::black_box;
use std::time::Instant;

use serde_json::json;
use support::{commit, cpu};
use ultracompress::codec::Factors;
use ultracompress::format::{FactorType, OverlayBlock};
use ultracompress::{Kernel, OverlayMatrix, mul_add_peak};

const RANKS: [u32; 3] = [4, 16, 64];
/// Values in binary32: in a core's own cache, and in memory.
const SIZES: [(&str, u64, u64); 2] = [("L2", 32, 2048), ("memory", 4096, 4096)];

fn factors(rank: u32, rows: u64, cols: u64) -> Factors {
    let block = OverlayBlock::for_tests(FactorType::Int8, rank, rows, cols).expect("small");
    let len = usize::try_from(block.bytes()).expect("small");
    let mut bytes: Vec<u8> = (0..=250u8).cycle().step_by(37).take(len).collect();
    let scales = 2 * usize::try_from(rows + cols).expect("small");
    bytes[..scales].as_chunks_mut::<2>().0.iter_mut().for_each(|s| *s = [0x80, 0x3a]);
    Factors::parse(&block, &bytes).expect("valid")
}

/// Seconds of one run, median of some.
fn seconds(quick: bool, mut run: impl FnMut()) -> f64 {
    run();
    let rounds = if quick { 1 } else { 15 };
    let mut all: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[rounds / 2]
}

#[allow(clippy::cast_precision_loss, reason = "rates")]
fn main() {
    // Without the `--bench` that `cargo bench` passes: one short round of everything.
    let quick = !std::env::args().any(|a| a == "--bench");
    let mut rows_out = vec![];
    for kernel in Kernel::available() {
        let width = match kernel {
            Kernel::Avx2 => 8.0,
            Kernel::Avx512 => 16.0,
            _ => 4.0,
        };
        for (place, rows, cols) in SIZES {
            let rows = if quick { 4 } else { rows };
            let n = usize::try_from(rows * cols).expect("small");
            let mut values = vec![0.25f32; n];
            for rank in RANKS {
                let factors = factors(rank, rows, cols);
                let repeat = if place == "L2" && !quick { 20 } else { 1 };
                let rounds = if quick { 100 } else { 2_000_000 };
                // Interleaved, so that both see the same machine.
                let peak_ops = 12.0 * width * f64::from(rounds);
                let peak = peak_ops
                    / seconds(quick, || {
                        black_box(mul_add_peak(kernel, rounds as usize));
                    });
                let took = seconds(quick, || {
                    for _ in 0..repeat {
                        factors.add(kernel, 0, black_box(&mut values)).expect("fits");
                    }
                });
                let rate = n as f64 * f64::from(repeat) / took;
                let thin = OverlayMatrix::new(&factors).and_then(|m| m.with_kernel(kernel));
                let thin = thin.expect("available");
                let x = vec![0.5f32; thin.cols()];
                let mut y = vec![0f32; thin.rows()];
                let product = seconds(quick, || {
                    thin.add_product(black_box(&x), black_box(&mut y)).expect("fits");
                });
                rows_out.push(json!({
                    "kernel": kernel.name(), "place": place, "rows": rows, "cols": cols, "rank": rank,
                    "weights_per_second": rate, "peak_operations_per_second": peak,
                    "peak": rate * 2.0 * f64::from(rank) / peak,
                    "product_seconds": product,
                }));
            }
        }
    }
    let record = json!({
        "command": "cargo bench --bench overlay", "commit": commit(), "cpu": cpu(),
        "what": "adding a low-rank overlay of int8 factors to decoded binary32 values; and y += A (B x)",
        "rows": rows_out,
    });
    println!("{record:#}");
}
