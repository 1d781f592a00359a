//! The fate of each tensor, and the reason: the default rule and the recipe that overrides it.

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::format::{Dtype, MAX_PLANES, MIN_PLANES, Role, elements};
use crate::source::Scan;
use crate::source::check_keys;
use crate::source::{Source, SourceTensor};

/// Shortest row that is worth its scale.
const MIN_COLS: u64 = 64;

/// What a recipe says of the tensors whose name a pattern matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// This many planes, 3 to 8.
    Planes(u8),
    /// Source bytes as they are.
    Raw(RawWord),
}

/// The word `raw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RawWord {
    /// Spelled `raw`.
    #[serde(rename = "raw")]
    Raw,
}

/// One override of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeRule {
    /// Regular expression that the tensor's name must match somewhere.
    #[serde(rename = "match")]
    pub pattern: String,
    /// What to do with it.
    pub bits: Setting,
}

impl RecipeRule {
    /// Parses `REGEX=BITS` or `REGEX=raw`; the last `=` splits.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Self> {
        let split = text.rsplit_once('=').and_then(|(pattern, bits)| {
            let bits = match bits {
                "raw" => Setting::Raw(RawWord::Raw),
                n => Setting::Planes(n.parse().ok()?),
            };
            Some(Self { pattern: pattern.to_owned(), bits })
        });
        split.ok_or_else(|| Error::argument(format!("\"{text}\" is not REGEX=BITS or REGEX=raw")))
    }
}

/// Average bits of a weight, in units of 1/10000 bit.
///
/// ```
/// use ultracompress::pack::Bpw;
///
/// assert_eq!("5.25".parse::<Bpw>()?.to_string(), "5.25");
/// assert!("-1".parse::<Bpw>().is_err() && "5.00001".parse::<Bpw>().is_err());
/// # Ok::<(), ultracompress::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bpw(u32);

impl Bpw {
    const UNIT: u32 = 10_000;

    /// Bits a weight.
    pub(crate) fn bits(self) -> f64 {
        f64::from(self.0) / f64::from(Self::UNIT)
    }

    /// The bytes that `weights` weights may take.
    pub(crate) fn bytes(self, weights: u64) -> u64 {
        let bits = u128::from(weights) * u128::from(self.0) / u128::from(Self::UNIT);
        u64::try_from(bits / 8).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Display for Bpw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{}.{:04}", self.0 / Self::UNIT, self.0 % Self::UNIT);
        let short = text.trim_end_matches('0');
        f.write_str(if short.ends_with('.') { &text[..=short.len()] } else { short })
    }
}

impl std::str::FromStr for Bpw {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::argument(format!("\"{text}\" is not a number of bits such as 5.25"));
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || whole.len() > 3 || part.len() > 4 || !digits(whole) || !digits(part)
        {
            return Err(bad());
        }
        let units = format!("{whole}{part:0<4}").parse().map_err(|_| bad())?;
        Ok(Self(units))
    }
}

