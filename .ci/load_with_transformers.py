"""Loads unpacked models with transformers and compares their logits with the source's.

pip install torch transformers safetensors
python3 .ci/load_with_transformers.py UC FOLDER MODEL... [--record FILE]

For each MODEL (a Hugging Face folder): packs it with UC, unpacks it into FOLDER, loads both with
AutoModelForCausalLM and runs one sequence of tokens 1, 2, ..., 64 in binary32.
"""

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import torch
import transformers


def logits(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    with torch.no_grad():
        out = model(torch.arange(1, 65).unsqueeze(0)).logits[0].double()
    return out, {key: sorted(map(str, value)) for key, value in info.items()}


def main():
    args = sys.argv[1:]
    record = None
    if "--record" in args:
        at = args.index("--record")
        record = pathlib.Path(args[at + 1])
        del args[at : at + 2]
    uc, folder, models = args[0], pathlib.Path(args[1]), [pathlib.Path(m) for m in args[2:]]
    rows = []
    for model in models:
        pack, out = folder / f"{model.name}.uc", folder / f"{model.name}.out"
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([uc, "pack", "-q", model, "-o", pack, "--force"], check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run([uc, "unpack", pack, "-o", out], check=True, capture_output=True, text=True)
        (source, _), (packed, info) = logits(model), logits(out)
        log_p, log_q = source.log_softmax(-1), packed.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        rows.append({
            "model": model.name,
            "unpack": done.stdout.replace(str(folder), "FOLDER").splitlines(),
            "loading_info": info,
            "kl_mean": float(kl.mean()),
            "top1_agreement": float((source.argmax(-1) == packed.argmax(-1)).double().mean()),
        })
        print(json.dumps(rows[-1], indent=1))
    if record:
        record.write_text(json.dumps({
            "what": "transformers loads unpacked models; logits of 64 tokens against the source's",
            "command": "python3 .ci/load_with_transformers.py UC FOLDER MODEL... --record FILE",
            "commit": os.environ.get("UC_COMMIT", "unknown"),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()},
            "models": rows,
        }, indent=1) + "\n")


main()
