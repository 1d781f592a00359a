//! Every kernel that this CPU runs, against the literal reference decoder and the scalar kernel.

mod support;

use proptest::prelude::*;
use ultracompress::codec::{
    LevelSet, Levels, PlaneCounts, PlaneLayout, RowEncoder, RunBytes, RunDecoder, reference,
};
use ultracompress::format::LevelsEntry;
use ultracompress::{Dtype, Kernel};

use support::planes::{FLOATS, GROUPS, clear_plane, clear_steps, reference_bytes};
use support::random::{Rng, size};

/// Columns around every edge of units, blocks and vectors.
fn widths() -> Vec<u64> {
    let edges = [8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024];
    let near = edges.into_iter().flat_map(|e| [e - 1, e, e + 1]);
    (1..8).chain(near).chain([1000, 1536]).collect()
}

/// The parts of a small tensor of uniform count.
struct Case {
    layout: PlaneLayout,
    native: u8,
    source: Dtype,
    scales: Vec<u8>,
    steps: Vec<u8>,
    planes: Vec<Vec<u8>>,
}

impl Case {
    /// `fill` gives the bytes of part `i`, padding included, which is then cleared.
    fn new(
        layout: PlaneLayout,
        native: u8,
        source: Dtype,
        mut fill: impl FnMut(usize, usize) -> Vec<u8>,
    ) -> Self {
        let rows = size(layout.rows);
        let (row_bytes, steps_row) = (size(layout.row_bytes()), size(layout.steps_row_bytes()));
        let mut steps = fill(0, steps_row * rows);
        clear_steps(&layout, &mut steps);
        let mut planes: Vec<_> =
            (1..=usize::from(native)).map(|p| fill(p, row_bytes * rows)).collect();
        planes.iter_mut().for_each(|plane| clear_plane(&layout, plane));
        let highest = if source == Dtype::F16 { 128 } else { 240 };
        let scales = fill(9, 2 * rows);
        let scales = scales.chunks(2).flat_map(|b| {
            let exponent = 1 + u16::from(b[0]) * (highest - 1) / 255;
            ((exponent << 7) | u16::from(b[1] & 127)).to_le_bytes()
        });
        let scales = scales.collect();
        Self { layout, native, source, scales, steps, planes }
    }

    fn random(layout: PlaneLayout, native: u8, source: Dtype, seed: u64) -> Self {
        Self::new(layout, native, source, |i, len| Rng(seed + i as u64).bytes(len))
    }

    /// Decodes into a buffer of `poison`, with inputs and output at odd addresses.
    fn decode(
        &self,
        kernel: Kernel,
        levels: Levels<'_>,
        rung: u8,
        to: Dtype,
        poison: u8,
    ) -> Vec<u8> {
        let shift = |bytes: &[u8], by: usize| {
            let mut moved = vec![poison; by];
            moved.extend_from_slice(bytes);
            moved
        };
        let read = usize::from(rung.min(self.native));
        let moved: Vec<_> =
            self.planes[..read].iter().enumerate().map(|(i, p)| shift(p, 1 + i)).collect();
        let planes: Vec<&[u8]> = moved.iter().enumerate().map(|(i, p)| &p[1 + i..]).collect();
        let steps = shift(&self.steps, 3);
        let run = RunBytes {
            native: self.native,
            scales: &self.scales,
            steps: &steps[3..],
            planes: &planes,
        };
        let len = size(self.layout.rows * self.layout.cols * to.bits() / 8);
        let mut out = vec![poison; len + 8];
        RunDecoder::new(self.layout, levels, self.source, to)
            .and_then(|d| d.with_kernel(kernel))
            .expect("available")
            .decode(&run, &mut out[5..5 + len], |row| row)
            .expect("valid");
        assert!(out[..5].iter().chain(&out[5 + len..]).all(|&b| b == poison), "wrote outside");
        out[5..5 + len].to_vec()
    }

    fn by_reference(&self, levels: Levels<'_>, rung: u8, to: Dtype) -> Vec<u8> {
        let counts = PlaneCounts::Uniform(self.native);
        let stored = reference::StoredPlanes {
            layout: self.layout,
            counts: &counts,
            levels,
            scales: &self.scales,
            steps: &self.steps,
            planes: &self.planes,
        };
        reference_bytes(&stored, 0..self.layout.rows, rung, to)
    }

    /// Compares all kernels with each other, and with the reference where `literally`.
    fn check(&self, levels: Levels<'_>, rung: u8, to: Dtype, literally: bool) {
        let scalar = self.decode(Kernel::Scalar, levels, rung, to, 0xa5);
        let what = || {
            let (layout, native, source) = (self.layout, self.native, self.source);
            format!("{layout:?}, {native} planes read as {rung}, {source} to {to}")
        };
        if literally {
            assert!(scalar == self.by_reference(levels, rung, to), "scalar, {}", what());
        }
        for kernel in Kernel::available() {
            for poison in [0x00, 0xff] {
                let found = self.decode(kernel, levels, rung, to, poison);
                let at = found.iter().zip(&scalar).position(|(a, b)| a != b);
                assert_eq!(at, None, "{kernel}, {}", what());
            }
        }
    }
}

