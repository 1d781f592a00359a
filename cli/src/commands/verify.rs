//! `uc verify`.

use serde_json::json;
use ultracompress::audit::against;
use ultracompress::source::Source;
use ultracompress::{
    Check, Digest, Error, ErrorKind, Failure, Limits, Pack, VerifyOptions, VerifyReport,
};

use super::sign;
use crate::args::Verify;
use crate::console::Console;
use crate::exit::{FAILED, MISMATCH};
use crate::support::{Outcome, max_ram};

pub fn run(args: &Verify, console: &mut Console) -> Outcome {
    let file = args.file.display().to_string();
    let max_ram = max_ram(&args.memory);
    let pack = match Pack::open_with(&args.file, |_| true, Limits::within(max_ram)) {
        Ok(pack) => pack,
        Err(e) => return refused(&e, console),
    };
    let signature = sign::compare(&args.file, &args.signature)?;
    // Before any work, so that a wrong path shows at once.
    let source = args.against.as_deref().map(Source::open).transpose()?;
    let decoded: u64 = if args.fast {
        0
    } else {
        let sizes = pack.tensors().filter_map(|t| t.dtype().tensor_bytes(t.shape()));
        sizes.fold(0, u64::saturating_add)
    };
    console.start("verifying", pack.bytes().saturating_add(decoded));
    let options = VerifyOptions::new().with_decode(!args.fast).with_max_ram(max_ram);
    let mut report = options.verify_pack_with(&pack, console).map_err(|e| e.in_file(&file))?;
    let mut compared = Check::NotChecked;
    if let Some(root) = args.root {
        compared = compare_root(root, &mut report);
    }
    if let Some(found) = &signature {
        let check = if found.is_ok() { Check::Ok } else { Check::Mismatch };
        compared = if compared == Check::Mismatch { compared } else { check };
        report.failures.extend(found.as_ref().err().map(|(_, e)| Failure::from(e)));
    }
    let mut note = None;
    if let Some(source) = &source {
        let failures = match &pack.manifest() {
            Ok(manifest) => {
                let found = against(&pack, manifest, source, console, report.exact)?;
                let decoded = match found.decoded {
                    0 => String::new(),
                    n => format!(" ({n} of them by the exact rung)"),
                };
                note = Some(format!(
                    "against the source: {} tensors equal bit for bit{decoded}; {} quantized tensors claim its digests (their values are not compared: uc diff measures them); {} files equal",
                    found.exact, found.claimed, found.files
                ));
                found.failures
            }
            Err(e) => vec![Failure::from(e)],
        };
        let check = if failures.is_empty() { Check::Ok } else { Check::Mismatch };
        compared = if compared == Check::Mismatch { compared } else { check };
        report.failures.extend(failures);
    }
    console.finish();
    if let Some(note) = note {
        console.say(note);
    }
    print(&report, compared, signature.as_ref(), &file, console)?;
    let kinds = report.failures.iter().map(|f| &f.kind);
    Ok(match report.failures.is_empty() {
        true => 0,
        // Damage outweighs bad form: a checksum that disagrees explains the rest.
        false if kinds.clone().any(|k| *k == ErrorKind::Integrity) => MISMATCH,
        false => FAILED,
    })
}

/// A file that doesn't open still gets its JSON answer.
fn refused(e: &Error, console: &Console) -> Outcome {
    if console.json {
        let f = Failure::from(e);
        let structure = if *e.kind() == ErrorKind::Io { "not_checked" } else { "mismatch" };
        console.print_json(&json!({
            "structure": structure, "stored": "not_checked", "decoded": "not_checked",
            "compared_with": "not_checked", "signature": "not_checked", "tensors_checked": 0, "exact": "not_checked", "effective": "not_checked",
            "failures": [failure(&f)],
        }))?;
    }
    console.say(format!("error: {e}"));
    Ok(crate::exit::code_of(e))
}

