//! Speed of the scalar codec: encode and decode of one layer, beside memcpy of the decoded output.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench --bench codec
//! ```

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodeOptions, EncodedTensor, Manifest, PackWriter,
};

/// Weights around zero with a bell shape: sums of uniform numbers from a linear congruential generator.
fn weights(n: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let bits = |v: f32| ((v.to_bits() >> 16) as u16).to_le_bytes();
    (0..n).flat_map(|_| bits((uniform() + uniform() + uniform() + uniform()) * 0.02)).collect()
}

fn codec(c: &mut Criterion) {
    for (rows, cols) in [(256u64, 1024u64), (4096, 4096)] {
        let source = weights(usize::try_from(rows * cols).expect("small"));
        let options = EncodeOptions::new();
        let encode = || EncodedTensor::planes("w", Dtype::Bf16, &[rows, cols], &source, &options);
        let mut writer = PackWriter::new(std::io::Cursor::new(Vec::new())).expect("memory");
        writer.add_tensor(encode().expect("finite")).expect("memory");
        let mut manifest = Manifest::new("bench");
        manifest.add_tensor("w", &source, "bench");
        let (_, file) = writer.finish(&manifest.to_bytes().expect("valid")).expect("valid");
        let pack = Container::open(file.into_inner()).expect("valid");
        let view = pack.tensor("w").expect("written");

        let mut group = c.benchmark_group(format!("{rows}x{cols}"));
        group.sample_size(10).throughput(Throughput::Bytes(source.len() as u64));
        group.bench_function("encode", |b| b.iter(|| encode().expect("finite")));
        let mut out = vec![0; source.len()];
        group.bench_function("decode to bf16", |b| {
            b.iter(|| DecodeOptions::new().decode_into(&view, black_box(&mut out)).expect("valid"));
        });
        group.bench_function("memcpy", |b| {
            b.iter(|| black_box(&mut out).copy_from_slice(black_box(&source)))
        });
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
