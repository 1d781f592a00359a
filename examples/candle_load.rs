//! Loading a pack into candle: turns a `.uc` into a `VarBuilder` and runs the dense model; decoded
//! lazily, one tensor at a time.
//!
//! ```text
//! cargo run --release --example candle_load -- [MODEL] [SOURCE] [--text FILE] [--bf16]
//! ```
//!
//! `MODEL` is a pack (a path or an address, of one file or sharded) or a folder, which is packed to
//! a temporary file first; `examples/data/tiny-llama` by default. Config and tokenizer come out of
//! the pack. With `SOURCE`, the folder that the pack was made from, both are run and compared.
//!
//! [`PackTensors`] is all that a program needs to give candle's models a pack; the forward pass
//! below is there to show that it works. It computes `LlamaForCausalLM` without rope scaling and
//! biases. The text is cut into windows of the model's context, each run on its own; a last,
//! shorter one counts only when it is alone.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Module, Shape, Tensor, WithDType};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Embedding, Init, Linear, RmsNorm, VarBuilder};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;
use ultracompress::pack::PackOptions;
use ultracompress::source::Source;
use ultracompress::{DecodeOptions, Dtype, Input, Pack, TensorView};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// ---- The backend ------------------------------------------------------------------------------

/// The tensors of a pack for [`VarBuilder::from_backend`]. Each is decoded when it is asked for,
/// tile by tile into the type that is asked for, so that no more than the tensor and a tile is
/// held.
struct PackTensors<'a>(&'a Pack<Input>);

impl PackTensors<'_> {
    fn view(&self, name: &str) -> candle_core::Result<TensorView<'_, Input>> {
        let missing = || candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt();
        self.0.tensor(name).ok_or_else(missing)
    }
}

impl SimpleBackend for PackTensors<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let got = shape_of(&self.view(name)?)?;
        if got != shape {
            let msg = format!("{name} has another shape in the pack");
            return Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got }.bt());
        }
        self.get_unchecked(name, dtype, device)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let view = self.view(name)?;
        match dtype {
            DType::F32 => tensor(&view, Dtype::F32, f32::from_le_bytes, device),
            DType::BF16 => tensor(&view, Dtype::Bf16, bf16::from_le_bytes, device),
            DType::F16 => tensor(&view, Dtype::F16, f16::from_le_bytes, device),
            DType::F64 => tensor(&view, Dtype::F64, f64::from_le_bytes, device),
            _ => candle_core::bail!("{name}: weights can't be read as {dtype:?}"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensor(name).is_some()
    }
}

fn shape_of(view: &TensorView<'_, Input>) -> candle_core::Result<Shape> {
    let dims = view.shape().iter().map(|&d| usize::try_from(d));
    let dims: std::result::Result<Vec<_>, _> = dims.collect();
    dims.map(Shape::from).map_err(candle_core::Error::wrap)
}

fn tensor<T: WithDType, const N: usize>(
    view: &TensorView<'_, Input>,
    dtype: Dtype,
    read: fn([u8; N]) -> T,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let options = DecodeOptions::new().with_dtype(dtype);
    // Whole numbers and types of 8 bits and fewer keep their type.
    if options.target(view) != dtype {
        candle_core::bail!("{}: {} can't be read as {dtype}", view.name(), view.dtype());
    }
    let shape = shape_of(view)?;
    let mut values = Vec::with_capacity(shape.elem_count());
    let add = |tile: &[u8]| {
        values.extend(tile.as_chunks().0.iter().map(|&bytes| read(bytes)));
        Ok(())
    };
    options.decode_tiles(view, add).map_err(candle_core::Error::wrap)?;
    Tensor::from_vec(values, shape, device)
}

