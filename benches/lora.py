#!/usr/bin/env python3
"""Imported adapters against PEFT's own merge: benches/lora.py UC MODEL OUT.json   (needs torch, transformers, peft)

Makes LoRA adapters for MODEL with PEFT (plain, rank-stabilised with patterns, on the embedding), imports each with
`uc overlay add --lora`, and compares what `uc unpack --dtype f32` gives with PEFT's merged weights on the same base, the unpacked
pack in float32. Writes the largest differences and PEFT's versions to OUT.json.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import peft
import torch
import transformers
from safetensors.torch import load_file

ADAPTERS = {
    "plain": dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]),
    "plain, values of bfloat16": dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]),
    "patterns": dict(r=8, lora_alpha=4, use_rslora=True, target_modules=["k_proj", "up_proj"],
                     rank_pattern={"up_proj": 3}, alpha_pattern={"layers.1.self_attn.k_proj": 32}),
    "embedding": dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "o_proj"]),
}


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    uc, model, out = sys.argv[1:4]
    rows = []
    with tempfile.TemporaryDirectory() as temp:
        temp = pathlib.Path(temp)
        pack, base = temp / "base.uc", temp / "base"
        run(uc, "pack", model, "-o", pack, "-q")
        run(uc, "unpack", pack, "-o", base, "--dtype", "f32", "-q")
        for name, config in ADAPTERS.items():
            torch.manual_seed(7)
            wrapped = peft.get_peft_model(
                transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), peft.LoraConfig(**config))
            with torch.no_grad():
                for key, value in wrapped.named_parameters():
                    if "lora_" in key:
                        noise = torch.randn_like(value) * 0.02
                        value.copy_(noise.bfloat16().float() if "bfloat16" in name else noise)
            adapter, packed, unpacked = temp / name, temp / f"{name}.uc", temp / f"{name}.out"
            wrapped.save_pretrained(adapter)
            run(uc, "overlay", "add", pack, "--lora", adapter, "-o", packed, "-q")
            blocks = json.loads(run(uc, "overlay", "list", packed, "--json"))["overlays"][0]
            assert json.loads(run(uc, "verify", packed, "--json"))["effective"] == "ok"
            run(uc, "unpack", packed, "-o", unpacked, "--dtype", "f32", "-q")
            merged = wrapped.merge_and_unload().state_dict()
            found, plain = load_file(unpacked / "model.safetensors"), load_file(base / "model.safetensors")
            changed = {t["tensor"] for t in blocks["tensors"]}
            worst = {"absolute": 0.0, "of_change": 0.0}
            for key, value in found.items():
                # Without the adapter nothing may differ.
                if key not in changed:
                    assert torch.equal(value, plain[key]), key
                    continue
                change = (merged[key] - plain[key]).abs().max().item()
                assert change > 0, key
                error = (merged[key] - value).abs().max().item()
                worst["absolute"] = max(worst["absolute"], error)
                worst["of_change"] = max(worst["of_change"], error / change)
            rows.append({"adapter": name, "config": config, "tensors": len(changed), "largest_error": worst,
                         "rounded_factors": blocks["info"]["rounded_factors"]})
            print(name, len(changed), worst, flush=True)
    record = {
        "what": "largest difference of base and imported adapter from PEFT's merged weights, in binary32",
        "command": "benches/lora.py UC MODEL OUT.json", "commit": os.environ.get("UC_COMMIT", "unknown"),
        "model": pathlib.Path(model).name, "peft": peft.__version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "rows": rows,
    }
    pathlib.Path(out).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
