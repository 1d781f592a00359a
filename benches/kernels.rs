//! Every kernel and job beside memcpy, the literal reference and other libraries.
//!
//! ```text
//! cargo bench --bench kernels [-- FILTER]
//! ```
//!
//! One thread, buffers reused. `32x4096` decodes to a size that stays in a core's second-level
//! cache, `256x4096` in the third, `4096x14336` in neither. Ratios that claims are made of come
//! from `targets`, where jobs take turns.

mod support;

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use fastlanes::BitPacking;
use half::slice::HalfFloatSliceExt;
use support::{Layer, weights};
use ultracompress::codec::{LevelSet, Levels, PlaneCounts, RowEncoder, RunDecoder, reference};
use ultracompress::{
    DecodeOptions, Dtype, EncodeOptions, EncodedTensor, Int8Activations, Kernel, PlaneMatrix,
    VerifyOptions,
};

/// Rows and columns.
const SIZES: [(usize, usize); 3] = [(32, 4096), (256, 4096), (4096, 14336)];

fn group<'c>(c: &'c mut Criterion, job: &str, layer: &Layer) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(format!("{job}/{}x{}", layer.rows, layer.cols));
    group.sample_size(10).throughput(Throughput::Elements((layer.rows * layer.cols) as u64));
    group
}

fn decode(c: &mut Criterion) {
    for (rows, cols) in SIZES {
        let layer = Layer::new(rows, cols, &weights(rows * cols));
        let planes = layer.planes();
        let run = layer.run(&planes);
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let job = format!("decode to {}", dtype.name().to_lowercase());
            let mut group = group(c, &job, &layer);
            let bytes = rows * cols * usize::try_from(dtype.bits()).expect("small") / 8;
            let (from, mut out) = (vec![1u8; bytes], vec![0u8; bytes]);
            group.bench_function("memcpy", |b| {
                b.iter(|| black_box(&mut out).copy_from_slice(black_box(&from)));
            });
            for kernel in Kernel::available() {
                let mut decoder =
                    RunDecoder::new(layer.layout, Levels::default(), Dtype::F32, dtype)
                        .and_then(|d| d.with_kernel(kernel))
                        .expect("available");
                group.bench_function(kernel.name(), |b| {
                    b.iter(|| decoder.decode(black_box(&run), &mut out, |row| row).expect("valid"));
                });
            }
        }
    }
}

/// From a pack in memory, to fresh buffers and reused ones: what a loader sees.
fn load(c: &mut Criterion) {
    for (rows, cols) in SIZES {
        let source = weights(rows * cols);
        let layer = Layer::new(rows, cols, &source);
        let pack = layer.pack();
        let view = pack.tensor("w").expect("written");
        let options = DecodeOptions::new().with_dtype(Dtype::Bf16);
        let mut group = group(c, "load as bf16", &layer);
        group.bench_function("fresh buffer", |b| {
            b.iter(|| black_box(options.decode(&view).expect("valid")));
        });
        let mut out = vec![0; 2 * rows * cols];
        group.bench_function("reused buffer", |b| {
            b.iter(|| options.decode_into(&view, black_box(&mut out)).expect("valid"));
        });
        let verify = VerifyOptions::new().with_decode(false);
        group.bench_function("verify stored bytes", |b| {
            b.iter(|| assert!(verify.verify(black_box(&pack)).is_ok()));
        });
        let bf16: Vec<half::bf16> = source.iter().map(|v| half::bf16::from_f32(*v)).collect();
        let bytes: Vec<u8> = bf16.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = safetensors::tensor::TensorView::new(
            safetensors::Dtype::BF16,
            vec![rows, cols],
            &bytes,
        );
        let file = safetensors::serialize([("w", tensor.expect("fits"))], None).expect("memory");
        group.bench_function("safetensors crate, bf16 file", |b| {
            b.iter(|| {
                let file = safetensors::SafeTensors::deserialize(black_box(&file)).expect("valid");
                out.copy_from_slice(file.tensor("w").expect("written").data());
            });
        });
    }
}

