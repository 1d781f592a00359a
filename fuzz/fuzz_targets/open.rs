//! Attacks opening and verifying a file. Checksums of preamble and sections are computed again, so
//! that mutations get past them; a second look must give the same verdict.
#![no_main]

mod checksums;

use checksums::fix_checksums;
use libfuzzer_sys::fuzz_target;
use ultracompress::{
    Container, DecodeOptions, Dtype, Int8Activations, Kernel, PlaneMatrix, VerifyOptions,
};

fn verdict(file: &[u8]) -> String {
    match Container::open(file) {
        Err(e) => e.to_string(),
        Ok(pack) => format!("{:?}", VerifyOptions::new().verify(&pack).map(|r| r.failures)),
    }
}

/// Products of small tensors: what decodes can be multiplied, and kernels agree within rounding.
fn multiply(file: &[u8]) {
    let Ok(pack) = Container::open(file) else { return };
    for view in pack.tensors() {
        if view.shape().iter().product::<u64>() > 1 << 14 {
            continue;
        }
        let Ok(matrix) = PlaneMatrix::read(&view) else { continue };
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let w = DecodeOptions::new().with_dtype(Dtype::F64).decode(&view).expect("was read");
        let w: Vec<f64> = w.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        let sizes: Vec<f64> = w.chunks(cols).map(|w| w.iter().map(|w| w.abs()).sum()).collect();
        let x = Int8Activations::new(&vec![1.0; cols], cols).expect("a row");
        for kernel in Kernel::available() {
            let matrix = matrix.clone().with_kernel(kernel).expect("available");
            let packed = matrix.repack().expect("small");
            let mut y = [vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]];
            matrix.multiply_f32(&vec![1.0; cols], &mut y[0]).expect("fits");
            matrix.multiply_int8(&x, &mut y[1]).expect("fits");
            packed.multiply_int8(&x, &mut y[2]).expect("fits");
            for y in y {
                for ((y, w), size) in y.iter().zip(w.chunks(cols)).zip(&sizes) {
                    let error = (f64::from(*y) - w.iter().sum::<f64>()).abs();
                    // Beyond binary32, or among its subnormals, there is no bound.
                    let bounded = *size < 1e37 && *size > 1e-30;
                    assert!(!bounded || error <= 1e-3 * size, "{kernel}: {y}, off by {error}");
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    fix_checksums(&mut file);
    assert_eq!(verdict(&file), verdict(&file));
    let _ = verdict(data);
    multiply(&file);
});
