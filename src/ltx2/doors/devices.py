"""The devices of this machine without torch, and whether a Plan can be held by any of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ltx2.doors import lock
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.errors import DoesNotFit, RefusedRequest
from ltx2.spec.geometry import TEMPORAL
from ltx2.spec.plan import Plan
from ltx2.spec.precision import transformer_bytes

MIB, GIB = 2**20, 2**30
ASK = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
# What the CUDA context, workspaces and the allocator's rounding take beside tensors.
OVERHEAD = 2 * GIB


@dataclass(frozen=True)
class Device:
    """A device by the name that `--device` takes, and its memory in bytes (0: not known)."""

    name: str
    memory: int


def devices(asked: str) -> list[Device]:
    """The devices that workers may have: the one that is asked for, or with `auto` every GPU, else the CPU."""
    if asked == "cpu":
        return [cpu()]
    gpus = [Device(f"cuda:{number}", memory) for number, memory in enumerate(_gpus())]
    if asked == "auto":
        return gpus or [cpu()]
    number = asked.partition(":")[2]
    if number:
        memory = gpus[int(number)].memory if number.isdecimal() and int(number) < len(gpus) else 0
        return [Device(asked, memory)]
    return gpus or [Device(asked, 0)]


def cpu() -> Device:
    """The CPU and its memory."""
    return Device("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _gpus() -> list[int]:
    """Memory of every visible GPU, in CUDA's order."""
    if shutil.which(ASK[0]) is None:
        return []
    try:
        said = subprocess.run(ASK, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line.count(",") == 2]
    memory = {name: int(size) * MIB for index, uuid, size in rows for name in (index, uuid) if size.isdecimal()}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [memory[index] for index, _, _ in rows if index in memory]
    # A part of a GPU (MIG) is not in the table: it is there, and nobody knows its size here.
    return [memory.get(name.strip(), 0) for name in visible.split(",") if name.strip() not in ("", "-1")]


def claim(device: str) -> int | None:
    """Hold a GPU against other workers of this machine as long as this process lives; None for a CPU.

    Raises RefusedRequest naming the process that has it. Who sees another /tmp is not seen.
    """
    if not device.startswith("cuda"):
        return None
    number = device.partition(":")[2] or "0"
    visible = re.sub(r"[^A-Za-z0-9,-]", "", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    try:
        return lock.take(Path(tempfile.gettempdir()) / f"ltx2-gpu-{visible}-{number}.lock", 0o644)
    except lock.Taken as taken:
        raise RefusedRequest(
            f"device: {device} is used by another worker of ltx2 (process {taken.holder})",
            knob="device", hint="stop it, or use another --device",
        ) from None  # fmt: skip


def capacity(card: Card, precision: str, memory: int) -> Callable[[Plan], None]:
    """What refuses plans that a device with `memory` bytes can never hold, and names the nearest that it can."""

    def check(plan: Plan) -> None:
        if memory and least(plan, card, precision) > memory:
            raise DoesNotFit(
                f"{plan.width}x{plan.height} with {plan.frames} frames needs {least(plan, card, precision) / GIB:.1f} GiB,"
                f" the workers have {memory / GIB:.1f} GiB",
                knob="frames", hint=_nearest(plan, lambda other: least(other, card, precision) <= memory),
            )  # fmt: skip

    return check


def least(plan: Plan, card: Card, precision: str) -> int:
    """Bytes that a Plan takes in any case: the transformer and one pass, or the picture's decode."""
    cost = need(plan, card, precision)
    return OVERHEAD + max(transformer_bytes(card.shape, precision) + cost.activation_bytes, cost.decode_bytes)


def _nearest(plan: Plan, fits: Callable[[Plan], bool]) -> str:
    for frames in range(plan.frames - TEMPORAL, 0, -TEMPORAL):
        if fits(replace(plan, frames=frames)):
            return f"{frames} frames fit"
    return "no number of frames fits: ask for a smaller picture"
