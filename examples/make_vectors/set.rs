//! The vectors that were made, and the levels at which each must pass (spec/conformance.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ultracompress::Digest;

use super::file::{File, hex};

/// The level of conformance that a rule comes with (spec/conformance.md). `rule` has no `UC-`.
pub fn level_of(rule: &str) -> &'static str {
    let (page, number) = rule.rsplit_once('-').unwrap_or((rule, ""));
    match (page, number) {
        ("HDR", "10") | ("EXA", "26") => "write",
        ("HDR", "15") | ("TEN", "5") | ("PRT", "21") | ("SHD", "6" | "7" | "17" | "18" | "19") => {
            "verify"
        }
        ("EXA", "11" | "12" | "30") | ("OVL", "9" | "19") => "verify",
        ("ROOT" | "MAN" | "ATT" | "RCP", _) => "verify",
        ("EXA", _) => "exact",
        ("OVL", _) => "overlay",
        _ => "read",
    }
}

/// Vectors that break a rule of one level where a reader of that level doesn't look.
const SEEN_AT: [(&str, &str); 9] = [
    // Nobody reads the checksums of what is skipped but a verifier.
    ("skipped-record-crc", "verify"),
    ("skipped-part-crc", "verify"),
    // No value depends on what an overlay says of itself.
    ("overlay-info-spaces", "verify"),
    ("overlay-info-array", "verify"),
    ("overlay-info-fraction", "verify"),
    // Records that a reader of fewer levels skips.
    ("model-parts", "exact"),
    ("residual-plane", "exact"),
    ("overlay-zstd", "overlay"),
    // The preamble shows it.
    ("attachments-unaligned", "read"),
];

/// The levels at which a vector must pass, each with all that it takes in.
fn levels(
    folder: &str,
    id: &str,
    rules: &[String],
    expect: &str,
    input: &Value,
) -> Vec<&'static str> {
    let required = input.as_str().and_then(|hex| hex.get(32..34)).unwrap_or("00");
    let by_rules = rules.iter().map(|r| level_of(r.trim_start_matches("UC-")));
    let mut own: Vec<&str> = match (folder, required) {
        ("manifest" | "receipt", _) => vec!["verify"],
        // Readers that don't know these features refuse the file.
        ("container/valid" | "container/invalid", "01") => vec!["exact"],
        ("container/valid" | "container/invalid", "04") => vec!["overlay"],
        _ => vec!["read"],
    };
    if expect != "ok" {
        match SEEN_AT.iter().find(|(vector, _)| *vector == id) {
            Some((_, level)) => own = vec![level],
            None => own.extend(by_rules),
        }
    }
    let has = |level| own.contains(&level);
    let verify = has("verify") || has("exact") && has("overlay");
    let mut all = match (verify, has("exact"), has("overlay")) {
        (true, ..) => vec!["verify"],
        (_, true, _) => vec!["exact", "verify"],
        (.., true) => vec!["overlay", "verify"],
        _ => vec!["read", "exact", "overlay", "verify"],
    };
    // A writer makes canonical JSON.
    if folder == "manifest" && expect == "ok" {
        all.push("write");
    }
    all
}

#[derive(Default)]
pub struct VectorSet(BTreeMap<PathBuf, String>);

impl VectorSet {
    /// Path below `spec/vectors` and text of each.
    pub fn into_files(self) -> BTreeMap<PathBuf, String> {
        self.0
    }

    #[allow(clippy::too_many_arguments, reason = "the members of a vector")]
    pub fn add(
        &mut self,
        folder: &str,
        id: &str,
        rules: &[&str],
        comment: &str,
        flags: &[&str],
        input: Value,
        expect: &str,
        output: Option<Value>,
    ) {
        let rules = rules.iter().flat_map(|r| r.split(' '));
        let rules: Vec<String> = rules.map(|r| format!("UC-{r}")).collect();
        let levels = levels(folder, id, &rules, expect, &input);
        let mut vector = json!({
            "id": id, "rule": rules, "comment": comment, "flags": flags, "input": input,
            "expect": expect, "levels": levels,
        });
        if let Some(output) = output {
            vector["output"] = output;
        }
        let text = format!("{vector:#}\n");
        let old = self.0.insert(Path::new(folder).join(format!("{id}.json")), text);
        assert!(old.is_none(), "two vectors are called {id}");
    }

    pub fn valid(&mut self, id: &str, rules: &[&str], comment: &str, file: &File) {
        self.valid_with(id, rules, comment, file, None);
    }

    /// As [`VectorSet::valid`], with what overlays lead to.
    pub fn valid_with(
        &mut self,
        id: &str,
        rules: &[&str],
        comment: &str,
        file: &File,
        overlays: Option<Value>,
    ) {
        let bytes = file.bytes();
        let tensors: serde_json::Map<String, Value> = file
            .records
            .iter()
            .filter_map(|r| {
                let t = r.tensor.as_ref()?;
                let mut entry = json!({
                    "dtype": t.dtype.name(), "shape": t.shape, "sha256": Digest::of(&t.decoded).to_string(),
                });
                if t.decoded.len() <= 4096 {
                    entry["bytes"] = hex(&t.decoded).into();
                }
                if let Some(exact) = t.exact.as_ref().filter(|e| e.len() <= 4096) {
                    entry["exact"] = hex(exact).into();
                }
                for (rung, bytes) in &t.rungs {
                    entry["rungs"][rung.to_string()] = hex(bytes).into();
                }
                for (dtype, bytes) in &t.targets {
                    entry["targets"][*dtype] = hex(bytes).into();
                }
                Some((String::from_utf8(r.name.clone()).expect("valid name"), entry))
            })
            .collect();
        let mut output = json!({
            "stored_root": hex(&bytes[128..160]),
            "decoded_root": hex(&bytes[96..128]),
            "tensors": tensors,
        });
        if let Some(overlays) = overlays {
            output["overlays"] = overlays;
        }
        // What is skipped is not decompressed.
        let known = file.records.iter().filter(|r| r.kind <= 6).flat_map(|r| &r.parts);
        let zstd = known.filter(|p| p.kind == 1).any(|p| p.storage == 1);
        let flags: &[&str] = if zstd { &["zstd"] } else { &[] };
        self.add(
            "container/valid",
            id,
            rules,
            comment,
            flags,
            hex(&bytes).into(),
            "ok",
            Some(output),
        );
    }

    pub fn invalid(&mut self, id: &str, rules: &[&str], comment: &str, expect: &str, bytes: &[u8]) {
        self.add("container/invalid", id, rules, comment, &[], hex(bytes).into(), expect, None);
    }
}
