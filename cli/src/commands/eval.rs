//! `uc eval`.

use serde_json::{Value, json};
use ultracompress::lm::{Baseline, EvalOptions};
use ultracompress::output::write_new;
use ultracompress::receipt::{EvalRecord, Metric};
use ultracompress::source::Model;
use ultracompress::{Error, ErrorKind};

use crate::args::Eval;
use crate::console::Console;
use crate::support::{Outcome, check_distinct, check_outside, memory_of_machine, rate, read, size};

/// Figures of the contract, whatever the metric.
const FIGURES: [&str; 8] = [
    "ppl",
    "ppl_reference",
    "ppl_ratio",
    "ppl_ratio_se",
    "kld_mean",
    "kld_se",
    "kld_p99",
    "top1_agreement",
];

pub fn run(args: &Eval, console: &mut Console) -> Outcome {
    let baselines = args.baseline.iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>()?;
    let baselines: Vec<Baseline> = baselines;
    let repeated = (1..baselines.len()).find(|&i| baselines[..i].contains(&baselines[i]));
    if let Some(i) = repeated {
        let text = format!("the baseline {} is named twice", baselines[i].name());
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    if let Some(record) = &args.record {
        // Before minutes of work.
        for input in [&args.model, &args.text] {
            check_distinct(input, record)?;
        }
        check_outside(&args.against, record)?;
        write_new(record, args.force, None)?;
    }
    let options = EvalOptions::new()
        .with_seq_len(args.seq_len)
        .with_max_tokens(args.max_tokens)
        .with_rung(args.rung)
        .with_overlays(!args.no_overlays)
        .with_baselines(baselines);
    let (model, reference) = (Model::open(&args.model)?, Model::open(&args.against)?);
    let text = read(&args.text)?;
    let prepared = options.prepare(&model, &reference, &text)?;
    let (needed, there) = (prepared.memory_bytes(), memory_of_machine());
    if there.is_some_and(|there| needed > there) {
        let there = size(there.unwrap_or(0));
        console.say(format!(
            "warning: about {} of memory are needed, there are {there}",
            size(needed)
        ));
    }
    console.start_tokens("evaluating", prepared.tokens());
    let record = prepared.run(console)?;
    console.finish();
    if let Some(path) = &args.record {
        write_new(path, args.force, Some(&record.to_bytes()?))?;
    }
    if console.json {
        console.print_json(&as_json(&record))?;
    } else {
        print(&record, console)?;
    }
    Ok(0)
}

fn as_json(record: &EvalRecord) -> Value {
    let mut all = json!({
        "metric": record.metric,
        "tokens": record.protocol.tokens,
        "sequences": record.protocol.sequences,
        "seq_len": record.protocol.seq_len,
        "body_bpw": record.model.body_bpw,
        "file_bpw": record.model.file_bpw,
        "rung": record.model.rung,
        "effective_root": record.model.effective_root,
    });
    for name in FIGURES {
        all[name] = json!(record.figure(name));
    }
    for (name, value) in &record.headline {
        all[name] = json!(value);
    }
    let baselines = record.baselines.iter().map(|b| {
        let mut row = json!({ "name": b.name, "body_bpw": b.body_bpw });
        for (name, value) in b.headline.iter().filter(|(name, _)| *name != "ppl_reference") {
            row[name] = json!(value);
        }
        row
    });
    all["baselines"] = baselines.collect();
    all
}

fn print(record: &EvalRecord, console: &Console) -> Result<(), Error> {
    let p = &record.protocol;
    console.print(format!(
        "{}: {} tokens scored in {} sequences of {}",
        record.architecture, p.tokens, p.sequences, p.seq_len
    ))?;
    let figure = |headline: &ultracompress::receipt::Headline, name: &str, digits: usize| {
        let value = headline.get(name).copied().flatten();
        value.map_or("none".to_owned(), |v| format!("{v:.digits$}"))
    };
    let own = match record.model.rung {
        Some(rung) => format!("model, rung {rung}"),
        None => "model".to_owned(),
    };
    let baselines = record.baselines.iter().map(|b| (b.name.as_str(), b.body_bpw, &b.headline));
    let all =
        [(own.as_str(), record.model.body_bpw, &record.headline)].into_iter().chain(baselines);
    match record.metric {
        Metric::Kld => {
            let reference = figure(&record.headline, "ppl_reference", 4);
            console.print(format!("source: perplexity {reference}\n"))?;
            console.print(format!(
                "{:<14} {:>8} {:>10} {:>9} {:>8} {:>9} {:>9} {:>7}",
                "", "body bpw", "perplexity", "ratio", "+-", "KL", "+-", "top 1"
            ))?;
            for (name, bpw, h) in all {
                console.print(format!(
                    "{name:<14} {:>8} {:>10} {:>9} {:>8} {:>9} {:>9} {:>7}",
                    rate(bpw),
                    figure(h, "ppl", 4),
                    figure(h, "ppl_ratio", 5),
                    figure(h, "ppl_ratio_se", 5),
                    figure(h, "kld_mean", 6),
                    figure(h, "kld_se", 6),
                    figure(h, "top1_agreement", 4),
                ))?;
            }
            let p99 = figure(&record.headline, "kld_p99", 6);
            console.print(format!("\n99th percentile of the model's KL: {p99} nats"))?;
        }
        Metric::Cosine => {
            console.print(format!(
                "\n{:<14} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
                "cosine", "body bpw", "pooled", "+-", "least", "hidden", "+-"
            ))?;
            for (name, bpw, h) in all {
                console.print(format!(
                    "{name:<14} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
                    rate(bpw),
                    figure(h, "cosine_pooled_mean", 6),
                    figure(h, "cosine_pooled_se", 6),
                    figure(h, "cosine_pooled_min", 6),
                    figure(h, "cosine_hidden_mean", 6),
                    figure(h, "cosine_hidden_se", 6),
                ))?;
            }
        }
    }
    Ok(())
}
