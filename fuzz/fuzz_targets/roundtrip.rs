//! Attacks the writer: whatever it accepts must verify, and give back raw bytes as they were.
#![no_main]

use std::io::Cursor;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ultracompress::{
    Container, Dtype, EncodeOptions, EncodedTensor, Manifest, PackWriter, StoredFile, VerifyOptions,
};

#[derive(Debug, Arbitrary)]
struct Tensor {
    name: String,
    dtype: u8,
    shape: Vec<u8>,
    planes: Option<u8>,
    group: u16,
    zstd: bool,
    bytes: Vec<u8>,
}

fuzz_target!(|input: (Vec<Tensor>, Vec<(String, Vec<u8>)>)| {
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    let mut manifest = Manifest::new("fuzz");
    let mut sources = vec![];
    for t in input.0.into_iter().take(8) {
        let dtype = Dtype::ALL[usize::from(t.dtype) % Dtype::ALL.len()];
        let shape: Vec<u64> = t.shape.iter().take(4).map(|&d| u64::from(d % 40)).collect();
        let Some(len) = dtype.tensor_bytes(&shape).filter(|&n| n < 1 << 18) else { continue };
        let len = usize::try_from(len).expect("small");
        let bytes: Vec<u8> =
            t.bytes.iter().copied().chain(std::iter::repeat(0x3d)).take(len).collect();
        let mut options = EncodeOptions::new().with_group(u32::from(t.group));
        options = options.with_zstd_level(t.zstd.then_some(1));
        let encoded = match t.planes {
            Some(n) => {
                EncodedTensor::planes(&t.name, dtype, &shape, &bytes, &options.with_planes(n))
            }
            None => EncodedTensor::raw(&t.name, dtype, &shape, &bytes, &options),
        };
        if let Ok(encoded) = encoded {
            manifest.add_tensor(&t.name, &bytes, "fuzz");
            writer.add_tensor(encoded).expect("memory");
            sources.push((t.name, t.planes.is_none(), bytes));
        }
    }
    for (path, bytes) in input.1.into_iter().take(4) {
        if let Ok(file) = StoredFile::new(&path, &bytes, None) {
            manifest.add_file(&file);
            writer.add_file(file).expect("memory");
        }
    }
    let Ok(manifest) = manifest.to_bytes() else { return };
    // Two tensors of one name, or a path that is file and folder, are refused here.
    let Ok((_, file)) = writer.finish(&manifest) else { return };
    let pack = Container::open(file.into_inner()).expect("what was written opens");
    let report = VerifyOptions::new().verify(&pack).expect("memory");
    assert!(report.is_ok(), "{:?}", report.failures);
    for (name, raw, bytes) in sources {
        let decoded = pack.tensor(&name).expect("written").decode().expect("verified");
        assert_eq!(decoded.len(), bytes.len());
        assert!(!raw || decoded == bytes, "{name}");
    }
});
