"""One job on a GPU container: begun under a number, watched, published once, ended once, whatever ends the container."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ltx2.doors.modal.board import Board, Record
from ltx2.doors.modal.outputs import Outputs
from ltx2.jobs.job import CANCELLED, CRASHED, EXPIRED, LATE, Ending
from ltx2.jobs.worker import CRASHED_CODE, Inspect, failure
from ltx2.spec.discretion import discreet
from ltx2.spec.errors import GenerationFailed, RefusedRequest
from ltx2.spec.events import Event, Finished, Progress
from ltx2.spec.plan import Plan

LOG = logging.getLogger("ltx2.modal")
EXIT_LOST = 70
# Progress is posted no more often than this, by a thread: the GPU waits for no network.
PACE = 0.25
# Attempts are counted in the upper digits, so that the count grows over them.
STEPS_OF_ATTEMPT = 100_000

Engine = Callable[[Plan, Path], Iterator[Event]]


class Late(Exception):
    """The deadline passed while the job was running."""


class Ended(Exception):
    """The job was ended from outside while it was running."""


def leave_at_once() -> None:
    """End this container, whose GPU is lost; Modal begins its input anew in another one."""
    os._exit(EXIT_LOST)


@dataclass(frozen=True)
class Renderer:
    """Makes jobs in this container. `price` in dollars a second; `leave` is called when the GPU is lost."""

    board: Board
    outputs: Outputs
    engine: Engine
    inspect: Inspect
    price: float
    name: str
    attempts: int = 3
    leave: Callable[[], None] = leave_at_once

    def make(self, token: str, id: str) -> dict[str, Any]:  # noqa: A002
        """Make one job and end it; a job that has ended already is left as it is. Returns its ending.

        Exceptions that end the process or the input (cancelled, preempted) pass through, with nothing left behind.
        """
        record = self.board.record(token, id)
        if record is None:
            LOG.info("job %s was removed before it began", id)
            return {"state": "removed"}
        ended = self.board.ending(record.number)
        if ended is not None:
            return ended
        attempt = self.board.begun(record.number) + 1
        if attempt > self.attempts:
            self.board.end(record.number, CRASHED)
        elif record.deadline is not None and time.time() > record.deadline:
            self.board.end(record.number, EXPIRED)
        else:
            self.board.begin(record.number, attempt)
            self._attempt(record, attempt)
        return self.board.ending(record.number) or {"state": "removed"}

    def _attempt(self, record: Record, attempt: int) -> None:
        poster = Poster(self.board, record.number, attempt, self.name)
        folder = Path(tempfile.mkdtemp(prefix="ltx2-"))
        begun = time.time()
        try:
            ending = self._make(record, attempt, folder / "out.mp4", poster)
        except Late:
            ending = LATE
        except Ended:
            ending = CANCELLED
        except Exception as error:
            if getattr(error, "code", None) == CRASHED_CODE:
                LOG.error("job %d, attempt %d: the GPU is lost: %s", record.number, attempt, error)
                self.leave()
            ending = failure(error)
        except KeyboardInterrupt:
            # Preempted: the next container begins it again, and this attempt does not count.
            self.board.begin(record.number, attempt - 1)
            raise
        finally:
            poster.close()
            shutil.rmtree(folder, ignore_errors=True)
        counts = self.board.end(record.number, ending, attempt)
        if ending.state == "done" and not counts:
            # Cancelled during the last step: nobody will ask for the file.
            self.outputs.discard(record.number, attempt)
        LOG.info("job %d, attempt %d: %s in %.1f s", record.number, attempt, ending.state, time.time() - begun)

    def _make(self, record: Record, attempt: int, draft: Path, poster: Poster) -> Ending:
        begun = time.monotonic()
        plan = self._with_picture(Plan.from_dict(record.plan), draft.parent)
        finished = self._watch(self.engine(plan, draft), record, poster)
        warnings = (*finished.warnings, *self.inspect(plan, draft))
        published = self.outputs.publish(draft, record.number, attempt)
        seconds = time.monotonic() - begun
        result: dict[str, Any] = asdict(finished) | published
        result |= {
            "warnings": [discreet(line) for line in warnings],
            "cost": round(seconds * self.price, 6),
            "currency": "USD",
            "worker": self.name,
        }
        del result["path"]
        return Ending("done", result=result)

    def _watch(self, events: Iterator[Event], record: Record, poster: Poster) -> Finished:
        try:
            for event in events:
                if isinstance(event, Finished):
                    return event
                if isinstance(event, Progress):
                    poster.post(event)
                else:
                    LOG.warning("job %d: %s", record.number, event.reason)
                if record.deadline is not None and time.time() > record.deadline:
                    raise Late
                # Modal interrupts the call as well; this is for cancels that do not get through.
                if poster.ended:
                    raise Ended
        finally:
            # Also when the input is cancelled: the engine leaves its step now, not when it is collected.
            if isinstance(events, Generator):
                events.close()
        raise GenerationFailed("the engine ended without a result")

    def _with_picture(self, plan: Plan, folder: Path) -> Plan:
        if not plan.image:
            return plan
        name = Path(plan.image).name
        data = self.board.picture(name)
        if data is None:
            raise RefusedRequest("image: the picture was kept for seven days, and is gone", knob="image")
        (folder / name).write_bytes(data)
        return replace(plan, image=str(folder / name))


class Poster:
    """Posts how far a job is from a thread of its own; only the newest step counts. `ended`: somebody else has ended it."""

    def __init__(self, board: Board, number: int, attempt: int, worker: str):
        self._board, self._number = board, number
        self._base = {"attempt": attempt, "worker": worker, "started": time.time()}
        self._count = attempt * STEPS_OF_ATTEMPT
        self._next: Progress | None = None
        self.ended = False
        self._wake, self._over = threading.Event(), threading.Event()
        self._say(None)
        self._thread = threading.Thread(target=self._run, name=f"poster-{number}", daemon=True)
        self._thread.start()

    def post(self, progress: Progress) -> None:
        """Say how far the job is; never waits."""
        self._next = progress
        self._wake.set()

    def close(self) -> None:
        """Say no more."""
        self._over.set()
        self._wake.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._over.is_set():
            self._wake.wait()
            self._wake.clear()
            if self._next is not None and not self._over.is_set():
                try:
                    self._say(self._next)
                except Exception as error:  # a step that nobody hears of is no reason to stop
                    LOG.warning("progress of job %d was not posted: %s", self._number, error)
            self._over.wait(PACE)

    def _say(self, progress: Progress | None) -> None:
        self._count += 1
        shown = {} if progress is None else asdict(progress)
        self._board.post(self._number, self._base | shown | {"count": self._count, "at": time.time()})
        self.ended = self._board.ending(self._number) is not None
