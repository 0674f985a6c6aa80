"""What the speed benchmarks share: a device with a clock, full-size networks with random weights, and parts of a
benchmark that are done one after the other, whatever becomes of each."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from command import append, failure
from inputs import FPS, Ask, Size, streams
from torch import Tensor, nn

from ltx2.doors.origin import origin
from ltx2.models.describe import Source, folder_configs, locate, read_card
from ltx2.models.fast import attention
from ltx2.models.randoms import fill_randomly
from ltx2.models.velocity import Stream
from ltx2.models.weights import build
from ltx2.spec.cost import forward_flops, text_flops
from ltx2.spec.geometry import grid

GIB = 2**30


@dataclass
class Lab:
    """Where it is measured, how often, and where results go. `tiny` is a rehearsal on small networks and sizes."""

    results: Path
    device: torch.device
    tiny: bool
    repeats: int = 5
    networks: dict[tuple[str, str], nn.Module] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def model(self, name: str) -> str:
        return "tiny" if self.tiny else name

    def begin(self) -> None:
        fa3 = self.device.type == "cuda" and attention.flash_3() is not None
        found = {"torch": torch.__version__, "triton": _triton(), "fa3": fa3}
        self.write("origin", **origin(str(self.device)), tiny=self.tiny, **found)

    def write(self, part: str, **values: Any) -> None:
        append(self.results, {"part": part, **{key: _plain(value) for key, value in values.items()}})

    def attempt(self, part: str, work: Callable[[], None]) -> None:
        """Do a part; what goes wrong is written down, and the next part has its turn with the memory of this one."""
        begin, finished = time.perf_counter(), False
        try:
            work()
            finished = True
        except Exception as error:
            self.write(part, **failure(error))
            # What the part did to them, as quantising, is not for the next one to measure.
            self.networks.clear()
        self.collect()
        self.write(part, finished=finished, seconds=time.perf_counter() - begin)

    def attempt_line(self, part: str, work: Callable[[], None], **what: Any) -> None:
        """One measurement of a part; what goes wrong is its line, with `what` it was to measure."""
        try:
            work()
        except Exception as error:
            self.write(part, **what, **failure(error))
        else:
            return
        # Only here, beyond the handler, nothing holds the tensors of what failed.
        self.collect()

    def network(self, model: str, component: str) -> nn.Module:
        """A network with random weights; only those of one model are kept."""
        model = self.model(model)
        if self.networks and next(iter(self.networks))[0] != model:
            self.drop()
        if (model, component) not in self.networks:
            place = locate(Source(model, "random")).path
            begin = time.perf_counter()
            made = build(component, folder_configs(place)[component])
            self.networks[model, component] = fill_randomly(made, dtype=self.dtype, device=self.device, seed=0)
            self.sync()
            self.write("load", model=model, component=component, seconds=time.perf_counter() - begin)
        return self.networks[model, component]

    def drop(self) -> None:
        """Free all networks."""
        self.networks.clear()
        self.collect()

    def collect(self) -> None:
        """Give back the memory of what nobody holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            # After a fault of the device this fails as everything does, and the fault has its line.
            with suppress(RuntimeError):
                torch.cuda.empty_cache()

    def streams(self, model: str, size: Size, rows: int, given: bool = False) -> tuple[Stream, Stream]:
        """Random inputs of a transformer; `given` makes the first latent frame clean."""
        text = read_card(Source(self.model(model), "random")).text_tokens
        return streams(self.network(model, "transformer"), Ask(size, rows, text, given))

    def flops(self, model: str, size: Size, isolated: bool = False) -> float:
        card, cells = read_card(Source(self.model(model), "random")), grid(*size, FPS)
        return forward_flops(card.shape, cells.video_tokens, cells.audio_tokens, card.text_tokens, isolated)

    def text_flops(self, model: str) -> float:
        """Of these, the operations on the text alone, which the fast path does once a stage of 2.0."""
        card = read_card(Source(self.model(model), "random"))
        return text_flops(card.shape, card.text_tokens)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, work: Callable[[], Any], warm: int = 2, inner: int = 1, once: bool = False) -> float:
        """Median seconds of `work`, done `inner` times between two looks at the clock; or those of a single take."""
        for _ in range(warm):
            work()
        return median(self.times(work, inner, 1 if once else self.repeats))

    def times(self, work: Callable[[], Any], inner: int = 1, repeats: int | None = None) -> list[float]:
        """Seconds of every take, nothing before the first."""
        seconds: list[float] = []
        for _ in range(repeats or self.repeats):
            self.sync()
            begin = time.perf_counter()
            for _ in range(inner):
                work()
            self.sync()
            seconds.append((time.perf_counter() - begin) / inner)
        return seconds

    def peak(self, work: Callable[[], Any]) -> float | None:
        """Most GiB that `work` holds beyond what is held before it; None without a GPU."""
        if self.device.type != "cuda":
            return None
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.sync()
        return (torch.cuda.max_memory_allocated(self.device) - before) / GIB


def opened(given: argparse.Namespace) -> Lab:
    """The lab of a command line, with its origin written down; on a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lab = Lab(given.results, device, given.tiny, getattr(given, "repeats", Lab.repeats))
    lab.begin()
    return lab


def distances(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Cosine distance and relative L2 error in float64."""
    one, other = ours.double().flatten(), theirs.double().flatten()
    cosine = float(one @ other / (one.norm() * other.norm()))
    return {"cosine_distance": 1 - cosine, "relative_l2": float((one - other).norm() / other.norm())}


def _plain(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__
