"""Runs the tool as a user would: pack, info, verify, unpack, same, diff, eval on real models, then damages a pack, cuts
it into shards, and reads it over HTTP.

python3 .ci/accept.py UC FOLDER                            one model of each architecture, pinned figures of fewer tokens
python3 .ci/accept.py UC FOLDER --long [--record FILE]     all models, the figures of the guides

Uses examples/data/tiny-llama and the models of the folder that UC_MODELS names, by default ../shared/models. Where there is
no such folder, evaluation, calibration, the exact rung and overlays aren't tested, and a line says so.
"""

import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

from models import CORPUS, MODELS, present

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*args, expect=(0,), kernel=None):
    env = dict(os.environ, UC_KERNEL=kernel) if kernel else None
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, env=env)
    if done.returncode not in expect:
        sys.exit(f"{args} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def json_of(*args, expect=(0,)):
    return json.loads(run(*args, "--json", "-q", expect=expect).stdout)


def round_trip(uc, model, folder):
    name = model.name
    pack, out = folder / f"{name}.uc", folder / f"{name}.out"
    packed = json_of(uc, "pack", model, "-o", pack, "--force")
    info = json_of(uc, "info", pack)
    verified = json_of(uc, "verify", pack)
    run(uc, "verify", pack, "--against", model, "--root", packed["stored_root"])
    shutil.rmtree(out, ignore_errors=True)
    unpacked = json_of(uc, "unpack", pack, "-o", out)
    same = json_of(uc, "same", pack, out)
    diff = json_of(uc, "diff", model, pack)
    assert same["same"] and unpacked["decoded_root"] == packed["decoded_root"] == verified["decoded_root"]
    assert (verified["structure"], verified["stored"], verified["decoded"]) == ("ok", "ok", "ok")
    assert verified["tensors_checked"] == len(info["tensors"]) == packed["tensors"]
    # Same bytes from a copied folder with other times, with one thread and with two.
    copy = folder / f"{name}.copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(model, copy, copy_function=shutil.copyfile)
    for threads in (1, 2):
        again = folder / f"{name}.again.uc"
        run(uc, "pack", copy, "-o", again, "--force", "-j", threads)
        assert again.read_bytes() == pack.read_bytes(), f"{name}: other bytes with {threads} threads"
    # The same bytes from every kernel that this CPU runs, in both directions.
    kernels = []
    for kernel in ("scalar", "avx2", "avx512", "neon"):
        shutil.rmtree(folder / "by-kernel", ignore_errors=True)
        again = folder / f"{name}.again.uc"
        unpack = ("-q", "unpack", pack, "-o", folder / "by-kernel")
        done = run(uc, *unpack, kernel=kernel, expect=(0, 2))
        if done.returncode == 2:
            assert f"can't run the kernel {kernel}" in done.stderr, done.stderr
            continue
        kernels.append(kernel)
        for path in (folder / "by-kernel").rglob("*"):
            if path.is_file():
                written = (out / path.relative_to(folder / "by-kernel")).read_bytes()
                assert path.read_bytes() == written, f"{path}: other bytes with {kernel}"
        run(uc, "-q", "pack", model, "-o", again, "--force", kernel=kernel)
        assert again.read_bytes() == pack.read_bytes(), f"{name}: another pack with {kernel}"
    assert "scalar" in kernels
    for path in copy.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert (out / path.relative_to(copy)).read_bytes() == path.read_bytes(), path
    return {
        "model": name,
        "kernels_agree": kernels,
        "body_bpw": packed["body_bpw"],
        "file_bpw": packed["file_bpw"],
        "total_sqnr_db": diff["total_sqnr_db"],
        "worst": diff["worst"],
        "stored_root": packed["stored_root"],
        "decoded_root": packed["decoded_root"],
    }


def bench(uc):
    """Jobs and kernels of `uc bench`; speeds are the machine's business."""
    rows = json_of(uc, "bench", "--quick")["rows"]
    jobs = {row["job"] for row in rows}
    assert {"decode to bf16", "decode to f32", "encode", "mat-vec, int8", "verify, stored bytes"} <= jobs, jobs
    assert all(row["gweights_per_s"] > 0 and row["gb_per_s"] > 0 for row in rows), rows


# Model, text, tokens, perplexity of the source by the protocol of its README, and what the pack has to it: KL divergence.
PINNED = [
    ("dense-4m", "heldout.txt", 8192, 44.3392, .0012357),
    ("moe", "heldout.txt", 8192, 70.2221, .0017370),
    ("mamba", "heldout.txt", 8192, 66.0021, .0016390),
]
PINNED_LONG = [
    ("dense-4m", "heldout.txt", None, 38.7235, .001105),
    ("moe", "heldout.txt", None, 61.1191, .001425),
    ("mamba", "heldout.txt", None, 58.9153, .001519),
    ("dense-4m-chat", "heldout.txt", None, 74.4195, .001521),
    ("dense-4m", "heldout-chat.txt", None, 184.2094, None),
    ("dense-4m-chat", "heldout-chat.txt", None, 40.8849, None),
]


def tokens_flag(tokens):
    return ["--max-tokens", tokens] if tokens else []


def evaluate(uc, folder, long):
    """Evaluates packs against their sources, and attaches the records to them."""
    found = {}
    for model, text, tokens, perplexity, kld in PINNED_LONG if long else PINNED:
        pack, record = folder / f"{model}.uc", folder / f"{model}.{text}.json"
        more = ["--baseline", "q8_0,q5_0"] if long and text == "heldout.txt" else []
        out = json_of(uc, "eval", pack, "--against", MODELS / model, "--text", CORPUS / text,
                      "--record", record, "--force", *tokens_flag(tokens), *more)
        assert abs(out["ppl_reference"] - perplexity) < 1e-3, (model, text, out["ppl_reference"])
        assert kld is None or abs(out["kld_mean"] / kld - 1) < 0.01, (model, text, out["kld_mean"])
        assert 0 < out["kld_mean"] < 0.02 and abs(out["ppl_ratio"] - 1) < 0.01, (model, text, out)
        found[f"{model}, {text}"] = {k: out[k] for k in ("ppl_reference", "ppl_ratio", "kld_mean", "kld_se", "kld_p99")}
        with_receipt = folder / f"{model}.receipt.uc"
        run(uc, "receipt", "add", pack, record, "-o", with_receipt, "--force")
        assert json_of(uc, "same", pack, with_receipt)["same"]
        run(uc, "receipt", "check", with_receipt)
        run(uc, "verify", with_receipt, "--fast", "-q")
    return found


# KL divergence of packs of 5.0 bits that were calibrated on 8,192 tokens, on as many held-out tokens. Statistics are made
# with a tensor library, so they differ a little from one CPU to the next.
CALIBRATED = {"dense-4m": .000366, "moe": .000337, "mamba": .000649}


def calibrated(uc, folder, long):
    """Calibrates, packs at 5.0 bits, compares with Q5_0 at 5.5 in the same run."""
    found = {}
    tokens = tokens_flag(None if long else 8192)
    for model, pinned in CALIBRATED.items():
        source, stats = MODELS / model, folder / f"{model}.cal"
        run(uc, "calibrate", source, "--text", CORPUS / "calib.txt", "-o", stats, "--force", "-q", *tokens)
        packs = []
        runs = [("a", 1, None), ("b", 2, None), ("c", 2, "scalar")]
        for name, threads, kernel in runs if long or model == "dense-4m" else runs[:1]:
            pack = folder / f"{model}.{name}.cal.uc"
            run(uc, "pack", source, "--calibration", stats, "--bpw", "5.0", "-o", pack, "--force", "-q", "-j", threads,
                kernel=kernel)
            packs.append(pack.read_bytes())
        assert packs.count(packs[0]) == len(packs), f"{model}: bytes differ by thread or kernel"
        run(uc, "verify", folder / f"{model}.a.cal.uc", "--against", source, "-q")
        out = json_of(uc, "eval", folder / f"{model}.a.cal.uc", "--against", source, "--text",
                      CORPUS / "heldout.txt", "--baseline", "q5_0", *tokens)
        ratio = out["kld_mean"] / out["baselines"][0]["kld_mean"]
        assert out["body_bpw"] <= 5.0, (model, out["body_bpw"])
        if long:
            assert ratio <= 0.30, (model, ratio)
        else:
            assert abs(out["kld_mean"] / pinned - 1) < 0.10, (model, out["kld_mean"])
        found[model] = {"body_bpw": out["body_bpw"], "kld_mean": out["kld_mean"], "of_q5_0": ratio}
    return found


def exact(uc, folder, long):
    """The source comes back byte for byte, from one file that also holds the 5-bit model and its rungs."""
    found = {}
    for model in ("dense-4m", "moe", "mamba"):
        source, pack, out = MODELS / model, folder / f"{model}.exact.uc", folder / f"{model}.exact"
        packs = []
        runs = [(1, None), (2, None), (2, "scalar")]
        for threads, kernel in runs if long or model == "dense-4m" else runs[:1]:
            run(uc, "pack", source, "--exact", "--rungs", "3,4", "-o", pack, "--force", "-q", "-j", threads, kernel=kernel)
            packs.append(pack.read_bytes())
        assert packs.count(packs[0]) == len(packs), f"{model}: bytes differ by thread or kernel"
        run(uc, "unpack", pack, "--exact", "-o", out, "--force", "-q")
        for file in ("model.safetensors", "config.json"):
            assert (out / file).read_bytes() == (source / file).read_bytes(), (model, file)
        verdict = json_of(uc, "verify", pack, "--against", source)
        assert verdict["exact"] == "ok" and verdict["compared_with"] == "ok", verdict
        stripped, again = folder / f"{model}.stripped.uc", folder / f"{model}.again.uc"
        run(uc, "strip", pack, "-o", stripped, "--force", "-q")
        assert json_of(uc, "same", pack, stripped)["same"]
        run(uc, "pack", source, "--onto", stripped, "-o", again, "--force", "-q")
        assert again.read_bytes() == packs[0], f"{model}: --onto makes another file"
        only = folder / f"{model}.only.uc"
        run(uc, "pack", source, "--exact-only", "-o", only, "--force", "-q")
        assert json_of(uc, "same", only, source)["same"]
        weights = json_of(uc, "verify", only, "--against", source)
        assert weights["compared_with"] == "ok"
        tensors = sum(t.stat().st_size for t in [source / "model.safetensors"])
        stored = {p: sum(t["stored_bytes"] for t in json_of(uc, "info", p)["tensors"]) for p in (pack, only)}
        found[model] = {"with_base": stored[pack] / tensors, "without": stored[only] / tensors}
    assert found["dense-4m"]["with_base"] < 0.685 and found["dense-4m"]["without"] < 0.668, found
    kld = []
    for rung in (3, 4, 5):
        pack = folder / "dense-4m.exact.uc"
        out = json_of(uc, "unpack", pack, "--rung", rung, "-o", folder / f"rung{rung}", "--force")
        info = {str(r["rung"]): r for r in json_of(uc, "info", pack)["rungs"]}
        assert rung == 5 or out["decoded_root"] == info[str(rung)]["decoded_root"], rung
        out = json_of(uc, "eval", pack, "--against", MODELS / "dense-4m", "--text",
                      CORPUS / "heldout.txt", "--rung", rung, "--max-tokens", 8192 if long else 2048)
        kld.append(out["kld_mean"])
    assert kld[0] > kld[1] > kld[2], kld
    found["dense-4m"]["kld_by_rung"] = kld
    return found


def overlays(uc, folder, long):
    """An overlay that is trained on a frozen base earns its bits, comes off again, and is the same from every kernel."""
    found = {}
    for model in ("dense-4m", "moe", "mamba") if long else ("mamba",):
        source, pack, out = MODELS / model, folder / f"{model}.uc", folder / f"{model}.overlay.uc"
        run(uc, "pack", source, "-o", pack, "--force", "-q")
        bpw = json_of(uc, "info", pack)["body_bpw"]
        flags = ["--method", "whitened", "--max-tokens", "16384" if long else "4096"]
        if long and model == "dense-4m":
            flags = ["--steps", "16", "--round", "8", "--max-tokens", "16384"]
        report = json_of(uc, "train", pack, "--model", source, "--text", CORPUS / "calib.txt", "--frozen-base",
                         "--bpw", f"{bpw + 0.5:.4f}", "-o", out, "--force", *flags)
        assert report["kept"] and report["bpw_after"] <= bpw + 0.5, report
        assert report["kld_after"] < (0.75 if long else 0.85) * report["kld_before"], (model, report["kld_before"], report["kld_after"])
        for kernel in (None, "scalar"):
            verdict = json.loads(run(uc, "verify", out, "--json", "-q", kernel=kernel).stdout)
            assert verdict["effective"] == "ok" and verdict["effective_checked"] > 0, verdict
        assert json_of(uc, "same", pack, out)["same"], "the base is the base"
        alone, file = folder / f"{model}.alone.uc", folder / f"{model}.overlay-file.uc"
        run(uc, "overlay", "remove", out, "trained", "-o", alone, "--force", "-q")
        assert alone.read_bytes() == pack.read_bytes(), model
        run(uc, "overlay", "export", out, "trained", "-o", file, "--force", "-q")
        run(uc, "overlay", "add", alone, file, "-o", folder / "again.uc", "--force", "-q")
        assert (folder / "again.uc").read_bytes() == out.read_bytes(), model
        unpacked = json_of(uc, "unpack", out, "-o", folder / f"{model}.effective", "--force")
        assert unpacked["decoded_root"] == report["effective_root"], model
        found[model] = {k: report[k] for k in ("bpw_before", "bpw_after", "kld_before", "kld_after")}
    return found


def places(pack):
    """One offset in each part of the file: (what, offset)."""
    data = pack.read_bytes()
    word = lambda at: int.from_bytes(data[at : at + 8], "little")
    found = [("start", 0), ("version", 8), ("preamble", 63), ("roots", 140), ("index", word(40) + word(48) // 2)]
    found += [("manifest", word(56) + word(64) // 2), ("last", len(data) - 1)]
    at, kinds = word(40), {1: "data", 2: "counts", 3: "scales", 4: "steps", 5: "plane"}
    # Walks the index: record header, name, body, part headers with their chunk tables.
    pad = lambda n: (n + 7) // 8 * 8
    while at < word(40) + word(48):
        length, name_len = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 8 : at + 10], "little")
        n_parts, body_len = int.from_bytes(data[at + 10 : at + 12], "little"), int.from_bytes(data[at + 12 : at + 16], "little")
        name = data[at + 16 : at + 16 + name_len].decode()
        part = at + 16 + pad(name_len) + pad(body_len)
        for _ in range(n_parts):
            kind, plane, storage = data[part], data[part + 1], data[part + 2]
            found.append((f"{name} {kinds[kind]} {plane}", word(part + 8) + word(part + 16) // 2))
            n_chunks = int.from_bytes(data[part + 4 : part + 8], "little")
            part += 32 + pad(n_chunks * (8 if storage else 4))
        at += length
    return found


def flips(uc, pack, folder):
    results = []
    damaged = folder / "damaged.uc"
    for what, offset in places(pack):
        data = bytearray(pack.read_bytes())
        data[offset] ^= 0x10
        damaged.write_bytes(data)
        done = run(uc, "verify", damaged, "--json", expect=(1, 3))
        answer = json.loads(done.stdout)
        assert answer["failures"], what
        first = answer["failures"][0]
        # The record doesn't say where it was made.
        first["file"] = pathlib.Path(first["file"]).name
        assert first["offset"] is not None or first["tensor"] is not None, (what, first)
        results.append({"flipped": what, "offset": offset, "exit": done.returncode, "failure": first})
    return results


def shards(uc, pack, folder):
    """Cuts a pack, joins it again, looks at the pieces."""
    cut, joined = folder / "cut", folder / "joined.uc"
    shutil.rmtree(cut, ignore_errors=True)
    cut.mkdir()
    made = json_of(uc, "reshard", pack, "-o", cut / "m.uc", "--shard-size", "1M")
    index = cut / "m.uc.index.json"
    whole = json_of(uc, "info", pack)
    if not index.exists():
        assert (cut / "m.uc").read_bytes() == pack.read_bytes()
        return 1
    assert made["output"] == str(index) and json_of(uc, "verify", index)["decoded"] == "ok"
    assert json_of(uc, "same", pack, index)["same"] and made["decoded_root"] == whole["decoded_root"]
    listed = json_of(uc, "info", index)["shards"]
    for shard in listed:
        assert json_of(uc, "verify", cut / shard["file"])["stored_root"] == shard["stored_root"]
    run(uc, "reshard", index, "-o", joined, "--force")
    assert joined.read_bytes() == pack.read_bytes()
    return len(listed)


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves one folder by ranges; `sent` counts."""

    protocol_version = "HTTP/1.1"
    folder, sent = None, 0

    def do_GET(self):
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])
        Ranges.sent += last + 1 - first

    def log_message(self, *_):
        pass


def remote(uc, pack, folder):
    """Reads a pack over HTTP: the header and the index, then one tensor."""
    Ranges.folder = pack.parent
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/{pack.name}"
    local = json_of(uc, "info", pack)
    assert json_of(uc, "info", url) == local
    tensor = max((t for t in local["tensors"] if t["encoding"] == "planes"), key=lambda t: t["stored_bytes"])
    out, Ranges.sent = folder / "one", 0
    shutil.rmtree(out, ignore_errors=True)
    run(uc, "unpack", url, "-o", out, "--tensor", f"^{tensor['name']}$")
    # Padding between the parts of the tensor comes along.
    word = lambda at: int.from_bytes(pack.read_bytes()[at : at + 8], "little")
    needed = 256 + word(48) + word(64) + tensor["stored_bytes"]
    assert needed <= Ranges.sent < needed + 64 * 10, (needed, Ranges.sent)
    assert "404" in run(uc, "info", url + ".missing", expect=(1,)).stderr
    server.shutdown()
    return Ranges.sent


def main():
    uc, folder, long = sys.argv[1], pathlib.Path(sys.argv[2]), "--long" in sys.argv
    models = [ROOT / "examples" / "data" / "tiny-llama"]
    real = present()
    if real:
        chosen = [model for model, *_ in PINNED]
        models += sorted(p for p in MODELS.iterdir() if p.is_dir() and (long or p.name in chosen))
    rows = [round_trip(uc, model, folder) for model in models]
    pack = folder / ("dense-4m.uc" if real else "tiny-llama.uc")
    damage = flips(uc, pack, folder)
    pieces = shards(uc, pack, folder)
    fetched = remote(uc, pack, folder)
    bench(uc)
    evaluated = evaluate(uc, folder, long) if real else {}
    better = calibrated(uc, folder, long) if real else {}
    exactly = exact(uc, folder, long) if real else {}
    corrected = overlays(uc, folder, long) if real else {}
    for name, figures in corrected.items():
        print(f"{name}, overlay: KL {figures['kld_before']:.6f} at {figures['bpw_before']:.4f} bpw, "
              f"{figures['kld_after']:.6f} at {figures['bpw_after']:.4f}")
    for name, figures in exactly.items():
        print(f"{name}, exact: {figures['with_base']:.4f} of the source's bytes with planes, {figures['without']:.4f} without")
    for name, figures in better.items():
        print(f"{name}, calibrated: body {figures['body_bpw']:.4f} bpw, KL {figures['kld_mean']:.6f}, "
              f"{figures['of_q5_0']:.3f} of Q5_0's")
    for name, figures in evaluated.items():
        print(f"{name}: perplexity {figures['ppl_reference']:.4f}, of the pack x {figures['ppl_ratio']:.5f}, "
              f"KL {figures['kld_mean']:.6f} +- {figures['kld_se']:.6f}")
    for row in rows:
        print(f"{row['model']}: body {row['body_bpw']:.4f} bpw, {row['total_sqnr_db']:.3f} dB, {row['decoded_root']}")
    print(f"{pack.name}: {len(damage)} flipped bytes, all noticed and placed")
    print(f"{pack.name}: cut into {pieces} and joined; its largest tensor costs {fetched} bytes over HTTP")
    if "--record" in sys.argv:
        record = {
            "what": "round trips of real models, then one byte flipped in each part of one pack",
            "command": "python3 .ci/accept.py UC FOLDER --long --record FILE",
            "commit": os.environ.get("UC_COMMIT", "unknown"),
            "models": rows,
            "damaged": pack.name,
            "evaluated": evaluated,
            "calibrated": better,
            "exact": exactly,
            "overlays": corrected,
            "shards": pieces,
            "bytes_over_http_for_one_tensor": fetched,
            "flips": damage,
        }
        pathlib.Path(sys.argv[sys.argv.index("--record") + 1]).write_text(json.dumps(record, indent=1) + "\n")


main()
