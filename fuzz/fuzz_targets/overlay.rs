//! Attacks factors of overlays: those of anything give the same values or the same error from every
//! kernel. Records of overlays in whole files are attacked by `open`.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ultracompress::Kernel;
use ultracompress::codec::Factors;
use ultracompress::format::{FactorType, OverlayBlock};

#[derive(Debug, Arbitrary)]
struct Input {
    f16: bool,
    rank: u8,
    rows: u8,
    cols: u16,
    scaling: f32,
    bytes: Vec<u8>,
    first: u16,
    values: Vec<f32>,
}

fn factors(input: &Input) {
    let f16 = input.f16;
    let Some(mut block) = OverlayBlock::for_tests(
        if f16 { FactorType::F16 } else { FactorType::Int8 },
        u32::from(input.rank % 40) + 1,
        u64::from(input.rows % 9) + 1,
        u64::from(input.cols % 600) + 1,
    ) else {
        return;
    };
    block.scaling = input.scaling;
    let len = usize::try_from(block.bytes()).expect("small");
    let mut bytes: Vec<u8> = input.bytes.iter().copied().cycle().take(len).collect();
    bytes.resize(len, 0x3c);
    if !f16 {
        // Scales as they may be, mostly.
        let scales = 2 * usize::try_from(block.rows + block.cols).expect("small");
        bytes[..scales].as_chunks_mut::<2>().0.iter_mut().for_each(|s| s[1] = 0x2c | s[1] & 0x13);
    }
    let Ok(factors) = Factors::parse(&block, &bytes) else { return };
    let all = usize::try_from(block.rows * block.cols).expect("small");
    let first = usize::from(input.first) % all;
    let n = input.values.len().min(all - first);
    let mut expected = input.values[..n].to_vec();
    factors.add(Kernel::Scalar, first as u64, &mut expected).expect("within the tensor");
    for kernel in Kernel::available() {
        let mut found = input.values[..n].to_vec();
        factors.add(kernel, first as u64, &mut found).expect("within the tensor");
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(found.iter().zip(&expected).all(same), "{kernel}");
    }
}

fuzz_target!(|input: Input| factors(&input));
