"""Writes seeds for the fuzz targets from the test vectors: python3 fuzz/seeds.py"""

import json
import pathlib

HERE = pathlib.Path(__file__).parent
VECTORS = HERE.parent / "spec" / "vectors"

HEADER = b'{"w":{"dtype":"BF16","shape":[2,64],"data_offsets":[0,256]},"b":{"dtype":"F32","shape":[1],"data_offsets":[256,260]}}'


def write(target: str, name: str, data: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


for path in sorted(VECTORS.glob("*/**/*.json")):
    vector = json.loads(path.read_text())
    if "index" in vector["input"] and not isinstance(vector["input"], str):
        # The first byte chooses the order of the shards: 0b0100 is the right one.
        write("shards", path.stem, b"\x04" + bytes.fromhex(vector["input"]["index"]))
    if not isinstance(vector["input"], str):
        continue
    target = path.parent.name if path.parent.name in ("manifest", "receipt") else "open"
    write(target, path.stem, bytes.fromhex(vector["input"]))
    if target == "open" and vector["expect"] == "ok":
        write("index", path.stem, bytes.fromhex(vector["input"]))
SIGNATURE = """untrusted comment: signature from minisign secret key
RUTdXXFm2oJLmoVk5Kn392DaVIE/WYUOcf5y1MlFUzzjCFpQN0Du9YxK6EL2PlTwScsXdmnHF4PkXBs3vJiPdRJoWbJy6rfd7A8=
trusted comment: a comment
rJ4mJNTJqIsDShZG9mRtzUVyYqWsekwkXjhlWSH9YF4wSaUhbQTZX8MAmyBwQDHZOXUJrryxWA/pILkj/xMrBQ==
"""
write("signature", "of-weights", SIGNATURE.encode())
write("safetensors", "two-tensors", HEADER + bytes(range(256)) + b"\0\0\x80\x3f")

RECORD = {
    "format_version": 1, "architecture": "LlamaForCausalLM", "model_root": "0" * 64, "tokenizer_sha256": "0" * 64,
    "text": {"sha256": "0" * 64, "bytes": 9, "tokens": 4},
    "protocol": {"seq_len": 4, "max_tokens": None, "sequences": 1, "tokens": 4, "seed": 0}, "output_block": 64,
    "layers": {"a": {"rows": 1, "cols": 2, "tokens": 4, "input": "a"},
               "b": {"rows": 2, "cols": 2, "tokens": 4, "input": "a"},
               "h": {"rows": 9, "cols": 1, "tokens": 4, "input": "h", "weight": "e", "outputs": False}},
}
SIZES = {"a.input": 3, "a.output": 1, "b.output": 3, "h.input": 1}
header, at = {"__metadata__": {"ultracompress_calibration": json.dumps(RECORD)}}, 0
for name, n in SIZES.items():
    header[name] = {"dtype": "F32", "shape": [n], "data_offsets": [at, at + 4 * n]}
    at += 4 * n
head = json.dumps(header).encode()
write("calibration", "three-layers", len(head).to_bytes(8, "little") + head + bytes.fromhex("0000803f") * (at // 4))
