"""What a deployment has spent today: each GPU container writes down its own time, and the web function adds up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ltx2.doors.modal.board import Shared
from ltx2.doors.modal.errors import SpendCapReached

# Every job asks for the sum; it changes only when a job ends.
FRESH = 5.0
# How often a container writes down what it has cost.
PACE = 60.0
LOG = logging.getLogger("ltx2.modal")
DAY = 86_400


def today(now: float | None = None) -> str:
    """The date at UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(now))


@dataclass
class Meter:
    """The time of one container. `price` in dollars a second; `tail`: the idle seconds that it will be paid for, too."""

    shared: Shared
    container: str
    price: float
    tail: float
    begun: float = field(default_factory=time.time)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self, pace: float = PACE) -> None:
        """Write down every `pace` seconds from now on: idle containers cost money, too, and long videos before they end."""
        self.note()
        threading.Thread(target=self._keep, args=(pace,), name="meter", daemon=True).start()

    def stop(self) -> None:
        """The container goes: the idle time that was promised is not paid."""
        self._over.set()
        self.note(alive=False)

    def note(self, alive: bool = True) -> None:
        """Write down what is certain to be paid until now: with the idle time that follows while it is alive."""
        now = time.time()
        midnight = now - now % DAY
        seconds = now - max(self.begun, midnight) + (self.tail if alive else 0.0)
        self.shared.put(f"{today(now)} {self.container}", seconds * self.price)

    def _keep(self, pace: float) -> None:
        while not self._over.wait(pace):
            try:
                self.note()
            except Exception as error:  # the next one says it all
                LOG.warning("the cost of this container was not written down: %s", error)
            if self._over.is_set():
                self.note(alive=False)


@dataclass
class Ledger:
    """The sum over all containers, and the cap in dollars a day (0: none)."""

    shared: Shared
    cap: float
    clock: Callable[[], float] = time.time
    _seen: tuple[float, float] = (0.0, 0.0)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spent(self) -> float:
        """Dollars of today."""
        with self._lock:
            now = self.clock()
            if now - self._seen[0] > FRESH:
                day = today(now)
                total = sum(float(value) for key, value in self.shared.items() if str(key).startswith(day))
                self._seen = (now, total)
            return self._seen[1]

    def check(self, promised: float, dollars: float) -> None:
        """Raise SpendCapReached when today's money does not reach for what is promised and for another job."""
        if not self.cap:
            return
        spent = self.spent()
        if spent + promised + dollars > self.cap:
            raise SpendCapReached(
                f"the daily spend cap of ${self.cap:g} is reached: ${spent:.2f} spent, ${promised:.2f} promised,"
                f" ${dollars:.2f} for this video",
                hint="it starts anew at 00:00 UTC; the operator can raise daily_cap",
            )

    def clean(self) -> None:
        """Drop the pages of former days."""
        day = today(self.clock())
        for key in [key for key in self.shared.keys() if str(key)[:10] < day]:  # noqa: SIM118
            self.shared.pop(key, None)
