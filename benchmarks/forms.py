"""The transformer's forward in every form that is measured: from the slow path to a graph, and the fast path with each of
its parts taken out by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltx2.models.fast import Stage, Twin, attention, cublas
from ltx2.models.fast.graphs import CudaRecorder, Graphs
from ltx2.models.fast.lanes import ONE
from ltx2.models.fast.ops import PLAIN, Ops, Table, choose
from ltx2.models.velocity import Stream, velocities


def modes(device: torch.device, transformer: Any, few: bool = False) -> dict[str, Callable[..., Any]]:
    """The slow path, and the fast one with ever more of its parts; or `few` of them."""
    kernels = choose(device)
    plain, fused = Twin(transformer, PLAIN), Twin(transformer, kernels)
    plain.graphs = fused.graphs = None
    found: dict[str, Callable[..., Any]] = {
        "slow": partial(velocities, transformer),
        "fast, plain ops": Stage(plain),
        f"fast, {kernels.name} ops": Stage(fused),
    }
    if device.type == "cuda":
        found["fast, graph"] = Stage(Twin(transformer, kernels, Graphs(CudaRecorder(device))))
    if few:
        found = {mode: run for mode, run in found.items() if mode in ("slow", f"fast, {kernels.name} ops")}
    return found


@dataclass(frozen=True)
class Form:
    """A stage, and what it runs in."""

    stage: Stage
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, video: Stream, audio: Stream) -> Tensor:
        """The video's velocity."""
        with self.around():
            return self.stage(video, audio, ())[0][0]

    @property
    def recorded(self) -> bool:
        """Whether it replays from a graph."""
        graphs = self.stage.twin.graphs
        return graphs is not None and bool(graphs.recorded)


Made = dict[str, Callable[[], Form]]
"""Forms by name, each made only when its turn comes: one that cannot be made takes no other one with it."""


def switched(device: torch.device, transformer: Any) -> Made:
    """The whole fast path, without some of its parts, and with fp8 attention, which is lossy."""
    ops, twin = choose(device), partial(Twin, transformer)
    made: Made = {
        "whole": lambda: Form(Stage(twin())),
        "gelu in a kernel": lambda: Form(Stage(twin(replace(ops, linear_gelu=None)))),
        "q and k in two kernels": lambda: Form(Stage(twin(replace(ops, normalise_pair=_two_kernels(ops))))),
        "cuBLAS's tiles": lambda: Form(Stage(twin()), _without_our_tiles),
        "one lane": lambda: Form(Stage(twin(lanes=ONE))),
    }
    if attention.takes_flash_3(device, torch.bfloat16, attention.FA3_TOKENS, attention.FA3_KEYS):
        made["no fa3"] = lambda: Form(Stage(twin()), _without_flash_3)
    # Elsewhere than on a GPU it is only rehearsed, with plain operations.
    if device.type != "cuda" or not attention.no_fp8_attention(device):
        made["fp8 attention"] = lambda: Form(Stage(twin(fp8_from=1)))
    return made


@contextmanager
def _without_our_tiles() -> Iterator[None]:
    of, cublas.of = cublas.of, lambda device: None
    try:
        yield
    finally:
        cublas.of = of


@contextmanager
def _without_flash_3() -> Iterator[None]:
    tokens, attention.FA3_TOKENS = attention.FA3_TOKENS, 2**62
    try:
        yield
    finally:
        attention.FA3_TOKENS = tokens


def _two_kernels(ops: Ops) -> Any:
    def pair(q: Tensor, k: Tensor, weights: Any, table: Table, heads: int, eps: float) -> tuple[Tensor, Tensor]:
        return (
            ops.normalise_heads(q, weights[0], table, heads, eps),
            ops.normalise_heads(k, weights[1], table, heads, eps),
        )

    return pair
