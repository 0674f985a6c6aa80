"""What one client's large requests may not take from all others: the memory for their bodies, and the threads of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import anyio.to_thread
from starlette.datastructures import Headers

from ltx2.doors.http.refusals import Busy

MIB = 1 << 20
# Bytes of all bodies at once, from their first byte until their job is accepted.
MOST = 512 * MIB
# Not worth counting: JSON.
SMALL = 64 * 1024
WAITING = 32

Found = TypeVar("Found")


@dataclass
class Weight:
    """The bytes that one request may bring; let go of once, by whoever is first to know that they are not needed."""

    scales: Scales
    bytes: int
    held: bool = True

    def let_go(self) -> None:
        """The body is not in memory any more."""
        if self.held:
            self.held = False
            self.scales.put_down(self.bytes)


@dataclass
class Scales:
    """Bytes of large bodies that are held at once; of one event loop."""

    most: int = field(default_factory=lambda: MOST)
    held: int = 0

    def weigh(self, headers: Headers, largest: int) -> Weight:
        """What a request may bring: what it says, or the `largest` body where it does not say. Raises Busy."""
        length = int(headers.get("content-length") or (largest if headers.get("transfer-encoding") else 0))
        if length <= SMALL:
            return Weight(self, 0)
        if self.held and self.held + length > self.most:
            raise Busy("too many large bodies are under way", hint="try again in a moment")
        self.held += length
        return Weight(self, length)

    def put_down(self, length: int) -> None:
        """So many bytes are not held any more."""
        self.held -= length


@dataclass
class Readers:
    """So many threads of their own for what takes seconds, in which everybody else would wait for a thread."""

    threads: int
    what: str
    _waiting: int = 0
    _limiter: anyio.CapacityLimiter | None = field(default=None, repr=False)

    async def run(self, act: Callable[[], Found]) -> Found:
        """What `act` returns. Raises Busy when too many others wait, and what `act` raises."""
        if self._waiting >= WAITING:
            raise Busy(f"too many {self.what} are under way", hint="try again in a moment")
        self._limiter = self._limiter or anyio.CapacityLimiter(self.threads)
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(act, limiter=self._limiter)
        finally:
            self._waiting -= 1
