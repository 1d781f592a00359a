//! Products straight from the planes, against the decoded matrix in binary64 and the documented
//! bounds.

mod support;

use ultracompress::codec::{PlaneCounts, PlaneLayout};
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodedTensor, Int8Activations, Kernel, PlaneMatrix,
    PlaneParts, Role,
};

use support::checkpoint::f32s;
use support::pack::pack_of_one;
use support::planes::{GROUPS, steps_and_planes};
use support::random::{Rng, size};

/// One rounding of binary32.
const U: f64 = 1.0 / (1 << 24) as f64;

/// A pack of one tensor `w` whose planes are random bits.
fn pack(rows: u64, cols: u64, group: u32, counts: PlaneCounts, seed: u64) -> Container<Vec<u8>> {
    let mut rng = Rng(seed);
    let layout = PlaneLayout::new(&[rows, cols], 1, group).expect("valid");
    let (steps, planes) = steps_and_planes(&mut rng, &layout, &counts);
    let scale = |_| (0x3c00 + u16::from(rng.byte())).to_le_bytes();
    let scales = (0..rows).flat_map(scale).collect();
    let parts = PlaneParts { row_dims: 1, group, level_ids: [0; 6], counts, scales, steps, planes };
    let tensor = EncodedTensor::from_planes("w", Dtype::F32, &[rows, cols], Role::Body, parts, &[]);
    Container::open(pack_of_one(tensor.expect("fits"))).expect("valid")
}

/// `W x` in binary64, and the sum of the magnitudes.
fn exact(w: &[f32], x: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks(cols) {
        for w in w.chunks(cols) {
            let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            out.push(products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs())));
        }
    }
    out
}

fn within(found: &[f32], expected: &[(f64, f64)], units: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, (exact, size))) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - exact).abs();
        assert!(error <= units * U * size, "{what}: result {i} is {found}, not {exact}: {error:e}");
    }
}

fn check(file: &Container<Vec<u8>>, rung: u8, rows_of_x: usize, seed: u64) {
    let view = file.tensor("w").expect("written");
    let w = f32s(&DecodeOptions::new().with_planes(rung).decode(&view).expect("valid"));
    let matrix = PlaneMatrix::read_planes(&view, rung).expect("planes");
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut rng = Rng(seed);
    let x: Vec<f32> = (0..rows_of_x * cols).map(|_| rng.bell()).collect();
    let int8 = Int8Activations::new(&x, cols).expect("whole rows");
    let rounded = int8.to_f32();
    for (at, (x, rounded)) in x.chunks(cols).zip(rounded.chunks(cols)).enumerate() {
        for (x, rounded) in x.chunks(32).zip(rounded.chunks(32)) {
            let most = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (x, rounded) in x.iter().zip(rounded) {
                assert!((x - rounded).abs() <= most / 253.0, "row {at}: {x} became {rounded}");
            }
        }
    }
    let (by_f32, by_int8) = (exact(&w, &x, cols), exact(&w, &rounded, cols));
    for kernel in Kernel::available() {
        let what = format!("{kernel}, {rows} x {cols}, rung {rung}");
        let matrix = matrix.clone().with_kernel(kernel).expect("available");
        let mut y = vec![f32::NAN; rows_of_x * rows];
        matrix.multiply_f32(&x, &mut y).expect("fits");
        within(&y, &by_f32, cols as f64 + 8.0, &format!("f32, {what}"));
        let mut y = vec![f32::NAN; rows_of_x * rows];
        matrix.multiply_int8(&int8, &mut y).expect("fits");
        within(&y, &by_int8, cols as f64 / 8.0 + 16.0, &format!("int8, {what}"));
        // One row of activations alone gives the same bits.
        if rows_of_x > 1 {
            let one = Int8Activations::new(&x[..cols], cols).expect("one row");
            let mut alone = vec![f32::NAN; rows];
            matrix.multiply_int8(&one, &mut alone).expect("fits");
            assert!(alone.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()), "alone, {what}");
        }
        let mut y = vec![f32::NAN; rows_of_x * rows];
        matrix.repack().expect("memory").multiply_int8(&int8, &mut y).expect("fits");
        within(&y, &by_int8, cols as f64 / 8.0 + 16.0, &format!("repacked, {what}"));
    }
}

#[test]
fn products_keep_their_bounds() {
    let mut seed = 0;
    for planes in 3..=8 {
        for group in GROUPS {
            for cols in [1, 31, 64, 100, 255, 256, 257, 384, 1000] {
                seed += 1;
                let rows = 1 + seed % 5;
                let file = pack(rows, cols, group, PlaneCounts::Uniform(planes), seed);
                let rung = if seed % 3 == 0 { 3 + (seed % 6) as u8 } else { 8 };
                check(&file, rung, 1 + size(seed % 7), seed);
            }
        }
    }
}

#[test]
fn rows_of_different_counts_land_in_their_places() {
    let counts: Vec<u8> = (0..200u16).map(|r| 3 + (r * 7 % 11 % 6) as u8).collect();
    let file = pack(200, 320, 32, PlaneCounts::PerRow(counts), 9);
    for rung in 3..=8 {
        check(&file, rung, 3, 5);
    }
}

#[test]
fn many_rows_on_threads() {
    let file = pack(1000, 512, 32, PlaneCounts::Uniform(5), 3);
    check(&file, 8, 2, 1);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let file = pack(4, 64, 32, PlaneCounts::Uniform(5), 1);
    let matrix = PlaneMatrix::read(&file.tensor("w").expect("written")).expect("planes");
    assert!(matrix.bytes() == 4 * (2 + 1 + 5 * 8), "{}", matrix.bytes());
    assert!(matrix.multiply_f32(&[0.0; 64], &mut [0.0; 5]).is_err());
    assert!(matrix.multiply_f32(&[0.0; 65], &mut [0.0; 4]).is_err());
    assert!(matrix.multiply_f32(&[], &mut []).is_ok());
    assert!(Int8Activations::new(&[0.0; 65], 64).is_err());
    assert!(Int8Activations::new(&[], 0).is_err());
    assert!(Int8Activations::new(&[0.0, f32::NAN], 2).is_err());
    assert!(Int8Activations::new(&[f32::INFINITY, 0.0], 2).is_err());
    let narrow = Int8Activations::new(&[0.0; 32], 32).expect("a row");
    assert!(matrix.multiply_int8(&narrow, &mut [0.0; 4]).is_err());
    assert!(matrix.repack().expect("memory").multiply_int8(&narrow, &mut [0.0; 4]).is_err());
    assert!(PlaneMatrix::read_planes(&file.tensor("w").expect("written"), 2).is_err());
}

#[test]
fn zeros_and_the_smallest_activations_give_zeros() {
    let file = pack(3, 96, 32, PlaneCounts::Uniform(5), 1);
    let matrix = PlaneMatrix::read(&file.tensor("w").expect("written")).expect("planes");
    for x in [0.0, f32::from_bits(1), f32::MIN_POSITIVE / 64.0] {
        let x = Int8Activations::new(&[x; 96], 96).expect("a row");
        for kernel in Kernel::available() {
            let mut y = [1.0; 3];
            matrix
                .clone()
                .with_kernel(kernel)
                .expect("available")
                .multiply_int8(&x, &mut y)
                .expect("fits");
            assert_eq!(y, [0.0; 3], "{kernel}");
        }
    }
}
