"""Need against have: whether a Plan fits a device, and if not, the largest that would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from ltx2.pipeline.decode import TILE
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.errors import DoesNotFit
from ltx2.spec.geometry import SPATIAL, TEMPORAL
from ltx2.spec.plan import Plan, Stage
from ltx2.spec.precision import Held

GIB = 2**30
# What the CUDA context, workspaces and the allocator's rounding take beside tensors.
OVERHEAD = 2 * GIB
# Frames of one piece of a tiled decode.
TILE_FRAMES = (TILE - 1) * TEMPORAL + 1


@dataclass(frozen=True)
class Fit:
    """How a Plan can run: `tiled` when the picture must be decoded in pieces."""

    tiled: bool


def available(device: torch.device) -> int:
    """Bytes that new tensors can take on the device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def check(plan: Plan, card: Card, device: torch.device, precision: str | Held, loaded: bool) -> Fit:
    """How the Plan fits the device; with `loaded` the weights are there already and only activations are counted.

    `precision` says how the model is held; a CPU keeps no graphs, and its decode counts as the plain path's. Raises
    DoesNotFit naming what would fit: LoRAs added instead of merged, else the largest number of frames, else the largest
    size.
    """
    held = Held(precision) if isinstance(precision, str) else precision
    held = replace(held, fast=held.fast and device.type == "cuda")
    have = available(device) - (OVERHEAD if device.type == "cuda" else 0)
    for tiled in (False, True):
        if wanted(plan, card, held, loaded, tiled) <= have:
            return Fit(tiled)
    if wanted(plan, card, replace(held, loras="added"), loaded, tiled=True) <= have:
        hint = "--lora-mode added fits: it keeps no copy of the weights that a LoRA touches"
    else:
        hint = _largest(plan, lambda other: wanted(other, card, held, loaded, tiled=True) <= have)
    raise DoesNotFit(
        f"{plan.width}x{plan.height} with {plan.frames} frames needs"
        f" {wanted(plan, card, held, loaded, tiled=True) / GIB:.1f} GiB, the device has {have / GIB:.1f} GiB free",
        hint=hint,
    )


def wanted(plan: Plan, card: Card, precision: str | Held, loaded: bool, tiled: bool) -> int:
    """Bytes that the Plan's largest moment takes: weights unless `loaded`, what the fast path keeps, and activations
    with their text keys or the picture's decode.

    A merged LoRA keeps the originals of the layers that it touches, which is nearly all of the transformer; an added
    one keeps nothing. Either lies on the device itself.
    """
    held = Held(precision) if isinstance(precision, str) else precision
    cost = need(plan, card, held)
    # The fast decoder works in pieces in any case.
    share = min(1.0, TILE_FRAMES / plan.frames) if tiled and not held.fast else 1.0
    weights = 0 if loaded else cost.weight_bytes + _file_bytes(plan)
    working = cost.original_bytes + cost.activation_bytes + cost.text_key_bytes
    return weights + cost.kept_bytes + cost.graph_bytes + max(working, round(cost.decode_bytes * share))


def _file_bytes(plan: Plan) -> int:
    """Bytes of the user's LoRAs; a file that is not there is refused elsewhere."""
    return sum(Path(path).stat().st_size for path, _ in plan.loras if Path(path).exists())


def _largest(plan: Plan, fits: Callable[[Plan], bool]) -> str:
    """The largest setting that fits: fewer frames first, then a smaller picture of the same shape."""
    for frames in range(plan.frames - TEMPORAL, 0, -TEMPORAL):
        if fits(replace(plan, frames=frames)):
            return f"{frames} frames fit"
    step = SPATIAL * (2 if len(plan.stages) > 1 else 1)
    for width in range(plan.width - step, 0, -step):
        height = max(step, round(width * plan.height / plan.width / step) * step)
        if fits(_resized(replace(plan, frames=1 + TEMPORAL), width, height)):
            return f"{width}x{height} with {1 + TEMPORAL} frames fits"
    return "no size fits: the weights alone are too large for this device"


def _resized(plan: Plan, width: int, height: int) -> Plan:
    def scaled(stage: Stage) -> Stage:
        share = stage.width / plan.width
        return replace(stage, width=round(width * share), height=round(height * share))

    return replace(plan, width=width, height=height, stages=tuple(scaled(stage) for stage in plan.stages))
