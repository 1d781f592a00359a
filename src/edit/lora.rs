//! Adapters in PEFT's folder format (LoRA: Hu et al., 2021, arXiv:2106.09685) as overlays.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use half::f16;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::stack::{NewBlock, NewFactors, NewOverlay};
use crate::codec::read_f32;
use crate::container::TensorView;
use crate::error::{Error, Result};
use crate::format::{Digest, Dtype, MAX_OVERLAY_RANK};
use crate::manifest::Pack;
use crate::memory::to_usize;
use crate::source::read_header;
use crate::storage::ReadAt;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the model.
const PREFIX: &str = "base_model.model.";
/// Most bytes of a configuration.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most patterns of a configuration.
const MAX_PATTERNS: usize = 1000;

#[derive(Debug, Deserialize)]
struct Config {
    peft_type: String,
    r: u64,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(default)]
    alora_invocation_tokens: Option<Value>,
    #[serde(default)]
    layer_replication: Option<Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, u64>,
}

/// What was read of an adapter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoraReport {
    /// The overlay.
    pub overlay: NewOverlay,
    /// Factors that binary16 does not hold exactly.
    pub rounded: u64,
    /// The largest error of one of them, relative to the largest factor of its matrix.
    pub largest_error: f64,
    /// Copies of the base's own weights, which PEFT saves beside factors of embeddings: they are
    /// no part of the overlay.
    pub left_out: Vec<String>,
}

/// One matrix of an adapter.
struct Matrix {
    shape: [usize; 2],
    values: Vec<f32>,
}

/// Reads a PEFT folder with a LoRA adapter for the model in `pack`.
///
/// # Errors
/// `Source` for a folder that is no LoRA adapter, for kinds of it that aren't a product of two
/// factors (`DoRA`, trained biases or whole modules), and for modules that the pack doesn't have;
/// `Io`.
pub fn read_lora<R: ReadAt>(folder: &Path, name: &str, pack: &Pack<R>) -> Result<LoraReport> {
    let config_path = folder.join(CONFIG);
    let named = |e: Error, path: &Path| e.in_file(path.display().to_string());
    let (config, config_sha256) = read_config(&config_path).map_err(|e| named(e, &config_path))?;
    let path = folder.join(WEIGHTS);
    let (matrices, sha256) = read_matrices(&path).map_err(|e| named(e, &path))?;
    let mut report = LoraReport {
        overlay: NewOverlay { name: name.to_owned(), ..NewOverlay::default() },
        rounded: 0,
        largest_error: 0.0,
        left_out: vec![],
    };
    let patterns = Patterns::new(&config).map_err(|e| named(e, &config_path))?;
    let modules = pair_up(matrices, &mut report.left_out).map_err(|e| named(e, &path))?;
    for (module, (a, b, embedding)) in modules {
        let add = || -> Result<NewBlock> {
            let tensor = format!("{module}.weight");
            if pack.tensor(&tensor).is_none() {
                return Err(Error::source_file("the pack has no such tensor"));
            }
            let is_tied =
                |t: &TensorView<'_, R>| t.entry().encoding.alias_target() == Some(tensor.as_str());
            if let Some(alias) = pack.tensors().find(is_tied) {
                let text = format!("is tied to {}, which PEFT leaves as it is", alias.name());
                return Err(Error::source_file(text));
            }
            let scaling = patterns.scaling(&config, &module, a.shape[0])?;
            block(&config, tensor, a, b, embedding, scaling, &mut report)
        };
        let block = add().map_err(|e| named(e.in_tensor(&module), &path))?;
        report.overlay.blocks.push(block);
    }
    let mut info = Map::new();
    info.insert("kind".into(), json!("lora"));
    info.insert("config_sha256".into(), json!(config_sha256.to_string()));
    info.insert("weights_sha256".into(), json!(sha256.to_string()));
    info.insert("rounded_factors".into(), json!(report.rounded));
    report.overlay.info = info;
    Ok(report)
}

