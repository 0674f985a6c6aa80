"""The keeper: sweeps the queue and the shelf, again and again. At least one must run; several do no harm."""

from __future__ import annotations

import logging
import threading
import time

from ltx2.jobs.errors import StoreUnavailable
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store

LOG = logging.getLogger(__name__)
ROUNDS_TO_CLEAR = 120
# A clock that is ahead of the time that has passed by more than JUMP seconds has been set. Whether it is right now,
# nobody knows here: for GRACE seconds, in which it can be set right, nothing is deleted for its age.
JUMP, GRACE = 3600.0, 3600.0


class Calendar:
    """Whether the database's clock may be believed when it says that something is old."""

    def __init__(self) -> None:
        self._ahead: float | None = None
        self._doubt_until = 0.0

    def believe(self, now: float) -> bool:
        """Look at the clock, which says `now`."""
        passed = _passed()
        ahead = now - passed
        jumped = ahead - (ahead if self._ahead is None else self._ahead)
        self._ahead = ahead
        if jumped > JUMP:
            LOG.error("the clock jumped by %.1f hours: nothing is deleted for its age for a while", jumped / 3600)
            self._doubt_until = passed + GRACE
        elif jumped < -JUMP:
            LOG.warning("the clock was set back by %.1f hours", -jumped / 3600)
            self._doubt_until = 0.0
        return passed >= self._doubt_until


def _passed() -> float:
    """Seconds that no setting of a clock changes, those of a sleeping machine included where that can be known."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def keep(store: Store, shelf: Shelf, stop: threading.Event, pause: float = 5.0) -> None:
    """Sweep every `pause` seconds until told to stop; walk through the whole shelf every 120th time."""
    rounds, calendar = 0, Calendar()
    while not stop.is_set():
        try:
            # What is old is so by this look at the clock: the next one may follow a jump, which nobody has noticed yet.
            now = store.now()
            believed = calendar.believe(now)
            swept = store.sweep(forget=believed, at=now)
            if swept.lost or swept.expired:
                LOG.warning("swept: %d jobs of dead workers, %d past their deadline", swept.lost, swept.expired)
            if believed:
                shelf.wither(store, now)
            if rounds % ROUNDS_TO_CLEAR == 0:
                shelf.clear(store)
        except StoreUnavailable as error:
            LOG.warning("sweep failed, will be tried again: %s", error)
        except Exception:  # without a keeper jobs stay stuck: no fault of one round may end it
            LOG.exception("sweep failed, will be tried again")
        rounds += 1
        stop.wait(pause)
