//! The contents of `config.json`: architecture, sizes and switches.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::rope::Rope;
use crate::error::{Error, Result};

/// The architectures that the runtime computes, as `architectures` of `config.json` spells them.
pub const ARCHITECTURES: [&str; 8] = [
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MixtralForCausalLM",
    "Qwen3MoeForCausalLM",
    "MambaForCausalLM",
    "BertModel",
];

/// `config.json`, as far as the runtime looks at it.
#[derive(Debug, Deserialize)]
struct Raw {
    architectures: Option<Vec<String>>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    moe_intermediate_size: Option<usize>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<BTreeSet<usize>>,
    state_size: Option<usize>,
    conv_kernel: Option<usize>,
    expand: Option<usize>,
    time_step_rank: Option<Value>,
    layer_norm_epsilon: Option<f64>,
    layer_norm_eps: Option<f64>,
    use_conv_bias: Option<bool>,
    use_bias: Option<bool>,
    type_vocab_size: Option<usize>,
    position_embedding_type: Option<String>,
}

/// A model's architecture and sizes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Config {
    /// Llama and its relatives.
    Decoder(DecoderConfig),
    /// Mamba-1.
    Mamba(MambaConfig),
    /// BERT-style encoders.
    Bert(BertConfig),
}

/// Sizes and switches of a decoder with attention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DecoderConfig {
    pub architecture: &'static str,
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
    pub eps: f64,
    pub rope: Rope,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub o_bias: bool,
    pub mlp_bias: bool,
    pub qk_norm: bool,
    pub tied: bool,
    pub experts: Option<Experts>,
    /// Of each layer: how many tokens back it sees, itself included, and whether it has experts.
    pub layers: Vec<LayerKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerKind {
    pub window: Option<usize>,
    pub sparse: bool,
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Experts {
    pub count: usize,
    pub chosen: usize,
    pub intermediate: usize,
    /// Whether the weights of the chosen experts are made to add up to 1.
    pub normalized: bool,
    /// Names as in Mixtral; otherwise as in Qwen.
    pub mixtral: bool,
}

/// Sizes of a Mamba-1 model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MambaConfig {
    pub vocab: usize,
    pub hidden: usize,
    pub inner: usize,
    pub state: usize,
    pub kernel: usize,
    pub rank: usize,
    pub layers: usize,
    pub eps: f64,
    pub conv_bias: bool,
    pub bias: bool,
    pub tied: bool,
}

/// Sizes of a BERT-style encoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BertConfig {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub positions: usize,
    pub types: usize,
    pub eps: f64,
}

fn bad(text: impl Into<String>) -> Error {
    Error::source_file(text).in_file("config.json")
}

/// Ceiling of every size that `config.json` names: nothing real comes near, and products of two
/// stay within 64 bits.
const MOST: usize = 1 << 28;
/// Longest `config.json`.
const MOST_BYTES: usize = 1 << 20;

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// `Source` for an architecture that the runtime doesn't know, a field that is missing, or a
    /// switch that it doesn't compute.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        if json.len() > MOST_BYTES {
            return Err(bad(format!("{} bytes, {MOST_BYTES} at most are read", json.len())));
        }
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|e| bad(format!("not a model's configuration: {e}")).with_source(e))?;
        let name = match raw.architectures.as_deref() {
            Some([name]) => name.as_str(),
            Some(names) => return Err(bad(format!("names {} architectures", names.len()))),
            None => return Err(bad("names no architecture")),
        };
        let known = ARCHITECTURES.into_iter().find(|known| *known == name);
        let Some(known) = known else {
            return Err(bad(format!(
                "the architecture {} is not known; those that are: {}",
                name.escape_debug(),
                ARCHITECTURES.join(", ")
            )));
        };
        match known {
            "MambaForCausalLM" => raw.mamba().map(Self::Mamba),
            "BertModel" => raw.bert().map(Self::Bert),
            _ => raw.decoder(known).map(Self::Decoder),
        }
    }

    /// The architecture, as `config.json` spells it.
    pub(super) fn architecture(&self) -> &'static str {
        match self {
            Self::Decoder(c) => c.architecture,
            Self::Mamba(_) => "MambaForCausalLM",
            Self::Bert(_) => "BertModel",
        }
    }

    /// Entries of the vocabulary.
    pub(super) fn vocab(&self) -> usize {
        match self {
            Self::Decoder(c) => c.vocab,
            Self::Mamba(c) => c.vocab,
            Self::Bert(c) => c.vocab,
        }
    }

    /// Whether the head shares its weights with the embedding.
    pub(super) fn tied(&self) -> bool {
        match self {
            Self::Decoder(c) => c.tied,
            Self::Mamba(c) => c.tied,
            Self::Bert(_) => false,
        }
    }

    /// How many blocks there are.
    pub(super) fn layers(&self) -> usize {
        match self {
            Self::Decoder(c) => c.layers.len(),
            Self::Mamba(c) => c.layers,
            Self::Bert(c) => c.layers,
        }
    }

    /// The longest sequence that the model takes.
    pub(super) fn positions(&self) -> Option<usize> {
        match self {
            Self::Decoder(c) => Some(c.max_positions),
            Self::Mamba(_) => None,
            Self::Bert(c) => Some(c.positions),
        }
    }
}