/// What other formats do with as many weights.
fn peers(c: &mut Criterion) {
    for (rows, cols) in SIZES {
        let source = weights(rows * cols);
        let layer = Layer::new(rows, cols, &source);
        let mut group = group(c, "peers", &layer);
        let bf16: Vec<half::bf16> = source.iter().map(|v| half::bf16::from_f32(*v)).collect();
        let mut out = vec![0f32; rows * cols];
        group.bench_function("half crate, bf16 to f32", |b| {
            b.iter(|| black_box(&bf16[..]).convert_to_f32_slice(black_box(&mut out)));
        });
        let packed = vec![0x5au8; rows * cols * 5 / 8];
        let mut codes = vec![0u8; rows * cols];
        group.bench_function("fastlanes crate, 5 bits to u8 codes", |b| {
            b.iter(|| {
                for (to, from) in codes
                    .as_chunks_mut::<1024>()
                    .0
                    .iter_mut()
                    .zip(black_box(&packed).as_chunks::<640>().0)
                {
                    BitPacking::unpack::<5, 640>(from, to);
                }
            });
        });
    }
}

fn encode(c: &mut Criterion) {
    for (rows, cols) in [(32, 4096), (2048, 4096)] {
        let source = weights(rows * cols);
        let layer = Layer::new(rows, cols, &source);
        let mut group = group(c, "encode", &layer);
        for kernel in Kernel::available() {
            let encoder = RowEncoder::new(&layer.layout, LevelSet::default_for(5), Dtype::F32)
                .and_then(|e| e.with_kernel(kernel))
                .expect("available");
            group.bench_function(kernel.name(), |b| {
                b.iter(|| black_box(encoder.encode(black_box(&source)).expect("finite")));
            });
        }
        let bytes: Vec<u8> = source.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = [rows as u64, cols as u64];
        let options = EncodeOptions::new();
        group.bench_function("with checksums and digest", |b| {
            b.iter(|| EncodedTensor::planes("w", Dtype::F32, &shape, &bytes, &options));
        });
    }
}

fn multiply(c: &mut Criterion) {
    // This thread alone, without a trip to another.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("nothing ran in parallel yet");
    for (rows, cols) in SIZES {
        let layer = Layer::new(rows, cols, &weights(rows * cols));
        let pack = layer.pack();
        let view = pack.tensor("w").expect("written");
        let x = weights(cols);
        let mut y = vec![0f32; rows];
        let mut group = group(c, "mat-vec", &layer);
        for kernel in Kernel::available() {
            let matrix = PlaneMatrix::read(&view).and_then(|m| m.with_kernel(kernel));
            let matrix = matrix.expect("available");
            let packed = matrix.repack().expect("memory");
            let int8 = || Int8Activations::new(black_box(&x), cols).expect("a row");
            group.bench_function(format!("{kernel}, int8"), |b| {
                b.iter(|| matrix.multiply_int8(&int8(), &mut y).expect("fits"));
            });
            group.bench_function(format!("{kernel}, int8, repacked"), |b| {
                b.iter(|| packed.multiply_int8(&int8(), &mut y).expect("fits"));
            });
            group.bench_function(format!("{kernel}, f32"), |b| {
                b.iter(|| matrix.multiply_f32(black_box(&x), &mut y).expect("fits"));
            });
        }
    }
}

/// The literal reference decoder, which judges the others: a few weights are enough.
fn literal(c: &mut Criterion) {
    let layer = Layer::new(4, 256, &weights(1024));
    let counts = PlaneCounts::Uniform(5);
    let stored = reference::StoredPlanes {
        layout: layer.layout,
        counts: &counts,
        levels: Levels::default(),
        scales: &layer.encoded.scales,
        steps: &layer.encoded.steps,
        planes: &layer.encoded.planes,
    };
    let mut group = group(c, "decode to bf16", &layer);
    group.bench_function("reference", |b| {
        b.iter(|| {
            for (row, col) in (0..4).flat_map(|row| (0..256).map(move |col| (row, col))) {
                black_box(reference::decode_weight(&stored, row, col, 8, Dtype::Bf16));
            }
        });
    });
}

criterion_group!(benches, multiply, decode, load, peers, encode, literal);
criterion_main!(benches);
