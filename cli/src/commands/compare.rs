//! `uc same` and `uc diff`.

use serde_json::json;
use ultracompress::audit;
use ultracompress::source::Model;

use crate::args::Pair;
use crate::console::Console;
use crate::exit::MISMATCH;
use crate::support::Outcome;

fn open(
    args: &Pair,
    console: &mut Console,
    what: &'static str,
) -> Result<(Model, Model), ultracompress::Error> {
    let (a, b) = (Model::open(&args.a)?, Model::open(&args.b)?);
    let bytes = |m: &Model| -> u64 {
        let sizes = m.tensors().into_iter().filter_map(|(_, d, shape)| d.tensor_bytes(shape));
        sizes.fold(0, u64::saturating_add)
    };
    console.start(what, bytes(&a).saturating_add(bytes(&b)));
    Ok((a, b))
}

pub fn same(args: &Pair, console: &mut Console) -> Outcome {
    let (a, b) = open(args, console, "comparing")?;
    let report = audit::same(&a, &b, console)?;
    console.finish();
    if console.json {
        console.print_json(&json!({
            "same": report.same,
            "a": report.a.to_string(),
            "b": report.b.to_string(),
            "first_difference": report.first_difference,
        }))?;
    } else {
        let verdict = if report.same { "same" } else { "different" };
        console.print(format!("{verdict}\na {}\nb {}", report.a, report.b))?;
        if let Some(d) = &report.first_difference {
            console.print(format!("first difference: {d}"))?;
        }
    }
    Ok(if report.same { 0 } else { MISMATCH })
}

/// JSON has no infinity: equal tensors have no ratio.
fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

pub fn diff(args: &Pair, console: &mut Console) -> Outcome {
    let (a, b) = open(args, console, "measuring")?;
    let report = audit::diff(&a, &b, console)?;
    console.finish();
    if console.json {
        let tensors: Vec<_> = report
            .tensors
            .iter()
            .map(|t| {
                json!({
                    "name": t.name, "shape": t.shape, "max_abs": finite(t.max_abs),
                    "rel_frobenius": finite(t.rel_frobenius), "sqnr_db": finite(t.sqnr_db),
                    "equal": t.max_abs == 0.0,
                })
            })
            .collect();
        console.print_json(&json!({
            "tensors": tensors,
            "worst": report.worst,
            "total_sqnr_db": finite(report.total_sqnr_db),
            "unmatched": report.unmatched,
        }))?;
        return Ok(0);
    }
    let width = report.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    console.print(format!(
        "{:width$}  {:>12} {:>12} {:>9}",
        "tensor", "max abs", "rel frob", "SQNR dB"
    ))?;
    for t in &report.tensors {
        console.print(if t.max_abs == 0.0 {
            format!("{:width$}  {:>12} {:>12} {:>9}", t.name, "0", "0", "equal")
        } else {
            format!(
                "{:width$}  {:12.4e} {:12.4e} {:9.3}",
                t.name, t.max_abs, t.rel_frobenius, t.sqnr_db
            )
        })?;
    }
    for name in &report.unmatched {
        console.print(format!("{name}: only in one of the two, or of another shape"))?;
    }
    match &report.worst {
        Some(worst) => console.print(format!(
            "worst: {worst}; over all tensors that differ: {:.3} dB",
            report.total_sqnr_db
        ))?,
        None => console.print("all equal")?,
    }
    Ok(0)
}