fn read_config(path: &Path) -> Result<(Config, Digest)> {
    let io = |e| Error::io("can't read", e);
    let file = File::open(path).map_err(io)?;
    let len = file.len_bytes()?;
    if len > MAX_CONFIG_BYTES {
        return Err(Error::source_file(format!("{len} bytes are no adapter's configuration")));
    }
    let mut json = vec![0; to_usize(len)?];
    file.read_exact_at(0, &mut json)?;
    let bad = |e: serde_json::Error| Error::source_file(e.to_string());
    let config: Config = serde_json::from_slice(&json).map_err(bad)?;
    let kind = config.peft_type.escape_debug();
    let refuse = |text: String| Err(Error::source_file(text));
    if config.peft_type != "LORA" {
        return refuse(format!("an adapter of type {kind}: only LORA can be imported"));
    }
    if config.use_dora {
        return refuse("DoRA changes norms of rows: it is no sum of base and product".into());
    }
    if config.bias.as_deref().is_some_and(|b| b != "none") {
        return refuse("biases were trained: they can't be part of an overlay".into());
    }
    // They start from a base that was changed for it.
    let changed = ["pissa", "olora", "corda", "loftq"];
    let init = config.init_lora_weights.as_str().unwrap_or("").to_ascii_lowercase();
    if changed.iter().any(|name| init.starts_with(name)) {
        return refuse(format!("initialised by {init}: it belongs to a base that was changed"));
    }
    if config.alora_invocation_tokens.is_some() {
        return refuse("it works behind some tokens only: it is no sum of base and product".into());
    }
    if config.layer_replication.is_some() {
        return refuse("it repeats layers of the base".into());
    }
    if config.alpha_pattern.len() + config.rank_pattern.len() > MAX_PATTERNS {
        return refuse(format!("more than {MAX_PATTERNS} patterns"));
    }
    if config.r == 0 || !config.lora_alpha.is_finite() {
        return refuse(format!("r is {}, lora_alpha {}", config.r, config.lora_alpha));
    }
    Ok((config, Digest::of(&json)))
}

/// Patterns of single modules, compiled.
struct Patterns {
    ranks: Vec<(Regex, u64)>,
    alphas: Vec<(Regex, f64)>,
}

impl Patterns {
    fn new(config: &Config) -> Result<Self> {
        Ok(Self { ranks: compile(&config.rank_pattern)?, alphas: compile(&config.alpha_pattern)? })
    }

    /// `alpha / r`, or by its root for rank-stabilised adapters, with the patterns of single
    /// modules.
    fn scaling(&self, config: &Config, module: &str, rank: usize) -> Result<f32> {
        let expected = pattern(&self.ranks, module).unwrap_or(config.r);
        if expected != rank as u64 {
            let text = format!("rank {rank}, the configuration says {expected}");
            return Err(Error::source_file(text));
        }
        let alpha = pattern(&self.alphas, module).unwrap_or(config.lora_alpha);
        #[allow(clippy::cast_precision_loss, reason = "small")]
        let rank = rank as f64;
        let scaling = alpha / if config.use_rslora { rank.sqrt() } else { rank };
        #[allow(clippy::cast_possible_truncation, reason = "stored as binary32")]
        Ok(scaling as f32)
    }
}

/// Patterns match at the end of a module's name, as PEFT has it.
fn compile<T: Copy>(patterns: &BTreeMap<String, T>) -> Result<Vec<(Regex, T)>> {
    let compile = |(pattern, value): (&String, &T)| {
        let end = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
        let end = end.map_err(|e| Error::source_file(format!("pattern {pattern:?}: {e}")))?;
        Ok((end, *value))
    };
    patterns.iter().map(compile).collect()
}

/// What applies to a module.
fn pattern<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

fn read_matrices(path: &Path) -> Result<(BTreeMap<String, Matrix>, Digest)> {
    let file = File::open(path).map_err(|e| Error::io("can't read", e))?;
    let header = read_header(&file)?;
    let mut all = BTreeMap::new();
    let mut bytes = crate::memory::reserve(to_usize(header.file_len)?)?;
    bytes.resize(to_usize(header.file_len)?, 0);
    file.read_exact_at(0, &mut bytes)?;
    for t in &header.tensors {
        let wrong = |text: String| Error::source_file(text).in_tensor(&t.name);
        let &[rows, cols] = &t.shape[..] else {
            return Err(wrong(format!("shape {:?}, a matrix is expected", t.shape)));
        };
        if !matches!(t.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
            return Err(wrong(format!("{} factors", t.dtype)));
        }
        let at = to_usize(t.offset)?;
        let len = to_usize(t.dtype.tensor_bytes(&t.shape).unwrap_or(u64::MAX))?;
        let own = bytes.get(at..).and_then(|b| b.get(..len));
        let own = own.ok_or_else(|| wrong("reaches beyond the file".into()))?;
        let mut values = vec![];
        read_f32(own, t.dtype, &mut values);
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(wrong(format!("factor {i} is {}", values[i])));
        }
        let shape = [to_usize(rows)?, to_usize(cols)?];
        all.insert(t.name.clone(), Matrix { shape, values });
    }
    Ok((all, Digest::of(&bytes)))
}

/// Both matrices of each module, and whether it is an embedding.
type Modules = BTreeMap<String, (Matrix, Matrix, bool)>;

