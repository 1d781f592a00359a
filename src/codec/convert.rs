//! Raw float elements from one type to another (spec/codec.md, "Values").

use half::{bf16, f16};

use crate::format::Dtype;

/// One element of a float type.
enum Element {
    Single(f32),
    Double(f64),
}

fn elements(bytes: &[u8], dtype: Dtype) -> impl Iterator<Item = Element> {
    let size = match dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        _ => 2,
    };
    bytes.chunks_exact(size).map(move |b| match *b {
        [a, b] if dtype == Dtype::Bf16 => Element::Single(bf16::from_le_bytes([a, b]).to_f32()),
        [a, b] => Element::Single(f16::from_le_bytes([a, b]).to_f32()),
        [a, b, c, d] => Element::Single(f32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => Element::Double(f64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => Element::Single(0.0), // chunks_exact gives no other length
    })
}

/// The quiet NaN without payload (UC-VAL-12), little-endian.
fn quiet_nan(dtype: Dtype, negative: bool) -> &'static [u8] {
    match (dtype, negative) {
        (Dtype::F16, false) => &[0, 0x7e],
        (Dtype::F16, true) => &[0, 0xfe],
        (Dtype::Bf16, false) => &[0xc0, 0x7f],
        (Dtype::Bf16, true) => &[0xc0, 0xff],
        (Dtype::F32, false) => &[0, 0, 0xc0, 0x7f],
        (Dtype::F32, true) => &[0, 0, 0xc0, 0xff],
        (_, false) => &[0, 0, 0, 0, 0, 0, 0xf8, 0x7f],
        (_, true) => &[0, 0, 0, 0, 0, 0, 0xf8, 0xff],
    }
}

/// `as` rounds to nearest, ties to even.
#[allow(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
fn nearest(v: f64) -> f32 {
    v as f32
}

/// Rounds to binary32 such that a second rounding to a type with at most 22 significant bits gives
/// what one rounding from `v` would: an inexact result takes the neighbour with an odd last bit
/// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
fn to_odd(v: f64) -> f32 {
    let near = nearest(v);
    let bits = near.to_bits();
    if v.is_nan() || f64::from(near) == v || bits % 2 == 1 {
        near
    } else if f64::from(near.abs()) < v.abs() {
        f32::from_bits(bits + 1)
    } else {
        f32::from_bits(bits - 1)
    }
}

/// Appends little-endian elements of F16, BF16, F32 or F64 as binary32 (F64: the nearest).
pub(crate) fn read_f32(bytes: &[u8], dtype: Dtype, out: &mut Vec<f32>) {
    match dtype {
        // The encoder's usual inputs, in loops that compile to vector code.
        Dtype::Bf16 => {
            let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            out.extend(bytes.as_chunks().0.iter().map(widen));
        }
        Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        _ => out.extend(elements(bytes, dtype).map(|e| match e {
            Element::Single(v) => v,
            Element::Double(v) => nearest(v),
        })),
    }
}

/// Converts raw float bytes from one dtype to another: the nearest value, ties to even (UC-VAL-10
/// to UC-VAL-12).
/// Types other than F16, BF16, F32 and F64 pass through.
///
/// Returns the bytes and their dtype.
pub fn convert_raw(bytes: Vec<u8>, from: Dtype, to: Dtype) -> (Vec<u8>, Dtype) {
    if from == to || !from.has_planes() || !to.has_planes() {
        return (bytes, from);
    }
    let mut out = Vec::with_capacity(bytes.len() * 4);
    for element in elements(&bytes, from) {
        // A NaN keeps its sign and nothing else: what hardware does with payloads differs.
        let (nan, negative) = match element {
            Element::Single(v) => (v.is_nan(), v.is_sign_negative()),
            Element::Double(v) => (v.is_nan(), v.is_sign_negative()),
        };
        if nan {
            out.extend_from_slice(quiet_nan(to, negative));
            continue;
        }
        // Sixteen-bit types round from binary32; a binary64 gets there without losing its rest.
        let short = match element {
            Element::Single(v) => v,
            Element::Double(v) => to_odd(v),
        };
        match (to, element) {
            (Dtype::Bf16, _) => out.extend(bf16::from_f32(short).to_le_bytes()),
            (Dtype::F16, _) => out.extend(f16::from_f32(short).to_le_bytes()),
            (Dtype::F32, Element::Single(v)) => out.extend(v.to_le_bytes()),
            (Dtype::F32, Element::Double(v)) => out.extend(nearest(v).to_le_bytes()),
            (_, Element::Single(v)) => out.extend(f64::from(v).to_le_bytes()),
            (_, Element::Double(v)) => out.extend(v.to_le_bytes()),
        }
    }
    (out, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::reference::round_to;

    #[test]
    fn doubles_round_once() {
        // Just above, at and just below ties of bfloat16 and binary16, where two roundings differ.
        let ulp = 2f64.powi(-52);
        for base in [1.0f64, 1.5, 0.007_812_5, 3.0e-8, 1.0e-40, 60_000.0] {
            for tie in [2f64.powi(-8), 2f64.powi(-11)] {
                for nudge in [-ulp, 0.0, ulp] {
                    let v = base * (1.0 + tie + nudge);
                    let bits = v.to_bits();
                    let mantissa =
                        i64::try_from((bits & ((1 << 52) - 1)) | (1 << 52)).expect("53 bits");
                    let exponent = i32::try_from(bits >> 52).expect("positive") - 1075;
                    for (to, skip) in
                        [(Dtype::Bf16, false), (Dtype::F16, v > 65_504.0), (Dtype::F32, false)]
                    {
                        if skip {
                            continue;
                        }
                        let (out, _) = convert_raw(v.to_le_bytes().to_vec(), Dtype::F64, to);
                        let mut wide = [0; 8];
                        wide[..out.len()].copy_from_slice(&out);
                        assert_eq!(
                            u64::from_le_bytes(wide),
                            round_to(mantissa, exponent, to),
                            "{v:e} to {to}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn special_values_stay_special() {
        for v in [f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e300, 0.0] {
            let (out, _) = convert_raw(v.to_le_bytes().to_vec(), Dtype::F64, Dtype::F16);
            assert_eq!(out, f16::from_f32(nearest(v)).to_le_bytes());
        }
        let signalling = f32::from_bits(0xff80_1234).to_le_bytes().to_vec();
        for (to, bits) in
            [(Dtype::F16, 0xfe00u64), (Dtype::Bf16, 0xffc0), (Dtype::F64, 0xfff8 << 48)]
        {
            let (nan, _) = convert_raw(signalling.clone(), Dtype::F32, to);
            assert_eq!(nan, bits.to_le_bytes()[..nan.len()], "{to}");
        }
    }
}
