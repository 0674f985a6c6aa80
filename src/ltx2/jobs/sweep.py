"""What nobody else does: jobs of dead workers, jobs whose deadline passed, and what has been kept long enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select, update

from ltx2.jobs import quota
from ltx2.jobs.claims import requeue
from ltx2.jobs.database import clock
from ltx2.jobs.endings import end
from ltx2.jobs.intake import job_from
from ltx2.jobs.job import EXPIRED, OPEN, Job, Rules
from ltx2.jobs.tables import JOBS, OUTBOX

# Rows of one sweep: a short transaction, and a wrong clock cannot empty the house at once.
BATCH = 100
# Times a lease; workers of one queue may have rules of their own.
FAR = 20


@dataclass(frozen=True)
class Swept:
    """Jobs taken from dead workers, jobs that were too late, records that were deleted."""

    lost: int
    expired: int
    deleted: int


def now(connection: Connection) -> float:
    """Seconds since 1970 by the clock that everything here goes by."""
    return clock(connection)


def sweep(connection: Connection, rules: Rules, forget: bool = True, at: float | None = None) -> Swept:
    """One round over the queue; rows that others hold wait for the next.

    `forget` says whether to delete records that are old `at` this moment, by default now.
    """
    now = clock(connection)
    # A lease that ends later than any lease can was given before the clock was set back.
    over = or_(JOBS.c.lease_until <= now, JOBS.c.lease_until > now + FAR * rules.lease)
    lost = _take(connection, and_(JOBS.c.state == "running", over))
    for job in lost:
        requeue(connection, job, rules, counted=True)
    expired = _take(connection, and_(JOBS.c.state == "queued", JOBS.c.deadline <= now))
    for job in expired:
        end(connection, job, EXPIRED, rules)
    return Swept(len(lost), len(expired), _forget(connection, now if at is None else at, rules) if forget else 0)


def withering(connection: Connection, at: float | None = None) -> Sequence[Job]:
    """Ended jobs whose files are to go: kept long enough `at` this moment, by default now, or removed by their client."""
    at = clock(connection) if at is None else at
    over = or_(and_(JOBS.c.expires <= at, JOBS.c.published.is_not(None)), JOBS.c.removed.is_(True))
    rows = connection.execute(select(JOBS).where(JOBS.c.state.not_in(OPEN), over).order_by(JOBS.c.number).limit(BATCH))
    return [job_from(row) for row in rows]


def withered(connection: Connection, job: Job) -> None:
    """Record that the files of a job are gone; a removed job goes with them."""
    if job.removed:
        connection.execute(delete(JOBS).where(JOBS.c.number == job.number))
    else:
        values = {"published": None, "version": JOBS.c.version + 1}
        connection.execute(update(JOBS).where(JOBS.c.number == job.number).values(values))


def _take(connection: Connection, where: ColumnElement[bool]) -> list[Job]:
    # One UPDATE over all of them would wait for a single row that a stopped worker holds.
    rows = connection.execute(select(JOBS).where(where).limit(BATCH).with_for_update(skip_locked=True))
    return [job_from(row) for row in rows]


def _forget(connection: Connection, now: float, rules: Rules) -> int:
    ended = (JOBS.c.state.not_in(OPEN), JOBS.c.published.is_(None), JOBS.c.removed.is_(False))
    old = select(JOBS.c.number).where(*ended, JOBS.c.finished <= now - rules.rows).limit(BATCH)
    sent = (OUTBOX.c.state != "pending", OUTBOX.c.created <= now - rules.rows)
    connection.execute(delete(OUTBOX).where(*sent))
    quota.forget(connection, now)
    return connection.execute(delete(JOBS).where(JOBS.c.number.in_(old))).rowcount


def standing(connection: Connection, numbers: Sequence[int]) -> dict[int, Job]:
    """The jobs of these numbers that there still are."""
    rows = connection.execute(select(JOBS).where(JOBS.c.number.in_(numbers)))
    return {job.number: job for job in map(job_from, rows)}
