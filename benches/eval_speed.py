"""Speed of `uc eval` beside PyTorch's forward pass, taking turns on one machine.

    PYTHON benches/eval_speed.py --uc target/release/uc --model MODEL_DIR --text FILE --record FILE

PYTHON has torch and transformers (`pip install torch transformers`). `uc eval MODEL --against MODEL` runs the model
twice and compares distributions; its time is that of the whole process, loading included. PyTorch's time is that of one
forward pass with log probabilities over the same sequences, without loading (`torch_speed.py`, best of its batch sizes).
The ratio is twice PyTorch's time over that of `uc`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from quality import cpu

HERE = pathlib.Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uc", type=pathlib.Path, default=pathlib.Path("target/release/uc"))
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--record", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for threads in (1, 2):
        own, peers = [], {1: [], 8: []}
        for _ in range(args.rounds):
            start = time.monotonic()
            command = [args.uc, "-q", "--json", "-j", threads, "eval", args.model, "--against", args.model, "--text", args.text]
            env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
            done = subprocess.run([str(a) for a in command], check=True, capture_output=True, text=True, env=env)
            own.append(time.monotonic() - start)
            found = json.loads(done.stdout)
            for batch, seconds in peers.items():
                command = [sys.executable, HERE / "torch_speed.py", args.model, args.text, "--threads", threads,
                           "--batch", batch, "--repeat", 1]
                done = subprocess.run([str(a) for a in command], check=True, capture_output=True, text=True)
                peer = json.loads(done.stdout)
                seconds.append(peer["median_seconds"])
                assert abs(peer["ppl"] - found["ppl"]) < 1e-3, (peer["ppl"], found["ppl"])
        best = min(statistics.median(seconds) for seconds in peers.values())
        row = {
            "threads": threads, "uc_seconds_two_models": [round(s, 2) for s in own],
            "torch_seconds_one_model_by_batch": {b: [round(s, 2) for s in seconds] for b, seconds in peers.items()},
            "ratio": round(2 * best / statistics.median(own), 3),
        }
        rows.append(row)
        print(row, flush=True)
    record = {
        "what": "uc eval (two models) beside PyTorch's forward pass (one model); ratio = 2 x torch / uc, of medians",
        "command": "PYTHON benches/eval_speed.py --uc target/release/uc --model MODEL_DIR --text FILE --record FILE",
        "commit": args.commit, "cpu": cpu(), "model": args.model.name, "text": args.text.name,
        "torch": peer["torch"], "transformers": peer["transformers"], "rows": rows,
    }
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")


main()
