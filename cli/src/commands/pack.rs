//! `uc pack`.

use std::path::Path;

use serde_json::json;
use ultracompress::edit::ExactOptions;
use ultracompress::manifest::PackStats;
use ultracompress::pack::{
    Decision, Exact, PackOptions, PackReport, Plan, PlannedTensor, Recipe, RecipeRule,
};
use ultracompress::source::Source;
use ultracompress::{Error, ErrorKind};

use crate::args::Pack;
use crate::console::Console;
use crate::support::{
    Outcome, check_distinct, check_free_disk, files_json, max_ram, output_name, rate, size,
};

pub fn run(args: &Pack, console: &mut Console) -> Outcome {
    if let Some(base) = &args.onto {
        return add_exact(args, base, console);
    }
    let options = options(args)?;
    let source = Source::open(&args.source)?;
    if args.dry_run {
        console.start("reading", options.work(&source));
        let plan = options.plan(&source, console)?;
        console.finish();
        return show_plan(&source, &plan, console);
    }
    let output = args.output.as_deref().expect("clap requires it without --dry-run");
    check_distinct(&args.source, output)?;
    let there = options.bytes_there(output);
    check_free_disk(output, options.estimate(&source)?.saturating_sub(there))?;
    console.start("packing", options.work(&source));
    let report = options.pack_with(&source, output, console)?;
    console.finish();
    say_notes(args, &report, console);
    print(&report, console)?;
    Ok(0)
}

fn options(args: &Pack) -> Result<PackOptions, Error> {
    let exact = match (args.exact, args.exact_only) {
        (true, _) => Exact::Residual,
        (_, true) => Exact::Only,
        _ => Exact::No,
    };
    Ok(PackOptions::new()
        .with_recipe(recipe(args)?)
        .with_force(args.force)
        .with_max_ram(max_ram(&args.memory))
        .with_shard_size(args.shard_size)
        .with_exact(exact)
        .with_rungs(args.rungs.clone())
        .with_resume(args.resume)
        .with_reuse(args.reuse.clone())
        .with_calibration(args.calibration.clone()))
}

/// What was not packed as one might expect.
fn say_notes(args: &Pack, report: &PackReport, console: &Console) {
    for name in &report.odd {
        console.say(format!("note: {name} holds NaN, infinite or huge values and is stored raw"));
    }
    if report.resumed > 0 {
        console.say(format!(
            "resumed: {} tensors and files had been written by an earlier run",
            report.resumed
        ));
    }
    if let Some(old) = &args.reuse {
        console.say(format!("reused: {} tensors are those of {}", report.reused, old.display()));
    }
    if !report.left_out.is_empty() {
        console.say(format!("left out: {}", report.left_out.join(", ")));
    }
}

fn print(report: &PackReport, console: &Console) -> Result<(), Error> {
    let PackStats { tensors, weights, body_bpw, file_bpw, .. } = report.stats;
    if console.json {
        return console.print_json(&json!({
            "output": output_name(&report.files),
            "files": files_json(&report.files),
            "left_out": report.left_out,
            "stored_raw_not_finite": report.odd,
            "resumed": report.resumed,
            "reused": report.reused,
            "tensors": tensors,
            "weights": weights,
            "body_bpw": body_bpw,
            "file_bpw": file_bpw,
            "stored_root": report.stored_root.to_string(),
            "decoded_root": report.decoded_root.to_string(),
        }));
    }
    console.print(format!(
        "{}: {tensors} tensors, {weights} weights in {}\nbody {} bpw, file {} bpw\nstored root  {}\ndecoded root {}",
        output_name(&report.files),
        size(report.files.iter().map(|(_, bytes)| bytes).sum()),
        rate(body_bpw),
        rate(file_bpw),
        report.stored_root,
        report.decoded_root,
    ))
}

/// `uc pack SOURCE --onto PACK`.
fn add_exact(args: &Pack, base: &Path, console: &mut Console) -> Outcome {
    let output = args.output.as_deref().expect("clap requires it without --dry-run");
    let source = Source::open(&args.source)?;
    let pack = ultracompress::Pack::open_path(base)?;
    check_distinct(&args.source, output)?;
    check_distinct(base, output)?;
    check_free_disk(output, pack.bytes().saturating_add(source.bytes()))?;
    console.start("packing", 3 * source.bytes());
    let options = ExactOptions::new().with_force(args.force).with_max_ram(max_ram(&args.memory));
    let report = options.add_with(&pack, &source, output, console)?;
    console.finish();
    if console.json {
        console.print_json(&json!({
            "output": output_name(&report.files),
            "files": files_json(&report.files),
            "residuals": report.residuals,
            "exact_bytes": report.bytes,
            "stored_root": report.stored_root.to_string(),
            "decoded_root": report.decoded_root.to_string(),
        }))?;
    } else {
        console.print(format!(
            "{}: {}, of which {} residuals take {}\nstored root  {}\ndecoded root {}",
            output_name(&report.files),
            size(report.files.iter().map(|(_, bytes)| bytes).sum()),
            report.residuals,
            size(report.bytes),
            report.stored_root,
            report.decoded_root,
        ))?;
    }
    Ok(0)
}

fn recipe(args: &Pack) -> Result<Recipe, Error> {
    let mut recipe = match &args.recipe {
        None => Recipe::default(),
        Some(path) => {
            let in_file = |e: Error| e.in_file(path.display().to_string());
            let text = std::fs::read_to_string(path)
                .map_err(|e| in_file(Error::new(ErrorKind::Io, format!("can't read: {e}"))))?;
            toml::from_str(&text).map_err(|e| {
                in_file(Error::new(ErrorKind::InvalidArgument, format!("not a recipe: {e}")))
            })?
        }
    };
    if let Some(bits) = args.bits {
        recipe.bits = bits;
    }
    if let Some(bpw) = args.bpw {
        recipe.calibrated.get_or_insert_default().bpw = Some(bpw);
    }
    recipe.raw_all |= args.raw_all;
    for text in &args.tensor {
        recipe.tensors.push(RecipeRule::parse(text)?);
    }
    // Usage errors come before any look at the source.
    recipe.check()?;
    Ok(recipe)
}

fn encoding(t: &PlannedTensor) -> (&'static str, Option<u8>) {
    match &t.decision {
        Decision::Planes { planes, .. } => ("planes", Some(*planes)),
        Decision::Raw => ("raw", None),
        Decision::Alias(_) => ("alias", None),
    }
}

fn show_plan(source: &Source, plan: &Plan, console: &Console) -> Outcome {
    let left_out = source.left_out();
    if console.json {
        let tensors: Vec<_> = plan
            .tensors
            .iter()
            .map(|t| {
                let (encoding, planes) = encoding(t);
                json!({
                    "name": t.name, "dtype": t.dtype.name(), "shape": t.shape, "role": t.role.name(),
                    "encoding": encoding, "planes": planes, "reason": t.reason,
                })
            })
            .collect();
        console.print_json(&json!({
            "tensors": tensors, "carried": source.carried_paths(), "left_out": left_out,
        }))?;
        return Ok(0);
    }
    let width = plan.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    for t in &plan.tensors {
        let (encoding, planes) = encoding(t);
        let planes = planes.map_or(String::new(), |n| n.to_string());
        let shape = format!("{:?}", t.shape);
        console.print(format!(
            "{:width$}  {:5} {shape:18} {encoding:6} {planes:1}  {}",
            t.name,
            t.dtype.name(),
            t.reason
        ))?;
    }
    console.print(format!("carried: {}", source.carried_paths().join(", ")))?;
    console.print(format!("left out: {}", left_out.join(", ")))?;
    Ok(0)
}
