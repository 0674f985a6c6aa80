"""The keeper: sweeps the queue and the shelf, again and again. At least one must run; several do no harm."""

from __future__ import annotations

import logging
import threading

from ltx2.jobs.errors import StoreUnavailable
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store

LOG = logging.getLogger(__name__)
ROUNDS_TO_CLEAR = 120


def keep(store: Store, shelf: Shelf, stop: threading.Event, pause: float = 5.0) -> None:
    """Sweep every `pause` seconds until told to stop; walk through the whole shelf every 120th time."""
    rounds = 0
    while not stop.is_set():
        try:
            swept = store.sweep()
            if swept.lost or swept.expired:
                LOG.warning("swept: %d jobs of dead workers, %d past their deadline", swept.lost, swept.expired)
            shelf.wither(store)
            if rounds % ROUNDS_TO_CLEAR == 0:
                shelf.clear(store)
        except StoreUnavailable as error:
            LOG.warning("sweep failed, will be tried again: %s", error)
        except Exception:  # without a keeper jobs stay stuck: no fault of one round may end it
            LOG.exception("sweep failed, will be tried again")
        rounds += 1
        stop.wait(pause)
