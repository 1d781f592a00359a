//! `uc receipt`.

use serde_json::json;
use ultracompress::edit::add_receipt;
use ultracompress::receipt::{self, CheckedReceipt};
use ultracompress::{Error, ErrorKind, EvalRecord, Pack};

use crate::args::Receipt;
use crate::console::Console;
use crate::exit::MISMATCH;
use crate::support::{Outcome, check_distinct, check_free_disk};

/// Largest record that is read.
const MOST_BYTES: u64 = 16 << 20;

pub fn run(args: &Receipt, console: &mut Console) -> Outcome {
    match args {
        Receipt::Add { pack, record, output, force } => {
            let locate = |e: Error| e.in_file(record.display().to_string());
            let io = |e| locate(Error::new(ErrorKind::Io, format!("can't read: {e}")));
            let len = std::fs::metadata(record).map_err(io)?.len();
            if len > MOST_BYTES {
                let text = format!("{len} bytes, a receipt has at most {MOST_BYTES}");
                return Err(locate(Error::new(ErrorKind::Source, text)));
            }
            let bytes = std::fs::read(record).map_err(io)?;
            EvalRecord::parse(&bytes).map_err(locate)?;
            check_distinct(pack, output)?;
            let file = Pack::open_path(pack)?;
            check_free_disk(output, file.bytes() + len)?;
            console.start("copying", file.bytes());
            let name = add_receipt(&file, &bytes, output, *force, console)?;
            console.finish();
            if console.json {
                console.print_json(&json!({
                    "output": output.display().to_string(),
                    "receipt": name,
                    "stored_root": file.stored_root().to_string(),
                    "decoded_root": file.decoded_root().to_string(),
                }))?;
            } else {
                console.print(format!("{}: attached {name}", output.display()))?;
            }
            Ok(0)
        }
        Receipt::Check { pack } => {
            let name = pack.display().to_string();
            let file = Pack::open_path(pack)?;
            let attachments = file.attachments()?;
            let found = receipt::check(&attachments, file.stored_root(), file.decoded_root());
            if found.is_empty() {
                let e = Error::new(ErrorKind::Source, "there is no receipt to check");
                return Err(e.in_file(name));
            }
            show(&found, console)?;
            Ok(if found.iter().all(|r| r.record.is_ok()) { 0 } else { MISMATCH })
        }
    }
}

fn show(found: &[CheckedReceipt], console: &Console) -> Result<(), Error> {
    if console.json {
        let receipt = |r: &CheckedReceipt| {
            json!({
                "name": r.name,
                "sha256": r.sha256.to_string(),
                "headline": if r.record.is_ok() { "ok" } else { "mismatch" },
                "reason": r.record.as_ref().err(),
                "figures": r.record.as_ref().ok().map(|record| &record.headline),
            })
        };
        return console
            .print_json(&json!({ "receipts": found.iter().map(receipt).collect::<Vec<_>>() }));
    }
    for r in found {
        match &r.record {
            Ok(record) => {
                let sequences = record.protocol.sequences;
                console.print(format!("{}: ok, recomputed from {sequences} sequences", r.name))?;
            }
            Err(reason) => console.print(format!("{}: mismatch: {reason}", r.name))?,
        }
    }
    Ok(())
}
