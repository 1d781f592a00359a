//! `uc info`.

use serde_json::{Value, json};
use ultracompress::format::{Attachment, PartKind, TreeHasher, tensor_leaf};
use ultracompress::manifest::PackStats;
use ultracompress::manifest::ShardFile;
use ultracompress::receipt::{self, CheckedReceipt};
use ultracompress::{
    Container, Digest, Encoding, Error, EvalRecord, Input, Manifest, Pack, TensorEntry,
};

use super::overlay::{overlay_json, overlay_line};
use crate::args::Info;
use crate::console::Console;
use crate::support::{Outcome, rate, size};

fn stored_bytes(t: &TensorEntry) -> u64 {
    t.parts.iter().map(|p| p.stored_len).sum()
}

/// The shards, as the index file lists them; nothing for a pack of one file.
fn shards(pack: &Pack<Input>) -> Value {
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
fn receipt_json(r: &CheckedReceipt) -> Value {
    match &r.record {
        Ok(record) => json!({
            "name": r.name, "ok": true, "rung": record.model.rung,
            "effective_root": record.model.effective_root, "body_bpw": record.model.body_bpw,
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
    let overlaid = record.model.effective_root.is_some();
    let rung = match record.model.rung {
        Some(n) => format!("rung {n}, "),
        None if overlaid => "with overlays, ".to_owned(),
        None => String::new(),
    };
    let tokens = record.protocol.tokens;
    let figures = ["kld_mean", "ppl_ratio", "cosine_pooled_mean", "cosine_hidden_mean"];
    let show = |name: &&str| Some(format!("{name} {:.6}", record.figure(name)?));
    let figures: Vec<String> = figures.iter().filter_map(show).collect();
    format!("receipt {name}: {rung}{} over {tokens} tokens\n", figures.join(", "))
}

/// Whether a residual leads to the source's bits of a tensor, or of the one that it is an alias of.
fn has_residual(pack: &Pack<Input>, t: &TensorEntry) -> bool {
    let of = |t: &TensorEntry| t.parts.iter().any(|p| p.kind == PartKind::Residual);
    match t.encoding.alias_target() {
        Some(target) => pack.tensor(target).is_some_and(|t| of(t.entry())),
        None => of(t),
    }
}

/// One rung of the pack: what a reader that stops there fetches and gets.
struct Rung {
    /// Planes of each row, or nothing for the exact one.
    planes: Option<u8>,
    /// Stored bytes of all tensors, as far as they are read.
    bytes: u64,
    body_bpw: Option<f64>,
    decoded_root: Option<String>,
    /// Mean KL divergence by a receipt.
    kld_mean: Option<f64>,
}

/// The rungs of a pack, coarsest first.
fn rungs(
    pack: &Pack<Input>,
    manifest: Option<&Manifest>,
    receipts: &[CheckedReceipt],
) -> Vec<Rung> {
    let all = || pack.tensors().flat_map(|t| &t.entry().parts);
    let bytes = |rung: u8, exact: bool| {
        let read = all().filter(|p| match p.kind {
            PartKind::Plane(plane) => plane < rung,
            PartKind::Residual => exact || !p.optional,
            _ => true,
        });
        read.map(|p| p.stored_len).sum()
    };
    let top = all().filter_map(|p| match p.kind {
        PartKind::Plane(plane) => Some(plane + 1),
        _ => None,
    });
    let Some(top) = top.max() else { return vec![] };
    let kld = |rung: u8| {
        let records = receipts.iter().filter_map(|r| r.record.as_ref().ok());
        let own = |n: Option<u8>| n.unwrap_or(8).min(top) == rung;
        let base = |r: &&EvalRecord| r.model.effective_root.is_none();
        let mut found = records.filter(base).filter(|r| own(r.model.rung));
        found.find_map(|r| r.figure("kld_mean"))
    };
    let rung = |planes: u8| Rung {
        planes: Some(planes),
        bytes: bytes(planes, false),
        body_bpw: PackStats::at_rung(pack, planes).body_bpw,
        decoded_root: match planes == top {
            true => Some(pack.decoded_root().to_string()),
            false => manifest.and_then(|m| m.rungs.get(&planes.to_string()).cloned()),
        },
        kld_mean: kld(planes),
    };
    let mut rungs: Vec<_> = (3..=top).map(rung).collect();
    if all().any(|p| p.kind == PartKind::Residual) {
        let (bytes, kld_mean) = (bytes(8, true), Some(0.0));
        let decoded_root = exact_root(pack, manifest);
        rungs.push(Rung { planes: None, bytes, body_bpw: None, decoded_root, kld_mean });
    }
    rungs
}

/// The decoded root of the source, when all its bits are in the pack: that over the source digests
/// of the manifest.
fn exact_root(pack: &Pack<Input>, manifest: Option<&Manifest>) -> Option<String> {
    let manifest = manifest?;
    let mut tree = TreeHasher::new();
    for t in pack.tensors() {
        let source = Digest::from_hex(&manifest.tensors.get(t.name())?.sha256)?;
        if source != t.entry().decoded_sha256 && !has_residual(pack, t.entry()) {
            return None;
        }
        tree.push(tensor_leaf(t.name(), t.dtype(), t.shape(), source));
    }
    Some(tree.root().to_string())
}

fn rung_json(r: &Rung) -> Value {
    json!({
        "rung": r.planes.map_or(json!("exact"), |n| json!(n)), "bytes": r.bytes, "body_bpw": r.body_bpw,
        "decoded_root": r.decoded_root, "kld_mean": r.kld_mean,
    })
}

fn rung_line(r: &Rung) -> String {
    let name = r.planes.map_or("exact".to_owned(), |n| n.to_string());
    let bpw = r.body_bpw.map_or(String::new(), |b| format!("  body {b:.4} bpw"));
    let kld = match (r.planes, r.kld_mean) {
        (None, _) => "  the source, bit for bit".to_owned(),
        (_, Some(kld)) => format!("  KL {kld:.6}"),
        (_, None) => "  not evaluated".to_owned(),
    };
    let root =
        r.decoded_root.as_ref().map_or(String::new(), |root| format!("  decoded root {root}"));
    format!("rung {name:5} {:>12} bytes{bpw}{kld}{root}\n", r.bytes)
}

/// A pack, with what both forms of the output say of it.
struct Facts<'a> {
    pack: &'a Pack<Input>,
    /// A shard that isn't the first has none.
    manifest: Option<Manifest>,
    attachments: Vec<Attachment>,
    receipts: Vec<CheckedReceipt>,
    stats: PackStats,
}

impl<'a> Facts<'a> {
    fn of(pack: &'a Pack<Input>) -> Result<Self, Error> {
        let is_first = pack.containers()[0].preamble().shard_number == 1;
        let manifest = is_first.then(|| pack.manifest()).transpose()?;
        let attachments = pack.attachments()?;
        let receipts = receipt::check(&attachments, pack.stored_root(), pack.decoded_root());
        Ok(Self { pack, manifest, attachments, receipts, stats: PackStats::of(pack) })
    }

    fn version(&self) -> String {
        let p = self.pack.containers()[0].preamble();
        format!("{}.{}", p.format_major, p.format_minor)
    }

    fn encoder(&self) -> Option<&str> {
        self.manifest.as_ref().map(|m| m.encoder.as_str())
    }

    fn licence(&self) -> Option<&str> {
        self.manifest.as_ref().and_then(|m| m.licence.as_deref())
    }

    fn rungs(&self) -> Vec<Rung> {
        rungs(self.pack, self.manifest.as_ref(), &self.receipts)
    }

    fn json(&self) -> Result<Value, Error> {
        let (pack, stats, manifest) = (self.pack, &self.stats, self.manifest.as_ref());
        let files = pack.files().iter();
        let files = files
            .map(|f| json!({ "path": f.path, "bytes": f.len, "sha256": f.sha256.to_string() }));
        let overlays = pack.overlays();
        let overlays: Vec<_> =
            overlays.iter().map(|o| overlay_json(o)).collect::<Result<_, _>>()?;
        let mut all = json!({
            "format_version": self.version(),
            "file_bytes": pack.bytes(),
            "shards": shards(pack),
            "weights": stats.weights,
            "body_weights": stats.body_weights,
            "body_bpw": stats.body_bpw,
            "file_bpw": stats.file_bpw,
            "stored_root": pack.stored_root().to_string(),
            "decoded_root": pack.decoded_root().to_string(),
            "effective_root": pack.effective_root().map(|root| root.to_string()),
            "overlay_bpw": stats.overlay_bpw,
            "overlays": overlays,
            "exact_root": exact_root(pack, manifest),
            "encoder": self.encoder(),
            "licence": self.licence(),
            "recipe": manifest.map(|m| &m.recipe),
            "source_files": manifest.map(|m| &m.files),
            "carried_files": files.collect::<Vec<_>>(),
            "rungs": self.rungs().iter().map(rung_json).collect::<Vec<_>>(),
            "receipts": self.receipts.iter().map(receipt_json).collect::<Vec<_>>(),
            "attachments": self.attachments.iter().map(|a| &a.name).collect::<Vec<_>>(),
        });
        // Moved, not copied: a pack may have a hundred thousand.
        all["tensors"] = pack.tensors().map(|t| self.tensor_json(t.entry())).collect();
        Ok(all)
    }

    fn tensor_json(&self, t: &TensorEntry) -> Value {
        let (planes, group, target) = match &t.encoding {
            Encoding::Planes { planes: Some(n), group, .. } => (json!(n), Some(*group), None),
            Encoding::Planes { group, .. } => (json!("per_row"), Some(*group), None),
            Encoding::Alias { target } => (json!(null), None, Some(target)),
            Encoding::Raw | Encoding::Coded { .. } => (json!(null), None, None),
        };
        let source = self.manifest.as_ref().and_then(|m| m.tensors.get(&t.name));
        json!({
            "name": t.name, "dtype": t.dtype.name(), "shape": t.shape, "role": t.role.name(),
            "encoding": t.encoding.name(), "planes": planes, "group": group,
            "alias_of": target,
            "stored_bytes": stored_bytes(t),
            "decoded_sha256": t.decoded_sha256.to_string(),
            "source_sha256": source.map(|s| &s.sha256),
            "exact": source.is_some_and(|s| s.sha256 == t.decoded_sha256.to_string())
                || has_residual(self.pack, t),
            "reason": source.map(|s| &s.reason),
        })
    }

    fn print(&self, file: &str, console: &Console) -> Result<(), Error> {
        let pack = self.pack;
        console.print(self.summary(file))?;
        if let Some(encoder) = self.encoder() {
            let licence = self.licence().unwrap_or("not declared");
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
        self.rungs().iter().for_each(|r| lines += &rung_line(r));
        pack.overlays().iter().for_each(|o| lines += &overlay_line(o));
        lines += "\n";
        pack.tensors().for_each(|t| lines += &tensor_line(t.entry(), width));
        for f in pack.files() {
            lines += &format!("carries {} ({} bytes)\n", f.path, f.len);
        }
        for a in &self.attachments {
            lines += &format!("attached {:?} {} ({} bytes)\n", a.kind, a.name, a.data.len());
        }
        self.receipts.iter().for_each(|r| lines += &receipt_line(r));
        console.print(lines.trim_end())
    }

    /// What the pack is and how large, in two lines.
    fn summary(&self, file: &str) -> String {
        let (pack, stats) = (self.pack, &self.stats);
        let p = pack.containers()[0].preamble();
        let part = match (pack.shard_index(), p.shard_count) {
            (Some(index), _) => format!(" in {} shards", index.shards.len()),
            (None, 1) => String::new(),
            (None, n) => format!(", shard {} of {n}", p.shard_number),
        };
        format!(
            "{file}: UltraCompress format {}, {}{part}\n{} tensors, {} weights; body {} bpw, file {} bpw",
            self.version(),
            size(pack.bytes()),
            stats.tensors,
            stats.weights,
            rate(stats.body_bpw),
            rate(stats.file_bpw),
        )
    }
}

/// A tensor in a line, its name padded to `width`.
fn tensor_line(t: &TensorEntry, width: usize) -> String {
    let how = match &t.encoding {
        Encoding::Planes { planes, group, .. } => {
            let planes = planes.map_or("per row".to_owned(), |n| n.to_string());
            format!("planes {planes}, group {group}")
        }
        Encoding::Raw | Encoding::Coded { .. } => t.encoding.name().to_owned(),
        Encoding::Alias { target } => format!("alias of {target}"),
    };
    let shape = format!("{:?}", t.shape);
    let (name, dtype, role, bytes) = (&t.name, t.dtype.name(), t.role.name(), stored_bytes(t));
    format!("{name:width$}  {dtype:5} {shape:18} {role:9} {bytes:>11} bytes  {how}\n")
}

pub fn run(args: &Info, console: &Console) -> Outcome {
    let pack = Pack::open_path(&args.file)?;
    let facts = Facts::of(&pack)?;
    if console.json {
        console.print_json(&facts.json()?)?;
    } else {
        facts.print(&args.file.display().to_string(), console)?;
    }
    Ok(0)
}
