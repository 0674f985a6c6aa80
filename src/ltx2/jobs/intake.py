"""What clients do to the queue, as transactions: submit, look, list, cancel, remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, update

from ltx2.jobs import quota
from ltx2.jobs.database import clock, serialise
from ltx2.jobs.endings import end
from ltx2.jobs.errors import Conflict, NoSuchJob, QueueFull
from ltx2.jobs.job import CANCELLED, OPEN, Accepted, Ask, Job, Rules
from ltx2.jobs.tables import JOBS


def job_from(row: Row[Any]) -> Job:
    """The Job of a whole row of the table."""
    return Job(**row._mapping)  # pyright: ignore[reportPrivateUsage]


def submit(connection: Connection, ask: Ask, id: str, rules: Rules) -> Accepted:  # noqa: A002
    """Accept a job once, however often it is asked for; `id` is the ask's own or the one drawn for it.

    Raises Conflict when the key or id belongs to another request, QueueFull when there is no place, QuotaExceeded.
    """
    # One submit of a token at a time: keys, twins, limits and turns are exact without a retry loop.
    serialise(connection, ask.token)
    now = clock(connection)
    known = _known(connection, ask, id, now, rules)
    if known is not None:
        if known.digest != ask.digest:
            raise Conflict("this key or id was used for another request", hint="draw a new one, or repeat the request")
        return Accepted(known, replayed=True)
    _check_place(connection, ask, rules)
    quota.check(connection, ask, now)
    values: dict[str, Any] = {
        "id": id,
        "token": ask.token,
        "key": ask.key,
        "digest": ask.digest,
        "request": ask.request,
        "plan": ask.plan.as_dict(),
        "priority": ask.priority,
        "turn": _turn(connection, ask),
        "state": "queued",
        "attempt": 0,
        "tries": 0,
        "cancel_asked": False,
        "deadline": None if ask.deadline is None else now + ask.deadline,
        "version": 1,
        "webhook": ask.webhook,
        "removed": False,
        "created": now,
        "most_running": ask.running,
    }
    job = job_from(connection.execute(insert(JOBS).values(values).returning(JOBS)).one())
    quota.spend(connection, ask, job)
    return Accepted(job, replayed=False)


def _known(connection: Connection, ask: Ask, id: str, now: float, rules: Rules) -> Job | None:  # noqa: A002
    mine = JOBS.c.token == ask.token
    old = and_(mine, JOBS.c.key == ask.key, JOBS.c.created <= now - rules.keys)
    connection.execute(update(JOBS).where(old).values(key=None))
    same = [JOBS.c.id == id]
    if ask.key is not None:
        same.append(JOBS.c.key == ask.key)
    elif ask.retry:
        recent = JOBS.c.created > now - rules.twins
        same.append(and_(JOBS.c.digest == ask.digest, JOBS.c.key.is_(None), recent, JOBS.c.removed.is_(False)))
    # The id says more than the key, and the youngest twin more than an older one.
    order = ((JOBS.c.id == id).desc(), JOBS.c.number.desc())
    row = connection.execute(select(JOBS).where(mine, or_(*same)).order_by(*order).limit(1)).one_or_none()
    return None if row is None else job_from(row)


def _check_place(connection: Connection, ask: Ask, rules: Rules) -> None:
    queued = _count(connection, JOBS.c.state == "queued")
    if queued >= rules.depth:
        raise QueueFull(f"the queue holds {queued} jobs", hint="try again later")
    if ask.limit is not None:
        own = _count(connection, JOBS.c.token == ask.token, JOBS.c.state.in_(OPEN))
        if own >= ask.limit:
            raise QueueFull(
                f"{own} of your jobs are open, the limit is {ask.limit}", hint="wait for one to end", own=True
            )


def _turn(connection: Connection, ask: Ask) -> int:
    """The place in line: level with the head of the queue, but one behind the token's own last open job.

    Tokens with many jobs so take turns with tokens that have few, and nobody's place changes later.
    """
    level = JOBS.c.priority == ask.priority
    queued = select(func.min(JOBS.c.turn)).where(level, JOBS.c.state == "queued").scalar_subquery()
    running = select(func.max(JOBS.c.turn)).where(level, JOBS.c.state == "running").scalar_subquery()
    own = select(func.max(JOBS.c.turn)).where(level, JOBS.c.token == ask.token, JOBS.c.state.in_(OPEN))
    head, last = connection.execute(select(func.coalesce(queued, running, 0), own.scalar_subquery())).one()
    return int(head) if last is None else max(int(head), int(last) + 1)


def _count(connection: Connection, *where: ColumnElement[bool]) -> int:
    return connection.execute(select(func.count()).select_from(JOBS).where(*where)).scalar_one()


def find(connection: Connection, token: str, id: str) -> Job:  # noqa: A002
    """A token's job. Raises NoSuchJob."""
    where = (JOBS.c.token == token, JOBS.c.id == id, JOBS.c.removed.is_(False))
    row = connection.execute(select(JOBS).where(*where)).one_or_none()
    if row is None:
        raise NoSuchJob(f"there is no job {id!r}")
    return job_from(row)