fn size(name: &str, value: Option<usize>) -> Result<usize> {
    match value {
        Some(n @ 1..=MOST) => Ok(n),
        Some(n) => Err(bad(format!("{name} is {n}"))),
        None => Err(bad(format!("{name} is missing"))),
    }
}

fn positive(name: &str, value: Option<f64>, otherwise: f64) -> Result<f64> {
    let value = value.unwrap_or(otherwise);
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(bad(format!("{name} is {value}")))
}

impl Raw {
    fn activation(&self, known: &str) -> Result<()> {
        match self.hidden_act.as_deref() {
            Some(act) if act == known => Ok(()),
            None => Err(bad("hidden_act is missing")),
            Some(act) => Err(bad(format!(
                "hidden_act is {}, the runtime computes {known}",
                act.escape_debug()
            ))),
        }
    }

    fn layers(&self) -> Result<usize> {
        let layers = size("num_hidden_layers", self.num_hidden_layers)?;
        if layers > 10_000 {
            return Err(bad(format!("num_hidden_layers is {layers}")));
        }
        Ok(layers)
    }

    fn decoder(&self, architecture: &'static str) -> Result<DecoderConfig> {
        self.activation("silu")?;
        let hidden = size("hidden_size", self.hidden_size)?;
        let heads = size("num_attention_heads", self.num_attention_heads)?;
        let kv_heads = size("num_key_value_heads", self.num_key_value_heads.or(Some(heads)))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(bad(format!("{heads} attention heads over {kv_heads} key heads")));
        }
        let head_dim = self.head_dim(hidden, heads)?;
        let max_positions = size("max_position_embeddings", self.max_position_embeddings)?;
        let (qwen2, qwen3) = (
            architecture == "Qwen2ForCausalLM",
            matches!(architecture, "Qwen3ForCausalLM" | "Qwen3MoeForCausalLM"),
        );
        let attention_bias = self.attention_bias.unwrap_or(false);
        let may_have_bias = architecture == "LlamaForCausalLM" || qwen3;
        if attention_bias && !may_have_bias && !qwen2 {
            return Err(bad(format!("attention_bias is set, which {architecture} has not")));
        }
        let experts = self.experts(architecture)?;
        let mixtral = architecture == "MixtralForCausalLM";
        let rope = Rope::parse(
            self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()),
            // What transformers takes where config.json says nothing.
            self.rope_theta.or(mixtral.then_some(1e6)),
            head_dim,
            max_positions,
        )
        .map_err(bad)?;
        let layers = (0..self.layers()?)
            .map(|i| {
                let window = self.window(architecture, i)?;
                Ok(LayerKind { window, sparse: self.is_sparse(architecture, i) })
            })
            .collect::<Result<_>>()?;
        Ok(DecoderConfig {
            architecture,
            vocab: size("vocab_size", self.vocab_size)?,
            hidden,
            intermediate: size("intermediate_size", self.intermediate_size)?,
            heads,
            kv_heads,
            head_dim,
            max_positions,
            eps: positive("rms_norm_eps", self.rms_norm_eps, if mixtral { 1e-5 } else { 1e-6 })?,
            rope,
            qkv_bias: qwen2 || attention_bias,
            o_bias: attention_bias && may_have_bias,
            mlp_bias: architecture == "LlamaForCausalLM" && self.mlp_bias.unwrap_or(false),
            qk_norm: qwen3,
            tied: self.tie_word_embeddings.unwrap_or(false),
            experts,
            layers,
        })
    }

    /// Columns of an attention head.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize> {
        let head_dim = match self.head_dim {
            None if !hidden.is_multiple_of(heads) => {
                return Err(bad(format!("hidden_size {hidden} over {heads} attention heads")));
            }
            None => hidden / heads,
            given => size("head_dim", given)?,
        };
        if !head_dim.is_multiple_of(2) {
            return Err(bad(format!("head_dim is {head_dim}, rotary embeddings need it even")));
        }
        Ok(head_dim)
    }

    /// Whether layer `i` has experts.
    fn is_sparse(&self, architecture: &str, i: usize) -> bool {
        match architecture {
            "MixtralForCausalLM" => true,
            "Qwen3MoeForCausalLM" => {
                let step = self.decoder_sparse_step.unwrap_or(1);
                !self.mlp_only_layers.as_ref().is_some_and(|only| only.contains(&i))
                    && step > 0
                    && (i + 1).is_multiple_of(step)
            }
            _ => false,
        }
    }

    fn experts(&self, architecture: &str) -> Result<Option<Experts>> {
        let mixtral = architecture == "MixtralForCausalLM";
        if !mixtral && architecture != "Qwen3MoeForCausalLM" {
            return Ok(None);
        }
        let count = if mixtral {
            size("num_local_experts", self.num_local_experts)?
        } else {
            size("num_experts", self.num_experts.or(self.num_local_experts))?
        };
        let chosen = size("num_experts_per_tok", self.num_experts_per_tok)?;
        if chosen > count || count > 1 << 16 {
            return Err(bad(format!("{chosen} of {count} experts")));
        }
        Ok(Some(Experts {
            count,
            chosen,
            intermediate: if mixtral {
                size("intermediate_size", self.intermediate_size)?
            } else {
                size("moe_intermediate_size", self.moe_intermediate_size)?
            },
            normalized: mixtral || self.norm_topk_prob.unwrap_or(false),
            mixtral,
        }))
    }

    /// How many tokens back layer `i` sees.
    fn window(&self, architecture: &str, i: usize) -> Result<Option<usize>> {
        let Some(window) = self.sliding_window else { return Ok(None) };
        if let Some(types) =
            self.layer_types.as_ref().filter(|_| architecture != "Qwen3MoeForCausalLM")
        {
            return match types.get(i).map(String::as_str) {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => size("sliding_window", Some(window)).map(Some),
                other => Err(bad(format!("layer {i} has the type {other:?}"))),
            };
        }
        let slides = match architecture {
            "MistralForCausalLM" | "MixtralForCausalLM" => true,
            "LlamaForCausalLM" => false,
            _ => {
                self.use_sliding_window.unwrap_or(false) && i >= self.max_window_layers.unwrap_or(0)
            }
        };
        if slides { size("sliding_window", Some(window)).map(Some) } else { Ok(None) }
    }

    fn mamba(&self) -> Result<MambaConfig> {
        self.activation("silu")?;
        let hidden = size("hidden_size", self.hidden_size)?;
        let inner = match self.intermediate_size {
            Some(n) => n,
            None => hidden * size("expand", self.expand.or(Some(2)))?,
        };
        let rank = match &self.time_step_rank {
            Some(Value::Number(n)) => n.as_u64().and_then(|n| usize::try_from(n).ok()),
            Some(Value::String(s)) if s != "auto" => None,
            _ => Some(hidden.div_ceil(16)),
        };
        Ok(MambaConfig {
            vocab: size("vocab_size", self.vocab_size)?,
            hidden,
            inner: size("intermediate_size", Some(inner))?,
            state: size("state_size", self.state_size.or(Some(16)))?,
            kernel: size("conv_kernel", self.conv_kernel.or(Some(4)))?,
            rank: size("time_step_rank", rank)?,
            layers: self.layers()?,
            eps: positive("layer_norm_epsilon", self.layer_norm_epsilon, 1e-5)?,
            conv_bias: self.use_conv_bias.unwrap_or(true),
            bias: self.use_bias.unwrap_or(false),
            tied: self.tie_word_embeddings.unwrap_or(true),
        })
    }

    fn bert(&self) -> Result<BertConfig> {
        self.activation("gelu")?;
        if self.position_embedding_type.as_deref().is_some_and(|t| t != "absolute") {
            return Err(bad("position_embedding_type is not absolute"));
        }
        let hidden = size("hidden_size", self.hidden_size)?;
        let heads = size("num_attention_heads", self.num_attention_heads)?;
        if !hidden.is_multiple_of(heads) {
            return Err(bad(format!("hidden_size {hidden} over {heads} attention heads")));
        }
        Ok(BertConfig {
            vocab: size("vocab_size", self.vocab_size)?,
            hidden,
            intermediate: size("intermediate_size", self.intermediate_size)?,
            layers: self.layers()?,
            heads,
            positions: size("max_position_embeddings", self.max_position_embeddings)?,
            types: size("type_vocab_size", self.type_vocab_size.or(Some(2)))?,
            eps: positive("layer_norm_eps", self.layer_norm_eps, 1e-12)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_architectures_are_named_beside_the_known() {
        let e = Config::parse(br#"{"architectures": ["GPT2LMHeadModel"]}"#).expect_err("unknown");
        let text = e.to_string();
        assert!(text.contains("GPT2LMHeadModel") && text.contains("MambaForCausalLM"), "{text}");
        assert!(Config::parse(b"[]").is_err());
        assert!(Config::parse(br#"{"architectures": []}"#).is_err());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let config = |heads: usize, hidden: usize, act: &str| {
            Config::parse(
                serde_json::json!({
                    "architectures": ["LlamaForCausalLM"], "hidden_act": act, "hidden_size": hidden,
                    "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": heads,
                    "max_position_embeddings": 8, "vocab_size": 8,
                })
                .to_string()
                .as_bytes(),
            )
        };
        assert!(config(2, 8, "silu").is_ok());
        assert!(config(3, 8, "silu").is_err());
        assert!(config(0, 8, "silu").is_err());
        assert!(config(2, 8, "relu").is_err());
        assert!(config(8, 8, "silu").is_err(), "an odd head_dim");
    }
}