#[test]
fn the_selected_kernel_is_available() {
    let kernel = Kernel::selected().expect("UC_KERNEL names a kernel that runs here");
    assert!(kernel.is_available());
    assert!(Kernel::available().any(|k| k == Kernel::Scalar));
    let fastest = match std::env::consts::ARCH {
        "aarch64" if cfg!(target_endian = "little") => Some(Kernel::Neon),
        _ => None,
    };
    assert!(fastest.is_none_or(|k| k.is_available()), "NEON is part of every AArch64 CPU");
}

#[test]
fn names_parse_and_others_are_refused() {
    for kernel in [Kernel::Scalar, Kernel::Avx2, Kernel::Avx512, Kernel::Neon] {
        assert_eq!(kernel.name().parse::<Kernel>().expect("its own name"), kernel);
    }
    let e = "sse2".parse::<Kernel>().expect_err("no such kernel").to_string();
    assert!(e.contains("avx2") && e.contains("sse2"), "{e}");
}

#[test]
fn all_widths_groups_counts_and_types() {
    let mut seed = 1;
    for native in 3..=8 {
        for rung in 3..=native {
            for group in GROUPS {
                for (i, cols) in widths().into_iter().enumerate() {
                    seed += 1;
                    let to = FLOATS[(i + usize::from(rung)) % 4];
                    let source = if to == Dtype::F16 { Dtype::F16 } else { Dtype::F32 };
                    let layout = PlaneLayout::new(&[2, cols], 1, group).expect("valid");
                    let case = Case::random(layout, native, source, seed);
                    case.check(Levels::default(), rung, to, seed % 16 == 0);
                }
            }
        }
    }
}

#[test]
fn patterns() {
    let layout = PlaneLayout::new(&[2, 523], 1, 32).expect("valid");
    let fills: [fn(usize, usize) -> Vec<u8>; 4] = [
        |_, len| vec![0; len],
        |_, len| vec![0xff; len],
        |_, len| (0..len).map(|i| u8::try_from(i % 251).expect("below 251")).collect(),
        // One plane at a time.
        |i, len| vec![if i == 2 { 0xff } else { 0x11 }; len],
    ];
    for (native, fill) in (3..=8).flat_map(|n| fills.map(|f| (n, f))) {
        let case = Case::new(layout, native, Dtype::F32, fill);
        for to in FLOATS {
            case.check(Levels::default(), 8, to, true);
        }
    }
}

/// Tables of a file: lopsided, dense, with the lowest level.
#[test]
fn levels_of_the_file() {
    let mut records = Vec::new();
    for native in 3..=8u8 {
        let table = |read: u8| {
            let n = 1i16 << read;
            // Dense at the lower end, then spread over the rest.
            (0..n).map(move |i| {
                let level = if 2 * i < n { i - 128 } else { 127 - (n - 1 - i) * (128 / n).max(1) };
                i8::try_from(level).expect("in range")
            })
        };
        let levels: Vec<i8> = (3..=native).rev().flat_map(table).collect();
        records.push(LevelsEntry { name: format!("own{native}"), native, levels });
    }
    let levels = Levels::resolve(&[1, 2, 3, 4, 5, 6], &records).expect("one for each count");
    for native in 3..=8 {
        for (rung, to) in (3..=native).flat_map(|rung| FLOATS.map(|to| (rung, to))) {
            let layout = PlaneLayout::new(&[1, 330], 1, 64).expect("valid");
            let case = Case::random(layout, native, Dtype::F32, u64::from(native * 8 + rung));
            case.check(levels, rung, to, true);
        }
    }
}

/// Scales from the smallest to the largest, where results are subnormal or infinite in binary16.
#[test]
fn extreme_scales() {
    for native in 3..=8 {
        for bits in [0x0080u16, 0x00ff, 0x2f80, 0x3200, 0x3780, 0x407f, 0x5f7f, 0x787f] {
            for group in [0, 32] {
                let layout = PlaneLayout::new(&[1, 300], 1, group).expect("valid");
                let mut case = Case::random(layout, native, Dtype::F32, u64::from(bits));
                case.scales = bits.to_le_bytes().to_vec();
                for to in FLOATS {
                    case.check(Levels::default(), native, to, true);
                }
            }
        }
    }
}

#[test]
fn wide_rows_and_many_of_them() {
    for (rows, cols, group) in [(3, 20_000, 32), (65, 777, 16), (2, 9_001, 0), (2, 16_384, 256)] {
        for native in [3, 5, 6, 8] {
            let layout = PlaneLayout::new(&[rows, cols], 1, group).expect("valid");
            let case = Case::random(layout, native, Dtype::Bf16, cols);
            for to in FLOATS {
                case.check(Levels::default(), 8, to, false);
            }
        }
    }
}

