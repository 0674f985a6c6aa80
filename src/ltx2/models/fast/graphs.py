"""CUDA graphs of whole evaluations, a bounded number of them, one for each kind of work.

A graph replays kernels on fixed addresses. So inputs are copied into the tensors that it was recorded with, and results
out of those that it writes. The first evaluation of a kind runs as it is, the second is recorded, later ones replay.
What cannot be recorded, as a kernel from elsewhere that waits for the CPU, goes on running as it is.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

log = logging.getLogger(__name__)

LIMIT = 6
"""Graphs that are kept; each holds the memory of one evaluation, in a pool that all share."""


class Recorder(Protocol):
    """Runs `work` once for recording; returns its result and what replays it into the same tensors."""

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]: ...


class Owner(Protocol):
    """Whose `fixed` a graph holds; told to forget it when another's is copied over it."""

    def forget(self) -> None: ...


class CudaRecorder:
    """Records with torch.cuda.graphs, all graphs in one memory pool."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = work()
        return result, graph.replay


@dataclass
class _Recorded:
    inputs: list[Tensor]
    result: Any
    replay: Callable[[], None]
    owner: ReferenceType[Owner]


class Graphs:
    """Recorded evaluations, the least recently used one forgotten first.

    `run(key, work, changing, fixed, owner)` gives `work(changing, fixed)`. Both are trees of tensors; `changing` is
    copied into place for every replay, `fixed` only when `owner` is another one than at the last replay.
    """

    def __init__(self, recorder: Recorder, limit: int = LIMIT):
        self.recorder, self.limit = recorder, limit
        self.recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self.seen: OrderedDict[Hashable, None] = OrderedDict()
        self.refused: set[Hashable] = set()

    def run(self, key: Hashable, work: Callable[[Any, Any], Any], changing: Any, fixed: Any, owner: Owner) -> Any:
        """The result in tensors of its own. Trees under one key must have the same structure, shapes and types."""
        if key in self.refused:
            return work(changing, fixed)
        if key in self.recorded:
            self.recorded.move_to_end(key)
        elif key not in self.seen:
            self.seen[key] = None
            while len(self.seen) > 4 * self.limit:
                self.seen.popitem(last=False)
            return work(changing, fixed)
        else:
            while len(self.recorded) >= self.limit:
                self.recorded.popitem(last=False)
            try:
                self.recorded[key] = self._record(work, changing, fixed, owner)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.warning("an evaluation cannot be recorded and runs as it is, which is slower: %s", error)
                self.refused.add(key)
                return work(changing, fixed)
        return self._replay(self.recorded[key], changing, fixed, owner)

    def clear(self) -> None:
        """Forget everything, as when weights have moved."""
        self.recorded.clear()
        self.seen.clear()
        self.refused.clear()

    def _record(self, work: Callable[[Any, Any], Any], changing: Any, fixed: Any, owner: Owner) -> _Recorded:
        (moving, shape), (still, still_shape) = tree_flatten(changing), tree_flatten(fixed)
        # The caller's tensors may be freed or reused; what stays the same is large and adopted as it is.
        own = [value.clone() if isinstance(value, Tensor) else value for value in moving]
        inputs = tree_unflatten(own, shape), tree_unflatten(still, still_shape)
        result, replay = self.recorder(lambda: work(*inputs))
        return _Recorded(_tensors(own) + _tensors(still), result, replay, ref(owner))

    def _replay(self, recorded: _Recorded, changing: Any, fixed: Any, owner: Owner) -> Any:
        fresh = _tensors(tree_flatten(changing)[0])
        if (before := recorded.owner()) is not owner:
            if before is not None:
                before.forget()
            fresh += _tensors(tree_flatten(fixed)[0])
            recorded.owner = ref(owner)
        for into, value in zip(recorded.inputs, fresh, strict=False):
            if into is not value:
                into.copy_(value)
        recorded.replay()
        leaves, shape = tree_flatten(recorded.result)
        return tree_unflatten([leaf.clone() for leaf in leaves], shape)


def _tensors(values: list[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
