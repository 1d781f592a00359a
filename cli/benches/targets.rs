//! The figures the kernels are held to, beside memcpy and candle in one run.
//!
//! ```text
//! cargo bench --bench targets -- [--record FILE] [FOLDER]
//! ```
//!
//! Jobs that are compared take turns on one thread; each figure is a ratio of medians. `L2` is 16 x
//! 4096 weights, `memory` is 14336 x 4096; buffers are reused and start at a cache line, except
//! where a library allocates its own. The
//! last two rows run the `uc` binary with two threads on a pack of 1 GB of bf16 in FOLDER (a tmpfs
//! such as `/dev/shm` by default), beside `cp`. Without the `--bench` that `cargo bench` passes,
//! everything runs once on small sizes.

#[path = "../src/commands/bench/rounds.rs"]
mod rounds;
#[path = "../../benches/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use rounds::{Job, medians};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Layer, commit, cpu, weights};
use ultracompress::codec::{LevelSet, Levels, RowEncoder, RunDecoder};
use ultracompress::format::TreeHasher;
use ultracompress::{Dtype, Int8Activations, Kernel, PlaneMatrix};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Table {
    rounds: usize,
    rows: Vec<Value>,
}

impl Table {
    /// Measures `jobs`, of which the first is what the others are compared with. `unit` says what
    /// one call of a job does `amount` of, in thousands of millions.
    fn measure(&mut self, what: &str, size: &str, amount: f64, unit: &str, mut jobs: Vec<Job<'_>>) {
        let seconds = medians(&mut jobs, self.rounds);
        for (i, (job, time)) in jobs.iter().zip(&seconds).enumerate() {
            let rate = amount / 1e9 / time;
            let ratio = seconds[0] / time;
            println!("{what:<28} {size:<7} {:<34} {rate:>9.3} {unit:<5} {ratio:>8.3}", job.name);
            let three = |v: f64| (v * 1000.0).round() / 1000.0;
            let mut row = json!({
                "job": what, "size": size, "by": job.name, "rate": three(rate), "unit": unit,
            });
            if i > 0 {
                row["against"] = jobs[0].name.clone().into();
                row["ratio"] = three(ratio).into();
            }
            self.rows.push(row);
        }
    }
}

fn kernels() -> Vec<Kernel> {
    Kernel::available().filter(|k| *k != Kernel::Scalar).collect()
}

