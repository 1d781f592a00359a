#!/usr/bin/env python3
"""Makes the small models of this folder with Hugging Face transformers, each with the outputs it has there.

    pip install torch==2.15.0 transformers==5.24.0 safetensors==0.8.0 numpy==2.4.6
    python3 tests/models/make_models.py

One folder a case: config.json, model.safetensors (random weights, bf16) and expected.safetensors: what transformers computes
on the CPU in float32, with eager attention, from exactly those weights.

It fails unless
- the written folder, loaded again, gives the same outputs to 1e-6,
- each stored tensor matters: with noise of 0.1 added to it alone, the outputs move by more than 1e-3,
- each change of a setting listed with a case moves them by more than 3e-4 (the two gelus hardly differ by more),
- the router of a mixture of experts never chooses narrowly.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

TOKENS = 24
PADDED_AFTER = 15  # BERT's second sequence
SEED = 160  # one with which all checks pass: each expert must be chosen at some token

# Settings in the style of transformers 4, as most published checkpoints have them.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 64,
}
LLAMA3 = LLAMA | {
    "head_dim": 12,
    "hidden_size": 48,
    "max_position_embeddings": 128,
    "num_key_value_heads": 2,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 16,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "decoder_sparse_step": 2,
    "eos_token_id": 2,
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "max_window_layers": 4,
    "mlp_only_layers": [1],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "num_attention_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "output_router_logits": False,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 64,
}

# name: (settings, other settings with each of which the outputs must differ)
CASES = {
    "llama2": (LLAMA, [{"rope_theta": 500000.0}]),
    # Of its wavelengths (2 pi 500000^(i/6) tokens) the first lies between 16 / 4 and 16 / 1, the others above.
    "llama3": (LLAMA3, [{"rope_scaling": None}, {"rope_theta": 10000.0}]),
    # The same with one below the two limits, one between them and four above.
    "llama3_bands": (
        LLAMA3
        | {"max_position_embeddings": 800, "rope_scaling": LLAMA3["rope_scaling"] | {"original_max_position_embeddings": 100}},
        [{"rope_scaling": LLAMA3["rope_scaling"]}],
    ),
    "llama_linear": (
        LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
        [{"rope_scaling": None}],
    ),
    # With a head of 24 the ramp has one frequency left as it is, one halfway, ten divided by the factor.
    "llama_yarn": (
        LLAMA
        | {
            "hidden_size": 48,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "yarn"},
        },
        [
            {"rope_scaling": None},
            {"rope_scaling": {"factor": 4.0, "rope_type": "linear"}},
            {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "yarn", "attention_factor": 1.0}},
            {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "yarn", "truncate": False}},
        ],
    ),
    "mistral": (
        {
            "architectures": ["MistralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "model_type": "mistral",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 8,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": 72,
        },
        [{"sliding_window": None}, {"sliding_window": 7}, {"sliding_window": 9}],
    ),
    # A sliding window that is switched off, as in most of this family: it must not be applied.
    "qwen2": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "max_window_layers": 0,
            "model_type": "qwen2",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 80,
        },
        [{"use_sliding_window": True}],
    ),
    # These two as transformers 5 writes them: rope_parameters and dtype.
    "qwen3": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "bos_token_id": 1,
            "dtype": "bfloat16",
            "eos_token_id": 2,
            "head_dim": 16,
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "max_window_layers": 2,
            "model_type": "qwen3",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "vocab_size": 64,
        },
        [{"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}],
    ),
    "mixtral": (
        {
            "architectures": ["MixtralForCausalLM"],
            "dtype": "bfloat16",
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "model_type": "mixtral",
            "num_attention_heads": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "vocab_size": 64,
        },
        [{"num_experts_per_tok": 1}, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}],
    ),
    # Layers 0 and 2 are dense because of decoder_sparse_step, 1 because of mlp_only_layers.
    "qwen3_moe": (QWEN3_MOE, [{"norm_topk_prob": False}]),
    "qwen3_moe_raw_topk": (
        QWEN3_MOE
        | {"decoder_sparse_step": 1, "max_window_layers": 2, "mlp_only_layers": [], "norm_topk_prob": False, "num_hidden_layers": 2},
        [{"norm_topk_prob": True}],
    ),
    "mamba": (
        {
            "architectures": ["MambaForCausalLM"],
            "bos_token_id": 0,
            "conv_kernel": 4,
            "d_inner": 64,
            "d_model": 32,
            "eos_token_id": 0,
            "expand": 2,
            "fused_add_norm": True,
            "hidden_act": "silu",
            "hidden_size": 32,
            "initializer_range": 0.1,
            "intermediate_size": 64,
            "layer_norm_epsilon": 1e-5,
            "model_type": "mamba",
            "n_layer": 2,
            "num_hidden_layers": 2,
            "pad_token_id": 0,
            "pad_vocab_size_multiple": 8,
            "rescale_prenorm_residual": False,
            "residual_in_fp32": True,
            "rms_norm": True,
            "ssm_cfg": {},
            "state_size": 16,
            "tie_word_embeddings": True,
            "time_step_floor": 0.0001,
            "time_step_init_scheme": "random",
            "time_step_max": 0.1,
            "time_step_min": 0.001,
            "time_step_rank": 4,
            "time_step_scale": 1.0,
            "torch_dtype": "bfloat16",
            "use_bias": False,
            "use_cache": True,
            "use_conv_bias": True,
            "vocab_size": 64,
        },
        [],
    ),
    "bert": (
        {
            "architectures": ["BertModel"],
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 32,
            "model_type": "bert",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "torch_dtype": "bfloat16",
            "type_vocab_size": 2,
            "use_cache": True,
            "vocab_size": 64,
        },
        [{"hidden_act": "gelu_new"}],
    ),
}


def weight(name, shape, rng):
    """Random values that a bf16 holds, so chosen that each tensor matters."""
    noise = torch.randn(shape, generator=rng)
    if name.endswith("A_log"):
        value = torch.arange(1, shape[1] + 1).log() + 0.2 * noise
    elif name.endswith("dt_proj.bias"):
        value = -2 + 0.5 * noise  # small steps, so that the state remembers
    elif name.endswith(".D") or (name.endswith("weight") and "norm" in name.lower()):
        value = 1 + 0.2 * noise
    elif name.endswith("bias"):
        value = 0.2 * noise
    elif "conv1d" in name or name.endswith("mlp.gate.weight"):
        value = 0.5 * noise
    else:
        value = 0.15 * noise
    return value.to(torch.bfloat16)


def hub_tensors(model, model_type):
    """The weights under the names of published checkpoints. transformers 5 joins experts in memory; files have them one by one."""
    tensors = {}
    for name, value in model.named_parameters():
        value = value.detach().to(torch.bfloat16)
        if ".experts." not in name:
            if model_type == "mixtral":
                name = name.replace(".mlp.", ".block_sparse_moe.")
            tensors[name] = value
            continue
        stem, joined = name.rsplit(".", 1)
        for expert, matrix in enumerate(value):
            parts = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2))) if joined == "gate_up_proj" else {joined: matrix}
            for part, values in parts.items():
                to = f"{stem}.{expert}.{part}.weight"
                if model_type == "mixtral":
                    part = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}[part]
                    to = f"{stem}.{expert}.{part}.weight".replace(".mlp.", ".block_sparse_moe.")
                tensors[to] = values
    return {name: value.contiguous() for name, value in tensors.items()}


def load(folder):
    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def load_changed(folder, tensors, settings):
    """The model of the folder with these tensors and with some settings changed."""
    with tempfile.TemporaryDirectory() as changed:
        changed = Path(changed)
        config = json.loads((folder / "config.json").read_text())
        (changed / "config.json").write_text(json.dumps(config | settings))
        save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
        return load(changed)


@torch.inference_mode()
def run(model, inputs):
    if model.config.model_type == "bert":
        out = model(**inputs, output_hidden_states=True)
        return {
            "hidden_states": torch.stack(out.hidden_states),
            "last_hidden_state": out.last_hidden_state,
            "pooler_output": out.pooler_output,
        }
    return {"logits": model(**inputs, use_cache=False).logits}


def difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@torch.inference_mode()
def narrowest_choice(model, inputs):
    """Least distance of a chosen expert's score from one that wasn't chosen, before the softmax."""
    narrowest, k = math.inf, model.config.num_experts_per_tok
    for scores in model(**inputs, output_router_logits=True).router_logits:
        scores = scores.sort(dim=-1, descending=True).values
        narrowest = min(narrowest, (scores[:, k - 1] - scores[:, k]).min().item())
    return narrowest


def make(case, number, folder):
    settings, matters = CASES[case]
    folder.mkdir(parents=True, exist_ok=True)
    if "dtype" in settings:
        transformers.AutoConfig.for_model(**settings).save_pretrained(folder)
    else:
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")

    rng = torch.Generator().manual_seed(SEED + number)
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    model = getattr(transformers, settings["architectures"][0])(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight(name, parameter.shape, rng))
    inputs = {"input_ids": torch.randint(settings["vocab_size"], (2, TOKENS), generator=rng)}
    if case == "bert":
        inputs["attention_mask"] = torch.ones(2, TOKENS, dtype=torch.int64)
        inputs["attention_mask"][1, PADDED_AFTER:] = 0
        inputs["input_ids"][1, PADDED_AFTER:] = settings["pad_token_id"]
    outputs = run(model, inputs)
    tensors = hub_tensors(model, settings["model_type"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(inputs | {name: value.contiguous() for name, value in outputs.items()}, folder / "expected.safetensors")

    rows = [("loaded again", difference(outputs, run(load(folder), inputs)), "<=", 1e-6)]
    if hasattr(config, "num_experts_per_tok"):
        rows.append(("narrowest choice of experts", narrowest_choice(model, inputs), ">", 1e-3))
    for change in matters:
        moved = difference(outputs, run(load_changed(folder, tensors, change), inputs))
        rows.append((json.dumps(change), moved, ">", 3e-4))
    for name, value in sorted(tensors.items()):
        noisy = (value.float() + 0.1 * torch.randn(value.shape, generator=rng)).to(torch.bfloat16)
        moved = difference(outputs, run(load_changed(folder, tensors | {name: noisy}, {}), inputs))
        # A key's bias adds the same to all scores of a query, which the softmax takes away again (without RoPE).
        no_effect = case == "bert" and name.endswith("key.bias")
        rows.append((f"{name} {list(value.shape)}", moved, "<" if no_effect else ">", 1e-3))

    largest = max(value.abs().max().item() for value in outputs.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{case}: {size} bytes, outputs up to {largest:.2f}")
    failed = 0
    for what, value, sign, bound in rows:
        good = {"<=": value <= bound, "<": value < bound, ">": value > bound}[sign]
        failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {value:.2e} {sign} {bound:.0e}  {what}")
    return failed


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    folder = arguments.parse_args().folder
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = sum(make(case, number, folder / case) for number, case in enumerate(CASES))
    raise SystemExit(f"{failed} checks failed" if failed else 0)


if __name__ == "__main__":
    main()
