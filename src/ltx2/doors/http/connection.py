"""A connection that must say something: uvicorn itself waits for ever for the first byte, and for the rest of headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEADER_SECONDS = 15.0


class Impatient(H11Protocol):
    """Closes a connection on which no whole request head came within 15 seconds of its first byte, or of opening it."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        before = self._cycle
        if self._head_timer is None and (before is None or before.response_complete):
            self._wait_for_head()
        super().data_received(data)
        if self._cycle is not before:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        # None until the first request, whatever its annotation says.
        found: Any = self.cycle
        return found

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and (self._cycle is None or self._cycle.response_complete):
            self.transport.close()
