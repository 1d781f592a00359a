"""Quality of uncalibrated packs at 3 to 8 planes beside candle's block quantizers, on one text.

    python3 benches/quality.py --uc target/release/uc --text heldout.txt --out benches/records/quality MODEL_DIR...

Packs each model at each number of planes, runs `uc eval` against the source, and keeps its records as they are
(canonical JSON with a row for each sequence; `uc receipt add` takes them). Writes `summary.json` and `kld.svg` beside
them. Needs Python 3 alone. `--plot` only draws the plot again.
"""

import argparse
import json
import math
import pathlib
import platform
import subprocess
import tempfile

BASELINES = "q8_0,q6k,q5k,q5_1,q5_0,q4k,q4_1,q4_0,q3k,q2k"
PLANES = range(3, 9)


def run(*args: object) -> dict:
    done = subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def cpu() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def measure(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    models = {}
    for folder in args.models:
        rows = []
        for planes in PLANES:
            with tempfile.TemporaryDirectory() as temp:
                pack, record = pathlib.Path(temp) / "model.uc", args.out / f"{folder.name}-{planes}.json"
                run(args.uc, "-q", "--json", "pack", folder, "-o", pack, "--bits", planes)
                # The quantizers are the same whatever the pack: once is enough.
                extra = ["--baseline", BASELINES] if planes == 5 else []
                found = run(args.uc, "-q", "--json", "eval", pack, "--against", folder, "--text", args.text,
                            "--record", record, "--force", *extra)
                rows.append({"by": "uc", "planes": planes, "record": record.name, **pick(found)})
                rows += [{"by": b["name"], "record": record.name, **pick(b)} for b in found["baselines"]]
                print(folder.name, planes, f"{found['body_bpw']:.4f} bpw, KL {found['kld_mean']:.6f}", flush=True)
        models[folder.name] = sorted(rows, key=lambda r: r["body_bpw"])
    summary = {
        "what": "uncalibrated packs at 3 to 8 planes beside candle's block quantizers: KL to the source, perplexity ratio",
        "command": "python3 benches/quality.py --uc target/release/uc --text TEXT --out FOLDER MODEL_DIR...",
        "commit": args.commit, "cpu": cpu(), "text": args.text.name, "models": models,
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def pick(found: dict) -> dict:
    keys = ("body_bpw", "kld_mean", "kld_se", "ppl_ratio", "ppl_ratio_se", "top1_agreement")
    return {k: round(found[k], 9) for k in keys}


def plot(out: pathlib.Path) -> None:
    """Panels of KL (logarithmic) against bits per weight of the body."""
    summary = json.loads((out / "summary.json").read_text())
    wide, high, left, top = 430, 300, 60, 34
    low, most, least, largest = 2.4, 8.8, 2e-5, 0.3
    x = lambda bpw: left + (bpw - low) / (most - low) * (wide - left - 14)
    span = math.log(largest / least)
    y = lambda kld: top + math.log(largest / max(kld, least)) / span * (high - top - 44)
    svg = []
    for i, (name, rows) in enumerate(summary["models"].items()):
        svg.append(f'<g transform="translate({i % 2 * wide},{i // 2 * high})">')
        svg.append(f'<text x="{left}" y="20"><tspan class="t">{name}</tspan>  KL to the source, nats a token</text>')
        for power in range(-4, 0):
            at = y(10.0**power)
            svg.append(f'<path d="M{left} {at:.1f}H{wide - 14}" class="g"/>')
            svg.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>')
        for bits in range(3, 9):
            svg.append(f'<text x="{x(bits):.1f}" y="{high - 28}" text-anchor="middle">{bits}</text>')
        svg.append(f'<text x="{(left + wide) / 2:.0f}" y="{high - 10}" text-anchor="middle">bits per weight of the body</text>')
        own = [r for r in rows if r["by"] == "uc"]
        points = " ".join(f"{x(r['body_bpw']):.1f},{y(r['kld_mean']):.1f}" for r in own)
        svg.append(f'<polyline points="{points}" class="l"/>')
        for r in rows:
            px, py = x(r["body_bpw"]), y(r["kld_mean"])
            upper, lower = y(r["kld_mean"] + 2 * r["kld_se"]), y(r["kld_mean"] - 2 * r["kld_se"])
            kind = "u" if r["by"] == "uc" else "b"
            svg.append(f'<path d="M{px:.1f} {upper:.1f}V{lower:.1f}" class="e {kind}"/>')
            svg.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.2" class="{kind}"/>')
            if r["by"] != "uc":
                # 5.5 bits have two quantizers: names on both sides.
                end = r["by"] in ("q5k", "q4k", "q8_0")
                svg.append(f'<text x="{px + (-6 if end else 6):.1f}" y="{py + (11 if end else -4):.1f}"'
                           f' text-anchor="{"end" if end else "start"}" class="n">{r["by"]}</text>')
        svg.append("</g>")
    rows = (len(summary["models"]) + 1) // 2
    style = ("text{font:12px sans-serif;fill:#444}.t{font-weight:bold;font-size:14px}.n{font-size:10px}.g{stroke:#ddd}"
             ".l{fill:none;stroke:#0a58ca;stroke-width:1.5}.u{fill:#0a58ca}.b{fill:#c2410c}.e.u{stroke:#0a58ca}.e.b{stroke:#c2410c}")
    size = f'width="{2 * wide}" height="{rows * high}"'
    title = "<title>KL divergence to the source against bits per weight, packs (line) and block quantizers</title>"
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{title}<rect width="100%" height="100%" fill="#fff"/>'
    (out / "kld.svg").write_text(text + "\n".join(svg) + "</svg>\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uc", type=pathlib.Path, default=pathlib.Path("target/release/uc"))
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("models", type=pathlib.Path, nargs="*")
    args = parser.parse_args()
    if not args.plot:
        if not args.models or not args.text:
            parser.error("--text and models are needed")
        measure(args)
    plot(args.out)


if __name__ == "__main__":
    main()