/// Decoding, encoding and products of one layer.
fn layer(table: &mut Table, rows: usize, cols: usize, size: &str) -> Result<()> {
    let n = rows * cols;
    let source = weights(n);
    let layer = Layer::new(rows, cols, &source);
    let planes = layer.planes();
    let run = layer.run(&planes);
    let all: Vec<Kernel> = kernels().into_iter().chain([Kernel::Scalar]).collect();

    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let bytes = n * usize::try_from(dtype.bits())? / 8;
        let (from, mut to) = (vec![1u8; bytes + 64], vec![2u8; bytes + 64]);
        let from = &from[from.as_ptr().align_offset(64)..][..bytes];
        let at = to.as_ptr().align_offset(64);
        let to = RefCell::new(&mut to[at..at + bytes]);
        let mut jobs =
            vec![Job::new("memcpy", || to.borrow_mut().copy_from_slice(black_box(from)))];
        for kernel in &all {
            let mut decoder = RunDecoder::new(layer.layout, Levels::default(), Dtype::F32, dtype)?
                .with_kernel(*kernel)?;
            let (run, to) = (&run, &to);
            jobs.push(Job::new(kernel.name(), move || {
                decoder.decode(black_box(run), &mut to.borrow_mut(), |r| r).expect("just encoded");
            }));
        }
        let name = format!("decode to {}", dtype.name().to_lowercase());
        table.measure(&name, size, n as f64, "Gw/s", jobs);
    }

    let tensor = Tensor::from_slice(&source, (rows, cols), &Device::Cpu)?;
    let q5k = QTensor::quantize(&tensor, GgmlDType::Q5K)?;
    let q5_0 = QTensor::quantize(&tensor, GgmlDType::Q5_0)?;
    let pack = layer.pack();
    let view = pack.tensor("w").ok_or("just written")?;
    let mut to = vec![2u8; 4 * n + 64];
    let at = to.as_ptr().align_offset(64);
    let to = RefCell::new(&mut to[at..at + 4 * n]);
    let mut jobs = Vec::new();
    for (name, q) in [("candle Q5K (allocates)", &q5k), ("candle Q5_0 (allocates)", &q5_0)] {
        jobs.push(Job::new(name, move || {
            black_box(q.dequantize(&Device::Cpu).expect("quantized"));
        }));
    }
    for kernel in kernels() {
        let mut decoder = RunDecoder::new(layer.layout, Levels::default(), Dtype::F32, Dtype::F32)?
            .with_kernel(kernel)?;
        let (run, to) = (&run, &to);
        jobs.push(Job::new(format!("{kernel}, reused"), move || {
            decoder.decode(black_box(run), &mut to.borrow_mut(), |r| r).expect("just encoded");
        }));
    }
    jobs.push(Job::new("from a pack in memory, fresh", || {
        black_box(view.decode().expect("just written"));
    }));
    table.measure("decode to f32, candle", size, n as f64, "Gw/s", jobs);

    let mut jobs = Vec::new();
    for (name, dtype) in [("candle Q5K", GgmlDType::Q5K), ("candle Q5_0", GgmlDType::Q5_0)] {
        let tensor = &tensor;
        jobs.push(Job::new(name, move || {
            black_box(QTensor::quantize(tensor, dtype).expect("finite"));
        }));
    }
    for kernel in &all {
        let encoder = RowEncoder::new(&layer.layout, LevelSet::default_for(5), Dtype::F32)?
            .with_kernel(*kernel)?;
        let source = &source;
        jobs.push(Job::new(kernel.name(), move || {
            black_box(encoder.encode(black_box(source)).expect("finite"));
        }));
    }
    let rounds = table.rounds;
    table.rounds = rounds.min(if n > 1 << 24 { 3 } else { 9 });
    table.measure("encode with scale search", size, n as f64, "Gw/s", jobs);
    table.rounds = rounds;

    let x = weights(cols);
    let candle_x = Tensor::from_slice(&x, (1, cols), &Device::Cpu)?;
    let matmul = QMatMul::from_qtensor(q5k)?;
    let matmul_0 = QMatMul::from_qtensor(q5_0)?;
    let y = RefCell::new(vec![0f32; rows]);
    let mut jobs = Vec::new();
    for (name, matmul) in [("candle QMatMul Q5K", &matmul), ("candle QMatMul Q5_0", &matmul_0)] {
        let x = &candle_x;
        jobs.push(Job::new(name, move || {
            black_box(matmul.forward(x).expect("sizes fit"));
        }));
    }
    for kernel in kernels() {
        let matrix = PlaneMatrix::read(&view)?.with_kernel(kernel)?;
        let packed = matrix.repack()?;
        let by_f32 = matrix.clone();
        let (x, y) = (&x, &y);
        let int8 = move || Int8Activations::new(black_box(x), cols).expect("a row");
        jobs.push(Job::new(format!("{kernel}, int8"), move || {
            matrix.multiply_int8(&int8(), &mut y.borrow_mut()).expect("sizes fit");
        }));
        jobs.push(Job::new(format!("{kernel}, int8, repacked"), move || {
            packed.multiply_int8(&int8(), &mut y.borrow_mut()).expect("sizes fit");
        }));
        jobs.push(Job::new(format!("{kernel}, f32"), move || {
            by_f32.multiply_f32(black_box(x), &mut y.borrow_mut()).expect("sizes fit");
        }));
    }
    table.measure("mat-vec", size, n as f64, "Gw/s", jobs);

    let batch = 8;
    let x = weights(batch * cols);
    let candle_x = Tensor::from_slice(&x, (batch, cols), &Device::Cpu)?;
    let y = RefCell::new(vec![0f32; batch * rows]);
    let mut jobs = vec![Job::new("candle QMatMul Q5K", || {
        black_box(matmul.forward(&candle_x).expect("sizes fit"));
    })];
    for kernel in kernels() {
        let matrix = PlaneMatrix::read(&view)?.with_kernel(kernel)?;
        let (x, y) = (&x, &y);
        jobs.push(Job::new(format!("{kernel}, int8"), move || {
            let x = Int8Activations::new(black_box(x), cols).expect("rows");
            matrix.multiply_int8(&x, &mut y.borrow_mut()).expect("sizes fit");
        }));
    }
    table.measure("mat-mul, 8 rows", size, (batch * n) as f64, "Gw/s", jobs);
    Ok(())
}

