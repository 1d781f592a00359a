//! `uc bench`.

mod rounds;

use std::cell::RefCell;
use std::hint::black_box;

use rounds::{Job, medians};
use serde_json::{Value, json};
use ultracompress::codec::{
    EncodedRows, LevelSet, Levels, PlaneLayout, RowEncoder, RunBytes, RunDecoder,
};
use ultracompress::{
    Container, Dtype, EncodeOptions, EncodedTensor, Error, ErrorKind, Int8Activations, Kernel,
    Manifest, PackWriter, PlaneMatrix, VerifyOptions,
};

use crate::args::Bench;
use crate::console::Console;
use crate::support::Outcome;

/// Rows and columns, and where the decoded matrix fits.
const SIZES: [(usize, usize, &str); 2] = [(32, 4096, "cache"), (4096, 4096, "memory")];
const ROUNDS: usize = 9;

/// Weights around zero with a bell shape: sums of uniform numbers from a linear congruential
/// generator.
fn weights(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (uniform() + uniform() + uniform() + uniform()) * 0.02).collect()
}

pub fn run(args: &Bench, console: &mut Console) -> Outcome {
    let kernels: Vec<Kernel> = match std::env::var_os(Kernel::VARIABLE) {
        Some(name) if !name.is_empty() => vec![Kernel::selected()?],
        _ => Kernel::available().collect(),
    };
    let sizes = if args.quick { &SIZES[..1] } else { &SIZES };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let one = one.map_err(|e| Error::new(ErrorKind::Io, format!("can't start a thread: {e}")))?;
    let mut rows = Vec::new();
    for &(n, cols, size) in sizes {
        console.say(format!("{n} x {cols} weights on one thread ..."));
        rows.extend(one.install(|| measure(n, cols, size, &kernels))?);
    }
    if console.json {
        console.print_json(&json!({ "rows": rows }))?;
        return Ok(0);
    }
    console.print(format!(
        "{:<24} {:<8} {:<7} {:>10} {:>8} {:>10}",
        "job", "kernel", "size", "Gweight/s", "GB/s", "of memcpy"
    ))?;
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or("").to_owned();
        let number = |key: &str| row[key].as_f64().map_or(String::new(), |v| format!("{v:.2}"));
        console.print(format!(
            "{:<24} {:<8} {:<7} {:>10} {:>8} {:>10}",
            text("job"),
            text("kernel"),
            text("size"),
            number("gweights_per_s"),
            number("gb_per_s"),
            number("of_memcpy"),
        ))?;
    }
    Ok(0)
}

/// Measures every job at one size.
fn measure(n: usize, cols: usize, size: &str, kernels: &[Kernel]) -> Result<Vec<Value>, Error> {
    let matrix = Matrix::new(n, cols)?;
    let mut rows = Rows { n, cols, size, rows: vec![] };
    matrix.decode(kernels, &mut rows)?;
    matrix.encode(kernels, &mut rows)?;
    matrix.multiply(kernels, &mut rows)?;
    matrix.verify(&mut rows);
    Ok(rows.rows)
}

/// What was measured at one size.
struct Rows<'a> {
    n: usize,
    cols: usize,
    size: &'a str,
    rows: Vec<Value>,
}

impl Rows<'_> {
    /// A job that works on `bytes` bytes; `memcpy` is the time that copying as many takes.
    fn add(&mut self, job: &str, kernel: &str, seconds: f64, bytes: u64, memcpy: Option<f64>) {
        let round = |v: f64| (v * 1000.0).round() / 1000.0;
        let count = self.n * self.cols;
        self.rows.push(json!({
            "job": job, "kernel": kernel, "size": self.size, "rows": self.n, "cols": self.cols,
            "gweights_per_s": round(count as f64 / seconds / 1e9),
            "gb_per_s": round(bytes as f64 / seconds / 1e9),
            "of_memcpy": memcpy.map(|m| round(m / seconds)),
        }));
    }
}

/// A matrix in all the forms that jobs take it in.
struct Matrix {
    n: usize,
    cols: usize,
    source: Vec<f32>,
    layout: PlaneLayout,
    set: LevelSet<'static>,
    encoded: EncodedRows,
    /// A pack of the matrix alone.
    pack: Container<Vec<u8>>,
}

impl Matrix {
    fn new(n: usize, cols: usize) -> Result<Self, Error> {
        let shape = [n as u64, cols as u64];
        let source = weights(n * cols);
        let bf16: Vec<u8> =
            source.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let layout = PlaneLayout::new(&shape, 1, 32)?;
        let set = LevelSet::default_for(5);
        let encoded = RowEncoder::new(&layout, set, Dtype::Bf16)?.encode(&source)?;
        let mut writer = PackWriter::new(std::io::Cursor::new(Vec::new()))?;
        let options = EncodeOptions::new();
        writer.add_tensor(EncodedTensor::planes("w", Dtype::Bf16, &shape, &bf16, &options)?)?;
        let mut manifest = Manifest::new("bench");
        manifest.add_tensor("w", &bf16, "bench");
        let (_, file) = writer.finish(&manifest.to_bytes()?)?;
        let pack = Container::open(file.into_inner())?;
        Ok(Self { n, cols, source, layout, set, encoded, pack })
    }

