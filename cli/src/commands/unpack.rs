//! `uc unpack`.

use serde_json::json;
use ultracompress::unpack::UnpackOptions;
use ultracompress::{Limits, Pack};

use crate::args::Unpack;
use crate::console::Console;
use crate::support::{Outcome, check_distinct, check_free_disk, max_ram, size};

pub fn run(args: &Unpack, console: &mut Console) -> Outcome {
    let file = args.file.display().to_string();
    let max_ram = max_ram(&args.memory);
    let options = UnpackOptions::new()
        .with_dtype(args.dtype.dtype())
        .with_planes(args.rung)
        .with_exact(args.exact)
        .with_overlays(!args.no_overlays)
        .with_tensors(args.tensor.clone())
        .with_force(args.force)
        .with_max_ram(max_ram);
    // Of a sharded pack only what is needed, which is much where it is far away.
    let wanted = options.wanted()?;
    let pack = Pack::open_with(&args.file, wanted, Limits::within(max_ram))?;
    check_distinct(&args.file, &args.output)?;
    let bytes = options.output_bytes(&pack)?;
    check_free_disk(&args.output, bytes)?;
    console.start("unpacking", bytes);
    let report = options.unpack_with(&pack, &args.output, console).map_err(|e| e.in_file(&file))?;
    console.finish();
    if console.json {
        console.print_json(&json!({
            "output": args.output.display().to_string(),
            "tensors": report.tensors,
            "bytes": report.bytes,
            "decoded_root": report.decoded_root.to_string(),
            "tensors_compared": report.compared,
            "overlays": report.overlays,
            "files_recreated": report.files_recreated,
        }))?;
    } else {
        console.print(format!(
            "{}: {} tensors, {}; {} compared with their digests\ndecoded root {}",
            args.output.display(),
            report.tensors,
            size(report.bytes),
            report.compared,
            report.decoded_root,
        ))?;
        if report.overlays > 0 {
            console.print(format!("with {} overlays of the pack", report.overlays))?;
        }
        if args.exact {
            console.print(format!(
                "{} weights files are the source's, byte for byte",
                report.files_recreated
            ))?;
        }
    }
    Ok(0)
}