fn pair_up(mut matrices: BTreeMap<String, Matrix>, left_out: &mut Vec<String>) -> Result<Modules> {
    let mut modules = Modules::new();
    let names: Vec<String> = matrices.keys().cloned().collect();
    for name in names {
        let ways = [
            (".lora_A.weight", ".lora_B.weight", false),
            (".lora_embedding_A", ".lora_embedding_B", true),
        ];
        let way = ways.iter().find_map(|(a, b, embedding)| {
            let module = name.strip_suffix(a)?;
            Some((module, format!("{module}{b}"), *embedding))
        });
        let Some((module, other, embedding)) = way else { continue };
        let b = matrices.remove(&other);
        let b = b.ok_or_else(|| Error::source_file("has no second factor").in_tensor(&name))?;
        let a = matrices.remove(&name).expect("listed above");
        let module = module.strip_prefix(PREFIX).unwrap_or(module);
        if modules.insert(module.to_owned(), (a, b, embedding)).is_some() {
            return Err(Error::source_file("is there twice").in_tensor(module));
        }
    }
    // LoRA freezes them.
    let is_base = |name: &String| {
        let module = name.strip_suffix(".base_layer.weight");
        module.is_some_and(|m| modules.contains_key(m.strip_prefix(PREFIX).unwrap_or(m)))
    };
    left_out.extend(matrices.keys().filter(|name| is_base(name)).cloned());
    matrices.retain(|name, _| !is_base(name));
    if let Some(name) = matrices.keys().next() {
        let text = "is no factor of a LoRA adapter: it can't be part of an overlay";
        return Err(Error::source_file(text).in_tensor(name));
    }
    if modules.is_empty() {
        return Err(Error::source_file("holds no factors"));
    }
    Ok(modules)
}

fn transposed(m: &Matrix) -> Matrix {
    let [rows, cols] = m.shape;
    let values = (0..rows * cols).map(|i| m.values[i % rows * cols + i / rows]).collect();
    Matrix { shape: [cols, rows], values }
}

fn block(
    config: &Config,
    tensor: String,
    a: Matrix,
    b: Matrix,
    embedding: bool,
    scaling: f32,
    report: &mut LoraReport,
) -> Result<NewBlock> {
    // PEFT's A is `[r, in]` and B `[out, r]`: the weight `[out, in]` gets B A. Embeddings and
    // layers that store their weights the other way round get its transpose.
    let (left, right) = match embedding || config.fan_in_fan_out {
        false => (b, a),
        true => (transposed(&a), transposed(&b)),
    };
    let rank = left.shape[1];
    if rank != right.shape[0] || rank == 0 || rank > MAX_OVERLAY_RANK as usize {
        return Err(Error::source_file(format!(
            "factors {:?} and {:?} of rank 1 to {MAX_OVERLAY_RANK} expected",
            left.shape, right.shape
        )));
    }
    let (a, by_a) = to_f16(&left.values, report);
    let (b, by_b) = to_f16(&right.values, report);
    let scaling = scaling / (by_a * by_b);
    let (rows, cols) = (left.shape[0], right.shape[1]);
    Ok(NewBlock { tensor, rank, rows, cols, factors: NewFactors::F16 { a, b, scaling } })
}

/// binary16 numbers, scaled by a power of two such that the largest is near the middle of their
/// range from above: then small ones keep their bits. Gives that power.
fn to_f16(values: &[f32], report: &mut LoraReport) -> (Vec<u16>, f32) {
    let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    // From the exponent's bits: a library's logarithm may differ by machine.
    let exponent = i32::from((most.to_bits() >> 23).to_le_bytes()[0]) - 127;
    let by = if most == 0.0 { 1.0 } else { 2f32.powi((12 - exponent).clamp(-30, 30)) };
    let round = |v: &f32| {
        let rounded = f16::from_f32(v * by);
        let error = f64::from((rounded.to_f32() - v * by).abs() / (most * by));
        if error > 0.0 {
            report.rounded += 1;
            report.largest_error = report.largest_error.max(error);
        }
        rounded.to_bits()
    };
    (values.iter().map(round).collect(), by)
}

impl LoraReport {
    /// What was rounded, as JSON.
    pub fn to_json(&self) -> Value {
        json!({ "rounded_factors": self.rounded, "largest_error": self.largest_error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_end_names() {
        let patterns = BTreeMap::from([("q_proj".to_owned(), 1), (r"layers\.1\..*".to_owned(), 2)]);
        let patterns = compile(&patterns).expect("patterns");
        let of = |module: &str| pattern(&patterns, module);
        assert_eq!(of("model.layers.0.self_attn.q_proj"), Some(1));
        assert_eq!(of("model.layers.1.mlp.up_proj"), Some(2));
        assert_eq!(of("model.layers.0.mlp.up_proj"), None);
        assert!(compile(&BTreeMap::from([("(".to_owned(), 1)])).is_err());
    }

    #[test]
    fn small_factors_keep_their_bits() {
        let mut report = LoraReport {
            overlay: NewOverlay::default(),
            rounded: 0,
            largest_error: 0.0,
            left_out: vec![],
        };
        let values = [1e-3f32, -3e-7, 0.0, 2e-5].map(|v| half::bf16::from_f32(v).to_f32());
        let (bits, by) = to_f16(&values, &mut report);
        let back: Vec<f32> = bits.iter().map(|b| f16::from_bits(*b).to_f32() / by).collect();
        assert_eq!((back, report.rounded), (values.to_vec(), 0));
    }
}
