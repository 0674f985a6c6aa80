"""Reads the header of a safetensors file: names, shapes, dtypes and metadata, without torch and without the weights.

Everything that decides *whether* a checkpoint can be loaded is decided from headers, before a byte of weights is read.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ltx2.spec.errors import CheckpointError

_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4}
# The largest published header has less than 2 MB, and a tensor takes 50 bytes or more for its three brackets. Larger and
# denser ones would only fill the memory: one full of brackets takes thirty times its size, and seconds to read.
_MAX_HEADER = 4 * 2**20
_BYTES_PER_BRACKET = 16
_FEW_BRACKETS = 1000
_LONGEST = 300
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it lies, its key there, its shape and its dtype in safetensors' spelling.

    `start` is the byte of the file that its data begin at.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int = 0


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself; `metadata` values are strings, as the format has it."""

    file: Path
    metadata: dict[str, str]
    entries: dict[str, Entry]

    def config(self) -> dict[str, Any]:
        """The official `config` JSON of the metadata; {} when the file has none. Raises CheckpointError if damaged."""
        try:
            return dict(json.loads(self.metadata.get("config", "{}")))
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.file.name} has a damaged config in its metadata: {error}") from error


def read_header(file: Path) -> Header:
    """Read and check one header.

    Raises CheckpointError for a file that is missing, not safetensors (GGUF and pickles by name), truncated, or whose
    tensors overlap, leave gaps, or have a size that does not match their shape. Reads at most 4 MiB.
    """
    refuse_by_name(file)
    try:
        if not file.is_file():
            raise CheckpointError(f"{file} cannot be read: " + ("not a file" if file.exists() else "it is not there"))
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = header_length(file, stream.read(8), size)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    return parse_header(file, text, size - 8 - length)


def refuse_by_name(file: Path) -> None:
    """Raise CheckpointError for GGUF files and for pickles, which are never opened."""
    if file.suffix == ".gguf":
        raise CheckpointError(f"{file.name} is a GGUF file, which is not supported", hint="use the safetensors file")
    if file.suffix in _PICKLES:
        raise CheckpointError(f"{file.name} is a pickle, which is never opened", hint="use the safetensors file")


def header_length(file: Path, start: bytes, size: int) -> int:
    """Bytes of the header, from the first 8 bytes of a file of `size` bytes. Raises CheckpointError for an absurd one."""
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
    if length > min(_MAX_HEADER, size - 8):
        raise CheckpointError(f"{file.name} is not a safetensors file, or it is truncated")
    return length


def parse_header(file: Path, text: bytes, body: int) -> Header:
    """Check the header `text` of a file that holds `body` bytes after it. Raises CheckpointError for a damaged one."""
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > max(_FEW_BRACKETS, len(text) // _BYTES_PER_BRACKET):
        raise CheckpointError(f"{file.name} has a damaged header: it is full of brackets")
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
        metadata = fields.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata is not text")
        entries = {key: _entry(file, key, field, 8 + len(text)) for key, field in fields.items()}
        spans = sorted(tuple(field["data_offsets"]) for field in fields.values())
    # Deep nesting ends in a RecursionError before it takes memory.
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} has a damaged header: {error!r}"[:_LONGEST]) from error
    _check_spans(file, spans, body)
    return Header(file, metadata, entries)


def read_headers(files: list[Path]) -> dict[str, Entry]:
    """The tensors of several shards together. Raises CheckpointError when a tensor is stored twice."""
    entries: dict[str, Entry] = {}
    for file in files:
        found = read_header(file).entries
        if twice := entries.keys() & found.keys():
            raise CheckpointError(f"{min(twice)} is stored twice, in {entries[min(twice)].file.name} and {file.name}")
        entries |= found
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key appears twice")
    return fields


def _entry(file: Path, key: str, field: dict[str, Any], base: int) -> Entry:
    start, end = field["data_offsets"]
    shape = tuple(field["shape"])
    if not all(type(number) is int for number in (start, end, *shape)):
        raise ValueError(f"{key}: shape and offsets are no whole numbers")
    if (end - start) * 8 != prod(shape) * _BITS[field["dtype"]] or min(shape, default=0) < 0:
        raise ValueError(f"{key}: {end - start} bytes do not hold {field['dtype']} {list(shape)}")
    return Entry(file, key, shape, field["dtype"], base + start)


def _check_spans(file: Path, spans: list[tuple[int, int]], size: int) -> None:
    position = 0
    for start, end in spans:
        if start != position:
            raise CheckpointError(f"{file.name} has a damaged header: tensors overlap or leave a gap at byte {start}")
        position = end
    if position != size:
        raise CheckpointError(f"{file.name} is truncated or has trailing bytes: {position} expected, {size} there")
