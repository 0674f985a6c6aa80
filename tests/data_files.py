"""Where the reference vectors lie, how to read them, and what else several tests need."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

DATA = Path(__file__).parent / "data"


def tensors(name: str) -> dict[str, Tensor]:
    """All tensors of a reference file; names that the file stores as aliases are filled in."""
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as stream:
        values = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - safe_open is no mapping
        aliases: dict[str, str] = json.loads((stream.metadata() or {}).get("alias", "{}"))
    return values | {alias: values[key] for alias, key in aliases.items()}


def metadata(name: str, key: str) -> Any:
    """A JSON value from a reference file's metadata."""
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as stream:
        return json.loads(stream.metadata()[key])


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """max |a - b| in float64; NaN anywhere gives infinity."""
    difference = (ours.double() - theirs.double()).abs().max()
    return float("inf") if torch.isnan(difference) else float(difference)


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """Cosine similarity of two tensors of one size, in float64."""
    return float(torch.nn.functional.cosine_similarity(ours.double().flatten(), theirs.double().flatten(), dim=0))


def hear_interrupts() -> None:
    """For `preexec_fn`: a shell's background jobs, and what they start, ignore SIGINT unless told otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
