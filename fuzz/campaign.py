#!/usr/bin/env python3
"""Fuzzes every target for some time and records what was run, what was reached and what was found.

    python3 fuzz/campaign.py --seconds 900 --record benches/records/fuzz.json

Needs nightly Rust and `cargo install cargo-fuzz`. Seeds are written from the vectors first; the corpus that grows
stays in fuzz/corpus. Exit code 1 when a target crashed: the input is in fuzz/artifacts.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TARGETS = "open index manifest receipt calibration shards decode exact overlay roundtrip safetensors signature".split()


def cpu() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def commit() -> str:
    given = os.environ.get("UC_COMMIT")
    return given or subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=HERE, text=True).strip()


def run(target: str, seconds: int) -> dict:
    flags = [f"-max_total_time={seconds}", f"-dict={HERE / 'uc.dict'}", "-rss_limit_mb=2048", "-timeout=20",
             "-print_final_stats=1"]
    found = set((HERE / "artifacts" / target).glob("*"))
    start = time.monotonic()
    done = subprocess.run(["cargo", "+nightly", "fuzz", "run", target, "--", *flags], cwd=HERE.parent,
                          stderr=subprocess.PIPE, text=True, errors="replace")
    log = done.stderr
    spent = time.monotonic() - start
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", log)
    if executed is None:
        sys.exit(f"{target}: no statistics, so nothing was fuzzed\n{log[-3000:]}")
    progress = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", log)
    edges, features, corpus = map(int, progress[-1]) if progress else (0, 0, 0)
    # Artifacts of earlier runs are no findings of this one.
    new = sorted(p.name for p in set((HERE / "artifacts" / target).glob("*")) - found)
    crashed = done.returncode != 0 or "ERROR: libFuzzer" in log or "panicked at" in log
    if crashed:
        print(log[-3000:], file=sys.stderr)
    return {"target": target, "seconds": round(spent), "executions": int(executed.group(1)), "edges": edges,
            "features": features, "corpus": corpus, "findings": new if crashed else []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--record", type=pathlib.Path, help="JSON to write")
    parser.add_argument("targets", nargs="*", default=TARGETS)
    args = parser.parse_args()
    subprocess.run([sys.executable, HERE / "seeds.py"], check=True)
    # Not counted as fuzzing.
    subprocess.run(["cargo", "+nightly", "fuzz", "build"], cwd=HERE.parent, check=True)
    rows = []
    for target in args.targets:
        row = run(target, args.seconds)
        rows.append(row)
        print(f"{target}: {row['executions']} executions in {row['seconds']} s, {row['edges']} edges, "
              f"{row['corpus']} inputs kept, {len(row['findings'])} findings", flush=True)
        if args.record:
            record = {"command": f"python3 fuzz/campaign.py --seconds {args.seconds}", "commit": commit(), "cpu": cpu(),
                      "seconds": sum(r["seconds"] for r in rows),
                      "executions": sum(r["executions"] for r in rows),
                      "findings": sum(len(r["findings"]) for r in rows), "targets": rows}
            args.record.write_text(json.dumps(record, indent=2) + "\n")
    if any(r["findings"] for r in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
