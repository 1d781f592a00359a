#!/usr/bin/env python3
"""The table of the calibrated encoder: each trick on and off, three architectures, matched bits.

    python3 benches/ablation.py UC MODELS CORPUS OUT

UC is the binary, MODELS the folder with dense-4m, moe and mamba, CORPUS the one with calib.txt, heldout.txt and
heldout-chat.txt. For each pack OUT gets the record of `uc eval` as it wrote it, with a row for each sequence, and
summary.json gets the table. Packs are made from calib.txt; nothing was tuned on the held-out texts.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = ["dense-4m", "moe", "mamba"]
# Name, body bpw, lines of the recipe's table [calibrated].
VARIANTS = [
    ("all", "5.0", []),
    ("all", "5.25", []),
    ("all", "5.5", []),
    ("without feedback across rows", "5.0", ["output_feedback = false"]),
    ("without any feedback", "5.0", ["input_feedback = false"]),
    ("without feedback and descent", "5.0", ["input_feedback = false", "descent_passes = 0"]),
    ("without descent", "5.0", ["descent_passes = 0"]),
    ("planes by tensor", "5.0", ['allocation = "tensor"']),
    ("groups of 32 everywhere", "5.0", ["choose_group = false"]),
    ("default levels", "5.0", ["fit_levels = false"]),
]
FIGURES = ["kld_mean", "kld_se", "ppl_ratio", "ppl_ratio_se", "top1_agreement"]


def cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    uc, models, corpus, out = sys.argv[1], *map(Path, sys.argv[2:5])
    out.mkdir(parents=True, exist_ok=True)
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)

        def run(*args):
            done = subprocess.run([uc, *map(str, args), "--json", "-q"], check=True, capture_output=True)
            return json.loads(done.stdout)

        def pack_and_eval(model, name, bpw, lines, cal, text="heldout.txt", baselines=False, note=""):
            recipe = work / "recipe.toml"
            recipe.write_text("[calibrated]\n" + (f"bpw = {bpw}\n" if bpw else "") + "\n".join(lines) + "\n")
            start = time.time()
            pack = run("pack", models / model, "--calibration", cal, "--recipe", recipe,
                       "-o", work / "p.uc", "--force")
            took = time.time() - start
            slug = "-".join([model, *(name + " " + (bpw or "") + " " + note).split()])
            record = out / f"{slug}.json"
            flags = ["--baseline", "q6k,q5k,q5_0"] if baselines else []
            found = run("eval", work / "p.uc", "--against", models / model, "--text", corpus / text,
                        "--record", record, "--force", *flags)
            row = {"model": model, "name": name, "text": text, "asked_bpw": bpw, "body_bpw": pack["body_bpw"],
                   "file_bpw": pack["file_bpw"], "record": record.name, **{f: found[f] for f in FIGURES}}
            rows.append(row)
            for b in found["baselines"]:
                rows.append({"model": model, "name": b["name"], "text": text, "asked_bpw": None, "record": record.name,
                             **{f: b.get(f) for f in ["body_bpw", *FIGURES]}})
            print(f"{model:9} {name:30} {row['body_bpw']:.4f} {row['kld_mean']:.6f}", file=sys.stderr)
            return took

        for model in MODELS:
            cal = work / f"{model}.cal"
            start = time.time()
            run("calibrate", models / model, "--text", corpus / "calib.txt", "-o", cal)
            seconds[model] = {"calibrate": round(time.time() - start, 1)}
            for i, (name, bpw, lines) in enumerate(VARIANTS):
                took = pack_and_eval(model, name, bpw, lines, cal, baselines=i == 0)
                seconds[model].setdefault("pack", round(took, 1))
            few = work / "few.cal"
            run("calibrate", models / model, "--text", corpus / "calib.txt", "--max-tokens", 8192, "-o", few)
            pack_and_eval(model, "8192 tokens of calibration", "5.0", [], few)
            few.unlink()
            if model == "dense-4m":
                pack_and_eval(model, "all", "5.0", [], cal, "heldout-chat.txt", True, "chat")
    version = subprocess.run([uc, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    summary = {"command": "python3 benches/ablation.py UC MODELS CORPUS OUT", "version": version, "commit": commit,
               "cpu": cpu(), "seconds": seconds, "rows": rows}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


main()
