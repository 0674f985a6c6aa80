"""Lanes for a CPU that run nothing at once but look at every operation for what would be a race between two CUDA streams.

Each lane has a vector clock: how far it is, and how much of the other it has waited for. Of every storage it is known which
lane allocated it and when each lane last wrote and read it. A breach is

* an operation that reads or writes what the other lane wrote, without a wait in between, or writes what the other reads;
* an allocation in a lane that has dropped a storage of its own, while the other lane may still be using it: that is
  the memory which CUDA's caching allocator hands out next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LANES = ("main", "side")


@dataclass
class _Memory:
    """A storage: whose it is, and the lanes' times of the last write and read."""

    alive: StorageWeakRef
    home: str
    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))

    def used(self, lane: str) -> int:
        return max(self.written[lane], self.read[lane])


class CheckedLanes(TorchDispatchMode):
    """Two lanes while it is entered as a context; `breaches` says what went wrong, `done` which operations went where."""

    def __init__(self) -> None:
        super().__init__()
        self.lane, self.kept = "main", ()
        self.clock = {lane: dict.fromkeys(LANES, 0) for lane in LANES}
        self.memory: dict[int, _Memory] = {}
        self.breaches: list[str] = []
        self.done: Counter[tuple[str, str]] = Counter()
        self.met = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        assert self.lane == "main", "two lanes only"
        self.lane = "side"
        try:
            yield
        finally:
            self.lane = "main"

    def meet(self, *crossing: Any) -> None:
        assert self.lane == "main", "the main lane decides when to meet"
        self.met += 1
        self._wait("side", "main")
        self._wait("main", "side")
        self.kept = crossing

    def alone(self) -> bool:
        """Whether the main lane has waited for all that was done aside."""
        return self.clock["main"]["side"] == self.clock["side"]["side"]

    def _wait(self, lane: str, other: str) -> None:
        self.clock[lane] = {name: max(self.clock[lane][name], self.clock[other][name]) for name in LANES}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        own = self.clock[self.lane]
        own[self.lane] += 1
        self.done[self.lane, str(func)] += 1
        written = _written(func, args, kwargs)
        before = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        for tensor in before:
            self._touch(self._of(tensor, "main"), func, any(tensor is one for one in written))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.memory:
                self._allocate(func)
                self._of(tensor, self.lane).written[self.lane] = own[self.lane]
        return result

    def _of(self, tensor: Tensor, home: str) -> _Memory:
        storage = tensor.untyped_storage()
        return self.memory.setdefault(storage._cdata, _Memory(StorageWeakRef(storage), home))

    def _touch(self, memory: _Memory, func: Any, writes: bool) -> None:
        own, other = self.clock[self.lane], LANES[self.lane == "main"]
        if memory.written[other] > own[other] or (writes and memory.read[other] > own[other]):
            self.breaches.append(f"{func} in {self.lane} does not wait for {other}")
        (memory.written if writes else memory.read)[self.lane] = own[self.lane]

    def _allocate(self, func: Any) -> None:
        own, other = self.clock[self.lane], LANES[self.lane == "main"]
        for memory in self.memory.values():
            if memory.home == self.lane and memory.used(other) > own[other] and memory.alive.expired():
                self.breaches.append(f"{func} in {self.lane} gets memory that {other} still uses")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Arguments that the operation changes."""
    found: list[Any] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return [tensor for tensor in tree_leaves(found) if isinstance(tensor, torch.Tensor)]
