"""Webhooks as rows: posted in the transaction that ends a job, taken by a courier, tried until the receiver says yes."""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, and_, insert, or_, select, update
from sqlalchemy.sql.expression import func

from ltx2.jobs.database import clock
from ltx2.jobs.job import Job, State
from ltx2.jobs.tables import OUTBOX

# Seconds after each failed try; then the letter is dead.
PAUSES = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 36_000.0)
# A host that failed is left alone for a moment, so that thousands of letters to it do not delay the others.
REST = 5.0
LEASE = 60.0
GONE = 410


@dataclass(frozen=True)
class Letter:
    """A webhook to deliver; its `id` stays the same over all tries, so that a receiver can tell a repeat."""

    number: int
    id: str
    token: str
    url: str
    host: str
    body: str
    tries: int


def post(connection: Connection, job: Job, state: State, now: float) -> None:
    """Write the webhook of an ended job. Cancelled and expired jobs are failed ones to a webhook, as in the API."""
    url = job.webhook or ""
    letter = f"msg_{uuid.uuid4().hex}"
    kind = "video.completed" if state == "done" else "video.failed"
    data = {"id": job.id, "state": state}
    body: dict[str, Any] = {"id": letter, "object": "event", "type": kind, "created_at": int(now), "data": data}
    values: dict[str, Any] = {
        "id": letter,
        "job": job.number,
        "token": job.token,
        "url": url,
        "host": urlsplit(url).netloc,
        "body": json.dumps(body),
        "state": "pending",
        "tries": 0,
        "next_at": now,
        "created": now,
    }
    connection.execute(insert(OUTBOX).values(values))


def take(connection: Connection) -> Letter | None:
    """The next letter that is due, to a host with none under way; its try is counted before it is made."""
    now = clock(connection)
    other = OUTBOX.alias("other")
    pending, free = OUTBOX.c.state == "pending", or_(OUTBOX.c.lease_until.is_(None), OUTBOX.c.lease_until <= now)
    busy = select(other.c.host).where(other.c.state == "pending", other.c.lease_until > now)
    due = and_(pending, free, OUTBOX.c.next_at <= now, OUTBOX.c.host.not_in(busy))
    query = select(OUTBOX).where(due).order_by(OUTBOX.c.next_at, OUTBOX.c.number).limit(1)
    row = connection.execute(query.with_for_update(skip_locked=True)).one_or_none()
    if row is None:
        return None
    values = {"lease_until": now + LEASE, "tries": OUTBOX.c.tries + 1}
    connection.execute(update(OUTBOX).where(OUTBOX.c.number == row.number).values(values))
    return Letter(row.number, row.id, row.token, row.url, row.host, row.body, row.tries + 1)


def delivered(connection: Connection, letter: Letter) -> None:
    """The receiver said yes."""
    _settle(connection, letter, state="delivered")


def refused(connection: Connection, letter: Letter, status: int | None) -> None:
    """The receiver said no, or nothing (None): try later, or never after the last pause or a 410."""
    if status == GONE or letter.tries > len(PAUSES):
        _settle(connection, letter, state="dead")
        return
    now = clock(connection)
    pause = PAUSES[letter.tries - 1] * random.uniform(0.9, 1.1)
    _settle(connection, letter, next_at=now + pause)
    same_host = and_(OUTBOX.c.host == letter.host, OUTBOX.c.state == "pending", OUTBOX.c.next_at < now + REST)
    connection.execute(update(OUTBOX).where(same_host).values(next_at=now + REST))


def undelivered(connection: Connection) -> int:
    """Letters that are neither delivered nor given up."""
    return connection.execute(select(func.count()).where(OUTBOX.c.state == "pending")).scalar_one()


def _settle(connection: Connection, letter: Letter, **values: Any) -> None:
    # A late answer to an earlier try must not undo what a later one has settled.
    mine = and_(OUTBOX.c.number == letter.number, OUTBOX.c.tries == letter.tries, OUTBOX.c.state == "pending")
    connection.execute(update(OUTBOX).where(mine).values(values | {"lease_until": None}))
