#!/usr/bin/env python3
"""Make tiny-llama: a very small Llama, really trained, as example data for weight containers.

    python make_tiny_llama.py --text TEXT --heldout TEXT -o tiny-llama

TEXT is a UTF-8 file whose documents are parted by three newlines. The published folder was made with

    python make_tiny_llama.py --text calib.txt --heldout heldout.txt -o tiny-llama

from two disjoint 200 kB files of public-domain English (speeches, Austen, psalm commentary, Melville, King
James Bible, reference notes); train_log.json holds their SHA-256 sums. It takes about three minutes on one
thread.

Requirements: Python 3.11, torch 2.15, transformers 5.23, tokenizers 0.23, safetensors 0.8.

Seeds and thread count are fixed and no clock is read, so a rerun with the same versions on the same kind of
CPU gives the same bytes. Training is fp32; the saved weights are the fp32 masters rounded once (to nearest
even) to bf16. The output matrix is tied to the token embeddings, and the file holds both tensors with
identical bytes, as many published checkpoints do.
"""

import argparse
import hashlib
import json
import math
import platform
from pathlib import Path

import safetensors
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SEED = 1
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
CONTEXT = 128

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
}

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "unk_token": None,
    "add_bos_token": False,
    "model_max_length": CONTEXT,
    "clean_up_tokenization_spaces": False,
}

TRAINING = {
    "optimizer": "AdamW",
    "betas": [0.9, 0.95],
    "weight_decay": 1.0,
    "input_noise": 0.15,
    "peak_learning_rate": 4e-3,
    "final_learning_rate": 1e-4,
    "warmup_steps": 50,
    "schedule": "linear warm-up, then cosine",
    "gradient_clip": 1.0,
    "batch": 16,
    "context": CONTEXT,
    "steps": 1200,
    "seed": SEED,
}
LOG_EVERY = 100

MODEL_CARD = """\
---
license: cc0-1.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# tiny-llama

A very small but really trained `LlamaForCausalLM`: {params:,} parameters, {layers} layers, hidden size {hidden},
{heads} attention heads sharing {kv_heads} KV head of {head_dim}, feed-forward {ffn}, context {context}, byte-level BPE vocabulary of
{vocab}. It is example data for tools that read and write transformer weights, not a useful model.

- **Weights**: all bf16, in one `model.safetensors`. They are the fp32 training masters rounded once to bf16 and
  were never quantized. `lm_head.weight` is tied to `model.embed_tokens.weight`; the file holds both, byte for byte
  the same.
- **Trained on** {text_kb} kB of public-domain English: speeches, novels, psalm commentary and scripture.
  {steps:,} steps of {batch} windows of {context} tokens ({tokens:,} tokens, about {epochs:.0f} passes), AdamW, peak rate {lr}, weight
  decay {decay}, {noise:.0%} of the input tokens replaced at random against overfitting.
- **Held-out perplexity: {ppl:.4f}** per token (NLL {nll:.6f} nats; the unigram entropy of the training text is
  {unigram:.3f} nats, perplexity {unigram_ppl:.0f}).
- **How it is measured**: bf16 weights widened to fp32, fp32 arithmetic on CPU; the held-out file is encoded whole
  without special tokens and cut into windows of {context} tokens without overlap, the last partial one dropped; each
  window runs on its own and its tokens 2..{context} are scored ({scored:,} tokens in {windows} windows).

`train_log.json` holds the loss curve, the settings, the versions and the SHA-256 sums of both text files.
"""

NOTES = {
    "about": "A small file in a subfolder, as many published model folders have.",
    "prompt": "The people of the United States",
}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(documents):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode_documents(tokenizer, documents):
    """All documents as one row of ids, each ended by the end-of-text token."""
    ids = []
    for document in documents:
        ids += tokenizer.encode(document).ids + [END_OF_TEXT_ID]
    return torch.tensor(ids)


def unigram_entropy(ids):
    p = torch.bincount(ids).double() / len(ids)
    p = p[p > 0]
    return -(p * p.log()).sum().item()


def learning_rate(step):
    peak, final = TRAINING["peak_learning_rate"], TRAINING["final_learning_rate"]
    warmup, steps = TRAINING["warmup_steps"], TRAINING["steps"]
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def next_token_loss(model, inputs, windows):
    logits = model(input_ids=inputs, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())


def with_noise(windows, draw):
    """Replaces some input tokens by random ones, which keeps the model from learning the short text by heart."""
    noise = torch.randint(CONFIG["vocab_size"], windows.shape, generator=draw)
    replaced = torch.rand(windows.shape, generator=draw) < TRAINING["input_noise"]
    return torch.where(replaced, noise, windows)


