"""The heart of a job under way: a thread that renews its lease, so that the thread at the GPU does no I/O."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ltx2.jobs.errors import StoreUnavailable
from ltx2.jobs.job import Answer, Claim
from ltx2.jobs.store import Store

EXIT_STALLED = 70


def exit_now() -> None:
    """End this process at once, whatever its threads hang in."""
    os._exit(EXIT_STALLED)


@dataclass(frozen=True)
class Pace:
    """Times in seconds: `beat` between renewals, `poll` between looks at an empty queue, `stall` without a step after
    which a worker counts as hung, `drain` for the current job when the worker is told to stop.

    `on_stall` is what a hung worker does: by default its process ends, for a hung kernel cannot be talked to.
    """

    beat: float = 1.0
    poll: float = 0.05
    stall: float = 300.0
    drain: float = 25.0
    on_stall: Callable[[], None] = exit_now


class Heart:
    """Beats while its block runs."""

    def __init__(self, store: Store, claim: Claim, pace: Pace):
        self._store, self._claim, self._pace = store, claim, pace
        self._answer: Answer = "go"
        self._progress: dict[str, Any] | None = None
        self._asked = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heart-{claim.number}", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._over.set()
        # Only a beat that waits for an absent database lasts longer; the fence makes it harmless.
        self._thread.join(1.0)

    def ask(self, progress: dict[str, Any] | None) -> Answer:
        """Say how far the work is and learn whether to go on; never waits."""
        self._asked = time.monotonic()
        self._progress = progress or self._progress
        return self._answer

    def _beat(self) -> None:
        shown: dict[str, Any] | None = None
        while not self._over.wait(self._pace.beat):
            if time.monotonic() - self._asked > self._pace.stall:
                self._pace.on_stall()
                return
            progress = self._progress
            try:
                answer = self._store.beat(self._claim, None if progress == shown else progress)
            except StoreUnavailable:
                # The work goes on: the fence decides at the end whether it was in time.
                continue
            shown = progress
            self._answer = answer
            if answer == "lost":
                return
