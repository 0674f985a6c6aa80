"""Damaged headers of every kind end in a CheckpointError, at once and without memory: thousands of seeded mutations."""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ltx2.models.header import Header, read_header
from ltx2.spec.errors import CheckpointError

SECONDS = 1.0
VALUES = (None, True, -1, 0, 1.5, 2**63, 2**64, 10**30, "12", "", [], {}, [[1]], [1, "2"], float("inf"), "\ud800")
NESTED = 100_000


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    save_file({name: torch.ones(2, 3) for name in "abcd"}, file, {"config": "{}", "model_version": "2.0"})
    return file.read_bytes()


def accepted(file: Path, content: bytes) -> Header | None:
    """The header if the file is accepted, None if it is refused; any other outcome fails the test."""
    file.write_bytes(content)
    # Time of the processor: the machine may be busy with other tests.
    began = time.process_time()
    try:
        header = read_header(file)
        header.config()
    except CheckpointError as error:
        assert len(error.message) < 1000
        header = None
    assert time.process_time() - began < SECONDS
    return header


def sane(header: Header, size: int) -> bool:
    """What every accepted header must keep: shapes of whole numbers that account for every byte of the file."""
    widths = {"F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2, "F64": 8, "I64": 8, "U64": 8}
    total = 0
    for entry in header.entries.values():
        count = widths.get(entry.dtype, 1)
        for side in entry.shape:
            assert type(side) is int and side >= 0
            count *= side
        total += count
    return total < size


def split(content: bytes) -> tuple[dict[str, object], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(text: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def test_flipped_and_lost_bytes(valid: bytes, tmp_path: Path) -> None:
    dice = random.Random(1)
    head = 8 + struct.unpack("<Q", valid[:8])[0]
    refused = 0
    for _ in range(1500):
        content = bytearray(valid)
        kind = dice.randrange(4)
        position = dice.randrange(head)
        if kind == 0:
            content[position] ^= 1 << dice.randrange(8)
        elif kind == 1:
            content[position : position + dice.randrange(1, 9)] = dice.randbytes(dice.randrange(9))
        elif kind == 2:
            del content[dice.randrange(len(content)) :]
        else:
            content += dice.randbytes(dice.randrange(1, 9))
        header = accepted(tmp_path / "x.safetensors", bytes(content))
        refused += header is None
        assert header is None or sane(header, len(content))
    # A flip inside a tensor's name or a metadata text leaves a header that is sound.
    assert refused > 1000


def test_values_of_every_wrong_type(valid: bytes, tmp_path: Path) -> None:
    fields, body = split(valid)
    places: list[Callable[[dict[str, object], object], None]] = [
        lambda top, value: top.update(a=value),
        lambda top, value: top.update(__metadata__=value),
        lambda top, value: top.update(__metadata__={"config": value}),
        lambda top, value: top["a"].update(dtype=value),  # type: ignore[attr-defined]
        lambda top, value: top["a"].update(shape=value),  # type: ignore[attr-defined]
        lambda top, value: top["a"].update(shape=[2, value]),  # type: ignore[attr-defined]
        lambda top, value: top["a"].update(data_offsets=value),  # type: ignore[attr-defined]
        lambda top, value: top["a"].update(data_offsets=[0, value]),  # type: ignore[attr-defined]
        lambda top, value: top["a"].update(data_offsets=[value, 24]),  # type: ignore[attr-defined]
    ]
    for number, place in enumerate(places):
        for value in VALUES:
            changed = json.loads(json.dumps(fields))
            place(changed, value)
            header = accepted(tmp_path / "x.safetensors", joined(json.dumps(changed).encode(), body))
            same = json.loads(json.dumps(changed)) == fields
            empty = number == 1 and value == {}
            assert (header is not None) == (same or empty), (number, value)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * NESTED,
        b'{"a":' * NESTED,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"__metadata__":{"config":"' + b"[" * NESTED + b'"}}',
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,24]}}',
        b'{"a":{"dtype":"F32","shape":[' + b"2," * NESTED + b'2],"data_offsets":[0,24]}}',
        b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}',
        b"\x00" * 1000,
        b"NaN",
        b"",
    ],
    ids=lambda text: text[:24].decode(),
)
def test_hostile_headers(text: bytes, tmp_path: Path) -> None:
    assert accepted(tmp_path / "x.safetensors", joined(text, bytes(24))) is None


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'{"":0} ,', b"[1234567890123],", b"0,", b'"",'], ids=bytes.decode)
def test_headers_as_large_as_is_allowed_and_full_of_nothing(unit: bytes, tmp_path: Path) -> None:
    text = b'{"a":[' + unit * ((4 * 2**20 - 10) // len(unit)) + b"0]}"
    assert accepted(tmp_path / "x.safetensors", joined(text, b"")) is None


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 4 * 2**20 + 1])
def test_absurd_lengths_take_no_memory(length: int, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", length))
        stream.truncate(2**36)  # A sparse file, as large as a checkpoint.
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_folders_and_pipes_are_no_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match="not a file"):
            read_header(tmp_path / f"{name}.safetensors")