fn failure(f: &Failure) -> serde_json::Value {
    json!({
        "file": f.file, "tensor": f.tensor, "part": f.part, "offset": f.offset_bytes,
        "reason": f.reason,
    })
}

fn compare_root(root: Digest, report: &mut VerifyReport) -> Check {
    // A decoded root counts only when the tensors were decoded in this run.
    let decoded = report.decoded == Check::Ok && root == report.decoded_root;
    let effective = report.effective == Check::Ok && report.effective_root == Some(root);
    if decoded || effective || root == report.stored_root {
        return Check::Ok;
    }
    let also = if report.decoded == Check::NotChecked { " (nothing was decoded)" } else { "" };
    report.failures.push(Failure {
        kind: ErrorKind::Integrity,
        file: None,
        tensor: None,
        part: None,
        offset_bytes: None,
        reason: format!(
            "the root given is neither the stored root {} nor the decoded root {}{also}",
            report.stored_root, report.decoded_root
        ),
    });
    Check::Mismatch
}

fn report_json(
    report: &VerifyReport,
    compared: Check,
    signature: Option<&sign::Compared>,
) -> serde_json::Value {
    let signed = signature.and_then(|found| found.as_ref().ok());
    json!({
        "structure": report.structure.name(),
        "stored": report.stored.name(),
        "decoded": report.decoded.name(),
        "compared_with": compared.name(),
        "signature": signature.map_or(Check::NotChecked, |found| {
            if found.is_ok() { Check::Ok } else { Check::Mismatch }
        }).name(),
        "signature_key": signed.map(|s| &s.key_id),
        "signature_comment": signed.map(|s| &s.comment),
        "tensors_checked": report.tensors_checked,
        "exact": report.exact.name(),
        "exact_checked": report.exact_checked,
        "effective": report.effective.name(),
        "effective_checked": report.effective_checked,
        "stored_root": report.stored_root.to_string(),
        "decoded_root": report.decoded_root.to_string(),
        "effective_root": report.effective_root.map(|root| root.to_string()),
        "failures": report.failures.iter().map(failure).collect::<Vec<_>>(),
    })
}

fn print(
    report: &VerifyReport,
    compared: Check,
    signature: Option<&sign::Compared>,
    file: &str,
    console: &Console,
) -> Result<(), Error> {
    if console.json {
        return console.print_json(&report_json(report, compared, signature));
    }
    for f in &report.failures {
        let tensor = f.tensor.as_ref().map_or(String::new(), |t| format!("\"{t}\": "));
        let part = f.part.as_ref().map_or(String::new(), |p| format!("{p}: "));
        let at = f.offset_bytes.map_or(String::new(), |o| format!(", at byte {o}"));
        let file = f.file.as_deref().unwrap_or(file);
        console.print(format!("{file}: {tensor}{part}{}{at}", f.reason))?;
    }
    console.print(format!(
        "structure {}, stored {}, decoded {} ({} tensors), compared with {}",
        report.structure.name(),
        report.stored.name(),
        report.decoded.name(),
        report.tensors_checked,
        compared.name(),
    ))?;
    if report.effective != Check::NotChecked {
        console.print(format!(
            "effective {} ({} tensors with overlays)",
            report.effective.name(),
            report.effective_checked
        ))?;
    }
    if report.exact != Check::NotChecked {
        console.print(format!(
            "exact {} ({} tensors equal to their source digests)",
            report.exact.name(),
            report.exact_checked
        ))?;
    }
    if let Some(Ok(signed)) = signature {
        let comment = signed.comment.escape_debug();
        console.print(format!("signature ok (key {}: {comment})", signed.key_id))?;
    }
    console.print(match (report.failures.is_empty(), compared) {
        (false, _) => "NOT OK",
        (true, Check::Ok) => "consistent, and in agreement with what was given",
        (true, _) => "consistent, not authenticated (give --root, --against or --key to compare)",
    })
}
