"""The worker: takes jobs from the store, has an engine make them, and publishes what it made under the fence."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ltx2.jobs.errors import StoreUnavailable
from ltx2.jobs.heart import Heart, Pace
from ltx2.jobs.job import CANCELLED, LATE, Claim, Ending
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from ltx2.spec.discretion import discreet, told
from ltx2.spec.errors import GenerationFailed, Ltx2Error
from ltx2.spec.events import Event, Finished, Progress
from ltx2.spec.plan import Plan

LOG = logging.getLogger(__name__)

Engine = Callable[[Plan, Path], Iterator[Event]]
"""What makes a video: yields events and writes the file; closing it cancels. The one type that joins both floors."""
Inspect = Callable[[Plan, Path], tuple[str, ...]]
"""Looks at a finished file before it is published: returns warnings, raises InvalidOutput."""

# An engine whose process died raises an error with this code: the job is tried once more, elsewhere or after a restart.
CRASHED_CODE = "worker_crashed"


class Stopped(Exception):
    """The work was ended from outside: cancel, late, lost, or stop (the worker is told to leave)."""


def unique_name() -> str:
    """A worker name for one process: where it runs, and that it is no earlier one with the same number."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def always() -> bool:
    """The engine in this process: whoever can ask can work."""
    return True


def accept(plan: Plan, path: Path) -> tuple[str, ...]:
    """The inspection that only asks for a file with something in it. Raises GenerationFailed."""
    if not path.is_file() or not path.stat().st_size:
        raise GenerationFailed("the engine left no file")
    return ()


@dataclass(frozen=True)
class Worker:
    """One engine at the queue, one job at a time.

    `store` and `shelf` are shared with other workers; `name` must be unique for each process that ever runs. No job is
    taken while `ready` says no, or the shelf takes no files: a worker that cannot work leaves the jobs to others.
    """

    store: Store
    engine: Engine
    shelf: Shelf
    name: str = field(default_factory=unique_name)
    pace: Pace = field(default_factory=Pace)
    inspect: Inspect = accept
    ready: Callable[[], bool] = always

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; then the current job has `pace.drain` seconds before it goes back to the queue."""
        while not stop.is_set():
            try:
                claim = self.store.claim(self.name) if self.ready() and self.shelf.takes_files() else None
                if claim is None:
                    stop.wait(self.pace.poll)
                else:
                    self.work(claim, stop)
            except StoreUnavailable as error:
                # What was under way is settled by its lease.
                LOG.warning("%s", error)
                stop.wait(1.0)

    def work(self, claim: Claim, stop: threading.Event) -> None:
        """Make one claimed job and end it. Raises StoreUnavailable when the database stays away at the end."""
        with Heart(self.store, claim, self.pace) as heart:
            try:
                ending = self._make(claim, heart, stop)
            except Stopped as reason:
                match str(reason):
                    case "cancel":
                        ending = CANCELLED
                    case "late":
                        ending = LATE
                    case _:
                        self._leave(claim, counted=False)
                        return
            except Exception as error:  # whatever breaks belongs to this job; the next one may work
                if getattr(error, "code", None) == CRASHED_CODE:
                    self._leave(claim, counted=True)
                    return
                ending = failure(error)
            state = self.store.finish(claim, ending)
        LOG.info("job %d, attempt %d: %s", claim.number, claim.attempt, state or "lost to another attempt")
        if state != "done":
            self.shelf.discard(claim)

    def _make(self, claim: Claim, heart: Heart, stop: threading.Event) -> Ending:
        draft = self.shelf.draft(claim)
        plan = Plan.from_dict(claim.plan)
        finished = self._watch(self.engine(plan, draft), heart, stop)
        warnings = (*finished.warnings, *self.inspect(plan, draft))
        published = self.shelf.publish(claim)
        result: dict[str, Any] = asdict(finished) | published | {"warnings": [discreet(line) for line in warnings]}
        del result["path"]
        return Ending("done", result=result)

    def _watch(self, events: Iterator[Event], heart: Heart, stop: threading.Event) -> Finished:
        leave_at: float | None = None
        try:
            for event in events:
                if isinstance(event, Finished):
                    return event
                answer = heart.ask(asdict(event) if isinstance(event, Progress) else None)
                if answer != "go":
                    raise Stopped(answer)
                if stop.is_set():
                    leave_at = leave_at or time.monotonic() + self.pace.drain
                    if time.monotonic() >= leave_at:
                        raise Stopped("stop")
        finally:
            # Closing a generator runs its own cleaning now, not when it happens to be collected.
            if isinstance(events, Generator):
                events.close()
        raise GenerationFailed("the engine ended without a result")

    def _leave(self, claim: Claim, counted: bool) -> None:
        self.shelf.discard(claim)
        self.store.give_back(claim, counted)


def failure(error: Exception) -> Ending:
    """How a job ends that raised `error`; what its client is not to read of it stays in the log."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Ending.of("failed", "storage_full", "there was no room for the video")
    message = told(error)
    if message != str(error):
        LOG.error("a job broke", exc_info=error)
    if isinstance(error, Ltx2Error):
        return Ending.of("failed", error.code, message)
    return Ending.of("failed", "internal", f"the worker broke: {type(error).__name__}")
