"""The embedded model in a child process, with faults at a chosen moment: on a GPU those that only a GPU has.

Before each job a file of orders is read, as in `balloon text` or `assert stage 1`: what to do after the first event of
which phase. What the device holds between jobs is written to a file of floors.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import ltx2.engine.engine as engine_module
from ltx2.engine.child import Generate
from ltx2.engine.engine import Engine
from ltx2.engine.faults import release
from ltx2.models.components import load
from ltx2.spec.events import Event, Progress, Retrying
from ltx2.spec.plan import Plan

PIECES = (1 << 30, 64 << 20, 2 << 20)


def make(options: Mapping[str, Any]) -> Generate:
    """The embedded model on `device`; `orders` and `floors` are files."""
    device, orders, floors = torch.device(options["device"]), Path(options["orders"]), Path(options["floors"])
    engine = Engine(load("tiny", device=device, dtype=torch.float32))
    real = engine_module.generate
    balloon: list[torch.Tensor] = []

    def with_faults(models: Any, plan: Plan, out: Path, *how: Any) -> Iterator[Progress]:
        fault, phase = orders.read_text().split(" ", 1) if orders.exists() else ("", "")
        for event in real(models, plan, out, *how):
            yield event
            if event.phase == phase:
                phase = ""
                act(fault, device, balloon)

    def generate(plan: Plan, out: Path) -> Generator[Event, None, None]:
        note_floor(device, floors)
        try:
            for event in engine.generate(plan, out):
                if isinstance(event, Retrying) and orders.read_text().startswith("balloon "):
                    balloon.clear()
                    orders.unlink()
                yield event
        finally:
            balloon.clear()
            release(device)

    engine_module.generate = with_faults
    return generate


def act(fault: str, device: torch.device, balloon: list[torch.Tensor]) -> None:
    """Break in the named way."""
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(600)
        case "balloon" | "stay":
            fill(device, balloon)
        case "assert":
            torch.zeros(4, device=device)[torch.tensor([10], device=device)]
            torch.cuda.synchronize(device)
        case _:
            pass


def fill(device: torch.device, balloon: list[torch.Tensor]) -> None:
    """Take all the memory that there is."""
    torch.cuda.empty_cache()
    for size in PIECES:
        while True:
            try:
                balloon.append(torch.empty(size, dtype=torch.uint8, device=device))
            except torch.OutOfMemoryError:
                break


def note_floor(device: torch.device, floors: Path) -> None:
    """What stands between two jobs: bytes of tensors, and bytes free on the device."""
    release(device)
    held = {"pid": os.getpid(), "allocated": 0, "free": 0}
    if device.type == "cuda":
        held |= {"allocated": torch.cuda.memory_allocated(device), "free": torch.cuda.mem_get_info(device)[0]}
    with floors.open("a") as file:
        file.write(json.dumps(held) + "\n")