// ---- The model --------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Config {
    architectures: Vec<String>,
    hidden_size: usize,
    intermediate_size: usize,
    vocab_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: String,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl Config {
    fn parse(json: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(json)?;
        let rope = [&config.rope_parameters, &config.rope_scaling];
        let rope_type = rope.iter().find_map(|r| r.as_ref()?.get("rope_type"));
        if config.architectures != ["LlamaForCausalLM"]
            || config.hidden_act != "silu"
            || rope_type.is_some_and(|t| t != "default")
            || config.attention_bias
            || config.mlp_bias
        {
            return Err("config.json: this example runs plain LlamaForCausalLM only".into());
        }
        Ok(config)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn rope_theta(&self) -> f64 {
        let newer = self.rope_parameters.as_ref().and_then(|r| r.get("rope_theta")?.as_f64());
        newer.or(self.rope_theta).unwrap_or(10_000.0)
    }
}

struct Layer {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

struct Llama {
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    cos: Tensor,
    sin: Tensor,
    heads: [usize; 3],
}

impl Llama {
    fn load(c: &Config, vb: &VarBuilder) -> candle_core::Result<Self> {
        let linear = candle_nn::linear_no_bias;
        let norm = |vb| candle_nn::rms_norm(c.hidden_size, c.rms_norm_eps, vb);
        let (width, heads, kv_heads) = (c.head_dim(), c.num_attention_heads, c.kv_heads());
        let embed = candle_nn::embedding(c.vocab_size, c.hidden_size, vb.pp("model.embed_tokens"))?;
        let head = if c.tie_word_embeddings {
            Linear::new(embed.embeddings().clone(), None)
        } else {
            linear(c.hidden_size, c.vocab_size, vb.pp("lm_head"))?
        };
        let layers = (0..c.num_hidden_layers).map(|i| {
            let vb = vb.pp("model.layers").pp(i);
            let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
            Ok(Layer {
                attention_norm: norm(vb.pp("input_layernorm"))?,
                q: linear(c.hidden_size, heads * width, attention.pp("q_proj"))?,
                k: linear(c.hidden_size, kv_heads * width, attention.pp("k_proj"))?,
                v: linear(c.hidden_size, kv_heads * width, attention.pp("v_proj"))?,
                o: linear(heads * width, c.hidden_size, attention.pp("o_proj"))?,
                mlp_norm: norm(vb.pp("post_attention_layernorm"))?,
                gate: linear(c.hidden_size, c.intermediate_size, mlp.pp("gate_proj"))?,
                up: linear(c.hidden_size, c.intermediate_size, mlp.pp("up_proj"))?,
                down: linear(c.intermediate_size, c.hidden_size, mlp.pp("down_proj"))?,
            })
        });
        let half = width / 2;
        let turns = (0..c.max_position_embeddings).flat_map(|position| {
            let turn = move |i| c.rope_theta().powf(-(i as f64) / half as f64) * position as f64;
            (0..half).map(turn)
        });
        let turns = Tensor::from_iter(turns, vb.device())?;
        let turns = turns.reshape((c.max_position_embeddings, half))?;
        Ok(Self {
            layers: layers.collect::<candle_core::Result<_>>()?,
            norm: norm(vb.pp("model.norm"))?,
            cos: turns.cos()?.to_dtype(vb.dtype())?,
            sin: turns.sin()?.to_dtype(vb.dtype())?,
            heads: [heads, kv_heads, width],
            embed,
            head,
        })
    }

    /// Logits `[ids, vocabulary]` in binary32.
    fn forward(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let device = self.cos.device();
        let n = ids.len();
        let mask = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_iter(mask, device)?.reshape((n, n))?;
        let mut x = self.embed.forward(&Tensor::new(ids, device)?)?;
        for layer in &self.layers {
            x = (&x + self.attention(layer, &layer.attention_norm.forward(&x)?, &mask)?)?;
            let y = layer.mlp_norm.forward(&x)?;
            let y = (layer.gate.forward(&y)?.silu()? * layer.up.forward(&y)?)?;
            x = (x + layer.down.forward(&y)?)?;
        }
        self.head.forward(&self.norm.forward(&x)?)?.to_dtype(DType::F32)
    }

    fn attention(&self, layer: &Layer, x: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let [heads, kv_heads, width] = self.heads;
        let n = x.dim(0)?;
        let split =
            |x: Tensor, heads| x.reshape((1, n, heads, width))?.transpose(1, 2)?.contiguous();
        let (cos, sin) = (self.cos.narrow(0, 0, n)?, self.sin.narrow(0, 0, n)?);
        let rope = |x| candle_nn::rotary_emb::rope(&x, &cos, &sin);
        let shared = heads / kv_heads;
        let repeat = |x: Tensor| {
            let x = x.unsqueeze(2)?.expand((1, kv_heads, shared, n, width))?;
            x.reshape((1, heads, n, width))?.to_dtype(DType::F32)
        };
        let q = rope(split(layer.q.forward(x)?, heads)?)?.to_dtype(DType::F32)?;
        let k = repeat(rope(split(layer.k.forward(x)?, kv_heads)?)?)?;
        let v = repeat(split(layer.v.forward(x)?, kv_heads)?)?;
        let scores = (q.matmul(&k.t()?)? / (width as f64).sqrt())?.broadcast_add(mask)?;
        let y = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let y = y.transpose(1, 2)?.reshape((n, heads * width))?.to_dtype(x.dtype())?;
        layer.o.forward(&y)
    }

    /// The `count` tokens that follow `ids`, the most probable one each time.
    fn continued(&self, ids: &[u32], count: usize) -> candle_core::Result<Vec<u32>> {
        let mut all = ids.to_vec();
        for _ in 0..count {
            let last = self.forward(&all)?.get(all.len() - 1)?;
            all.push(last.argmax(D::Minus1)?.to_scalar()?);
        }
        Ok(all.split_off(ids.len()))
    }
}

// ---- Running it -------------------------------------------------------------------------------

const TEXT: &str = "It is a truth universally acknowledged, that a single man in possession of a good fortune, \
must be in want of a wife. However little known the feelings or views of such a man may be on his first \
entering a neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is \
considered as the rightful property of some one or other of their daughters.";

fn carried(pack: &Pack<Input>, path: &str) -> Result<Vec<u8>> {
    let file = pack.files().iter().find(|f| f.path == path);
    let file = file.ok_or_else(|| format!("the pack carries no {path}"))?;
    let mut bytes = Vec::new();
    pack.stream_file(file, |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// All tensors of a folder at once, as candle reads them.
fn source_tensors(folder: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::new();
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            tensors.extend(candle_core::safetensors::load(path, device)?);
        }
    }
    Ok(tensors)
}

/// Log probabilities of the next token, at each position of a window.
fn log_probs(model: &Llama, window: &[u32]) -> Result<Vec<Vec<f32>>> {
    let logits = model.forward(window)?;
    Ok(candle_nn::ops::log_softmax(&logits, D::Minus1)?.to_vec2()?)
}

/// The sum over a window of minus the log probability of each token but the first.
fn nll(log_probs: &[Vec<f32>], window: &[u32]) -> f64 {
    log_probs.iter().zip(&window[1..]).map(|(p, &id)| -f64::from(p[id as usize])).sum()
}

fn main() -> Result<()> {
    let (mut places, mut text, mut dtype) = (Vec::new(), TEXT.to_owned(), DType::F32);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bf16" => dtype = DType::BF16,
            "--text" => text = std::fs::read_to_string(args.next().ok_or("--text needs a file")?)?,
            _ if arg.starts_with('-') || places.len() == 2 => {
                return Err("usage: candle_load [MODEL] [SOURCE] [--text FILE] [--bf16]".into());
            }
            _ => places.push(PathBuf::from(arg)),
        }
    }
    let tiny = || Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-llama");
    let mut places = places.into_iter();
    let (mut model, mut source) = (places.next().unwrap_or_else(tiny), places.next());
    let dir = tempfile::tempdir()?;
    if model.is_dir() {
        let packed = dir.path().join("model.uc");
        PackOptions::new().pack(&Source::open(&model)?, &packed)?;
        source.get_or_insert(std::mem::replace(&mut model, packed));
    }

    let pack = Pack::open_path(&model)?;
    let config = Config::parse(&carried(&pack, "config.json")?)?;
    let tokenizer =
        Tokenizer::from_bytes(carried(&pack, "tokenizer.json")?).map_err(|e| e.to_string())?;
    let device = Device::Cpu;
    let vb = VarBuilder::from_backend(Box::new(PackTensors(&pack)), dtype, device.clone());
    let packed = Llama::load(&config, &vb)?;
    let from_source = |folder: PathBuf| {
        let vb = VarBuilder::from_tensors(source_tensors(&folder, &device)?, dtype, &device);
        Ok::<_, Box<dyn Error>>(Llama::load(&config, &vb)?)
    };
    let source = source.map(from_source).transpose()?;

    let ids = tokenizer.encode(text, false).map_err(|e| e.to_string())?.get_ids().to_vec();
    let context = config.max_position_embeddings;
    let windows =
        if ids.len() < context { &ids[..] } else { &ids[..ids.len() / context * context] };
    let (mut scored, mut packed_nll, mut source_nll) = (0.0, 0.0, 0.0);
    let (mut divergence, mut same_top) = (0.0, 0.0);
    for window in windows.chunks(context).filter(|w| w.len() > 1) {
        let p = log_probs(&packed, window)?;
        scored += (window.len() - 1) as f64;
        packed_nll += nll(&p, window);
        let Some(source) = &source else { continue };
        let s = log_probs(source, window)?;
        source_nll += nll(&s, window);
        // Positions whose next token is scored.
        for (p, s) in p.iter().zip(&s).take(window.len() - 1) {
            let terms = p.iter().zip(s).map(|(&p, &s)| (f64::from(p), f64::from(s)));
            divergence += terms.map(|(p, s)| s.exp() * (s - p)).sum::<f64>();
            let top = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
            same_top += f64::from(u8::from(top(p) == top(s)));
        }
    }
    if scored == 0.0 {
        return Err("the text has fewer than two tokens".into());
    }

    let prompt = &ids[..ids.len().min(context / 4)];
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).map_err(|e| e.to_string());
    let next = |model: &Llama| Ok::<_, Box<dyn Error>>(decode(&model.continued(prompt, 24)?)?);
    println!("{scored} tokens scored, {dtype:?}");
    println!("after {:?}", decode(prompt)?);
    println!(
        "pack:    perplexity {:.4}, goes on {:?}",
        (packed_nll / scored).exp(),
        next(&packed)?
    );
    if let Some(source) = &source {
        println!(
            "source:  perplexity {:.4}, goes on {:?}",
            (source_nll / scored).exp(),
            next(source)?
        );
        println!(
            "between: perplexity ratio {:.5}, KL divergence {:.6} nats a token, same first choice {:.2}%",
            ((packed_nll - source_nll) / scored).exp(),
            divergence / scored,
            100.0 * same_top / scored
        );
    }
    Ok(())
}
