#!/usr/bin/env python3
"""Reads and verifies UltraCompress 1.0 files: a Verifier and an Exact reader in one file.

Written from the pages of the specification alone, to show that they suffice. It favours being read over speed. It needs the
standard library only, and a zstd decoder (Python 3.14, the package zstandard, or the command) for chunks that are compressed.

    python3 uc_reader.py verify FILE [--base PACK]      a pack, the index file of shards, or a receipt
    python3 uc_reader.py decode FILE TENSOR [--rung N | --exact | --overlays N] -o OUT
    python3 uc_reader.py vectors FOLDER [--level LEVEL] the vectors that come with the specification

Exit status: 0 fine, 1 malformed or unreadable, 3 a checksum or digest disagrees.

The order is that of the pages: container, JSON and manifest, codec, exact rung, overlays, packs, receipts.
"""
from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

try:
    from compression import zstd  # Python 3.14
except ImportError:
    zstd = None
try:
    import zstandard
except ImportError:
    zstandard = None

Bytes = bytes | bytearray | memoryview
Json = Any

# ------------------------------------------------------------------------------------------- errors, bytes and digests

MALFORMED, INTEGRITY, TRUNCATED, MISSING = "malformed", "integrity", "truncated", "missing"
VERSION, FEATURE = "unsupported_version", "unsupported_feature"


class UcError(Exception):
    """A file that is refused: `rule` is the number of the rule, `kind` one of the kinds of the vectors (README.md)."""

    def __init__(self, rule: str, text: str, kind: str = MALFORMED) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule, self.kind = rule, kind


class NeedsZstd(Exception):
    """There is a zstd chunk and nothing to decompress it with."""


def need(condition: bool, rule: str, text: str, kind: str = MALFORMED) -> None:
    """Refuses the file by `rule` unless `condition` holds."""
    if not condition:
        raise UcError(rule, text, kind)


