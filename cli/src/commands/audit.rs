//! `uc audit`.

use std::path::Path;

use serde_json::json;
use ultracompress::audit::AuditOptions;
use ultracompress::output::write_new;
use ultracompress::receipt::AuditReceipt;
use ultracompress::{Digest, Error};

use super::sign;
use crate::args::{Audit, AuditFormat};
use crate::console::Console;
use crate::exit::{FAILED, MISMATCH};
use crate::support::{Outcome, check_distinct, max_ram};

pub fn run(args: &Audit, console: &mut Console) -> Outcome {
    if let Some(output) = &args.output {
        check_distinct(&args.file, output)?;
        write_new(output, args.force, None)?;
    }
    let options = options(args)?;
    console.start("auditing", bytes_on_disk(&args.file));
    let receipt = options.audit_with(&args.file, console)?;
    console.finish();
    write(args, &receipt, console)?;
    say_findings(&args.file.display().to_string(), &receipt, console);
    let malformed = !receipt.failures.is_empty();
    Ok(match receipt.is_ok() {
        true => 0,
        // Damage outweighs bad form, as in `uc verify`.
        false if malformed && receipt.failures.iter().all(|f| f.kind != "integrity") => FAILED,
        // What is incomplete is no success either.
        false => MISMATCH,
    })
}

fn options(args: &Audit) -> Result<AuditOptions, Error> {
    let signature = sign::compare(&args.file, &args.signature)?.map(|found| match found {
        Ok(signed) => (signed.key_id, None),
        Err((key_id, e)) => (key_id, Some(e.message().to_owned())),
    });
    let options = AuditOptions::new()
        .with_root(args.root)
        .with_source(args.source.clone())
        .with_calibration(args.calibration.clone())
        .with_signature(signature)
        .with_max_ram(max_ram(&args.memory));
    Ok(match &args.work_dir {
        Some(folder) => options.with_work_dir(folder.clone()),
        None => options,
    })
}

/// Writes the receipt to its file, or to stdout.
fn write(args: &Audit, receipt: &AuditReceipt, console: &Console) -> Result<(), Error> {
    let mut bytes = match args.format {
        AuditFormat::Json => receipt.to_bytes(),
        AuditFormat::InToto => receipt.to_in_toto(),
    }?;
    let Some(output) = &args.output else {
        bytes.push(b'\n');
        return console.print_bytes(&bytes);
    };
    write_new(output, args.force, Some(&bytes))?;
    if console.json {
        console.print_json(&json!({
            "output": output.display().to_string(),
            "sha256": Digest::of(&bytes).to_string(),
            "verdict": receipt.verdict,
            "checks": receipt.checks,
            "failures": receipt.failures.len(),
        }))?;
    }
    Ok(())
}

fn say_findings(file: &str, receipt: &AuditReceipt, console: &Console) {
    for f in &receipt.failures {
        let tensor =
            f.tensor.as_ref().map_or(String::new(), |t| format!("\"{}\": ", t.escape_debug()));
        let part = f.part.as_ref().map_or(String::new(), |p| format!("{p}: "));
        console.say(format!("{file}: {tensor}{part}{}", f.reason));
    }
    let checks: Vec<String> =
        receipt.checks.iter().map(|(name, c)| format!("{name} {c}")).collect();
    console.say(checks.join(", "));
    if let Some(r) = &receipt.rederived {
        console.say(match r.same_encoder {
            true => format!("made again: {} bytes compared, {} tensors equal", r.bytes_compared, r.tensors_equal),
            false => format!(
                "made again by another encoder, {}: {} of {} tensors decode to the same; bytes were not compared",
                r.encoder,
                r.tensors_equal,
                r.tensors_equal + r.tensors_different
            ),
        });
    }
    console.say(format!("{file}: audit {}", receipt.verdict));
}

/// For the bar; nothing for an address.
fn bytes_on_disk(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}
