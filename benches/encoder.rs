//! Time and memory of the calibrated encoder against the size of a layer, and its share of the
//! core's peak.
//!
//! ```text
//! cargo bench --bench encoder                         one layer of 4096 x 4096, one thread
//! cargo bench --bench encoder -- 1024x1024 4096x14336 --json
//! ```
//!
//! Each layer is packed from a checkpoint of its own, as `uc pack --calibration` does it: reading,
//! scanning, moments, factors, rounding, descent, checking and writing are all in the time. What is
//! counted are the multiplications and additions of factors (`n^3 / 3` of inputs and outputs each),
//! rounding (`rows cols (rows + cols)`) and descent (`2 rows cols (rows + cols)` for each pass and
//! `2 rows cols^2` before the first).

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::{Value, json};
use ultracompress::Kernel;
use ultracompress::pack::{CalibratedRecipe, PackOptions, Recipe};
use ultracompress::source::Source;

struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// About normal.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.next()).sum::<f32>() * 0.7
    }
}

/// Second moments of `n` numbers of which each leans on some before it: packed lower triangle.
fn moments(n: usize, random: &mut Random) -> Vec<f32> {
    let scale: Vec<f32> = (0..n).map(|i| 0.2 + (i * 37 % 101) as f32 / 101.0).collect();
    let lean: Vec<f32> = (0..n).map(|_| random.next()).collect();
    let mut packed = Vec::with_capacity(n * (n + 1) / 2);
    for i in 0..n {
        for j in 0..=i {
            let own = if i == j { 1.0 } else { 0.0 };
            packed.push(scale[i] * scale[j] * (own + 0.5 * lean[i] * lean[j]));
        }
    }
    packed
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A checkpoint with one layer, and its calibration.
fn write(folder: &Path, rows: usize, cols: usize) {
    const NAME: &str = "model.layers.0.mlp.up_proj";
    let mut random = Random(7);
    let weights: Vec<u8> = (0..rows * cols)
        .flat_map(|_| half::bf16::from_f32(random.normal() * 0.02).to_le_bytes())
        .collect();
    let model = folder.join("model");
    std::fs::create_dir(&model).expect("a new folder");
    let view = TensorView::new(Dtype::BF16, vec![rows, cols], &weights).expect("fits");
    let name = format!("{NAME}.weight");
    serialize_to_file([(name, view)], None, &model.join("model.safetensors")).expect("writes");

    let source = ultracompress::source::Model::open(&model).expect("opens");
    let root =
        ultracompress::audit::decoded_root(&source, &ultracompress::NoProgress).expect("hashes");
    const BLOCK: usize = 2048;
    let inputs = bytes(&moments(cols, &mut random));
    let outputs: Vec<u8> = (0..rows)
        .step_by(BLOCK)
        .flat_map(|from| bytes(&moments(BLOCK.min(rows - from), &mut random)))
        .collect();
    let record = json!({
        "format_version": 1, "architecture": "LlamaForCausalLM", "model_root": root.to_string(),
        "tokenizer_sha256": "", "text": { "sha256": "", "bytes": 0, "tokens": 65536 },
        "protocol": { "seq_len": 256, "sequences": 256, "tokens": 65536, "seed": 0 },
        "output_block": BLOCK,
        "layers": { NAME: { "rows": rows, "cols": cols, "tokens": 65536, "input": NAME } },
    });
    let metadata = HashMap::from([("ultracompress_calibration".to_owned(), record.to_string())]);
    let view = |data: &'static [u8]| {
        TensorView::new(Dtype::F32, vec![data.len() / 4], data).expect("fits")
    };
    let all = [
        (format!("{NAME}.input"), view(inputs.leak())),
        (format!("{NAME}.output"), view(outputs.leak())),
    ];
    serialize_to_file(all, Some(metadata), &folder.join("stats")).expect("writes");
}

/// Most memory that the process has had, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
}

/// Starts to count the peak anew, where the platform can.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn operations(rows: f64, cols: f64, passes: f64) -> f64 {
    let block = rows.min(2048.0);
    let factors = 2.0 * (cols.powi(3) / 3.0) + 3.0 * (rows / block) * block.powi(3) / 3.0;
    let both = rows * cols * (block + cols);
    factors + both + passes * 2.0 * both + 2.0 * rows * cols * cols
}

fn measure(rows: usize, cols: usize, rounds: usize) -> Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), rows, cols);
    let calibrated = CalibratedRecipe::default();
    let passes = f64::from(calibrated.descent_passes);
    let mut recipe = Recipe::default();
    recipe.calibrated = Some(calibrated);
    let options = PackOptions::new()
        .with_recipe(recipe)
        .with_force(true)
        .with_max_ram(64 << 30)
        .with_calibration(Some(folder.path().join("stats")));
    let source = Source::open(&folder.path().join("model")).expect("opens");
    let kernel = Kernel::selected().expect("a kernel");
    let (mut seconds, mut peak) = (f64::INFINITY, 0f64);
    forget_peak();
    for _ in 0..if rows * cols > 1 << 22 { 1 } else { 3 } {
        let start = Instant::now();
        std::hint::black_box(ultracompress::mul_add_peak(kernel, rounds));
        let width = match kernel {
            Kernel::Avx512 => 16.0,
            Kernel::Avx2 => 8.0,
            _ => 4.0,
        };
        peak = peak.max(rounds as f64 * 12.0 * width / start.elapsed().as_secs_f64());
        let start = Instant::now();
        options.pack(&source, &folder.path().join("out.uc")).expect("packs");
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    let done = operations(rows as f64, cols as f64, passes) / seconds;
    json!({
        "rows": rows, "cols": cols, "kernel": kernel.to_string(), "seconds": seconds,
        "gflops": done / 1e9, "peak_gflops": peak / 1e9, "of_peak": done / peak,
        "memory_mib": peak_memory().map(|b| b >> 20),
    })
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // As a test: small, to see that it runs.
    let quick = !args.iter().any(|a| a == "--bench");
    let mut sizes: Vec<(usize, usize)> = args
        .iter()
        .filter_map(|a| a.split_once('x'))
        .filter_map(|(r, c)| Some((r.parse().ok()?, c.parse().ok()?)))
        .collect();
    if sizes.is_empty() {
        sizes.push(if quick { (128, 192) } else { (4096, 4096) });
    }
    let rounds = if quick { 1000 } else { 50_000_000 };
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("one thread");
    let rows: Vec<Value> =
        sizes.into_iter().map(|(rows, cols)| measure(rows, cols, rounds)).collect();
    for row in &rows {
        println!("{row}");
    }
}