def sha256_of(pieces: Iterable[Bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def sha256(*pieces: Bytes) -> bytes:
    return sha256_of(pieces)


def align(n: int, unit: int = 64) -> int:
    return -(-n // unit) * unit


def is_zero(data: Bytes) -> bool:
    return not any(data)


def rising(items: Sequence[Any]) -> bool:
    """Whether each item is greater than the one before it."""
    return all(a < b for a, b in zip(items, items[1:]))


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """UC-ROOT-1. The stack holds complete subtrees, whose sizes are falling powers of two."""
    stack: list[tuple[int, bytes]] = []
    for leaf in leaves:
        size, node = 1, sha256(b"\0", leaf)
        while stack and stack[-1][0] == size:
            size, node = 2 * size, sha256(b"\1", stack.pop()[1], node)
        stack.append((size, node))
    if not stack:
        return sha256(b"")
    node = stack.pop()[1]
    while stack:
        node = sha256(b"\1", stack.pop()[1], node)
    return node


class Cursor:
    """Takes fields off the front of some bytes. What isn't there, or is left over, is refused by `rule`, with nothing
    reserved (UC-LIM-2); padding that isn't zero by `padding`, where that is another rule."""

    def __init__(self, data: Bytes, rule: str, padding: str = "") -> None:
        self.data, self.rule, self.padding, self.at = memoryview(data), rule, padding or rule, 0

    def take(self, n: int) -> memoryview:
        need(n <= len(self.data) - self.at, self.rule, "a field reaches beyond what holds it")
        self.at += n
        return self.data[self.at - n : self.at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def array(self, code: str, n: int) -> tuple[int, ...]:
        data = self.take(n * struct.calcsize("<" + code))
        return struct.unpack(f"<{n}{code}", data)

    def pad(self, unit: int) -> None:
        need(is_zero(self.take(-self.at % unit)), self.padding, "padding is not zero")

    def end(self) -> None:
        need(self.at == len(self.data), self.rule, "bytes are left over")


# ----------------------------------------------------------------------------------------------------------- preamble

MAGIC = b"\x89UCP\r\n\x1a\n"
CODED_RAW, SHARDED, OVERLAYS_ONLY = 1, 2, 4  # required features (UC-HDR-5)
PREAMBLE = struct.Struct("<8sHHI7Q6I32s32sQI80sI")
Preamble = namedtuple("Preamble", """magic format_major format_minor preamble_len required optional core_len index_offset
    index_len manifest_offset manifest_len n_records index_crc32 manifest_crc32 shard_number shard_count reserved_word
    decoded_root stored_root file_len attachments_crc32 reserved preamble_crc32""")


def read_preamble(data: memoryview) -> Preamble:
    """The preamble, checked in the order that container.md gives under "Opening a file"."""
    head = bytes(data[:8])
    need(head != b"" and head == MAGIC[: len(head)], "UC-HDR-1", "not an UltraCompress file")
    need(len(data) >= 256, "UC-HDR-6", "the file ends inside the preamble", TRUNCATED)
    p = Preamble._make(PREAMBLE.unpack(data[:256]))
    need(p.format_major == 1, "UC-HDR-2", f"format {p.format_major}", VERSION)
    need(p.preamble_crc32 == zlib.crc32(data[:252]), "UC-HDR-3", "checksum of the preamble", INTEGRITY)
    need(p.required <= CODED_RAW | SHARDED | OVERLAYS_ONLY, "UC-HDR-5", f"required features {p.required:#x}", FEATURE)
    need(p.preamble_len == 256, "UC-HDR-4", "length of the preamble")
    need(p.reserved_word == 0 and is_zero(p.reserved), "UC-HDR-14", "reserved bytes are not zero")
    need(p.file_len <= len(data), "UC-HDR-6", "the file is cut off", TRUNCATED)
    need(p.file_len == len(data), "UC-HDR-6", "the file is longer than it says")
    need(p.index_offset >= 256 and p.index_offset % 64 == 0, "UC-HDR-7", "place of the index")
    need(p.manifest_offset == align(p.index_offset + p.index_len), "UC-HDR-7", "place of the manifest")
    need(p.core_len == align(p.manifest_offset + p.manifest_len), "UC-HDR-7", "length of the core")
    need(p.core_len <= p.file_len and (p.file_len - p.core_len) % 64 == 0, "UC-HDR-7", "length of the attachments")
    if p.required & SHARDED:
        good = 2 <= p.shard_count <= 99999 and 1 <= p.shard_number <= p.shard_count
        need(good, "UC-HDR-8", f"shard {p.shard_number} of {p.shard_count}")
        alone = p.manifest_len == p.manifest_crc32 == 0 and p.core_len == p.file_len
        need(alone or p.shard_number == 1, "UC-SHD-1", "a manifest or attachments in another shard than the first")
    else:
        need(p.shard_number == p.shard_count == 1, "UC-HDR-16", "a shard without the feature")
    return p


# -------------------------------------------------------------------------------------------------------------- names

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def read_name(data: Bytes) -> str:
    """UC-NAM-1. Strings compare by code point, which is the order of their UTF-8 bytes."""
    need(1 <= len(data) <= 1024, "UC-NAM-1", f"a name of {len(data)} bytes")
    try:
        name = str(data, "utf-8")
    except UnicodeDecodeError:
        raise UcError("UC-NAM-1", "a name is not UTF-8") from None
    need(not CONTROL.search(name), "UC-NAM-1", "a name with control characters")
    return name


def check_path(path: str) -> None:
    """UC-NAM-2, of a name by UC-NAM-1. An absolute path has an empty component in front."""
    good = "\\" not in path and ":" not in path and not {"", ".", ".."} & set(path.split("/"))
    need(good, "UC-NAM-2", f"path {path!r}")


def check_no_folders(paths: Iterable[str]) -> None:
    """UC-NAM-3: no path is a folder of another."""
    known = set(paths)
    for path in known:
        folders = (path[: slash.start()] for slash in re.finditer("/", path))
        need(known.isdisjoint(folders), "UC-NAM-3", f"a file is a folder of {path!r}")


# -------------------------------------------------------------------------------------------------------------- index

CHUNK = 1 << 20  # of the content of a part (UC-PRT-2), and of the core (UC-ROOT-3)
TABLE, TENSOR, FILE, OVERLAY, MODEL, HEAD = range(1, 7)  # kinds of records
DATA, COUNTS, SCALES, STEPS, PLANE, RESIDUAL = PART_KINDS = 1, 2, 3, 4, 5, 16
RAW, PLANES, ALIAS, CODED = range(1, 5)  # encodings
NATIVE = range(3, 9)  # how many planes a row may have (UC-PLN-3)
FLOATS = {"F16", "BF16", "F32", "F64"}

# UC-DTY-1: code and bits of each type
DTYPES = ("BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 F64 C64 "
          "F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ F6_E2M3 F6_E3M2 F4").split()
DTYPE_CODES = {name: code for code, name in enumerate(DTYPES, 1)}
DTYPE_BITS = dict(zip(DTYPES, (8, 8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32, 64, 64, 8, 8, 8, 8, 8, 6, 6, 4)))


@dataclass
class Part:
    """A part header with its chunk table; `stored` has the stored length of each chunk."""

    kind: int
    plane: int
    storage: int
    optional: bool
    offset: int
    stored_len: int
    length: int
    crcs: tuple[int, ...]
    stored: tuple[int, ...]


@dataclass
class Record:
    """A record of the index."""

    kind: int
    name: str
    body: memoryview
    parts: list[Part]

    def part(self, kind: int) -> Part | None:
        return next((part for part in self.parts if part.kind == kind), None)

    def check_parts(self, expected: list[tuple[int, int]], more: bool = True) -> None:
        """UC-PRT-22: the parts expected, among them perhaps (`more`) optional ones of unknown kinds."""
        keys = [(part.kind, part.plane) for part in self.parts]
        known = [key for key in keys if key[0] in PART_KINDS]
        need(known == expected and (more or keys == known), "UC-PRT-22", f"parts of {self.name!r}")


def read_part(cursor: Cursor, skipped: bool) -> Part:
    """A part header and its chunk table (UC-PRT-1, UC-PRT-2, UC-PRT-8 to UC-PRT-19); `skipped` says that its record is
    (UC-IDX-8)."""
    kind, plane, storage, flags, n_chunks, offset, stored_len, length = cursor.unpack("4BI3Q")
    optional = flags == 1
    need(kind != 0, "UC-PRT-9", "a part of kind 0")
    need(flags <= 1, "UC-PRT-8", "unknown flags of a part")
    if kind in PART_KINDS and not skipped:
        need(storage <= 1, "UC-PRT-1", f"storage {storage}", FEATURE)
        need(not optional or kind == RESIDUAL, "UC-PRT-12", "a part that must not be optional")
        need(plane <= (7 if kind == PLANE else 0), "UC-PRT-14", f"plane {plane} of a part of kind {kind}")
        need(storage == 0 or kind == DATA, "UC-PRT-27", f"a part of kind {kind} stored as zstd")
    else:
        need(skipped or optional, "UC-PRT-10", f"a part of kind {kind}", FEATURE)
    need(length > 0, "UC-PRT-19", "a part without content")
    need(n_chunks == -(-length // CHUNK), "UC-PRT-2", f"{n_chunks} chunks for {length} bytes")
    crcs = cursor.array("I", n_chunks)
    contents = (CHUNK,) * (n_chunks - 1) + (length - CHUNK * (n_chunks - 1),)
    stored = cursor.array("I", n_chunks) if storage else contents
    cursor.pad(8)
    need(all(1 <= s <= c for s, c in zip(stored, contents)), "UC-PRT-17", "a stored chunk is empty or too long")
    need(sum(stored) == stored_len, "UC-PRT-18", "stored length and chunks disagree")
    return Part(kind, plane, storage, optional, offset, stored_len, length, crcs, stored)


def read_record(cursor: Cursor) -> Record:
    """One record (UC-IDX-2, UC-IDX-5 to UC-IDX-11, UC-NAM-1)."""
    start = cursor.at
    length, kind, flags, name_len, n_parts, body_len = cursor.unpack("IHHHHI")
    need(length >= 16 and length % 8 == 0, "UC-IDX-2", f"a record of {length} bytes")
    cursor.at = start
    fields = Cursor(cursor.take(length), "UC-IDX-7", padding="UC-IDX-6")
    fields.take(16)
    known, optional = TABLE <= kind <= HEAD, flags == 1
    need(kind != 0, "UC-IDX-10", "a record of kind 0")
    need(flags <= 1, "UC-IDX-11", "unknown flags of a record")
    need(known or optional, "UC-IDX-5", f"a record of kind {kind}", FEATURE)
    need(not known or optional == (kind >= OVERLAY), "UC-IDX-9", f"optional bit of a record of kind {kind}")
    name = read_name(fields.take(name_len))
    fields.pad(8)
    body = fields.take(body_len)
    fields.pad(8)
    parts = [read_part(fields, not known) for _ in range(n_parts)]
    fields.end()
    need(rising([(part.kind, part.plane) for part in parts]), "UC-PRT-4", f"order of the parts of {name!r}")
    return Record(kind, name, body, parts)


def read_index(data: memoryview, p: Preamble) -> list[Record]:
    """All records (UC-IDX-1, UC-IDX-3, UC-IDX-4), with their parts in place (UC-PRT-3, UC-PRT-20)."""
    index = data[p.index_offset : p.index_offset + p.index_len]
    need(p.index_crc32 == zlib.crc32(index), "UC-IDX-1", "checksum of the index", INTEGRITY)
    cursor = Cursor(index, "UC-IDX-2")
    records: list[Record] = []
    while cursor.at < len(index):
        need(len(records) < p.n_records, "UC-IDX-3", "more records than the preamble says")
        records.append(read_record(cursor))
    need(len(records) == p.n_records, "UC-IDX-3", "fewer records than the preamble says")
    need(rising([(record.kind, record.name) for record in records]), "UC-IDX-4", "records are not in order")
    expected, placed = 256, sorted((part for r in records for part in r.parts), key=lambda part: part.offset)
    for part in placed:
        need(part.offset == expected, "UC-PRT-3", f"a part at {part.offset}, expected at {expected}")
        expected = align(part.offset + part.stored_len)
    need(expected == p.index_offset, "UC-PRT-3", f"parts end at {expected}, the index begins at {p.index_offset}")
    by_record = [part for r in sorted((r for r in records if r.parts), key=lambda r: r.parts[0].offset) for part in r.parts]
    need(by_record == placed, "UC-PRT-20", "the parts of a record don't follow one another")
    return records


class Tensor:
    """A tensor record (UC-TEN-1 to UC-TEN-3, UC-TEN-6, UC-TEN-7, UC-TEN-10, UC-TEN-11), with the parts that it needs
    (UC-PRT-22, and UC-PRT-5 as far as no counts are needed)."""

    def __init__(self, record: Record, features: int) -> None:
        self.record, self.name = record, record.name
        body = Cursor(record.body, "UC-TEN-1")
        code, self.encoding, self.role, rank, self.row_dims, self.group_log2, self.planes, reserved = body.unpack("8B")
        need(1 <= code <= len(DTYPES), "UC-DTY-1", f"dtype {code}", FEATURE)
        need(RAW <= self.encoding <= CODED, "UC-TEN-6", f"encoding {self.encoding}", FEATURE)
        need(self.encoding != CODED or features & CODED_RAW != 0, "UC-TEN-7", "a coded tensor without the feature")
        need(self.role <= 3 and rank <= 16 and reserved == 0, "UC-TEN-1", "role, rank or reserved byte of a tensor")
        self.dtype, self.shape, self.decoded_sha256 = DTYPES[code - 1], body.array("Q", rank), bytes(body.take(32))
        self.level_ids = body.array("H", 6) if self.encoding == PLANES else ()
        need(self.encoding != PLANES or is_zero(body.take(4)), "UC-TEN-1", "reserved bytes behind the level ids")
        self.target = read_name(body.take(len(record.body) - body.at)) if self.encoding == ALIAS else ""
        body.end()
        need(self.encoding == PLANES or not (self.group_log2 or self.planes), "UC-TEN-3", "groups or planes of this encoding")
        need(self.encoding in (PLANES, CODED) or self.row_dims == 0, "UC-TEN-11", "rows of this encoding")
        bits = math.prod(self.shape) * DTYPE_BITS[self.dtype]
        need(bits % 8 == 0, "UC-TEN-2", f"shape {self.shape} of {self.dtype}")
        need(bits < 1 << 66, "UC-TEN-10", f"shape {self.shape} of {self.dtype}")
        self.n_bytes, self.size = bits // 8, DTYPE_BITS[self.dtype] // 8  # the size is used for types of whole bytes
        self.rows, self.cols = math.prod(self.shape[: self.row_dims]), math.prod(self.shape[self.row_dims :])
        {RAW: self.check_raw, PLANES: self.check_planes, ALIAS: self.check_alias, CODED: self.check_coded}[self.encoding]()

    def check_raw(self) -> None:
        self.record.check_parts([(DATA, 0)] if self.n_bytes else [])
        need(self.n_bytes == 0 or self.record.parts[0].length == self.n_bytes, "UC-PRT-5", "length of a raw tensor")

    def check_alias(self) -> None:
        need(not self.record.parts, "UC-TEN-9", "an alias with parts")

    def check_planes(self) -> None:
        need(self.dtype in FLOATS, "UC-PLN-1", f"planes of {self.dtype}")
        need(1 <= self.row_dims <= len(self.shape), "UC-PLN-2", "dimensions that are rows of planes")
        need(self.n_bytes > 0, "UC-PLN-8", "no rows or columns of planes")
        need(self.planes == 0 or self.planes in NATIVE, "UC-PLN-3", f"{self.planes} planes")
        need(self.group_log2 == 0 or 4 <= self.group_log2 <= 8, "UC-PLN-4", f"groups of 2^{self.group_log2}")
        kinds = [part.kind for part in self.record.parts]
        n_planes = self.planes or kinds.count(PLANE)  # with a counts part `Planes` checks how many there are
        expected = [(COUNTS, 0)] * (self.planes == 0) + [(SCALES, 0)] + [(STEPS, 0)] * (self.group_log2 > 0)
        self.record.check_parts(expected + [(PLANE, p) for p in range(n_planes)] + [(RESIDUAL, 0)] * kinds.count(RESIDUAL))
        residual = self.record.part(RESIDUAL)
        need(residual is None or residual.optional, "UC-PRT-13", "a residual of planes that is not optional")

    def check_coded(self) -> None:
        need(self.dtype in FLOATS, "UC-EXA-28", f"coded {self.dtype}")
        need(self.row_dims <= len(self.shape) and self.n_bytes > 0, "UC-EXA-10", "rows or columns of a coded tensor")
        self.record.check_parts([(RESIDUAL, 0)])
        need(not self.record.part(RESIDUAL).optional, "UC-PRT-13", "the residual of a coded tensor is optional")


class CarriedFile:
    """A file record (UC-FIL-1, UC-FIL-2), or a head, which has the same body and part (UC-EXA-31)."""

    def __init__(self, record: Record) -> None:
        self.record, self.rule, part_rule = record, "UC-EXA-31", "UC-EXA-31"
        if record.kind == FILE:
            self.rule, part_rule = "UC-FIL-1", "UC-FIL-2"
        check_path(record.name)
        body = Cursor(record.body, self.rule)
        self.length, self.sha256 = body.unpack("Q32s")
        body.end()
        record.check_parts([(DATA, 0)] if self.length else [])
        need(self.length == 0 or record.parts[0].length == self.length, part_rule, f"length of {record.name!r}")


# ---------------------------------------------------------------------------------------------------------- container


class Container:
    """One file. Opening it reads the preamble and the index only; the rest is read where it is asked for."""

    def __init__(self, data: Bytes) -> None:
        self.data = memoryview(data)
        self.preamble = p = read_preamble(self.data)
        self.records = read_index(self.data, p)
        kinds: list[list[Record]] = [[r for r in self.records if r.kind == kind] for kind in range(HEAD + 1)]
        if p.shard_number > 1:
            need(not kinds[FILE] and not kinds[HEAD], "UC-SHD-8", "a file in another shard than the first")
            need(not kinds[OVERLAY], "UC-OVL-16", "an overlay in another shard than the first")
        if p.required & OVERLAYS_ONLY:
            others = kinds[TABLE] or kinds[TENSOR] or kinds[MODEL] or p.required & SHARDED
            need(bool(kinds[OVERLAY] and not others), "UC-OVL-10", "a file of overlays has none, or more than overlays")
        self.tables = [read_levels(r) for r in kinds[TABLE]]
        self.tensors = {r.name: Tensor(r, p.required) for r in kinds[TENSOR]}
        self.files = {r.name: CarriedFile(r) for r in kinds[FILE]}
        self.overlays = sorted((Overlay(r, self) for r in kinds[OVERLAY]), key=lambda overlay: overlay.order)
        self.models = {r.name: Model(r) for r in kinds[MODEL]}
        self.heads = {r.name: CarriedFile(r) for r in kinds[HEAD]}
        check_no_folders(self.files)
        for tensor in self.tensors.values():
            if tensor.encoding == ALIAS:
                self.check_alias(tensor)
            elif tensor.planes:
                self.levels(tensor, {tensor.planes})

    def check_alias(self, alias: Tensor) -> None:
        """UC-TEN-4, UC-TEN-8."""
        target = self.tensors.get(alias.target, alias)
        need(target.encoding != ALIAS, "UC-TEN-4", f"target of alias {alias.name!r}")
        same = (alias.dtype, alias.shape, alias.decoded_sha256) == (target.dtype, target.shape, target.decoded_sha256)
        need(same, "UC-TEN-8", f"alias {alias.name!r} differs from its target")

    def resolve(self, tensor: Tensor) -> Tensor:
        """A tensor, or what it is an alias of."""
        return self.tensors[tensor.target] if tensor.encoding == ALIAS else tensor

    def levels(self, tensor: Tensor, natives: set[int]) -> dict[int, Levels]:
        """UC-LVL-3, UC-LVL-5: the set of level tables for each native count that the tensor's rows have."""
        chosen = {}
        for native, i in zip(NATIVE, tensor.level_ids):
            need(i <= len(self.tables), "UC-LVL-3", f"there is no level table {i}")
            need(i == 0 or native in natives, "UC-LVL-5", f"a level table for {native} planes, which no row has")
            chosen[native] = self.tables[i - 1] if i else DEFAULT_LEVELS[native]
            need(max(chosen[native]) == native, "UC-LVL-3", f"another level table for {native} planes")
        return chosen

    def stored_chunks(self, part: Part) -> Iterator[memoryview]:
        """The chunks of a part as they are stored (UC-PRT-6)."""
        offset = part.offset
        for stored, crc in zip(part.stored, part.crcs):
            chunk = self.data[offset : offset + stored]
            need(zlib.crc32(chunk) == crc, "UC-PRT-6", f"checksum of the chunk at {offset}", INTEGRITY)
            yield chunk
            offset += stored

    def chunks(self, part: Part) -> Iterator[Bytes]:
        """The content of a part, chunk by chunk (UC-PRT-7, UC-PRT-23)."""
        left = part.length
        for chunk in self.stored_chunks(part):
            length = min(left, CHUNK)
            yield decompress(bytes(chunk), length) if part.storage == 1 and len(chunk) < length else chunk
            left -= length

    def content(self, part: Part) -> memoryview:
        """The content of a plain part, as it lies in the file."""
        for _ in self.stored_chunks(part):
            pass  # compares the checksums
        return self.data[part.offset : part.offset + part.length]

    def manifest(self) -> bytes:
        p = self.preamble
        data = bytes(self.data[p.manifest_offset : p.manifest_offset + p.manifest_len])
        need(zlib.crc32(data) == p.manifest_crc32, "UC-MAN-4", "checksum of the manifest", INTEGRITY)
        return data

    def attachments(self) -> dict[tuple[int, str], memoryview]:
        """UC-ATT-1 to UC-ATT-5: the attachments by kind and name."""
        section, crc = self.data[self.preamble.core_len :], self.preamble.attachments_crc32
        need(len(section) > 0 or crc == 0, "UC-ATT-5", "a checksum of no attachments")
        need(zlib.crc32(section) == crc, "UC-ATT-5", "checksum of the attachments", INTEGRITY)
        cursor = Cursor(section, "UC-ATT-2", padding="UC-ATT-3")
        found: dict[tuple[int, str], memoryview] = {}
        while cursor.at < len(section):
            kind, name_len, reserved, data_len = cursor.unpack("HHIQ")
            key = kind, read_name(cursor.take(name_len))
            need(reserved == 0, "UC-ATT-3", "reserved bytes of an attachment")
            need(key not in found, "UC-ATT-1", f"two attachments {key}")
            found[key] = cursor.take(data_len)
            cursor.pad(64)
        return found

    def check_padding(self) -> None:
        """UC-PRT-21 and UC-HDR-15: bytes between parts and sections are zero."""
        p = self.preamble
        ends = [("UC-PRT-21", part.offset + part.stored_len) for record in self.records for part in record.parts]
        ends += [("UC-HDR-15", p.index_offset + p.index_len), ("UC-HDR-15", p.manifest_offset + p.manifest_len)]
        for rule, end in ends:
            need(is_zero(self.data[end : align(end)]), rule, f"padding at {end} is not zero")

    def check_stored(self) -> None:
        """Checksums of all chunks, also of what is skipped (UC-PRT-6), and the stored root (UC-ROOT-3)."""
        for part in (part for record in self.records for part in record.parts):
            for _ in self.stored_chunks(part):
                pass  # compares the checksums
        core = self.data[: self.preamble.core_len]
        leaves = (bytes(core[at : at + CHUNK]) for at in range(0, len(core), CHUNK))
        root = merkle_root(leaf[:128] + bytes(128) + leaf[256:] if i == 0 else leaf for i, leaf in enumerate(leaves))
        need(root == self.preamble.stored_root, "UC-ROOT-3", "stored root", INTEGRITY)


def tensor_root(tensors: Iterable[Tensor], digests: dict[str, bytes]) -> bytes:
    """UC-ROOT-2, with the digests given by name."""

    def leaf(t: Tensor) -> bytes:
        name, rank = t.name.encode(), len(t.shape)
        return struct.pack(f"<Q{len(name)}sBQ{rank}Q", len(name), name, DTYPE_CODES[t.dtype], rank, *t.shape) + digests[t.name]

    return merkle_root(map(leaf, sorted(tensors, key=lambda t: t.name)))


# --------------------------------------------------------------------------------------------------------------- zstd


def decompress(frame: bytes, length: int) -> bytes:
    """UC-PRT-7, UC-PRT-23 to UC-PRT-26: a chunk that is exactly one zstd frame. No decoder is let produce more
    than a byte beyond its content."""
    need(frame_length(frame) == len(frame), "UC-PRT-7", "not exactly one zstd frame")
    try:
        if zstd:
            content = zstd.ZstdDecompressor().decompress(frame, max_length=length + 1)
        elif zstandard:
            content = zstandard.ZstdDecompressor().stream_reader(frame).read(length + 1)
        else:
            content = decompress_by_command(frame, length + 1)
    except tuple(module.ZstdError for module in (zstd, zstandard) if module):
        content = b""
    need(len(content) == length, "UC-PRT-23", "a frame that does not decompress to its chunk")
    return content


def decompress_by_command(frame: bytes, limit: int) -> bytes:
    """The frame goes in by a file: with two pipes each side could wait for the other."""
    with tempfile.TemporaryFile() as source:
        source.write(frame)
        source.seek(0)
        try:
            process = subprocess.Popen(["zstd", "-dcq"], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            raise NeedsZstd("needs zstd: Python 3.14, the package zstandard, or the command zstd") from None
        with process:
            content = process.stdout.read(limit)
            if len(content) == limit:
                process.kill()
    return content if process.returncode == 0 else b""


def frame_length(data: bytes) -> int:
    """Where the frame ends by its headers (RFC 8878, 3.1.1): decoders don't agree on what may follow."""
    cursor = Cursor(data, "UC-PRT-7")
    magic, descriptor = cursor.unpack("IB")
    need(magic == 0xFD2FB528 and not descriptor & 8, "UC-PRT-7", "not a zstd frame")
    single_segment = descriptor >> 5 & 1
    for window in cursor.take(1 - single_segment):
        size = (1 << 10 + (window >> 3)) * (8 + (window & 7)) // 8
        need(size <= 8 << 20, "UC-PRT-25", f"a frame with a window of {size} bytes")
    need(is_zero(cursor.take((0, 1, 2, 4)[descriptor & 3])), "UC-PRT-24", "a frame with a dictionary")
    cursor.take((single_segment, 2, 4, 8)[descriptor >> 6])
    last = 0
    while not last:
        header = int.from_bytes(cursor.take(3), "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        need(kind != 3, "UC-PRT-7", "a reserved type of block")
        cursor.take(1 if kind == 1 else size)
    cursor.take(descriptor & 4)
    return cursor.at


# ----------------------------------------------------------------------------------------------- JSON and the manifest

JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)


def check_depth(text: str, rule: str) -> None:
    """Refuses deep nesting (UC-MAN-1) before a recursive parser sees it."""
    depth = 0
    for token in JSON_TOKEN.finditer(text):
        need(token[0] != '"', rule, "a string without end")
        depth += (token[0] in "[{") - (token[0] in "]}")
        need(depth <= 65, rule, "JSON is nested too deeply")


def parse_json(data: Bytes, rule: str, integers_only: bool = True) -> Json:
    """Canonical JSON (RFC 8785): what is parsed and written again must be the same bytes. Numbers are integers, by UC-MAN-1,
    or else all floats."""

    def refuse(text: str) -> Json:
        raise UcError(rule, f"number {text[:20]}")

    def integer(text: str) -> int:  # lengths are compared first, since converting a long number takes long
        need(len(text) <= 17 and abs(int(text)) < 2**53, rule, "an integer beyond 2^53 - 1")
        return int(text)

    def members(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        need(len(dict(pairs)) == len(pairs), rule, "a member occurs twice")
        return dict(pairs)

    parse_int, parse_float = (integer, refuse) if integers_only else (float, float)
    try:
        text = str(data, "utf-8")
        check_depth(text, rule)
        value = json.loads(text, object_pairs_hook=members, parse_constant=refuse, parse_int=parse_int, parse_float=parse_float)
        need(canonical(value, rule).encode() == data, rule, "JSON is not in canonical form")
    except ValueError:  # of the decoder, or of UTF-8
        raise UcError(rule, "not JSON in UTF-8") from None
    return value


def canonical(value: Json, rule: str) -> str:
    """RFC 8785, 3.2: members sorted by UTF-16 code units, strings and numbers as ECMAScript writes them."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{canonical(key, rule)}:{canonical(value[key], rule)}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(canonical(item, rule) for item in value) + "]"
    if isinstance(value, float):
        need(math.isfinite(value), rule, "a number that is not finite")
        return ecmascript_number(value)
    return json.dumps(value, ensure_ascii=False)


def ecmascript_number(x: float) -> str:
    """Number::toString of ECMAScript, whose digits are those of `repr`."""
    if x == 0:
        return "0"
    sign, figures, exponent = Decimal(repr(x)).normalize().as_tuple()
    digits, k, n = "".join(map(str, figures)), len(figures), len(figures) + int(exponent)
    if 0 < n <= 21:
        text = digits + "0" * (n - k) if k <= n else digits[:n] + "." + digits[n:]
    elif -6 < n <= 0:
        text = "0." + "0" * -n + digits
    else:
        text = digits[0] + ("." + digits[1:] if k > 1 else "") + f"e{n - 1:+d}"
    return "-" * sign + text


def check_members(value: Json, rule: str, where: str, required: dict[str, Any], optional: dict[str, Any] | None = None,
                  others: bool = True) -> None:
    """`value` must be an object with these members, each of the type or by the test given; `others` are ignored."""
    need(isinstance(value, dict), rule, f"{where} is no object")
    tests = {**required, **(optional or {})}
    need(required.keys() <= value.keys(), rule, f"{where} lacks a member")
    need(others or value.keys() <= tests.keys(), rule, f"{where} has another member")
    for key, test in tests.items():
        good = key not in value or (isinstance(value[key], test) if isinstance(test, type) else test(value[key]))
        need(good, rule, f"{key!r} of {where}")


def is_integer(value: Json, least: int = 0) -> bool:
    """Integers of receipts are floats here; truth values are none, though Python thinks so."""
    return type(value) in (int, float) and value == int(value) and least <= value < 2**53


def is_digest(value: Json) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_strings(value: Json) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def read_manifest(data: bytes) -> dict[str, Json]:
    """UC-MAN-1, UC-MAN-2, UC-MAN-5 to UC-MAN-8, UC-MAN-10."""
    manifest, rule = parse_json(data, "UC-MAN-1"), "UC-MAN-2"
    check_members(manifest, rule, "the manifest", {
        "format": ("ultracompress-manifest-1",).__contains__, "encoder": str, "files": list, "tensors": dict,
        "recipe": lambda value: isinstance(value, dict) and len(canonical(value, rule).encode()) <= 1 << 20,
    }, {"calibration": is_digest, "licence": str, "rungs": is_strings})
    for planes, root in manifest.get("rungs", {}).items():
        need(planes in ("3", "4", "5", "6", "7"), "UC-MAN-5", f"rung {planes!r}")
        need(is_digest(root), "UC-MAN-10", f"root of rung {planes}")
    roles = ("weights", "carried", "left_out")
    for entry in manifest["files"]:
        check_members(entry, rule, "a file", {"path": str, "bytes": is_integer, "role": roles.__contains__},
                      {"sha256": is_digest, "metadata": is_strings})
        need("sha256" in entry or entry["role"] == "left_out", rule, "a file without its digest")
        check_path(read_name(entry["path"].encode()))
    need(rising([entry["path"] for entry in manifest["files"]]), "UC-MAN-7", "files are not sorted")
    weights = [entry["path"] for entry in manifest["files"] if entry["role"] == "weights"]
    for name, tensor in manifest["tensors"].items():
        check_members(tensor, rule, f"tensor {name!r}", {"sha256": is_digest, "reason": str}, {"file": str})
        need("file" not in tensor or tensor["file"] in weights, "UC-MAN-8", f"file of tensor {name!r}")
    return manifest


# ------------------------------------------------------------------------------------------------------------- levels

Levels = dict[int, tuple[int, ...]]  # a set of tables by planes read; the highest is the native count it is for

# UC-LVL-4, from `native` planes read down to 3. Tables for 3 to 7 planes are symmetric: these are their positive halves.
DEFAULT_HALVES = {
    3: ("13 42 77 127",),
    4: ("6 18 31 45 60 77 98 127", "12 37 67 111"),
    5: ("3 9 15 21 27 33 40 47 54 61 69 77 87 98 111 127", "6 18 30 43 57 73 92 118", "12 36 64 104"),
    6: (
        "1 4 7 10 13 16 19 22 25 29 33 37 40 44 48 52 56 60 64 68 72 76 80 85 90 95 101 107 112 118 122 127",
        "3 8 14 21 27 35 42 50 58 66 74 82 92 104 115 125",
        "6 17 31 46 61 78 97 120",
        "11 37 68 107",
    ),
    7: (
        "1 2 3 4 5 7 8 10 11 13 15 17 19 20 22 23 24 26 28 30 32 34 36 38 40 42 44 46 48 50 52 54 56 58 60 62 "
        "65 67 69 71 73 75 77 79 81 83 85 87 90 92 94 97 99 102 105 108 110 112 114 117 119 122 124 127",
        "1 4 6 9 12 16 19 22 25 29 33 37 41 45 49 53 57 61 66 70 74 78 82 86 91 96 101 107 111 116 120 126",
        "2 8 14 21 27 35 43 51 59 68 76 84 93 104 113 123",
        "5 17 31 47 63 80 98 118",
        "12 38 69 108",
    ),
}
DEFAULT_8 = (  # whole tables; that for 8 planes is -128 to 127
    "-128 -125 -123 -121 -120 -118 -115 -113 -111 -109 -108 -105 -103 -101 -100 -98 -96 -94 -91 -89 -88 -85 -83 "
    "-82 -79 -77 -75 -74 -71 -69 -67 -65 -63 -61 -59 -58 -55 -53 -51 -49 -47 -45 -44 -41 -39 -37 -36 -34 -32 "
    "-29 -27 -26 -23 -22 -19 -18 -16 -14 -12 -10 -8 -5 -4 -1 0 2 5 6 8 11 12 14 17 18 21 22 24 26 29 31 33 34 "
    "36 38 40 43 45 46 48 50 53 55 56 58 60 62 65 66 68 70 72 75 76 78 80 82 84 87 88 90 92 94 96 99 100 102 "
    "104 107 108 111 112 114 117 118 120 122 124 127",
    "-127 -122 -119 -114 -110 -107 -102 -98 -94 -90 -86 -82 -78 -74 -70 -66 -62 -58 -54 -50 -46 -42 -38 -34 -30 "
    "-26 -23 -18 -14 -10 -7 -2 1 5 9 13 18 21 25 30 34 37 41 45 49 53 57 61 65 69 73 77 81 85 89 93 97 101 106 "
    "109 113 118 121 126",
    "-124 -117 -109 -100 -92 -84 -76 -68 -60 -52 -44 -36 -28 -20 -12 -5 3 11 19 27 35 43 51 59 67 75 83 91 99 "
    "108 116 123",
    "-121 -104 -88 -72 -56 -40 -24 -8 7 23 39 55 71 87 103 120",
    "-113 -78 -47 -16 15 46 77 112",
)


def read_levels(record: Record) -> Levels:
    """A level table record (UC-LVL-1, UC-LVL-2)."""
    record.check_parts([], more=False)
    body = Cursor(record.body, "UC-LVL-1")
    native, reserved = body.unpack("B7s")
    need(native in NATIVE and is_zero(reserved), "UC-LVL-1", "planes or reserved bytes of a level table")
    tables = {read: body.array("b", 1 << read) for read in range(native, 2, -1)}
    body.end()
    need(all(map(rising, tables.values())), "UC-LVL-2", "levels do not increase")
    return tables


def default_levels() -> dict[int, Levels]:
    """UC-LVL-4."""
    sets = {8: dict(zip(range(7, 2, -1), (tuple(map(int, text.split())) for text in DEFAULT_8)))}
    sets[8][8] = tuple(range(-128, 128))
    for native, texts in DEFAULT_HALVES.items():
        halves = [tuple(map(int, text.split())) for text in texts]
        sets[native] = {read: tuple(-level for level in half[::-1]) + half for read, half in zip(range(native, 2, -1), halves)}
    return sets


DEFAULT_LEVELS = default_levels()

# ---------------------------------------------------------------------------------------------------- numbers and types
#
# Python's floats are binary64. Every product here is exact in it; where the pages round to binary32, so does `round32`. (A
# sum of two numbers of binary32 may be rounded to binary64 before: that has at least 2 * 24 + 2 bits, which does no harm.)

STRUCT_CODES = {"I8": "b", "F16": "e", "F32": "f", "F64": "d"}


def pack_floats(values: Sequence[float], code: str) -> bytes:
    """By roundTiesToEven. What rounds to infinity is an error for struct, but not here (UC-VAL-9)."""
    try:
        return struct.pack(f"<{len(values)}{code}", *values)
    except OverflowError:
        if len(values) == 1:
            return struct.pack("<" + code, math.copysign(math.inf, values[0]))
        return b"".join(pack_floats([value], code) for value in values)


def unpack_floats(data: Bytes, code: str) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // struct.calcsize('<' + code)}{code}", data)


def round32(values: Sequence[float]) -> tuple[float, ...]:
    return unpack_floats(pack_floats(values, "f"), "f")


def to_type(values: Sequence[float], dtype: str) -> bytes:
    """UC-VAL-4, from numbers that binary32 holds. A bfloat16 is the upper half of a binary32, rounded."""
    if dtype != "BF16":
        return pack_floats(values, STRUCT_CODES[dtype])
    bits = struct.unpack(f"<{len(values)}I", pack_floats(values, "f"))
    return struct.pack(f"<{len(values)}H", *[(b + 0x7FFF + (b >> 16 & 1)) >> 16 & 0xFFFF for b in bits])


def from_type(data: Bytes, dtype: str) -> tuple[float, ...]:
    if dtype != "BF16":
        return unpack_floats(data, STRUCT_CODES[dtype])
    wide = bytearray(2 * len(data))
    wide[2::4], wide[3::4] = data[0::2], data[1::2]
    return unpack_floats(wide, "f")


# ------------------------------------------------------------------------------------------------------------- planes

STEP_VALUES = (32, 35, 38, 42, 46, 51, 56, 61, 67, 74, 81, 88, 97, 106, 117, 128)  # UC-VAL-2
SPAN = 65536  # columns taken at once: a multiple of every group, and the most that a block of a residual has (UC-EXA-4)
SPREAD = [bytes(byte >> i & 1 for i in range(8)) for byte in range(256)]


class Planes:
    """The parts of a `planes` tensor, each checked, and the decoding of its rows (codec.md). `natives` are in the order of
    the rows, `group` is in columns, or 0."""

    def __init__(self, dtype: str, rows: int, cols: int, group: int, natives: list[int], levels: dict[int, Levels],
                 scales: Bytes, steps: Bytes, planes: list[Bytes]) -> None:
        self.rows, self.cols, self.group, self.levels = rows, cols, group, levels
        self.order = sorted(range(rows), key=lambda row: -natives[row])  # UC-PLN-5: sorting is stable
        self.natives = [natives[row] for row in self.order]  # in the order of storage, as all that follows
        self.plane_stride, self.n_groups = -(-cols // 8), -(-cols // group) if group else 0
        self.step_stride = -(-self.n_groups // 2)
        self.steps, self.planes = memoryview(steps), [memoryview(plane) for plane in planes]
        need(len(planes) == max(natives), "UC-PRT-22", "a plane that no row has, or one too few")
        need(len(scales) == 2 * rows, "UC-PRT-5", "length of the scales")
        need(len(steps) == rows * self.step_stride, "UC-PRT-5", "length of the steps")
        for p, plane in enumerate(planes):
            with_plane = sum(native > p for native in natives)
            need(len(plane) == with_plane * self.plane_stride, "UC-PRT-5", f"length of plane {p}")
            last = max(plane[self.plane_stride - 1 :: self.plane_stride])
            need(cols % 8 == 0 or last >> cols % 8 == 0, "UC-PLN-11", "bits behind the last column")
        last = max(steps[self.step_stride - 1 :: self.step_stride]) if self.n_groups % 2 else 0
        need(last < 16, "UC-PLN-12", "bits behind the last group")
        highest = 128 if dtype == "F16" else 240
        for (bits,) in struct.iter_unpack("<H", scales):
            need(1 <= bits >> 7 <= highest, "UC-VAL-1", f"row scale {bits:#06x}")  # with a sign it is 256 or more
        self.scales = from_type(scales, "BF16")

    def codes(self, stored: int, planes: int, start: int, end: int) -> bytes:
        """Codes of a stored row, read as `planes` planes: columns from `start`, a multiple of `SPAN`, to `end` (UC-PLN-6).
        Bits become bytes of one long integer, and shifting that shifts all codes: none of them exceeds its byte."""
        at, codes = stored * self.plane_stride, 0
        for plane in self.planes[:planes]:
            bits = b"".join([SPREAD[byte] for byte in plane[at + start // 8 : at + -(-end // 8)]])
            codes = codes << 1 | int.from_bytes(bits, "little")
        return codes.to_bytes(align(end - start, 8), "little")[: end - start]

    def group_steps(self, stored: int, start: int, end: int) -> tuple[list[int], int]:
        """The steps of the same columns, and how many columns share one (UC-PLN-4, UC-PLN-7)."""
        if not self.group:
            return [128], end - start
        at, first, last = stored * self.step_stride, start // self.group, -(-end // self.group)
        pairs = self.steps[at + first // 2 : at + -(-last // 2)]
        return [STEP_VALUES[k] for pair in pairs for k in (pair & 15, pair >> 4)][: last - first], self.group

    def elements(self, rung: int, dtype: str) -> Iterator[tuple[int, bytearray]]:
        """The weights at a type, in order (UC-VAL-3 to UC-VAL-9), in stretches that begin with the weight given. Weights of one
        scale and step are translated, byte by byte, with a table of what codes stand for."""

        @functools.lru_cache(maxsize=4096)  # scales and steps recur
        def tables(native: int, read: int, scale: float, step: int) -> list[bytes]:
            packed = to_type([scale * step * level for level in self.levels[native][read]], dtype)
            return [packed[k::size].ljust(256, b"\0") for k in range(size)]

        size, stored_at = DTYPE_BITS[dtype] // 8, [0] * self.rows
        for stored, row in enumerate(self.order):
            stored_at[row] = stored
        for row, stored in enumerate(stored_at):
            native, scale = self.natives[stored], self.scales[stored]
            read = min(native, rung)
            for start in range(0, self.cols, SPAN):
                end = min(start + SPAN, self.cols)
                steps, group = self.group_steps(stored, start, end)
                codes, elements = self.codes(stored, read, start, end), bytearray((end - start) * size)
                parts = [codes[at : at + group] for at in range(0, end - start, group)]
                of_parts = [tables(native, read, scale, step) for step in steps]
                for k in range(size):
                    elements[k::size] = b"".join([part.translate(table[k]) for part, table in zip(parts, of_parts)])
                yield row * self.cols + start, elements


def read_counts(data: memoryview, rows: int) -> list[int]:
    """UC-PLN-3, UC-PLN-9, UC-PLN-10, UC-PLN-13."""
    need(len(data) == -(-rows // 2), "UC-PRT-5", "length of the counts")
    values = [value for byte in data for value in (byte & 15, byte >> 4)]
    need(not any(values[rows:]), "UC-PLN-13", "bits behind the last row")
    need(max(values[:rows]) <= 5, "UC-PLN-3", "a row of more than 8 planes")
    need(min(values[:rows]) < max(values[:rows]), "UC-PLN-10", "a counts part of equal counts")
    return [3 + value for value in values[:rows]]


def open_planes(container: Container, tensor: Tensor) -> Planes:
    """The planes of a tensor record."""
    kinds = (COUNTS, SCALES, STEPS, PLANE)
    parts = [(part.kind, container.content(part)) for part in tensor.record.parts if part.kind in kinds]
    single = dict(parts)
    # Scales bound the rows before there is a list of so many (UC-LIM-2).
    need(len(single[SCALES]) == 2 * tensor.rows, "UC-PRT-5", "length of the scales")
    natives = [tensor.planes] * tensor.rows if tensor.planes else read_counts(single[COUNTS], tensor.rows)
    return Planes(tensor.dtype, tensor.rows, tensor.cols, 1 << tensor.group_log2 if tensor.group_log2 else 0, natives,
                  container.levels(tensor, set(natives)), single[SCALES], single.get(STEPS, b""),
                  [content for kind, content in parts if kind == PLANE])


def decode(container: Container, tensor: Tensor, rung: int = 8) -> Iterator[Bytes]:
    """What a tensor decodes to at its own type, without overlays (UC-TEN-5), in pieces."""
    tensor = container.resolve(tensor)
    if tensor.encoding == RAW:
        for part in tensor.record.parts[: tensor.n_bytes > 0]:  # others are optional
            yield from container.chunks(part)
    elif tensor.encoding == CODED:
        yield from Exact(container, tensor).pieces()
    else:
        yield from (elements for _, elements in open_planes(container, tensor).elements(rung, tensor.dtype))


# ------------------------------------------------------------------------------------------------------ the exact rung

# A table as weights are decoded with: its shift, and for each slot what the symbol adds to the expected top, its sign bit,
# its frequency, and the slot less the symbol's first one (UC-EXA-6).
Slots = tuple[int, list[tuple[int, int, int, int]]]
Hint = tuple[int, Slots]  # the expected top of a weight, and its table


class Model:
    """An exact model (UC-EXA-1 to UC-EXA-3, UC-EXA-13 to UC-EXA-20)."""

    def __init__(self, record: Record) -> None:
        record.check_parts([], more=False)
        need(record.name == sha256(record.body)[:8].hex(), "UC-EXA-13", f"name of model {record.name!r}")
        body = Cursor(record.body, "UC-EXA-1")
        (code, self.native, self.precision, self.mantissa_bits, self.fraction_bits, self.of_value, n_classes, n_tables,
         reserved) = body.unpack("6B3H")
        need(reserved == 0, "UC-EXA-1", "reserved bytes of a model")
        good = max(self.mantissa_bits, self.fraction_bits) <= 7 and self.of_value <= 1
        need(good, "UC-EXA-2", "a field of a model is out of range")
        self.dtype = DTYPES[code - 1] if 1 <= code <= len(DTYPES) else ""
        need(self.dtype in FLOATS and self.native in (0, *NATIVE), "UC-EXA-2", "type or planes of a model")
        need(8 <= self.precision <= 11 and 1 <= n_tables <= 256, "UC-EXA-2", "precision or tables of a model")
        self.context_bits = self.mantissa_bits + self.fraction_bits
        need(n_classes << self.context_bits <= 32768, "UC-EXA-16", "too many contexts")
        self.classes, self.contexts = bytes(body.take(1 << self.native)), bytes(body.take(n_classes << self.context_bits))
        self.tables = [self.read_table(body) for _ in range(n_tables)]
        body.end()
        need(n_classes == max(self.classes) + 1, "UC-EXA-14", "classes of a model")
        need(self.native != 0 or n_classes == 1, "UC-EXA-15", "the class of a model for coded tensors")
        need(max(self.contexts) < n_tables, "UC-EXA-17", "a context without its table")

    def read_table(self, body: Cursor) -> tuple[int, int, bytes, tuple[int, ...]]:
        """Shift, offset, symbols and frequencies."""
        shift, reserved, offset, n_symbols = body.unpack("BBhH")
        need(reserved == 0, "UC-EXA-1", "a reserved byte of a table")
        symbols, frequencies = bytes(body.take(n_symbols)), body.array("H", n_symbols)
        need(rising(symbols), "UC-EXA-3", "symbols do not increase")
        need(0 not in frequencies, "UC-EXA-20", "a frequency of zero")
        need(sum(frequencies) == 1 << self.precision, "UC-EXA-18", "frequencies of a table")
        need(shift + self.precision <= 16, "UC-EXA-19", "shift of a table")
        return shift, offset, symbols, frequencies

    def plane_slots(self, code: int, factor: float, value: float) -> Slots:
        """The table of a context of planes (UC-EXA-5)."""
        bits = f32_bits(value if self.of_value else factor)
        upper, lower = (bits & 0x7FFFFF) >> 23 - self.mantissa_bits, (bits & 0xFFFF) >> 16 - self.fraction_bits
        context = (self.classes[code] << self.context_bits) + (upper << self.fraction_bits | lower)
        return model_slots(self)[self.contexts[context]]

    def coded_slots(self, reference: int) -> Slots:
        """The same of a coded tensor (UC-EXA-29). A context of less than two bits has the upper of them."""
        return model_slots(self)[self.contexts[(reference & 3) << self.context_bits >> 2]]


@functools.lru_cache(maxsize=8)  # a tensor has at most six models; the slots of all models of a file might be too many
def model_slots(model: Model) -> list[Slots]:
    """The tables of a model with their slots laid out."""
    tables = []
    for shift, offset, symbols, frequencies in model.tables:
        entries = ((offset + ((symbol & 127) << shift), symbol >> 7 << 15, n) for symbol, n in zip(symbols, frequencies))
        tables.append((shift, [(base, sign, n, place) for base, sign, n in entries for place in range(n)]))
    return tables


def f32_bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")


def expected_top(value: float, dtype: str) -> int:
    """UC-EXA-5: the upper 16 bits in the element type, rounded towards zero."""
    if dtype == "F64":
        return int.from_bytes(struct.pack("<d", value)[6:], "little")
    if dtype != "F16":
        return f32_bits(value) >> 16
    nearest = struct.pack("<e", value)
    too_far = abs(struct.unpack("<e", nearest)[0]) > abs(value)
    return int.from_bytes(nearest, "little") - too_far  # one less is the next nearer to zero, whatever the sign


def anchors(levels: Sequence[int]) -> list[float]:
    """UC-EXA-5: for each code the end, nearer to zero, of the interval that is rounded to its level."""

    def anchor(code: int, level: int) -> float:
        neighbour = code - 1 if level > 0 else code + 1
        if level == 0:
            return 0.5
        if 0 <= neighbour < len(levels) and levels[neighbour] * level >= 0:
            return (level + levels[neighbour]) / 2
        return float(level)

    return [anchor(code, level) for code, level in enumerate(levels)]


class Block(NamedTuple):
    """What a block holds: stored rows from `first` to `end`, columns from `start` to `stop`; `native` is 0 when coded."""

    native: int
    first: int
    end: int
    start: int
    stop: int


class Exact:
    """Decodes the residual of a tensor (UC-EXA-4 to UC-EXA-10, UC-EXA-21 to UC-EXA-29)."""

    def __init__(self, container: Container, tensor: Tensor) -> None:
        self.tensor, self.rows, self.cols = tensor, tensor.rows, tensor.cols
        self.planes = open_planes(container, tensor) if tensor.encoding == PLANES else None
        counts = {native: self.planes.natives.count(native) for native in NATIVE[::-1]} if self.planes else {0: self.rows}
        self.counts = {native: count for native, count in counts.items() if count}
        self.anchors = {n: anchors(self.planes.levels[n][n]) for n in self.counts if n}
        self.height = max(1, SPAN // self.cols)
        cursor = Cursor(container.content(tensor.record.part(RESIDUAL)), "UC-EXA-21")
        self.models = self.find_models(container, [bytes(cursor.take(8)) for _ in NATIVE])
        (n_blocks,) = cursor.unpack("I")
        expected = sum(-(-count // self.height) for count in self.counts.values()) * -(-self.cols // SPAN)
        need(n_blocks == expected, "UC-EXA-4", f"{n_blocks} blocks, {expected} expected")
        self.blocks = [cursor.take(length) for length in cursor.array("I", n_blocks)]
        cursor.end()

    def find_models(self, container: Container, names: list[bytes]) -> dict[int, Model]:
        """The model of each native count; no other place may have a name. A coded tensor has the first place only."""
        models = {}
        for native, name in zip(NATIVE if self.planes else (0, *[None] * 5), names):
            if native in self.counts:
                need(not is_zero(name), "UC-EXA-23", f"no model for {native} planes")
                model = container.models.get(name.hex())
                good = model is not None and (model.dtype, model.native) == (self.tensor.dtype, native)
                need(good, "UC-EXA-22", f"model {name.hex()} for {native} planes of {self.tensor.dtype}")
                models[native] = model
            else:
                need(is_zero(name), "UC-EXA-23", "a model that no row needs")
        return models

    def plan(self) -> Iterator[Block]:
        """UC-EXA-4: how the weights are cut into blocks."""
        begin = 0
        for native, count in self.counts.items():
            for first in range(begin, begin + count, self.height):
                for start in range(0, self.cols, SPAN):
                    yield Block(native, first, min(first + self.height, begin + count), start, min(start + SPAN, self.cols))
            begin += count

    def pieces(self) -> Iterator[Bytes]:
        """The source's bytes, in the order of the weights."""
        decoded = (self.decode(data, block) for data, block in zip(self.blocks, self.plan()))
        if len(self.counts) == 1:  # then storage has that order too
            yield from decoded
            return
        size, result = self.tensor.size, bytearray(self.tensor.n_bytes)  # no mere claim: the planes of all these are there
        for content, block in zip(decoded, self.plan()):
            width = (block.stop - block.start) * size
            for k, stored in enumerate(range(block.first, block.end)):
                at = (self.planes.order[stored] * self.cols + block.start) * size
                result[at : at + width] = content[k * width : (k + 1) * width]
        yield result

    def decode(self, data: memoryview, block: Block) -> bytes:
        """The elements of one block."""
        rows, cols, size = block.end - block.first, block.stop - block.start, self.tensor.size
        weights, cursor = rows * cols, Cursor(data, "UC-EXA-24")
        n_words, n_exceptions, has_tails = cursor.unpack("3I")
        need(n_words <= weights and n_exceptions <= weights, "UC-EXA-24", "more words or exceptions than weights")
        need(has_tails <= (size > 2), "UC-EXA-8", "tails of a type that has none")
        states = list(cursor.array("I", 32))
        references = cursor.take(0 if self.planes else rows)
        cursor.pad(4)
        words = cursor.array("H", n_words)
        cursor.pad(4)
        positions, replacements = cursor.array("H", n_exceptions), cursor.array("H", n_exceptions)
        tails = cursor.take(weights * (size - 2) * has_tails)
        cursor.pad(4)
        cursor.end()
        if self.planes:
            hints = (self.row_hints(stored, block) for stored in range(block.first, block.end))
        else:
            hints = ([self.coded_hint(reference)] * cols for reference in references)
        tops = decode_tops(hints, states, words, self.models[block.native].precision)
        need(rising(positions), "UC-EXA-7", "exceptions are not in order")
        need(n_exceptions == 0 or positions[-1] < weights, "UC-EXA-25", "an exception behind the last weight")
        for position, top in zip(positions, replacements):
            tops[position] = top
        elements, packed = bytearray(weights * size), struct.pack(f"<{weights}H", *tops)  # UC-EXA-8
        elements[size - 2 :: size], elements[size - 1 :: size] = packed[0::2], packed[1::2]
        for k in range((size - 2) * has_tails):
            elements[k::size] = tails[k :: size - 2]
        return bytes(elements)

    def row_hints(self, stored: int, block: Block) -> list[Hint]:
        """UC-EXA-5 for the columns of a row. Codes recur with a step, so that each hint is kept while the row lasts."""
        steps, group = self.planes.group_steps(stored, block.start, block.stop)
        codes = self.planes.codes(stored, block.native, block.start, block.stop)
        known: dict[int, dict[int, Hint]] = {step: {} for step in steps}
        hints = []
        for g, step in enumerate(steps):
            of_step = known[step]
            for code in codes[g * group : (g + 1) * group]:
                if code not in of_step:
                    of_step[code] = self.plane_hint(block.native, self.planes.scales[stored] * step, code)
                hints.append(of_step[code])
        return hints

    def plane_hint(self, native: int, factor: float, code: int) -> Hint:
        value = factor * self.anchors[native][code]
        return expected_top(value, self.tensor.dtype), self.models[native].plane_slots(code, factor, value)

    def coded_hint(self, reference: int) -> Hint:
        """UC-EXA-29, with its M and E."""
        mantissa, first = {"BF16": (7, 75), "F32": (7, 75), "F16": (10, 0), "F64": (4, 971)}[self.tensor.dtype]
        return (4 * first + reference) << mantissa - 2, self.models[0].coded_slots(reference)


def decode_tops(rows: Iterable[list[Hint]], states: list[int], words: Sequence[int], precision: int) -> list[int]:
    """UC-EXA-6, UC-EXA-9, UC-EXA-27 and UC-EXA-33. (No sum exceeds 2^32: `y` is at most the state.)"""
    tops, used, mask = [], 0, (1 << precision) - 1
    for hints in rows:
        for column, (expected, (shift, slots)) in enumerate(hints):
            coder = column & 31
            state = states[coder]
            base, sign, frequency, place = slots[state & mask]
            y = frequency * (state >> precision) + place
            low = y & (1 << shift) - 1
            state = y >> shift
            if state < 0x10000:
                need(used < len(words), "UC-EXA-33", "words do not suffice")
                state = state << 16 | words[used]
                used += 1
            states[coder] = state
            tops.append((expected + base + low) & 0xFFFF ^ sign)
    need(all(state == 0x10000 for state in states), "UC-EXA-9", "a coder does not end where it began")
    need(used == len(words), "UC-EXA-27", "words are left")
    return tops


# ----------------------------------------------------------------------------------------------------------- overlays


class OverlayBlock:
    """The factors for one tensor (UC-OVL-2, UC-OVL-12), and what they add to it."""

    def __init__(self, cursor: Cursor) -> None:
        name_len, self.factors, reserved, self.rank, self.rows, self.cols, scaling, zero, self.effective_sha256 = \
            cursor.unpack("HBBIQQ4sI32s")
        need(reserved == zero == 0, "UC-OVL-2", "reserved bytes of a block")
        self.name = read_name(cursor.take(name_len))
        cursor.pad(8)
        (self.scaling,) = unpack_floats(scaling, "f")
        need(self.factors in (1, 2), "UC-OVL-2", f"factors of type {self.factors}")
        need(1 <= self.rank <= 1024 and self.rows >= 1 and self.cols >= 1, "UC-OVL-2", "rank, rows or columns of a block")
        good = is_zero(scaling) if self.factors == 1 else 2.0**-64 <= abs(self.scaling) <= 2.0**64
        need(good, "UC-OVL-12", "scaling of a block")
        scales = (self.rows + self.cols) * 2 if self.factors == 1 else 0
        self.n_bytes = scales + self.rank * (self.rows + self.cols) * self.factors  # the type's code is also its bytes


class Delta:
    """The factors of a block, checked (UC-OVL-5, UC-OVL-18); what they add to the tensor is computed as it is asked for."""

    def __init__(self, block: OverlayBlock, data: memoryview) -> None:
        self.cols, self.stride, cursor = block.cols, block.rank * block.factors, Cursor(data, "UC-OVL-13")
        self.dtype = "I8" if block.factors == 1 else "F16"
        self.row_scales, self.scales = (), (block.scaling,) * block.cols
        if self.dtype == "I8":
            self.row_scales, self.scales = (from_type(cursor.take(2 * n), "BF16") for n in (block.rows, block.cols))
            good = all(2.0**-60 <= scale <= 2.0**40 for scale in self.row_scales + self.scales)
            need(good, "UC-OVL-5", "a scale of an overlay is out of range")
        else:
            need(all(byte & 0x7C != 0x7C for byte in data[1::2]), "UC-OVL-18", "a factor of an overlay is not finite")
        self.a = cursor.take(block.rows * self.stride)
        self.b = [from_type(cursor.take(block.cols * block.factors), self.dtype) for _ in range(block.rank)]
        self.row = functools.lru_cache(maxsize=1)(self.compute_row)  # several stretches of a tensor may want the same

    def compute_row(self, i: int) -> Sequence[float]:
        """A row of `d`: UC-OVL-6, UC-OVL-7. Sums of int8 products are integers, which need no rounding."""
        sums: Sequence[float] = [0.0] * self.cols
        for x, row in zip(from_type(self.a[i * self.stride : (i + 1) * self.stride], self.dtype), self.b):
            sums = [s + x * y for s, y in zip(sums, row)]
            sums = sums if self.row_scales else round32(sums)
        scale = self.row_scales[i] if self.row_scales else 1.0
        return round32([s * (scale * t) for s, t in zip(sums, self.scales)])

    def between(self, start: int, end: int) -> list[float]:
        """`d` of the weights from `start` to `end`; its rows need not be those of the tensor's planes (UC-OVL-17)."""
        rows = range(start // self.cols, -(-end // self.cols))
        return [x for i in rows for x in self.row(i)[max(start - i * self.cols, 0) : end - i * self.cols]]


class Overlay:
    """An overlay record (UC-OVL-1, UC-OVL-2, UC-OVL-11 to UC-OVL-13)."""

    def __init__(self, record: Record, container: Container) -> None:
        self.record, self.container, self.name = record, container, record.name
        body = Cursor(record.body, "UC-OVL-1")
        self.base_root, self.effective_root, self.order, reserved, n_blocks, info_len, zero = body.unpack("32s32sHHIII")
        need(reserved == zero == 0, "UC-OVL-1", "reserved bytes of an overlay")
        need(n_blocks >= 1 and info_len <= 1 << 20, "UC-OVL-1", "blocks or info of an overlay")
        self.blocks = [OverlayBlock(body) for _ in range(n_blocks)]
        info = parse_json(body.take(info_len), "UC-OVL-1")
        body.pad(8)
        body.end()
        need(isinstance(info, dict), "UC-OVL-1", "info of an overlay is no object")
        need(rising([block.name for block in self.blocks]), "UC-OVL-11", "blocks are not in order")
        length = sum(align(block.n_bytes) for block in self.blocks)
        good = [(part.kind, part.length) for part in record.parts] == [(DATA, length)]
        need(good, "UC-OVL-13", f"the part of overlay {self.name!r} is not what its blocks need")
        need(record.parts[0].storage == 0, "UC-PRT-27", "factors stored as zstd")

    def deltas(self) -> Iterator[tuple[str, Delta]]:
        """The factors by tensor, one block after the other."""
        cursor = Cursor(self.container.content(self.record.parts[0]), "UC-OVL-13")
        for block in self.blocks:
            yield block.name, Delta(block, cursor.take(block.n_bytes))
            cursor.pad(64)


def correct(container: Container, tensor: Tensor, deltas: list[Delta]) -> Iterator[list[bytearray]]:
    """UC-OVL-8, UC-OVL-23 to UC-OVL-25: the tensor's bytes with the first of some overlays, with two, and so on, in pieces."""
    base: Iterator[tuple[int, Bytes]]
    if tensor.encoding == PLANES:
        base, dtype = open_planes(container, tensor).elements(8, "F32"), "F32"  # which holds the exact values
    else:
        base, dtype = raw_elements(container, tensor), tensor.dtype
    size = tensor.size
    for start, elements in base:
        values, results = from_type(elements, dtype), []
        fixed = [i * size for i, value in enumerate(values) if not math.isfinite(value)]  # of raw tensors only
        for delta in deltas:
            values = round32([a + b for a, b in zip(values, delta.between(start, start + len(values)))])
            results.append(bytearray(to_type(values, tensor.dtype)))
            for at in fixed:
                results[-1][at : at + size] = elements[at : at + size]
        yield results


def raw_elements(container: Container, tensor: Tensor) -> Iterator[tuple[int, Bytes]]:
    """A raw tensor in stretches that begin with the element given. Chunks hold whole elements."""
    for i, chunk in enumerate(container.chunks(tensor.record.parts[0])):
        yield i * CHUNK // tensor.size, chunk


def check_targets(overlays: list[Overlay], tensors: dict[str, Tensor]) -> None:
    """UC-OVL-4, UC-OVL-17."""
    for block in (block for overlay in overlays for block in overlay.blocks):
        t = tensors.get(block.name)
        good = t is not None and (t.encoding == PLANES or t.encoding == RAW and t.dtype in ("BF16", "F16", "F32"))
        need(good, "UC-OVL-4", f"no overlay can be on {block.name!r}")
        cuts = [(math.prod(t.shape[:n]), math.prod(t.shape[n:])) for n in range(len(t.shape) + 1)]
        need((block.rows, block.cols) in cuts, "UC-OVL-17", f"rows and columns of the block for {block.name!r}")


# -------------------------------------------------------------------------------------------------------------- packs


class Pack:
    """A file, or all shards of a pack; a shard by itself is not `whole`."""

    def __init__(self, shards: list[Container], decoded_root: bytes, stored_root: bytes) -> None:
        self.shards, self.decoded_root, self.stored_root, first = shards, decoded_root, stored_root, shards[0]
        self.whole = len(shards) == first.preamble.shard_count
        self.home = {name: shard for shard in shards for name in shard.tensors}
        self.tensors = {name: self.home[name].tensors[name] for name in sorted(self.home)}
        self.manifest = read_manifest(first.manifest()) if first.preamble.shard_number == 1 else None
        self.overlays = first.overlays
        self.only_overlays = bool(first.preamble.required & OVERLAYS_ONLY)

    def target(self, tensor: Tensor) -> Tensor:
        return self.home[tensor.name].resolve(tensor)

    def root(self, digests: dict[str, bytes]) -> bytes:
        """UC-ROOT-2 with a digest for each tensor that is no alias, by name."""
        return tensor_root(self.tensors.values(), {name: digests[self.target(t).name] for name, t in self.tensors.items()})


def open_file(data: Bytes) -> Pack:
    container = Container(data)
    return Pack([container], container.preamble.decoded_root, container.preamble.stored_root)


def open_shards(index: Bytes, load: Callable[[str], Bytes]) -> Pack:
    """A pack by its index file (UC-SHD-2 to UC-SHD-6, UC-SHD-9 to UC-SHD-17); `load` gets a file beside it."""
    rule, value = "UC-SHD-10", parse_json(index, "UC-SHD-3")
    check_members(value, rule, "the index file", {
        "format": ("ultracompress-index-1",).__contains__, "stored_root": is_digest, "decoded_root": is_digest,
        "shards": lambda shards: isinstance(shards, list) and 2 <= len(shards) <= 99999, "weight_map": is_strings})
    for entry in value["shards"]:
        check_members(entry, rule, "a shard", {
            "file": str, "core_len": is_integer, "stored_root": is_digest, "decoded_root": is_digest})
    names, count = [entry["file"] for entry in value["shards"]], len(value["shards"])
    stem = names[0][: -len("-00001-of-00002.uc")]
    for name in names:
        need("/" not in name, "UC-SHD-9", f"name {name!r} of a shard")
        check_path(read_name(name.encode()))
    need(stem != "", "UC-SHD-2", f"name {names[0]!r} of a shard")
    need(names == [f"{stem}-{i:05}-of-{count:05}.uc" for i in range(1, count + 1)], "UC-SHD-2", "names of the shards")
    for name in value["weight_map"]:
        read_name(name.encode())
    need(set(value["weight_map"].values()) <= set(names), "UC-SHD-15", "weight_map names a file that is not listed")
    shards = []
    for number, entry in enumerate(value["shards"], 1):
        shards.append(Container(load(entry["file"])))
        p = shards[-1].preamble
        place = (p.required & SHARDED, p.shard_number, p.shard_count)
        need(place == (SHARDED, number, count), "UC-SHD-12", f"{entry['file']!r} is another file")
        need(p.core_len == entry["core_len"], "UC-SHD-13", f"length of {entry['file']!r}")
        roots = (p.stored_root.hex(), p.decoded_root.hex())
        need(roots == (entry["stored_root"], entry["decoded_root"]), "UC-SHD-13", f"roots of {entry['file']!r}", INTEGRITY)
    found = [(name, file) for shard, file in zip(shards, names) for name in shard.tensors]
    need(len(dict(found)) == len(found), "UC-SHD-5", "a tensor is in two shards")
    need(dict(found) == value["weight_map"], "UC-SHD-14", "weight_map is not what the shards hold")
    skipped = [(r.kind, r.name) for shard in shards for r in shard.records if not TABLE <= r.kind <= HEAD]
    need(len(set(skipped)) == len(skipped), "UC-SHD-16", "a record of a kind that is skipped is in two shards")
    stored = merkle_root(shard.preamble.stored_root for shard in shards)
    need(stored.hex() == value["stored_root"], "UC-SHD-6", "stored root of the pack", INTEGRITY)
    return Pack(shards, bytes.fromhex(value["decoded_root"]), stored)


def read_file(path: Path) -> Bytes:
    """A file as it is mapped: what isn't looked at isn't read."""
    with open(path, "rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0  # which can't be mapped
        return b"" if empty else memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def open_pack(path: Path) -> Pack:
    def load(name: str) -> Bytes:
        need((path.parent / name).is_file(), "UC-SHD-4", f"{name} is not there", MISSING)
        return read_file(path.parent / name)

    data = read_file(path)
    return open_shards(bytes(data), load) if data[:1] == b"{" else open_file(data)


# ------------------------------------------------------------------------------------------------------- verification
#
# The steps of `verify`. Each refuses the pack or returns what there is to say.


def check_structure(pack: Pack) -> str:
    """What needs no tensor decoded: padding, attachments, and how manifest, index and overlays agree."""
    for shard in pack.shards:
        shard.check_padding()
        shard.attachments()
    if pack.manifest:
        check_manifest(pack, pack.manifest)
    need([overlay.order for overlay in pack.overlays] == [*range(1, len(pack.overlays) + 1)], "UC-OVL-3", "order of overlays")
    need(len(pack.overlays) <= 256, "UC-OVL-14", "more than 256 overlays")
    rule = "UC-OVL-21" if pack.only_overlays else "UC-OVL-15"
    need(len({overlay.base_root for overlay in pack.overlays}) <= 1, rule, "overlays for several bases")
    if pack.whole and not pack.only_overlays:
        need(all(o.base_root == pack.decoded_root for o in pack.overlays), "UC-OVL-15", "an overlay for another base")
        check_targets(pack.overlays, pack.tensors)
    for overlay in pack.overlays:
        for _ in overlay.deltas():
            pass  # reading factors checks them
    return f"ok, {sum(len(shard.records) for shard in pack.shards)} records, {len(pack.tensors)} tensors"


def check_manifest(pack: Pack, manifest: dict[str, Json]) -> None:
    """UC-MAN-3, and names of heads (UC-EXA-12). The first shard by itself has but some of the tensors named."""
    names = manifest["tensors"].keys()
    agree = names == pack.tensors.keys() if pack.whole else names >= pack.tensors.keys()
    need(agree, "UC-MAN-3", "the manifest names other tensors than the index")
    for name, tensor in pack.tensors.items():
        same = manifest["tensors"][name]["sha256"] == tensor.decoded_sha256.hex()
        need(same or pack.target(tensor).encoding == PLANES, "UC-MAN-3", f"source digest of {name!r}")
    files, heads = pack.shards[0].files, pack.shards[0].heads
    carried = {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in manifest["files"] if entry["role"] == "carried"}
    found = {name: (file.length, file.sha256.hex()) for name, file in files.items()}
    need(carried == found, "UC-MAN-3", "the manifest lists other files than the index")
    weights = {entry["path"] for entry in manifest["files"] if entry["role"] == "weights"}
    need(heads.keys() <= weights, "UC-EXA-12", "a head of a file that is not listed")


def check_stored(pack: Pack) -> str:
    for shard in pack.shards:
        shard.check_stored()
    return f"ok, {pack.stored_root.hex()}"


def check_decoded(pack: Pack) -> str:
    """UC-TEN-5, UC-FIL-1, UC-EXA-31, UC-ROOT-2, UC-SHD-17."""
    for shard in pack.shards:
        for tensor in shard.tensors.values():
            if tensor.encoding != ALIAS:
                good = sha256_of(decode(shard, tensor)) == tensor.decoded_sha256
                need(good, "UC-TEN-5", f"{tensor.name!r} decodes to something else", INTEGRITY)
        for file in (*shard.files.values(), *shard.heads.values()):
            content = (chunk for part in file.record.parts[: file.length > 0] for chunk in shard.chunks(part))
            need(sha256_of(content) == file.sha256, file.rule, f"digest of {file.record.name!r}", INTEGRITY)
        root = tensor_root(shard.tensors.values(), {t.name: t.decoded_sha256 for t in shard.tensors.values()})
        need(root == shard.preamble.decoded_root, "UC-ROOT-2", "decoded root", INTEGRITY)
    root = pack.root({name: tensor.decoded_sha256 for name, tensor in pack.tensors.items()})
    need(root == pack.decoded_root, "UC-SHD-17", "decoded root of the pack", INTEGRITY)
    return f"ok, {root.hex()}"


def check_rungs(pack: Pack) -> str:
    """UC-MAN-9."""
    rungs = pack.manifest.get("rungs", {}) if pack.manifest and pack.whole else {}
    for planes, root in rungs.items():
        digests = {name: tensor.decoded_sha256 for name, tensor in pack.tensors.items()}
        for name, tensor in pack.tensors.items():
            if tensor.encoding == PLANES:
                digests[name] = sha256_of(decode(pack.home[name], tensor, int(planes)))
        need(pack.root(digests).hex() == root, "UC-MAN-9", f"decoded root of rung {planes}", INTEGRITY)
    return f"ok, {' '.join(rungs)}" if rungs else ""


def check_effective(pack: Pack, overlays: list[Overlay]) -> str:
    """UC-OVL-9, UC-OVL-19: the digests that overlays lead to on a pack, and the roots."""
    deltas: dict[str, list[Delta]] = {}
    expected: dict[str, list[bytes]] = {}
    for overlay in overlays:
        for block, (name, delta) in zip(overlay.blocks, overlay.deltas()):
            deltas.setdefault(name, []).append(delta)
            expected.setdefault(name, []).append(block.effective_sha256)
    for name in deltas:
        hashes = [hashlib.sha256() for _ in deltas[name]]
        for results in correct(pack.home[name], pack.tensors[name], deltas[name]):
            for digest, result in zip(hashes, results):
                digest.update(result)
        good = [digest.digest() for digest in hashes] == expected[name]
        need(good, "UC-OVL-9", f"overlays lead to something else for {name!r}", INTEGRITY)
    digests = {name: tensor.decoded_sha256 for name, tensor in pack.tensors.items()}
    for overlay in overlays:
        digests |= {block.name: block.effective_sha256 for block in overlay.blocks}
        need(pack.root(digests) == overlay.effective_root, "UC-OVL-19", f"effective root of {overlay.name!r}", INTEGRITY)
    return ", ".join(["ok", *(f"{overlay.effective_root.hex()} ({overlay.name})" for overlay in overlays)])


def check_overlays(pack: Pack) -> str:
    if not pack.overlays:
        return ""
    if pack.whole and not pack.only_overlays:
        return check_effective(pack, pack.overlays)
    return ", ".join(["not checked without the base", *(overlay.effective_root.hex() for overlay in pack.overlays)])


def check_exact(pack: Pack) -> str:
    """UC-EXA-11, UC-EXA-30. The exact root is that of UC-ROOT-2 over the source's digests, when all
    tensors have their source's bits."""
    digests = {name: tensor.decoded_sha256 for name, tensor in pack.tensors.items() if tensor.encoding in (RAW, CODED)}
    for name, tensor in pack.tensors.items():
        if tensor.encoding == PLANES and tensor.record.part(RESIDUAL):
            digests[name] = sha256_of(Exact(pack.home[name], tensor).pieces())
    for name, tensor in pack.tensors.items():
        digest = digests.get(pack.target(tensor).name)
        if digest and pack.manifest:
            same = digest.hex() == pack.manifest["tensors"][name]["sha256"]
            rule = "UC-EXA-30" if tensor.encoding == ALIAS else "UC-EXA-11"
            need(same, rule, f"{name!r} is not what the source has", INTEGRITY)
    exact = sum(pack.target(tensor).name in digests for tensor in pack.tensors.values())
    return f"ok, {pack.root(digests).hex()}" if exact == len(pack.tensors) else f"{exact} of {len(pack.tensors)} tensors"


def check_receipts(pack: Pack) -> str:
    """Receipts lie outside both roots: one that doesn't hold is no reason to refuse the pack."""
    said = []
    for (kind, name), data in pack.shards[0].attachments().items():
        if kind == 1:
            try:
                model = read_receipt(data)["model"]
                mine = (model["stored_root"], model["decoded_root"]) == (pack.stored_root.hex(), pack.decoded_root.hex())
                said.append(f"{name}: adds up, {'of this pack' if mine else 'but is of another pack'}")
            except UcError as error:
                said.append(f"{name}: refused, {error}")
    return "; ".join(said)


STEPS_OF_VERIFY: dict[str, Callable[[Pack], str]] = {
    "structure": check_structure, "stored": check_stored, "decoded": check_decoded, "rungs": check_rungs,
    "effective": check_overlays, "exact": check_exact, "receipts": check_receipts}

# ----------------------------------------------------------------------------------------------------------- receipts

LOSS, SHARE, COSINE = (-1e-6, math.inf), (0, 1), (-1, 1)  # what numbers of a column lie between
COLUMNS: dict[str, dict[str, tuple[float, float]]] = {
    "kld": {"nll": LOSS, "nll_reference": LOSS, "kld": LOSS, "top1": SHARE},
    "cosine": {"cosine_pooled": COSINE, "cosine_hidden": COSINE}}


def is_number(value: Json) -> bool:
    return type(value) is float


def is_string(value: Json) -> bool:
    return isinstance(value, str)


def is_rung(value: Json) -> bool:
    return is_integer(value, 3) and value <= 8


def or_null(test: Callable[[Json], bool]) -> Callable[[Json], bool]:
    return lambda value: value is None or test(value)


def read_receipt(data: Bytes) -> dict[str, Json]:
    """The record of an evaluation (UC-RCP-1, UC-RCP-2, UC-RCP-4 to UC-RCP-13), with its headlines recomputed (UC-RCP-3,
    UC-RCP-14)."""
    rule, record = "UC-RCP-2", parse_json(data, "UC-RCP-1", integers_only=False)
    check_members(record, rule, "the record", {
        "format": ("ultracompress-eval-1",).__contains__, "tool": str, "metric": ("kld", "cosine").__contains__,
        "architecture": str, "reference_root": is_digest, "tokenizer_sha256": is_digest, "model": dict, "text": dict, "protocol": dict,
        "rows": dict, "headline": dict, "kld_largest": list, "baselines": list}, others=False)
    check_members(record["model"], rule, "model", {
        "decoded_root": is_digest, "stored_root": or_null(is_digest), "encoder": or_null(is_string), "rung": or_null(is_rung),
        "body_bpw": or_null(is_number), "file_bpw": or_null(is_number)}, {"effective_root": is_digest}, others=False)
    rung_with_overlays = record["model"]["rung"] is not None and "effective_root" in record["model"]
    need(not rung_with_overlays, "UC-RCP-4", "rungs are without overlays")
    check_members(record["text"], rule, "text", {
        "sha256": is_digest, "bytes": is_integer, "tokens": is_integer}, others=False)
    positive = functools.partial(is_integer, least=1)
    check_members(record["protocol"], rule, "protocol", {
        "seq_len": positive, "max_tokens": or_null(is_integer), "sequences": positive, "tokens": positive}, others=False)
    check_protocol(record)
    columns = COLUMNS[record["metric"]]
    check_rows(record, record["rows"], columns)
    check_largest(record, rule)
    check_headline(record["headline"], headline(record["rows"], record, record["kld_largest"]))
    columns = {name: limits for name, limits in columns.items() if name != "nll_reference"}
    for baseline in record["baselines"]:
        check_members(baseline, rule, "a baseline", {
            "name": str, "body_bpw": or_null(is_number), "rows": dict, "headline": dict}, others=False)
        check_rows(record, baseline["rows"], columns)
        check_headline(baseline["headline"], headline(baseline["rows"], record, []))
    need(len({b["name"] for b in record["baselines"]}) == len(record["baselines"]), "UC-RCP-11", "two baselines of one name")
    return record


def check_protocol(record: Json) -> None:
    """Tokens that are scored (UC-RCP-5), and that the text has those that are taken (UC-RCP-6)."""
    protocol, language = record["protocol"], record["metric"] == "kld"
    taken = protocol["seq_len"] - (0 if language else 2)  # from the text, for each sequence
    scored = protocol["seq_len"] - (1 if language else 2)
    need(protocol["tokens"] == protocol["sequences"] * scored, "UC-RCP-5", "tokens of the protocol")
    available = min(record["text"]["tokens"], math.inf if protocol["max_tokens"] is None else protocol["max_tokens"])
    need(protocol["sequences"] * taken <= available, "UC-RCP-6", "more tokens than the text has")


def check_rows(record: Json, rows: Json, columns: dict[str, tuple[float, float]]) -> None:
    """UC-RCP-7, UC-RCP-8."""
    check_members(rows, "UC-RCP-7", "rows", dict.fromkeys(columns, list), others=False)
    for name, (least, most) in columns.items():
        need(len(rows[name]) == record["protocol"]["sequences"], "UC-RCP-7", f"length of column {name!r}")
        need(all(is_number(x) and least <= x <= most for x in rows[name]), "UC-RCP-8", f"a number of column {name!r}")


def check_largest(record: Json, rule: str) -> None:
    """`kld_largest` (UC-RCP-9, UC-RCP-10, UC-RCP-12, UC-RCP-13). Divergences that are below zero by rounding could
    make the sum of all less than that of the largest."""
    largest, tokens = record["kld_largest"], record["protocol"]["tokens"]
    need(all(map(is_number, largest)), rule, "kld_largest")
    if record["metric"] == "cosine":
        need(largest == [], "UC-RCP-9", "kld_largest of an encoder")
    else:
        need(len(largest) == tokens // 100 + 1, "UC-RCP-9", "length of kld_largest")
        need(all(a >= b for a, b in zip(largest, largest[1:])), "UC-RCP-12", "kld_largest rises")
        need(largest[-1] >= -1e-6, "UC-RCP-10", "a divergence below zero")
        total = sum(record["rows"]["kld"]) * tokens / record["protocol"]["sequences"]
        need(sum(largest) <= total + 1e-6 * tokens, "UC-RCP-13", "kld_largest exceeds the divergence of all tokens")


def headline(rows: Json, record: Json, largest: list[float]) -> dict[str, float | None]:
    """UC-RCP-3: what rows come to."""

    def mean(column: Sequence[float]) -> float:
        return sum(column) / len(column)

    def error(column: Sequence[float]) -> float | None:
        n, m = len(column), mean(column)
        return math.sqrt(sum((x - m) * (x - m) for x in column) / (n - 1) / n) if n > 1 else None

    if record["metric"] == "cosine":
        made = {"mean": mean, "se": error, "min": min}
        return {f"{name}_{suffix}": make(column) for name, column in rows.items() for suffix, make in made.items()}
    reference = record["rows"]["nll_reference"]
    paired = [a - b for a, b in zip(rows["nll"], reference)]
    try:
        ppl, ppl_reference, ratio = (math.exp(mean(column)) for column in (rows["nll"], reference, paired))
    except OverflowError:
        raise UcError("UC-RCP-3", "a perplexity that is not finite", INTEGRITY) from None
    ratio_error = None if len(paired) == 1 else ratio * error(paired)
    return {"ppl": ppl, "ppl_reference": ppl_reference, "ppl_ratio": ratio, "ppl_ratio_se": ratio_error,
            "kld_mean": mean(rows["kld"]), "kld_se": error(rows["kld"]), "top1_agreement": mean(rows["top1"]),
            **({"kld_p99": largest[-1]} if largest else {})}


def check_headline(given: Json, computed: dict[str, float | None]) -> None:
    """UC-RCP-3, UC-RCP-14. A standard error below 10^-12 is what rounding leaves of zero."""
    need(given.keys() == computed.keys(), "UC-RCP-14", "members of a headline", INTEGRITY)
    for name, value in computed.items():
        if value is None or given[name] is None:
            good = given[name] is value
        else:
            floor = 1e-12 if name.endswith("_se") else 0.0
            close = is_number(given[name]) and math.isclose(given[name], value, rel_tol=1e-9, abs_tol=floor)
            good = close and math.isfinite(value)
        need(good, "UC-RCP-3", f"{name!r} does not follow from the rows", INTEGRITY)


# ------------------------------------------------------------------------------------------------------------ vectors


def run_container(vector: Json) -> None:
    compare_pack(run_steps(open_file(bytes.fromhex(vector["input"]))), vector.get("output", {}))


def run_pack(vector: Json) -> None:
    shards = {name: bytes.fromhex(data) for name, data in vector["input"]["shards"].items()}

    def load(name: str) -> bytes:
        need(name in shards, "UC-SHD-4", f"{name} is not there", MISSING)
        return shards[name]

    compare_pack(run_steps(open_shards(bytes.fromhex(vector["input"]["index"]), load)), vector.get("output", {}))


def run_codec(vector: Json) -> None:
    part = vector["input"]
    planes = Planes(part["dtype"], part["rows"], part["cols"], part["group"], part["counts"], DEFAULT_LEVELS,
                    bytes.fromhex(part["scales"]), bytes.fromhex(part["steps"]), [bytes.fromhex(p) for p in part["planes"]])
    elements = planes.elements(part.get("rung", 8), part.get("target", part["dtype"]))
    expect(b"".join(piece for _, piece in elements), vector["output"]["bytes"], "bytes")


def run_steps(pack: Pack) -> Pack:
    for step in STEPS_OF_VERIFY.values():
        step(pack)
    return pack


def expect(found: Any, expected: Any, what: str) -> None:
    """A difference from an `output` is no fault of the file, so it isn't a UcError."""
    found = found.hex() if isinstance(found, Bytes) else found
    if expected is not None and found != expected:
        raise AssertionError(f"{what} differs from the output")


def compare_pack(pack: Pack, output: Json) -> None:
    """What the `output` of a vector lists, against the pack; members that are absent are None."""
    expect(pack.decoded_root, output.get("decoded_root"), "decoded root")
    expect(pack.stored_root, output.get("stored_root"), "stored root")
    expect(list(pack.tensors), sorted(output["tensors"]) if "tensors" in output else None, "list of tensors")
    for name, listed in output.get("tensors", {}).items():
        home, tensor = pack.home[name], pack.tensors[name]
        expect((tensor.dtype, list(tensor.shape)), (listed["dtype"], listed["shape"]), f"type of {name}")
        expect(tensor.decoded_sha256, listed["sha256"], f"digest of {name}")
        expect(b"".join(decode(home, tensor)), listed.get("bytes"), f"bytes of {name}")
        for rung, content in listed.get("rungs", {}).items():
            expect(b"".join(decode(home, tensor, int(rung))), content, f"rung {rung} of {name}")
        if "exact" in listed:
            expect(b"".join(exact_bytes(pack, name)), listed["exact"], f"exact bytes of {name}")
    for n, listed in enumerate(output.get("overlays", ()), 1):
        overlay = pack.overlays[n - 1]
        expect((overlay.name, overlay.effective_root.hex()), (listed["name"], listed["effective_root"]), "overlay")
        for name, content in listed["tensors"].items():
            expect(b"".join(overlaid(pack, name, n)), content, f"bytes of {name} with {n} overlays")


RUN_VECTOR: dict[str, Callable[[Json], Any]] = {
    "container": run_container, "pack": run_pack, "codec": run_codec,
    "manifest": lambda vector: read_manifest(bytes.fromhex(vector["input"])),
    "receipt": lambda vector: read_receipt(bytes.fromhex(vector["input"]))}


def run_vectors(folder: Path, level: str | None) -> int:
    """All vectors below a folder, or those of a level (conformance.md): at every level this reader verifies. Which kind and
    rule a refusal names is a reader's own business; they are counted anyway."""
    counts: dict[str, Counter[str]] = {}
    for path in sorted(folder.rglob("*.json")):
        place, vector = path.parent.relative_to(folder), json.loads(path.read_text("utf-8"))
        if level and level not in vector["levels"]:
            continue
        count, wanted = counts.setdefault(str(place), Counter()), vector["expect"]
        try:
            RUN_VECTOR[place.parts[0]](vector)
            good, found = wanted == "ok", "accepted"
        except UcError as error:
            good, found = wanted != "ok", f"refused ({error.kind}), {error}"
            count["with the kind named"] += error.kind == wanted
            count["with the rule named"] += error.rule in vector["rule"]
        except NeedsZstd:
            count["skipped for want of zstd"] += 1
            continue
        except Exception as error:  # a crash, or another output than listed
            good, found = False, f"{type(error).__name__}: {error}"
        count["agree" if good else "DISAGREE"] += 1
        if not good:
            print(f"DISAGREES {place / path.name}, {wanted} {vector['rule']}: {found}")
    for place, count in counts.items():
        print(f"{place:20}" + ", ".join(f"{n} {what}" for what, n in sorted(count.items()) if n))
    return 1 if any(count["DISAGREE"] for count in counts.values()) else 0


# ------------------------------------------------------------------------------------------------------- command line


def exact_bytes(pack: Pack, name: str) -> Iterator[Bytes]:
    """A tensor as the source has it."""
    tensor = pack.target(pack.tensors[name])
    if tensor.encoding != PLANES:
        return decode(pack.home[name], tensor)
    need(tensor.record.part(RESIDUAL) is not None, "UC-EXA-4", f"{name!r} has no residual")
    return Exact(pack.home[name], tensor).pieces()


def overlaid(pack: Pack, name: str, n: int) -> Iterator[Bytes]:
    """A tensor with the first `n` overlays."""
    tensor = pack.target(pack.tensors[name])
    deltas = [delta for overlay in pack.overlays[:n] for on, delta in overlay.deltas() if on == tensor.name]
    if not deltas:
        return decode(pack.home[name], tensor)
    return (results[-1] for results in correct(pack.home[name], tensor, deltas))


def verify(path: Path, base: Path | None) -> int:
    """Prints a line for each step; the one that fails is the last."""
    step = "structure"
    try:
        data = read_file(path)
        if data[:1] == b"{" and b'"ultracompress-eval-1"' in bytes(data):
            read_receipt(bytes(data))
            print("receipt   ok, its headlines follow from its rows")
            return 0
        pack = open_pack(path)
        for step, check in STEPS_OF_VERIFY.items():
            text = check(pack)
            if text:
                print(f"{step:10}{text}")
        if base:
            step, on = "base", open_pack(base)
            need({overlay.base_root for overlay in pack.overlays} == {on.decoded_root}, "UC-OVL-22", "this is not the base")
            check_targets(pack.overlays, on.tensors)
            print(f"base      {check_effective(on, pack.overlays)}")
    except UcError as error:
        print(f"{step:10}FAILED ({error.kind}) {error}")
        return 3 if error.kind == INTEGRITY else 1
    return 0


def decode_to_file(arguments: argparse.Namespace) -> int:
    """The output gets its name once it is complete and has the digest that the pack says, where it says one."""
    pack, name, partial = open_pack(arguments.file), arguments.tensor, Path(f"{arguments.output}.part")
    need(name in pack.tensors, "UC-IDX-4", f"there is no tensor {name!r}", MISSING)
    need(0 <= (arguments.overlays or 0) <= len(pack.overlays), "UC-OVL-3", f"there are {len(pack.overlays)} overlays", MISSING)
    home, tensor = pack.home[name], pack.target(pack.tensors[name])
    expected = tensor.decoded_sha256 if arguments.rung == 8 else None
    if arguments.exact:
        pieces = exact_bytes(pack, name)
        source = pack.manifest["tensors"].get(name) if pack.manifest else None
        expected = bytes.fromhex(source["sha256"]) if source else None
    elif arguments.overlays:
        check_structure(pack)  # overlays must be for this pack
        pieces = overlaid(pack, name, arguments.overlays)
        for block in (block for overlay in pack.overlays[: arguments.overlays] for block in overlay.blocks):
            expected = block.effective_sha256 if block.name == tensor.name else expected
    else:
        pieces = decode(home, tensor, arguments.rung)
    digest = hashlib.sha256()
    try:
        with open(partial, "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        need(expected in (None, digest.digest()), "UC-TEN-5", f"digest of {name!r}", INTEGRITY)
        os.replace(partial, arguments.output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{digest.hexdigest()}  {name}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads and verifies UltraCompress 1.0 files.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="check a pack, an index file of shards, or a receipt")
    command.add_argument("file", type=Path)
    command.add_argument("--base", type=Path, help="the pack that a file of overlays is for")
    command = commands.add_parser("decode", help="write the bytes of one tensor")
    command.add_argument("file", type=Path)
    command.add_argument("tensor")
    way = command.add_mutually_exclusive_group()
    way.add_argument("--rung", type=int, choices=NATIVE, default=8)
    way.add_argument("--exact", action="store_true")
    way.add_argument("--overlays", type=int, metavar="N")
    command.add_argument("-o", "--output", type=Path, required=True)
    command = commands.add_parser("vectors", help="run all vectors of a folder")
    command.add_argument("folder", type=Path)
    command.add_argument("--level", choices=("read", "exact", "overlay", "verify", "write"), help="those of a level only")
    arguments = parser.parse_args()
    try:
        if arguments.command == "verify":
            return verify(arguments.file, arguments.base)
        return decode_to_file(arguments) if arguments.command == "decode" else run_vectors(arguments.folder, arguments.level)
    except UcError as error:
        print(f"FAILED ({error.kind}) {error}", file=sys.stderr)
        return 3 if error.kind == INTEGRITY else 1
    except (NeedsZstd, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