def page(connection: Connection, token: str, after: str | None, limit: int, newest_first: bool) -> Sequence[Job]:
    """Up to `limit` jobs of a token in order of acceptance, beyond the job `after`. Raises NoSuchJob."""
    where = [JOBS.c.token == token, JOBS.c.removed.is_(False)]
    if after is not None:
        edge = find(connection, token, after).number
        where.append(JOBS.c.number < edge if newest_first else JOBS.c.number > edge)
    order = JOBS.c.number.desc() if newest_first else JOBS.c.number.asc()
    rows = connection.execute(select(JOBS).where(*where).order_by(order).limit(limit))
    return [job_from(row) for row in rows]


def counts(connection: Connection) -> dict[str, int]:
    """Jobs in each state."""
    rows = connection.execute(select(JOBS.c.state, func.count()).group_by(JOBS.c.state))
    return {state: int(number) for state, number in rows}


def ended(connection: Connection, since: float, limit: int) -> Sequence[Job]:
    """Up to `limit` jobs of all tokens that ended after a time, the earliest first; removed ones while they are there."""
    rows = connection.execute(
        select(JOBS).where(JOBS.c.finished > since).order_by(JOBS.c.finished, JOBS.c.number).limit(limit)
    )
    return [job_from(row) for row in rows]


def longest_wait(connection: Connection) -> float:
    """Seconds that the oldest queued job has waited; 0 when none waits."""
    oldest = connection.execute(select(func.min(JOBS.c.created)).where(JOBS.c.state == "queued")).scalar_one()
    return 0.0 if oldest is None else max(0.0, clock(connection) - float(oldest))


def cancel(connection: Connection, token: str, id: str, rules: Rules) -> Job:  # noqa: A002
    """End a queued job, ask the worker of a running one to stop, leave an ended one as it is. Raises NoSuchJob."""
    job = _locked(connection, token, id)
    if job.state == "queued":
        end(connection, job, CANCELLED, rules)
    elif job.state == "running" and not job.cancel_asked:
        values = {"cancel_asked": True, "version": JOBS.c.version + 1}
        connection.execute(update(JOBS).where(JOBS.c.number == job.number).values(values))
    return find(connection, token, id)


def remove(connection: Connection, token: str, id: str, rules: Rules) -> None:  # noqa: A002
    """Make a job and its files vanish: for clients at once, on disk with the next sweep. Raises NoSuchJob."""
    number = _locked(connection, token, id).number
    # Who throws a job away does not want to hear of its end.
    connection.execute(update(JOBS).where(JOBS.c.number == number).values(webhook=None))
    cancel(connection, token, id, rules)
    # The id and key are free again for the same client.
    values = {"removed": True, "id": f"{id}~{number}", "key": None}
    connection.execute(update(JOBS).where(JOBS.c.number == number).values(values))


def _locked(connection: Connection, token: str, id: str) -> Job:  # noqa: A002
    number = find(connection, token, id).number
    row = connection.execute(select(JOBS).where(JOBS.c.number == number).with_for_update()).one_or_none()
    if row is None:
        raise NoSuchJob(f"there is no job {id!r}")
    return job_from(row)
