"""Damaged and foreign files are refused from their first bytes."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ltx2.models.header import read_header, read_headers
from ltx2.spec.errors import CheckpointError
from tests.data_files import DATA


def _raw(folder: Path, header: str | bytes, body: bytes = b"", length: int | None = None) -> Path:
    text = header.encode() if isinstance(header, str) else header
    file = folder / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return file


def _tensor(*offsets: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("file", sorted(DATA.glob("*.safetensors")), ids=lambda file: file.stem)
def test_every_reference_file_is_accepted(file: Path) -> None:
    assert read_header(file).entries


def test_names_shapes_dtypes_and_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "x.safetensors", {"config": '{"k": 1}'})
    header = read_header(tmp_path / "x.safetensors")
    assert {key: (entry.shape, entry.dtype) for key, entry in header.entries.items()} == {
        "a": ((2, 3), "BF16"),
        "b": ((), "F32"),
    }
    assert header.config() == {"k": 1}


@pytest.mark.parametrize(
    ("header", "body", "complaint"),
    [
        ("not json", b"", "damaged header"),
        ("[1]", b"", "damaged header"),
        (b"\xff\xfe", b"", "damaged header"),
        ('{"a": 1, "a": 2}', b"", "a key appears twice"),
        (json.dumps({"a": _tensor(0, 8), "b": _tensor(4, 12)}), bytes(12), "overlap"),
        (json.dumps({"a": _tensor(0, 8), "b": _tensor(12, 20)}), bytes(20), "gap"),
        (json.dumps({"a": _tensor(0, 8)}), bytes(4), "truncated"),
        (json.dumps({"a": _tensor(0, 8)}), bytes(9), "trailing"),
        (json.dumps({"a": _tensor(0, 4)}), bytes(4), "do not hold"),
        (json.dumps({"a": _tensor(0, 8, dtype="F31")}), bytes(8), "damaged header"),
        (json.dumps({"a": {"dtype": "F32"}}), b"", "damaged header"),
        (json.dumps({"a": _tensor(0, -8)}), b"", "do not hold"),
        (json.dumps({"a": _tensor(0, 8, shape=(-2, -1))}), bytes(8), "do not hold"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: str | bytes, body: bytes, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_header(_raw(tmp_path, header, body))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 3])
def test_absurd_header_lengths_are_refused_at_once(tmp_path: Path, length: int) -> None:
    began = time.monotonic()
    with pytest.raises(CheckpointError):
        read_header(_raw(tmp_path, "{}  ", length=length))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("x.gguf", "GGUF"),
        ("x.ckpt", "pickle"),
        ("x.pt", "pickle"),
        ("x.bin", "pickle"),
        ("gone.safetensors", "cannot be read"),
    ],
)
def test_other_formats_and_missing_files_are_refused_by_name(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_header(tmp_path / name)


def test_short_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(tmp_path / "x.safetensors")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in files:
        save_file({"a": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"in one\.safetensors and two\.safetensors"):
        read_headers(files)
