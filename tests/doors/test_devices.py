"""The devices that workers may have, seen without torch, and plans that none of them can hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ltx2.doors.devices import GIB, Device, capacity, claim, cpu, devices, least
from ltx2.spec.card import Card
from ltx2.spec.errors import DoesNotFit, RefusedRequest
from ltx2.spec.plan import resolve
from ltx2.spec.request import request

TABLE = "0, GPU-aa, 81559\n1, GPU-bb, 143771\n"


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, by a program of the driver's name."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{TABLE}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def test_every_gpu_else_the_cpu(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Device("cuda:0", 81_559 << 20), Device("cuda:1", 143_771 << 20)
    assert devices("auto") == devices("cuda") == [first, second]
    assert devices("cuda:1") == [second]
    assert devices("cpu") == [cpu()] and cpu().memory > GIB
    # CUDA counts what it may see, from 0.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices("auto") == [Device("cuda:0", second.memory)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb,MIG-cc")
    assert devices("auto") == [Device("cuda:0", second.memory), Device("cuda:1", 0)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices("auto") == [cpu()]


def test_a_driver_that_fails_is_no_driver(gpus: Path) -> None:
    gpus.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert devices("auto") == [cpu()]
    assert devices("cuda:0") == [Device("cuda:0", 0)], "the worker will say what is wrong"


def test_E12_a_gpu_has_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    held = claim("cuda")
    assert held is not None and claim("cpu") is None
    with pytest.raises(RefusedRequest, match=f"process {os.getpid()}") as refused:
        claim("cuda:0")
    assert refused.value.exit_code == 2
    other = claim("cuda:1")
    assert other is not None
    os.close(held)
    again = claim("cuda:0")
    assert again is not None
    os.close(again)
    os.close(other)


def test_plans_that_no_worker_can_hold_are_refused_with_one_that_fits() -> None:
    card = Card(name="LTX-2")
    plan = resolve(request(prompt="x", width=2048, height=2048, frames=241, preset="dev"), card)
    capacity(card, "bf16", 10**12)(plan)
    capacity(card, "bf16", 0)(plan)
    needed = least(plan, card, "bf16")
    with pytest.raises(DoesNotFit) as refused:
        capacity(card, "bf16", needed - 1)(plan)
    assert refused.value.hint == "233 frames fit" and refused.value.code == "exceeds_capacity"
    with pytest.raises(DoesNotFit, match="smaller picture"):
        capacity(card, "bf16", 20 * GIB)(plan)