#[test]
fn padding_is_refused_by_every_kernel() {
    let layout = PlaneLayout::new(&[1, 100], 1, 32).expect("valid");
    for kernel in Kernel::available() {
        for plane in 0..5 {
            let case = Case::random(layout, 5, Dtype::F32, 7);
            let mut planes = case.planes.clone();
            planes[plane][12] |= 0x10;
            let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
            let run =
                RunBytes { native: 5, scales: &case.scales, steps: &case.steps, planes: &planes };
            let e = RunDecoder::new(layout, Levels::default(), Dtype::F32, Dtype::F32)
                .and_then(|d| d.with_kernel(kernel))
                .and_then(|mut d| d.decode(&run, &mut vec![0; 400], |row| row))
                .expect_err("bit 100 of a row with 100 columns");
            assert!(e.to_string().contains("UC-PLN-11"), "{kernel}: {e}");
        }
    }
}

proptest! {
    #[test]
    fn kernels_agree(
        native in 3u8..=8,
        rung in 3u8..=8,
        group in 0usize..6,
        rows in 1u64..4,
        cols in 1u64..2000,
        to in 0usize..4,
        seed in any::<u64>(),
    ) {
        let layout = PlaneLayout::new(&[rows, cols], 1, GROUPS[group]).expect("valid");
        let case = Case::random(layout, native, Dtype::F32, seed >> 8);
        case.check(Levels::default(), rung, FLOATS[to], cols < 64);
    }
}

/// Weights of many sizes: bells, heavy tails, zeros, rows of the smallest and largest numbers.
fn weights(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let raw = Rng(seed).bytes(4 * rows * cols);
    let uniform = |b: &[u8]| f32::from(b[0]) + f32::from(b[1]) / 256.0 - 128.0;
    raw.chunks(4)
        .enumerate()
        .map(|(i, b)| match (i / cols + usize::try_from(seed).expect("small")) % 6 {
            0 => uniform(b) + uniform(&b[1..]) + uniform(&b[2..]),
            1 => uniform(b).powi(7) / 1e9,
            2 => 0.0,
            3 => uniform(b) * 1e-37,
            4 => uniform(b) * 2e36,
            _ => (uniform(b) / 16.0).exp2() * if b[2] % 2 == 0 { 1.0 } else { -1.0 },
        })
        .collect()
}

#[test]
fn every_kernel_encodes_to_the_same_bytes() {
    for planes in 3..=8 {
        for (i, group) in GROUPS.into_iter().enumerate() {
            for cols in [1, 15, 16, 33, 64, 100, 257, 640] {
                let layout = PlaneLayout::new(&[12, cols], 1, group).expect("valid");
                let weights = weights(12, size(cols), cols + i as u64);
                let set = LevelSet::default_for(planes);
                let encode = |kernel| {
                    RowEncoder::new(&layout, set, Dtype::F32)
                        .and_then(|e| e.with_kernel(kernel))
                        .and_then(|e| e.encode(&weights))
                        .expect("finite")
                };
                let expected = encode(Kernel::Scalar);
                for kernel in Kernel::available() {
                    let found = encode(kernel);
                    let what = format!("{kernel}, {planes} planes, {layout:?}");
                    assert_eq!(found.scales, expected.scales, "scales, {what}");
                    assert_eq!(found.steps, expected.steps, "steps, {what}");
                    assert_eq!(found.planes, expected.planes, "planes, {what}");
                }
            }
        }
    }
}

#[test]
fn layouts_that_do_not_exist_are_refused() {
    for (rows, cols, group) in [(1, 0, 32), (0, 8, 32), (1, 64, 48), (1, 64, 8)] {
        let layout = PlaneLayout { rows, cols, group };
        let set = LevelSet::default_for(5);
        assert!(RowEncoder::new(&layout, set, Dtype::F32).is_err(), "{layout:?}");
        let decoder = RunDecoder::new(layout, Levels::default(), Dtype::F32, Dtype::F32);
        assert!(decoder.is_err(), "{layout:?}");
    }
}

#[test]
fn what_is_no_row_or_not_finite_is_refused() {
    let layout = PlaneLayout::new(&[2, 40], 1, 32).expect("valid");
    let set = LevelSet::default_for(5);
    let encoder = RowEncoder::new(&layout, set, Dtype::F32).expect("valid");
    let mut weights = weights(2, 40, 0);
    assert!(encoder.encode(&weights[..79]).is_err());
    weights[77] = f32::NAN;
    let e = encoder.encode(&weights).expect_err("not a number").to_string();
    assert!(e.contains("element 77"), "{e}");
}
