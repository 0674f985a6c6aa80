"""Reading tensors in pieces by several threads: the same bytes, in bounded memory, and an end to files that change."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2.models import reading
from ltx2.models.header import read_header, read_headers
from ltx2.models.reading import read
from ltx2.spec.errors import CheckpointError

CPU = torch.device("cpu")


def _states() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    first = {
        "half": torch.randn(700, 33).bfloat16(), "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4),
        "bytes": torch.randint(0, 255, (1001,), dtype=torch.uint8), "flags": torch.tensor([True, False, True]),
    }  # fmt: skip
    second = {"float8": torch.randn(64, 64).to(torch.float8_e4m3fn), "whole": torch.arange(9), "f": torch.randn(5, 3)}
    return [first, second]


@pytest.mark.parametrize(("piece", "ahead"), [(64, 0), (4096, 2**20)])
def test_every_dtype_arrives_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, ahead: int
) -> None:
    monkeypatch.setattr(reading, "PIECE", piece)
    monkeypatch.setattr(reading, "AHEAD", ahead)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for state, file in zip(_states(), files, strict=True):
        save_file(state, file)
    entries = read_headers(files)
    expected = load_file(files[0]) | load_file(files[1])
    found = dict(read(entries, CPU))
    assert list(found) == sorted(entries, key=lambda name: (str(entries[name].file), entries[name].start))
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name


@pytest.mark.gpu
def test_the_way_to_a_gpu_equals_the_way_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 100_000)
    state = {f"t{number}": torch.randn(500, 700 + number) for number in range(40)}
    save_file(state, tmp_path / "a.safetensors")
    entries = read_header(tmp_path / "a.safetensors").entries
    for name, tensor in read(entries, torch.device("cuda")):
        # Work on the current stream must see all of it, and may free it while later tensors are under way.
        assert torch.equal((tensor * 2).cpu(), state[name] * 2)


def test_a_file_that_shrinks_is_refused_and_no_thread_is_left(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(1000) for name in "abcd"}, file)
    entries = read_header(file).entries
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match=r"a\.safetensors ends inside d: it changed"):
        list(read(entries, CPU))
    assert threading.active_count() == threads
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(read(entries, CPU))


def test_a_reader_that_is_left_early_closes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "AHEAD", 0)
    save_file({name: torch.zeros(10) for name in "abcd"}, tmp_path / "a.safetensors")
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    stream = read(read_header(tmp_path / "a.safetensors").entries, CPU)
    next(iter(stream))
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_dtypes_that_torch_does_not_have_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    header = b'{"x":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(CheckpointError, match="x is F4, which cannot be loaded"):
        list(read(read_header(file).entries, CPU))


PEAK = """
import resource, sys, torch
from pathlib import Path
from ltx2.models.header import read_header
from ltx2.models.holding import FORMS
from ltx2.models.reading import read
entries = read_header(Path(sys.argv[1])).entries
size = sum(entry.shape[0] * entry.shape[1] * 2 for entry in entries.values())
for name, tensor in read(entries, torch.device("cpu")): break
del tensor
torch.zeros(8, 8).to(torch.float8_e4m3fn).float()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
held = {name: FORMS["fp8"].quantise(tensor) for name, tensor in read(entries, torch.device("cpu"))}
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


def test_quantising_while_streaming_never_holds_a_second_copy(tmp_path: Path) -> None:
    """84 MB of bf16 to 42 MB of fp8: what is under way is bounded, so the peak stays below the file itself."""
    tensors = {f"layer{number}": torch.zeros(2048, 1024, dtype=torch.bfloat16) for number in range(20)}
    file = tmp_path / "a.safetensors"
    save_file(tensors, file)
    bounds = "import ltx2.models.reading as r; r.AHEAD = 8 * 2**20; r.PIECE = 2**20"
    # Without it glibc keeps freed tensors of this size in its heap, which it does not do at the size of real ones.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", f"{bounds}\n{PEAK}", str(file)]
    result = subprocess.run(command, capture_output=True, check=True, env=environment)
    size, peak = map(int, result.stdout.split())
    assert size == sum(tensor.nbytes for tensor in tensors.values())
    # 42 MB that stay, 8 MB under way, and one layer in float32 with its quotient.
    assert peak < 0.85 * size
