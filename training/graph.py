"""Whole training steps as CUDA graphs: at this size a step's thousands of launches cost more than its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3


class Replay:
    """`work(*inputs)` captured once and replayed: inputs are copied into fixed tensors, outputs are overwritten each time.

    `work` must not read the device from the host. Without a GPU it is simply called. The warm-up runs are real runs.
    """

    def __init__(self, work: Callable[..., Sequence[Tensor]], *examples: Tensor):
        self._work = work
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs = [example.clone() for example in examples]
        if not torch.cuda.is_available():
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                work(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = work(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if self._graph is None:
            return self._work(*inputs)
        for fixed, value in zip(self._inputs, inputs, strict=True):
            fixed.copy_(value)
        self._graph.replay()
        return self._outputs
