//! Conversions of raw tensors, and how close the encoder comes to its source.

use ultracompress::codec::{LevelSet, convert_raw};
use ultracompress::{Container, Dtype, EncodeOptions, EncodedTensor, ErrorKind, VerifyOptions};

use crate::support::checkpoint::number;
use crate::support::pack::NewPack;
use crate::support::planes::FLOATS;
use crate::support::random::Rng;

// ---- Conversions of raw tensors ---------------------------------------------------------------

/// Whether `found` (the value of `bits`) is the value nearest to `v`, ties to even, among its
/// neighbours `below` and `above`. All are exact in binary64, and so are the differences.
fn is_nearest(v: f64, found: f64, below: f64, above: f64, bits: u64) -> bool {
    let error = (v - found).abs();
    let closer = |other: f64| {
        let e = (v - other).abs();
        other.is_finite() && (e < error || (e == error && bits % 2 == 1))
    };
    !closer(below) && !closer(above)
}

#[test]
fn raw_floats_convert_with_a_single_rounding() {
    use half::{bf16, f16};
    let mut values = Vec::new();
    for power in [-30, -24, -15, -14, -3, 0, 1, 10] {
        for fraction in 0..64u64 {
            let base = (1.0 + fraction as f64 / 64.0) * 2f64.powi(power);
            // On ties of both short types, and a hair to either side of them.
            for tie in [0.0, 2f64.powi(-9), 2f64.powi(-8), 2f64.powi(-12), 2f64.powi(-11)] {
                for hair in [0.0, 2f64.powi(-23), -2f64.powi(-23), 2f64.powi(-50), -2f64.powi(-50)]
                {
                    let v = base + (tie + hair) * 2f64.powi(power);
                    values.extend([v, -v]);
                }
            }
        }
    }
    for from in [Dtype::F64, Dtype::F32] {
        for &v in &values {
            #[allow(clippy::cast_possible_truncation, reason = "the source is binary32 then")]
            let (v, bytes) = match from {
                Dtype::F64 => (v, v.to_le_bytes().to_vec()),
                _ => (f64::from(v as f32), (v as f32).to_le_bytes().to_vec()),
            };
            for to in [Dtype::F16, Dtype::Bf16] {
                let (out, dtype) = convert_raw(bytes.clone(), from, to);
                assert_eq!(dtype, to);
                let bits = u16::from_le_bytes(out.try_into().expect("one element"));
                let value = |bits: u16| match to {
                    Dtype::F16 => f16::from_bits(bits).to_f64(),
                    _ => bf16::from_bits(bits).to_f64(),
                };
                // Next to zero the neighbour has the other sign; its distance decides all the same.
                let smaller = if bits & 0x7fff == 0 { bits ^ 0x8001 } else { bits - 1 };
                assert!(
                    is_nearest(v, value(bits), value(smaller), value(bits + 1), bits.into()),
                    "{v:e} ({from}) became {:e} ({to})",
                    value(bits)
                );
            }
        }
    }
}

#[test]
fn raw_floats_widen_exactly_and_keep_zeros_infinities_and_nan() {
    for bits in 0..=u16::MAX {
        for from in [Dtype::F16, Dtype::Bf16] {
            let (wide, _) = convert_raw(bits.to_le_bytes().to_vec(), from, Dtype::F32);
            let found = f32::from_le_bytes(wide.clone().try_into().expect("one element"));
            let expected = match from {
                Dtype::F16 => half::f16::from_bits(bits).to_f32(),
                _ => half::bf16::from_bits(bits).to_f32(),
            };
            assert!(
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                "{bits:#06x} ({from}) became {found:e}"
            );
            let (back, _) = convert_raw(wide, Dtype::F32, from);
            if !found.is_nan() {
                assert_eq!(back, bits.to_le_bytes(), "{bits:#06x} ({from}) and back");
            }
        }
    }
}

// ---- The encoder's reach ----------------------------------------------------------------------

