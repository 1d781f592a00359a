//! Every single bit of packs of every kind: flipped, it is noticed by a complete verification.
//!
//! The packs are the valid vectors of the spec: planes, raw and coded tensors, zstd, exact rungs,
//! overlays, carried files, attachments, parts and records that this reader skips. One bit of each
//! byte is flipped, another one in each; with `UC_FLIPS=all` all of them. `UC_FLIPS_REPORT=FILE`
//! writes what was counted.

#![cfg(feature = "zstd")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;
use ultracompress::{Container, VerifyOptions};

use support::vectors::valid_containers;

/// Longer vectors take too long bit by bit.
const MOST_BYTES: usize = 32 << 10;

fn packs() -> Vec<(String, Vec<u8>)> {
    let all = valid_containers().into_iter();
    all.filter(|(_, file)| file.len() <= MOST_BYTES).collect()
}

/// Whether the file is refused, or found to be damaged.
fn noticed(file: &[u8]) -> bool {
    let Ok(pack) = Container::open(file) else { return true };
    VerifyOptions::new().verify(&pack).map_or(true, |report| !report.is_ok())
}

#[test]
fn flipped_bits_of_every_valid_vector_are_noticed() {
    let started = Instant::now();
    let packs = packs();
    assert!(packs.len() >= 30, "{} vectors", packs.len());
    for (name, file) in &packs {
        assert!(!noticed(file), "{name}: is valid");
    }
    let all = std::env::var("UC_FLIPS").is_ok_and(|v| v == "all");
    let chosen = |bit: &usize| all || (bit / 8 * 5) % 8 == bit % 8;
    let bits: Vec<(usize, usize)> = packs
        .iter()
        .enumerate()
        .flat_map(|(i, (_, file))| (0..8 * file.len()).filter(chosen).map(move |bit| (i, bit)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut missed = vec![];
        loop {
            // Some at a time: a lock for each bit would cost more than the bit.
            let from = next.fetch_add(1024, Ordering::Relaxed);
            if from >= bits.len() {
                return missed;
            }
            for &(i, bit) in &bits[from..bits.len().min(from + 1024)] {
                let mut damaged = packs[i].1.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                if !noticed(&damaged) {
                    missed.push(format!("{}: byte {} bit {}", packs[i].0, bit / 8, bit % 8));
                }
            }
        }
    };
    let missed: Vec<String> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|h| h.join().expect("no panic")).collect()
    });
    assert!(
        missed.is_empty(),
        "{} of {}: {:?}",
        missed.len(),
        bits.len(),
        &missed[..missed.len().min(9)]
    );
    if let Ok(path) = std::env::var("UC_FLIPS_REPORT") {
        let bytes: usize = packs.iter().map(|(_, file)| file.len()).sum();
        let report = json!({
            "packs": packs.len(), "bytes": bytes, "flips": bits.len(), "missed": missed.len(),
            "seconds": started.elapsed().as_secs(),
        });
        std::fs::write(path, format!("{report:#}\n")).expect("can be written");
    }
}
