"""What the speed benchmarks share: a device with a clock, full-size networks with random weights, inputs of any size, and
a file of JSON lines that keeps what is done even when a later part fails."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ltx2.doors.origin import origin
from ltx2.models.describe import Source, folder_configs, locate, read_card
from ltx2.models.randoms import fill_randomly
from ltx2.models.velocity import Stream
from ltx2.models.weights import build
from ltx2.pipeline.latents import audio_positions, video_positions
from ltx2.spec.cost import forward_flops
from ltx2.spec.geometry import grid

GIB = 2**30
Size = tuple[int, int, int]


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

    def write(self, part: str, **values: Any) -> None:
        line = {"part": part, **{key: _plain(value) for key, value in values.items()}}
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def attempt(self, part: str, work: Callable[[], None]) -> None:
        """Do a part; what goes wrong is written down, and the next part has its turn."""
        begin = time.perf_counter()
        try:
            work()
        except Exception as error:
            self.write(part, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc()[-1500:])
        self.write(part, finished=True, seconds=time.perf_counter() - begin)

    def attempt_line(self, part: str, work: Callable[[], None]) -> None:
        """One measurement of a part; what goes wrong is its line."""
        try:
            work()
        except Exception as error:
            self.write(part, error=f"{type(error).__name__}: {error}"[:400])

    def begin(self) -> None:
        self.write("origin", **origin(str(self.device)), tiny=self.tiny, torch=torch.__version__, triton=_triton())

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
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def streams(self, model: str, size: Size, rows: int, given: bool = False) -> tuple[Stream, Stream]:
        """Random inputs of a transformer at width, height and frames; `given` makes the first latent frame clean."""
        config: Any = self.network(model, "transformer").config
        cells = grid(*size, Fraction(24))
        text = read_card(Source(self.model(model), "random")).text_tokens
        prompts = config.use_prompt_embeddings
        widths = (config.num_attention_heads * config.attention_head_dim,
                  config.audio_num_attention_heads * config.audio_attention_head_dim)  # fmt: skip
        places = (video_positions(cells.video, 24, self.device), audio_positions(cells.audio, self.device))
        channels = (config.in_channels, config.audio_in_channels)
        draw = torch.Generator(self.device).manual_seed(1)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, device=self.device).to(self.dtype)

        streams: list[Stream] = []
        for side, (place, width, channel) in enumerate(zip(places, widths, channels, strict=True)):
            levels, values = None, torch.full((1, 1), 0.7, device=self.device)
            if given and side == 0:
                values = torch.tensor([[0.0, 0.7]], device=self.device)
                levels = (torch.arange(place.shape[2], device=self.device) >= cells.rows * cells.columns).int()
            streams.append(
                Stream(
                    randn(1, place.shape[2], channel).expand(rows, -1, -1), values.expand(rows, -1),
                    torch.full((rows,), 0.7, device=self.device), place.expand(rows, -1, -1, -1),
                    randn(rows, text, config.caption_channels if prompts else width), levels=levels,
                )
            )  # fmt: skip
        return streams[0], streams[1]

    def flops(self, model: str, size: Size, isolated: bool = False) -> float:
        card, cells = read_card(Source(self.model(model), "random")), grid(*size, Fraction(24))
        return forward_flops(card.shape, cells.video_tokens, cells.audio_tokens, card.text_tokens, isolated)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, work: Callable[[], Any], warm: int = 2, inner: int = 1, once: bool = False) -> float:
        """Median seconds of `work`, done `inner` times between two looks at the clock; or those of a single take."""
        for _ in range(warm):
            work()
        seconds: list[float] = []
        for _ in range(1 if once else self.repeats):
            self.sync()
            begin = time.perf_counter()
            for _ in range(inner):
                work()
            self.sync()
            seconds.append((time.perf_counter() - begin) / inner)
        return median(seconds)

    def peak(self, work: Callable[[], Any]) -> float | None:
        """Most GiB that `work` holds beyond what is held before it; None without a GPU."""
        if self.device.type != "cuda":
            return None
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.sync()
        return (torch.cuda.max_memory_allocated(self.device) - before) / GIB


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
