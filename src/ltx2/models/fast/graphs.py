"""CUDA graphs of whole evaluations, a bounded number of them, one for each kind of work.

A graph replays kernels on fixed addresses. So inputs are copied into the tensors that it was recorded with, and results
out of those that it writes. The first evaluation of a kind runs as it is, the second is recorded, later ones replay.
What cannot be recorded, as a kernel from elsewhere that waits for the CPU, goes on running as it is; `refused` says why.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
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
    """Records on one GPU with torch.cuda.graphs, all graphs in one memory pool."""

    def __init__(self, device: torch.device | str = "cuda"):
        self.device = device
        self.pool: Any = None

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with torch.cuda.device(self.device):
            number, before = torch.cuda.current_device(), torch.cuda.current_stream()
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=_stream(number)):
                    result = work()
            except BaseException:
                # Where a recording cannot even be ended, torch (2.11, 2.13) stays in its stream, and in its pool.
                torch.cuda.set_stream(before)
                self._leave(number, graph)
                raise
        return result, graph.replay

    def _leave(self, number: int, graph: Any) -> None:
        """End what the allocator still believes to be a recording; it refuses when it has been told already."""
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(number, self.pool)
            # The allocator of pinned memory cannot be told, and goes on asking the graph.
            _BROKEN.append(graph)
            pool, self.pool = self.pool, None
            torch._C._cuda_releasePool(number, pool)


_BROKEN: list[Any] = []


@cache
def _stream(number: int) -> Any:
    # Not torch's own, which is one for the process: on a second GPU it would record nothing. Nor one for each recorder,
    # for cuBLAS keeps a workspace for every stream that it has seen.
    return torch.cuda.Stream(number)


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
        self.refused: dict[Hashable, str] = {}

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
            reasons = self._try(key, work, changing, fixed, owner)
            if reasons:
                log.warning("an evaluation cannot be recorded and runs as it is, which is slower: %s", reasons)
                self.refused[key] = reasons
                return work(changing, fixed)
        return self._replay(self.recorded[key], changing, fixed, owner)

    def clear(self) -> None:
        """Forget everything, as when weights have moved."""
        self.recorded.clear()
        self.seen.clear()
        self.refused.clear()

    def _try(
        self, key: Hashable, work: Callable[[Any, Any], Any], changing: Any, fixed: Any, owner: Owner
    ) -> str | None:
        """Record; why it cannot be, or None. A lack of memory is raised: it may have passed at the next try."""
        while len(self.recorded) >= self.limit:
            self.recorded.popitem(last=False)
        try:
            self.recorded[key] = self._record(work, changing, fixed, owner)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Ending a broken recording fails, too, and then what broke it was said before.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            return "; before that: ".join(_first_line(one) for one in (error, error.__context__) if one)
        return None

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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _tensors(values: list[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
