#!/usr/bin/env python3
"""Times PyTorch computing the perplexity of a text, for comparison with ours. Prints one JSON object.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3
    python3 benches/torch_speed.py MODEL_DIR TEXT_FILE --threads 2 --batch 8

The whole file is encoded once with MODEL_DIR/tokenizer.json, without special tokens, and cut into windows of 256; the last,
partial one is dropped. Each window starts from an empty state; its tokens 2 to 256 are scored. Windows run `--batch` at a time,
in float32, with PyTorch's scaled dot product attention where the model has attention.

`seconds` has the forward passes with their cross entropy over the whole file, once per repetition, after one batch that warms
up. Loading and tokenization are not in them; they have their own fields.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import tokenizers
import torch
import transformers

WINDOW = 256


@torch.inference_mode()
def total_nll(model, batches):
    total = 0.0
    for ids in batches:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        ).item()
    return total


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("model_dir", type=Path)
    arguments.add_argument("text_file", type=Path)
    arguments.add_argument("--batch", type=int, default=8, help="windows run at a time")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--repeat", type=int, default=3)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    start = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model_dir, dtype=torch.float32, local_files_only=True
    ).eval()
    load_seconds = time.perf_counter() - start

    tokenizer = tokenizers.Tokenizer.from_file(str(args.model_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = args.text_file.read_bytes().decode("utf-8")
    start = time.perf_counter()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokenize_seconds = time.perf_counter() - start

    count = len(ids) // WINDOW
    if count == 0:
        raise SystemExit(f"{args.text_file} has {len(ids)} tokens, less than a window of {WINDOW}")
    batches = torch.tensor(ids[: count * WINDOW]).view(count, WINDOW).split(args.batch)

    total_nll(model, batches[:1])
    seconds = []
    for _ in range(args.repeat):
        start = time.perf_counter()
        total = total_nll(model, batches)
        seconds.append(time.perf_counter() - start)

    tokens = count * (WINDOW - 1)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "median_seconds": statistics.median(seconds),
                "tokens": tokens,
                "nll": total / tokens,
                "ppl": math.exp(total / tokens),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "threads": args.threads,
                "batch": args.batch,
                "attention": model.config._attn_implementation,
                "load_seconds": load_seconds,
                "tokenize_seconds": tokenize_seconds,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
