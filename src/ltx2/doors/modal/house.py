"""What a web container keeps an eye on beside requests: the weights, the money, how the last GPU container began."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from ltx2.doors.http.service import Duty
from ltx2.doors.modal.board import Board
from ltx2.doors.modal.boot import BOOT
from ltx2.doors.modal.errors import NotDeployed
from ltx2.doors.modal.ledger import Ledger
from ltx2.doors.modal.outputs import Volume

LOG = logging.getLogger("ltx2.modal")
PAUSE = 20.0


@dataclass
class House:
    """Looks every 20 seconds from a thread; probes and metrics answer from what it saw. `trouble` says why nothing can
    be made; `weights` is the volume that a download changes.
    """

    board: Board
    ledger: Ledger
    duty: Duty
    trouble: Callable[[], str | None]
    weights: Volume
    boot: dict[str, Any] = field(default_factory=dict[str, Any])
    spent: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self, registry: CollectorRegistry) -> None:
        """Begin to look, and show the metrics."""
        Gauge("ltx2_spent_today_dollars", "GPU money of today (UTC)", registry=registry).set_function(
            lambda: self.spent
        )
        cap = Gauge("ltx2_daily_cap_dollars", "The daily spend cap; 0 is none", registry=registry)
        cap.set(self.ledger.cap)
        cold = Gauge(
            "ltx2_cold_start_seconds", "Phases of the last GPU container's start", ("phase",), registry=registry
        )
        self._cold = cold
        threading.Thread(target=self._keep, name="house", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> None:
        """Look once."""
        reason = self.trouble()
        if reason is not None:
            # The download may have finished in another container.
            self.weights.reload()
            reason = self.trouble()
        self.duty.waiting = reason
        self.boot = self.board.jobs.get(BOOT) or {}
        for phase, seconds in self.boot.get("phases", {}).items():
            self._cold.labels(phase).set(seconds)
        self.spent = self.ledger.spent()

    def check(self) -> None:
        """Raise NotDeployed while nothing can be made: no GPU is started to find that out."""
        if self.duty.waiting is not None:
            raise NotDeployed(self.duty.waiting)

    def _keep(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # whatever one look meets, the next one may not
                LOG.warning("the house could not be looked at: %s", error)
            if self._stop.wait(PAUSE):
                return