    /// Decoding to each type, next to a copy of as many bytes.
    fn decode(&self, kernels: &[Kernel], rows: &mut Rows<'_>) -> Result<(), Error> {
        let count = self.n * self.cols;
        let planes: Vec<&[u8]> = self.encoded.planes.iter().map(Vec::as_slice).collect();
        let EncodedRows { scales, steps, .. } = &self.encoded;
        let run = RunBytes { native: 5, scales, steps, planes: &planes };
        let mut out = vec![0u8; 4 * count];
        for (dtype, bytes) in [(Dtype::Bf16, 2 * count), (Dtype::F32, 4 * count)] {
            let from = vec![1u8; bytes];
            let target = RefCell::new(&mut out[..bytes]);
            let mut jobs =
                vec![Job::new("memcpy", || target.borrow_mut().copy_from_slice(black_box(&from)))];
            for kernel in kernels {
                let mut decoder =
                    RunDecoder::new(self.layout, Levels::default(), Dtype::Bf16, dtype)?
                        .with_kernel(*kernel)?;
                let (run, target) = (&run, &target);
                jobs.push(Job::new(kernel.name(), move || {
                    decoder
                        .decode(black_box(run), &mut target.borrow_mut(), |row| row)
                        .expect("just encoded");
                }));
            }
            let seconds = medians(&mut jobs, ROUNDS);
            let memcpy = seconds[0];
            for (job, seconds) in jobs.iter().zip(&seconds).skip(1) {
                let name = format!("decode to {}", dtype.name().to_lowercase());
                rows.add(&name, &job.name, *seconds, bytes as u64, Some(memcpy));
            }
        }
        Ok(())
    }

    fn encode(&self, kernels: &[Kernel], rows: &mut Rows<'_>) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for kernel in kernels {
            let encoder =
                RowEncoder::new(&self.layout, self.set, Dtype::Bf16)?.with_kernel(*kernel)?;
            jobs.push(Job::new(kernel.name(), move || {
                black_box(encoder.encode(black_box(&self.source)).expect("finite"));
            }));
        }
        let seconds = medians(&mut jobs, if self.n > 1000 { 3 } else { ROUNDS });
        let bytes = 4 * (self.n * self.cols) as u64;
        let measured = jobs.iter().zip(&seconds);
        measured.for_each(|(job, s)| rows.add("encode", &job.name, *s, bytes, None));
        Ok(())
    }

    /// Products with a vector, from the planes as they are stored and repacked.
    fn multiply(&self, kernels: &[Kernel], rows: &mut Rows<'_>) -> Result<(), Error> {
        let view = self.pack.tensor("w").expect("just written");
        let stored = PlaneMatrix::read(&view)?.bytes();
        let (x, mut y) = (weights(self.cols), vec![0f32; self.n]);
        let target = RefCell::new(&mut y);
        let mut jobs = Vec::new();
        for kernel in kernels {
            let matrix = PlaneMatrix::read(&view)?.with_kernel(*kernel)?;
            let packed = matrix.repack()?;
            let (x, target) = (&x, &target);
            let int8 = move || Int8Activations::new(black_box(x), self.cols).expect("a row");
            jobs.push(Job::new(format!("mat-vec, int8 {kernel}"), move || {
                matrix.multiply_int8(&int8(), &mut target.borrow_mut()).expect("sizes fit");
            }));
            jobs.push(Job::new(format!("mat-vec, int8, repacked {kernel}"), move || {
                packed.multiply_int8(&int8(), &mut target.borrow_mut()).expect("sizes fit");
            }));
        }
        let seconds = medians(&mut jobs, ROUNDS);
        for (job, seconds) in jobs.iter().zip(&seconds) {
            let (name, kernel) = job.name.rsplit_once(' ').unwrap_or((&job.name, ""));
            rows.add(name, kernel, *seconds, stored as u64, None);
        }
        Ok(())
    }

    fn verify(&self, rows: &mut Rows<'_>) {
        let bytes = self.pack.preamble().core_len;
        let fast = VerifyOptions::new().with_decode(false);
        let full = VerifyOptions::new();
        let verify = |options: &VerifyOptions| {
            let report = options.verify(black_box(&self.pack));
            assert!(report.is_ok_and(|r| r.stored == ultracompress::Check::Ok), "just written");
        };
        let mut jobs = vec![
            Job::new("verify, stored bytes", || verify(&fast)),
            Job::new("verify, decoded too", || verify(&full)),
        ];
        let seconds = medians(&mut jobs, ROUNDS);
        let measured = jobs.iter().zip(&seconds);
        measured.for_each(|(job, s)| rows.add(&job.name, "", *s, bytes, None));
    }
}
