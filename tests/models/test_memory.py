"""What many videos of many kinds leave behind: after the fiftieth, memory is where it was after the third."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch

from ltx2.engine.engine import Engine
from ltx2.models.components import load
from ltx2.spec.plan import Plan
from ltx2.spec.shapes import plan_of, shortened

MIB = 2**20
# Neighbours differ in size, preset, or both; on a GPU each has three steps a stage, so that graphs are recorded at once.
KINDS = (
    "64x64x17:distilled-two-stage",
    "128x64x9:classic",
    "128x128x9:dev",
    "64x64x9:distilled",
    "64x128x17:distilled",
)


def _growth(device: str, videos: int, steps: int, held: Callable[[], int], out: Path) -> int:
    """Bytes that are held after all videos, beyond those after the third; every prompt is a new one."""
    engine = Engine(load("tiny", device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16))
    plans = [shortened(plan_of(kind, engine.models.card), steps) for kind in KINDS]
    third = 0
    for number, plan in enumerate(islice(cycle(plans), videos), 1):
        for _ in engine.generate(_take(plan, number), out):
            pass
        if number == 3:
            third = held()
    return held() - third


def _take(plan: Plan, number: int) -> Plan:
    return Plan.from_dict(plan.as_dict() | {"prompt": f"take {number}", "seed": number})


def _host_bytes() -> int:
    gc.collect()
    # What is free in the allocator's arenas counts as held otherwise.
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _device_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.mark.gpu
def test_a_gpu_holds_no_more_after_fifty_videos_than_after_three(tmp_path: Path) -> None:
    grown = _growth("cuda", 50, 3, _device_bytes, tmp_path / "out.mp4")
    print(f"grown by {grown / MIB:.1f} MiB")
    assert abs(grown) <= 64 * MIB


def test_the_host_holds_no_more_after_many_videos_than_after_three(tmp_path: Path) -> None:
    grown = _growth("cpu", 9, 1, _host_bytes, tmp_path / "out.mp4")
    print(f"grown by {grown / MIB:.1f} MiB")
    assert grown <= 24 * MIB
