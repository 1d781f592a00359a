//! The uncalibrated encoder beside candle's block quantizers: bits, error and speed in one run.
//!
//! ```text
//! cargo bench --bench uncalibrated -- --record FILE MODEL...
//! ```
//!
//! For each model (folder or safetensors file; `examples/data/tiny-llama` by default) every body
//! tensor goes through `EncodedTensor::planes` at 5 planes and through candle's Q5_0, Q5K and Q8_0
//! (flattened where rows don't divide by the block), and the signal-to-noise ratio over all of them
//! is taken against the source. Then the whole model is packed on one thread, five times. Without
//! the `--bench` that `cargo bench` passes, everything runs once.

mod support;

use std::error::Error;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use support::{commit, cpu};
use ultracompress::codec::convert_raw;
use ultracompress::manifest::PackStats;
use ultracompress::pack::{Decision, PackOptions, Plan, Recipe};
use ultracompress::source::{Model, Source};
use ultracompress::{
    Container, Dtype, EncodeOptions, EncodedTensor, Manifest, Pack, PackWriter, Role,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn to_f32(bytes: Vec<u8>, dtype: Dtype) -> Vec<f32> {
    let (bytes, _) = convert_raw(bytes, dtype, Dtype::F32);
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[derive(Default)]
struct Total {
    bits: f64,
    weights: f64,
    signal: f64,
    noise: f64,
}

impl Total {
    fn add(&mut self, source: &[f32], decoded: &[f32], bits: f64) {
        self.bits += bits;
        self.weights += source.len() as f64;
        for (x, y) in source.iter().zip(decoded) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            self.signal += x * x;
            self.noise += (x - y) * (x - y);
        }
    }

    fn row(&self, name: &str) -> Value {
        let round = |x: f64| (x * 1e4).round() / 1e4;
        json!({
            "codec": name,
            "bpw": round(self.bits / self.weights),
            "sqnr_db": round(10.0 * (self.signal / self.noise).log10()),
        })
    }
}

/// Planes of one tensor, decoded: values and stored bits.
fn through_planes(t: &Planned<'_>, source: &[u8]) -> Result<(Vec<f32>, f64)> {
    let options = EncodeOptions::new().with_role(Role::Body).with_row_dims(t.row_dims);
    let encoded = EncodedTensor::planes(t.name, t.dtype, t.shape, source, &options)?;
    let mut manifest = Manifest::new("bench");
    manifest.add_tensor(t.name, source, "bench");
    let mut writer = PackWriter::new(Cursor::new(Vec::new()))?;
    writer.add_tensor(encoded)?;
    let (_, file) = writer.finish(&manifest.to_bytes()?)?;
    let pack = Pack::from(Container::open(file.into_inner())?);
    let view = pack.tensor(t.name).ok_or("just written")?;
    let stats = PackStats::of(&pack);
    let bits = stats.body_bpw.ok_or("a body tensor")? * stats.body_weights as f64;
    Ok((to_f32(view.decode()?, t.dtype), bits))
}

/// A block quantizer of candle, decoded: values and stored bits.
fn through_candle(source: &[f32], dtype: GgmlDType) -> Result<(Vec<f32>, f64)> {
    let block = dtype.block_size();
    // Whole blocks only: the few weights behind them are left out of its error and bits alike.
    let whole = source.len() / block * block;
    let tensor = Tensor::from_slice(&source[..whole], (whole,), &Device::Cpu)?;
    let quantized = QTensor::quantize(&tensor, dtype)?;
    let decoded = quantized.dequantize(&Device::Cpu)?.to_vec1()?;
    Ok((decoded, quantized.storage_size_in_bytes() as f64 * 8.0))
}

struct Planned<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: &'a [u64],
    row_dims: u8,
}

fn quality(source: Source) -> Result<Value> {
    let plan = Plan::new(&source, &Recipe::default())?;
    let model = Model::Checkpoint(source);
    let peers = [("q5_0", GgmlDType::Q5_0), ("q5k", GgmlDType::Q5K), ("q8_0", GgmlDType::Q8_0)];
    let mut ours = Total::default();
    let mut theirs = peers.map(|_| Total::default());
    let mut shortest_row = u64::MAX;
    for t in plan.tensors.iter().filter(|t| t.role == Role::Body) {
        let Decision::Planes { row_dims, .. } = t.decision else { continue };
        let planned = Planned { name: &t.name, dtype: t.dtype, shape: &t.shape, row_dims };
        shortest_row = shortest_row.min(t.shape[usize::from(row_dims)..].iter().product());
        let bytes = model.read_all(&t.name, t.dtype, &t.shape)?;
        let (decoded, bits) = through_planes(&planned, &bytes)?;
        let values = to_f32(bytes, t.dtype);
        ours.add(&values, &decoded, bits);
        for ((_, dtype), total) in peers.iter().zip(&mut theirs) {
            let (decoded, bits) = through_candle(&values, *dtype)?;
            total.add(&values[..decoded.len()], &decoded, bits);
        }
    }
    let rows = peers.iter().zip(&theirs).map(|((name, _), t)| t.row(&format!("candle {name}")));
    let all: Vec<Value> = std::iter::once(ours.row("uc 5 planes, group 32")).chain(rows).collect();
    Ok(json!({ "body_weights": ours.weights, "shortest_row": shortest_row, "codecs": all }))
}

/// MB of source per second that one thread packs, from opening the source to the renamed file.
fn speed(path: &Path, runs: usize) -> Result<Value> {
    let folder = std::env::temp_dir().join(format!("uc-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let output = folder.join("out.uc");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let mut rates = vec![];
    let mut bytes = 0;
    for _ in 0..runs {
        let start = Instant::now();
        let source = Source::open(path)?;
        bytes = source.bytes();
        pool.install(|| PackOptions::new().with_force(true).pack(&source, &output))?;
        rates.push(bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
    }
    std::fs::remove_dir_all(&folder)?;
    rates.sort_by(f64::total_cmp);
    let one = |x: f64| (x * 10.0).round() / 10.0;
    Ok(json!({
        "source_bytes": bytes, "threads": 1, "runs": runs,
        "mb_per_s": { "median": one(rates[runs / 2]), "min": one(rates[0]), "max": one(rates[runs - 1]) },
    }))
}

fn main() -> Result<()> {
    let (mut record, mut models, mut timed) = (None, vec![], false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => timed = true,
            "--record" => record = args.next(),
            other if !other.starts_with('-') => models.push(PathBuf::from(other)),
            _ => {}
        }
    }
    if models.is_empty() {
        models.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-llama"));
    }
    let mut rows = vec![];
    for path in &models {
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let mut row = quality(Source::open(path)?)?;
        row["model"] = name.into();
        row["pack"] = speed(path, if timed { 5 } else { 1 })?;
        println!("{row:#}");
        rows.push(row);
    }
    if let Some(file) = record {
        let record = json!({
            "what": "uncalibrated encoder: error and bits of body tensors beside candle 0.11 in one run; packing speed on one thread",
            "command": "cargo bench --bench uncalibrated -- --record FILE MODEL...",
            "commit": commit(),
            "cpu": cpu(),
            "flags": "release profile, no target-cpu",
            "models": rows,
        });
        std::fs::write(file, format!("{record:#}\n"))?;
    }
    Ok(())
}
