"""The queue of a deployment without a database: what routes need, on Dicts and function calls.

Webhooks, priorities and fairness between tokens need a database, and are refused by name. Limits count what can be seen
at that moment: two web containers that accept at once may pass them by one job each.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltx2.doors.modal.board import Board, Record
from ltx2.doors.modal.calls import Calls
from ltx2.doors.modal.errors import CallGone, DoneElsewhere
from ltx2.jobs.errors import Conflict, NoSuchJob, QueueFull
from ltx2.jobs.job import CANCELLED, EXPIRED, Accepted, Ask, Ending, Job, Rules
from ltx2.jobs.line import Party, Place
from ltx2.jobs.store import ID, MAX_KEY
from ltx2.spec.errors import RefusedRequest

# A running job that says nothing for so long is asked for at Modal.
SILENT = 20.0
# A job without a call is one whose web container died in between; the next who looks starts it.
ORPHANED = 10.0
# A look at an open job serves everybody who asks within this time.
FRESH = 0.4
NO_DATABASE = (
    "jobs are kept in modal.Dict: name a secret with LTX2_DB=postgresql://… as database_secret, and deploy again"
)
Admit = Callable[[Ask, float], float]
"""Checks that a job may cost money now, given what the open ones will; returns the dollars it is expected to cost."""


@dataclass
class DictQueue:
    """A `Queue` (doors/http/service.py) on a Board. `admit` raises SpendCapReached and NotDeployed."""

    board: Board
    calls: Calls
    admit: Admit
    rules: Rules = field(default_factory=Rules)
    _seen: dict[tuple[str, str], tuple[float, Job]] = field(default_factory=dict[tuple[str, str], tuple[float, Job]])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, ask: Ask) -> Accepted:
        """Accept a job, or find the one that the same key, id or retry has made before.

        Raises RefusedRequest, Conflict and QueueFull as the Store does, DoneElsewhere for what needs a database.
        """
        _check(ask)
        known = self._known(ask)
        if known is not None:
            return self._replay(ask, known)
        waiting = self.board.open()
        self._check_place(ask, waiting)
        dollars = self.admit(ask, sum(float(job["dollars"]) for job in waiting.values()))
        record = _record(ask, dollars)
        owner = self.board.claim_name("key", ask.token, ask.key, record.id) if ask.key is not None else record.id
        if owner != record.id:
            return self._replay(ask, self._arriving(ask.token, owner))
        picture = Path(str(record.plan["image"])) if record.plan["image"] else None
        if picture is not None:
            self.board.put_picture(picture.name, picture.read_bytes())
        if not self.board.accept(record):
            return self._replay(ask, self._arriving(ask.token, record.id))
        try:
            self._start(record)
        except Exception:
            # Nobody has heard of it: the client may ask again.
            self.board.forget(record)
            raise
        self._name_twin(ask, record)
        return Accepted(self._job(record), replayed=False)

    def get(self, token: str, id: str) -> Job:  # noqa: A002
        """A job, as it stands. Raises NoSuchJob; CallGone for one whose call Modal has forgotten."""
        with self._lock:
            at, seen = self._seen.get((token, id), (0.0, None))
        if seen is not None and time.monotonic() - at < FRESH:
            return seen
        job = self._settled(self._record(token, id))
        with self._lock:
            if len(self._seen) > 1000:
                self._seen.clear()
            self._seen[token, id] = (time.monotonic(), job)
        return job

    def page(self, token: str, after: str | None = None, limit: int = 20, newest_first: bool = True) -> Sequence[Job]:
        """Up to `limit` jobs beyond the job `after`. Reads the whole index. Raises NoSuchJob."""
        numbers = self.board.numbers(token)
        if newest_first:
            numbers.reverse()
        if after is not None:
            places = [place for place, (_, id_) in enumerate(numbers) if id_ == after]
            if not places:
                raise NoSuchJob(f"there is no job {after!r}")
            numbers = numbers[places[0] + 1 :]
        records = (self.board.record(token, id_) for _, id_ in numbers[:limit])
        return [self._job(record) for record in records if record is not None]

    def place(self, job: Job) -> Place:
        """Behind the open jobs that were accepted before; Modal takes them in that order."""
        return Place(Party(sum(number < job.number for number in self.board.open())))

    def counts(self) -> dict[str, int]:
        """Queued and running jobs; ended ones are not counted here."""
        begun = [bool(self.board.progress(number)) for number in self.board.open()]
        return {"queued": begun.count(False), "running": begun.count(True)}

    def cancel(self, token: str, id: str) -> Job:  # noqa: A002
        """End an open job at once; the container that makes it stops within a step. Raises NoSuchJob."""
        record = self._record(token, id)
        if self.board.ending(record.number) is None and self.board.end(record.number, CANCELLED):
            call = self.board.call(record.number)
            if call is not None:
                self.calls.cancel(call)
        with self._lock:
            self._seen.pop((token, id), None)
        return self._job(record)

    def remove(self, token: str, id: str) -> None:  # noqa: A002
        """Cancel a job if it is open, and forget it. Raises NoSuchJob."""
        record = self._record(token, id)
        self.cancel(token, id)
        self.board.forget(record)
        with self._lock:
            self._seen.pop((token, id), None)

    def settle(self, record: Record) -> None:
        """End a job whose call ended without saying so; the sweep does this for jobs that nobody looks at."""
        try:
            self._settled(record)
        except CallGone:
            self.board.end(record.number, Ending.of("failed", "gone", "Modal has forgotten the call"))

    def _record(self, token: str, id: str) -> Record:  # noqa: A002
        record = self.board.record(token, id)
        if record is None:
            raise NoSuchJob(f"there is no job {id!r}")
        return record

    def _known(self, ask: Ask) -> Record | None:
        names = [ask.id]
        if ask.key is not None:
            names.append(self.board.named("key", ask.token, ask.key, self.rules.keys))
            if names[-1] is None:
                self.board.unname("key", ask.token, ask.key)
        elif ask.retry:
            names.append(self.board.named("twin", ask.token, ask.digest, self.rules.twins))
        found = (self.board.record(ask.token, name) for name in names if name is not None)
        return next((record for record in found if record is not None), None)

    def _name_twin(self, ask: Ask, record: Record) -> None:
        if ask.key is None:
            self.board.unname("twin", ask.token, ask.digest)
            self.board.claim_name("twin", ask.token, ask.digest, record.id)

    def _replay(self, ask: Ask, record: Record) -> Accepted:
        if record.digest != ask.digest:
            raise Conflict("this key or id was used for another request", hint="draw a new one, or repeat the request")
        return Accepted(self._job(record), replayed=True)

    def _arriving(self, token: str, id: str) -> Record:  # noqa: A002
        """The job of whoever was quicker, which may still be on its way onto the board."""
        for _ in range(50):
            record = self.board.record(token, id)
            if record is not None:
                return record
            time.sleep(0.1)
        raise Conflict("another request with this key is under way", hint="try again in a moment")

    def _check_place(self, ask: Ask, waiting: dict[int, dict[str, Any]]) -> None:
        if len(waiting) >= self.rules.depth:
            raise QueueFull(f"the queue holds {len(waiting)} jobs", hint="try again later")
        own = sum(job["token"] == ask.token for job in waiting.values())
        if ask.limit is not None and own >= ask.limit:
            raise QueueFull(f"{own} of your jobs are open, the limit is {ask.limit}", hint="wait for one to end")

    def _start(self, record: Record) -> None:
        call = self.calls.begin(record.token, record.id)
        if not self.board.set_call(record.number, call):
            self.calls.cancel(call)

    def _settled(self, record: Record) -> Job:
        """The job, after asking Modal where the board cannot know."""
        job = self._job(record)
        if not job.open:
            return job
        now = time.time()
        if record.deadline is not None and now > record.deadline and job.state == "queued":
            self._end(record, EXPIRED)
            return self._job(record)
        progress = self.board.progress(record.number)
        if progress is not None and now - float(progress["at"]) < SILENT:
            return job
        call = self.board.call(record.number)
        if call is None:
            if now - record.created > ORPHANED:
                self._start(record)
            return job
        look = self.calls.look(call)
        if isinstance(look, Ending):
            # The container writes its ending before the call ends: only what it could not write is new.
            self.board.end(record.number, look)
            return self._job(record)
        if look != "open" and self.board.ending(record.number) is None:
            raise CallGone("this job is over: Modal keeps what it knows of a call for seven days")
        return self._job(record)

    def _end(self, record: Record, ending: Ending) -> None:
        if self.board.end(record.number, ending):
            call = self.board.call(record.number)
            if call is not None:
                self.calls.cancel(call)

    def _job(self, record: Record) -> Job:
        ending = self.board.ending(record.number)
        progress = self.board.progress(record.number) or {}
        state = ending["state"] if ending else "running" if progress else "queued"
        done = ending is not None and state == "done"
        expires = float(ending["at"]) + self.rules.files if ending else None
        withered = expires is not None and time.time() > expires
        return Job(
            number=record.number, id=record.id, token=record.token, key=record.key, digest=record.digest,
            request=record.request, plan=record.plan, priority=0, turn=record.number, state=state,
            attempt=int(progress.get("attempt", 0)), tries=int(progress.get("attempt", 0)), worker=progress.get("worker"),
            lease_until=None, cancel_asked=state == "cancelled", deadline=record.deadline,
            progress={name: progress[name] for name in ("phase", "step", "steps")} if "phase" in progress else None,
            # Greater for every later sight of the job.
            version=10**9 if ending else 1 + int(progress.get("count", 0)),
            result=ending["result"] if ending else None, error=ending["error"] if ending else None,
            published=int(ending["attempt"]) if ending and done and not withered else None, webhook=None, removed=False,
            created=record.created, started=progress.get("started"), finished=float(ending["at"]) if ending else None,
            expires=expires,
        )  # fmt: skip


def _check(ask: Ask) -> None:
    if ask.id is not None and not ID.fullmatch(ask.id):
        raise RefusedRequest("id: up to 64 letters, digits, dots, dashes and underscores", knob="id")
    if ask.key is not None and not 0 < len(ask.key) <= MAX_KEY:
        raise RefusedRequest(f"Idempotency-Key: 1 to {MAX_KEY} characters", knob="Idempotency-Key")
    if ask.webhook is not None:
        raise DoneElsewhere("webhook: this deployment has no webhooks", knob="webhook", hint=NO_DATABASE)
    if ask.priority:
        raise DoneElsewhere("priority: this deployment has no priorities", knob="priority", hint=NO_DATABASE)


def _record(ask: Ask, dollars: float) -> Record:
    now = time.time()
    return Record(
        number=time.time_ns(), id=ask.id or f"video_{uuid.uuid4().hex}", token=ask.token, key=ask.key, digest=ask.digest,
        request=ask.request, plan=ask.plan.as_dict(), deadline=None if ask.deadline is None else now + ask.deadline,
        created=now, dollars=dollars,
    )  # fmt: skip
