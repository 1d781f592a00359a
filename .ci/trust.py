#!/usr/bin/env python3
"""What only a whole machine shows: receipts of two users, the minisign tool, a disk that is really full, and runs on real
models that are killed.

    python3 .ci/trust.py UC FOLDER                                   two models
    python3 .ci/trust.py UC FOLDER --long --record benches/records/trust.json

`--long` takes a model of each architecture, flips every bit of all valid vectors and kills fifty times more; it runs cargo.
Uses the models of the folder that UC_MODELS names, by default ../shared/models; where there is no such folder, only
examples/data/tiny-llama, and a line says so. Needs root (or sudo) for a second user and for a small file system, and
installs minisign where it is missing. Fails when one of these can't be had, unless UC_CI_NO_SECOND_USER=1,
UC_CI_NO_MINISIGN=1 or UC_CI_NO_SMALL_DISK=1.
"""

import hashlib
import json
import os
import pathlib
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time

from models import MODELS, present

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*args, expect=(0,), **more):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, **more)
    if done.returncode not in expect:
        sys.exit(f"{args} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done


def missing(what, variable):
    if os.environ.get(variable) != "1":
        sys.exit(f"{what} can't be tested here; {variable}=1 allows that")
    print(f"!!! {what} NOT TESTED: {variable}=1 !!!", flush=True)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_root():
    return [] if os.getuid() == 0 else ["sudo", "-n"]


def kinds(uc, model, folder):
    """Packs of every kind, with what an audit needs beside the source."""
    text = ROOT / "spec" / "codec.md"
    stats = folder / "model.cal"
    run(uc, "-q", "calibrate", model, "--text", text, "--max-tokens", "4096", "--seq-len", "128", "-o", stats, "--force")
    made = []
    for name, flags, more in [
        ("planes", [], []),
        ("exact", ["--exact", "--rungs", "3,4"], []),
        ("exact-only", ["--exact-only"], []),
        ("calibrated", ["--calibration", stats, "--bpw", "5.1"], ["--calibration", stats]),
        ("shards", ["--shard-size", "1M"], []),
    ]:
        packed = json.loads(run(uc, "-q", "--json", "pack", model, "-o", folder / f"{name}.uc", "--force", *flags).stdout)
        made.append((name, pathlib.Path(packed["output"]), more))
    overlay = folder / "overlay.uc"
    run(uc, "-q", "train", folder / "planes.uc", "--model", model, "--text", text, "--method", "svd", "--bpw", "6", "--keep",
        "--frozen-base", "-o", overlay, "--force")
    made.append(("overlay", overlay, []))
    return made


def audits(uc, model, folder):
    """Every kind of pack is made again from its source, and no byte differs."""
    for name, pack, more in kinds(uc, model, folder):
        receipt = json.loads(run(uc, "-q", "audit", pack, "--source", model, *more).stdout)
        assert receipt["verdict"] == receipt["checks"]["rederived"] == "ok", (name, receipt["failures"])
        assert receipt["rederived"]["bytes_compared"] > 0 and receipt["rederived"]["same_encoder"], name
        reader = run(sys.executable, ROOT / "spec/reader/uc_reader.py", "verify", pack).stdout
        for root in receipt["roots"].values():
            assert root in reader, f"{name}: the reader in Python has another root\n{reader}"
        print(f"{model.name}, {name}: made again, {receipt['rederived']['bytes_compared']} bytes are equal; the reader agrees", flush=True)


def two_users(uc, model):
    """The same receipt for another user, in another folder, with another name, place, language and umask."""
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:
        shared = pathlib.Path(shared)
        shared.chmod(0o755)
        tool = shared / "uc"
        shutil.copyfile(uc, tool)
        tool.chmod(0o755)
        source = shared / "source"
        shutil.copytree(model, source)
        run("chmod", "-R", "a+rX", shared)
        run(uc, "-q", "pack", source, "-o", shared / "a.uc")
        (shared / "theirs").mkdir()
        shutil.copyfile(shared / "a.uc", shared / "theirs" / "other name.bin")
        run("chmod", "-R", "a+rX", shared)
        ours = run(tool, "-q", "audit", shared / "a.uc", "--source", source).stdout
        # Not of this user's: home, temporary files, folder, language, time zone, threads.
        env = {"HOME": "/", "USER": "nobody", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "TMPDIR": "/tmp",
               "PATH": os.environ["PATH"], "RAYON_NUM_THREADS": "1"}
        args = [tool, "-q", "audit", "other name.bin", "--source", "../source", "-j", "1"]
        command = ["runuser", "-u", "nobody", "--"] if os.getuid() == 0 else ["sudo", "-n", "-u", "nobody"]
        who = subprocess.run([*command, "id", "-un"], capture_output=True, text=True)
        if who.stdout.strip() != "nobody":
            return missing("a second user", "UC_CI_NO_SECOND_USER")
        theirs = run(*command, "env", "-i", *[f"{k}={v}" for k, v in env.items()], *args, cwd=shared / "theirs").stdout
        assert ours == theirs, "receipts of two users differ"
        receipt = json.loads(ours)
        assert receipt["verdict"] == "ok"
        print(f"{model.name}: receipts of two users are equal ({hashlib.sha256(ours.encode()).hexdigest()})", flush=True)


def minisign(uc, model, folder):
    """Signatures go both ways."""
    if shutil.which("minisign") is None:
        install = [*as_root(), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "minisign"]
        subprocess.run([*as_root(), "apt-get", "update", "-qq"], capture_output=True)
        subprocess.run(install, capture_output=True)
    if shutil.which("minisign") is None:
        return missing("the minisign tool", "UC_CI_NO_MINISIGN")
    pack, damaged = folder / "planes.uc", folder / "damaged.uc"
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    env = dict(os.environ, UC_SIGN_PASSWORD="a password")
    for name in ("ours", "locked"):
        flags = ["--no-password"] if name == "ours" else []
        run(uc, "-q", "sign", "--new-key", folder / name, "--force", *flags, env=env)
        run(uc, "-q", "sign", pack, "--secret-key", folder / f"{name}.key", "--force", env=env)
        run("minisign", "-Vm", pack, "-p", folder / f"{name}.pub")
        run("minisign", "-Vm", damaged, "-x", f"{pack}.minisig", "-p", folder / f"{name}.pub", expect=(1,))
    wrong = dict(os.environ, UC_SIGN_PASSWORD="another")
    run(uc, "-q", "sign", pack, "--secret-key", folder / "locked.key", "--force", env=wrong, expect=(2,))
    for path in (folder / "theirs.pub", folder / "theirs.key"):
        path.unlink(missing_ok=True)
    run("minisign", "-GW", "-p", folder / "theirs.pub", "-s", folder / "theirs.key")
    run("minisign", "-Sm", pack, "-s", folder / "theirs.key", "-x", folder / "theirs.minisig")
    flags = ["--key", folder / "theirs.pub", "--signature", folder / "theirs.minisig"]
    run(uc, "-q", "verify", pack, *flags)
    run(uc, "-q", "verify", damaged, *flags, expect=(3,))
    run(uc, "-q", "verify", pack, "--key", folder / "ours.pub", "--signature", folder / "theirs.minisig", expect=(3,))
    # What uc signs with a key of the tool.
    run(uc, "-q", "sign", pack, "--secret-key", folder / "theirs.key", "--force")
    run("minisign", "-Vm", pack, "-p", folder / "theirs.pub")
    print("minisign and uc accept each other's signatures, and neither those of damaged packs or other keys", flush=True)


def full_disk(uc, model, folder):
    """File systems too small for the pack: an error, exit 1, nothing left, nothing lost. `uc` looks at the free disk before
    it starts; the library, by an example, runs into the end of it."""
    run("cargo", "build", "--locked", "--example", "pack_safetensors", "--features", "checkpoints", cwd=ROOT)
    meta = json.loads(run("cargo", "metadata", "--format-version", "1", "--no-deps", cwd=ROOT).stdout)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", meta["target_directory"]))
    example = target / "debug" / "examples" / "pack_safetensors"
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    whole = (folder / "planes.uc").stat().st_size
    tried = 0
    for share in (0.02, 0.3, 0.6, 0.9):
        size = max(64 << 10, int(whole * share) >> 12 << 12)
        mount = subprocess.run([*as_root(), "mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", disk],
                               capture_output=True, text=True)
        if mount.returncode:
            return missing("a full disk", "UC_CI_NO_SMALL_DISK")
        try:
            (disk / "precious").write_text("precious")
            for command, says in [((uc, "-q", "pack", model, "-o"), "not enough free disk"),
                                  ((uc, "-q", "pack", "--resume", model, "-o"), "not enough free disk"),
                                  ((example, model), "No space left on device")]:
                done = run(*command, disk / "m.uc", expect=(1,))
                assert says in done.stderr, done.stderr
                left = sorted(p.name for p in disk.iterdir())
                assert left == ["precious"] and (disk / "precious").read_text() == "precious", left
                tried += 1
        finally:
            run(*as_root(), "umount", disk)
    print(f"a full disk: {tried} runs end with an error and leave nothing", flush=True)


def kills(uc, model, folder, count, seed):
    """SIGKILL at any moment; `--resume` ends in the same bytes."""
    chance = random.Random(seed)
    killed, resumed, stats = 0, 0, folder / "model.cal"
    variants = [[], ["--exact"], ["--shard-size", "1M"], ["--calibration", stats, "--bpw", "5.1"]]
    for flags in variants:
        work = folder / "kills"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        command = [str(a) for a in (uc, "-q", "--json", "pack", model, "-o", work / "m.uc", *flags)]
        start = time.monotonic()
        run(*command)
        whole = time.monotonic() - start
        expected = {p.name: sha256(p) for p in work.iterdir()}
        goal = killed + -(-count // len(variants))
        while killed < goal:
            for path in work.iterdir():
                path.unlink()
            while True:
                child = subprocess.Popen([*command, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                try:
                    out, err = child.communicate(timeout=whole * chance.random())
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.communicate()
                    killed += 1
                    for path in work.iterdir():
                        # A file with its final name is complete.
                        assert path.name not in expected or sha256(path) == expected[path.name], path
                    if (work / "m.uc.pack-state").exists() or not any(p.name in expected for p in work.iterdir()):
                        continue
                    # It was over, and had only to end.
                    break
                if child.returncode:
                    sys.exit(f"after {killed} kills: {err}")
                resumed += json.loads(out)["resumed"]
                break
            found = {p.name: sha256(p) for p in work.iterdir()}
            assert found == expected, f"{flags}: after {killed} kills {found} instead of {expected}"
    print(f"{model.name}: {killed} kills, {resumed} tensors and files taken over, the same bytes each time", flush=True)
    return {"model": model.name, "kills": killed, "taken_over": resumed}


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def long_forms(folder):
    """The tests in their long forms."""
    found = {}
    for test, variable, value in [("flips", "UC_FLIPS", "all"), ("crash", "UC_KILLS", "50")]:
        report = folder / f"{test}.json"
        env = dict(os.environ, **{variable: value, f"{variable}_REPORT": str(report)})
        run("cargo", "test", "--locked", "--workspace", "--test", test, cwd=ROOT, env=env)
        found[test] = json.loads(report.read_text())
        print(f"{test}: {json.dumps(found[test])}", flush=True)
    return found


def vectors():
    pages = "".join(p.read_text() for p in sorted((ROOT / "spec").glob("*.md")))
    import re
    rules = set(re.findall(r"\*\*\[(UC-[A-Z]+-\d+)\]\*\*", pages))
    count = {}
    for path in sorted((ROOT / "spec" / "vectors").rglob("*.json")):
        kind = str(path.parent.relative_to(ROOT / "spec" / "vectors"))
        count[kind] = count.get(kind, 0) + 1
    return {"rules": len(rules), "vectors": sum(count.values()), "by_folder": count}


def main():
    uc, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve() / "trust"
    folder.mkdir(parents=True, exist_ok=True)
    long = "--long" in sys.argv
    names = ("dense-4m", "moe", "mamba") if long else ("moe", "mamba")
    models = [MODELS / n for n in names] if present() else []
    tiny = ROOT / "examples" / "data" / "tiny-llama"
    two_users(uc, tiny)
    killed = []
    for model in models or [tiny]:
        audits(uc, model, folder)
        if model in (models or [tiny])[:1]:
            minisign(uc, model, folder)
            full_disk(uc, model, folder)
        killed.append(kills(uc, model, folder, 52 if long else 4, 7))
        shutil.rmtree(folder)
        folder.mkdir()
    if "--record" in sys.argv:
        path = pathlib.Path(sys.argv[sys.argv.index("--record") + 1])
        commit = os.environ.get("UC_COMMIT")
        commit = commit or subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
        record = {"command": "python3 .ci/trust.py UC FOLDER --long --record FILE", "commit": commit, "cpu": cpu(),
                  "spec": vectors(), "kills": killed}
        if long:
            record.update(long_forms(folder))
        path.write_text(json.dumps(record, indent=2) + "\n")


main()
