"""Two queues of work on one device, so that the small kernels of the audio stream run beside the large ones of the video.

The main lane is whatever CUDA stream is current (of a caller, or of a graph that is being recorded); the side lane is a
stream of its own. Work in one lane is in order; between the lanes there is order only where they `meet`.

Two rules make this right, and `Lanes` has no other way to cross:

1. *Order.* A value of one lane is read in the other only after a `meet` that came after it was made. An evaluation begins
   and ends with one, so what callers make before and read after it needs no thought, and what the side lane frees is
   handed out again only after whatever read it in the main lane.
2. *Lifetime.* The caching allocator gives a tensor's memory to the next one of the lane that it was allocated in, as soon
   as Python has dropped it: right for that lane, but the other may still be reading. So what is read in the other lane
   either lives until the last `meet`, as modulations, tables and text keys do, which the evaluation itself holds; or it is
   named to `meet`, which keeps it until the next one. There each lane waits for all that the other has been given, its
   readings among them, so the memory may go on. No more than one block's tensors are kept like that.

`tests/models/fast/lane_checker.py` looks at every operation of an evaluation for breaches of both rules.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Protocol, TypeVar

import torch

Main = TypeVar("Main")
Side = TypeVar("Side")

# Its kernels are small: let them in wherever a multiprocessor becomes free, before more of the video's.
PRIORITY = -1


class Lanes(Protocol):
    def aside(self) -> AbstractContextManager[Any]:
        """Work inside the block goes to the side lane."""
        ...

    def meet(self, *crossing: Any) -> None:
        """Each lane waits for all that the other was given so far; `crossing` is kept until they meet again."""
        ...


class OneLane:
    """Everything in one queue, in the order in which it is written."""

    def aside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def meet(self, *crossing: Any) -> None:
        pass


class CudaLanes:
    """The current CUDA stream and one beside it.

    While a graph is recorded, waiting for the current stream is what takes the side stream into the recording; the last
    `meet` brings it back, as recording demands.
    """

    def __init__(self, device: torch.device):
        self.device, self.side = device, _side(device)
        self.kept: tuple[Any, ...] = ()

    def aside(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.side)

    def meet(self, *crossing: Any) -> None:
        main = torch.cuda.current_stream(self.device)
        self.side.wait_stream(main)
        main.wait_stream(self.side)
        self.kept = crossing


ONE = OneLane()


def lanes_of(device: torch.device) -> Lanes:
    """Two lanes on CUDA, one elsewhere."""
    return CudaLanes(device) if device.type == "cuda" else ONE


@cache
def _stream(index: int) -> Any:
    # One for each device and process: cuBLAS keeps a workspace for every stream that it has seen.
    return torch.cuda.Stream(index, priority=PRIORITY)


def _side(device: torch.device) -> Any:
    return _stream(torch.cuda.current_device() if device.index is None else device.index)


def both(lanes: Lanes, main: Callable[[], Main], aside: Callable[[], Side]) -> tuple[Main, Side]:
    """The results of work in the main and in the side lane."""
    first = main()
    with lanes.aside():
        return first, aside()
