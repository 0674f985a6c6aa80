"""The store: every act on the queue as one method, one transaction, tried again while the database is away."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from ltx2.jobs import claims, intake, line, outbox, sweep
from ltx2.jobs.database import Database
from ltx2.jobs.job import Accepted, Answer, Ask, Claim, Ending, Job, Rules, State
from ltx2.jobs.line import Place
from ltx2.jobs.outbox import Letter
from ltx2.spec.errors import RefusedRequest

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_KEY = 255


class Store:
    """The queue of one database. Every method raises StoreUnavailable when the database stays away.

    Methods that take a `token` see the jobs of that token only. Safe to share between the threads of a process.
    """

    def __init__(self, url: str, rules: Rules | None = None, patience: float = 30.0):
        self.rules = rules or Rules()
        self.database = Database(url, patience)

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    # Clients

    def submit(self, ask: Ask) -> Accepted:
        """Accept a job, or find the one that the same key, id or retry has made before.

        Raises RefusedRequest for an id or key of the wrong form, Conflict, QueueFull and QuotaExceeded.
        """
        if ask.id is not None and not ID.fullmatch(ask.id):
            raise RefusedRequest("id: up to 64 letters, digits, dots, dashes and underscores", knob="id")
        if ask.key is not None and not 0 < len(ask.key) <= MAX_KEY:
            raise RefusedRequest(f"Idempotency-Key: 1 to {MAX_KEY} characters", knob="Idempotency-Key")
        # Drawn before the transaction: when the answer of its commit is lost, the next try finds the row.
        return self.database.write(intake.submit, ask, ask.id or f"video_{uuid.uuid4().hex}", self.rules)

    def get(self, token: str, id: str) -> Job:  # noqa: A002
        """A job. Raises NoSuchJob."""
        return self.database.read(intake.find, token, id)

    def page(self, token: str, after: str | None = None, limit: int = 20, newest_first: bool = True) -> Sequence[Job]:
        """Up to `limit` jobs beyond the job `after`; stable while others are added. Raises NoSuchJob."""
        return self.database.read(intake.page, token, after, limit, newest_first)

    def place(self, job: Job) -> Place:
        """Where a queued job stands in line."""
        return self.database.read(line.place, job)

    def counts(self) -> dict[str, int]:
        """Jobs in each state."""
        return self.database.read(intake.counts)

    def ended(self, since: float, limit: int) -> Sequence[Job]:
        """Jobs of all tokens that ended after a time, the earliest first."""
        return self.database.read(intake.ended, since, limit)

    def longest_wait(self) -> float:
        """Seconds that the oldest queued job has waited."""
        return self.database.read(intake.longest_wait)

    def cancel(self, token: str, id: str) -> Job:  # noqa: A002
        """Cancel a queued job at once, a running one within a step; an ended one stays. Raises NoSuchJob."""
        return self.database.write(intake.cancel, token, id, self.rules)

    def remove(self, token: str, id: str) -> None:  # noqa: A002
        """Cancel a job if it is open, and delete it with its files. Raises NoSuchJob."""
        self.database.write(intake.remove, token, id, self.rules)

    # Workers

    def claim(self, worker: str) -> Claim | None:
        """The next job, under a lease; `worker` names one process for its whole life. None when nothing waits."""
        if not self.database.read(claims.startable):
            return None
        return self.database.write(claims.claim, worker, self.rules)

    def beat(self, claim: Claim, progress: dict[str, Any] | None = None) -> Answer:
        """Renew the lease: go on, cancel, late (the deadline passed) or lost (the claim is void)."""
        return self.database.write(claims.beat, claim, progress, self.rules)

    def finish(self, claim: Claim, ending: Ending) -> State | None:
        """End a job; the state that came to be, or None when the claim is void and nothing was published."""
        return self.database.write(claims.finish, claim, ending, self.rules)

    def give_back(self, claim: Claim, counted: bool = False) -> State | None:
        """Queue a claimed job again; `counted` when the attempt broke, not when the worker was told to stop."""
        return self.database.write(claims.give_back, claim, self.rules, counted)

    # The house

    def sweep(self, forget: bool = True, at: float | None = None) -> sweep.Swept:
        """Free the jobs of dead workers, end those that are too late and, if asked to forget, delete records that are old
        `at` a moment, by default now."""
        return self.database.write(sweep.sweep, self.rules, forget, at)

    def now(self) -> float:
        """Seconds since 1970 by the database's clock."""
        return self.database.read(sweep.now)

    def withering(self, at: float | None = None) -> Sequence[Job]:
        """Jobs whose files are to be deleted `at` a moment, by default now."""
        return self.database.read(sweep.withering, at)

    def withered(self, job: Job) -> None:
        """The files of this job are deleted."""
        self.database.write(sweep.withered, job)

    def standing(self, numbers: Sequence[int]) -> dict[int, Job]:
        """The jobs of these numbers that there still are."""
        return self.database.read(sweep.standing, numbers)

    # Webhooks

    def take_letter(self) -> Letter | None:
        """The next webhook to try."""
        return self.database.write(outbox.take)

    def delivered(self, letter: Letter) -> None:
        """The receiver took it."""
        self.database.write(outbox.delivered, letter)

    def refused(self, letter: Letter, status: int | None) -> None:
        """The receiver answered `status`, or not at all (None)."""
        self.database.write(outbox.refused, letter, status)

    def undelivered(self) -> int:
        """Webhooks that are still to be delivered."""
        return self.database.read(outbox.undelivered)
