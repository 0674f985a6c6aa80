"""What every training stage shares: a run's folder and time budget, the geometry of clips, the learning-rate schedule
over time, the averaged weights, and a log of JSON lines.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FPS = 24.0


@dataclass(frozen=True)
class Geometry:
    """Clip sizes in pixels: `large` is what one-stage generation and refinement see, `small` is half of it."""

    frames: int = 49
    large: tuple[int, int] = (192, 256)
    small: tuple[int, int] = (96, 128)

    def grid(self, size: str) -> tuple[int, int, int]:
        """Latent frames, rows and columns of `size` ("large" or "small")."""
        height, width = getattr(self, size)
        return (self.frames - 1) // 8 + 1, height // 32, width // 32

    @property
    def seconds(self) -> float:
        return self.frames / FPS

    @property
    def audio_latents(self) -> int:
        return round(self.seconds * 25)

    @property
    def mel_frames(self) -> int:
        return 4 * self.audio_latents - 3


@dataclass(frozen=True)
class Run:
    """One call of one stage: where it writes, how many seconds it may take, and what may differ from run to run.

    With a `lesson`, half of the clips show that motion, and text encoder and connectors stay as they are. `batch` and
    `pace` multiply the batch sizes and the learning rates.
    """

    out: Path
    seconds: float
    total: float = 0.0
    smoke: bool = False
    seed: int = 0
    scale: float = 3.0
    lesson: str = ""
    batch: float = 1.0
    pace: float = 1.0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and not self.smoke else "cpu")

    @property
    def geometry(self) -> Geometry:
        return Geometry(9, (64, 64), (32, 32)) if self.smoke else Geometry()

    @property
    def local(self) -> Path:
        """Large files that stay on this machine: the encoded dataset and optimiser states."""
        folder = self.out / "local"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def size(self, batch: int) -> int:
        """A batch size as this run takes it, cut down for the smoke run."""
        return min(batch, 4) if self.smoke else max(1, round(batch * self.batch))

    def autocast(self) -> torch.autocast:
        """bfloat16, but not in the smoke run, whose small networks it would only slow down."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=not self.smoke)


class Clock:
    """Time since the start of a stage's training, as a share of its budget: 0 at the start, 1 at the end."""

    def __init__(self, seconds: float, before: float = 0.0, total: float = 0.0):
        self._start = time.monotonic()
        self._seconds = seconds
        self._before = before
        self._total = total or before + seconds

    @property
    def elapsed(self) -> float:
        """Seconds of training in this call and the calls before it."""
        return self._before + time.monotonic() - self._start

    @property
    def share(self) -> float:
        return min(1.0, self.elapsed / self._total)

    @property
    def over(self) -> bool:
        return time.monotonic() - self._start >= self._seconds


class Log:
    """Appends a JSON line per event to `log.jsonl` of the stage and prints it; tensors are read only here."""

    def __init__(self, run: Run, stage: str, every: float = 5.0):
        self._path = run.out / f"log_{stage}.jsonl"
        self._stage, self._every = stage, every
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether the next periodic line may be written; reading a loss waits for the GPU, so not at every step."""
        return time.monotonic() >= self._next

    def write(self, **values: Any) -> None:
        self._next = time.monotonic() + self._every
        plain = {key: _plain(value) for key, value in values.items()}
        line = json.dumps({"stage": self._stage, "time": round(time.time(), 2), **plain})
        with self._path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    return float(f"{value:.5g}") if isinstance(value, float) else value


def rate(step: int, share: float, warm_up: int = 200, hold: float = 0.4, floor: float = 0.02) -> float:
    """Factor of the peak learning rate: linear over `warm_up` steps, flat until `hold` of the time, then cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, (share - hold) / (1 - hold))))
    return min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * cosine)


def uncompile(modules: Iterable[nn.Module]) -> None:
    """Modules compiled in place run eagerly again; the weights are the same."""
    for module in modules:
        module._compiled_call_impl = None


class Optimiser:
    """AdamW with gradient clipping at norm 1 and a learning rate set from outside; fused on the GPU."""

    def __init__(self, parameters: Iterable[nn.Parameter], peak: float, decay: float = 0.01):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        fused = self.parameters[0].is_cuda
        # As a tensor, the rate can change from step to step of a captured graph.
        start = torch.tensor(peak, device=self.parameters[0].device)
        self.adam = torch.optim.AdamW(
            self.parameters, start, betas=(0.9, 0.99), weight_decay=decay, fused=fused, capturable=fused
        )
        self._peak = peak

    def step(self, loss: Tensor, factor: float) -> None:
        """Back-propagate, clip, and move by `factor` times the peak rate."""
        self.at(factor)
        self.move(loss)

    def at(self, factor: float) -> None:
        """Set the rate of the next moves to `factor` times the peak."""
        self.adam.param_groups[0]["lr"].fill_(self._peak * factor)

    def move(self, loss: Tensor) -> None:
        """Back-propagate, clip, and move at the rate that is set; can be captured in a graph."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


class Average:
    """Exponential moving average of parameters in float32; `swap` exchanges it with the live weights."""

    def __init__(self, parameters: list[nn.Parameter], decay: float = 0.999):
        self._live = parameters
        self.shadow = [parameter.detach().clone() for parameter in parameters]
        self._decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, steps: int = 1) -> None:
        """Take the live weights in; `steps` optimiser steps have passed since the last time."""
        self.steps += steps
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps)) ** steps
        torch._foreach_lerp_(self.shadow, [parameter.detach() for parameter in self._live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for shadow, live in zip(self.shadow, self._live, strict=True):
            kept = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(kept)
