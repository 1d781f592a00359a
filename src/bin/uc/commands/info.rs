//! `uc info`.

use serde_json::json;
use ultracompress::import::PackStats;
use ultracompress::manifest::ShardFile;
use ultracompress::receipt::{self, CheckedReceipt};
use ultracompress::{Container, Encoding, Input, Pack, TensorEntry};

use super::{Outcome, rate, size};
use crate::args::Info;
use crate::console::Console;

fn stored_bytes(t: &TensorEntry) -> u64 {
    t.parts.iter().map(|p| p.stored_len).sum()
}

/// The shards, as the index file lists them; nothing for a pack of one file.
fn shards(pack: &Pack<Input>) -> serde_json::Value {
    let Some(index) = pack.shard_index() else { return json!(null) };
    let shard = |(listed, c): (&ShardFile, &Container<Input>)| {
        json!({
            "file": listed.file, "bytes": c.preamble().file_len, "tensors": c.tensors().len(),
            "stored_root": listed.stored_root, "decoded_root": listed.decoded_root,
        })
    };
    index.shards.iter().zip(pack.containers()).map(shard).collect()
}

/// A receipt, as JSON: what it was measured with, and its headline if that follows from its rows.
fn receipt_json(r: &CheckedReceipt) -> serde_json::Value {
    match &r.record {
        Ok(record) => json!({
            "name": r.name, "ok": true, "rung": record.model.rung, "body_bpw": record.model.body_bpw,
            "text_sha256": record.text.sha256, "tokens": record.protocol.tokens,
            "headline": record.headline,
        }),
        Err(reason) => json!({ "name": r.name, "ok": false, "reason": reason }),
    }
}

/// A receipt in a line.
fn receipt_line(r: &CheckedReceipt) -> String {
    let name = &r.name;
    let record = match &r.record {
        Ok(record) => record,
        Err(reason) => return format!("receipt {name} does not hold: {reason}\n"),
    };
    let rung = record.model.rung.map_or(String::new(), |n| format!("rung {n}, "));
    let tokens = record.protocol.tokens;
    let figures = ["kld_mean", "ppl_ratio", "cosine_pooled_mean", "cosine_hidden_mean"];
    let show = |name: &&str| Some(format!("{name} {:.6}", record.figure(name)?));
    let figures: Vec<String> = figures.iter().filter_map(show).collect();
    format!("receipt {name}: {rung}{} over {tokens} tokens\n", figures.join(", "))
}

pub fn run(args: &Info, console: &Console) -> Outcome {
    let file = args.file.display().to_string();
    let pack = Pack::open_path(&args.file)?;
    let p = pack.containers()[0].preamble();
    // A shard that isn't the first has none.
    let manifest = (p.shard_number == 1).then(|| pack.manifest()).transpose()?;
    let attachments = pack.attachments()?;
    let receipts = receipt::check(&attachments, pack.stored_root(), pack.decoded_root());
    let stats = PackStats::of(&pack);
    let source = |name: &str| manifest.as_ref().and_then(|m| m.tensors.get(name));
    let encoder = manifest.as_ref().map(|m| m.encoder.as_str());
    let licence = manifest.as_ref().and_then(|m| m.licence.as_deref());
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
                let source = source(&e.name);
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
            .files()
            .iter()
            .map(|f| json!({ "path": f.path, "bytes": f.len, "sha256": f.sha256.to_string() }))
            .collect();
        let mut all = json!({
            "format_version": version,
            "file_bytes": pack.bytes(),
            "shards": shards(&pack),
            "weights": stats.weights,
            "body_weights": stats.body_weights,
            "body_bpw": stats.body_bpw,
            "file_bpw": stats.file_bpw,
            "stored_root": pack.stored_root().to_string(),
            "decoded_root": pack.decoded_root().to_string(),
            "encoder": encoder,
            "licence": licence,
            "recipe": manifest.as_ref().map(|m| &m.recipe),
            "source_files": manifest.as_ref().map(|m| &m.files),
            "carried_files": files,
            "receipts": receipts.iter().map(receipt_json).collect::<Vec<_>>(),
            "attachments": attachments.iter().map(|a| &a.name).collect::<Vec<_>>(),
        });
        // Moved, not copied: a pack may have a hundred thousand.
        all["tensors"] = tensors.into();
        console.print_json(&all)?;
        return Ok(0);
    }
    let part = match (pack.shard_index(), p.shard_count) {
        (Some(index), _) => format!(" in {} shards", index.shards.len()),
        (None, 1) => String::new(),
        (None, n) => format!(", shard {} of {n}", p.shard_number),
    };
    console.print(format!(
        "{file}: UltraCompress format {version}, {}{part}\n{} tensors, {} weights; body {} bpw, file {} bpw",
        size(pack.bytes()),
        stats.tensors,
        stats.weights,
        rate(stats.body_bpw),
        rate(stats.file_bpw),
    ))?;
    if let Some(encoder) = encoder {
        let licence = licence.unwrap_or("not declared");
        console.print(format!("encoder {encoder}, licence {licence}"))?;
    }
    console.print(format!(
        "stored root  {}\ndecoded root {}\n",
        pack.stored_root(),
        pack.decoded_root()
    ))?;
    let width = pack.tensors().map(|t| t.name().len()).max().unwrap_or(0);
    // One write for all lines.
    let mut lines = String::new();
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
        let (dtype, role, bytes) = (e.dtype.name(), e.role.name(), stored_bytes(e));
        let name = &e.name;
        lines +=
            &format!("{name:width$}  {dtype:5} {shape:18} {role:9} {bytes:>11} bytes  {how}\n");
    }
    for f in pack.files() {
        lines += &format!("carries {} ({} bytes)\n", f.path, f.len);
    }
    for a in &attachments {
        lines += &format!("attached {:?} {} ({} bytes)\n", a.kind, a.name, a.data.len());
    }
    receipts.iter().for_each(|r| lines += &receipt_line(r));
    console.print(lines.trim_end())?;
    Ok(0)
}
