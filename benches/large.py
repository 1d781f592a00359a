#!/usr/bin/env python3
"""Packs, verifies and unpacks a generated checkpoint that is larger than the memory allowed, and opens packs of many
tensors. Writes a record.

    cargo build --release
    python3 benches/large.py --uc target/release/uc --folder /somewhere/with/25GB \\
        --record benches/records/large.json

Python's standard library only. The checkpoint has the layer shapes of Llama 3 8B (hidden 4096, MLP 14336, 8 of 32 heads
for keys and values, vocabulary 128256), as many layers as it takes, in bf16 shards of 2 GB with an index file. Its values
are normally distributed: rows are cut at random from one block of 32 Mi samples, so that every tensor is its own.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

HIDDEN, MLP, KV, VOCAB = 4096, 14336, 1024, 128256
SHARD_BYTES = 2_000_000_000


def block(samples):
    """Normally distributed bf16 of standard deviation 0.02, little-endian."""
    rng = random.Random(7)
    # A table of quantiles, then random bytes choose from it: fast without numpy.
    from statistics import NormalDist

    normal = NormalDist(0, 0.02)
    table = []
    for i in range(65536):
        bits = struct.unpack("<I", struct.pack("<f", normal.inv_cdf((i + 0.5) / 65536)))[0]
        table.append(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)
    out = bytearray()
    for _ in range(samples // 65536):
        rng.shuffle(table)
        out += struct.pack("<65536H", *table)
    return bytes(out)


def shapes(layers):
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    for i in range(layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", [HIDDEN]
        yield at + "mlp.down_proj.weight", [HIDDEN, MLP]
        yield at + "mlp.gate_proj.weight", [MLP, HIDDEN]
        yield at + "mlp.up_proj.weight", [MLP, HIDDEN]
        yield at + "post_attention_layernorm.weight", [HIDDEN]
        yield at + "self_attn.k_proj.weight", [KV, HIDDEN]
        yield at + "self_attn.o_proj.weight", [HIDDEN, HIDDEN]
        yield at + "self_attn.q_proj.weight", [HIDDEN, HIDDEN]
        yield at + "self_attn.v_proj.weight", [KV, HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCAB, HIDDEN]


def count(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def header(tensors):
    entries, at = {}, 0
    for name, shape in tensors:
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * count(shape)]}
        at += 2 * count(shape)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def generate(folder, wanted):
    folder.mkdir(parents=True)
    source, rng = block(1 << 25), random.Random(11)
    layers, total = 0, 0
    while total < wanted:
        layers += 1
        total = sum(2 * count(s) for _, s in shapes(layers))
    shards, size = [[]], 0
    for name, shape in shapes(layers):
        if shards[-1] and size + 2 * count(shape) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += 2 * count(shape)
    places = {}
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(header(tensors))
            for name, shape in tensors:
                places[name] = file
                left = 2 * count(shape)
                while left:
                    n = min(left, 8 * HIDDEN)
                    at = 2 * rng.randrange((len(source) - n) // 2)
                    out.write(source[at : at + n])
                    left -= n
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
              "intermediate_size": MLP, "num_hidden_layers": layers, "vocab_size": VOCAB}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return {"bytes": total, "layers": layers, "shards": len(shards)}


def many(folder, n, cols):
    """A checkpoint of n tensors [2, cols]."""
    folder.mkdir(parents=True)
    rng = random.Random(n)
    tensors = [(f"model.layers.{i // 100}.experts.{i % 100}.weight", [2, cols]) for i in range(n)]
    with open(folder / "model.safetensors", "wb") as out:
        out.write(header(tensors))
        for _ in tensors:
            out.write(struct.pack(f"<{2 * cols}H", *(0x3C00 + rng.getrandbits(8) for _ in range(2 * cols))))


def run(command):
    """Seconds, and the most memory that the process held, in bytes. At least what this script holds when it starts the
    process: the system counts that too, so small figures are upper bounds."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{command} ended with {status}")
    return seconds, usage.ru_maxrss * 1024, text


