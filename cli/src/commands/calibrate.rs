//! `uc calibrate`.

use serde_json::json;
use ultracompress::calibration::Calibration;
use ultracompress::lm::CalibrateOptions;
use ultracompress::output::write_new;
use ultracompress::source::Model;

use crate::args::Calibrate;
use crate::console::Console;
use crate::support::{Outcome, check_distinct, check_outside, read};

pub fn run(args: &Calibrate, console: &mut Console) -> Outcome {
    // Before minutes of work.
    check_distinct(&args.text, &args.output)?;
    check_distinct(&args.model, &args.output)?;
    check_outside(&args.model, &args.output)?;
    write_new(&args.output, args.force, None)?;
    let options = CalibrateOptions::new()
        .with_seq_len(args.seq_len)
        .with_max_tokens(args.max_tokens)
        .with_seed(args.seed)
        .with_output_block(args.output_block)
        .with_force(args.force);
    let model = Model::open(&args.model)?;
    let text = read(&args.text)?;
    let prepared = options.prepare(&model, &text)?;
    console.start_tokens("calibrating", prepared.work());
    prepared.run(&args.output, console)?;
    console.finish();
    let written = Calibration::open(&args.output)?;
    let record = written.record();
    let fallbacks: Vec<_> = record.layers.iter().filter(|(_, layer)| layer.fallback).collect();
    for (name, layer) in &fallbacks {
        console.say(format!(
            "note: {name} saw {} tokens: its moments lean on those of the other experts",
            layer.tokens
        ));
    }
    if console.json {
        console.print_json(&json!({
            "output": args.output.display().to_string(),
            "architecture": record.architecture,
            "layers": record.layers.len(),
            "sequences": record.protocol.sequences,
            "seq_len": record.protocol.seq_len,
            "tokens": record.protocol.tokens,
            "model_root": record.model_root,
            "sha256": written.sha256().to_string(),
            "fallbacks": fallbacks.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        }))?;
    } else {
        console.print(format!(
            "{}: {} layers of {} from {} tokens in {} sequences of {}\nsha256 {}",
            args.output.display(),
            record.layers.len(),
            record.architecture,
            record.protocol.tokens,
            record.protocol.sequences,
            record.protocol.seq_len,
            written.sha256()
        ))?;
    }
    Ok(0)
}
