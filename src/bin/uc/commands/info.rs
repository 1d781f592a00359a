//! `uc info`.

use serde_json::json;
use ultracompress::import::PackStats;
use ultracompress::{Container, Encoding, Manifest, TensorEntry};

use super::{Outcome, rate, size};
use crate::args::Info;
use crate::console::Console;

fn stored_bytes(t: &TensorEntry) -> u64 {
    t.parts.iter().map(|p| p.stored_len).sum()
}

pub fn run(args: &Info, console: &Console) -> Outcome {
    let file = args.file.display().to_string();
    let pack = Container::open_path(&args.file)?;
    let manifest = Manifest::read(&pack).map_err(|e| e.in_file(&file))?;
    let attachments = pack.attachments().map_err(|e| e.in_file(&file))?;
    let p = pack.preamble();
    let stats = PackStats::of(pack.index(), p.file_len);
    let version = format!("{}.{}", p.format_major, p.format_minor);
    if console.json {
        let tensors: Vec<_> = pack
            .tensors()
            .map(|t| {
                let e = t.entry();
                let (planes, group, target) = match &e.encoding {
                    Encoding::Planes { planes: Some(n), group, .. } => (json!(n), Some(*group), None),
                    Encoding::Planes { group, .. } => (json!("per_row"), Some(*group), None),
                    Encoding::Alias { target } => (json!(null), None, Some(target)),
                    Encoding::Raw => (json!(null), None, None),
                };
                let source = manifest.tensors.get(&e.name);
                json!({
                    "name": e.name, "dtype": e.dtype.name(), "shape": e.shape, "role": e.role.name(),
                    "encoding": e.encoding.name(), "planes": planes, "group": group,
                    "alias_of": target,
                    "stored_bytes": stored_bytes(e),
                    "decoded_sha256": e.decoded_sha256.to_string(),
                    "source_sha256": source.map(|s| &s.sha256),
                    "exact": source.is_some_and(|s| s.sha256 == e.decoded_sha256.to_string()),
                    "reason": source.map(|s| &s.reason),
                })
            })
            .collect();
        let files: Vec<_> = pack
            .index()
            .files
            .iter()
            .map(|f| json!({ "path": f.path, "bytes": f.len, "sha256": f.sha256.to_string() }))
            .collect();
        console.print_json(&json!({
            "format_version": version,
            "file_bytes": p.file_len,
            "weights": stats.weights,
            "body_weights": stats.body_weights,
            "body_bpw": stats.body_bpw,
            "file_bpw": stats.file_bpw,
            "stored_root": p.stored_root.to_string(),
            "decoded_root": p.decoded_root.to_string(),
            "encoder": manifest.encoder,
            "licence": manifest.licence,
            "recipe": manifest.recipe,
            "source_files": manifest.files,
            "carried_files": files,
            "attachments": attachments.iter().map(|a| &a.name).collect::<Vec<_>>(),
            "tensors": tensors,
        }))?;
        return Ok(0);
    }
    console.print(format!(
        "{file}: UltraCompress format {version}, {}\n{} tensors, {} weights; body {} bpw, file {} bpw\nencoder {}, licence {}\nstored root  {}\ndecoded root {}\n",
        size(p.file_len),
        stats.tensors,
        stats.weights,
        rate(stats.body_bpw),
        rate(stats.file_bpw),
        manifest.encoder,
        manifest.licence.as_deref().unwrap_or("not declared"),
        p.stored_root,
        p.decoded_root,
    ))?;
    let width = pack.tensors().map(|t| t.name().len()).max().unwrap_or(0);
    for t in pack.tensors() {
        let e = t.entry();
        let how = match &e.encoding {
            Encoding::Planes { planes, group, .. } => {
                let planes = planes.map_or("per row".to_owned(), |n| n.to_string());
                format!("planes {planes}, group {group}")
            }
            Encoding::Raw => "raw".to_owned(),
            Encoding::Alias { target } => format!("alias of {target}"),
        };
        let shape = format!("{:?}", e.shape);
        console.print(format!(
            "{:width$}  {:5} {shape:18} {:9} {:>11} bytes  {how}",
            e.name,
            e.dtype.name(),
            e.role.name(),
            stored_bytes(e),
        ))?;
    }
    for f in &pack.index().files {
        console.print(format!("carries {} ({} bytes)", f.path, f.len))?;
    }
    for a in &attachments {
        console.print(format!("attached {:?} {} ({} bytes)", a.kind, a.name, a.data.len()))?;
    }
    Ok(0)
}