fn to_wide(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    let (wide, _) = convert_raw(bytes.to_vec(), dtype, Dtype::F64);
    wide.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
}

fn largest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => half::f16::MAX.to_f64(),
        Dtype::Bf16 => half::bf16::MAX.to_f64(),
        // Weights are binary32 numbers at most.
        _ => f64::from(f32::MAX),
    }
}

fn encode_and_decode(
    dtype: Dtype,
    shape: &[u64],
    bytes: &[u8],
    options: &EncodeOptions,
) -> (Vec<u8>, Vec<u8>) {
    let tensor = EncodedTensor::planes("w", dtype, shape, bytes, options).expect("finite");
    let mut pack = NewPack::new();
    pack.add("w", tensor, bytes);
    let file = pack.bytes();
    let pack = Container::open(&file[..]).expect("valid");
    let report = VerifyOptions::new().verify(&pack).expect("readable");
    assert!(report.is_ok(), "{:?}", report.failures);
    let decoded = pack.tensor("w").expect("written").decode().expect("valid");
    (file, decoded)
}

/// Rows of every magnitude that `dtype` has, down to its subnormals and up to its largest value,
/// and odd ones: all zero, one outlier, one non-zero weight, constant.
fn rows_of_all_magnitudes(dtype: Dtype, cols: usize) -> Vec<Vec<f64>> {
    let mut rng = Rng(11);
    let mut noise = |peak: f64| {
        let mut row: Vec<f64> = (0..cols).map(|_| peak * rng.signed()).collect();
        row[cols / 2] = peak;
        row
    };
    let powers = match dtype {
        Dtype::F16 => -24..=15,
        _ => -149..=127,
    };
    let mut rows: Vec<Vec<f64>> = powers.step_by(3).map(|p| noise(2f64.powi(p))).collect();
    rows.extend([noise(largest(dtype)), noise(-largest(dtype)), vec![largest(dtype); cols]]);
    rows.push(vec![0.0; cols]);
    rows.push(vec![-0.0; cols]);
    for peak in [1.0, 1000.0, largest(dtype)] {
        let mut outlier = noise(1e-3 * peak);
        outlier[cols / 2] = 0.0;
        outlier[cols - 1] = peak;
        rows.push(outlier);
        let mut single = vec![0.0; cols];
        single[0] = -peak;
        rows.push(single);
    }
    rows
}

#[test]
fn rows_of_every_magnitude_decode_within_the_quantizers_reach() {
    let cols = 96;
    for dtype in FLOATS {
        let rows = rows_of_all_magnitudes(dtype, cols);
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|&v| number(v, dtype)).collect();
        let source = to_wide(&bytes, dtype);
        for (planes, group) in [(3, 32), (4, 16), (5, 32), (5, 0), (6, 64), (7, 256), (8, 32)] {
            let options = EncodeOptions::new().with_planes(planes).with_group(group);
            let shape = [rows.len() as u64, cols as u64];
            let (_, decoded) = encode_and_decode(dtype, &shape, &bytes, &options);
            let decoded = to_wide(&decoded, dtype);
            let table = LevelSet::default_for(planes).table(planes);
            let gap =
                table.windows(2).map(|w| f64::from(w[1]) - f64::from(w[0])).fold(0.0, f64::max);
            for (x, y) in source.chunks(cols).zip(decoded.chunks(cols)) {
                let peak = x.iter().fold(0f64, |m, v| m.max(v.abs()));
                assert!(y.iter().all(|v| v.is_finite()), "{dtype}: a row of peak {peak:e}");
                // Relative to the peak, so that no square over- or underflows.
                let unit = if peak == 0.0 { 1.0 } else { peak };
                let mean = x.iter().zip(y).map(|(x, y)| ((x - y) / unit).powi(2)).sum::<f64>()
                    / cols as f64;
                let rms = mean.sqrt() * unit;
                // Half the widest gap with the peak on the outermost level, and half as much again
                // for the grid of scales; the smallest scale; the rounding to the source's type.
                let reach = 1.5 * peak * gap / 2.0 / 127.0;
                let step = if group == 0 { 128.0 } else { 32.0 };
                let smallest = 2f64.powi(-126) * step * gap / 2.0;
                // What UC-VAL-1 leaves unreachable below the largest value of the type.
                let highest_scale = if dtype == Dtype::F16 { 2.0 } else { 2f64.powi(113) };
                let beyond = (peak - 255.0 / 128.0 * highest_scale * 128.0 * 127.0).max(0.0);
                let rounding = match dtype {
                    Dtype::F16 => peak * 2f64.powi(-11) + 2f64.powi(-25),
                    _ => peak * 2f64.powi(-9),
                };
                assert!(
                    rms <= reach + smallest + beyond + rounding,
                    "{dtype}, {planes} planes, group {group}: a row of peak {peak:e} is off by {rms:e}"
                );
            }
        }
    }
}

