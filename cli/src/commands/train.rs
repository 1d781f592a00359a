//! `uc train`.

use std::path::Path;

use serde_json::{Value, json};
use ultracompress::lm::train::GateRow;
use ultracompress::lm::{Method, Objective, TrainOptions, TrainReport};
use ultracompress::source::Model;
use ultracompress::{Error, ErrorKind, EvalRecord};

use crate::args::{self, BlockStates, Train};
use crate::console::Console;
use crate::support::{
    Outcome, check_distinct, check_outside, files_json, max_ram, output_name, read,
};

fn options(args: &Train) -> Result<TrainOptions, Error> {
    let mut options = TrainOptions::new();
    options.name.clone_from(&args.name);
    options.bpw = args.bpw;
    options.method = match args.method {
        args::Method::Svd => Method::Svd,
        args::Method::Whitened => Method::Whitened,
        args::Method::Gradient => Method::Gradient,
    };
    options.objective = match args.objective {
        args::Objective::Hidden => Objective::Hidden,
        args::Objective::Kl => Objective::Kl,
        args::Objective::Hybrid => Objective::Hybrid,
    };
    options.steps = args.steps;
    options.round = args.round;
    options.batch = args.batch;
    options.learning_rate = args.learning_rate;
    options.seed = args.seed;
    options.max_rescues = args.max_rescues;
    options.min_gain = args.min_gain;
    options.refreshed = args.states == BlockStates::Refreshed;
    options.seq_len = args.seq_len;
    options.max_tokens = args.max_tokens;
    options.calibration.clone_from(&args.calibration);
    options.held_out = args.held_out.as_deref().map(read).transpose()?;
    options.frozen_base = args.frozen_base;
    options.keep = args.keep;
    options.resume = args.resume;
    options.force = args.force;
    options.max_ram = max_ram(&args.memory);
    Ok(options)
}

fn row_json(row: &GateRow) -> Value {
    json!({
        "name": row.name, "body_bpw": row.body_bpw, "kld_mean": row.kld_mean, "kld_se": row.kld_se,
        "difference": row.difference, "difference_se": row.difference_se,
    })
}

pub fn run(args: &Train, console: &mut Console) -> Outcome {
    check_paths(args)?;
    let options = options(args)?;
    let (pack, source) = (Model::open(&args.file)?, Model::open(&args.model)?);
    let text = read(&args.text)?;
    console.start_steps("training", options.work(&source)?);
    let report = options.train(&pack, &source, &text, &args.output, console);
    if report.as_ref().is_err_and(|e| *e.kind() == ErrorKind::Cancelled) {
        point_to_state(&args.output, console);
    }
    let report = report?;
    console.finish();
    if console.json {
        console.print_json(&report_json(&options.name, &report))?;
    } else {
        print(&report, console)?;
    }
    Ok(0)
}

/// What would be refused only after minutes of work.
fn check_paths(args: &Train) -> Result<(), Error> {
    let inputs =
        [Some(&args.file), Some(&args.text), args.held_out.as_ref(), args.calibration.as_ref()];
    inputs.into_iter().flatten().try_for_each(|input| check_distinct(input, &args.output))?;
    check_outside(&args.model, &args.output)
}

/// Says where an interrupted run can go on from, if it got that far.
fn point_to_state(output: &Path, console: &Console) {
    let mut state = output.as_os_str().to_owned();
    state.push(".train-state");
    if Path::new(&state).exists() {
        console.finish();
        let state = state.display();
        console.say(format!("note: {state} holds what was trained: --resume goes on from there"));
    }
}

#[allow(clippy::cast_precision_loss, reason = "for display")]
fn mean_rank(report: &TrainReport) -> f64 {
    report.ranks.values().sum::<usize>() as f64 / report.ranks.len().max(1) as f64
}

fn report_json(name: &str, report: &TrainReport) -> Value {
    let kld = |record: &EvalRecord| record.figure("kld_mean");
    json!({
        "output": output_name(&report.files),
        "files": files_json(&report.files),
        "name": name,
        "kept": report.kept,
        "reason": report.reason,
        "rank": mean_rank(report),
        "ranks": report.ranks,
        "bpw_before": report.bpw_before,
        "bpw_after": report.bpw_after,
        "kld_before": kld(&report.before),
        "kld_after": kld(&report.after),
        "table": report.table.iter().map(row_json).collect::<Vec<_>>(),
        "steps": report.steps,
        "rescues": report.rescues,
        "stopped": report.stopped,
        "threads": report.threads,
        "held_out": report.held_out,
        "probes": report.probes,
        "factors_sha256": report.factors_sha256.to_string(),
        "stored_root": report.stored_root.to_string(),
        "effective_root": report.effective_root.map(|root| root.to_string()),
    })
}

fn print(report: &TrainReport, console: &Console) -> Result<(), Error> {
    print_table(report, console)?;
    let kept = if report.kept { "kept" } else { "left out" };
    console.print(format!(
        "\noverlay {kept}: {}\n{}: mean rank {:.1} in {} tensors; {} steps, {} rounds undone, ended by {}\nstored root    {}",
        report.reason,
        output_name(&report.files),
        mean_rank(report),
        report.ranks.len(),
        report.steps,
        report.rescues,
        report.stopped,
        report.stored_root,
    ))?;
    if let Some(root) = report.effective_root {
        console.print(format!("effective root {root}"))?;
    }
    Ok(())
}

/// The overlay and what it was compared with.
fn print_table(report: &TrainReport, console: &Console) -> Result<(), Error> {
    console.print(format!(
        "{:<26} {:>8} {:>10} {:>9} {:>11} {:>9}",
        if report.held_out { "held-out text" } else { "probe set" },
        "body bpw",
        "KL",
        "+-",
        "more by",
        "+-"
    ))?;
    let number = |v: Option<f64>| v.map_or("none".to_owned(), |v| format!("{v:.6}"));
    for row in &report.table {
        console.print(format!(
            "{:<26} {:>8.4} {:>10.6} {:>9} {:>11.6} {:>9}",
            row.name,
            row.body_bpw,
            row.kld_mean,
            number(row.kld_se),
            row.difference,
            number(row.difference_se)
        ))?;
    }
    Ok(())
}