/// Leaves of the stored root: chunks of 1 MiB, two streams a core against one.
fn hashing(table: &mut Table) {
    let bytes = vec![0x5au8; 4 << 20];
    let leaves: Vec<&[u8]> = bytes.chunks(1 << 20).collect();
    let jobs = vec![
        Job::new("sha2 crate", || {
            for leaf in black_box(&leaves) {
                black_box(Sha256::digest(leaf));
            }
        }),
        Job::new("TreeHasher::leaves", || {
            black_box(TreeHasher::leaves(black_box(&leaves)));
        }),
    ];
    table.measure("SHA-256 of chunks", "L3", bytes.len() as f64, "GB/s", jobs);
}

/// Seconds of one run of a command that must succeed.
fn timed(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.output()?;
    let seconds = start.elapsed().as_secs_f64();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(seconds)
}

/// A safetensors file of `layers` bf16 matrices of 4096 x 4096.
fn write_checkpoint(path: &Path, layers: usize, side: usize) -> Result<u64> {
    use std::io::Write;
    let bytes = 2 * side * side;
    let tensor = |i: usize| {
        let at = [i * bytes, (i + 1) * bytes];
        (
            format!("model.layers.{i}.mlp.up_proj.weight"),
            json!({ "dtype": "BF16", "shape": [side, side], "data_offsets": at }),
        )
    };
    let mut header = Value::Object((0..layers).map(tensor).collect()).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let one: Vec<u8> = weights(side * side)
        .iter()
        .flat_map(|v| [v.to_bits().to_le_bytes()[2], v.to_bits().to_le_bytes()[3]])
        .collect();
    for i in 0..layers {
        // The same numbers in another order.
        let (a, b) = one.split_at(2 * (i * 4099 % (side * side)));
        file.write_all(b)?;
        file.write_all(a)?;
    }
    file.flush()?;
    Ok((layers * bytes) as u64)
}