impl Serialize for Bpw {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        // Text, since the manifest has no fractions.
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bpw {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Number {
            Text(String),
            Whole(u32),
            Real(f64),
        }
        let text = match Number::deserialize(d)? {
            Number::Text(text) => text,
            Number::Whole(n) => n.to_string(),
            Number::Real(x) => x.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Which rows may have planes of their own when a budget is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allocation {
    /// Each row.
    Row,
    /// All rows of a tensor have the same.
    Tensor,
}

/// How the encoder uses a calibration. Defaults are what was measured to be best; the switches are
/// for measuring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CalibratedRecipe {
    /// Body bits a weight, at most; planes are allocated under it. Default: `bits` planes for
    /// every row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpw: Option<Bpw>,
    /// What planes are allocated to. Default: rows.
    pub allocation: Allocation,
    /// Choose the group of each tensor; otherwise all have the recipe's. Only under a budget.
    /// Default true.
    pub choose_group: bool,
    /// Columns that share a step in embeddings and heads. Default 16.
    pub table_group: u32,
    /// Make up for the errors of earlier columns. Default true.
    pub input_feedback: bool,
    /// Make up for the errors of earlier rows. Default true.
    pub output_feedback: bool,
    /// Passes of coordinate descent, at most. Default 8.
    pub descent_passes: u8,
    /// Fit level tables to the model. Default true.
    pub fit_levels: bool,
}

impl Default for CalibratedRecipe {
    fn default() -> Self {
        Self {
            bpw: None,
            allocation: Allocation::Row,
            choose_group: true,
            table_group: 16,
            input_feedback: true,
            output_feedback: true,
            descent_passes: 8,
            fit_levels: true,
        }
    }
}

/// Everything that steers the encoder. Defaults are the default rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Recipe {
    /// Planes of the body's linear layers. Default 5.
    pub bits: u8,
    /// Planes of embedding tables. Default 8.
    pub embedding_bits: u8,
    /// Planes of the output head. Default 8.
    pub head_bits: u8,
    /// Consecutive columns that share a step: 16, 32, 64, 128, 256, or 0 for whole rows. Default
    /// 32.
    pub group: u32,
    /// zstd level for raw tensors and carried files, 1 to 19; 0 stores them plain. Default 3, or 0
    /// without the `zstd` feature.
    pub zstd_level: u8,
    /// Store every tensor raw. Default false.
    pub raw_all: bool,
    /// How a calibration is used; has no effect without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrated: Option<CalibratedRecipe>,
    /// Overrides by name; the last one that matches wins.
    #[serde(rename = "tensor")]
    pub tensors: Vec<RecipeRule>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            bits: 5,
            embedding_bits: 8,
            head_bits: 8,
            group: 32,
            zstd_level: if cfg!(feature = "zstd") { 3 } else { 0 },
            raw_all: false,
            calibrated: None,
            tensors: vec![],
        }
    }
}

impl Recipe {
    /// The resolved recipe as the manifest holds it.
    pub(crate) fn to_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self)
            .map_err(|e| Error::argument(format!("recipe: {e}")).with_source(e))
    }

    /// Columns that share a step in tensors of this role whose group isn't chosen.
    pub(crate) fn group_of(&self, role: Role) -> u32 {
        match (&self.calibrated, role) {
            (Some(calibrated), Role::Embedding | Role::Head) => calibrated.table_group,
            _ => self.group,
        }
    }

    /// The level for raw tensors and carried files; nothing for plain storage.
    pub(crate) fn zstd_level(&self) -> Option<i32> {
        (self.zstd_level > 0).then_some(i32::from(self.zstd_level))
    }

    /// Checks every setting and pattern.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is impossible.
    pub fn check(&self) -> Result<()> {
        Patterns::new(self)?;
        let settings = self.tensors.iter().map(|r| r.bits);
        let all = [self.bits, self.embedding_bits, self.head_bits].map(Setting::Planes);
        for setting in all.into_iter().chain(settings) {
            if let Setting::Planes(n) = setting
                && !(MIN_PLANES..=MAX_PLANES).contains(&n)
            {
                return Err(Error::argument(format!("{n} bits: 3 to 8 are possible")));
            }
        }
        let tables = self.calibrated.as_ref().map(|c| c.table_group);
        for group in [self.group].into_iter().chain(tables) {
            if !matches!(group, 0 | 16 | 32 | 64 | 128 | 256) {
                return Err(Error::argument(format!(
                    "group {group}: 0, 16, 32, 64, 128 or 256 are possible"
                )));
            }
        }
        if self.zstd_level > 19 {
            return Err(Error::argument(format!("zstd_level {}: 0 to 19", self.zstd_level)));
        }
        Ok(())
    }
}

/// How one tensor will be stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decision {
    /// As planes.
    Planes {
        /// Planes of every row.
        planes: u8,
        /// Leading dimensions that make up the rows.
        row_dims: u8,
    },
    /// As it is.
    Raw,
    /// As an alias of a tensor with the same bytes.
    Alias(String),
}

/// One tensor of a plan.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// What it is for.
    pub role: Role,
    /// How it will be stored.
    pub decision: Decision,
    /// Why.
    pub reason: String,
    pub(crate) forced: bool,
}

