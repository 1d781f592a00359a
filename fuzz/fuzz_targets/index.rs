//! Attacks what records say of their parts: the checksums of all parts are computed again, so that
//! mutated codes, scales, residuals and factors reach the decoders through a whole file. Every
//! kernel gives the same bits or the same error, whole and by rows.
#![no_main]

mod checksums;

use checksums::{fix_checksums, replace_in_index};
use libfuzzer_sys::fuzz_target;
use ultracompress::format::{Encoding, Part};
use ultracompress::{Container, DecodeOptions, Dtype, Kernel, Pack, TensorView};

/// Elements of tensors that are decoded; a record of a few bytes may claim many.
const MOST: u64 = 1 << 16;

/// What the index says, and what is so.
fn checksums(file: &[u8], part: &Part) -> Vec<(u32, u32)> {
    let mut at = part.offset;
    let mut found = vec![];
    for chunk in &part.chunks {
        let range = usize::try_from(at).ok().zip(usize::try_from(chunk.stored_len).ok());
        let bytes = range.and_then(|(at, len)| file.get(at..at.checked_add(len)?));
        let Some(bytes) = bytes else { break };
        found.push((chunk.crc32, crc32fast::hash(bytes)));
        at += u64::from(chunk.stored_len);
    }
    found
}

fn fix_parts(file: &mut [u8]) {
    let Ok(pack) = Container::open(&*file) else { return };
    let index = pack.index();
    let of_tensors = index.tensors.iter().flat_map(|t| &t.parts);
    let of_others = index.files.iter().chain(&index.heads).flat_map(|f| &f.parts);
    let overlays = index.overlays.iter().flat_map(|o| &o.parts);
    let parts: Vec<&Part> = of_tensors.chain(of_others).chain(overlays).collect();
    let wrong: Vec<_> = parts.into_iter().flat_map(|part| checksums(file, part)).collect();
    for (old, new) in wrong {
        if old != new {
            replace_in_index(file, old, new);
        }
    }
}

fn decode(view: &TensorView<'_, &[u8]>, options: &DecodeOptions) {
    let with = |kernel| options.clone().with_kernel(kernel).decode(view).map_err(|e| e.to_string());
    let first = with(Kernel::Scalar);
    for kernel in Kernel::available() {
        assert_eq!(with(kernel), first, "{kernel}");
    }
    // Rows alone are the rows of the whole.
    let row_dims = match &view.entry().encoding {
        Encoding::Planes { row_dims, .. } | Encoding::Coded { row_dims } => usize::from(*row_dims),
        _ => 1,
    };
    let rows: u64 = view.shape().iter().take(row_dims).product();
    let (Ok(whole), true) = (first, rows > 1) else { return };
    let Ok(row) = options.clone().with_rows(rows - 1..rows).decode(view) else { return };
    assert_eq!(row, whole[whole.len() - row.len()..]);
}

fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    fix_checksums(&mut file);
    fix_parts(&mut file);
    fix_checksums(&mut file);
    let Ok(container) = Container::open(file.as_slice()) else { return };
    let pack = Pack::from(container);
    let small = |view: &TensorView<'_, &[u8]>| {
        view.shape().iter().try_fold(1u64, |n, d| n.checked_mul(*d)).is_some_and(|n| n <= MOST)
    };
    for view in pack.tensors().filter(small) {
        decode(&view, &DecodeOptions::new());
        decode(&view, &DecodeOptions::new().with_dtype(Dtype::F32));
        decode(&view, &DecodeOptions::new().with_planes(4));
        decode(&view, &DecodeOptions::new().with_exact(true));
        let overlays = pack.overlays().len();
        let Ok(tensor) = pack.effective_tensor(view.name(), overlays) else { continue };
        let with = |kernel| {
            tensor.decode(&DecodeOptions::new().with_kernel(kernel)).map_err(|e| e.to_string())
        };
        let first = with(Kernel::Scalar);
        for kernel in Kernel::available() {
            assert_eq!(with(kernel), first, "{kernel}");
        }
    }
});