def median(values):
    return sorted(values)[len(values) // 2]


def cpu():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def large(uc, work, wanted, rounds):
    source = work / "checkpoint"
    if not source.exists():
        shutil.rmtree(work / "partial", ignore_errors=True)
        made = generate(work / "partial", wanted)
        (work / "partial" / ".made").write_text(json.dumps(made))
        (work / "partial").rename(source)
    made = json.loads((source / ".made").read_text())
    limits = {"512M": ["--max-ram", "512M"], "default": []}
    figures = {name: {} for name in limits}
    roots = set()
    for _ in range(rounds):
        for name, limit in limits.items():
            jobs = {
                "pack": ["pack", source, "-o", work / "big.uc", "--force", "--json", *limit],
                "verify": ["verify", work / "big.uc", "--json", *limit],
                "unpack": ["unpack", work / "big.uc", "-o", work / "out", "--json", *limit],
            }
            for job, arguments in jobs.items():
                seconds, rss, text = run([uc, "-q", *map(str, arguments)])
                figures[name].setdefault(job, []).append((seconds, rss))
                print(f"{job} {name}: {seconds:.1f} s, {rss / 2**20:.0f} MiB", file=sys.stderr)
                roots.add(json.loads(text)["decoded_root"])
            shutil.rmtree(work / "out")
    if len(roots) != 1:
        sys.exit(f"decoded roots differ: {roots}")
    result = {"checkpoint": made, "pack_bytes": (work / "big.uc").stat().st_size, "decoded_root": roots.pop(), "jobs": {}}
    for job in ("pack", "verify", "unpack"):
        entry = {}
        for name in limits:
            times = [s for s, _ in figures[name][job]]
            entry[name] = {
                "seconds": [round(s, 2) for s in times],
                "median_mb_of_source_per_s": round(made["bytes"] / 1e6 / median(times), 1),
                "peak_rss_mib": round(max(r for _, r in figures[name][job]) / 2**20, 1),
            }
        pairs = zip((s for s, _ in figures["default"][job]), (s for s, _ in figures["512M"][job]))
        entry["throughput_of_512M_by_default"] = round(median([a / b for a, b in pairs]), 3)
        result["jobs"][job] = entry
    return result


def opening(uc, work):
    rows = []
    for n, cols in ((10_000, 64), (30_000, 64), (100_000, 64), (10_000, 640)):
        pack = work / f"many-{n}-{cols}.uc"
        if not pack.exists():
            shutil.rmtree(work / "many", ignore_errors=True)
            many(work / "many", n, cols)
            run([uc, "-q", "pack", str(work / "many"), "-o", str(pack)])
        runs = [run([uc, "info", str(pack)]) for _ in range(7)]
        with open(pack, "rb") as f:
            fields = struct.unpack_from("<6Q", f.read(256), 32)
        rows.append({
            "tensors": n,
            "file_bytes": pack.stat().st_size,
            "index_bytes": fields[2],
            "manifest_bytes": fields[4],
            "info_seconds_median": round(median([s for s, _, _ in runs]), 3),
            "peak_rss_mib": round(max(r for _, r, _ in runs) / 2**20, 1),
        })
        print(rows[-1], file=sys.stderr)
    return rows


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--uc", required=True)
    args.add_argument("--folder", required=True, type=Path)
    args.add_argument("--bytes", type=float, default=8e9)
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--record", type=Path)
    args = args.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    record = {
        "command": "python3 benches/large.py --uc target/release/uc --folder FOLDER",
        "commit": os.environ.get("UC_COMMIT", "unknown"),
        "cpu": cpu(),
        "threads": os.cpu_count(),
        "binary_sha256": hashlib.sha256(Path(args.uc).read_bytes()).hexdigest(),
        "large": large(args.uc, args.folder, args.bytes, args.rounds),
        "opening": opening(args.uc, args.folder),
    }
    text = json.dumps(record, indent=1) + "\n"
    if args.record:
        args.record.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
