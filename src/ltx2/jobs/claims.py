"""What workers do to the queue, as transactions: claim, beat, finish, give back. All but the first are fenced."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, update

from ltx2.jobs.database import clock, seize
from ltx2.jobs.endings import end
from ltx2.jobs.intake import job_from
from ltx2.jobs.job import CANCELLED, CRASHED, OPEN, Answer, Claim, Ending, Job, Rules, State
from ltx2.jobs.tables import JOBS


def startable(connection: Connection) -> bool:
    """Whether any queued job may begin: a cheap question before the lock of a claim."""
    return connection.execute(_queued(select(JOBS.c.number)).limit(1)).first() is not None


def claim(connection: Connection, worker: str, rules: Rules) -> Claim | None:
    """Take the next job: by priority, then turn; past those whose tokens have enough running. None when there is none."""
    now = clock(connection)
    mine = and_(JOBS.c.state == "running", JOBS.c.worker == worker)
    row = connection.execute(select(JOBS).where(mine).with_for_update()).first()
    if row is None:
        job = _next(connection, now)
        if job is None:
            return None
        attempt, tries = job.attempt + 1, job.tries + 1
    else:
        # A worker has one job: the answer to its claim, or to its last finish, was lost.
        job = job_from(row)
        attempt, tries = job.attempt, job.tries
    values: dict[str, Any] = {
        "state": "running",
        "attempt": attempt,
        "tries": tries,
        "worker": worker,
        "lease_until": now + rules.lease,
        "started": now,
        "progress": None,
        "version": JOBS.c.version + 1,
    }
    connection.execute(update(JOBS).where(JOBS.c.number == job.number).values(values))
    return Claim(job.number, attempt, worker, job.plan)


def _queued(query: Select[Any]) -> Select[Any]:
    """The queued jobs whose tokens have less running than they may."""
    running = (
        select(JOBS.c.token, func.count().label("number")).where(JOBS.c.state == "running").group_by(JOBS.c.token)
    ).subquery()
    may = or_(JOBS.c.most_running.is_(None), func.coalesce(running.c.number, 0) < JOBS.c.most_running)
    return query.select_from(JOBS.outerjoin(running, running.c.token == JOBS.c.token)).where(
        JOBS.c.state == "queued", may
    )


def _next(connection: Connection, now: float) -> Job | None:
    """The first queued job that may begin, locked."""
    in_time = or_(JOBS.c.deadline.is_(None), JOBS.c.deadline > now)
    order = (JOBS.c.priority.desc(), JOBS.c.turn, JOBS.c.number)
    passed: list[str] = []
    while True:
        first = _queued(select(JOBS)).where(in_time, JOBS.c.token.not_in(passed)).order_by(*order).limit(1)
        row = connection.execute(first.with_for_update(of=JOBS, skip_locked=True)).one_or_none()
        if row is None:
            return None
        job = job_from(row)
        if job.most_running is None or _has_place(connection, job, job.most_running):
            return job
        passed.append(job.token)


def _has_place(connection: Connection, job: Job, most: int) -> bool:
    """Whether the token has less running than it may; no other claim of it can change that before this one commits.

    While another one is under way the answer is no: who waited for a stopped worker would keep all others waiting.
    """
    if not seize(connection, f"running {job.token}"):
        return False
    mine = (JOBS.c.token == job.token, JOBS.c.state == "running")
    return connection.execute(select(func.count()).select_from(JOBS).where(*mine)).scalar_one() < most


def own(claim: Claim) -> ColumnElement[bool]:
    """The fence: the job is still running, and under this claim."""
    return and_(JOBS.c.number == claim.number, JOBS.c.attempt == claim.attempt, JOBS.c.state == "running")


def beat(connection: Connection, claim: Claim, progress: dict[str, Any] | None, rules: Rules) -> Answer:
    """Renew the lease, publish progress and read the wishes of the client, in one statement."""
    now = clock(connection)
    values: dict[str, Any] = {"lease_until": now + rules.lease}
    if progress is not None:
        values |= {"progress": progress, "version": JOBS.c.version + 1}
    wishes = update(JOBS).where(own(claim)).values(values).returning(JOBS.c.cancel_asked, JOBS.c.deadline)
    row = connection.execute(wishes).one_or_none()
    if row is None:
        return "lost"
    cancel_asked, deadline = row
    if cancel_asked:
        return "cancel"
    return "late" if deadline is not None and deadline <= now else "go"


def finish(connection: Connection, claim: Claim, ending: Ending, rules: Rules) -> State | None:
    """End a claimed job and publish the files of this attempt; None when the claim is void.

    A cancel that was accepted before wins: the answer is the state that came to be. An own commit whose answer was
    lost is recognised.
    """
    job = _held(connection, claim)
    if job is None:
        return _done_before(connection, claim)
    ending = CANCELLED if job.cancel_asked else ending
    end(connection, job, ending, rules, claim.worker)
    return ending.state


def give_back(connection: Connection, claim: Claim, rules: Rules, counted: bool) -> State | None:
    """Put a claimed job back in its place; None when the claim is void.

    Not `counted` is a worker that was told to stop; counted is one that broke, and after the last attempt the job
    fails as `worker_crashed`.
    """
    job = _held(connection, claim)
    if job is None:
        return None
    return requeue(connection, job, rules, counted)


def requeue(connection: Connection, job: Job, rules: Rules, counted: bool) -> State:
    """Queue a running job again, unless it was cancelled or its attempts are spent; returns the new state."""
    if job.cancel_asked:
        end(connection, job, CANCELLED, rules)
        return "cancelled"
    if counted and job.tries >= rules.attempts:
        end(connection, job, CRASHED, rules)
        return "failed"
    values: dict[str, Any] = {
        "state": "queued",
        "tries": job.tries if counted else job.tries - 1,
        "worker": None,
        "lease_until": None,
        "progress": None,
        "version": JOBS.c.version + 1,
    }
    connection.execute(update(JOBS).where(JOBS.c.number == job.number).values(values))
    return "queued"


def _held(connection: Connection, claim: Claim) -> Job | None:
    row = connection.execute(select(JOBS).where(own(claim)).with_for_update()).one_or_none()
    return None if row is None else job_from(row)


def _done_before(connection: Connection, claim: Claim) -> State | None:
    # An ending by the house leaves no worker in the row, so this one can only be the claim's own.
    mine = (JOBS.c.number == claim.number, JOBS.c.attempt == claim.attempt, JOBS.c.worker == claim.worker)
    return connection.execute(select(JOBS.c.state).where(*mine, JOBS.c.state.not_in(OPEN))).scalar_one_or_none()
