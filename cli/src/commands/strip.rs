//! `uc strip`.

use serde_json::json;
use ultracompress::Pack;
use ultracompress::edit::StripOptions;

use crate::args::Strip;
use crate::console::Console;
use crate::support::{Outcome, check_distinct, check_free_disk, files_json, output_name, size};

pub fn run(args: &Strip, console: &mut Console) -> Outcome {
    let pack = Pack::open_path(&args.file)?;
    check_distinct(&args.file, &args.output)?;
    check_free_disk(&args.output, pack.bytes())?;
    console.start("copying", pack.bytes());
    let options = StripOptions::new().with_force(args.force);
    let report = options.strip_with(&pack, &args.output, console)?;
    console.finish();
    if console.json {
        console.print_json(&json!({
            "output": output_name(&report.files),
            "files": files_json(&report.files),
            "residuals": report.residuals,
            "stored_root": report.stored_root.to_string(),
            "decoded_root": report.decoded_root.to_string(),
        }))?;
    } else {
        console.print(format!(
            "{}: {}; {} residuals left out\nstored root  {}\ndecoded root {}",
            output_name(&report.files),
            size(report.files.iter().map(|(_, bytes)| bytes).sum()),
            report.residuals,
            report.stored_root,
            report.decoded_root,
        ))?;
    }
    Ok(0)
}