def train(model, ids):
    """Trains in place; returns the loss curve, each point the mean, with input noise, since the point before."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": TRAINING["weight_decay"]},
            {"params": norms, "weight_decay": 0.0},
        ],
        betas=TRAINING["betas"],
    )
    draw = torch.Generator().manual_seed(SEED)
    all_windows = ids.unfold(0, CONTEXT, 1)
    curve, total = [], 0.0
    model.train()
    for step in range(TRAINING["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        starts = torch.randint(len(all_windows), (TRAINING["batch"],), generator=draw)
        windows = all_windows[starts]
        loss = next_token_loss(model, with_noise(windows, draw), windows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING["gradient_clip"])
        optimizer.step()
        total += loss.item()
        done = step + 1
        if done % LOG_EVERY == 0:
            curve.append({"step": done, "train_loss": round(total / LOG_EVERY, 4)})
            print(f"step {done}: train loss {curve[-1]['train_loss']}", flush=True)
            total = 0.0
    return curve


def save_weights(model, path):
    weights = {name: w.detach().to(torch.bfloat16).contiguous() for name, w in model.state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path, metadata={"format": "pt"})


@torch.no_grad()
def evaluate(folder, text):
    """Held-out loss of the saved files, by the protocol the model card describes."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    windows = ids.unfold(0, CONTEXT, CONTEXT)
    nll = sum(next_token_loss(model, w[None], w[None]).item() for w in windows) / len(windows)
    return {
        "tokens": len(ids),
        "windows": len(windows),
        "scored_tokens": len(windows) * (CONTEXT - 1),
        "nll": round(nll, 6),
        "perplexity": round(math.exp(nll), 4),
    }


def main():
    parser = argparse.ArgumentParser(description="Make tiny-llama, a very small trained Llama.")
    parser.add_argument("--text", type=Path, required=True, help="training text")
    parser.add_argument("--heldout", type=Path, required=True, help="text for the perplexity")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)

    text = args.text.read_text(encoding="utf-8")
    documents = text.rstrip("\n").split("\n\n\n")
    tokenizer = train_tokenizer(documents)
    ids = encode_documents(tokenizer, documents)
    unigram = unigram_entropy(ids)
    print(f"{len(documents)} documents, {len(ids)} tokens, unigram entropy {unigram:.3f} nats")

    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, "torch_dtype": "float32"}))
    params = sum(p.numel() for p in model.parameters())
    curve = train(model, ids)

    (args.out / "1_Extras").mkdir(parents=True, exist_ok=True)
    save_weights(model, args.out / "model.safetensors")
    tokenizer.save(str(args.out / "tokenizer.json"))
    write_json(args.out / "config.json", CONFIG)
    write_json(args.out / "generation_config.json", {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID})
    write_json(args.out / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(args.out / "1_Extras" / "notes.json", NOTES)

    heldout = evaluate(args.out, args.heldout.read_text(encoding="utf-8"))
    print(f"held-out: {heldout}")
    trained_tokens = TRAINING["steps"] * TRAINING["batch"] * CONTEXT
    write_json(
        args.out / "train_log.json",
        {
            "params": params,
            "text": {"file": args.text.name, "sha256": sha256(args.text), "tokens": len(ids)},
            "heldout_text": {"file": args.heldout.name, "sha256": sha256(args.heldout)},
            "training": TRAINING,
            "trained_tokens": trained_tokens,
            "unigram_entropy": round(unigram, 6),
            "heldout": heldout,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
                "safetensors": safetensors.__version__,
            },
            "loss_curve": curve,
        },
    )
    card = MODEL_CARD.format(
        params=params,
        layers=CONFIG["num_hidden_layers"],
        hidden=CONFIG["hidden_size"],
        heads=CONFIG["num_attention_heads"],
        kv_heads=CONFIG["num_key_value_heads"],
        head_dim=CONFIG["head_dim"],
        ffn=CONFIG["intermediate_size"],
        vocab=CONFIG["vocab_size"],
        context=CONTEXT,
        text_kb=round(args.text.stat().st_size / 1000),
        steps=TRAINING["steps"],
        batch=TRAINING["batch"],
        tokens=trained_tokens,
        epochs=trained_tokens / len(ids),
        lr=TRAINING["peak_learning_rate"],
        decay=TRAINING["weight_decay"],
        noise=TRAINING["input_noise"],
        ppl=heldout["perplexity"],
        nll=heldout["nll"],
        unigram=unigram,
        unigram_ppl=math.exp(unigram),
        scored=heldout["scored_tokens"],
        windows=heldout["windows"],
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
