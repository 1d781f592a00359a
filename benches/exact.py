#!/usr/bin/env python3
"""The exact rung beside zipnn (pip install zipnn safetensors torch), one thread, taking turns.

    cargo bench --bench exact --no-run          # prints the path of BENCH
    python3 benches/exact.py BENCH OUT.json [--cast FILE.safetensors NAME] MODEL...

BENCH is the benchmark's binary. MODEL is a folder with one model.safetensors. --cast makes two more from a checkpoint: NAME-bf16 and NAME-f16,
and measures it as NAME-f32 too. Every round measures all of them; figures are medians of rounds. zipnn gets the bytes behind the header.
"""

import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from zipnn import ZipNN

ROUNDS = 7
TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def cast(file, name, folder):
    """Folders with the checkpoint in three types."""
    tensors, made = load_file(file), []
    for label, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        out = folder / f"{name}-{label}"
        out.mkdir()
        new = {k: (t.to(dtype) if t.is_floating_point() else t).contiguous() for k, t in tensors.items()}
        save_file(new, out / "model.safetensors", metadata={"format": "pt"})
        made.append(out)
    return made


def body(model):
    """The bytes behind the header, and the type of most of them."""
    data = (model / "model.safetensors").read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    sizes = {}
    for name, t in header.items():
        if name != "__metadata__":
            sizes[t["dtype"]] = sizes.get(t["dtype"], 0) + t["data_offsets"][1] - t["data_offsets"][0]
    return data[8 + n :], max(sizes, key=sizes.get)


def zipnn(data, dtype):
    """Size and seconds of zipnn, the median of some calls after one that isn't counted. It changes what it is given, and allocates its output."""
    z = ZipNN(input_format="byte", bytearray_dtype=TYPES[dtype], threads=1)
    encode, decode = [], []
    for _ in range(6):
        given = bytearray(data)
        start = time.perf_counter()
        packed = z.compress(given)
        middle = time.perf_counter()
        out = z.decompress(packed)
        end = time.perf_counter()
        encode.append(middle - start)
        decode.append(end - middle)
    assert bytes(out) == data, "zipnn gives other bytes"
    gb, median = len(data) / 1e9, lambda times: statistics.median(times[1:])
    return {"ratio": len(packed) / len(data), "encode_gb_s": gb / median(encode), "decode_gb_s": gb / median(decode)}


def main():
    args = sys.argv[1:]
    bench, out, models = args.pop(0), args.pop(0), []
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        while args:
            arg = args.pop(0)
            if arg == "--cast":
                models += cast(args.pop(0), args.pop(0), Path(folder))
            else:
                models.append(Path(arg))
        bodies = {m: body(m) for m in models}
        found = {}
        record = Path(folder) / "record.json"
        for _ in range(ROUNDS):
            for m in models:
                subprocess.run([bench, "--bench", "--rounds", "5", "--record", record, m], check=True,
                               stdout=subprocess.DEVNULL)
                made = json.loads(record.read_text())
                for row in made["rows"]:
                    found.setdefault((m.name, "uc, planes inside" if row["base"] else "uc, exact only"), []).append(row)
                found.setdefault((m.name, "zipnn"), []).append(zipnn(*bodies[m]))
    rows = []
    for (model, by), runs in found.items():
        keys = [k for k in ("ratio", "decode_gb_s", "decode_fresh_gb_s", "encode_gb_s", "decode_base_gb_s", "memcpy_gb_s", "fit_seconds") if k in runs[0]]
        rows.append({"model": model, "by": by, **{k: round(statistics.median(r[k] for r in runs), 5) for k in keys}})
    all_ = {
        "what": "bytes of all tensors over the source's; GB of source a second on one thread; medians of rounds in which all take turns",
        "command": "python3 benches/exact.py BENCH OUT.json --cast all-MiniLM-L6-v2/model.safetensors minilm dense-4m",
        "commit": made["commit"], "cpu": made["cpu"], "rounds": ROUNDS, "rows": rows,
    }
    Path(out).write_text(json.dumps(all_, indent=1) + "\n")
    for row in rows:
        print(row)


main()
