//! `uc reshard`.

use serde_json::json;
use ultracompress::Pack;
use ultracompress::edit::ReshardOptions;

use crate::args::Reshard;
use crate::console::Console;
use crate::support::{Outcome, check_distinct, check_free_disk, files_json, output_name, size};

pub fn run(args: &Reshard, console: &mut Console) -> Outcome {
    let pack = Pack::open_path(&args.file)?;
    check_distinct(&args.file, &args.output)?;
    check_free_disk(&args.output, pack.bytes())?;
    console.start("copying", pack.bytes());
    let options = ReshardOptions::new().with_shard_size(args.shard_size).with_force(args.force);
    let report = options.reshard_with(&pack, &args.output, console)?;
    console.finish();
    if console.json {
        console.print_json(&json!({
            "output": output_name(&report.files),
            "files": files_json(&report.files),
            "stored_root": report.stored_root.to_string(),
            "decoded_root": report.decoded_root.to_string(),
        }))?;
    } else {
        for (path, bytes) in &report.files {
            console.print(format!("{}: {}", path.display(), size(*bytes)))?;
        }
        console.print(format!(
            "stored root  {}\ndecoded root {}",
            report.stored_root, report.decoded_root
        ))?;
    }
    Ok(0)
}
