#!/usr/bin/env python3
"""What overlays buy: KL divergence against their bits, beside the same bits in the base.

    benches/overlays.py UC MODELS CORPUS OUT.json [NAME ...]

UC is the binary, MODELS a folder of checkpoints called NAME (default: dense-4m moe mamba), CORPUS a folder with
calib.txt, which everything is tuned on, and heldout.txt, which it is reported on. For each model:

1. an uncalibrated 5-bit pack, its base frozen: plain SVD and the whitened closed form at 0.125, 0.25, 0.5 and 1 bit; gradient training
   (KL) at 0.5 bit with three seeds, and for dense-4m at the other budgets with one and at 0.5 with the other objectives;
2. a calibrated pack at 5.15 bpw, whose base may change: closed form up to 5.25 and 5.5 bpw, gradient training up to 5.5 (dense-4m:
   both), each beside the base alone at the same bits.

Every row is what `uc train --json` printed, without paths. OUT.json is written anew after each row; rows that are there already are
not measured again.
"""

import json
import os
import subprocess
import sys
import tempfile

STEPS, ROUND = 80, 40
FIRST, OTHERS = 0.5, [0.125, 0.25, 1.0]


def cpu():
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    uc, models, corpus, out = sys.argv[1:5]
    names = sys.argv[5:] or ["dense-4m", "moe", "mamba"]
    calib, held = (os.path.join(corpus, f) for f in ("calib.txt", "heldout.txt"))
    record = {
        "command": "benches/overlays.py UC MODELS CORPUS OUT.json " + " ".join(names),
        "commit": os.environ.get("UC_COMMIT", "unknown"),
        "cpu": cpu(),
        "threads": os.cpu_count(),
        "tool": run(uc, "--version").strip(),
        "steps": STEPS,
        "round": ROUND,
        "rows": [],
    }
    if os.path.exists(out):
        with open(out) as f:
            record["rows"] = json.load(f)["rows"]
    known = {key_of(row) for row in record["rows"]}

    def train(pack, model, folder, common, bpw, method, seed=0, objective="kl", frozen=True):
        row = dict(common, method=method, frozen_base=frozen, target_bpw=round(bpw, 4))
        if method == "gradient":
            row.update(seed=seed, objective=objective)
        if key_of(row) in known:
            return
        flags = ["--bpw", f"{bpw:.4f}", "--method", method, "--calibration", os.path.join(folder, "cal")]
        if method == "gradient":
            steps = (STEPS, ROUND) if objective != "hidden" else (STEPS // 4, ROUND // 4)
            flags += ["--steps", str(steps[0]), "--round", str(steps[1])]
            flags += ["--seed", str(seed), "--objective", objective]
        if frozen:
            flags.append("--frozen-base")
        found = json.loads(run(
            uc, "train", pack, "--model", model, "--text", calib, "--held-out", held,
            "-o", os.path.join(folder, "out.uc"), "--force", "--json", "-q", *flags,
        ))
        for key in ("output", "files", "ranks", "name"):
            found.pop(key)
        row.update(found)
        record["rows"].append(row)
        with open(out, "w") as f:
            json.dump(record, f, indent=1, sort_keys=True)
            f.write("\n")
        print(common, method, seed, objective, f"{found['bpw_after']:.4f}", found["kld_before"], found["kld_after"],
              found["kept"], flush=True)

    with tempfile.TemporaryDirectory() as temp:
        packs = {name: prepare(uc, os.path.join(models, name), calib, os.path.join(temp, name)) for name in names}

        def frozen(name, budget):
            folder, bpw = packs[name]
            common = {"model": name, "base": "uncalibrated"}

            def one(*args, **kwargs):
                train(os.path.join(folder, "rtn.uc"), os.path.join(models, name), folder, common, bpw + budget, *args, **kwargs)

            one("svd")
            one("whitened")
            # Training takes minutes; where it doesn't decide anything it is left to one model.
            seeds = 3 if budget == FIRST else int(name == "dense-4m")
            for seed in range(seeds):
                one("gradient", seed)
            if name == "dense-4m" and budget == FIRST:
                for objective in ("hidden", "hybrid"):
                    one("gradient", 0, objective)

        for name in names:
            frozen(name, FIRST)
        for budget in OTHERS:
            for name in names:
                frozen(name, budget)
        for name in names:
            common = {"model": name, "base": "calibrated, 5.15 bpw"}
            for bpw in (5.25, 5.5):
                for method in ("whitened", "gradient"):
                    if method == "gradient" and bpw == 5.25 and name != "dense-4m":
                        continue
                    folder = packs[name][0]
                    train(os.path.join(folder, "calibrated.uc"), os.path.join(models, name), folder, common, bpw, method, frozen=False)


def prepare(uc, model, calib, folder):
    """Both packs of a model and its calibration; gives the rate of the uncalibrated one."""
    os.mkdir(folder)
    cal = os.path.join(folder, "cal")
    run(uc, "calibrate", model, "--text", calib, "-o", cal, "-q")
    run(uc, "pack", model, "-o", os.path.join(folder, "calibrated.uc"), "--calibration", cal, "--bpw", "5.15", "-q")
    packed = json.loads(run(uc, "pack", model, "-o", os.path.join(folder, "rtn.uc"), "--json", "-q"))
    return folder, packed["body_bpw"]


def key_of(row):
    return tuple(row.get(k) for k in ("model", "base", "method", "target_bpw", "seed", "objective"))


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