/// The `uc` binary beside the SHA-256 of one core and beside `cp`.
fn binary(table: &mut Table, folder: &Path, layers: usize, side: usize) -> Result<()> {
    let folder = folder.join(format!("uc-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = binary_in(table, &folder, layers, side);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn binary_in(table: &mut Table, folder: &Path, layers: usize, side: usize) -> Result<()> {
    let uc = env!("CARGO_BIN_EXE_uc");
    let (source, pack) = (folder.join("model.safetensors"), folder.join("model.uc"));
    let (out, copy) = (folder.join("out"), folder.join("copy"));
    let bytes = write_checkpoint(&source, layers, side)?;
    timed(Command::new(uc).args(["-q", "pack"]).arg(&source).arg("-o").arg(&pack))?;
    let stored = std::fs::metadata(&pack)?.len();
    let held = std::fs::read(&pack)?;
    let names: Vec<&str> = kernels().iter().map(|k| k.name()).collect();
    let unpack = |kernel: &str| {
        let _ = std::fs::remove_dir_all(&out);
        let mut command = Command::new(uc);
        command.env("UC_KERNEL", kernel).args(["-q", "-j", "2", "unpack", "--dtype", "bf16"]);
        timed(command.arg(&pack).arg("-o").arg(&out))
    };
    let rounds = table.rounds.min(7);
    let mut samples = vec![Vec::new(); 2 + 2 * names.len()];
    for _ in 0..rounds {
        let start = Instant::now();
        black_box(Sha256::digest(black_box(&held)));
        samples[0].push(start.elapsed().as_secs_f64());
        unpack(names[0])?;
        let _ = std::fs::remove_file(&copy);
        let unpacked = out.join("model.safetensors");
        samples[1].push(timed(Command::new("cp").arg(&unpacked).arg(&copy))?);
        std::fs::remove_file(&copy)?;
        for (i, kernel) in names.iter().enumerate() {
            let mut verify = Command::new(uc);
            verify.env("UC_KERNEL", kernel).args(["-q", "-j", "2", "verify", "--fast"]);
            samples[2 + 2 * i].push(timed(verify.arg(&pack))?);
            samples[3 + 2 * i].push(unpack(kernel)?);
        }
    }
    let median = |s: &mut Vec<f64>| {
        s.sort_by(f64::total_cmp);
        s[s.len() / 2]
    };
    let medians: Vec<f64> = samples.iter_mut().map(median).collect();
    let mut add = |job: &str, by: &str, bytes: u64, seconds: f64, against: Option<(&str, f64)>| {
        let rate = bytes as f64 / 1e9 / seconds;
        let ratio = against.map_or(1.0, |(_, other)| other / seconds);
        println!("{job:<28} {:<7} {by:<34} {rate:>9.3} {:<5} {ratio:>8.3}", "file", "GB/s");
        let three = |v: f64| (v * 1000.0).round() / 1000.0;
        let mut row = json!({
            "job": job, "size": "file", "by": by, "rate": three(rate), "unit": "GB/s",
        });
        if let Some((name, _)) = against {
            row["against"] = name.into();
            row["ratio"] = three(ratio).into();
        }
        table.rows.push(row);
    };
    add("uc verify --fast, 2 threads", "sha2 crate, one thread", stored, medians[0], None);
    for (i, kernel) in names.iter().enumerate() {
        let other = Some(("sha2 crate, one thread", medians[0]));
        add("uc verify --fast, 2 threads", kernel, stored, medians[2 + 2 * i], other);
    }
    add("uc unpack, 2 threads", "cp of the output", bytes, medians[1], None);
    for (i, kernel) in names.iter().enumerate() {
        let other = Some(("cp of the output", medians[1]));
        add("uc unpack, 2 threads", kernel, bytes, medians[3 + 2 * i], other);
    }
    Ok(())
}

fn main() -> Result<()> {
    // candle has a pool of its own, as large as this variable says when it starts.
    const THREADS: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(THREADS).is_none_or(|n| n != "1") {
        let mut again = Command::new(std::env::current_exe()?);
        let status = again.args(std::env::args_os().skip(1)).env(THREADS, "1").status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let (mut record, mut folder, mut full) = (None, None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => full = true,
            "--record" => record = args.next(),
            other if !other.starts_with('-') => folder = Some(PathBuf::from(other)),
            _ => {}
        }
    }
    let folder = folder.unwrap_or_else(|| {
        let shm = PathBuf::from("/dev/shm");
        if shm.is_dir() { shm } else { std::env::temp_dir() }
    });
    let mut table = Table { rounds: if full { 15 } else { 1 }, rows: vec![] };
    println!("{:<28} {:<7} {:<34} {:>15} {:>8}", "job", "size", "by", "rate", "ratio");
    // Our products on one thread, as candle's.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let run = |table: &mut Table, rows, cols, size| {
        one.install(|| layer(table, rows, cols, size).map_err(|e| e.to_string()))
    };
    run(&mut table, 16, 4096, "L2")?;
    if full {
        run(&mut table, 256, 4096, "L3")?;
        run(&mut table, 14336, 4096, "memory")?;
    }
    hashing(&mut table);
    let (layers, side) = if full { (32, 4096) } else { (2, 256) };
    binary(&mut table, &folder, layers, side)?;
    if let Some(file) = record {
        let record = json!({
            "what": "kernels beside memcpy, candle 0.11, the sha2 crate and cp in one run: rates, and ratios of medians",
            "command": "cargo bench --bench targets -- --record FILE",
            "commit": commit(),
            "cpu": cpu(),
            "flags": "bench profile, no target-cpu; kernels chosen at run time",
            "method": "jobs that are compared take turns on one thread; a sample is at least 4 ms of calls after one that isn't timed",
            "rows": table.rows,
        });
        std::fs::write(file, format!("{record:#}\n"))?;
    }
    Ok(())
}
