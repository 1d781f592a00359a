//! Attacks decoding: arbitrary parts through the kernel and, where it accepts them, through the
//! literal reference, which must agree bit for bit.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ultracompress::codec::reference::{StoredPlanes, decode_weight};
use ultracompress::codec::{Levels, PlaneCounts, PlaneLayout, RunBytes, RunDecoder};
use ultracompress::{Dtype, Kernel};

#[derive(Debug, Arbitrary)]
struct Input {
    rows: u8,
    cols: u16,
    group: u8,
    native: u8,
    rung: u8,
    source: u8,
    target: u8,
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let floats = [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64];
    let (rows, cols) = (u64::from(input.rows % 4 + 1), u64::from(input.cols % 600 + 1));
    let group = [0, 16, 32, 64, 128, 256][usize::from(input.group % 6)];
    let native = input.native % 6 + 3;
    let rung = input.rung % 6 + 3;
    let (source, target) =
        (floats[usize::from(input.source % 4)], floats[usize::from(input.target % 4)]);
    let layout = PlaneLayout::new(&[rows, cols], 1, group).expect("valid");
    let mut bytes = input.bytes.into_iter().chain(std::iter::repeat(0x3c));
    let mut take =
        |n: u64| bytes.by_ref().take(usize::try_from(n).expect("small")).collect::<Vec<u8>>();
    let scales = take(2 * rows);
    let steps = take(layout.steps_row_bytes() * rows);
    let planes: Vec<Vec<u8>> = (0..native).map(|_| take(layout.row_bytes() * rows)).collect();
    let read: Vec<&[u8]> = planes.iter().take(usize::from(rung)).map(Vec::as_slice).collect();
    let run = RunBytes { native, scales: &scales, steps: &steps, planes: &read };
    let size = usize::try_from(target.bits() / 8).expect("small");
    let row_out = usize::try_from(cols).expect("small") * size;
    let decode =
        |kernel: Kernel| {
            let mut out = vec![0xa5; row_out * usize::try_from(rows).expect("small")];
            RunDecoder::new(layout, Levels::default(), source, target)?
                .with_kernel(kernel)?
                .decode(&run, &mut out, |row| row)?;
            Ok::<_, ultracompress::Error>(out)
        };
    let result = decode(Kernel::Scalar);
    for kernel in Kernel::available() {
        let found = decode(kernel);
        assert_eq!(found.is_ok(), result.is_ok(), "{kernel}");
        assert_eq!(found.ok(), result.as_ref().ok().cloned(), "{kernel}");
    }
    // A target narrower than the source may overflow; the reference speaks of finite results only.
    if target == Dtype::F16 && source != Dtype::F16 {
        return;
    }
    let Ok(decoded) = result else { return };
    let counts = PlaneCounts::Uniform(native);
    let stored = StoredPlanes {
        layout,
        counts: &counts,
        levels: Levels::default(),
        scales: &scales,
        steps: &steps,
        planes: &planes,
    };
    for (r, row) in decoded.chunks(row_out).enumerate() {
        for (c, found) in row.chunks(size).enumerate() {
            let expected = decode_weight(&stored, r, c, rung, target).to_le_bytes();
            assert_eq!(found, &expected[..size], "row {r}, column {c}");
        }
    }
});