#[test]
fn more_planes_never_cost_accuracy() {
    let (rows, cols) = (4u64, 256u64);
    let mut rng = Rng(3);
    let bytes: Vec<u8> = (0..rows * cols)
        .flat_map(|_| number(rng.signed() * rng.signed() * rng.signed(), Dtype::F32))
        .collect();
    let source = to_wide(&bytes, Dtype::F32);
    let mut previous = f64::INFINITY;
    for planes in 3..=8 {
        let options = EncodeOptions::new().with_planes(planes);
        let (_, decoded) = encode_and_decode(Dtype::F32, &[rows, cols], &bytes, &options);
        let decoded = to_wide(&decoded, Dtype::F32);
        let error: f64 = source.iter().zip(&decoded).map(|(x, y)| (x - y).powi(2)).sum();
        // One more bit divides squared error by about four.
        assert!(error < 0.5 * previous, "{planes} planes: {error} after {previous}");
        previous = error;
    }
}

#[test]
fn the_encoder_refuses_what_it_cannot_represent() {
    let one = |v: f64, dtype| {
        let bytes: Vec<u8> = (0..64).flat_map(|_| number(v, dtype)).collect();
        EncodedTensor::planes("w", dtype, &[1, 64], &bytes, &EncodeOptions::new())
    };
    for dtype in FLOATS {
        for v in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let e = one(v, dtype).expect_err("not finite");
            assert_eq!(e.kind(), &ErrorKind::InvalidArgument);
            assert_eq!(e.tensor(), Some("w"));
        }
    }
    let e = one(1e300, Dtype::F64).expect_err("beyond binary32");
    assert_eq!(e.kind(), &ErrorKind::InvalidArgument);
    one(1e-300, Dtype::F64).expect("rounds to zero in binary32");

    let bytes = vec![0; 128];
    for options in [
        EncodeOptions::new().with_planes(2),
        EncodeOptions::new().with_planes(9),
        EncodeOptions::new().with_group(48),
        EncodeOptions::new().with_row_dims(0),
        EncodeOptions::new().with_row_dims(3),
    ] {
        let result = EncodedTensor::planes("w", Dtype::Bf16, &[1, 64], &bytes, &options);
        assert!(result.is_err(), "{options:?}");
    }
    let wrong_length =
        EncodedTensor::planes("w", Dtype::Bf16, &[1, 63], &bytes, &EncodeOptions::new());
    assert!(wrong_length.is_err());
}

#[cfg(feature = "rayon")]
#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = (40u64, 2048u64);
    use crate::support::in_pool;

    for dtype in FLOATS {
        let mut rng = Rng(9);
        let bytes: Vec<u8> =
            (0..rows * cols).flat_map(|_| number(rng.signed().powi(3), dtype)).collect();
        let work = || encode_and_decode(dtype, &[rows, cols], &bytes, &EncodeOptions::new()).0;
        assert!(in_pool(1, work) == in_pool(4, work), "{dtype}");
    }
}
