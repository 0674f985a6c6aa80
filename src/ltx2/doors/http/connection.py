"""A connection that must say something: uvicorn itself waits for ever for the first byte, and for the rest of headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEADER_SECONDS = 15.0
# Beyond the limit, for probes, when every connection is at work.
SPARE = 64


class Impatient(H11Protocol):
    """Closes a connection on which no whole request head came within 15 seconds of its first byte, or of opening it.

    When there are too many, the one that has been idle longest makes room: strangers who open connections and say
    nothing keep nobody out. Requests under way are counted by the application, which refuses in its own form.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._most, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most:
            self._make_room(self._most)
        self._wait_for_head()
        self._idle[self] = None

    def data_received(self, data: bytes) -> None:
        before = self._cycle
        if self._head_timer is None and (before is None or before.response_complete):
            self._wait_for_head()
        super().data_received(data)
        if self._cycle is not before:
            self._stop_waiting()
            self._idle.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self._cycle is None or self._cycle.response_complete):
            self._idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._idle.pop(self, None)
        super().connection_lost(exc)

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        # None until the first request, whatever its annotation says.
        found: Any = self.cycle
        return found

    @property
    def _idle(self) -> dict[Impatient, None]:
        """The connections of this server that have no request, the one that waits longest first."""
        return vars(self.server_state).setdefault("idle", {})

    def _make_room(self, most: int) -> None:
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            # Its end is told later; until then it must not be counted or chosen again.
            del self._idle[oldest]
            self.connections.discard(oldest)
            oldest.transport.close()
        elif len(self.connections) > most + SPARE:
            self.transport.close()

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
