"""From the device to the host, beside the device's work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


def _as_it_is(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Arriving:
    """Values on their way to the host; whoever needs them waits for them, in any thread."""

    host: Tensor
    event: Any
    then: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.host)

    def arrived(self) -> Tensor:
        """Wait for the values, and make of them what `then` says, which may raise."""
        if self.event is not None:
            self.event.synchronize()
        return self.then(self.host)


@torch.inference_mode()
def to_host(source: Tensor, then: Callable[[Tensor], Tensor] = _as_it_is) -> Arriving:
    """Begin to copy `source`; from a GPU through pinned memory, ten times as fast as without, on a stream of its own."""
    if source.device.type != "cuda":
        return Arriving(source, None, then)
    current = torch.cuda.current_stream(source.device)
    stream, host = _copies(current), torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        host.copy_(source, non_blocking=True)
    # Its memory goes to others as soon as nobody holds it, but not before the copy.
    source.record_stream(stream)
    return Arriving(host, stream.record_event(), then)


@cache
def _copies(source: Any) -> Any:
    # One for each stream: what leaves the one does not wait for what leaves another.
    return torch.cuda.Stream(source.device)