/// What becomes of every tensor of a source.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The tensors, by name.
    pub tensors: Vec<PlannedTensor>,
}

struct Patterns {
    embedding: Regex,
    head: Regex,
    router: Regex,
    small: Regex,
    rules: Vec<(Regex, Setting)>,
}

impl Patterns {
    fn new(recipe: &Recipe) -> Result<Self> {
        let own = |p: &str| Regex::new(p).expect("patterns of our own compile");
        let rules = recipe.tensors.iter().map(|r| {
            Regex::new(&r.pattern).map(|re| (re, r.bits)).map_err(|e| {
                Error::argument(format!("pattern \"{}\": {e}", r.pattern)).with_source(e)
            })
        });
        Ok(Self {
            embedding: own(r"(?x) (^|[._])
                (embed_tokens|wte|wpe|tok_embeddings|word_embeddings|position_embeddings
                |token_type_embeddings|embeddings|embedding|embed_in|embed_positions|shared)
                (\.weight)?$"),
            head: own(r"(?x) (^|\.)(lm_head|embed_out)(\.weight)?$
                | ^(model\.)?(output|head|score|classifier)(\.weight)?$"),
            router: own(
                r"(?x) (^|\.)(router|gate|wg|shared_expert_gate)(\.(weight|layer\.weight|linear\.weight|classifier\.weight))?$",
            ),
            small: own(
                r"(?x) (^|[._])(A_log|D|dt_bias|(.*_)?bias|conv1d\.weight|.*norm[^.]*(\.weight)?)$",
            ),
            rules: rules.collect::<Result<_>>()?,
        })
    }

    /// Body is what the default rule would quantize: a recipe that keeps such a tensor raw is still
    /// charged for its bits.
    fn role(&self, name: &str, dtype: Dtype, shape: &[u64], cols: u64) -> Role {
        if shape.len() < 2 || !dtype.has_planes() || cols < MIN_COLS {
            Role::Other
        } else if self.head.is_match(name) {
            Role::Head
        } else if self.embedding.is_match(name) {
            Role::Embedding
        } else if self.router.is_match(name) || self.small.is_match(name) {
            Role::Other
        } else {
            Role::Body
        }
    }
}

impl Plan {
    /// Applies the default rule and the recipe to every tensor, by name, type and shape.
    ///
    /// Equal bytes and non-finite values are found by the scan that
    /// [`PackOptions`](super::PackOptions) makes.
    ///
    /// # Errors
    /// `InvalidArgument` for an impossible recipe; `Source` for a checkpoint that is already
    /// quantized.
    pub fn new(source: &Source, recipe: &Recipe) -> Result<Self> {
        recipe.check()?;
        if !recipe.raw_all {
            refuse_quantized(source)?;
        }
        let patterns = Patterns::new(recipe)?;
        let tensors = source.tensors().iter().map(|t| decide(t, recipe, &patterns)).collect();
        Ok(Self { tensors })
    }

    /// Refines the plan with what the data says: non-finite tensors stay raw, equal ones become
    /// aliases of the first of them.
    pub(crate) fn refine(&mut self, scans: &[Scan]) {
        for (t, scan) in self.tensors.iter_mut().zip(scans) {
            if let (Decision::Planes { .. }, Some(at)) = (&t.decision, scan.odd) {
                t.decision = Decision::Raw;
                t.reason = format!("element {at} is NaN, infinite or beyond binary32");
            }
        }
        let mut first = std::collections::HashMap::new();
        for (i, scan) in scans.iter().enumerate() {
            let t = &self.tensors[i];
            if elements(&t.shape) == Some(0) {
                continue;
            }
            let key = (t.dtype, t.shape.clone(), scan.sha256, t.decision.clone());
            let &mut target = first.entry(key).or_insert(i);
            if target != i && !t.forced {
                let name = self.tensors[target].name.clone();
                self.tensors[i].reason = format!("same bytes as {name}");
                self.tensors[i].decision = Decision::Alias(name);
            }
        }
    }
}

fn decide(t: &SourceTensor, recipe: &Recipe, patterns: &Patterns) -> PlannedTensor {
    let row_dims = row_dims(&t.shape);
    let cols = t.shape.get(usize::from(row_dims)..).and_then(elements).unwrap_or(0);
    let role = patterns.role(&t.name, t.dtype, &t.shape, cols);
    let mut planned = PlannedTensor {
        name: t.name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        role,
        decision: Decision::Raw,
        reason: String::new(),
        forced: false,
    };
    let forced = patterns.rules.iter().rev().find(|(re, _)| re.is_match(&t.name));
    let (planes, reason) = if recipe.raw_all {
        (None, "recipe: raw_all".to_owned())
    } else if elements(&t.shape) == Some(0) {
        (None, "empty".into())
    } else if !t.dtype.has_planes() {
        (None, format!("{} is kept as it is", t.dtype))
    } else if t.shape.len() < 2 {
        (None, format!("rank {}", t.shape.len()))
    } else if let Some((re, setting)) = forced {
        planned.forced = true;
        match setting {
            Setting::Planes(n) => (Some(*n), format!("recipe: {re}")),
            Setting::Raw(_) => (None, format!("recipe: {re}")),
        }
    } else if patterns.router.is_match(&t.name) {
        (None, "router".into())
    } else if patterns.small.is_match(&t.name) {
        (None, "norm, state or short convolution".into())
    } else if cols < MIN_COLS {
        (None, format!("rows of {cols}, shorter than {MIN_COLS}"))
    } else {
        let planes = match role {
            Role::Embedding => recipe.embedding_bits,
            Role::Head => recipe.head_bits,
            Role::Body | Role::Other => recipe.bits,
        };
        (Some(planes), format!("default: {}", role.name()))
    };
    if let Some(planes) = planes {
        planned.decision = Decision::Planes { planes, row_dims };
    }
    planned.reason = reason;
    planned
}

/// Stacked matrices (`[experts, rows, cols]`) keep their last dimension as columns; convolution
/// kernels (`[out, in, k]`) fold what follows the first.
fn row_dims(shape: &[u64]) -> u8 {
    match shape {
        [.., last] if shape.len() > 2 && *last >= MIN_COLS => {
            u8::try_from(shape.len() - 1).unwrap_or(u8::MAX)
        }
        _ => 1,
    }
}

/// A checkpoint that another tool already quantized would lose twice.
fn refuse_quantized(source: &Source) -> Result<()> {
    let mut method = None;
    if let Some(config) = source.beside_weights("config.json")? {
        let bad = |e| Error::source_file(format!("config.json: {e}")).with_source(e);
        check_keys(&config).map_err(bad)?;
        let config: serde_json::Value = serde_json::from_slice(&config).map_err(bad)?;
        if let Some(q) = config.get("quantization_config").filter(|q| !q.is_null()) {
            let name = q.get("quant_method").cloned().unwrap_or(json!("unknown method"));
            method = Some(format!("config.json declares quantization_config: {name}"));
        }
    }
    // GPTQ, AWQ; bitsandbytes; block-scaled F8; compressed-tensors; MXFP4.
    let endings = [
        ".qweight",
        ".qzeros",
        ".g_idx",
        ".absmax",
        ".quant_map",
        ".SCB",
        ".weight_scale_inv",
        ".weight_scale",
        ".weight_packed",
        ".weight_zero_point",
        ".input_scale",
        "_proj_blocks",
        "_proj_scales",
    ];
    let is_sign =
        |name: &str| endings.iter().any(|s| name.ends_with(s)) || name.contains(".quant_state.");
    let sign = source.tensors().iter().find(|t| is_sign(&t.name));
    if let Some(t) = sign {
        method.get_or_insert_with(|| format!("tensor \"{}\" belongs to a quantized layer", t.name));
    }
    match method {
        None => Ok(()),
        Some(why) => Err(Error::source_file(format!(
            "this checkpoint is already quantized ({why}); pack its original, or keep every tensor as it is with --raw-all"
        ))),
    }
}
