"""The Engine in a process of its own, which can hang, break or be killed and come back; this side never sees torch.

`ProcessEngine` is called as an engine is: with a Plan and a path, it yields events.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal

from ltx2.engine.messages import (
    Again,
    Broken,
    Cancel,
    Cancelled,
    Done,
    Make,
    ProtocolError,
    Ready,
    Report,
    Start,
    Step,
    error_of,
    finished_of,
    read_report,
)
from ltx2.engine.spawn import Child
from ltx2.engine.watch import Limits, Watch
from ltx2.spec.errors import Ltx2Error, WorkerCrashed
from ltx2.spec.events import Event, Progress, Retrying
from ltx2.spec.plan import Plan

__all__ = ["Limits", "ProcessEngine", "State"]

LOG = logging.getLogger(__name__)
State = Literal["STARTING", "READY", "BUSY", "FAILED", "CLOSED"]
FACTORY = "ltx2.engine.factory:make"
# Events that wait for whoever called; a healthy engine has a few.
MAX_WAITING = 10_000


class ProcessEngine:
    """Makes videos in a child process, one at a time; a dead child is replaced by the next.

    `factory` (module:function) is called in the child with `options` and returns the function that makes videos; see
    `ltx2.engine.factory`. `environment` is added to the child's. Nothing starts before `start`, or the first call.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        factory: str = FACTORY,
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        self.limits = limits or Limits()
        self._order = Start(factory=factory, options=dict(options))
        self._environment = dict(environment or {})
        self._changed = threading.Condition()
        self._state: State = "STARTING"
        self._failure: Ltx2Error | None = None
        self._child: Child | None = None
        self._thread: threading.Thread | None = None
        self._job = 0
        self._inbox: queue.SimpleQueue[Report | None] | None = None
        self._in_a_row = 0
        self._deaths: deque[float] = deque(maxlen=self.limits.deaths)

    @property
    def state(self) -> State:
        """STARTING while the child loads, READY, BUSY, FAILED (it could not load, and will be tried again), CLOSED."""
        return self._state

    @property
    def reason(self) -> str | None:
        """Why the child could not load; None unless FAILED."""
        return str(self._failure) if self._failure else None

    @property
    def defunct(self) -> bool:
        """Whether children die one after the other: another machine may do better."""
        recent = [death for death in self._deaths if time.monotonic() - death < self.limits.within]
        return len(recent) >= self.limits.deaths

    @property
    def pid(self) -> int | None:
        """The child's number, None when there is none."""
        return self._child.process.pid if self._child else None

    def ready(self) -> bool:
        """Whether a call would begin at once."""
        return self._state == "READY"

    def start(self) -> None:
        """Begin to load, in the background; does nothing when that has been done."""
        with self._changed:
            if self._thread is None and self._state != "CLOSED":
                self._thread = threading.Thread(target=self._supervise, name="engine", daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None = None) -> State:
        """Wait until the child is READY or FAILED (or this is CLOSED), and say which; STARTING when time is up."""
        self.start()
        with self._changed:
            self._changed.wait_for(lambda: self._state != "STARTING", seconds)
            return self._state

    def close(self) -> None:
        """End the child. A job under way fails as `worker_crashed`."""
        with self._changed:
            self._state = "CLOSED"
            child, thread = self._child, self._thread
            self._changed.notify_all()
        if child:
            child.wire.hang_up()
        if thread and thread is not threading.current_thread():
            thread.join(self.limits.kill + 5.0)

    def __enter__(self) -> ProcessEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, plan: Plan, out: Path) -> Generator[Event, None, None]:
        """Make the Plan's video at `out`; the last event is `Finished`, and closing cancels within a step.

        A child that does not answer is killed, and so is one that does not cancel in time. While it loads, a Progress
        of the phase `load` comes every second. Raises what the engine raises, WorkerCrashed when the child dies, and
        what kept the child from loading.
        """
        yield from self._loading()
        child, job, inbox = self._begin()
        watch, settled = Watch(self.limits), False
        try:
            self._tell(child, Make(job=job, plan=plan.as_dict(), out=str(out.absolute())))
            while not settled:
                report = self._next(child, inbox, watch.to_event())
                watch.note(report)
                match report:
                    case Step():
                        yield Progress(report.phase, report.step, report.steps)
                    case Again():
                        yield Retrying(report.reason)
                    case Done():
                        settled = True
                        self._in_a_row = 0
                        self._deaths.clear()
                        yield finished_of(report, out)
                    case Broken():
                        settled = True
                        raise error_of(report)
                    case _:
                        raise WorkerCrashed("the engine's process answered what was not asked")
        except WorkerCrashed:
            self._replace(child)
            settled = True
            raise
        finally:
            if not settled:
                self._cancel(child, job, inbox, watch)
            self._finish(inbox)

    # The side of the caller

    def _loading(self) -> Generator[Event, None, None]:
        while (state := self.wait(1.0)) == "STARTING":
            yield Progress("load", 0, 1)
        if state == "FAILED" and (failure := self._failure):
            raise type(failure)(failure.message, knob=failure.knob, hint=failure.hint)
        if state == "CLOSED":
            raise WorkerCrashed("the engine is closed")

    def _begin(self) -> tuple[Child, int, queue.SimpleQueue[Report | None]]:
        with self._changed:
            if self._state == "BUSY":
                raise RuntimeError("this engine makes one video at a time")
            if self._state != "READY" or self._child is None:
                raise WorkerCrashed("the engine's process died before the job began")
            self._state = "BUSY"
            self._job += 1
            self._inbox = queue.SimpleQueue()
            return self._child, self._job, self._inbox

    def _finish(self, inbox: queue.SimpleQueue[Report | None]) -> None:
        with self._changed:
            if self._inbox is inbox:
                self._inbox = None
                if self._state == "BUSY":
                    self._state = "READY"
            self._changed.notify_all()

    def _tell(self, child: Child, message: Make | Cancel) -> None:
        try:
            child.wire.send(message)
        except (OSError, ValueError) as error:
            raise WorkerCrashed(f"the engine's process takes no orders: {error}") from error

    def _next(self, child: Child, inbox: queue.SimpleQueue[Report | None], seconds: float) -> Report:
        try:
            report = inbox.get(timeout=seconds)
        except queue.Empty:
            LOG.error("no event for %.0f s: the engine's process %d is killed", seconds, child.process.pid)
            raise WorkerCrashed(f"no sign of life for {seconds:.0f} s") from None
        if report is None:
            raise WorkerCrashed("the engine's process died")
        return report

    def _cancel(self, child: Child, job: int, inbox: queue.SimpleQueue[Report | None], watch: Watch) -> None:
        end = time.monotonic() + watch.to_cancel()
        try:
            self._tell(child, Cancel(job=job))
            while not isinstance(self._next(child, inbox, max(0.0, end - time.monotonic())), Done | Broken | Cancelled):
                pass
        except WorkerCrashed:
            self._replace(child)

    def _replace(self, child: Child) -> None:
        """Have this child ended, and wait until it is: what it writes must not outlive the job."""
        child.kill(self.limits.kill)
        with self._changed:
            self._changed.wait_for(lambda: self._child is not child, self.limits.kill + 5.0)

    # The side of the child: a thread that lives as long as this object, see Child

    def _supervise(self) -> None:
        while self._state != "CLOSED":
            try:
                child = Child(self._environment)
            except OSError as error:
                self._fail(WorkerCrashed(f"the engine's process cannot be started: {error.strerror}"))
                self._rest()
                continue
            with self._changed:
                self._child = child
                if self._state == "CLOSED":
                    child.wire.hang_up()
            self._live(child)
            status = child.end(self.limits.kill)
            with self._changed:
                self._child = None
                if self._inbox:
                    self._inbox.put(None)
                if self._state != "CLOSED":
                    self._bury(child, status)
                self._changed.notify_all()
            self._rest()

    def _rest(self) -> None:
        """Wait before the next start: longer each time, until a video is made."""
        rest = min(self.limits.rest * 2**self._in_a_row, self.limits.longest_rest)
        self._in_a_row = min(self._in_a_row + 1, 16)
        with self._changed:
            self._changed.wait_for(lambda: self._state == "CLOSED", rest)

    def _bury(self, child: Child, status: int) -> None:
        self._deaths.append(time.monotonic())
        if self._state != "FAILED":
            self._state = "STARTING"
        last = " | ".join(child.chatter.last)[-2000:]
        LOG.error(
            "the engine's process %d ended with %d; its last words: %s", child.process.pid, status, last or "none"
        )

    def _live(self, child: Child) -> None:
        """Start one child and pass on what it says, until it says nothing more or nonsense."""
        try:
            child.wire.send(self._order)
            end = time.monotonic() + self.limits.start
            report = self._receive(child, end)
            if isinstance(report, Broken):
                self._fail(error_of(report))
            elif isinstance(report, Ready):
                self._set("READY")
                while (report := self._receive(child, None)) is not None:
                    self._pass_on(report)
            elif report is None:
                self._fail(_died_loading(child))
            else:
                raise ProtocolError("the first word must be that it is ready")
        except ProtocolError as error:
            LOG.error("the engine's process %d broke the protocol: %s", child.process.pid, error)
            if self._state in ("STARTING", "FAILED"):
                self._fail(WorkerCrashed(f"the engine's process broke the protocol: {error}"))
            child.kill(0.0)
        except TimeoutError:
            self._fail(WorkerCrashed(f"the engine did not load within {self.limits.start:.0f} s"))
            child.kill(self.limits.kill)
        except OSError as error:
            LOG.error("the engine's process %d cannot be spoken to: %s", child.process.pid, error)
            if self._state in ("STARTING", "FAILED"):
                self._fail(_died_loading(child))

    def _receive(self, child: Child, end: float | None) -> Report | None:
        try:
            data = child.wire.receive(end)
        except ConnectionResetError:
            # It died with orders of ours unread.
            data = None
        return None if data is None else read_report(data)

    def _pass_on(self, report: Report) -> None:
        with self._changed:
            job, inbox = getattr(report, "job", None), self._inbox
            if job is None or job > self._job:
                raise ProtocolError("an answer to nothing")
            if inbox is None or job < self._job:
                return
            if inbox.qsize() > MAX_WAITING:
                raise ProtocolError("events without end")
            inbox.put(report)

    def _fail(self, error: Ltx2Error) -> None:
        if self._state == "CLOSED":
            return
        LOG.error("the engine could not be made: %s", error)
        with self._changed:
            self._failure = error
        self._set("FAILED")

    def _set(self, state: State) -> None:
        with self._changed:
            if self._state != "CLOSED":
                self._state = state
            if state == "READY":
                self._failure = None
            self._changed.notify_all()


def _died_loading(child: Child) -> WorkerCrashed:
    """With what it said last: such a death is told to the one who runs the engine, and no job has begun."""
    child.chatter.join(1.0)
    words = child.chatter.tail()
    return WorkerCrashed(
        "the engine's process died while it loaded", hint=f"its last words: {words}" if words else None
    )
