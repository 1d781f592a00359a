//! `uc overlay`.

use std::path::Path;

use serde_json::{Value, json};
use ultracompress::edit::{OverlayOptions, OverlayReport, read_lora};
use ultracompress::format::OverlayEntry;
use ultracompress::manifest::PackStats;
use ultracompress::manifest::overlay_info;
use ultracompress::{Error, ErrorKind, Input, Pack};

use crate::args::{Memory, Overlay};
use crate::console::Console;
use crate::support::{
    Outcome, check_distinct, check_free_disk, check_outside, files_json, max_ram, output_name,
    rate, size,
};

pub fn run(args: &Overlay, console: &mut Console) -> Outcome {
    match args {
        Overlay::Add { pack, overlay, lora, name, output, force, memory } => {
            let opened = Pack::open_path(pack)?;
            let inputs = [Some(pack), overlay.as_ref()].into_iter().flatten();
            inputs.into_iter().try_for_each(|input| check_distinct(input, output))?;
            let options = options(*force, memory);
            start(&opened, output, console)?;
            let report = match (lora, overlay) {
                (Some(folder), _) => {
                    check_outside(folder, output)?;
                    let own = folder.canonicalize().ok();
                    let own = own.as_deref().and_then(Path::file_name).and_then(|n| n.to_str());
                    let name = name.as_deref().or(own).ok_or_else(|| {
                        let text = "the folder has no name in UTF-8: give one with --name";
                        Error::new(ErrorKind::InvalidArgument, text)
                    })?;
                    let read = read_lora(folder, name, &opened)?;
                    if read.rounded > 0 {
                        console.say(format!(
                            "note: {} factors don't fit binary16 exactly; the largest error is {:.1e} of the largest factor",
                            read.rounded, read.largest_error
                        ));
                    }
                    for name in &read.left_out {
                        console.say(format!(
                            "note: {name} is a copy of the base's own weights: left out"
                        ));
                    }
                    options.add(&opened, &[read.overlay], output, console)?
                }
                (None, Some(file)) => {
                    let from = Pack::open_path(file)?;
                    options.add_from(&opened, &from, name.as_deref(), output, console)?
                }
                (None, None) => {
                    let text = "nothing to add: name a file of overlays, or a folder with --lora";
                    return Err(Error::new(ErrorKind::InvalidArgument, text));
                }
            };
            done(&report, console)
        }
        Overlay::Remove { pack, name, output, force, memory } => {
            let opened = Pack::open_path(pack)?;
            check_distinct(pack, output)?;
            start(&opened, output, console)?;
            done(&options(*force, memory).remove(&opened, name, output, console)?, console)
        }
        Overlay::Export { pack, name, output, force, memory } => {
            let opened = Pack::open_path(pack)?;
            check_distinct(pack, output)?;
            start(&opened, output, console)?;
            done(&options(*force, memory).export(&opened, name, output, console)?, console)
        }
        Overlay::List { file } => list(file, console),
    }
}

fn options(force: bool, memory: &Memory) -> OverlayOptions {
    OverlayOptions::new().with_force(force).with_max_ram(max_ram(memory))
}

fn start(pack: &Pack<Input>, output: &Path, console: &mut Console) -> Result<(), Error> {
    check_free_disk(output, pack.bytes())?;
    console
        .start("decoding", pack.tensors().filter_map(|t| t.dtype().tensor_bytes(t.shape())).sum());
    Ok(())
}

fn done(report: &OverlayReport, console: &mut Console) -> Outcome {
    console.finish();
    let effective = report.effective_root.map(|root| root.to_string());
    if console.json {
        console.print_json(&json!({
            "output": output_name(&report.files),
            "files": files_json(&report.files),
            "overlays": report.overlays,
            "stored_root": report.stored_root.to_string(),
            "decoded_root": report.decoded_root.to_string(),
            "effective_root": effective,
        }))?;
        return Ok(0);
    }
    let names = match report.overlays.is_empty() {
        true => "no overlays".to_owned(),
        false => format!("overlays {}", report.overlays.join(", ")),
    };
    console.print(format!(
        "{}: {}; {names}\nstored root    {}\ndecoded root   {}",
        output_name(&report.files),
        size(report.files.iter().map(|(_, bytes)| bytes).sum()),
        report.stored_root,
        report.decoded_root,
    ))?;
    if let Some(root) = effective {
        console.print(format!("effective root {root}"))?;
    }
    Ok(0)
}

/// An overlay, as JSON.
pub fn overlay_json(overlay: &OverlayEntry) -> Result<Value, Error> {
    let blocks = overlay.blocks.iter().map(|b| {
        json!({
            "tensor": b.tensor, "rank": b.rank, "factors": b.factors.name(), "bytes": b.bytes(),
            "effective_sha256": b.effective_sha256.to_string(),
        })
    });
    Ok(json!({
        "name": overlay.name,
        "order": overlay.order,
        "base_root": overlay.base_root.to_string(),
        "effective_root": overlay.effective_root.to_string(),
        "bytes": overlay.parts.iter().map(|p| p.stored_len).sum::<u64>(),
        "info": overlay_info(overlay)?,
        "tensors": blocks.collect::<Vec<_>>(),
    }))
}

/// An overlay in a line.
pub fn overlay_line(overlay: &OverlayEntry) -> String {
    let bytes = overlay.parts.iter().map(|p| p.stored_len).sum::<u64>();
    let ranks = overlay.blocks.iter().map(|b| u64::from(b.rank));
    #[allow(clippy::cast_precision_loss, reason = "for display")]
    let mean = ranks.sum::<u64>() as f64 / overlay.blocks.len() as f64;
    format!(
        "overlay {} {}: {} tensors, mean rank {mean:.1}, {bytes} bytes, effective root {}, for the base {}\n",
        overlay.order,
        overlay.name,
        overlay.blocks.len(),
        overlay.effective_root,
        overlay.base_root
    )
}

fn list(file: &Path, console: &Console) -> Outcome {
    let pack = Pack::open_path(file)?;
    let overlays = pack.overlays();
    let stats = PackStats::of(&pack);
    if console.json {
        let all = overlays.iter().map(|o| overlay_json(o)).collect::<Result<Vec<_>, _>>()?;
        console.print_json(&json!({
            "decoded_root": pack.decoded_root().to_string(),
            "body_bpw": stats.body_bpw,
            "overlay_bpw": stats.overlay_bpw,
            "overlays": all,
        }))?;
        return Ok(0);
    }
    let lines: String = overlays.iter().map(|o| overlay_line(o)).collect();
    let lines = if lines.is_empty() { "no overlays\n".to_owned() } else { lines };
    let rates =
        format!("overlays take {} of body {} bpw", rate(stats.overlay_bpw), rate(stats.body_bpw));
    console.print(lines + &rates)?;
    Ok(0)
}
