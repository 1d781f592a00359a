//! The exact rung: size and speed, on one thread, beside memcpy of the output.
//!
//! ```text
//! cargo bench --bench exact -- [--record FILE] [--rounds N] MODEL...
//! ```
//!
//! Each model (a folder or a safetensors file; `examples/data/tiny-llama` by default) is packed
//! with a residual and without a base. `decode` is what it takes to decode every tensor that has
//! its exact bytes coded, from a pack in memory to reused buffers (`fresh`: to new ones, as zipnn
//! does), checksums included; `encode` is coding with models that are fitted (`fit`), from files in
//! the page cache. Sizes are those of all tensors' parts over the source's tensors.
//! `benches/exact.py` runs it beside zipnn. Without the `--bench` that `cargo bench` passes,
//! everything runs once.

#[path = "../cli/src/commands/bench/rounds.rs"]
mod rounds;
mod support;

use std::cell::RefCell;
use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use rounds::{Job, medians};
use serde_json::{Value, json};
use support::{commit, cpu};
use ultracompress::edit::ExactOptions;
use ultracompress::format::PartKind;
use ultracompress::pack::{Exact, PackOptions};
use ultracompress::source::Source;
use ultracompress::{Container, DecodeOptions, Pack, TensorView};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn is_coded<R>(view: &TensorView<'_, R>) -> bool
where
    R: ultracompress::ReadAt,
{
    view.entry().parts.iter().any(|p| p.kind == PartKind::Residual)
}

fn measure(path: &Path, exact: Exact, rounds: usize) -> Result<Value> {
    let source = Source::open(path)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("exact.uc");
    PackOptions::new().with_exact(exact).pack(&source, &file)?;
    let pack = Container::open(std::fs::read(&file)?)?;
    let stored: u64 = pack.tensors().flat_map(|t| &t.entry().parts).map(|p| p.stored_len).sum();
    let views: Vec<_> = pack.tensors().filter(is_coded).collect();
    let options = DecodeOptions::new().with_exact(true);
    let sizes: Vec<usize> =
        views.iter().map(|v| options.output_bytes(v)).collect::<std::result::Result<_, _>>()?;
    let bytes: usize = sizes.iter().sum();
    let from = vec![1u8; bytes];
    let to = RefCell::new(vec![2u8; bytes]);
    let decode = |options: &DecodeOptions| {
        let mut to = to.borrow_mut();
        let mut rest = &mut to[..];
        for (view, size) in views.iter().zip(&sizes) {
            let (out, after) = rest.split_at_mut(*size);
            options.decode_into(view, out).expect("the pack is valid");
            rest = after;
        }
        black_box(&to);
    };
    let base = DecodeOptions::new();
    let mut jobs = vec![
        Job::new("memcpy", || {
            to.borrow_mut().copy_from_slice(black_box(&from));
            black_box(&to);
        }),
        Job::new("decode exact", || decode(&options)),
        Job::new("decode base", || decode(&base)),
        Job::new("decode, fresh", || {
            let all: Vec<Vec<u8>> =
                views.iter().map(|v| options.decode(v).expect("the pack is valid")).collect();
            black_box(&all);
        }),
    ];
    let seconds = medians(&mut jobs, rounds);
    for (job, seconds) in jobs.iter().zip(&seconds) {
        println!("{:<16} {:.3} GB/s", job.name, bytes as f64 / 1e9 / seconds);
    }
    drop(jobs);
    let three = |v: f64| (v * 1000.0).round() / 1000.0;
    let gb = bytes as f64 / 1e9;
    let mut row = json!({
        "model": path.file_name().map(|n| n.to_string_lossy()),
        "base": exact == Exact::Residual,
        "tensor_bytes": source.bytes(),
        "ratio": (stored as f64 / source.bytes() as f64 * 1e5).round() / 1e5,
        "decode_gb_s": three(gb / seconds[1]),
        "decode_base_gb_s": three(gb / seconds[2]),
        "decode_fresh_gb_s": three(gb / seconds[3]),
        "memcpy_gb_s": three(gb / seconds[0]),
    });
    if exact == Exact::Residual {
        let plain = folder.path().join("plain.uc");
        PackOptions::new().pack(&source, &plain)?;
        let plain = Pack::open_path(&plain)?;
        let mut times: Vec<(f64, f64)> = vec![];
        for _ in 0..rounds.min(9) {
            let (fit, encode, _) = ExactOptions::new().time(&plain, &source)?;
            times.push((fit, encode));
        }
        let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = times.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        row["encode_gb_s"] = three(gb / median(&|t| t.1)).into();
        row["fit_seconds"] = three(median(&|t| t.0)).into();
    }
    println!("{row}");
    Ok(row)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    let (mut record, mut models, mut bench, mut rounds) = (None, vec![], false, 15);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => bench = true,
            "--record" => record = args.next(),
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).unwrap_or(15),
            _ => models.push(PathBuf::from(arg)),
        }
    }
    if models.is_empty() {
        models.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-llama"));
    }
    let rounds = if bench { rounds } else { 1 };
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let mut rows = vec![];
    for model in &models {
        for exact in [Exact::Residual, Exact::Only] {
            rows.push(measure(model, exact, rounds)?);
        }
    }
    if let Some(file) = record {
        let all = json!({
            "command": "cargo bench --bench exact", "commit": commit(), "cpu": cpu(), "rows": rows,
        });
        std::fs::write(file, serde_json::to_string_pretty(&all)? + "\n")?;
    }
    Ok(())
}
